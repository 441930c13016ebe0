// SPDX-License-Identifier: GPL-2.0

//! `address_space_mmap(2)`: what is asked for, whether it can be had, and where it goes.

use core::ops::Range;
use kernel::{
    fs::{
        mmap::{hugetlb_page_size, MappableFile},
        LocalFile,
    },
    mm::{
        edit::{Mapping, MmapWriteGuard},
        memcg::ChargeTo,
        virt, OwnedMm,
    },
    page::PAGE_SIZE,
    prelude::*,
    sync::aref::ARef,
    uaccess::{read_versioned, UserPtr},
    uapi,
};

use crate::{
    file::{Asfd, AsfdFile},
    rights::Rights,
    seals::Seal,
    space, walk,
};

/// `struct address_space_mmap_args`.
#[repr(transparent)]
struct Args(uapi::address_space_mmap_args);

// SAFETY: All its fields are integers, so any bytes will do.
unsafe impl kernel::transmute::FromBytes for Args {}

/// How the address in the arguments is to be taken.
enum Placement {
    /// Where it says, in place of what is there.
    Replace,
    /// Where it says, if nothing is there.
    NoReplace,
    /// Somewhere at or above.
    Hint,
}

/// Arguments that are consistent in themselves.
struct Request {
    addr: u64,
    len: u64,
    offset: u64,
    prot: u32,
    flags: u32,
    placement: Placement,
    source: Source,
}

/// Where the memory comes from.
enum Source {
    Fd(i32),
    Anonymous,
    /// With the log2 of the page size, 0 for the default.
    AnonymousHuge(u32),
}

const HUGE_SIZE_BITS: u32 = uapi::MAP_HUGE_MASK << uapi::MAP_HUGE_SHIFT;
const KNOWN_FLAGS: u32 = uapi::MAP_TYPE
    | uapi::MAP_ANONYMOUS
    | uapi::MAP_FIXED
    | uapi::MAP_FIXED_NOREPLACE
    | uapi::MAP_POPULATE
    | uapi::MAP_NORESERVE
    | uapi::MAP_HUGETLB;

impl TryFrom<&Args> for Request {
    type Error = Error;

    fn try_from(args: &Args) -> Result<Self> {
        let args = &args.0;
        let has = |flag| args.flags & flag != 0;
        let known = if has(uapi::MAP_HUGETLB) {
            KNOWN_FLAGS | HUGE_SIZE_BITS
        } else {
            KNOWN_FLAGS
        };

        if args.flags & !known != 0
            || args.prot & !(uapi::PROT_READ | uapi::PROT_WRITE) != 0
            || args.__reserved != 0
            || args.len == 0
            || !args.offset.is_multiple_of(PAGE_SIZE as u64)
        {
            return Err(EINVAL);
        }
        if !matches!(
            args.flags & uapi::MAP_TYPE,
            uapi::MAP_SHARED | uapi::MAP_PRIVATE | uapi::MAP_SHARED_VALIDATE
        ) {
            return Err(EINVAL);
        }

        let placement = if has(uapi::MAP_FIXED_NOREPLACE) {
            Placement::NoReplace
        } else if has(uapi::MAP_FIXED) {
            Placement::Replace
        } else {
            Placement::Hint
        };
        if !matches!(placement, Placement::Hint) && !args.addr.is_multiple_of(PAGE_SIZE as u64) {
            return Err(EINVAL);
        }

        let validate = args.flags & uapi::MAP_TYPE == uapi::MAP_SHARED_VALIDATE;
        let source = match (has(uapi::MAP_ANONYMOUS), has(uapi::MAP_HUGETLB)) {
            (false, _) => Source::Fd(args.fd),
            // As mmap(2): there is no file that could know further flags.
            (true, _) if args.fd != -1 || validate => return Err(EINVAL),
            (true, false) => Source::Anonymous,
            (true, true) => {
                Source::AnonymousHuge(args.flags >> uapi::MAP_HUGE_SHIFT & uapi::MAP_HUGE_MASK)
            }
        };

        Ok(Self {
            addr: args.addr,
            len: args.len,
            offset: args.offset,
            prot: args.prot,
            // MAP_SHARED_VALIDATE has done its work, and the placement is ours.
            flags: match args.flags & uapi::MAP_TYPE {
                uapi::MAP_SHARED_VALIDATE => args.flags & !uapi::MAP_TYPE | uapi::MAP_SHARED,
                _ => args.flags,
            } & !(uapi::MAP_FIXED | uapi::MAP_FIXED_NOREPLACE | uapi::MAP_POPULATE),
            placement,
            source,
        })
    }
}

/// A file that can be mapped into a space, if any, and the length of its mapping.
struct Backed {
    file: Option<MappableFile>,
    len: u64,
    page_size: usize,
}

impl Backed {
    fn by(request: &Request) -> Result<Self> {
        let (file, page_size) = match request.source {
            Source::Fd(fd) => {
                let file = mappable(LocalFile::fget(fd as u32)?)?;
                if request.flags & uapi::MAP_HUGETLB != 0 && !file.is_hugetlb() {
                    return Err(EINVAL);
                }
                let page_size = file.page_size();
                (Some(file), page_size)
            }
            Source::Anonymous => (None, PAGE_SIZE),
            Source::AnonymousHuge(log) => {
                let page_size = hugetlb_page_size(log).ok_or(EINVAL)?;
                let len = space::round_up(request.len, page_size).ok_or(ENOMEM)?;
                let file =
                    LocalFile::anon_hugetlb(usize::try_from(len)?, log).map_err(no_memory)?;
                (Some(MappableFile::new(file)?), page_size)
            }
        };
        if !request.offset.is_multiple_of(page_size as u64) {
            return Err(EINVAL);
        }
        Ok(Self {
            file,
            len: space::round_up(request.len, page_size).ok_or(ENOMEM)?,
            page_size,
        })
    }
}

/// A space never holds a space, nor what has not been shown to be safe where no task runs.
fn mappable(file: ARef<LocalFile>) -> Result<MappableFile> {
    if Asfd::from_file(&file).is_some() {
        return Err(ELOOP);
    }
    MappableFile::new(file)
}

/// `address_space_mmap(2)`. Returns the offset of the mapping in the space.
pub(crate) fn mmap(fd: i32, args: UserPtr, size: usize) -> Result<u64> {
    let file = AsfdFile::from_fd(fd)?;
    let asfd = file.asfd()?;
    let args: Args = read_versioned(args, size, uapi::ADDRESS_SPACE_MMAP_ARGS_SIZE_VER0 as usize)?;
    let request = Request::try_from(&args)?;
    asfd.rights.require(Rights::MAP)?;

    let backed = Backed::by(&request)?;
    if let Some(file) = &backed.file {
        let end = request.offset.checked_add(backed.len);
        if end.is_none_or(|end| end > i64::MAX as u64) {
            return Err(EOVERFLOW);
        }
        file.file()
            .may_mmap(request.prot, request.flags, request.offset, backed.len)?;
    }

    let range = {
        let _charge = ChargeTo::new(asfd.owner.mm());
        let mut guard = asfd.owner.mm().mmap_write_lock_killable()?;
        asfd.owner.space().seals.forbid(Seal::Map)?;
        let range = place(asfd, &guard, &request, &backed)?;
        let mapping = Mapping {
            file: backed.file.as_ref(),
            prot: request.prot as usize,
            flags: request.flags as usize,
            pgoff: (request.offset / PAGE_SIZE as u64) as usize,
        };
        guard
            .map_fixed(&mapping, range.clone())
            .map_err(|err| match mapping.file {
                Some(_) => err,
                None => no_memory(err),
            })?;
        range
    };
    let offset = asfd.offset_of(range.start);
    if args.0.flags & uapi::MAP_POPULATE != 0 {
        populate(asfd.owner.mm(), range);
    }
    Ok(offset)
}

/// What is behind anonymous memory is a file system, which calls a lack of memory [`ENOSPC`].
fn no_memory(err: Error) -> Error {
    if err == ENOSPC {
        ENOMEM
    } else {
        err
    }
}

/// Decides where in the mm the mapping goes.
fn place(
    asfd: &Asfd,
    guard: &MmapWriteGuard<'_>,
    request: &Request,
    backed: &Backed,
) -> Result<Range<usize>> {
    if matches!(request.placement, Placement::Hint) {
        return free_range(asfd, guard, request.addr, backed);
    }
    let range = asfd.mm_range(request.addr, backed.len)?;
    if !range.start.is_multiple_of(backed.page_size) {
        return Err(EINVAL);
    }
    if guard.intersects(range.clone()) {
        if matches!(request.placement, Placement::NoReplace) {
            return Err(EEXIST);
        }
        asfd.rights.require(Rights::UNMAP)?;
        asfd.owner.space().seals.forbid(Seal::Unmap)?;
    }
    Ok(range)
}

/// The lowest free range at or above `hint`.
fn free_range(
    asfd: &Asfd,
    guard: &MmapWriteGuard<'_>,
    hint: u64,
    backed: &Backed,
) -> Result<Range<usize>> {
    let low = space::round_up(hint, PAGE_SIZE).ok_or(ENOMEM)?;
    let low = asfd.mm_range(low, 0).map_err(|_| ENOMEM)?.start;
    let within = low..asfd.mm_window().end;
    let len = usize::try_from(backed.len)?;
    let start = walk::free_range(guard, within, len, backed.page_size)?;
    Ok(start..start + len)
}

/// Makes the pages of `range` present, as far as that goes. Failures are not the caller's concern,
/// as with `mmap(2)`.
fn populate(mm: &OwnedMm, range: Range<usize>) {
    let _charge = ChargeTo::new(mm);
    let mut addr = range.start;
    while addr < range.end {
        let Ok(guard) = mm.mmap_read_lock_killable() else {
            return;
        };
        let Some(vma) = guard.find_vma(addr).filter(|vma| vma.start() < range.end) else {
            return;
        };
        let end = vma.end().min(range.end);
        addr = addr.max(vma.start());
        let write = populate_for_write(vma.flags());
        addr = match guard.fault_in(addr, end - addr, write) {
            Ok((pages @ 1.., _)) => addr + pages * PAGE_SIZE,
            Err(EINTR) => return,
            _ => end,
        };
    }
}

/// Private memory that can be written is copied right away; what cannot be read is not read.
fn populate_for_write(flags: virt::vm_flags_t) -> bool {
    let private_write = flags & (virt::flags::WRITE | virt::flags::SHARED) == virt::flags::WRITE;
    private_write || flags & virt::flags::READ == 0
}
