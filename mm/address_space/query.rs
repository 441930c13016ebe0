// SPDX-License-Identifier: GPL-2.0

//! Looking at a space: `lseek(2)`, `ADDRESS_SPACE_IOC_INFO`, `PROCMAP_QUERY`, fdinfo.

use core::ops::Range;
use kernel::{
    bindings,
    error::to_result,
    fmt,
    fs::file::Offset,
    mm::{
        virt::{self, VmaRef},
        MmapReadGuard,
    },
    page::PAGE_SIZE,
    prelude::*,
    seq_file::{seq_print, SeqFile},
    uaccess::{UserPtr, UserSlice},
    uapi,
};

use crate::{
    file::Asfd,
    rights::Rights,
    walk, //
};

/// Where `lseek(2)` from `position` goes. A window has a fixed size; its data are its mappings.
pub(crate) fn seek(asfd: &Asfd, position: Offset, offset: Offset, whence: i32) -> Result<Offset> {
    let size = asfd.window.len() as Offset;
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

/// From `offset` to the end of the window, in the mm; [`ENXIO`] if there is nothing.
fn seek_range(asfd: &Asfd, offset: Offset) -> Result<Range<usize>> {
    asfd.rights.require(Rights::QUERY)?;
    let offset = u64::try_from(offset).map_err(|_| ENXIO)?;
    let first = asfd.mm_range(offset, 1).map_err(|_| ENXIO)?;
    Ok(first.start..asfd.mm_window().end)
}

fn seek_data(asfd: &Asfd, offset: Offset) -> Result<Offset> {
    let range = seek_range(asfd, offset)?;
    let guard = asfd.owner.mm().mmap_read_lock_killable()?;
    let (_, data) = mappings(&guard, range).next().ok_or(ENXIO)?;
    Ok(asfd.offset_of(data.start) as Offset)
}

fn seek_hole(asfd: &Asfd, offset: Offset) -> Result<Offset> {
    let range = seek_range(asfd, offset)?;
    let guard = asfd.owner.mm().mmap_read_lock_killable()?;
    let mut hole = range.start;
    for (_, data) in mappings(&guard, range) {
        if data.start > hole {
            break;
        }
        hole = data.end;
    }
    Ok(asfd.offset_of(hole) as Offset)
}

/// The mappings in `range`, each with the part of it that is in there.
pub(crate) fn mappings<'a>(
    guard: &'a MmapReadGuard<'_>,
    range: Range<usize>,
) -> impl Iterator<Item = (&'a VmaRef, Range<usize>)> {
    let mut addr = range.start;
    core::iter::from_fn(move || {
        let vma = guard.find_vma(addr).filter(|vma| vma.start() < range.end)?;
        let part = vma.start().max(addr)..vma.end().min(range.end);
        addr = part.end;
        // The search begins below the end of the range, always.
        (!part.is_empty()).then_some((vma, part))
    })
}

/// How many mappings there are in `range`, and how many bytes of it they cover.
fn count(guard: &MmapReadGuard<'_>, range: Range<usize>) -> (u64, u64) {
    mappings(guard, range).fold((0, 0), |(n, bytes), (_, part)| {
        (n + 1, bytes + part.len() as u64)
    })
}

/// In how many areas of processes the space is mirrored.
fn mirrors(asfd: &Asfd) -> u64 {
    asfd.owner.mirrors().map_or(0, |mirrors| mirrors.count()) as u64
}

/// `struct address_space_info`.
#[repr(transparent)]
struct Info(uapi::address_space_info);

// SAFETY: It has no padding, and is initialized as a whole.
unsafe impl kernel::transmute::AsBytes for Info {}

/// `ADDRESS_SPACE_IOC_INFO`.
pub(crate) fn info(asfd: &Asfd, to: UserPtr) -> Result {
    let space = asfd.owner.space();
    let guard = asfd.owner.mm().mmap_read_lock_killable()?;
    let (mappings, mapped_bytes) = count(&guard, asfd.mm_window());
    let info = Info(uapi::address_space_info {
        id: space.id(),
        addr: asfd.window.start(),
        len: asfd.window.len(),
        mappings,
        mapped_bytes,
        resident_bytes: walk::resident_bytes(&guard, asfd.mm_window()) as u64,
        mirrors: mirrors(asfd),
        windows: space.windows(),
        rights: asfd.rights.bits(),
        prot: asfd.ceiling.bits(),
        seals: space.seals.bits(),
        __reserved: 0,
    });
    drop(guard);
    UserSlice::new(to, size_of::<Info>()).writer().write(&info)
}

/// `PROCMAP_QUERY`, as on `/proc/PID/maps`.
pub(crate) fn procmap(asfd: &Asfd, arg: UserPtr) -> Result {
    asfd.rights.require(Rights::QUERY)?;
    let mm = asfd.owner.mm().as_raw();
    let window = asfd.mm_window();
    // SAFETY: The mm is alive, as we hold its owner; the pointer is user space's.
    to_result(unsafe { bindings::procmap_query_mm(mm, window.start, window.end, arg.as_mut_ptr()) })
}

/// The lines of `/proc/PID/fdinfo/FD`.
pub(crate) fn show_fdinfo(asfd: &Asfd, m: &SeqFile) {
    let space = asfd.owner.space();
    let (start, len) = (asfd.window.start(), asfd.window.len());
    seq_print!(m, "as_id:\t{}\n", space.id());
    seq_print!(m, "as_window:\t{:x}-{:x}\n", start, start + len);
    seq_print!(m, "as_rights:\t{}\n", asfd.rights);
    seq_print!(m, "as_prot:\t{}\n", asfd.ceiling);
    seq_print!(m, "as_seals:\t{}\n", space.seals);

    let Ok(guard) = asfd.owner.mm().mmap_read_lock_killable() else {
        return;
    };
    let (n, mapped) = count(&guard, asfd.mm_window());
    seq_print!(m, "as_mappings:\t{n}\n");
    seq_print!(m, "as_mapped:\t{mapped} B\n");
    seq_print!(m, "as_mirrors:\t{}\n", mirrors(asfd));
    seq_print!(m, "as_windows:\t{}\n", space.windows());

    if asfd.rights.require(Rights::QUERY).is_err() {
        return;
    }
    for (vma, part) in mappings(&guard, asfd.mm_window()) {
        let at = asfd.offset_of(part.start);
        seq_print!(m, "as_map:\t{} ", Line { vma, part, at });
        match vma.file() {
            Some(file) => m.print_path(file),
            None => seq_print!(m, "[anon]"),
        }
        seq_print!(m, "\n");
    }
}

/// A mapping as a line of fdinfo has it, but for its name.
struct Line<'a> {
    vma: &'a VmaRef,
    /// What of it is shown, in the mm.
    part: Range<usize>,
    /// Where that is in the window.
    at: u64,
}

impl Line<'_> {
    /// Where in the file it begins.
    fn file_offset(&self) -> usize {
        match self.vma.file() {
            Some(_) => self.vma.pgoff() * PAGE_SIZE + (self.part.start - self.vma.start()),
            None => 0,
        }
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = self.vma.flags();
        let letter = |flag, set, clear| if flags & flag != 0 { set } else { clear };
        write!(
            f,
            "{:x}-{:x} {}{}-{} {:x}",
            self.at,
            self.at + self.part.len() as u64,
            letter(virt::flags::READ, 'r', '-'),
            letter(virt::flags::WRITE, 'w', '-'),
            letter(virt::flags::MAYSHARE, 's', 'p'),
            self.file_offset(),
        )
    }
}
