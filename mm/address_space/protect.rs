// SPDX-License-Identifier: GPL-2.0

//! `ADDRESS_SPACE_IOC_PROTECT`: other permissions for what is mapped.

use kernel::{
    mm::{memcg::ChargeTo, virt},
    page::PAGE_SIZE,
    prelude::*,
    uaccess::{UserPtr, UserSlice},
    uapi,
};

use crate::{
    file::Asfd,
    rights::Rights,
    seals::Seal,
    space::round_up, //
};

/// `struct address_space_protect`.
#[repr(transparent)]
struct Args(uapi::address_space_protect);

// SAFETY: All its fields are integers, so any bytes will do.
unsafe impl kernel::transmute::FromBytes for Args {}

/// `ADDRESS_SPACE_IOC_PROTECT`. When it returns, nobody has more access than `prot` says.
pub(crate) fn protect(asfd: &Asfd, arg: UserPtr) -> Result {
    asfd.rights.require(Rights::CHANGE)?;
    let Args(args) = UserSlice::new(arg, size_of::<Args>()).reader().read()?;
    if args.__reserved != 0
        || args.prot & !(uapi::PROT_READ | uapi::PROT_WRITE) != 0
        || args.len == 0
        || !args.addr.is_multiple_of(PAGE_SIZE as u64)
    {
        return Err(EINVAL);
    }
    let len = round_up(args.len, PAGE_SIZE).unwrap_or(u64::MAX);
    let range = asfd.mm_range(args.addr, len)?;

    let _charge = ChargeTo::new(asfd.owner.mm());
    let mut guard = asfd.owner.mm().mmap_write_lock_killable()?;
    asfd.owner.space().seals.forbid(Seal::Change)?;
    let mut access = virt::flags::NONE;
    if args.prot & uapi::PROT_READ != 0 {
        access |= virt::flags::READ;
    }
    if args.prot & uapi::PROT_WRITE != 0 {
        access |= virt::flags::WRITE;
    }
    guard.protect(range, access)
}
