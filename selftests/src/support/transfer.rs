// SPDX-License-Identifier: GPL-2.0

//! More ways in and out of an area: many bytes in one go, by pinned pages; and areas that
//! move.

use libc::c_void;

use super::mirror::{Access, Area};
use super::probe::{self, Fault};
use super::{Errno, Result};

impl Area {
    fn fault(&self, fault: Fault) -> Fault {
        Fault {
            addr: fault.addr.wrapping_sub(self.addr()),
            ..fault
        }
    }

    /// Loads byte by byte, up to the first that cannot be had.
    pub fn load_bytes(&self, offset: u64, buffer: &mut [u8]) -> Access<()> {
        probe::copy_from(self.addr() + offset, buffer).map_err(|f| self.fault(f))
    }

    /// Stores byte by byte, up to the first that cannot be had.
    pub fn store_bytes(&self, offset: u64, bytes: &[u8]) -> Access<()> {
        // SAFETY: As above.
        let done = unsafe { probe::copy_to(self.addr() + offset, bytes) };
        done.map_err(|f| self.fault(f))
    }

    /// process_vm_readv(2), which takes the pages first and copies then.
    pub fn pinned_read(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let ours = vector(buffer.as_mut_ptr() as u64, buffer.len());
        let theirs = vector(self.addr() + offset, buffer.len());
        let pid = std::process::id() as i32;
        // SAFETY: Writes to the buffer only, which is as long.
        let len = unsafe { libc::process_vm_readv(pid, &ours, 1, &theirs, 1, 0) };
        Errno::result(len).map(|len| len as usize)
    }

    /// process_vm_writev(2), likewise.
    pub fn pinned_write(&self, offset: u64, bytes: &[u8]) -> Result<usize> {
        let ours = vector(bytes.as_ptr() as u64, bytes.len());
        let theirs = vector(self.addr() + offset, bytes.len());
        let pid = std::process::id() as i32;
        // SAFETY: Writes to the area only.
        let len = unsafe { libc::process_vm_writev(pid, &ours, 1, &theirs, 1, 0) };
        Errno::result(len).map(|len| len as usize)
    }

    /// mremap(2) of all of it, to another length, and to a given address if there is one.
    pub fn remap(&mut self, len: u64, to: Option<u64>) -> Result<()> {
        let (old, new) = (self.len() as usize, len as usize);
        // SAFETY: Nothing refers to the area; a given address is one of the test's own.
        let got = unsafe {
            let from = self.pointer(0);
            match to {
                None => libc::mremap(from, old, new, libc::MREMAP_MAYMOVE),
                Some(to) => {
                    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                    libc::mremap(from, old, new, flags, to as *mut c_void)
                }
            }
        };
        if got == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        // The old addresses are gone: they are not to be unmapped again.
        std::mem::forget(std::mem::replace(self, Area::adopt(got as u64, len)));
        Ok(())
    }

    /// Two areas of what was one. Nothing changes for the kernel.
    #[track_caller]
    pub fn split(self, offset: u64) -> (Area, Area) {
        let (addr, len) = self.forget();
        assert!(0 < offset && offset < len, "a cut inside");
        (
            Area::adopt(addr, offset),
            Area::adopt(addr + offset, len - offset),
        )
    }
}

fn vector(addr: u64, len: usize) -> libc::iovec {
    libc::iovec {
        iov_base: addr as *mut c_void,
        iov_len: len,
    }
}
