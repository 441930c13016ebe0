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

/// A file of a kind that can be mapped where no task runs.
///
/// That is: hugetlbfs; what a file system serves from the page cache, as regular files and shmem;
/// and kinds of files that say of themselves that their mappings depend on no task
/// (`FOP_MMAP_OWNERLESS`). It is not: devices, memory of special kinds, files that are made up when
/// read.
///
/// # Examples
///
/// ```
/// use kernel::fs::{mmap::MappableFile, LocalFile};
///
/// // As MAP_HUGETLB makes it, where there are huge pages of that size.
/// if let Ok(file) = LocalFile::anon_hugetlb(2 << 20, 21) {
///     let file = MappableFile::new(file)?;
///     assert!(file.is_hugetlb());
///     assert_eq!(file.page_size(), 2 << 20);
/// }
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `file` is of such a kind; if it is of hugetlbfs, `page_size` is that of its huge pages.
pub struct MappableFile {
    file: ARef<LocalFile>,
    page_size: Option<usize>,
}

impl MappableFile {
    /// Finds out what serves the pages of a mapping of `file`. [`ENODEV`] for other kinds.
    pub fn new(file: ARef<LocalFile>) -> Result<Self> {
        let raw = file.as_ptr();
        // SAFETY: The file is valid, which is all that these need.
        let page_size = unsafe {
            match bindings::file_hugetlb_page_size(raw) {
                0 if bindings::file_in_page_cache(raw) || bindings::file_mmap_ownerless(raw) => {
                    None
                }
                0 => return Err(ENODEV),
                page_size => Some(page_size),
            }
        };
        // INVARIANT: It was just found out.
        Ok(Self { file, page_size })
    }

    /// The file.
    pub fn file(&self) -> &LocalFile {
        &self.file
    }

    /// Is it of hugetlbfs?
    pub fn is_hugetlb(&self) -> bool {
        self.page_size.is_some()
    }

    /// The alignment of a mapping.
    pub fn page_size(&self) -> usize {
        self.page_size.unwrap_or(crate::page::PAGE_SIZE)
    }
}

impl LocalFile {
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
