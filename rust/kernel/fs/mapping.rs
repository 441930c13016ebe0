// SPDX-License-Identifier: GPL-2.0

//! The mappings of a file: in which areas of which processes it is mapped.
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h), `struct address_space`

use super::LocalFile;
use crate::{
    bindings,
    sync::LockClassKey,
    types::Opaque, //
};
use core::pin::Pin;

/// Where a file is mapped, `struct address_space`. All files of an inode share it.
#[repr(transparent)]
pub struct FileMapping(Opaque<bindings::address_space>);

// SAFETY: All that can be done by a reference is locked.
unsafe impl Send for FileMapping {}
// SAFETY: As above.
unsafe impl Sync for FileMapping {}

impl FileMapping {
    /// # Safety
    ///
    /// `mapping` must be valid for `'a`.
    pub unsafe fn from_raw<'a>(mapping: *mut bindings::address_space) -> &'a Self {
        // SAFETY: As this function requires.
        unsafe { &*mapping.cast() }
    }

    /// Returns the raw pointer.
    pub fn as_raw(&self) -> *mut bindings::address_space {
        self.0.get()
    }

    /// Removes the page table entries for `count` pages from `first` of the file, wherever it is
    /// mapped. When this returns no CPU reaches what they showed, but a fault can bring it back.
    /// May sleep.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{fs::{file, operations::{FileOperations, Operations}, LocalFile}, page::PAGE_SIZE};
    ///
    /// struct Nothing;
    /// #[vtable]
    /// impl FileOperations for Nothing {
    ///     type Ptr = KBox<Self>;
    /// }
    /// static NOTHING: Operations<Nothing> = Operations::new();
    ///
    /// let file = NOTHING.anon_file(c"[nothing]", KBox::new(Nothing, GFP_KERNEL)?, file::flags::O_RDWR)?;
    /// let mapping = file.mapping();
    /// mapping.unmap_pages(0, usize::MAX / PAGE_SIZE);
    /// assert_eq!(mapping.count(), 0);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn unmap_pages(&self, first: usize, count: usize) {
        // SAFETY: The mapping is valid. Where there is none to be found, no lock is needed: who
        // adds an area afterwards has seen what the caller did before.
        unsafe {
            if bindings::mapping_mapped(self.as_raw()) != 0 {
                bindings::unmap_mapping_pages(self.as_raw(), first, count, false);
            }
        }
    }

    /// In how many areas the file is mapped.
    pub fn count(&self) -> usize {
        // SAFETY: The mapping is valid.
        unsafe { bindings::mapping_count_vmas(self.as_raw()) }
    }

    /// Gives `i_mmap_rwsem` a lock class of its own, for kinds of files whose mappings are changed
    /// under locks that are taken inside that of others. To be called before the file is shown to
    /// anybody.
    pub fn set_lock_class(&self, key: Pin<&'static LockClassKey>) {
        // SAFETY: Both are valid, and the key is static.
        unsafe { bindings::mapping_set_lock_class(self.as_raw(), key.as_ptr()) };
    }
}

impl LocalFile {
    /// Where the file is mapped.
    pub fn mapping(&self) -> &FileMapping {
        // SAFETY: An open file has a mapping, which lives as long as its inode.
        unsafe { FileMapping::from_raw((*self.as_ptr()).f_mapping) }
    }
}
