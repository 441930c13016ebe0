// SPDX-License-Identifier: GPL-2.0

//! Pages that are replaced under vCPUs, and an oracle that runs in the guest. Each generation of
//! pages carries its number. When an edit has returned, the guest is told the least number that it
//! may still meet. It reads what it is told, writes that into each page and then reads the page's
//! number: a lower one is a page that was taken away before. A page in which more than its own
//! number was written has been written after it was taken away.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Mutex;
use std::time::Duration;

use libc::{PROT_NONE, PROT_READ, PROT_WRITE};

use super::guest::{window, Vm};
use super::meeting::add;
use super::mirror::Area;
use super::pages::{Size, Source};
use super::smp::{Board, Code, Job, Smp, LINE};
use super::{Map, Space, HUGE, PAGE};

/// Where the pages are in the guest and in the space; the first vCPU watches all of them,
/// or some of each huge page, the second those in the middle.
pub const BASE: u64 = 8 * HUGE;
pub const AT: u64 = 64 * HUGE;
pub const VCPUS: u64 = 2;
pub const SLOT: u32 = 1;

/// The numbers between those of two generations are for what happens in between.
const STEP: u32 = 16;
const RW: i32 = PROT_READ | PROT_WRITE;

pub fn len(size: Size) -> u64 {
    match size {
        Size::Small => 64 * PAGE,
        _ => 2 * HUGE,
    }
}

/// The pages in the middle, from the start of all.
fn middle(size: Size) -> (u64, u64) {
    match size {
        Size::Small => (16 * PAGE, 8 * PAGE),
        Size::Transparent => (HUGE - 8 * PAGE, 16 * PAGE),
        Size::Hugetlb => (HUGE, HUGE),
    }
}

/// The pages that each vCPU watches, some of each huge page.
fn watched(size: Size) -> [(u64, u64); VCPUS as usize] {
    let around = (HUGE - 64 * PAGE, 128 * PAGE);
    match size {
        Size::Small => [(0, len(size)), middle(size)],
        Size::Transparent => [around, middle(size)],
        Size::Hugetlb => [around, (HUGE, 64 * PAGE)],
    }
}

/// What each vCPU does, with the middle at the same or at another address.
pub fn jobs(size: Size, base: u64) -> [Job; VCPUS as usize] {
    let [all, middle] = watched(size);
    let job = |vcpu, at, len| Job {
        code: Code::Witness,
        vcpu,
        at,
        len,
    };
    [
        job(0, BASE + all.0, all.1),
        job(1, base + middle.0, middle.1),
    ]
}

pub fn show(vm: &Vm, space: &Space, size: Size, flags: u32) {
    let mut shown = window(SLOT, BASE, len(size), space, AT);
    shown.flags = flags;
    vm.must_map(shown);
}

/// A generation: pages that carry its number.
pub struct Pages {
    pub file: File,
    area: Area,
    len: u64,
    number: u32,
}

impl Pages {
    pub fn new(source: &Source, len: u64, number: u32) -> Pages {
        let file = source.file(len);
        let area = Area::of_file(&file, len, RW);
        let pages = Pages {
            file,
            area,
            len,
            number,
        };
        for at in pages.places() {
            pages.area.store_word(at, number.into()).expect("memory");
        }
        pages
    }

    fn places(&self) -> impl Iterator<Item = u64> {
        let lines = |page| (0..VCPUS).map(move |vcpu| page + LINE * vcpu);
        (0..self.len).step_by(PAGE as usize).flat_map(lines)
    }

    /// Nothing above `most` was written to them.
    #[track_caller]
    pub fn written_at_most(&self, most: u32) {
        for at in self.places() {
            // What the file has lost was not written.
            let word = self.area.load_word(at).unwrap_or(0);
            assert!(
                (word >> 32) as u32 <= most,
                "generation {:#x}, at {at:#x}: {:#x} was written after it was taken away",
                self.number,
                word >> 32
            );
        }
    }
}

#[derive(Default)]
pub struct Counts {
    pub edits: AtomicU64,
    pub turns: [AtomicU64; VCPUS as usize],
}

pub struct Editor<'a> {
    pub space: &'a Space,
    pub source: &'a Source,
    pub board: &'a Board,
    pub smp: &'a Smp,
    pub counts: &'a Counts,
    /// For others, to cut the files that are mapped.
    pub current: &'a Mutex<Option<File>>,
    random: fastrand::Rng,
    number: u32,
    whole: Option<Pages>,
    part: Option<Pages>,
    gone: VecDeque<Pages>,
}

impl<'a> Editor<'a> {
    pub fn new(
        space: &'a Space,
        source: &'a Source,
        board: &'a Board,
        smp: &'a Smp,
        counts: &'a Counts,
        current: &'a Mutex<Option<File>>,
    ) -> Editor<'a> {
        Editor {
            space,
            source,
            board,
            smp,
            counts,
            current,
            random: fastrand::Rng::with_seed(11),
            number: 0,
            whole: None,
            part: None,
            gone: VecDeque::new(),
        }
    }

    fn tell(&self, number: u32) {
        (0..VCPUS).for_each(|vcpu| self.board.tell(vcpu, number));
    }

    /// The next generation, of so many bytes.
    fn next(&mut self, len: u64) -> Pages {
        self.number += STEP;
        Pages::new(self.source, len, self.number)
    }

    /// The files that are no longer mapped. They are looked at some time later: who still
    /// writes there shall have had the time.
    fn retire(&mut self, pages: Option<Pages>) {
        self.gone.extend(pages);
        if self.gone.len() > 2 {
            self.judge_one();
        }
    }

    fn judge_one(&mut self) {
        if let Some(pages) = self.gone.pop_front() {
            pages.written_at_most(pages.number);
        }
    }

    fn put(&mut self, at: u64, pages: &Pages) {
        let map = Map::file(&pages.file, AT + at, pages.len).replace();
        let private = self.source.size != Size::Hugetlb && self.random.u8(0..4) == 0;
        self.space
            .must_map(if private { map.private() } else { map });
    }

    /// New pages in place of all.
    pub fn replace_all(&mut self) {
        let pages = self.next(len(self.source.size));
        self.put(0, &pages);
        let copy = pages.file.try_clone().expect("dup");
        *self.current.lock().expect("no panic") = Some(copy);
        self.tell(self.number - STEP / 2);
        let (whole, part) = (self.whole.replace(pages), self.part.take());
        self.retire(whole);
        self.retire(part);
    }

    fn replace_middle(&mut self) {
        let (start, len) = middle(self.source.size);
        let pages = self.next(len);
        self.put(start, &pages);
        self.board.tell(1, self.number - STEP / 2);
        let part = self.part.replace(pages);
        self.retire(part);
    }

    fn unmap_middle(&mut self) {
        let (start, len) = middle(self.source.size);
        self.space.unmap(AT + start, len).expect("unmap");
        self.board.tell(1, self.number + 1);
        let part = self.part.take();
        self.retire(part);
    }

    /// All of it cannot be reached for a while: a hole, or forbidden.
    fn take_away(&mut self, unmap: bool) {
        let len = len(self.source.size);
        if unmap {
            self.space.unmap(AT, len).expect("unmap");
        } else {
            // There may be holes, which would refuse this.
            self.replace_all();
            self.space.must_protect(AT, len, PROT_NONE);
        }
        self.tell(self.number + 1);
        self.pause();
        self.replace_all();
    }

    fn forbid_writes(&mut self) {
        self.replace_all();
        self.meet();
        let len = len(self.source.size);
        self.space.must_protect(AT, len, PROT_READ);
        self.tell(self.number - STEP / 4);
        self.pause();
        if let Some(pages) = &self.whole {
            pages.written_at_most(self.number - STEP / 2);
        }
        self.space.must_protect(AT, len, RW);
    }

    fn pause(&mut self) {
        std::thread::sleep(Duration::from_micros(self.random.u64(0..1500)));
    }

    /// Until the vCPUs have met what there is.
    fn meet(&mut self) {
        self.board.another_turn(0..VCPUS, &self.smp.stop);
    }

    pub fn edit(&mut self) {
        match self.random.u8(0..8) {
            0 => self.take_away(true),
            1 => self.take_away(false),
            2 => self.forbid_writes(),
            3 => self.unmap_middle(),
            4 | 5 => self.replace_middle(),
            _ => self.replace_all(),
        }
        match self.random.u8(0..3) {
            0 => self.pause(),
            1 => self.meet(),
            _ => {}
        }
        add(&self.counts.edits, true);
        for (vcpu, turns) in (0..).zip(&self.counts.turns) {
            turns.store(self.board.turns(vcpu).into(), Relaxed);
        }
    }

    /// Judges what has not been.
    pub fn finish(mut self) {
        let len = len(self.source.size);
        self.space.unmap(AT, len).expect("unmap");
        let (whole, part) = (self.whole.take(), self.part.take());
        self.gone.extend(whole.into_iter().chain(part));
        while !self.gone.is_empty() {
            self.judge_one();
        }
    }
}
