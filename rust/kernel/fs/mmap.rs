// SPDX-License-Identifier: GPL-2.0

//! Mapping files: what serves the pages, and whether it is allowed.
//!
//! C headers: [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h),
//! [`include/linux/hugetlb.h`](srctree/include/linux/hugetlb.h)

use super::LocalFile;
use crate::{
    bindings,
    error::{from_err_ptr, to_result},
    prelude::*,
    sync::aref::ARef,
};
use core::ptr::NonNull;

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
