// SPDX-License-Identifier: GPL-2.0

//! PROTECT and ADVISE.

use asfd::sys::ADDRESS_SPACE_RIGHT_CHANGE;
use libc::{PROT_READ, PROT_WRITE};

use super::state::{Model, Source, SIZE};
use super::Test;
use crate::support::{Errno, Result, PAGE};

/// Without an effect on what the pages hold.
const HARMLESS: [i32; 11] = [
    libc::MADV_NORMAL,
    libc::MADV_RANDOM,
    libc::MADV_SEQUENTIAL,
    libc::MADV_WILLNEED,
    libc::MADV_COLD,
    libc::MADV_PAGEOUT,
    libc::MADV_PAGEOUT,
    libc::MADV_HUGEPAGE,
    libc::MADV_NOHUGEPAGE,
    libc::MADV_MERGEABLE,
    libc::MADV_UNMERGEABLE,
];

impl Model {
    /// What the advice does to the pages, and answers. Mappings are taken in order, and the first
    /// that refuses ends it; a hole does not, but is told in the end.
    fn advise(&mut self, range: std::ops::Range<usize>, advice: i32) -> Result<()> {
        let mut answer = Ok(());
        for page in range {
            let Some(mapped) = &mut self.pages[page] else {
                answer = Err(Errno::ENOMEM);
                continue;
            };
            match (advice, &mut mapped.source) {
                // Freed pages may keep their bytes for a while: the caller sees to that.
                (libc::MADV_DONTNEED | libc::MADV_FREE, Source::Anonymous(bytes)) => bytes.fill(0),
                (libc::MADV_DONTNEED, Source::Private { copy, .. }) => *copy = None,
                (libc::MADV_FREE, _) => return Err(Errno::EINVAL),
                (libc::MADV_REMOVE, Source::Anonymous(_)) => return Err(Errno::EINVAL),
                (libc::MADV_REMOVE, Source::Private { .. }) => return Err(Errno::EACCES),
                (libc::MADV_REMOVE, Source::Shared { backing, index }) => {
                    let (backing, index) = (*backing, *index);
                    self.punch(backing, index, 1);
                }
                _ => {}
            }
        }
        answer
    }

    /// POPULATE_*, which ends at the first page that it cannot have, also at a hole.
    fn populate(&mut self, range: std::ops::Range<usize>, write: bool) -> Result<()> {
        for page in range {
            let Some(mapped) = &self.pages[page] else {
                return Err(Errno::ENOMEM);
            };
            let need = if write { PROT_WRITE } else { PROT_READ };
            if mapped.prot & need == 0 {
                return Err(Errno::EINVAL);
            }
            let there = match write {
                true => self.writable(page).is_ok(),
                false => self.readable(page).is_ok(),
            };
            if !there {
                return Err(Errno::EFAULT);
            }
        }
        Ok(())
    }
}

impl Test {
    pub fn protect(&mut self) {
        let door = self.door();
        let range = self.range(door);
        let prot = self.prot();
        let why = self.refusals(door, range, ADDRESS_SPACE_RIGHT_CHANGE);
        let slack = self.random.u64(0..PAGE);
        let len = range.1 as u64 * PAGE - slack;
        let answer = self.doors[door]
            .space
            .protect(self.offset(door, range.0), len, prot);
        let pages = range.0..range.0 + range.1;
        let expected = match why.is_empty() {
            true => self.model.protect(pages, prot),
            false => Ok(()),
        };
        self.settle(&format!("PROTECT of {range:?}"), answer, &why, expected);
    }

    pub fn advise(&mut self) {
        let advice = match self.random.u8(0..12) {
            0..=3 => self.random.choice(HARMLESS).expect("some"),
            4 | 5 => libc::MADV_DONTNEED,
            6 | 7 => libc::MADV_REMOVE,
            8 => libc::MADV_FREE,
            9 => libc::MADV_POPULATE_READ,
            10 => libc::MADV_POPULATE_WRITE,
            _ => libc::MADV_COLLAPSE,
        };
        let door = self.door();
        let range = self.range(door);
        let mut why = self.refusals(door, range, ADDRESS_SPACE_RIGHT_CHANGE);
        if advice == libc::MADV_REMOVE {
            why.extend(self.ceiling(door, true));
        }
        let at = self.offset(door, range.0);
        let len = (range.1 * SIZE) as u64;
        let answer = self.doors[door].space.advise(at, len, advice);
        let pages = range.0..range.0 + range.1;
        let expected = match advice {
            _ if !why.is_empty() => Ok(()),
            libc::MADV_POPULATE_READ => self.model.populate(pages, false),
            libc::MADV_POPULATE_WRITE => self.model.populate(pages, true),
            // Nothing here is as long as a huge page; but what it answers is left to it.
            libc::MADV_COLLAPSE => answer,
            _ => self.model.advise(pages, advice),
        };
        let what = format!("advice {advice} on {range:?}");
        let done = self.settle(&what, answer, &why, expected);
        if done && advice == libc::MADV_FREE {
            self.after_free(range);
        }
    }

    /// Freed pages hold what they held, or zeros, until they are written or given up for good.
    fn after_free(&mut self, range: (usize, usize)) {
        for page in range.0..range.0 + range.1 {
            let addr = self.addr(page);
            match self.model.pages[page].as_ref().map(|m| &m.source) {
                Some(Source::Anonymous(_)) => {
                    let whole = &self.doors[super::WHOLE].space;
                    assert_eq!(whole.advise(addr, PAGE, libc::MADV_DONTNEED), Ok(()));
                }
                None => {}
                // Where the advice ended.
                Some(_) => return,
            }
        }
    }
}
