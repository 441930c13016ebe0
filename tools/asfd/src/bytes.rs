// SPDX-License-Identifier: GPL-2.0

//! The bytes of a space, and where there are any.

use std::io::{IoSlice, IoSliceMut};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::{AddressSpace, Error, Operation, Result};

impl AddressSpace {
    /// Reads bytes at `offset` and returns how many.
    ///
    /// It is fewer than asked for where a hole or something unreadable follows, and 0 at the end
    /// of the space, or of the view's window. A hole at `offset` itself is `EIO`; something
    /// unreadable is `EACCES`, and so is everything through a view without [`Prot::READ`].
    ///
    /// [`Prot::READ`]: crate::Prot::READ
    ///
    /// ```no_run
    /// # use asfd::{AddressSpace, CreateFlags};
    /// # let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    /// let mut header = [0; 64];
    /// let n = space.read_at(&mut header, 0x1000)?;
    /// println!("{:x?}", &header[..n]);
    /// # Ok::<(), asfd::Error>(())
    /// ```
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let len = buf.len();
        retry(|| rustix::io::pread(self, &mut *buf, offset))
            .map_err(|e| refused(Operation::Read, len, offset, e))
    }

    /// Like [`read_at`](Self::read_at), into several buffers, one after the other.
    pub fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<usize> {
        let len = bufs.iter().map(|b| b.len()).sum();
        retry(|| rustix::io::preadv(self, &mut *bufs, offset))
            .map_err(|e| refused(Operation::Read, len, offset, e))
    }

    /// Fills the whole buffer, or fails.
    ///
    /// The error tells of the first byte that cannot be read; `ENXIO` if that is the end of the
    /// space. The buffer then holds what could be read before it.
    pub fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            match self.read_at(buf, offset)? {
                0 => return Err(refused(Operation::Read, buf.len(), offset, Errno::NXIO)),
                n => {
                    buf = &mut buf[n..];
                    offset += n as u64;
                }
            }
        }
        Ok(())
    }

    /// Writes bytes at `offset` and returns how many.
    ///
    /// It is fewer than given where a hole or something unwritable follows. A hole at `offset`
    /// itself is `EIO`; something unwritable is `EACCES`, and so is everything through a view
    /// without [`Prot::WRITE`]. The end of the space, or of the view's window, is `ENOSPC`.
    ///
    /// [`Prot::WRITE`]: crate::Prot::WRITE
    ///
    /// ```no_run
    /// # use asfd::{AddressSpace, CreateFlags, Mapping, Prot};
    /// # let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    /// let addr = space.map(&Mapping::anonymous(4096).prot(Prot::READ | Prot::WRITE))?;
    /// // The mapping ends after two of the five bytes.
    /// assert_eq!(space.write_at(b"hello", addr + 4094)?, 2);
    /// # Ok::<(), asfd::Error>(())
    /// ```
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        retry(|| rustix::io::pwrite(self, buf, offset))
            .map_err(|e| refused(Operation::Write, buf.len(), offset, e))
    }

    /// Like [`write_at`](Self::write_at), from several buffers, one after the other.
    pub fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<usize> {
        let len = bufs.iter().map(|b| b.len()).sum();
        retry(|| rustix::io::pwritev(self, bufs, offset))
            .map_err(|e| refused(Operation::Write, len, offset, e))
    }

    /// Writes the whole buffer, or fails.
    ///
    /// The error tells of the first byte that cannot be written; what comes before it is written.
    pub fn write_all_at(&self, mut buf: &[u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            match self.write_at(buf, offset)? {
                // The kernel has an errno for every reason to write nothing.
                0 => return Err(refused(Operation::Write, buf.len(), offset, Errno::NOSPC)),
                n => {
                    buf = &buf[n..];
                    offset += n as u64;
                }
            }
        }
        Ok(())
    }

    /// The first byte at or after `offset` that is mapped, `None` if none follows.
    ///
    /// This and [`seek_hole`](Self::seek_hole) move the file position, which all descriptors
    /// duplicated from this one share. No other method uses it.
    ///
    /// ```no_run
    /// # use asfd::{AddressSpace, CreateFlags};
    /// # let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    /// // The runs of mapped bytes.
    /// let mut at = 0;
    /// while let Some(start) = space.seek_data(at)? {
    ///     let Some(end) = space.seek_hole(start)? else { break };
    ///     println!("{start:#x}-{end:#x}");
    ///     at = end;
    /// }
    /// # Ok::<(), asfd::Error>(())
    /// ```
    pub fn seek_data(&self, offset: u64) -> Result<Option<u64>> {
        self.seek(SeekFrom::Data(offset), "mapping", offset)
    }

    /// The first byte at or after `offset` that is not mapped: the end of the space, or of the
    /// view's window, at the latest; `None` if `offset` lies past that.
    pub fn seek_hole(&self, offset: u64) -> Result<Option<u64>> {
        self.seek(SeekFrom::Hole(offset), "hole", offset)
    }

    fn seek(&self, to: SeekFrom, what: &str, offset: u64) -> Result<Option<u64>> {
        match rustix::fs::seek(self, to) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NXIO) => Ok(None),
            Err(e) => {
                let what = format!("find the next {what} from {offset:#x}");
                Err(Error::new(Operation::Seek, what, e))
            }
        }
    }
}

/// A signal that came before the first byte is not the caller's business.
fn retry(mut call: impl FnMut() -> rustix::io::Result<usize>) -> rustix::io::Result<usize> {
    loop {
        match call() {
            Err(Errno::INTR) => continue,
            result => return result,
        }
    }
}

fn refused(operation: Operation, len: usize, offset: u64, errno: Errno) -> Error {
    let verb = match operation {
        Operation::Write => "write",
        _ => "read",
    };
    Error::new(
        operation,
        format!("{verb} {len} bytes at {offset:#x}"),
        errno,
    )
}
