// SPDX-License-Identifier: GPL-2.0

//! Passes over several page tables of a mirror, by threads and processes, against changes of whole
//! page tables and of what crosses them. When a change has returned, no access that begins later
//! meets what was there.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64};

use libc::{MADV_REMOVE, MAP_FIXED, MAP_SHARED, PROT_NONE, PROT_READ};

use crate::support::crew::{tag, time};
use crate::support::files;
use crate::support::meeting::{add, repeat, run_out};
use crate::support::mirror::{mirror, Area};
use crate::support::phases::{Outcome, Phases, State};
use crate::support::process::Child;
use crate::support::rights::RW;
use crate::support::shared::Shared;
use crate::support::system::{counter, slow_zaps, RaiseAtEnd};
use crate::support::{Map, Space, HUGE, PAGE};

crate::suite![passes_and_edits, passes_of_mirrors_that_come_and_go];

/// Five page tables.
const LEN: u64 = 5 * HUGE;

/// Where slices begin: each shows one state, and a change takes one or several neighbours. Some are
/// whole page tables.
const CUTS: [u64; 8] = [
    0,
    HUGE,
    2 * HUGE,
    2 * HUGE + 37 * PAGE,
    3 * HUGE - 5 * PAGE,
    3 * HUGE,
    4 * HUGE,
    LEN,
];
const SLICES: usize = CUTS.len() - 1;

/// Files that are mapped in the place of each other.
const FILES: usize = 3;

struct Crew {
    slices: [Phases; SLICES],
    stop: AtomicBool,
    loads: AtomicU64,
    stores: AtomicU64,
    failed: AtomicU64,
    crossed: AtomicU64,
    changes: AtomicU64,
    others: AtomicU64,
}

fn slice_of(at: u64) -> usize {
    CUTS.iter().rposition(|cut| *cut <= at).expect("from 0 on")
}

impl Crew {
    fn new() -> Shared<Crew> {
        Shared::new(Crew {
            slices: [(); SLICES].map(|()| Phases::new(State::HOLE)),
            stop: AtomicBool::new(false),
            loads: AtomicU64::new(0),
            stores: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            crossed: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            others: AtomicU64::new(0),
        })
    }

    /// One access to a page of a mirror that begins at page `first`.
    fn access(&self, area: &Area, first: u64, page: u64, store: bool) {
        let phases = &self.slices[slice_of(page * PAGE)];
        let at = (page - first) * PAGE;
        let began = phases.begin();
        let (outcome, crossed) = if store {
            // Not to the word that is looked at.
            let outcome = Outcome::of(area.store_word(at + 8, page).map(|()| 0), at + 8);
            (outcome, phases.stored(began, outcome))
        } else {
            let outcome = Outcome::of(area.load_word(at), at);
            (outcome, phases.loaded(began, outcome))
        };
        add(&self.crossed, crossed);
        match outcome {
            Outcome::Word(_) if store => add(&self.stores, true),
            Outcome::Word(_) => add(&self.loads, true),
            _ => add(&self.failed, true),
        }
    }

    /// Some steps forward, and then a look behind: what was served ahead is there as well.
    fn pass(&self, area: &Area, first: u64, random: &mut fastrand::Rng) {
        let end = first + area.len() / PAGE;
        let start = random.u64(first..end);
        let step = [1, 5, 16][random.usize(0..3)];
        let store = random.u8(0..3) == 0;
        for page in (start..end).step_by(step).take(40) {
            self.access(area, first, page, store);
        }
        for _ in 0..20 {
            let page = start + random.u64(0..600);
            if page < end {
                self.access(area, first, page, random.bool());
            }
        }
    }

    fn work(&self, area: &Area, first: u64, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        repeat(&self.stop, || self.pass(area, first, &mut random));
    }

    /// A change of some slices at once.
    fn change(&self, slices: std::ops::Range<usize>, next: State, call: &mut dyn FnMut()) {
        match slices.len() {
            0 => call(),
            _ => self.slices[slices.start].change(next, || {
                self.change(slices.start + 1..slices.end, next, call);
            }),
        }
        add(&self.changes, slices.end == SLICES || slices.len() == 1);
    }
}

/// Who changes the space.
struct Editor<'a> {
    space: &'a Space,
    crew: &'a Crew,
    files: [File; FILES],
    /// Which file each slice shows, if any.
    shown: [Option<usize>; SLICES],
    /// Whose words were lost.
    lost: [[bool; SLICES]; FILES],
    random: fastrand::Rng,
}

/// What the words of a file's pages are.
fn word(file: usize) -> u64 {
    tag(file as u64)
}

fn fill(file: &File, n: usize, at: u64, end: u64) {
    let mut page = [0; PAGE as usize];
    page[..8].copy_from_slice(&word(n).to_le_bytes());
    let bytes = page.repeat(((end - at) / PAGE) as usize);
    file.write_all_at(&bytes, at).expect("write");
}

impl<'a> Editor<'a> {
    fn new(space: &'a Space, crew: &'a Crew) -> Editor<'a> {
        Editor {
            space,
            crew,
            files: [(); FILES].map(|()| files::memfd(LEN)),
            shown: [None; SLICES],
            lost: [[true; SLICES]; FILES],
            random: fastrand::Rng::with_seed(11),
        }
    }

    /// Maps a file over the slices that did not show it before.
    fn show(&mut self, slices: std::ops::Range<usize>, n: usize) {
        let (at, end) = (CUTS[slices.start], CUTS[slices.end]);
        for slice in slices.clone().filter(|slice| self.lost[n][*slice]) {
            fill(&self.files[n], n, CUTS[slice], CUTS[slice + 1]);
        }
        let map = Map::file(&self.files[n], at, end - at).offset(at).replace();
        let state = State::full_of(word(n));
        self.crew.change(slices.clone(), state, &mut || {
            self.space.must_map(map);
        });
        for slice in slices {
            self.shown[slice] = Some(n);
            self.lost[n][slice] = false;
        }
    }

    /// What all of them show now becomes zeros, or holes until it does.
    fn lose(&mut self, slices: std::ops::Range<usize>, n: usize, cut: bool) {
        let (at, end) = (CUTS[slices.start], CUTS[slices.end]);
        let (crew, space, file) = (self.crew, self.space, &self.files[n]);
        let zeros = State::full_of(0);
        if cut {
            let len = |len| file.set_len(len).expect("ftruncate");
            crew.change(slices.clone(), State::HOLE, &mut || len(at));
            crew.change(slices.clone(), zeros, &mut || len(LEN));
        } else {
            let punch = &mut || space.must_advise(at, end - at, MADV_REMOVE);
            crew.change(slices.clone(), zeros, punch);
        }
        for slice in slices {
            self.lost[n][slice] = true;
        }
    }

    fn edit(&mut self) {
        let start = self.random.usize(0..SLICES);
        let end = self.random.usize(start + 1..=SLICES);
        let (at, len) = (CUTS[start], CUTS[end] - CUTS[start]);
        // A file that none of them shows.
        let unused = |n: &usize| !self.shown[start..end].contains(&Some(*n));
        let free = (0..FILES).find(unused);
        let (space, crew) = (self.space, self.crew);
        match (self.random.u8(0..8), free) {
            (0, _) | (_, None) => {
                let unmap = &mut || space.unmap(at, len).expect("unmap");
                crew.change(start..end, State::HOLE, unmap);
                self.shown[start..end].fill(None);
            }
            (1, Some(n)) => {
                self.show(start..end, n);
                self.lose(start..end, n, false);
            }
            (2, Some(_)) => {
                // All that follows goes with it.
                let n = (0..FILES).find(|n| !self.shown.contains(&Some(*n)));
                if let Some(n) = n {
                    self.show(start..SLICES, n);
                    self.lose(start..SLICES, n, true);
                }
            }
            (3 | 4, Some(n)) => {
                self.show(start..end, n);
                let (prot, state) = match self.random.bool() {
                    true => (PROT_READ, State::read_only(word(n))),
                    false => (PROT_NONE, State::DENIED),
                };
                crew.change(start..end, state, &mut || space.must_protect(at, len, prot));
                std::thread::yield_now();
                let again = &mut || space.must_protect(at, len, RW);
                crew.change(start..end, State::full_of(word(n)), again);
            }
            (_, Some(n)) => self.show(start..end, n),
        }
        std::thread::yield_now();
    }
}

fn run(crew: &Shared<Crew>, space: &Space, least: &[(&str, &AtomicU64, u64)], works: &[Work]) {
    std::thread::scope(|scope| {
        let _end = RaiseAtEnd(&crew.stop);
        let mut editor = Editor::new(space, crew);
        scope.spawn(move || repeat(&crew.stop, || editor.edit()));
        for work in works {
            scope.spawn(work);
        }
        run_out(time(), &crew.stop, least);
    });
}

type Work<'a> = Box<dyn Fn() + Sync + 'a>;

fn passes_and_edits() {
    let _delay = slow_zaps(100);
    let (space, crew) = (Space::new(), Crew::new());
    // One that suits page tables, and one that lies across them in both ways.
    let whole = mirror(&space, 0, LEN);
    let (addr, len) = Area::reserve(LEN, HUGE).forget();
    let head = Area::adopt(addr, 3 * PAGE);
    let shifted = Area::adopt(addr + 3 * PAGE, len - 3 * PAGE);
    let shifted = shifted.replace_by_mirror(&space, 0, RW);
    let children = [
        Child::spawn(|| crew.work(&mirror(&space, 0, LEN), 0, 1)),
        Child::spawn(|| crew.work(&mirror(&space, 9 * PAGE, LEN - 9 * PAGE), 9, 2)),
    ];
    let end = RaiseAtEnd(&crew.stop);
    let least = [
        ("loads", &crew.loads, 2000),
        ("stores", &crew.stores, 500),
        ("failed", &crew.failed, 100),
        ("crossed", &crew.crossed, 30),
        ("changes", &crew.changes, 40),
    ];
    let works: [Work; 2] = [
        Box::new(|| crew.work(&whole, 0, 3)),
        Box::new(|| crew.work(&shifted, 0, 4)),
    ];
    run(&crew, &space, &least, &works);
    drop((end, head));
    children.iter().for_each(Child::succeed);
}

/// Memory of this process's page tables, in KB.
fn page_tables() -> u64 {
    counter("/proc/self/status", "VmPTE")
}

/// One life of a mirror in a process that does all that one can do with it.
fn life(crew: &Crew, space: &Space, random: &mut fastrand::Rng) {
    let mut area = mirror(space, 0, LEN);
    // mremap(2) takes one area, and those of mirrors do not merge again.
    let mut whole = true;
    for _ in 0..4 {
        crew.pass(&area, 0, random);
        match random.u8(0..4) {
            0 => {
                // Zapped by the process, as a whole table or in part: a new mirror in its place.
                let at = random.u64(0..LEN / HUGE) * HUGE;
                let len = [HUGE, 3 * PAGE][random.usize(0..2)];
                let flags = MAP_SHARED | MAP_FIXED;
                let again = Area::mmap(area.addr() + at, len, RW, flags, space.as_raw_fd(), at);
                again.expect("mmap").forget();
                whole = false;
            }
            1 if whole => {
                let (to, _) = Area::reserve(LEN, HUGE).forget();
                let (from, len) = area.forget();
                // SAFETY: Our own area, moved over reserved addresses.
                let moved = unsafe {
                    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                    let (from, to) = (from as *mut libc::c_void, to as *mut libc::c_void);
                    libc::mremap(from, len as usize, len as usize, flags, to)
                };
                assert_eq!(moved as u64, to, "mremap");
                area = Area::adopt(to, len);
            }
            2 => {
                let seed = random.u64(..);
                let child = Child::spawn(|| {
                    let mut random = fastrand::Rng::with_seed(seed);
                    crew.pass(&area, 0, &mut random);
                });
                child.succeed();
            }
            _ => {
                let prot = [PROT_READ, RW][random.usize(0..2)];
                area.protect(HUGE, 2 * HUGE, prot).expect("mprotect");
                area.protect(HUGE, 2 * HUGE, RW).expect("mprotect");
                whole = false;
            }
        }
    }
    add(&crew.others, true);
}

fn passes_of_mirrors_that_come_and_go() {
    let _delay = slow_zaps(100);
    let (space, crew) = (Space::new(), Crew::new());
    let lives = |seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        life(&crew, &space, &mut random);
        let before = page_tables();
        repeat(&crew.stop, || life(&crew, &space, &mut random));
        // Each life had five tables at least; some for their own memory may have come meanwhile.
        let after = page_tables();
        assert!(after <= before + 32, "{before} KB, then {after} KB");
    };
    let children = [Child::spawn(|| lives(1)), Child::spawn(|| lives(2))];
    let end = RaiseAtEnd(&crew.stop);
    let least = [
        ("loads", &crew.loads, 1000),
        ("crossed", &crew.crossed, 20),
        ("changes", &crew.changes, 40),
        ("others", &crew.others, 20),
    ];
    run(&crew, &space, &least, &[]);
    drop(end);
    children.iter().for_each(Child::succeed);
    assert_eq!(space.info().mirrors, 0, "mirrors are left");
}
