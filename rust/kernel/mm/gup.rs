// SPDX-License-Identifier: GPL-2.0

//! Access to the pages of another address space (GUP).
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use super::{
    virt::{self, VmaRef},
    MmWithUser, MmapReadGuard,
};
use crate::{
    bindings,
    error::{code::*, to_result, Error, Result},
    iov::{IovIterDest, IovIterSource},
    page::{PAGE_MASK, PAGE_SIZE},
};
use core::{mem, ptr};

/// The most pages that [`MmapReadGuard::pin`] takes at a time.
pub const PIN_BATCH: usize = 32;

/// Pages that are pinned (`FOLL_PIN`) under the mmap lock, and the bytes of them that were asked
/// for.
///
/// The lock is held for as long as the pages are: whoever changes the mappings and then lets go of
/// the lock can be sure that no access to what was mapped before is under way.
///
/// # Examples
///
/// ```
/// use kernel::mm::{OwnedMm, edit::Mapping};
/// use kernel::page::PAGE_SIZE;
///
/// let mm = OwnedMm::new()?;
/// let start = 1 << 30;
/// let anon = Mapping { file: None, prot: 3, flags: 0x21, pgoff: 0 };
/// mm.mmap_write_lock_killable()?.map_fixed(&anon, start..start + PAGE_SIZE)?;
///
/// let pinned = mm.mmap_read_lock().pin(start + 8, 100, true)?;
/// assert_eq!(pinned.len(), 100);
/// drop(pinned);
///
/// // It is present now, and what was never touched is not.
/// assert!(mm.mmap_read_lock().pin_present(start, 1, true).is_ok());
///
/// // Nothing is mapped there.
/// assert!(mm.mmap_read_lock().pin(start + PAGE_SIZE, 1, false).is_err());
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// The first `count` entries of `pages` hold a pin each.
pub struct PinnedPages<'a> {
    pages: [*mut bindings::page; PIN_BATCH],
    count: usize,
    /// Where in the first page the bytes begin.
    offset: usize,
    len: usize,
    write: bool,
    // Dropped after the pins.
    _guard: MmapReadGuard<'a>,
}

impl<'a> MmapReadGuard<'a> {
    /// Pins the pages of `len` bytes at `addr`, or the first [`PIN_BATCH`] of them, faulting them
    /// in as needed. The lock is kept meanwhile, whatever the faults wait for; call
    /// [`Self::fault_in`] before to wait without it.
    ///
    /// Fewer bytes may be pinned than were asked for, but at least one. [`EFAULT`] says that there
    /// is no mapping, that it does not permit the access, or that it cannot serve it.
    pub fn pin(self, addr: usize, len: usize, write: bool) -> Result<PinnedPages<'a>> {
        self.pin_with(addr, len, write, 0).map_err(|(err, _)| err)
    }

    /// As [`Self::pin`], but pins only what is present. Gives the lock back if the first page is
    /// not, or cannot be pinned as it is.
    pub fn pin_present(
        self,
        addr: usize,
        len: usize,
        write: bool,
    ) -> Result<PinnedPages<'a>, Self> {
        self.pin_with(addr, len, write, bindings::FOLL_NOFAULT)
            .map_err(|(_, guard)| guard)
    }

    fn pin_with(
        self,
        addr: usize,
        len: usize,
        write: bool,
        flags: u32,
    ) -> Result<PinnedPages<'a>, (Error, Self)> {
        let wanted = match pages_of(addr, len) {
            Ok(count) => count.min(PIN_BATCH),
            Err(err) => return Err((err, self)),
        };
        let mut pages = [ptr::null_mut(); PIN_BATCH];
        // SAFETY: The mmap lock is held and, as no flag is passed for it, kept; `pages` has room
        // for `wanted` pointers.
        let ret = unsafe {
            bindings::pin_user_pages_remote(
                self.mm.as_raw(),
                addr & PAGE_MASK,
                wanted,
                gup_flags(write) | flags,
                pages.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        let count = match ret {
            ..0 => return Err((Error::from_errno(ret as i32), self)),
            0 => return Err((EFAULT, self)),
            _ => ret as usize,
        };
        let offset = addr & !PAGE_MASK;
        // INVARIANT: That many pages were pinned.
        Ok(PinnedPages {
            pages,
            count,
            offset,
            len: len.min(count * PAGE_SIZE - offset),
            write,
            _guard: self,
        })
    }

    /// Faults in the pages of `len` bytes at `addr`, for writing if `write`, and lets go of the
    /// mmap lock while that waits. Returns how many pages were gone through, and the lock if it
    /// was not given up.
    pub fn fault_in(self, addr: usize, len: usize, write: bool) -> Result<(usize, Option<Self>)> {
        let count = pages_of(addr, len)?;
        let mut locked = 1;
        // SAFETY: The mmap lock is held; no pages are asked for; `locked` is set to 0 if the lock
        // is given up.
        let ret = unsafe {
            bindings::get_user_pages_remote(
                self.mm.as_raw(),
                addr & PAGE_MASK,
                count,
                gup_flags(write),
                ptr::null_mut(),
                &mut locked,
            )
        };
        let guard = if locked != 0 {
            Some(self)
        } else {
            mem::forget(self);
            None
        };
        if ret < 0 {
            return Err(Error::from_errno(ret as i32));
        }
        Ok((ret as usize, guard))
    }

    /// Faults in the page at `addr` of `vma`, for writing if `write`, as far as that does not wait
    /// for a device or a lock that is held for long. Returns whether it did; the page may be gone
    /// again. The lock is kept.
    ///
    /// `vma` has to permit the access. [`EFAULT`] where it cannot serve it, or is not of this mm.
    pub fn fault_in_nowait(&self, vma: &VmaRef, addr: usize, write: bool) -> Result<bool> {
        if !ptr::eq(vma.mm().as_raw(), self.mm.as_raw())
            || !(vma.start()..vma.end()).contains(&addr)
            || vma.flags() & (virt::flags::IO | virt::flags::PFNMAP) != 0
        {
            return Err(EFAULT);
        }
        let mut flags = bindings::fault_flag_FAULT_FLAG_REMOTE
            | bindings::fault_flag_FAULT_FLAG_ALLOW_RETRY
            | bindings::fault_flag_FAULT_FLAG_RETRY_NOWAIT;
        if write {
            flags |= bindings::fault_flag_FAULT_FLAG_WRITE;
        }
        // SAFETY: The VMA is valid, its mmap lock is held, and with these flags kept.
        let outcome = unsafe {
            bindings::handle_mm_fault(vma.as_ptr(), addr & PAGE_MASK, flags, ptr::null_mut())
        };
        // SAFETY: There are no requirements.
        let errno = unsafe { bindings::vm_fault_to_errno(outcome, bindings::FOLL_HWPOISON as i32) };
        to_result(errno)?;
        Ok(outcome & bindings::vm_fault_reason_VM_FAULT_RETRY == 0)
    }
}

fn gup_flags(write: bool) -> u32 {
    if write {
        bindings::FOLL_WRITE
    } else {
        0
    }
}

/// The number of pages that `len` bytes at `addr` touch, [`EINVAL`] if there are none.
fn pages_of(addr: usize, len: usize) -> Result<usize> {
    if len == 0 {
        return Err(EINVAL);
    }
    let bytes = (addr & !PAGE_MASK).checked_add(len).ok_or(EINVAL)?;
    Ok(bytes.div_ceil(PAGE_SIZE))
}

impl PinnedPages<'_> {
    /// The address space they belong to.
    pub fn mm(&self) -> &MmWithUser {
        self._guard.mm
    }

    /// The number of bytes.
    #[expect(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies the bytes out, as far as the destination can be written to without a page fault:
    /// one could wait for the lock that is held here. Returns how many.
    pub fn copy_to(&self, iov: &mut IovIterDest<'_>) -> usize {
        self.copy(|page, offset, len| {
            // SAFETY: The page is pinned, and the bytes lie within it.
            unsafe { bindings::copy_page_to_iter(page, offset, len, iov.as_raw()) }
        })
    }

    /// Copies the bytes in, as far as the source can be read without a page fault. Returns how
    /// many; none if the pages were not pinned for writing.
    pub fn copy_from(&mut self, iov: &mut IovIterSource<'_>) -> usize {
        if !self.write {
            return 0;
        }
        self.copy(|page, offset, len| {
            // SAFETY: The page is pinned for writing, and the bytes lie within it.
            unsafe { bindings::copy_page_from_iter(page, offset, len, iov.as_raw()) }
        })
    }

    fn copy(&self, mut step: impl FnMut(*mut bindings::page, usize, usize) -> usize) -> usize {
        let mut done = 0;
        let mut offset = self.offset;
        // SAFETY: It is enabled again below, on the same task.
        unsafe { bindings::pagefault_disable() };
        for &page in &self.pages[..self.count] {
            let part = (PAGE_SIZE - offset).min(self.len - done);
            let copied = step(page, offset, part);
            done += copied;
            if copied < part {
                break;
            }
            offset = 0;
        }
        // SAFETY: It was disabled above.
        unsafe { bindings::pagefault_enable() };
        done
    }
}

impl Drop for PinnedPages<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants that many pages hold a pin of ours.
        unsafe {
            bindings::unpin_user_pages_dirty_lock(self.pages.as_mut_ptr(), self.count, self.write)
        };
    }
}
