// SPDX-License-Identifier: GPL-2.0

//! Operations of files that are not devices.
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use super::{file::Offset, mmap::VmaDesc, File, Kiocb, LocalFile};
use crate::{
    bindings,
    error::{from_result, VTABLE_DEFAULT_ERROR},
    iov::{IovIterDest, IovIterSource},
    prelude::*,
    seq_file::SeqFile,
    sync::aref::ARef,
    types::{ForeignOwnable, Opaque},
};
use core::{marker::PhantomData, ops::RangeInclusive};

/// What can be done with an open file whose private data is a [`Self::Ptr`].
///
/// See [`Operations`] for how a file comes by them.
#[vtable]
pub trait FileOperations: Sized {
    /// What kind of pointer the file holds.
    type Ptr: ForeignOwnable + Send + Sync;

    /// The last reference to the file is gone.
    fn release(data: Self::Ptr) {
        drop(data);
    }

    /// Moves the file position, `lseek(2)`. `whence` is one of `SEEK_*`. Returns the new position.
    ///
    /// Use [`Operations::set_position`] to store it.
    fn llseek(
        _data: <Self::Ptr as ForeignOwnable>::Borrowed<'_>,
        _file: &LocalFile,
        _offset: Offset,
        _whence: i32,
    ) -> Result<Offset> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Reads from the file.
    fn read_iter(_kiocb: Kiocb<'_, Self::Ptr>, _iov: &mut IovIterDest<'_>) -> Result<usize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Writes to the file.
    fn write_iter(_kiocb: Kiocb<'_, Self::Ptr>, _iov: &mut IovIterSource<'_>) -> Result<usize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Handler for ioctls, the same for 32-bit and 64-bit callers.
    fn ioctl(
        _data: <Self::Ptr as ForeignOwnable>::Borrowed<'_>,
        _file: &LocalFile,
        _cmd: u32,
        _arg: usize,
    ) -> Result<isize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Writes what was stored in these bytes back to where it is kept, `fsync(2)`, `msync(2)`. The
    /// end is inclusive.
    fn fsync(
        _data: <Self::Ptr as ForeignOwnable>::Borrowed<'_>,
        _bytes: RangeInclusive<Offset>,
        _datasync: bool,
    ) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Maps the file, `mmap(2)`. The mmap lock of the address space is held for writing.
    fn mmap_prepare(
        _data: <Self::Ptr as ForeignOwnable>::Borrowed<'_>,
        _file: &LocalFile,
        _desc: &mut VmaDesc,
    ) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Finds a free range for a mapping of `len` bytes from page `pgoff`, see
    /// [`LocalFile::huge_unmapped_area`].
    fn unmapped_area(
        _data: <Self::Ptr as ForeignOwnable>::Borrowed<'_>,
        _file: &LocalFile,
        _addr: usize,
        _len: usize,
        _pgoff: usize,
        _flags: usize,
    ) -> Result<usize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Adds lines to `/proc/PID/fdinfo/FD`.
    fn show_fdinfo(_data: <Self::Ptr as ForeignOwnable>::Borrowed<'_>, _m: &SeqFile) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// The `struct file_operations` for a [`FileOperations`].
///
/// To be placed in a `static`, whose address tells these files from all others.
#[repr(transparent)]
pub struct Operations<T> {
    inner: Opaque<bindings::file_operations>,
    _t: PhantomData<T>,
}

// SAFETY: The table is never written to.
unsafe impl<T> Sync for Operations<T> {}

impl<T: FileOperations> Operations<T> {
    /// Makes the table.
    #[expect(clippy::new_without_default)]
    pub const fn new() -> Self {
        Self {
            inner: Opaque::new(bindings::file_operations {
                owner: crate::module::this_module::<T::OwnerModule>().as_ptr(),
                release: Some(Self::release),
                llseek: if T::HAS_LLSEEK {
                    Some(Self::llseek)
                } else {
                    None
                },
                read_iter: if T::HAS_READ_ITER {
                    Some(Self::read_iter)
                } else {
                    None
                },
                write_iter: if T::HAS_WRITE_ITER {
                    Some(Self::write_iter)
                } else {
                    None
                },
                unlocked_ioctl: if T::HAS_IOCTL {
                    Some(Self::ioctl)
                } else {
                    None
                },
                #[cfg(CONFIG_COMPAT)]
                compat_ioctl: if T::HAS_IOCTL {
                    bindings::compat_ptr_ioctl
                } else {
                    None
                },
                fsync: if T::HAS_FSYNC {
                    Some(Self::fsync)
                } else {
                    None
                },
                mmap_prepare: if T::HAS_MMAP_PREPARE {
                    Some(Self::mmap_prepare)
                } else {
                    None
                },
                get_unmapped_area: if T::HAS_UNMAPPED_AREA {
                    Some(Self::unmapped_area)
                } else {
                    None
                },
                show_fdinfo: if T::HAS_SHOW_FDINFO {
                    Some(Self::show_fdinfo)
                } else {
                    None
                },
                ..pin_init::zeroed()
            }),
            _t: PhantomData,
        }
    }

    /// Returns the table for C.
    pub const fn as_raw(&'static self) -> *const bindings::file_operations {
        self.inner.get()
    }

    /// The private data of `file`, if this is the table of its operations.
    pub fn data<'a>(
        &'static self,
        file: &'a LocalFile,
    ) -> Option<<T::Ptr as ForeignOwnable>::Borrowed<'a>> {
        // SAFETY: `f_op` and, for our files, `private_data` do not change once a file is open.
        let (f_op, private) = unsafe { ((*file.as_ptr()).f_op, (*file.as_ptr()).private_data) };
        // SAFETY: The table is ours, so the private data is a `T::Ptr`, which the file owns until
        // it is released; by the borrow it is not before the end of `'a`.
        core::ptr::eq(f_op, self.as_raw()).then(|| unsafe { T::Ptr::borrow(private) })
    }

    /// The position of a file, in [`FileOperations::llseek`].
    pub fn position(file: &LocalFile) -> Offset {
        // SAFETY: The file is valid. `lseek` holds the position lock where it is shared; who seeks in
        // other ways may see another's position, but a whole one.
        unsafe { (&raw const (*file.as_ptr()).f_pos).read_volatile() }
    }

    /// Stores the position of a file, in [`FileOperations::llseek`].
    ///
    /// It must not be negative.
    pub fn set_position(file: &LocalFile, position: Offset) -> Offset {
        // SAFETY: `lseek` holds the position lock of the file where it is shared.
        unsafe { bindings::vfs_setpos(file.as_ptr(), position, Offset::MAX) }
    }

    /// # Safety
    ///
    /// `file` must be a file with this table that is being released.
    unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: The release of a file owns the private data, which is a `T::Ptr`.
        T::release(unsafe { T::Ptr::from_foreign((*file).private_data) });
        0
    }

    /// # Safety
    ///
    /// `file` must be an open file with this table.
    unsafe extern "C" fn llseek(
        file: *mut bindings::file,
        offset: Offset,
        whence: c_int,
    ) -> Offset {
        // SAFETY: The file is open for the duration of this call, and owns a `T::Ptr`.
        let data = unsafe { T::Ptr::borrow((*file).private_data) };
        // SAFETY: The file is open, and the `fdget_pos` of this call is on this thread.
        let file = unsafe { LocalFile::from_raw_file(file) };
        from_result(|| T::llseek(data, file, offset, whence))
    }

    /// # Safety
    ///
    /// `kiocb` must be for an open file with this table, and `iter` a destination.
    unsafe extern "C" fn read_iter(
        kiocb: *mut bindings::kiocb,
        iter: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: As this function requires.
        let (kiocb, iov) = unsafe { (Kiocb::from_raw(kiocb), IovIterDest::from_raw(iter)) };
        from_result(|| T::read_iter(kiocb, iov).map(|n| n as isize))
    }

    /// # Safety
    ///
    /// `kiocb` must be for an open file with this table, and `iter` a source.
    unsafe extern "C" fn write_iter(
        kiocb: *mut bindings::kiocb,
        iter: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: As this function requires.
        let (kiocb, iov) = unsafe { (Kiocb::from_raw(kiocb), IovIterSource::from_raw(iter)) };
        from_result(|| T::write_iter(kiocb, iov).map(|n| n as isize))
    }

    /// # Safety
    ///
    /// `file` must be an open file with this table.
    unsafe extern "C" fn ioctl(file: *mut bindings::file, cmd: c_uint, arg: c_ulong) -> c_long {
        // SAFETY: The file is open for the duration of this call, and owns a `T::Ptr`.
        let data = unsafe { T::Ptr::borrow((*file).private_data) };
        // SAFETY: The file is open; ioctls have nothing to do with its position.
        let file = unsafe { LocalFile::from_raw_file(file) };
        from_result(|| T::ioctl(data, file, cmd, arg))
    }

    /// # Safety
    ///
    /// `file` must be an open file with this table.
    unsafe extern "C" fn fsync(
        file: *mut bindings::file,
        start: Offset,
        end: Offset,
        datasync: c_int,
    ) -> c_int {
        // SAFETY: The file is open for the duration of this call, and owns a `T::Ptr`.
        let data = unsafe { T::Ptr::borrow((*file).private_data) };
        from_result(|| T::fsync(data, start..=end, datasync != 0).map(|()| 0))
    }

    /// # Safety
    ///
    /// `desc` must be valid, and its file be an open file with this table.
    unsafe extern "C" fn mmap_prepare(desc: *mut bindings::vm_area_desc) -> c_int {
        // SAFETY: The file is open for the duration of this call, and owns a `T::Ptr`; mapping it
        // has nothing to do with its position.
        let (data, file) = unsafe {
            let file = (*desc).file;
            let data = T::Ptr::borrow((*file).private_data);
            (data, LocalFile::from_raw_file(file))
        };
        // SAFETY: The description is valid and ours for the duration of this call.
        let desc = unsafe { VmaDesc::from_raw(desc) };
        from_result(|| T::mmap_prepare(data, file, desc).map(|()| 0))
    }

    /// # Safety
    ///
    /// `file` must be an open file with this table.
    unsafe extern "C" fn unmapped_area(
        file: *mut bindings::file,
        addr: c_ulong,
        len: c_ulong,
        pgoff: c_ulong,
        flags: c_ulong,
    ) -> c_ulong {
        // SAFETY: The file is open for the duration of this call, and owns a `T::Ptr`.
        let data = unsafe { T::Ptr::borrow((*file).private_data) };
        // SAFETY: The file is open; mapping it has nothing to do with its position.
        let file = unsafe { LocalFile::from_raw_file(file) };
        match T::unmapped_area(data, file, addr, len, pgoff, flags) {
            Ok(addr) => addr,
            Err(err) => err.to_errno() as c_ulong,
        }
    }

    /// # Safety
    ///
    /// `file` must be an open file with this table, and `m` be valid for writing.
    unsafe extern "C" fn show_fdinfo(m: *mut bindings::seq_file, file: *mut bindings::file) {
        // SAFETY: The file is open for the duration of this call, and owns a `T::Ptr`.
        let data = unsafe { T::Ptr::borrow((*file).private_data) };
        // SAFETY: The pointer is valid and ours for the duration of this call.
        T::show_fdinfo(data, unsafe { SeqFile::from_raw(m) });
    }
}

impl<T: FileOperations> Operations<T> {
    /// Makes a file with an inode of its own, which is in no file system's tree.
    ///
    /// `name` is what `/proc/PID/fd` shows after `anon_inode:`, by custom in brackets; `flags` is
    /// one of `O_RDONLY`, `O_WRONLY` and `O_RDWR`. The file can be read and written at any offset
    /// if it can be read and written at all.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::fs::{file, operations::{FileOperations, Operations}, Kiocb};
    /// use kernel::iov::IovIterDest;
    ///
    /// struct Greeting;
    ///
    /// #[vtable]
    /// impl FileOperations for Greeting {
    ///     type Ptr = KBox<Self>;
    ///
    ///     fn read_iter(mut iocb: Kiocb<'_, KBox<Self>>, iov: &mut IovIterDest<'_>) -> Result<usize> {
    ///         iov.simple_read_from_buffer(iocb.ki_pos_mut(), b"hello")
    ///     }
    /// }
    ///
    /// static GREETING: Operations<Greeting> = Operations::new();
    /// static OTHER: Operations<Greeting> = Operations::new();
    ///
    /// let data = KBox::new(Greeting, GFP_KERNEL)?;
    /// let file = GREETING.anon_file(c"[greeting]", data, file::flags::O_RDONLY)?;
    /// assert!(GREETING.data(&file).is_some());
    /// assert!(OTHER.data(&file).is_none());
    /// # Ok::<(), Error>(())
    /// ```
    pub fn anon_file(&'static self, name: &CStr, data: T::Ptr, flags: u32) -> Result<ARef<File>> {
        let private = data.into_foreign();
        // SAFETY: The name is copied, the table is static, and the private data is what the table
        // expects.
        let file = unsafe {
            bindings::anon_inode_create_getfile(
                name.as_char_ptr(),
                self.as_raw(),
                private,
                flags as c_int,
                core::ptr::null(),
            )
        };
        // SAFETY: The file, if there is one, is new, and `private` is its private data.
        unsafe { Self::finish(file, private) }
    }

    /// Makes a further file on the inode of `other`, which has to be one of this table: their
    /// mappings are then found together. [`EINVAL`] if it is not.
    pub fn file_beside(
        &'static self,
        other: &LocalFile,
        data: T::Ptr,
        flags: u32,
    ) -> Result<ARef<File>> {
        if self.data(other).is_none() {
            return Err(EINVAL);
        }
        let private = data.into_foreign();
        // SAFETY: The file is valid, and the table is static.
        let file =
            unsafe { bindings::alloc_file_clone(other.as_ptr(), flags as c_int, self.as_raw()) };
        // SAFETY: The file, if there is one, is new, and `private` is ours to give.
        unsafe { Self::finish(file, private) }
    }

    /// # Safety
    ///
    /// `file` must be a new file with this table that nobody else has seen, or an error pointer;
    /// `private` must come from [`ForeignOwnable::into_foreign`], and passes to the file.
    unsafe fn finish(file: *mut bindings::file, private: *mut c_void) -> Result<ARef<File>> {
        let file = crate::error::from_err_ptr(file).inspect_err(|_| {
            // SAFETY: No file was made, so the private data is ours again.
            drop(unsafe { T::Ptr::from_foreign(private) })
        })?;
        // SAFETY: Nobody else has seen the file, and the private data is what the table expects.
        unsafe {
            (*file).private_data = private;
            bindings::file_has_position(file);
        }
        // SAFETY: The file is new and valid, and its only reference is ours.
        Ok(unsafe { ARef::from_raw(core::ptr::NonNull::new_unchecked(file.cast())) })
    }
}
