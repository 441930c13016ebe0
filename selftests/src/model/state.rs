// SPDX-License-Identifier: GPL-2.0

//! The model: what is in each page of the space, and what each access has to give.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use libc::{PROT_READ, PROT_WRITE};

use crate::support::files;
use crate::support::space::Mapping;
use crate::support::{Errno, Result, PAGE};

/// Pages of the space that are edited.
pub const PAGES: usize = 48;
pub const SIZE: usize = PAGE as usize;
/// Memfds that are there from the start.
pub const FILES: usize = 3;

pub type Page = Vec<u8>;

/// A file, or the nameless one of a shared anonymous mapping.
pub struct Backing {
    pub file: Option<File>,
    pub inode: u64,
    /// What is in its pages; past them is past its end.
    pub pages: Vec<Page>,
}

#[derive(Clone)]
pub enum Source {
    Anonymous(Page),
    Shared {
        backing: usize,
        index: usize,
    },
    /// The backing's page until the space writes it.
    Private {
        backing: usize,
        index: usize,
        copy: Option<Page>,
    },
}

#[derive(Clone)]
pub struct Mapped {
    pub prot: i32,
    pub source: Source,
}

pub struct Model {
    pub backings: Vec<Backing>,
    pub pages: Vec<Option<Mapped>>,
    /// No fd may do what these forbid.
    pub seals: u32,
}

impl Model {
    pub fn new() -> Model {
        let backing = |first| {
            let file = files::numbered(24, first);
            Backing {
                inode: file.metadata().expect("fstat").ino(),
                file: Some(file),
                pages: (0..24).map(|n| vec![first + n; SIZE]).collect(),
            }
        };
        Model {
            backings: [1, 65, 129].map(backing).into(),
            pages: vec![None; PAGES],
            seals: 0,
        }
    }

    fn shared_page(&self, backing: usize, index: usize) -> Result<&Page> {
        self.backings[backing].pages.get(index).ok_or(Errno::EIO)
    }

    /// What reading the page gives.
    pub fn readable(&self, page: usize) -> Result<&Page> {
        let mapped = self
            .pages
            .get(page)
            .and_then(Option::as_ref)
            .ok_or(Errno::EIO)?;
        if mapped.prot & PROT_READ == 0 {
            return Err(Errno::EACCES);
        }
        match &mapped.source {
            Source::Anonymous(bytes) => Ok(bytes),
            Source::Shared { backing, index } => self.shared_page(*backing, *index),
            // The end of the file ends private copies, too.
            Source::Private {
                backing,
                index,
                copy,
            } => {
                let shared = self.shared_page(*backing, *index)?;
                Ok(copy.as_ref().unwrap_or(shared))
            }
        }
    }

    /// The page to write to.
    pub fn writable(&mut self, page: usize) -> Result<&mut Page> {
        let mapped = self
            .pages
            .get_mut(page)
            .and_then(Option::as_mut)
            .ok_or(Errno::EIO)?;
        if mapped.prot & PROT_WRITE == 0 {
            return Err(Errno::EACCES);
        }
        match &mut mapped.source {
            Source::Anonymous(bytes) => Ok(bytes),
            Source::Shared { backing, index } => self.backings[*backing]
                .pages
                .get_mut(*index)
                .ok_or(Errno::EIO),
            Source::Private {
                backing,
                index,
                copy,
            } => {
                let shared = self.backings[*backing]
                    .pages
                    .get(*index)
                    .ok_or(Errno::EIO)?;
                Ok(copy.get_or_insert_with(|| shared.clone()))
            }
        }
    }

    /// The bytes from `at` on, up to the first that cannot be read, and why it cannot.
    pub fn read(&self, at: usize, len: usize) -> (Page, Option<Errno>) {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let here = at + bytes.len();
            match self.readable(here / SIZE) {
                Ok(page) => {
                    let part = (SIZE - here % SIZE).min(len - bytes.len());
                    bytes.extend_from_slice(&page[here % SIZE..][..part]);
                }
                Err(e) => return (bytes, Some(e)),
            }
        }
        (bytes, None)
    }

    /// Writes from `at` on, up to the first byte that cannot be written: how many, and why no more.
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> (usize, Option<Errno>) {
        let mut done = 0;
        while done < bytes.len() {
            let here = at + done;
            match self.writable(here / SIZE) {
                Ok(page) => {
                    let part = (SIZE - here % SIZE).min(bytes.len() - done);
                    page[here % SIZE..][..part].copy_from_slice(&bytes[done..][..part]);
                    done += part;
                }
                Err(e) => return (done, Some(e)),
            }
        }
        (done, None)
    }

    pub fn truncate(&mut self, backing: usize, pages: usize) {
        self.backings[backing].pages.resize(pages, vec![0; SIZE]);
        for mapped in self.pages.iter_mut().flatten() {
            if let Source::Private {
                backing: of,
                index,
                copy,
            } = &mut mapped.source
            {
                if *of == backing && *index >= pages {
                    *copy = None;
                }
            }
        }
    }

    /// Pages of a file, no longer there, are zeros. Private copies stay.
    pub fn punch(&mut self, backing: usize, index: usize, pages: usize) {
        let all = self.backings[backing].pages.iter_mut();
        all.skip(index).take(pages).for_each(|page| page.fill(0));
    }

    /// PROTECT, which is all or nothing.
    pub fn protect(&mut self, pages: std::ops::Range<usize>, prot: i32) -> Result<()> {
        let pages = &mut self.pages[pages];
        if pages.iter().any(Option::is_none) {
            return Err(Errno::ENOMEM);
        }
        pages.iter_mut().flatten().for_each(|m| m.prot = prot);
        Ok(())
    }

    /// The mapping that page would have, if no two were merged.
    pub fn mapping(&self, page: usize) -> Option<Mapping> {
        let mapped = self.pages[page].as_ref()?;
        let (shared, backing, index) = match mapped.source {
            Source::Anonymous(_) => (false, None, 0),
            Source::Shared { backing, index } => (true, Some(backing), index),
            Source::Private { backing, index, .. } => (false, Some(backing), index),
        };
        let named = backing.map(|n| {
            if self.backings[n].file.is_some() {
                "/memfd:ram"
            } else {
                "/dev/zero"
            }
        });
        Some(Mapping {
            start: page as u64 * PAGE,
            end: (page as u64 + 1) * PAGE,
            prot: mapped.prot,
            shared,
            offset: index as u64 * PAGE,
            inode: backing.map_or(0, |n| self.backings[n].inode),
            page_size: PAGE,
            name: named.map_or(String::new(), |name| format!("{name} (deleted)")),
        })
    }
}

/// What a call answers that does as much as it can: the number of bytes, or why there is none.
pub fn counted(done: usize, why: Option<Errno>) -> Result<usize> {
    match why {
        Some(e) if done == 0 => Err(e),
        _ => Ok(done),
    }
}

/// One entry for what continues: whether the kernel merges two mappings is its own business.
pub fn merged(mappings: impl IntoIterator<Item = Mapping>) -> Vec<Mapping> {
    let mut all: Vec<Mapping> = Vec::new();
    for next in mappings {
        if let Some(last) = all.last_mut() {
            let len = last.end - last.start;
            let continues = last.end == next.start
                && (last.prot, last.shared, last.inode) == (next.prot, next.shared, next.inode)
                && (next.inode == 0 || last.offset + len == next.offset);
            if continues {
                last.end = next.end;
                continue;
            }
        }
        all.push(next);
    }
    all
}

/// Compares without printing pages of bytes.
#[track_caller]
pub fn same(what: &str, got: &Result<Page>, expected: &Result<Page>) {
    if got == expected {
        return;
    }
    match (got, expected) {
        (Ok(got), Ok(expected)) => {
            let at = got.iter().zip(expected).position(|(a, b)| a != b);
            let bytes = at.map(|n| (got[n], expected[n]));
            panic!(
                "{what}: {} bytes, not {}; at {at:?} {bytes:x?}",
                got.len(),
                expected.len()
            );
        }
        (got, expected) => {
            let len = |r: &Result<Page>| r.as_ref().map(Vec::len).map_err(|e| *e);
            panic!("{what}: {:?}, not {:?}", len(got), len(expected));
        }
    }
}
