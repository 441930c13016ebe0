// SPDX-License-Identifier: GPL-2.0

//! A space as part of this process's memory.

use std::fmt;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use rustix::mm::{mmap, mprotect, munmap, MapFlags, MprotectFlags, ProtFlags};

use crate::{AddressSpace, Error, Operation, Prot, Result};

/// A range of a space as memory of this process; see [`AddressSpace::mirror`].
///
/// It shows what the space has at every moment: what is mapped, replaced and unmapped later shows
/// without another call. It keeps the space alive, and goes away when dropped.
///
/// # What an access gets
///
/// This is memory that others change, and take away, at any time. So there is no `&[u8]` of it.
/// [`read`](Self::read) and [`write`](Self::write) copy, and [`as_ptr`](Self::as_ptr) is there for
/// everything else; neither orders anything against other accesses, and several bytes that are
/// read are not of one moment.
///
/// An access that the space does not allow raises a signal, with the exact address in `si_addr`:
///
/// | at that byte of the space | signal | `si_code` |
/// |---|---|---|
/// | nothing is mapped, the file has ended, or there is no memory | `SIGBUS` | `BUS_ADRERR` |
/// | the mapping, or the mirror, is not readable, or not writable | `SIGSEGV` | `SEGV_ACCERR` |
///
/// Without a handler that ends the process. Who cannot be sure of the space, or of those who edit
/// it, needs a handler, or takes [`AddressSpace::read_at`] and
/// [`write_at`](AddressSpace::write_at), which fail with `EIO` and `EACCES`. The same holds for a
/// system call that is passed an address in the mirror: it fails with `EFAULT`.
pub struct Mirror {
    /// Invariant: `len` bytes from here on are a mapping that nobody else unmaps.
    start: NonNull<u8>,
    len: usize,
    offset: u64,
    prot: Prot,
}

// SAFETY: The mapping belongs to the process, not to a thread.
unsafe impl Send for Mirror {}
// SAFETY: Through `&Mirror` the memory is only accessed as foreign memory, which may change at
// any time anyway.
unsafe impl Sync for Mirror {}

impl AddressSpace {
    /// Mirrors `len` bytes from `offset` into this process.
    ///
    /// Whether anything is mapped there makes no difference: holes can be filled later.
    ///
    /// ```no_run
    /// # use asfd::{AddressSpace, CreateFlags, Mapping, Prot};
    /// # let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    /// let mirror = space.mirror(0, 1 << 30, Prot::READ)?;
    ///
    /// // Mapped after the mirror was made, and seen in it.
    /// space.map(&Mapping::anonymous(4096).prot(Prot::READ | Prot::WRITE).at(0x10_0000))?;
    /// space.write_all_at(b"hello", 0x10_0000)?;
    /// let mut buf = [0; 5];
    /// mirror.read(0x10_0000, &mut buf);
    /// assert_eq!(&buf, b"hello");
    /// # Ok::<(), asfd::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// | errno | meaning |
    /// |---|---|
    /// | `EINVAL` | a zero length, or an offset that is not on a page boundary |
    /// | `EACCES` | this descriptor does not give that much access |
    /// | `ERANGE` | outside the window of this view |
    /// | `ENOMEM` | past the end of the space; out of memory, mappings or addresses |
    pub fn mirror(&self, offset: u64, len: usize, prot: Prot) -> Result<Mirror> {
        Mirror::new(self, offset, len, prot).map_err(|errno| {
            let what = format!("mirror {len} bytes at {offset:#x} ({prot})");
            Error::new(Operation::Mirror, what, errno)
        })
    }
}

impl Mirror {
    fn new(fd: impl AsFd, offset: u64, len: usize, prot: Prot) -> rustix::io::Result<Mirror> {
        let flags = ProtFlags::from_bits_retain(prot.bits());
        // SAFETY: A new mapping, where the kernel finds room: no existing memory changes.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                flags,
                MapFlags::SHARED,
                fd,
                offset,
            )
        }?;
        // Linux maps nothing at 0 unless told to.
        let start = NonNull::new(start.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Mirror {
            start,
            len,
            offset,
            prot,
        })
    }

    /// Where the mirror starts in this process.
    ///
    /// The bytes from here on are valid for volatile and atomic accesses as far as
    /// [`len`](Self::len) goes and the mirror lives, with the reservations above. References into
    /// it promise the compiler more than can be kept.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty)] // There are no empty mirrors.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where the mirror starts in the space, or in the window of the view that it was made from.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What the mirror allows; the mappings of the space may allow less.
    pub fn prot(&self) -> Prot {
        self.prot
    }

    /// Allows less, or again as much as the descriptor gave.
    ///
    /// # Errors
    ///
    /// `EACCES` for more than the descriptor gave.
    pub fn protect(&mut self, prot: Prot) -> Result<()> {
        let flags = MprotectFlags::from_bits_retain(prot.bits());
        // SAFETY: By the invariant this is our mapping; nobody has a reference into it.
        unsafe { mprotect(self.as_ptr().cast(), self.len, flags) }.map_err(|errno| {
            let what = format!("change the mirror at {:#x} ({prot})", self.offset);
            Error::new(Operation::Mirror, what, errno)
        })?;
        self.prot = prot;
        Ok(())
    }

    /// The address in the space, or in the window of the view, of what lies at `addr` in this
    /// process; `None` if that is not in the mirror. For handlers, from `si_addr`.
    ///
    /// ```no_run
    /// # let space = asfd::AddressSpace::create(asfd::CreateFlags::CLOEXEC)?;
    /// let mirror = space.mirror(0x4000, 0x1000, asfd::Prot::READ)?;
    /// let si_addr = mirror.as_ptr() as usize + 0x123;
    /// assert_eq!(mirror.locate(si_addr), Some(0x4123));
    /// # Ok::<(), asfd::Error>(())
    /// ```
    pub fn locate(&self, addr: usize) -> Option<u64> {
        let at = addr.checked_sub(self.as_ptr() as usize)?;
        (at < self.len).then(|| self.offset + at as u64)
    }

    /// Copies bytes out of the mirror, from `at` bytes after its start.
    ///
    /// Raises `SIGBUS` or `SIGSEGV` where the space does not allow it, see [above](Self).
    ///
    /// # Panics
    ///
    /// If the range is not inside the mirror.
    pub fn read(&self, at: usize, buf: &mut [u8]) {
        self.check(at, buf.len());
        // SAFETY: The range is inside the mirror; `buf` is ours, so they do not overlap.
        unsafe { copy(buf.as_mut_ptr(), self.as_ptr().add(at), buf.len()) }
    }

    /// Copies bytes into the mirror, to `at` bytes after its start.
    ///
    /// Raises `SIGBUS` or `SIGSEGV` where the space does not allow it, see [above](Self).
    ///
    /// # Panics
    ///
    /// If the range is not inside the mirror.
    pub fn write(&self, at: usize, buf: &[u8]) {
        self.check(at, buf.len());
        // SAFETY: The range is inside the mirror; `buf` is ours, so they do not overlap.
        unsafe { copy(self.as_ptr().add(at), buf.as_ptr(), buf.len()) }
    }

    fn check(&self, at: usize, len: usize) {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(
            inside,
            "{len} bytes at {at:#x} are not inside a mirror of {:#x} bytes",
            self.len
        );
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // SAFETY: By the invariant this is our mapping; no reference into it was given out.
        let unmapped = unsafe { munmap(self.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror")
            .field("addr", &self.start)
            .field("len", &self.len)
            .field("offset", &self.offset)
            .field("prot", &self.prot)
            .finish()
    }
}

/// Copies so that the compiler takes nothing for granted about either side: one volatile access
/// for each word, where both sides are aligned alike, and for each byte otherwise.
///
/// # Safety
///
/// Both ranges must be valid for volatile accesses of `len` bytes, and not overlap.
unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    const WORD: usize = size_of::<u64>();

    let mut at = 0;
    while at < len {
        // SAFETY: `at` is below `len`, and for a word so is its last byte.
        unsafe {
            let (to, from) = (to.add(at), from.add(at));
            let aligned = to as usize % WORD == 0 && from as usize % WORD == 0;
            if aligned && len - at >= WORD {
                to.cast::<u64>()
                    .write_volatile(from.cast::<u64>().read_volatile());
                at += WORD;
            } else {
                to.write_volatile(from.read_volatile());
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{ftruncate, memfd_create, MemfdFlags};
    use std::os::fd::OwnedFd;

    const RW: Prot = Prot::READ.union(Prot::WRITE);

    // Any file will do for what lies on this side of the kernel.
    fn memfd() -> OwnedFd {
        let fd = memfd_create("mirror", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 0x4000).unwrap();
        fd
    }

    #[test]
    fn bytes_come_through_at_every_alignment() {
        let mirror = Mirror::new(memfd(), 0, 0x4000, RW).unwrap();
        let bytes: Vec<u8> = (0..100).collect();
        for at in 0..9 {
            for start in 0..9 {
                mirror.write(at, &[0xff; 200]);
                mirror.write(at + 50, &bytes[start..]);
                let mut back = [0; 150];
                mirror.read(at, &mut back);
                let len = bytes.len() - start;
                assert_eq!(back[..50], [0xff; 50]);
                assert_eq!(back[50..50 + len], bytes[start..]);
                assert!(back[50 + len..].iter().all(|&b| b == 0xff));
            }
        }
    }

    #[test]
    fn nothing_is_accessed_outside() {
        let mirror = Mirror::new(memfd(), 0x1000, 0x1000, RW).unwrap();
        for (at, len) in [(0x1000, 1), (0xfff, 2), (usize::MAX, 1), (0, 0x1001)] {
            let read = std::panic::AssertUnwindSafe(|| mirror.read(at, &mut vec![0; len]));
            assert!(std::panic::catch_unwind(read).is_err(), "{at:#x} {len}");
            let write = std::panic::AssertUnwindSafe(|| mirror.write(at, &vec![0; len]));
            assert!(std::panic::catch_unwind(write).is_err(), "{at:#x} {len}");
        }
        mirror.read(0x1000, &mut []);
    }

    #[test]
    fn addresses_are_found_in_the_space() {
        let mirror = Mirror::new(memfd(), 0x1000, 0x2000, RW).unwrap();
        let start = mirror.as_ptr() as usize;
        assert_eq!(mirror.locate(start), Some(0x1000));
        assert_eq!(mirror.locate(start + 0x1fff), Some(0x2fff));
        assert_eq!(mirror.locate(start + 0x2000), None);
        assert_eq!(mirror.locate(start - 1), None);
    }

    #[test]
    fn dropping_unmaps() {
        let fd = memfd();
        let inode = format!(" {} ", rustix::fs::fstat(&fd).unwrap().st_ino);
        let mapped = || {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            maps.lines()
                .any(|line| line.contains(&inode) && line.contains("memfd:mirror"))
        };
        let mirror = Mirror::new(fd, 0, 0x1000, RW).unwrap();
        assert!(mapped());
        drop(mirror);
        assert!(!mapped());
    }
}
