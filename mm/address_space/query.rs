// SPDX-License-Identifier: GPL-2.0

//! Looking at a space: `lseek(2)`, `ADDRESS_SPACE_IOC_INFO`, `PROCMAP_QUERY`, fdinfo.

use kernel::{
    bindings,
    error::to_result,
    fmt,
    fs::file::Offset,
    mm::virt::{self, VmaRef},
    page::PAGE_SIZE,
    prelude::*,
    seq_file::{seq_print, SeqFile},
    uaccess::{UserPtr, UserSlice},
    uapi,
};

use crate::{
    file::Asfd,
    rights::Rights,
    space::{self, MM_BASE},
    walk,
};

/// Where `lseek(2)` from `position` goes. A space has a fixed size; its data are its mappings.
pub(crate) fn seek(asfd: &Asfd, position: Offset, offset: Offset, whence: i32) -> Result<Offset> {
    let size = asfd.owner.size() as Offset;
    let target = match whence as u32 {
        uapi::SEEK_SET => offset,
        uapi::SEEK_CUR => position.checked_add(offset).ok_or(EOVERFLOW)?,
        uapi::SEEK_END => size.checked_add(offset).ok_or(EOVERFLOW)?,
        uapi::SEEK_DATA => return seek_data(asfd, offset),
        uapi::SEEK_HOLE => return seek_hole(asfd, offset),
        _ => return Err(EINVAL),
    };
    if (0..=size).contains(&target) {
        Ok(target)
    } else {
        Err(EINVAL)
    }
}

/// `offset` as an address of the mm, [`ENXIO`] if the space does not have it.
fn seek_start(asfd: &Asfd, offset: Offset) -> Result<usize> {
    asfd.rights.require(Rights::QUERY)?;
    let offset = u64::try_from(offset).map_err(|_| ENXIO)?;
    let range = asfd.owner.mm_range(offset, 1).map_err(|_| ENXIO)?;
    Ok(range.start)
}

fn seek_data(asfd: &Asfd, offset: Offset) -> Result<Offset> {
    let start = seek_start(asfd, offset)?;
    let guard = asfd.owner.mm().mmap_read_lock_killable()?;
    let vma = guard.find_vma(start).ok_or(ENXIO)?;
    Ok(space::offset_of(vma.start().max(start)) as Offset)
}

fn seek_hole(asfd: &Asfd, offset: Offset) -> Result<Offset> {
    let mut addr = seek_start(asfd, offset)?;
    let guard = asfd.owner.mm().mmap_read_lock_killable()?;
    while let Some(vma) = guard.vma_lookup(addr) {
        addr = vma.end();
    }
    Ok(space::offset_of(addr) as Offset)
}

/// `struct address_space_info`.
#[repr(transparent)]
struct Info(uapi::address_space_info);

// SAFETY: It has no padding, and is initialized as a whole.
unsafe impl kernel::transmute::AsBytes for Info {}

/// `ADDRESS_SPACE_IOC_INFO`.
pub(crate) fn info(asfd: &Asfd, to: UserPtr) -> Result {
    let owner = &asfd.owner;
    let guard = owner.mm().mmap_read_lock_killable()?;
    let info = Info(uapi::address_space_info {
        id: owner.space().id(),
        addr: 0,
        len: owner.size() as u64,
        mappings: owner.mm().map_count() as u64,
        mapped_bytes: (owner.mm().total_vm() * PAGE_SIZE) as u64,
        resident_bytes: walk::resident_bytes(&guard, MM_BASE..owner.mm().task_size()) as u64,
        mirrors: 0,
        windows: owner.space().windows(),
        rights: asfd.rights.bits(),
        prot: asfd.ceiling.bits(),
        seals: 0,
        __reserved: 0,
    });
    drop(guard);
    UserSlice::new(to, size_of::<Info>()).writer().write(&info)
}

/// `PROCMAP_QUERY`, as on `/proc/PID/maps`.
pub(crate) fn procmap(asfd: &Asfd, arg: UserPtr) -> Result {
    asfd.rights.require(Rights::QUERY)?;
    // SAFETY: The mm is alive, as we hold its owner; the pointer is user space's.
    to_result(unsafe {
        bindings::procmap_query_mm(asfd.owner.mm().as_raw(), MM_BASE, arg.as_mut_ptr())
    })
}

/// The lines of `/proc/PID/fdinfo/FD`.
pub(crate) fn show_fdinfo(asfd: &Asfd, m: &SeqFile) {
    let owner = &asfd.owner;
    seq_print!(m, "as_id:\t{}\n", owner.space().id());
    seq_print!(m, "as_window:\t0-{:x}\n", owner.size());
    seq_print!(m, "as_rights:\t{}\n", asfd.rights);
    seq_print!(m, "as_prot:\t{}\n", asfd.ceiling);
    seq_print!(m, "as_seals:\t-\n");

    let Ok(guard) = owner.mm().mmap_read_lock_killable() else {
        return;
    };
    let mapped = owner.mm().total_vm() * PAGE_SIZE;
    seq_print!(m, "as_mappings:\t{}\n", owner.mm().map_count());
    seq_print!(m, "as_mapped:\t{mapped} B\n");
    seq_print!(m, "as_mirrors:\t0\n");
    seq_print!(m, "as_windows:\t{}\n", owner.space().windows());

    if asfd.rights.require(Rights::QUERY).is_err() {
        return;
    }
    let mut addr = MM_BASE;
    while let Some(vma) = guard.find_vma(addr) {
        seq_print!(m, "as_map:\t{} ", Line(vma));
        match vma.file() {
            Some(file) => m.print_path(file),
            None => seq_print!(m, "[anon]"),
        }
        seq_print!(m, "\n");
        addr = vma.end();
    }
}

/// A mapping as a line of fdinfo has it, but for its name.
struct Line<'a>(&'a VmaRef);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vma = self.0;
        let letter = |flag, set, clear| if vma.flags() & flag != 0 { set } else { clear };
        write!(
            f,
            "{:x}-{:x} {}{}-{} {:x}",
            space::offset_of(vma.start()),
            space::offset_of(vma.end()),
            letter(virt::flags::READ, 'r', '-'),
            letter(virt::flags::WRITE, 'w', '-'),
            letter(virt::flags::MAYSHARE, 's', 'p'),
            vma.file().map_or(0, |_| vma.pgoff() * PAGE_SIZE),
        )
    }
}
