// SPDX-License-Identifier: GPL-2.0

//! Files and asfds mapped into this process, used through system calls only: what cannot be
//! had is an errno, not a signal.

use std::os::fd::AsRawFd;

use nix::unistd::{pipe, read};

use super::{Errno, Result, PAGE};

#[derive(Debug)]
pub struct Mapped {
    addr: *mut libc::c_void,
    len: usize,
}

// SAFETY: The memory is only handed to the kernel.
unsafe impl Send for Mapped {}
// SAFETY: Likewise.
unsafe impl Sync for Mapped {}

impl Mapped {
    pub fn new(fd: &impl AsRawFd, offset: u64, len: u64, prot: i32) -> Result<Mapped> {
        let (len, flags) = (len as usize, libc::MAP_SHARED);
        let nowhere = std::ptr::null_mut();
        // SAFETY: A new mapping at a free address takes nothing from anybody.
        let addr = unsafe { libc::mmap(nowhere, len, prot, flags, fd.as_raw_fd(), offset as i64) };
        if addr == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Mapped { addr, len })
    }

    /// Where it is, for who knows that it can be touched.
    pub fn address(&self) -> u64 {
        self.addr as u64
    }

    pub fn protect(&self, prot: i32) -> Result<()> {
        // SAFETY: Our own memory, which nothing borrows.
        Errno::result(unsafe { libc::mprotect(self.addr, self.len, prot) }).map(drop)
    }

    /// A copy of at most a page, as much as can be read.
    pub fn get(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        assert!(len <= PAGE && at + len <= self.len as u64);
        let (reader, writer) = pipe().expect("pipe");
        let from = self.addr.wrapping_byte_add(at as usize);
        // SAFETY: Inside our memory. What cannot be read is EFAULT.
        let written = unsafe { libc::write(writer.as_raw_fd(), from, len as usize) };
        let written = Errno::result(written)?;
        let mut bytes = vec![0; written as usize];
        assert_eq!(read(&reader, &mut bytes), Ok(bytes.len()), "a pipe");
        Ok(bytes)
    }

    /// Which pages are in memory, as mincore(2) has it.
    pub fn in_core(&self) -> Vec<bool> {
        let mut pages = vec![0u8; self.len.div_ceil(PAGE as usize)];
        // SAFETY: Our memory, and a byte for each page of it.
        let done = unsafe { libc::mincore(self.addr, self.len, pages.as_mut_ptr()) };
        assert_eq!(done, 0, "mincore: {}", Errno::last());
        pages.iter().map(|page| page & 1 == 1).collect()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: Mapped by `new`, and nobody else's.
        unsafe { libc::munmap(self.addr, self.len) };
    }
}
