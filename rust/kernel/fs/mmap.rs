// SPDX-License-Identifier: GPL-2.0

//! Mapping files: what serves the pages, whether it is allowed, and what a file does about it.
//!
//! C headers: [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h),
//! [`include/linux/hugetlb.h`](srctree/include/linux/hugetlb.h)

use super::{file::Offset, LocalFile};
use crate::{
    bindings,
    error::{from_err_ptr, to_result},
    mm::{
        fault::{VmOperations, VmOps},
        virt, Mm,
    },
    page::PAGE_SHIFT,
    prelude::*,
    sync::aref::ARef,
    types::Opaque,
};
use core::{ops::RangeInclusive, ptr::NonNull};

/// What serves the pages of a mapping of a file.
///
/// # Examples
///
/// ```
/// use kernel::fs::mmap::Backing;
/// use kernel::page::PAGE_SIZE;
///
/// assert_eq!(Backing::PageCache.page_size(), PAGE_SIZE);
/// assert_eq!(Backing::Hugetlb { page_size: 2 << 20 }.page_size(), 2 << 20);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// hugetlbfs: huge pages of one size, in bytes.
    Hugetlb {
        /// That size.
        page_size: usize,
    },
    /// The page cache, filled by a file system: regular files, shmem.
    PageCache,
    /// A kind of file that says itself that its mappings depend on no task
    /// (`FOP_MMAP_OWNERLESS`).
    Ownerless,
    /// Anything else: devices, memory of special kinds, files that are made up when read.
    Other,
}

impl Backing {
    /// The alignment of a mapping.
    pub fn page_size(self) -> usize {
        match self {
            Backing::Hugetlb { page_size } => page_size,
            _ => crate::page::PAGE_SIZE,
        }
    }
}

impl LocalFile {
    /// Finds out what serves the pages of a mapping of this file.
    pub fn backing(&self) -> Backing {
        let file = self.as_ptr();
        // SAFETY: The file is valid, which is all that these need.
        unsafe {
            match bindings::file_hugetlb_page_size(file) {
                0 if bindings::file_in_page_cache(file) => Backing::PageCache,
                0 if bindings::file_mmap_ownerless(file) => Backing::Ownerless,
                0 => Backing::Other,
                page_size => Backing::Hugetlb { page_size },
            }
        }
    }

    /// Asks the security modules and fsnotify whether `len` bytes at `offset` of this file may be
    /// mapped with these `PROT_*` and `MAP_*` bits. May wait for a permission event.
    pub fn may_mmap(&self, prot: u32, flags: u32, offset: u64, len: u64) -> Result {
        // SAFETY: The file is valid.
        to_result(unsafe {
            bindings::file_may_mmap(
                self.as_ptr(),
                prot as usize,
                flags as usize,
                offset as i64,
                len as usize,
            )
        })
    }

    /// Writes back what was stored in these bytes, `fsync(2)`; the end is inclusive. Does nothing
    /// for a file that keeps nothing elsewhere.
    pub fn sync_range(&self, bytes: RangeInclusive<Offset>, datasync: bool) -> Result {
        // SAFETY: The file is valid, and has operations.
        to_result(unsafe {
            if (*(*self.as_ptr()).f_op).fsync.is_none() {
                return Ok(());
            }
            bindings::vfs_fsync_range(self.as_ptr(), *bytes.start(), *bytes.end(), datasync.into())
        })
    }

    /// Makes the file behind an anonymous mapping of `len` bytes in huge pages; `log` is as for
    /// [`hugetlb_page_size`]. No pages are reserved before it is mapped.
    pub fn anon_hugetlb(len: usize, log: u32) -> Result<ARef<LocalFile>> {
        // SAFETY: There are no requirements.
        let file = from_err_ptr(unsafe { bindings::hugetlb_anon_file(len, log as c_int) })?;
        // SAFETY: The file is new, so nobody uses its position, and its reference is ours.
        Ok(unsafe { ARef::from_raw(NonNull::new(file).ok_or(ENOMEM)?.cast()) })
    }
}

/// The size in bytes of the huge pages whose size has this log2, or of the default huge pages for
/// 0, if the machine has such.
///
/// # Examples
///
/// ```
/// use kernel::fs::mmap::hugetlb_page_size;
///
/// assert!(hugetlb_page_size(1).is_none());
/// if let Some(size) = hugetlb_page_size(21) {
///     assert_eq!(size, 1 << 21);
/// }
/// ```
pub fn hugetlb_page_size(log: u32) -> Option<usize> {
    // SAFETY: There are no requirements.
    match unsafe { bindings::hugetlb_page_size(log as c_int) } {
        0 => None,
        size => Some(size),
    }
}

/// An area that a file is about to be mapped in, `struct vm_area_desc`.
///
/// What is not changed is what the caller of `mmap(2)` asked for.
#[repr(transparent)]
pub struct VmaDesc(Opaque<bindings::vm_area_desc>);

impl VmaDesc {
    /// # Safety
    ///
    /// `desc` must be valid for `'a`, and nobody else use it.
    pub unsafe fn from_raw<'a>(desc: *mut bindings::vm_area_desc) -> &'a mut Self {
        // SAFETY: As this function requires.
        unsafe { &mut *desc.cast() }
    }

    fn fields(&self) -> &bindings::vm_area_desc {
        // SAFETY: It is valid, and not changed while self is borrowed.
        unsafe { &*self.0.get() }
    }

    fn fields_mut(&mut self) -> &mut bindings::vm_area_desc {
        // SAFETY: It is valid, and nobody else uses it while self is borrowed.
        unsafe { &mut *self.0.get() }
    }

    /// The address space that it will be part of.
    pub fn mm(&self) -> &Mm {
        // SAFETY: The mm is alive and locked during the call.
        unsafe { Mm::from_raw(self.fields().mm) }
    }

    /// The length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> usize {
        self.fields().end - self.fields().start
    }

    /// The first page of the file.
    pub fn pgoff(&self) -> usize {
        self.fields().pgoff
    }

    /// Has another page of the file be the first. Its offset in bytes has to be one that a file can
    /// have ([`EOVERFLOW`]).
    pub fn set_pgoff(&mut self, pgoff: usize) -> Result {
        let end = pgoff.checked_add(self.len() >> PAGE_SHIFT);
        if end.is_none_or(|end| end > (i64::MAX >> PAGE_SHIFT) as usize) {
            return Err(EOVERFLOW);
        }
        self.fields_mut().pgoff = pgoff;
        Ok(())
    }

    /// Its [`virt::flags`].
    pub fn flags(&self) -> virt::vm_flags_t {
        // SAFETY: It is valid.
        unsafe { bindings::vma_desc_flags(self.0.get()) }
    }

    /// Takes `clear` from its flags and adds `set`.
    pub fn change_flags(&mut self, clear: virt::vm_flags_t, set: virt::vm_flags_t) {
        let flags = self.flags() & !clear | set;
        // SAFETY: It is valid, and nobody else uses it.
        unsafe { bindings::vma_desc_set_flags(self.0.get(), flags) };
    }

    /// Says who serves its faults.
    pub fn set_operations<T: VmOperations>(&mut self, ops: &'static VmOps<T>) {
        self.fields_mut().vm_ops = ops.as_raw();
    }
}

impl LocalFile {
    /// Finds a free range of the current process for a mapping of `len` bytes from page `pgoff`,
    /// such that huge pages of the file lie at addresses at which they can be mapped as such, if
    /// that is possible; `addr` is a hint, `flags` are `MAP_*` bits.
    pub fn huge_unmapped_area(
        &self,
        addr: usize,
        len: usize,
        pgoff: usize,
        flags: usize,
    ) -> Result<usize> {
        // SAFETY: The file is valid, and the mmap lock is held by `mmap(2)`, which is who may ask.
        let area =
            unsafe { bindings::file_huge_unmapped_area(self.as_ptr(), addr, len, pgoff, flags) };
        from_err_ptr(area as *mut c_void).map(|area| area as usize)
    }
}
