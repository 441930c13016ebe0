// SPDX-License-Identifier: GPL-2.0

//! io_uring, one request at a time.

use std::os::fd::{AsRawFd, RawFd};

use io_uring::{opcode, squeue, types, IoUring};

use super::mirror::Area;
use super::space::errno;
use super::{Errno, Result};
use crate::harness::skip;

pub struct Ring(IoUring);

impl Ring {
    pub fn new() -> Ring {
        Ring(IoUring::new(4).unwrap_or_else(|e| skip(&format!("io_uring: {e}"))))
    }

    /// Registers a part of an area as the only fixed buffer: its pages are pinned.
    pub fn register(&self, area: &Area, offset: u64, len: u64) -> Result<()> {
        let buffer = libc::iovec {
            iov_base: area.pointer(offset),
            iov_len: len as usize,
        };
        // SAFETY: All access to an area is by address, and what happens to its pages is what the tests
        // are about.
        unsafe { self.0.submitter().register_buffers(&[buffer]) }.map_err(errno)
    }

    pub fn unregister(&self) -> Result<()> {
        self.0.submitter().unregister_buffers().map_err(errno)
    }

    fn run(&mut self, entry: squeue::Entry) -> Result<u64> {
        // SAFETY: As for `register`; the request is over when this returns.
        unsafe { self.0.submission().push(&entry) }.expect("room in the ring");
        self.0.submit_and_wait(1).map_err(errno)?;
        let answer = self.0.completion().next().expect("an answer").result();
        u64::try_from(answer).map_err(|_| Errno::from_raw(-answer))
    }

    pub fn read(&mut self, file: &impl AsRawFd, area: &Area, at: u64, len: u64) -> Result<u64> {
        let to = area.pointer(at).cast();
        self.run(opcode::Read::new(fd(file), to, len as u32).build())
    }

    pub fn write(&mut self, file: &impl AsRawFd, area: &Area, at: u64, len: u64) -> Result<u64> {
        let from = area.pointer(at).cast();
        self.run(opcode::Write::new(fd(file), from, len as u32).build())
    }

    /// Into a part of the fixed buffer.
    pub fn read_fixed(
        &mut self,
        file: &impl AsRawFd,
        area: &Area,
        at: u64,
        len: u64,
    ) -> Result<u64> {
        let to = area.pointer(at).cast();
        self.run(opcode::ReadFixed::new(fd(file), to, len as u32, 0).build())
    }

    pub fn write_fixed(
        &mut self,
        file: &impl AsRawFd,
        area: &Area,
        at: u64,
        len: u64,
    ) -> Result<u64> {
        let from = area.pointer(at).cast();
        self.run(opcode::WriteFixed::new(fd(file), from, len as u32, 0).build())
    }
}

fn fd(file: &impl AsRawFd) -> types::Fd {
    let raw: RawFd = file.as_raw_fd();
    types::Fd(raw)
}
