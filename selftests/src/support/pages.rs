// SPDX-License-Identifier: GPL-2.0

//! The sizes of page that memory of a guest can be made of.

use std::fs::File;

use libc::{PROT_READ, PROT_WRITE};

use super::files::{self, TempFile, Tmpfs};
use super::mirror::Area;
use super::system::{need_huge_pages, Setting};
use super::{HUGE, PAGE};
use crate::harness::skip;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// A memfd.
    Small,
    /// A file on a tmpfs that has huge pages wherever it can.
    Transparent,
    Hugetlb,
}

impl Size {
    pub const ALL: [Size; 3] = [Size::Small, Size::Transparent, Size::Hugetlb];

    /// The unit in which it can be mapped and unmapped.
    pub fn unit(self) -> u64 {
        match self {
            Size::Hugetlb => HUGE,
            _ => PAGE,
        }
    }
}

/// Where files of one size come from.
pub struct Source {
    pub size: Size,
    tmpfs: Option<Tmpfs>,
    _pages: Option<Setting>,
}

impl Source {
    /// `huge` is how many huge pages are in use at a time, at most.
    pub fn new(size: Size, huge: u64) -> Source {
        Source {
            size,
            tmpfs: (size == Size::Transparent)
                .then(|| Tmpfs::mount("huge=always").unwrap_or_else(|why| skip(&why))),
            _pages: (size == Size::Hugetlb).then(|| need_huge_pages(huge)),
        }
    }

    pub fn file(&self, len: u64) -> File {
        match &self.tmpfs {
            // The file stays without its name.
            Some(tmpfs) => TempFile::new(tmpfs.path(), len)
                .file
                .try_clone()
                .expect("dup"),
            None if self.size == Size::Hugetlb => files::huge_memfd(len),
            None => files::memfd(len),
        }
    }

    /// The same with all its pages there.
    pub fn full(&self, len: u64) -> File {
        let file = self.file(len);
        let area = Area::of_file(&file, len, PROT_READ | PROT_WRITE);
        let step = if self.size == Size::Small { PAGE } else { HUGE };
        for at in (0..len).step_by(step as usize) {
            area.store_word(at, 0).expect("memory");
        }
        file
    }
}
