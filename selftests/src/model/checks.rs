// SPDX-License-Identifier: GPL-2.0

//! What the descriptors say: the bytes by read calls, the mappings by every list of them.

use std::io::IoSliceMut;

use asfd::sys::{ADDRESS_SPACE_RIGHT_QUERY, PROCMAP_QUERY_COVERING_OR_NEXT_VMA};
use nix::unistd::Whence;

use super::doors::WHOLE;
use super::state::{counted, merged, same, PAGES, SIZE};
use super::Test;
use crate::support::rights::seen_through;
use crate::support::space::Mapping;
use crate::support::Errno;

impl Test {
    /// A random place and length within what the door shows; through a view, sometimes past it.
    pub fn place(&mut self, door: usize) -> (usize, usize) {
        let (start, pages) = self.range(door);
        let at = start * SIZE + self.random.usize(0..SIZE);
        let longest = (PAGES * SIZE - at).min(pages * SIZE);
        let short = longest.min([8, 100, usize::MAX][self.random.usize(0..3)]);
        (at, self.random.usize(1..=short))
    }

    pub fn check_read(&mut self) {
        let vector = self.random.bool();
        let door = self.door();
        let (at, len) = self.place(door);
        let mut buffer = vec![0xee; len];
        let why = self.ceiling(door, false);
        let from = self.base + at as u64 - self.doors[door].start;
        let space = &self.doors[door].space;
        let answer = if vector {
            let (first, second) = buffer.split_at_mut(self.random.usize(0..=len));
            space.readv_at(from, &mut [first, second].map(IoSliceMut::new))
        } else {
            space.read_at(from, &mut buffer)
        };
        // A view ends where its window does.
        let room = (self.shown(door).end * SIZE).saturating_sub(at).min(len);
        let (bytes, end) = self.model.read(at, room);
        let expected = counted(bytes.len(), end);
        let what = format!("pread of {len} bytes at {at:#x} through door {door}");
        if self.settle(&what, answer, &why, expected) && answer.is_ok() {
            buffer.truncate(bytes.len());
            same(&what, &Ok(buffer), &Ok(bytes));
        }
    }

    pub fn check_seek(&mut self) {
        let door = self.door();
        let shown = self.shown(door);
        let at = self.random.usize(shown.start * SIZE..shown.end * SIZE);
        let from = |mapped: bool| {
            if self.model.pages[at / SIZE].is_some() == mapped {
                return Some(at);
            }
            let rest = &self.model.pages[at / SIZE..shown.end];
            rest.iter()
                .position(|p| p.is_some() == mapped)
                .map(|n| (at / SIZE + n) * SIZE)
        };
        let start = self.doors[door].start;
        let told = |at: usize| self.base + at as u64 - start;
        let data = from(true).map(told).ok_or(Errno::ENXIO);
        let hole = Ok(told(from(false).unwrap_or(shown.end * SIZE)));
        let why = self.refusals(door, (shown.start, 0), ADDRESS_SPACE_RIGHT_QUERY);
        let at = told(at);
        for (whence, expected) in [(Whence::SeekData, data), (Whence::SeekHole, hole)] {
            let answer = self.doors[door].space.seek(at, whence);
            let what = format!("{whence:?} at {at:#x} through door {door}");
            self.settle(&what, answer, &why, expected);
        }
    }

    /// What the door shows of the mappings, if no two were merged.
    fn expected_mappings(&self, door: usize) -> Vec<Mapping> {
        let pages = (0..PAGES).filter_map(|page| {
            let mut mapping = self.model.mapping(page)?;
            mapping.start += self.base;
            mapping.end += self.base;
            Some(mapping)
        });
        let all: Vec<Mapping> = pages.collect();
        let door = &self.doors[door];
        merged(seen_through(&all, door.start, door.len))
    }

    pub fn check_mappings(&mut self) {
        let number = self.door();
        let door = &self.doors[number];
        let expected = self.expected_mappings(number);
        let info = door.space.info();
        let mapped: u64 = expected.iter().map(|m| m.end - m.start).sum();
        assert_eq!(info.mapped_bytes, mapped);
        assert!(info.resident_bytes <= info.mapped_bytes);
        assert_eq!((info.addr, info.len), (door.start, door.len));
        assert_eq!((info.rights, info.prot), (door.rights, door.prot as u32));
        assert_eq!(info.seals, self.model.seals);
        assert_eq!(info.mirrors, self.mirrors.len() as u64);
        let fdinfo = door.space.fdinfo();
        let shown: Vec<&str> = fdinfo
            .lines()
            .filter_map(|l| l.strip_prefix("as_map:\t"))
            .collect();
        if door.has(ADDRESS_SPACE_RIGHT_QUERY) {
            let told = door.space.mappings();
            assert_eq!(info.mappings, told.len() as u64);
            let lines: Vec<String> = told.iter().map(Mapping::line).collect();
            assert_eq!(shown, lines, "fdinfo and PROCMAP_QUERY");
            assert_eq!(merged(told), expected, "PROCMAP_QUERY through {number}");
        } else {
            let refused = door.space.query(0, PROCMAP_QUERY_COVERING_OR_NEXT_VMA);
            assert_eq!(refused, Err(Errno::EPERM));
            assert_eq!(shown, [""; 0]);
        }
        self.checks += 8;
    }

    pub fn check_all(&mut self) {
        for page in 0..PAGES {
            let mut buffer = vec![0; SIZE];
            let whole = &self.doors[WHOLE].space;
            let answer = whole.read_at(self.addr(page), &mut buffer);
            same(
                &format!("page {page}"),
                &answer.map(|_| buffer),
                &self.model.readable(page).cloned(),
            );
        }
        for _ in 0..4 {
            self.check_mappings();
        }
        self.check_mirrors();
    }
}
