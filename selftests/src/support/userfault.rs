// SPDX-License-Identifier: GPL-2.0

//! A page of this process that is not there until the test puts it there: whoever touches it
//! meanwhile, the kernel included, waits.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::{Errno, Result, PAGE};
use crate::harness::skip;

const UFFDIO_API: libc::Ioctl = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00;
const UFFDIO_COPY: libc::Ioctl = 0xc028_aa03;
const API: u64 = 0xaa;
pub const MODE_MISSING: u64 = 1;
pub const MODE_WP: u64 = 2;
pub const MODE_MINOR: u64 = 4;

pub struct MissingPage {
    fd: OwnedFd,
    addr: *mut u8,
}

// SAFETY: The page stays mapped for good, and is only handed to the kernel.
unsafe impl Sync for MissingPage {}

/// Whether a range of this process's memory could be given to a userfaultfd.
pub fn can_register(addr: u64, len: u64, mode: u64) -> Result<()> {
    // SAFETY: A new descriptor, closed at once; each request is passed an array of the size of its
    // struct.
    unsafe {
        let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) as i32;
        if fd < 0 {
            skip(&format!("userfaultfd: {}", Errno::last()));
        }
        let fd = OwnedFd::from_raw_fd(fd);
        let api = libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &mut [API, 0, 0]);
        assert_eq!(api, 0, "UFFDIO_API: {}", Errno::last());
        let mut range = [addr, len, mode, 0];
        Errno::result(libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, &mut range)).map(drop)
    }
}

impl MissingPage {
    pub fn new() -> MissingPage {
        let len = PAGE as usize;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: New memory at a free address, and a new descriptor.
        let (fd, addr) = unsafe {
            let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) as i32;
            if fd < 0 {
                skip(&format!("userfaultfd: {}", Errno::last()));
            }
            let addr = libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0);
            assert_ne!(addr, libc::MAP_FAILED);
            (OwnedFd::from_raw_fd(fd), addr.cast())
        };
        let page = MissingPage { fd, addr };
        page.ioctl(UFFDIO_API, &mut [API, 0, 0]);
        page.ioctl(UFFDIO_REGISTER, &mut [addr as u64, PAGE, MODE_MISSING, 0]);
        page
    }

    fn ioctl(&self, request: libc::Ioctl, argument: &mut [u64]) {
        // SAFETY: Each request is passed an array of the size of its struct.
        let done = unsafe { libc::ioctl(self.fd.as_raw_fd(), request, argument.as_mut_ptr()) };
        assert_eq!(done, 0, "userfaultfd: {}", Errno::last());
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.addr
    }

    /// Waits until somebody waits for the page.
    pub fn wait(&self) {
        let mut message = [0; 32];
        assert_eq!(
            nix::unistd::read(&self.fd, &mut message),
            Ok(32),
            "userfaultfd"
        );
    }

    /// Puts it there, full of `byte`; who waits goes on.
    pub fn provide(&self, byte: u8) {
        self.provide_page(&[byte; PAGE as usize]);
    }

    /// The same with a struct at its start and zeros behind.
    pub fn provide_struct<T: Copy>(&self, value: T) {
        let mut bytes = [0; PAGE as usize];
        assert!(size_of::<T>() <= bytes.len());
        // SAFETY: The buffer is larger, and any bytes will do for it.
        unsafe { bytes.as_mut_ptr().cast::<T>().write_unaligned(value) };
        self.provide_page(&bytes);
    }

    fn provide_page(&self, bytes: &[u8; PAGE as usize]) {
        self.ioctl(
            UFFDIO_COPY,
            &mut [self.addr as u64, bytes.as_ptr() as u64, PAGE, 0, 0],
        );
    }
}
