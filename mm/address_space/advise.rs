// SPDX-License-Identifier: GPL-2.0

//! `ADDRESS_SPACE_IOC_ADVISE`: `madvise(2)` for a space.

use kernel::{
    mm::memcg::ChargeTo,
    page::PAGE_SIZE,
    prelude::*,
    uaccess::{UserPtr, UserSlice},
    uapi,
};

use crate::{
    file::Asfd,
    rights::{Access, Rights},
    seals::Seal,
    space::round_up,
};

/// `struct address_space_advise`.
#[repr(transparent)]
struct Args(uapi::address_space_advise);

// SAFETY: All its fields are integers, so any bytes will do.
unsafe impl kernel::transmute::FromBytes for Args {}

/// Advice about memory. What is about processes (fork, core dumps, guard pages, poison) is not
/// there.
const ACCEPTED: [u32; 16] = [
    uapi::MADV_NORMAL,
    uapi::MADV_RANDOM,
    uapi::MADV_SEQUENTIAL,
    uapi::MADV_WILLNEED,
    uapi::MADV_DONTNEED,
    uapi::MADV_FREE,
    uapi::MADV_REMOVE,
    uapi::MADV_COLD,
    uapi::MADV_PAGEOUT,
    uapi::MADV_HUGEPAGE,
    uapi::MADV_NOHUGEPAGE,
    uapi::MADV_COLLAPSE,
    uapi::MADV_MERGEABLE,
    uapi::MADV_UNMERGEABLE,
    uapi::MADV_POPULATE_READ,
    uapi::MADV_POPULATE_WRITE,
];

/// `ADDRESS_SPACE_IOC_ADVISE`.
pub(crate) fn advise(asfd: &Asfd, arg: UserPtr) -> Result {
    asfd.rights.require(Rights::CHANGE)?;
    let Args(args) = UserSlice::new(arg, size_of::<Args>()).reader().read()?;
    if args.__reserved != 0
        || args.len == 0
        || !args.addr.is_multiple_of(PAGE_SIZE as u64)
        || !ACCEPTED.contains(&args.advice)
    {
        return Err(EINVAL);
    }
    // It writes zeros to the file.
    if args.advice == uapi::MADV_REMOVE {
        asfd.ceiling.require(Access::Write)?;
    }
    let len = round_up(args.len, PAGE_SIZE).unwrap_or(u64::MAX);
    let range = asfd.mm_range(args.addr, len)?;
    asfd.owner.space().seals.forbid(Seal::Change)?;

    let mm = asfd.owner.mm();
    let _charge = ChargeTo::new(mm);
    mm.advise(range, args.advice)
}
