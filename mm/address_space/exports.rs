// SPDX-License-Identifier: GPL-2.0

//! What C calls: the system calls, and `linux/address_space_fd.h`.

use core::ptr::{self, NonNull};
use kernel::{
    bindings,
    error::from_result,
    fs::LocalFile,
    mm::virt::VmaRef,
    prelude::*,
    sync::Arc,
    uaccess::UserPtr, //
};

use crate::{
    clients,
    file::{self, Asfd},
    map, mirror,
    rights::{Access, Rights},
    space::Space,
    unmap,
};

/// `address_space_create(2)`.
///
/// # Safety
///
/// Always safe to call.
#[export]
pub unsafe extern "C" fn asfd_create(flags: u32) -> isize {
    from_result(|| file::create(flags).map(|fd| fd as isize))
}

/// `address_space_mmap(2)`.
///
/// # Safety
///
/// Always safe to call.
#[export]
pub unsafe extern "C" fn asfd_mmap(
    asfd: i32,
    args: *mut bindings::address_space_mmap_args,
    size: usize,
) -> isize {
    from_result(|| {
        let offset = map::mmap(asfd, UserPtr::from_ptr(args.cast()), size)?;
        Ok(offset as isize)
    })
}

/// `address_space_munmap(2)`.
///
/// # Safety
///
/// Always safe to call.
#[export]
pub unsafe extern "C" fn asfd_munmap(asfd: i32, addr: usize, len: usize) -> i32 {
    from_result(|| unmap::munmap(asfd, addr as u64, len as u64).map(|()| 0))
}

/// See `linux/address_space_fd.h`.
///
/// # Safety
///
/// `file` must be valid.
#[export]
pub unsafe extern "C" fn asfd_mm(file: *mut bindings::file) -> *mut bindings::mm_struct {
    // SAFETY: As this function requires; the position is not looked at.
    match Asfd::from_file(unsafe { LocalFile::from_raw_file(file) }) {
        Some(asfd) => asfd.owner.mm().as_raw(),
        None => ptr::null_mut(),
    }
}

/// See `linux/address_space_fd.h`.
///
/// # Safety
///
/// `vma` must be valid and locked.
#[export]
pub unsafe extern "C" fn asfd_is_mirror(vma: *const bindings::vm_area_struct) -> bool {
    // SAFETY: As this function requires.
    mirror::is_mirror(unsafe { VmaRef::from_raw(vma) })
}

/// See `linux/address_space_fd.h`.
///
/// # Safety
///
/// `vma` must be a mirror and locked, and `mm_addr` be valid for writing.
#[export]
pub unsafe extern "C" fn asfd_mirror_mm(
    vma: *mut bindings::vm_area_struct,
    addr: usize,
    nr_pages: usize,
    mm_addr: *mut usize,
) -> *mut bindings::mm_struct {
    // SAFETY: As this function requires.
    match mirror::settled_mm(unsafe { VmaRef::from_raw(vma) }, addr, nr_pages) {
        Some((mm, at)) => {
            // SAFETY: As this function requires.
            unsafe { *mm_addr = at };
            mm.as_raw()
        }
        None => ptr::null_mut(),
    }
}

/// See `linux/address_space_fd.h`.
///
/// # Safety
///
/// `file` must be valid, and `addr` be valid for writing.
#[export]
pub unsafe extern "C" fn asfd_window_check(
    file: *mut bindings::file,
    offset: u64,
    len: u64,
    write: bool,
    addr: *mut usize,
) -> i32 {
    from_result(|| {
        // SAFETY: As this function requires; the position is not looked at.
        let asfd = Asfd::from_file(unsafe { LocalFile::from_raw_file(file) }).ok_or(EINVAL)?;
        asfd.rights.require(Rights::KVM)?;
        asfd.ceiling.require(Access::Read)?;
        if write {
            asfd.ceiling.require(Access::Write)?;
        }
        let range = asfd.mm_range(offset, len)?;
        // SAFETY: As this function requires.
        unsafe { *addr = range.start };
        Ok(0)
    })
}

/// See `linux/address_space_fd.h`.
///
/// # Safety
///
/// `file` must be valid, and `client` as [`clients::register`] requires.
#[export]
pub unsafe extern "C" fn asfd_client_register(
    file: *mut bindings::file,
    client: *mut bindings::asfd_client,
) -> i32 {
    from_result(|| {
        // SAFETY: As this function requires; the position is not looked at.
        let asfd = Asfd::from_file(unsafe { LocalFile::from_raw_file(file) }).ok_or(EINVAL)?;
        let client = NonNull::new(client).ok_or(EINVAL)?;
        let space: Arc<Space> = asfd.owner.space().clone();
        // SAFETY: As this function requires.
        unsafe { clients::register(space, client) }.map(|()| 0)
    })
}

/// See `linux/address_space_fd.h`.
///
/// # Safety
///
/// As [`clients::unregister`] requires.
#[export]
pub unsafe extern "C" fn asfd_client_unregister(client: *mut bindings::asfd_client) {
    if let Some(client) = NonNull::new(client) {
        // SAFETY: As this function requires.
        unsafe { clients::unregister(client) };
    }
}

/// See `linux/address_space_fd.h`.
///
/// # Safety
///
/// `client` must be registered.
#[export]
pub unsafe extern "C" fn asfd_client_windows(client: *mut bindings::asfd_client, delta: isize) {
    // SAFETY: A registered client holds a reference to its space.
    let space = unsafe { &*(*client).space.cast::<Space>() };
    space.count_windows(delta as i64);
}
