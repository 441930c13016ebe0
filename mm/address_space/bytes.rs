// SPDX-License-Identifier: GPL-2.0

//! The bytes of a space: `pread(2)`, `pwrite(2)` and their kin.
//!
//! They are copied under the space's mmap lock, so that none is after munmap has returned. With
//! the lock held nothing may wait for the caller's buffer, which may be anybody's memory: where
//! that faults, the lock is given up first.

use kernel::{
    iov::{IovIterDest, IovIterSource},
    mm::{
        gup::{PinnedPages, PIN_BATCH},
        memcg::ChargeTo,
        virt, MmapReadGuard,
    },
    page::PAGE_SIZE,
    prelude::*,
};

use crate::{file::Asfd, rights::Access};

/// The caller's buffer.
trait Buffer {
    const ACCESS: Access;

    /// Moves bytes between the pages and the buffer, as far as it goes without a page fault.
    fn copy(&mut self, pages: &mut PinnedPages<'_>) -> usize;

    /// Makes the next `len` bytes of the buffer present. Returns whether any are.
    fn fault_in(&mut self, len: usize) -> bool;
}

impl Buffer for IovIterDest<'_> {
    const ACCESS: Access = Access::Read;

    fn copy(&mut self, pages: &mut PinnedPages<'_>) -> usize {
        pages.copy_to(self)
    }

    fn fault_in(&mut self, len: usize) -> bool {
        self.fault_in_writeable(len) < len
    }
}

impl Buffer for IovIterSource<'_> {
    const ACCESS: Access = Access::Write;

    fn copy(&mut self, pages: &mut PinnedPages<'_>) -> usize {
        pages.copy_from(self)
    }

    fn fault_in(&mut self, len: usize) -> bool {
        self.fault_in_readable(len) < len
    }
}

/// Reads from `pos` until the window or the destination ends, or something is in the way.
pub(crate) fn read(asfd: &Asfd, pos: i64, iov: &mut IovIterDest<'_>) -> Result<usize> {
    asfd.ceiling.require(Access::Read)?;
    let pos = u64::try_from(pos).map_err(|_| EINVAL)?;
    let len = iov.len().min(bytes_to_end(asfd, pos));
    transfer(asfd, pos, len, iov)
}

/// Writes from `pos` until the window or the source ends, or something is in the way.
pub(crate) fn write(asfd: &Asfd, pos: i64, iov: &mut IovIterSource<'_>) -> Result<usize> {
    asfd.ceiling.require(Access::Write)?;
    let pos = u64::try_from(pos).map_err(|_| EINVAL)?;
    let len = iov.len().min(bytes_to_end(asfd, pos));
    if len == 0 && !iov.is_empty() {
        return Err(ENOSPC);
    }
    transfer(asfd, pos, len, iov)
}

fn bytes_to_end(asfd: &Asfd, pos: u64) -> usize {
    asfd.window.len().saturating_sub(pos) as usize
}

/// Moves `len` bytes between `pos` and `buffer`. Returns how many it could; an error only if there
/// were none.
fn transfer<B: Buffer>(asfd: &Asfd, pos: u64, len: usize, buffer: &mut B) -> Result<usize> {
    let mut done = 0;
    while done < len {
        match step(asfd, pos + done as u64, len - done, buffer) {
            Ok(copied) => done += copied,
            Err(_) if done > 0 => break,
            Err(err) => return Err(err),
        }
    }
    Ok(done)
}

/// Moves some of `len` bytes, perhaps none for the time being.
fn step<B: Buffer>(asfd: &Asfd, pos: u64, len: usize, buffer: &mut B) -> Result<usize> {
    let mut pages = pin(asfd, pos, len, B::ACCESS)?;
    let wanted = pages.len();
    let copied = buffer.copy(&mut pages);
    drop(pages);

    if copied == 0 && !buffer.fault_in(wanted) {
        return Err(EFAULT);
    }
    if copied == 0 && kernel::current!().signal_pending() {
        return Err(ERESTARTSYS);
    }
    Ok(copied)
}

/// Pins some of the pages of `len` bytes at `pos`. A hole, and a mapping that cannot serve the
/// access, are [`EIO`]; one that does not permit it is [`EACCES`].
fn pin(asfd: &Asfd, pos: u64, len: usize, access: Access) -> Result<PinnedPages<'_>> {
    let range = asfd.mm_range(pos, len as u64)?;
    let write = access == Access::Write;
    let mm = asfd.owner.mm();
    let _charge = ChargeTo::new(mm);

    let guard = mm.mmap_read_lock_killable()?;
    let len = permitted(&guard, range.start, len, access)?;
    let guard = match guard.pin_present(range.start, len, write) {
        Ok(pages) => return Ok(pages),
        Err(guard) => guard,
    };

    // First let the faults wait without the lock. If they did, what is mapped now need not be what
    // was: look again, and then keep the lock.
    let guard = match guard.fault_in(range.start, len.min(PIN_BATCH * PAGE_SIZE), write) {
        Ok((_, Some(guard))) => guard,
        Err(EINTR) => return Err(EINTR),
        _ => mm.mmap_read_lock_killable()?,
    };
    let len = permitted(&guard, range.start, len, access)?;
    guard.pin(range.start, len, write).map_err(|err| match err {
        EFAULT => EIO,
        err => err,
    })
}

/// How many of `len` bytes at `addr` of the mm lie in one mapping that permits `access`.
fn permitted(guard: &MmapReadGuard<'_>, addr: usize, len: usize, access: Access) -> Result<usize> {
    let needed = match access {
        Access::Read => virt::flags::READ,
        Access::Write => virt::flags::WRITE,
    };
    let vma = guard.vma_lookup(addr).ok_or(EIO)?;
    if vma.flags() & needed == 0 {
        return Err(EACCES);
    }
    Ok(len.min(vma.end() - addr))
}
