// SPDX-License-Identifier: GPL-2.0

//! Looking up and changing the mappings of an address space.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use super::{
    virt::{self, VmaRef},
    MmWithUser, MmapReadGuard,
};
use crate::{
    alloc::{flags::*, KVVec},
    bindings,
    error::{code::*, from_err_ptr, to_result, Result},
    ffi::c_void,
    fs::mmap::MappableFile,
    page::PAGE_MASK,
    types::NotThreadSafe,
    uapi,
};
use core::{ops::Range, ptr};

impl MmWithUser {
    /// Locks the mmap read lock, unless the task is killed while it waits ([`EINTR`]).
    pub fn mmap_read_lock_killable(&self) -> Result<MmapReadGuard<'_>> {
        // SAFETY: The pointer is valid since self is a reference.
        if unsafe { bindings::mmap_read_lock_killable(self.as_raw()) } != 0 {
            return Err(EINTR);
        }
        // INVARIANT: We just acquired the read lock.
        Ok(MmapReadGuard {
            mm: self,
            _nts: NotThreadSafe,
        })
    }

    /// Locks the mmap write lock, unless the task is killed while it waits ([`EINTR`]).
    pub fn mmap_write_lock_killable(&self) -> Result<MmapWriteGuard<'_>> {
        // SAFETY: The pointer is valid since self is a reference.
        if unsafe { bindings::mmap_write_lock_killable(self.as_raw()) } != 0 {
            return Err(EINTR);
        }
        // INVARIANT: We just acquired the write lock.
        Ok(MmapWriteGuard {
            mm: self,
            _nts: NotThreadSafe,
        })
    }

    /// Advises what to do with the memory of `range`, as `madvise(2)` does; `advice` is one of
    /// `MADV_*`. Must not be called with the mmap lock held.
    pub fn advise(&self, range: Range<usize>, advice: u32) -> Result {
        // SAFETY: The mm is alive as long as self is borrowed.
        to_result(unsafe {
            bindings::do_madvise(
                self.as_raw(),
                range.start,
                range.end - range.start,
                advice as i32,
            )
        })
    }

    /// The number of mappings, as of some moment.
    pub fn map_count(&self) -> usize {
        // SAFETY: The mm is valid, and an aligned `int` is read whole.
        let count = unsafe { (&raw const (*self.raw_fields()).map_count).read_volatile() };
        count as usize
    }

    /// The number of pages in all mappings, as of some moment.
    pub fn total_vm(&self) -> usize {
        // SAFETY: The mm is valid, and an aligned `unsigned long` is read whole.
        unsafe { (&raw const (*self.raw_fields()).total_vm).read_volatile() }
    }

    /// The first address past those that can be mapped.
    pub fn task_size(&self) -> usize {
        // SAFETY: The mm is valid, and `task_size` is not changed once the mm is in use.
        unsafe { (*self.raw_fields()).task_size }
    }

    fn raw_fields(&self) -> *const bindings::mm_struct__bindgen_ty_1 {
        // SAFETY: The pointer is valid since self is a reference.
        unsafe { &raw const (*self.as_raw()).__bindgen_anon_1 }
    }
}

impl MmapReadGuard<'_> {
    /// The first VMA that ends above `addr`, whether or not it begins at or below it.
    pub fn find_vma(&self, addr: usize) -> Option<&VmaRef> {
        // SAFETY: By the type invariants we hold the mmap read lock.
        let vma = unsafe { bindings::find_vma(self.mm.as_raw(), addr) };
        // SAFETY: If not null, the VMA is valid while the lock is held, that is, for as long as
        // self is borrowed.
        (!vma.is_null()).then(|| unsafe { VmaRef::from_raw(vma) })
    }

    /// The address space that is locked.
    pub fn mm(&self) -> &MmWithUser {
        self.mm
    }
}

/// What [`MmapWriteGuard::map_fixed`] is to map.
pub struct Mapping<'a> {
    /// The file, or [`None`] for anonymous memory.
    pub file: Option<&'a MappableFile>,
    /// `PROT_*` bits.
    pub prot: usize,
    /// `MAP_*` bits; `MAP_FIXED` is added.
    pub flags: usize,
    /// First page of the file.
    pub pgoff: usize,
}

const ACCESS: virt::vm_flags_t = virt::flags::READ | virt::flags::WRITE | virt::flags::EXEC;

/// A guard for the mmap write lock.
///
/// # Examples
///
/// ```
/// use kernel::mm::{OwnedMm, edit::Mapping, virt::flags};
/// use kernel::page::PAGE_SIZE;
///
/// let mm = OwnedMm::new()?;
/// let start = 1 << 30;
/// // A shared anonymous mapping (PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS).
/// let anon = Mapping { file: None, prot: 3, flags: 0x21, pgoff: 0 };
///
/// let mut guard = mm.mmap_write_lock_killable()?;
/// guard.map_fixed(&anon, start..start + 4 * PAGE_SIZE)?;
/// guard.unmap(start + PAGE_SIZE..start + 2 * PAGE_SIZE)?;
/// drop(guard);
///
/// let guard = mm.mmap_read_lock();
/// assert!(guard.vma_lookup(start).is_some());
/// assert!(guard.vma_lookup(start + PAGE_SIZE).is_none());
/// assert_eq!(guard.find_vma(start + PAGE_SIZE).unwrap().start(), start + 2 * PAGE_SIZE);
/// assert_eq!(mm.map_count(), 2);
/// assert_eq!(mm.total_vm(), 3);
/// drop(guard);
///
/// let mut guard = mm.mmap_write_lock_killable()?;
/// guard.protect(start + 2 * PAGE_SIZE..start + 3 * PAGE_SIZE, flags::READ)?;
/// assert_eq!(mm.map_count(), 3);
/// // There is a hole.
/// assert_eq!(guard.protect(start..start + 2 * PAGE_SIZE, flags::READ).unwrap_err(), ENOMEM);
/// guard.protect(start + 2 * PAGE_SIZE..start + 4 * PAGE_SIZE, flags::READ | flags::WRITE)?;
/// assert_eq!(mm.map_count(), 2);
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// This guard owns the mmap write lock.
pub struct MmapWriteGuard<'a> {
    mm: &'a MmWithUser,
    // The lock must be released on the same thread.
    _nts: NotThreadSafe,
}

impl MmapWriteGuard<'_> {
    /// Maps `what` at `range`, in place of whatever is there.
    ///
    /// The checks of `mmap(2)` apply. [`EINVAL`] if `range` is empty, not page aligned or beyond
    /// what can be mapped. On an mm that is not the current task's, a failure leaves the mappings as
    /// they were.
    pub fn map_fixed(&mut self, what: &Mapping<'_>, range: Range<usize>) -> Result {
        self.check(&range)?;
        let mut populate = 0;
        // SAFETY: By the type invariants we hold the mmap write lock; the range was checked, and the
        // file, if any, is valid. No list is passed for userfaultfd.
        let ret = unsafe {
            bindings::do_mmap_mm(
                self.mm.as_raw(),
                what.file
                    .map_or(ptr::null_mut(), |mappable| mappable.file().as_ptr()),
                range.start,
                range.end - range.start,
                what.prot,
                what.flags | uapi::MAP_FIXED as usize,
                pin_init::zeroed(),
                what.pgoff,
                &mut populate,
                ptr::null_mut(),
            )
        };
        from_err_ptr(ret as *mut c_void).map(drop)
    }

    /// Unmaps whatever is mapped in `range`. [`EINVAL`] if it is empty, not page aligned or beyond
    /// what can be mapped.
    pub fn unmap(&mut self, range: Range<usize>) -> Result {
        self.check(&range)?;
        // SAFETY: By the type invariants we hold the mmap write lock; the range was checked.
        to_result(unsafe { bindings::unmap_range(self.mm.as_raw(), range.start, range.end) })
    }

    /// Gives whatever is mapped in `range` the access flags `access` and no others, as
    /// `mprotect(2)` does. `access` is made of [`virt::flags::READ`], [`virt::flags::WRITE`] and
    /// [`virt::flags::EXEC`]; other bits are ignored.
    ///
    /// [`ENOMEM`] if there is a hole in it, [`EACCES`] if one of the mappings may not have that
    /// access, [`EINVAL`] if it would have to be split within one of its huge pages. A failure
    /// leaves all as it was, where `mprotect(2)` leaves what it has done until then.
    pub fn protect(&mut self, range: Range<usize>, access: virt::vm_flags_t) -> Result {
        self.check(&range)?;
        let access = access & ACCESS;
        let mm = self.mm.as_raw();

        // What can be known is checked before anything is changed. What cannot is memory for
        // splits, and limits; for these, what was is remembered.
        let mut before: KVVec<(Range<usize>, virt::vm_flags_t)> = KVVec::new();
        let mut begins_within = false;
        let mut addr = range.start;
        while addr < range.end {
            // SAFETY: By the type invariants we hold the mmap write lock.
            let vma = unsafe { bindings::find_vma(mm, addr) };
            if vma.is_null() {
                return Err(ENOMEM);
            }
            // SAFETY: The VMA is valid while the lock is held.
            let area = unsafe { VmaRef::from_raw(vma) };
            if area.start() > addr {
                return Err(ENOMEM);
            }
            begins_within |= area.start() < addr;
            let part = addr..area.end().min(range.end);
            // SAFETY: We hold the mmap write lock, and the VMA is valid.
            to_result(unsafe { bindings::vma_may_protect(vma, part.start, part.end, access) })?;
            addr = part.end;
            before.push((part, area.flags()), GFP_KERNEL_ACCOUNT)?;
        }

        // The ends come first: they are split, which takes memory that has a limit.
        before.rotate_right(1);
        let first = range.start;
        for (done, (part, flags)) in before.iter().enumerate() {
            if let Err(err) = self.set_flags(part, flags & !ACCESS | access) {
                if part.start == first && begins_within {
                    self.unsplit(part.start, *flags);
                }
                for (part, flags) in before[..done].iter().rev() {
                    let _ = self.set_flags(part, *flags);
                }
                return Err(err);
            }
        }
        Ok(())
    }

    /// Merges a mapping with these flags, which was split at `addr`, with what is below. A failure
    /// to split it once more leaves it so.
    fn unsplit(&mut self, addr: usize, flags: virt::vm_flags_t) {
        // SAFETY: By the type invariants we hold the mmap write lock.
        let vma = unsafe { bindings::find_vma(self.mm.as_raw(), addr) };
        if vma.is_null() {
            return;
        }
        // SAFETY: The VMA is valid while the lock is held.
        let area = unsafe { VmaRef::from_raw(vma) };
        if area.start() == addr {
            // Only a change merges. Nobody can see it: accesses wait for the lock.
            let rest = addr..area.end();
            if self.set_flags(&rest, flags ^ virt::flags::READ).is_ok() {
                let _ = self.set_flags(&rest, flags);
            }
        }
    }

    /// `range` must lie in one mapping.
    fn set_flags(&mut self, range: &Range<usize>, flags: virt::vm_flags_t) -> Result {
        // SAFETY: By the type invariants we hold the mmap write lock.
        to_result(unsafe {
            bindings::mprotect_mm_range(self.mm.as_raw(), range.start, range.end, flags)
        })
    }

    fn check(&self, range: &Range<usize>) -> Result {
        if range.is_empty()
            || (range.start | range.end) & !PAGE_MASK != 0
            || range.end > self.mm.task_size()
        {
            return Err(EINVAL);
        }
        Ok(())
    }

    /// Is anything mapped in `range`?
    pub fn intersects(&self, range: Range<usize>) -> bool {
        // SAFETY: By the type invariants we hold the mmap write lock.
        let vma =
            unsafe { bindings::find_vma_intersection(self.mm.as_raw(), range.start, range.end) };
        !vma.is_null()
    }

    /// The address space that is locked.
    pub fn mm(&self) -> &MmWithUser {
        self.mm
    }
}

impl Drop for MmapWriteGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: We hold the write lock by the type invariants.
        unsafe { bindings::mmap_write_unlock(self.mm.as_raw()) };
    }
}
