// SPDX-License-Identifier: GPL-2.0

//! What changes the space and the files in it: mapping, unmapping, writing, cutting files.

use std::os::unix::fs::FileExt;

use asfd::sys::{ADDRESS_SPACE_RIGHT_MAP, ADDRESS_SPACE_RIGHT_UNMAP};
use libc::{MAP_POPULATE, PROT_NONE, PROT_READ};
use nix::fcntl::{fallocate, FallocateFlags};

use super::doors::WHOLE;
use super::state::{counted, Backing, Mapped, Page, Source, FILES, SIZE};
use super::{Test, RW};
use crate::support::{Errno, Map, PAGE};

impl Test {
    pub fn prot(&mut self) -> i32 {
        // Not for writing only: what a load gives there depends on the stores before it.
        [RW, RW, RW, PROT_READ, PROT_NONE][self.random.usize(0..5)]
    }

    pub fn map(&mut self) {
        let door = self.door();
        let (start, mut pages) = self.range(door);
        let prot = self.prot();
        let kind = self.random.u8(0..6);
        let backing = self.random.usize(0..FILES);
        let index = self.random.usize(0..28);
        let at = self.offset(door, start);
        let mut map = match kind {
            0 => Map::anon(at, 0),
            1 => Map::anon(at, 0).shared(),
            _ => {
                let file = self.model.backings[backing].file.as_ref().expect("a memfd");
                Map::file(file, at, 0).offset((index * SIZE) as u64)
            }
        };
        let private = matches!(kind, 2 | 3);
        if private {
            map = map.private();
        }
        let populate = self.random.u8(0..4) == 0;
        if populate {
            map = map.with(MAP_POPULATE);
        }
        let place = self.random.u8(0..8);
        map = match place {
            0 => map,
            1 => map.hint(),
            _ => map.replace(),
        };
        if place == 1 {
            pages = pages.min(4);
        }
        map.0.len = (pages * SIZE) as u64;
        let map = map.prot(prot);
        let taken = |from: usize| {
            let pages = self.model.pages.get(from..from + pages);
            pages.is_none_or(|pages| pages.iter().any(Option::is_some))
        };
        let mut why = self.refusals(door, (start, pages), ADDRESS_SPACE_RIGHT_MAP);
        let end = self.shown(door).end;
        let expected = match place {
            0 if taken(start) => Err(Errno::EEXIST),
            0 => Ok(start),
            1 => {
                // No place is too far for a hint: what there is not is room.
                why.retain(|e| *e != Errno::ERANGE);
                let last = (end + 1).saturating_sub(pages);
                match (start..last).find(|from| !taken(*from)) {
                    Some(from) => Ok(from),
                    // Behind the model's range there would be room.
                    None if door == WHOLE && self.base == 0 => return,
                    None => Err(Errno::ENOMEM),
                }
            }
            _ => {
                if (start..(start + pages).min(end)).any(|page| self.model.pages[page].is_some()) {
                    why.extend(self.refusals(door, (start, pages), ADDRESS_SPACE_RIGHT_UNMAP));
                }
                Ok(start)
            }
        };
        let answer = self.doors[door].space.map(map);
        let told = expected.map(|page| self.offset(door, page));
        let what = format!("{map:x?} through door {door}");
        if !self.settle(&what, answer, &why, told) {
            return;
        }
        let Ok(at) = expected else { return };
        let source = match kind {
            0 => None,
            1 => Some((self.nameless(at, pages), 0)),
            _ => Some((backing, index)),
        };
        for n in 0..pages {
            let source = match source {
                None => Source::Anonymous(vec![0; SIZE]),
                Some((backing, index)) if private => Source::Private {
                    backing,
                    index: index + n,
                    copy: None,
                },
                Some((backing, index)) => Source::Shared {
                    backing,
                    index: index + n,
                },
            };
            self.model.pages[at + n] = Some(Mapped { prot, source });
            // Populating a writable private mapping copies its pages.
            if private && populate {
                let _ = self.model.writable(at + n);
            }
        }
    }

    /// The file of the shared anonymous mapping that was just made there.
    fn nameless(&mut self, page: usize, pages: usize) -> usize {
        let whole = &self.doors[WHOLE].space;
        let mapping = whole.query(self.addr(page), 0).expect("just mapped");
        self.model.backings.push(Backing {
            file: None,
            inode: mapping.inode,
            pages: vec![vec![0; SIZE]; pages],
        });
        self.model.backings.len() - 1
    }

    pub fn unmap(&mut self) {
        let door = self.door();
        let range = self.range(door);
        let why = self.refusals(door, range, ADDRESS_SPACE_RIGHT_UNMAP);
        let len = range.1 as u64 * PAGE - self.random.u64(0..PAGE);
        let answer = self.doors[door]
            .space
            .unmap(self.offset(door, range.0), len);
        if self.settle(&format!("munmap of {range:?}"), answer, &why, Ok(())) {
            self.model.pages[range.0..range.0 + range.1].fill(None);
        }
    }

    pub fn bytes(&mut self, len: usize) -> Page {
        let first = self.random.u8(..);
        (0..len)
            .map(|n| first.wrapping_add((n / 7) as u8))
            .collect()
    }

    /// pwrite, which ends at the end of a view.
    pub fn write(&mut self) {
        let door = self.door();
        let (at, len) = self.place(door);
        let bytes = self.bytes(len);
        let room = (self.shown(door).end * SIZE).saturating_sub(at).min(len);
        let why = self.ceiling(door, true);
        let to = self.base + at as u64 - self.doors[door].start;
        let answer = self.doors[door].space.write_at(to, &bytes);
        let expected = match room {
            _ if !why.is_empty() => Ok(0),
            0 => Err(Errno::ENOSPC),
            _ => {
                let (done, why) = self.model.write(at, &bytes[..room]);
                counted(done, why)
            }
        };
        let what = format!("pwrite of {len} bytes at {at:#x} through door {door}");
        self.settle(&what, answer, &why, expected);
    }

    /// A write by the file's own descriptor.
    pub fn write_file(&mut self) {
        let backing = self.random.usize(0..FILES);
        let backing = &mut self.model.backings[backing];
        if backing.pages.is_empty() {
            return;
        }
        let index = self.random.usize(0..backing.pages.len());
        let at = self.random.usize(0..SIZE - 16);
        let byte = self.random.u8(..);
        backing.pages[index][at..at + 16].fill(byte);
        let file = backing.file.as_ref().expect("a memfd");
        file.write_all_at(&[byte; 16], (index * SIZE + at) as u64)
            .expect("write");
    }

    /// Truncates, extends or punches.
    pub fn cut_file(&mut self) {
        let number = self.random.usize(0..FILES);
        let pages = self.random.usize(8..28);
        let file = self.model.backings[number].file.as_ref().expect("a memfd");
        if self.random.bool() {
            file.set_len((pages * SIZE) as u64).expect("ftruncate");
            self.model.truncate(number, pages);
            return;
        }
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(file, mode, (pages * SIZE) as i64, 2 * PAGE as i64).expect("fallocate");
        self.model.punch(number, pages, 2);
    }
}
