// SPDX-License-Identifier: GPL-2.0

//! A file to write to from mirrors, and to read into mirrors from.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::unistd::{lseek, Whence};

use crate::support::files;
use crate::support::mirror::Area;
use crate::support::{Result, PAGE};

pub struct Scratch(File);

impl Scratch {
    pub fn new() -> Scratch {
        Scratch(files::memfd(4 * PAGE))
    }

    fn rewind(&self) {
        lseek(&self.0, 0, Whence::SeekSet).expect("lseek");
    }

    /// What write(2) took.
    pub fn take_from(&self, area: &Area, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.rewind();
        let done = area.write_to(offset, &self.0, len as u64)?;
        let mut bytes = vec![0; done as usize];
        self.0.read_exact_at(&mut bytes, 0).expect("read");
        Ok(bytes)
    }

    /// How much of the bytes read(2) brought.
    pub fn put_into(&self, area: &Area, offset: u64, bytes: &[u8]) -> Result<usize> {
        self.rewind();
        self.0.write_all_at(bytes, 0).expect("write");
        let done = area.read_from(offset, &self.0, bytes.len() as u64)?;
        Ok(done as usize)
    }
}
