// SPDX-License-Identifier: GPL-2.0

//! `address_space_munmap(2)`.

use kernel::{mm::memcg::ChargeTo, page::PAGE_SIZE, prelude::*};

use crate::{file::AsfdFile, rights::Rights, seals::Seal, space};

/// `address_space_munmap(2)`. When it returns, nobody reaches the pages through the space.
pub(crate) fn munmap(fd: i32, addr: u64, len: u64) -> Result {
    let file = AsfdFile::from_fd(fd)?;
    let asfd = file.asfd()?;
    asfd.rights.require(Rights::UNMAP)?;

    if len == 0 || !addr.is_multiple_of(PAGE_SIZE as u64) {
        return Err(EINVAL);
    }
    let len = space::round_up(len, PAGE_SIZE).ok_or(EINVAL)?;
    let range = match asfd.mm_range(addr, len) {
        Err(ENOMEM) => return Err(EINVAL),
        range => range?,
    };

    let _charge = ChargeTo::new(asfd.owner.mm());
    let mut guard = asfd.owner.mm().mmap_write_lock_killable()?;
    asfd.owner.space().seals.forbid(Seal::Unmap)?;
    guard.unmap(range)
}
