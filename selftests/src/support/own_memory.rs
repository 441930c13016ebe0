// SPDX-License-Identifier: GPL-2.0

//! Memory of this process at addresses that a test chooses.

use super::Errno;

/// Virtual memory of this process at a chosen address, for ordinary slots and for secrets.
pub struct OwnMemory(pub u64, pub u64);

impl OwnMemory {
    pub fn at(addr: u64, len: u64, byte: u8) -> OwnMemory {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: NOREPLACE takes nothing from the rest of the process.
        unsafe {
            let got = libc::mmap(
                addr as *mut libc::c_void,
                len as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            );
            assert_eq!(got as u64, addr, "mmap: {}", Errno::last());
            std::ptr::write_bytes(got.cast::<u8>(), byte, len as usize);
        }
        OwnMemory(addr, len)
    }

    /// Gives its pages back; they are zeros when next touched.
    pub fn forget(&self) {
        // SAFETY: Our own private memory, which nothing borrows.
        let done = unsafe { libc::madvise(self.0 as *mut _, self.1 as usize, libc::MADV_DONTNEED) };
        assert_eq!(done, 0, "madvise: {}", Errno::last());
    }

    pub fn set(&self, at: u64, bytes: &[u8]) {
        assert!(at + bytes.len() as u64 <= self.1);
        // SAFETY: Inside the mapping, which nothing borrows.
        unsafe {
            let to = (self.0 + at) as *mut u8;
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// A copy of a part: a guest may write it at any time.
    pub fn get(&self, at: u64, len: u64) -> Vec<u8> {
        assert!(at + len <= self.1);
        // SAFETY: Inside the mapping, which lives as long as `self`.
        let byte = |at| unsafe { std::ptr::read_volatile((self.0 + at) as *const u8) };
        (at..at + len).map(byte).collect()
    }

    /// A copy of it.
    pub fn bytes(&self) -> Vec<u8> {
        self.get(0, self.1)
    }
}

impl Drop for OwnMemory {
    fn drop(&mut self) {
        // SAFETY: Mapped by `at`, and nobody else's.
        unsafe { libc::munmap(self.0 as *mut libc::c_void, self.1 as usize) };
    }
}
