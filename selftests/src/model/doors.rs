// SPDX-License-Identifier: GPL-2.0

//! The descriptors that the calls are made through: the one of the whole space, and views with
//! random windows, ceilings and rights.

use asfd::sys::*;
use libc::{PROT_READ, PROT_WRITE};

use super::state::{PAGES, SIZE};
use super::{Test, RW};
use crate::support::rights::{View, ALL_RIGHTS};
use crate::support::{Errno, Result, Space, PAGE};

pub struct Door {
    pub space: Space,
    /// Where its window lies in the space.
    pub start: u64,
    pub len: u64,
    pub prot: i32,
    pub rights: u32,
}

impl Door {
    pub fn whole(space: Space) -> Door {
        Door {
            len: space.end(),
            space,
            start: 0,
            prot: RW,
            rights: ALL_RIGHTS,
        }
    }

    pub fn has(&self, right: u32) -> bool {
        self.rights & right != 0
    }
}

/// The door of the whole space; views are the others.
pub const WHOLE: usize = 0;
const VIEWS: usize = 6;

impl Test {
    /// One of them, the whole one most often.
    pub fn door(&mut self) -> usize {
        match self.random.bool() {
            true => WHOLE,
            false => self.random.usize(0..self.doors.len()),
        }
    }

    /// The whole space, or a view of all of the model's pages, in which to show them to a guest.
    pub fn eye_door(&mut self) -> usize {
        if self.random.bool() {
            return WHOLE;
        }
        let len = (PAGES * SIZE) as u64;
        let space = self.doors[WHOLE].space.view(View::of(self.base, len));
        self.doors.push(Door {
            space: space.expect("a view"),
            start: self.base,
            len,
            prot: RW,
            rights: ALL_RIGHTS,
        });
        self.doors.len() - 1
    }

    /// The pages of the model that a door shows.
    pub fn shown(&self, door: usize) -> std::ops::Range<usize> {
        let door = &self.doors[door];
        let from = door.start.saturating_sub(self.base) / PAGE;
        let to = (door.start + door.len - self.base) / PAGE;
        from as usize..(to as usize).min(PAGES)
    }

    /// Pages from a random one on, for a call through this door: through a view they sometimes
    /// go past its end.
    pub fn range(&mut self, door: usize) -> (usize, usize) {
        let shown = self.shown(door);
        let start = self.random.usize(shown.clone());
        let longest = [3, 8, PAGES][self.random.usize(0..3)];
        let past = door != WHOLE && self.random.u8(0..8) == 0;
        let end = if past { PAGES } else { shown.end };
        (start, self.random.usize(1..=longest.min(end - start)))
    }

    /// Where the page lies for those who come by this door.
    pub fn offset(&self, door: usize, page: usize) -> u64 {
        self.addr(page) - self.doors[door].start
    }

    /// All that forbids a call by which this door's holder uses a right on the range.
    pub fn refusals(&self, door: usize, range: (usize, usize), right: u32) -> Vec<Errno> {
        let seal = match right {
            ADDRESS_SPACE_RIGHT_MAP => ADDRESS_SPACE_SEAL_MAP,
            ADDRESS_SPACE_RIGHT_UNMAP => ADDRESS_SPACE_SEAL_UNMAP,
            ADDRESS_SPACE_RIGHT_CHANGE => ADDRESS_SPACE_SEAL_CHANGE,
            _ => 0,
        };
        let mut why = Vec::new();
        if range.0 + range.1 > self.shown(door).end {
            why.push(Errno::ERANGE);
        }
        if !self.doors[door].has(right) || self.model.seals & seal != 0 {
            why.push(Errno::EPERM);
        }
        why
    }

    /// Holds an answer to what is expected, or to one of what forbids it. Says whether the call was
    /// made at all.
    #[track_caller]
    pub fn settle<T: PartialEq + std::fmt::Debug>(
        &mut self,
        what: &str,
        answer: Result<T>,
        refusals: &[Errno],
        expected: Result<T>,
    ) -> bool {
        self.checks += 1;
        if refusals.is_empty() {
            assert_eq!(answer, expected, "{what}");
            return true;
        }
        // Of several reasons the kernel may name any.
        let error = answer.as_ref().err();
        assert!(
            error.is_some() && (error.is_some_and(|e| refusals.contains(e)) || answer == expected),
            "{what}: {answer:?}, not one of {refusals:?}"
        );
        false
    }

    /// Makes a view of a random door, or tries to: some ask for more than there is.
    pub fn make_view(&mut self) {
        let parent = self.door();
        let range = self.range(parent);
        let mut some = |all: u32, each: u8| {
            let taken = (0..32).filter(|_| self.random.u8(0..each) == 0);
            taken.fold(all, |left, bit| left & !(1 << bit))
        };
        let rights = some(ALL_RIGHTS, 5);
        let prot = some(RW as u32, 4) as i32;
        let view = View::of(self.offset(parent, range.0), range.1 as u64 * PAGE)
            .rights(rights)
            .prot(prot);
        let mut why = self.refusals(parent, range, ADDRESS_SPACE_RIGHT_VIEW);
        let from = &self.doors[parent];
        if rights & !from.rights != 0 {
            why.push(Errno::EPERM);
        }
        if prot & !from.prot != 0 {
            why.push(Errno::EACCES);
        }
        let answer = from.space.view(view);
        let made = answer.as_ref().map(drop).map_err(|e| *e);
        if !self.settle(&format!("{view:x?}"), made, &why, Ok(())) {
            return;
        }
        if self.doors.len() > VIEWS {
            let gone = self.random.usize(1..self.doors.len());
            self.doors.swap_remove(gone);
        }
        self.doors.push(Door {
            space: answer.expect("just looked at"),
            start: self.addr(range.0),
            len: (range.1 * SIZE) as u64,
            prot,
            rights,
        });
    }

    pub fn seal(&mut self) {
        let door = self.door();
        let seal = 1 << self.random.u8(0..4);
        let mut why = Vec::new();
        if !self.doors[door].has(ADDRESS_SPACE_RIGHT_SEAL)
            || self.model.seals & ADDRESS_SPACE_SEAL_SEAL != 0
        {
            why.push(Errno::EPERM);
        }
        let answer = self.doors[door].space.seal(seal);
        if self.settle("SEAL", answer, &why, Ok(())) {
            self.model.seals |= seal;
        }
    }

    /// What a door's ceiling says to bytes that are read, or written.
    pub fn ceiling(&self, door: usize, write: bool) -> Vec<Errno> {
        let need = if write { PROT_WRITE } else { PROT_READ };
        match self.doors[door].prot & need {
            0 => vec![Errno::EACCES],
            _ => Vec::new(),
        }
    }
}
