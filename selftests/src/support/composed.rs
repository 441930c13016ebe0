// SPDX-License-Identifier: GPL-2.0

//! A space that is composed at random, the mirrors of it, and a model of what each of its pages is.

use std::fs::File;
use std::os::unix::fs::FileExt;

use libc::{PROT_NONE, PROT_READ, PROT_WRITE};

use super::files::{self, drop_caches};
use super::mirror::{mirror, mirror_with, Area};
use super::probe::Fault;
use super::rights::{View, RW};
use super::{Errno, Map, Space, HUGE, PAGE};

/// Four page tables.
pub const PAGES: u64 = 4 * HUGE / PAGE;
pub const LEN: u64 = PAGES * PAGE;
/// Pages of a file.
const FILE: u64 = 700;
pub const TABLE: u64 = HUGE / PAGE;

/// A page of the space.
#[derive(Clone, Copy)]
struct Cell {
    prot: i32,
    /// Can it be made writable?
    ceiling: i32,
    /// Which number it has; `None` past the end of a file.
    slot: Option<usize>,
}

/// A file that is mapped shared. Page `n` has the number `first + n`, but for holes, and what was
/// stored.
struct Backing {
    file: File,
    /// Through which it is mapped.
    mapped: File,
    writable: bool,
    /// Of `Model::slots`.
    first: usize,
    pages: u64,
    unit: u64,
}

pub struct Model {
    pub space: Space,
    cells: Vec<Option<Cell>>,
    slots: Vec<u64>,
    files: Vec<Backing>,
    /// Mapped privately: what is stored does not get there.
    template: File,
    pub random: fastrand::Rng,
    /// Edits may be refused.
    pub has_huge: bool,
    stored: u64,
}

fn number(file: usize, page: u64) -> u64 {
    (file as u64 + 1) * (1 << 32) + page + 1
}

impl Model {
    pub fn new(seed: u64, make: impl Fn(u64) -> (File, File)) -> Model {
        let mut model = Model {
            space: Space::new(),
            cells: vec![None; PAGES as usize],
            slots: Vec::new(),
            files: Vec::new(),
            template: files::memfd(FILE * PAGE),
            random: fastrand::Rng::with_seed(seed),
            has_huge: false,
            stored: 0,
        };
        // Two ordinary ones, one with holes and one that ends early; and one opened for reading.
        for (n, pages) in [FILE, FILE, FILE, FILE / 3].into_iter().enumerate() {
            let (file, reader) = make(pages * PAGE);
            let mapped = if n == 1 {
                reader
            } else {
                file.try_clone().expect("dup")
            };
            model.add(file, mapped, n != 1, PAGE, |page| n != 2 || page % 7 < 4);
        }
        for page in 0..FILE {
            let word = number(99, page).to_le_bytes();
            let done = model.template.write_all_at(&word, page * PAGE);
            done.expect("write");
        }
        model
    }

    pub fn add(
        &mut self,
        file: File,
        mapped: File,
        writable: bool,
        unit: u64,
        there: impl Fn(u64) -> bool,
    ) {
        let (n, first) = (self.files.len(), self.slots.len());
        let pages = file.metadata().expect("fstat").len() / PAGE;
        let plain = Area::of_file(&file, pages * PAGE, RW);
        for page in 0..pages {
            let word = if there(page) { number(n, page) } else { 0 };
            if there(page) {
                plain.store_word(page * PAGE, word).expect("a store");
            }
            self.slots.push(word);
        }
        self.files.push(Backing {
            file,
            mapped,
            writable,
            first,
            pages,
            unit,
        });
    }

    /// Some pages: any, whole page tables, or what begins or ends with one.
    fn range(&mut self, unit: u64) -> (u64, u64) {
        let random = &mut self.random;
        let tables = |random: &mut fastrand::Rng| {
            let start = random.u64(0..PAGES / TABLE);
            (start * TABLE, random.u64(1..=PAGES / TABLE - start) * TABLE)
        };
        if unit > PAGE {
            return tables(random);
        }
        match random.u8(0..8) {
            0 | 1 => tables(random),
            2 => {
                let (start, len) = tables(random);
                (start, len - random.u64(0..TABLE))
            }
            3 => {
                let start = random.u64(0..TABLE);
                (start, PAGES - start)
            }
            _ => {
                let len = random.u64(1..=600);
                (random.u64(0..=PAGES - len), len)
            }
        }
    }

    fn set(&mut self, start: u64, cells: Vec<Option<Cell>>) {
        let start = start as usize;
        self.cells[start..start + cells.len()].copy_from_slice(&cells);
    }

    /// Whether an edit was made. Only where hugetlb is mapped may it be refused.
    fn done<T: std::fmt::Debug>(&self, result: super::Result<T>, expected: bool) -> bool {
        match result {
            Ok(_) => assert!(expected, "it has to be refused"),
            Err(Errno::EINVAL) if self.has_huge => {}
            Err(e) => assert!(!expected, "{e}"),
        }
        result.is_ok()
    }

    pub fn edit(&mut self) {
        let prot = [RW, RW, RW, PROT_READ, PROT_NONE][self.random.usize(0..5)];
        match self.random.u8(0..10) {
            0 | 1 => {
                let (start, len) = self.range(PAGE);
                let result = self.space.unmap(start * PAGE, len * PAGE);
                if self.done(result, true) {
                    self.set(start, vec![None; len as usize]);
                }
            }
            2 | 3 => {
                let (start, len) = self.range(PAGE);
                let here = start as usize..(start + len) as usize;
                let can = |cell: &Option<Cell>| cell.is_some_and(|c| prot & !c.ceiling == 0);
                let expected = self.cells[here.clone()].iter().all(can);
                let result = self.space.protect(start * PAGE, len * PAGE, prot);
                if self.done(result, expected) {
                    self.cells[here]
                        .iter_mut()
                        .flatten()
                        .for_each(|c| c.prot = prot);
                }
            }
            4 => self.map_private(prot),
            5 => self.map_anonymous(prot),
            _ => self.map_file(prot),
        }
    }

    fn map_file(&mut self, prot: i32) {
        let n = self.random.usize(0..self.files.len());
        let (start, len) = self.range(self.files[n].unit);
        let file = &self.files[n];
        let skip = match file.unit {
            PAGE => self.random.u64(0..FILE / 2),
            _ => 0,
        };
        let ceiling = if file.writable { RW } else { PROT_READ };
        let prot = prot & ceiling;
        let map = Map::file(&file.mapped, start * PAGE, len * PAGE).offset(skip * PAGE);
        let result = self.space.map(map.prot(prot).replace());
        if !self.done(result, true) {
            return;
        }
        let (first, pages) = (file.first, file.pages);
        let cell = |page: u64| Cell {
            prot,
            ceiling,
            slot: (page < pages).then_some(first + page as usize),
        };
        let cells = (skip..skip + len).map(|page| Some(cell(page))).collect();
        self.set(start, cells);
    }

    fn map_private(&mut self, prot: i32) {
        let (start, len) = self.range(PAGE);
        let map = Map::file(&self.template, start * PAGE, len * PAGE).private();
        let result = self.space.map(map.prot(prot).replace());
        if self.done(result, true) {
            let numbers = (0..len).map(|page| (page < FILE).then(|| number(99, page)));
            self.own(start, prot, numbers.collect());
        }
    }

    fn map_anonymous(&mut self, prot: i32) {
        let (start, len) = self.range(PAGE);
        let map = Map::anon(start * PAGE, len * PAGE).prot(prot).replace();
        let map = if self.random.bool() {
            map.shared()
        } else {
            map
        };
        let result = self.space.map(map);
        if self.done(result, true) {
            self.own(start, prot, vec![Some(0); len as usize]);
        }
    }

    /// Pages that nothing else shows.
    fn own(&mut self, start: u64, prot: i32, numbers: Vec<Option<u64>>) {
        let slots = &mut self.slots;
        let cell = |number: Option<u64>| Cell {
            prot,
            ceiling: RW,
            slot: number.map(|number| {
                slots.push(number);
                slots.len() - 1
            }),
        };
        let cells = numbers.into_iter().map(cell).map(Some).collect();
        self.set(start, cells);
    }

    /// One access through a mirror whose start shows page `first`.
    fn access(&mut self, eye: &Eye, page: u64, store: bool, case: &str) {
        let at = (page - eye.first) * PAGE;
        let cell = self.cells[page as usize];
        let prot = cell.map_or(RW, |c| c.prot) & eye.prot;
        let needed = if store { PROT_WRITE } else { PROT_READ };
        let case = || format!("page {page} of the space at {at:#x}, store: {store}, {case}");
        let refused = match cell {
            // What the mirror itself does not permit is refused first.
            _ if eye.prot & needed == 0 => Some(Fault::denied(at)),
            None => Some(Fault::hole(at)),
            _ if prot & needed == 0 => Some(Fault::denied(at)),
            Some(Cell { slot: None, .. }) => Some(Fault::hole(at)),
            _ => None,
        };
        let slot = cell.and_then(|c| c.slot);
        match (refused, slot) {
            (None, Some(slot)) if store => {
                self.stored += 1;
                let word = 0xfeed << 48 | self.stored;
                assert_eq!(eye.area.store_word(at, word), Ok(()), "{}", case());
                self.slots[slot] = word;
            }
            (None, slot) => {
                let word = self.slots[slot.expect("a page")];
                assert_eq!(eye.area.load_word(at), Ok(word), "{}", case());
            }
            (Some(fault), _) if store => {
                assert_eq!(eye.area.store_word(at, 1), Err(fault), "{}", case());
            }
            (Some(fault), _) => assert_eq!(eye.area.load_word(at), Err(fault), "{}", case()),
        }
    }

    pub fn pass(&mut self, eye: &Eye, case: &str) {
        let end = (eye.first + eye.area.len() / PAGE).min(PAGES);
        let start = match self.random.bool() {
            true => eye.first,
            false => self.random.u64(eye.first..end),
        };
        let step = [1, 1, 1, 3, 16][self.random.usize(0..5)];
        let mut pages: Vec<u64> = (start..end).step_by(step).collect();
        match self.random.u8(0..6) {
            0 => pages.reverse(),
            1 => self.random.shuffle(&mut pages),
            _ => {}
        }
        let stores = [0, 0, 4, 1][self.random.usize(0..4)];
        let case = format!("{case}, from {start} by {step}");
        for page in pages {
            let store = stores > 0 && self.random.u64(0..stores) == 0;
            self.access(eye, page, store, &case);
        }
    }

    /// The files are as the model says, on the disk as well.
    pub fn check_files(&self, case: &str) {
        for (n, file) in self.files.iter().enumerate() {
            let plain = Area::of_file(&file.file, file.pages * PAGE, PROT_READ);
            for page in 0..file.pages {
                let expected = self.slots[file.first + page as usize];
                let found = plain.load_word(page * PAGE);
                assert_eq!(found, Ok(expected), "{case}: page {page} of file {n}");
            }
        }
        let plain = Area::of_file(&self.template, FILE * PAGE, PROT_READ);
        for page in 0..FILE {
            let found = plain.load_word(page * PAGE);
            assert_eq!(
                found,
                Ok(number(99, page)),
                "{case}: page {page} of the template"
            );
        }
    }

    pub fn clean(&self) {
        for file in &self.files {
            file.file.sync_all().expect("fsync");
        }
        drop_caches();
    }
}

pub struct Eye {
    area: Area,
    /// The page of the space that it begins with.
    first: u64,
    prot: i32,
}

impl Eye {
    /// A mirror at an address `shift` pages after one that suits.
    fn shifted(space: &Space, first: u64, shift: u64) -> Eye {
        let (addr, len) = Area::reserve(LEN + HUGE, HUGE).forget();
        drop(Area::adopt(addr, shift * PAGE));
        let rest = LEN - first * PAGE;
        let end = addr + shift * PAGE + rest;
        drop(Area::adopt(end, addr + len - end));
        let area = Area::adopt(addr + shift * PAGE, rest);
        let area = area.replace_by_mirror(space, first * PAGE, RW);
        let prot = RW;
        Eye { area, first, prot }
    }

    fn by_view(space: &Space, first: u64, prot: i32) -> Eye {
        let len = LEN - first * PAGE;
        let view = space.must_view(View::of(first * PAGE, len).prot(prot));
        let area = mirror_with(&view, 0, len, prot);
        Eye { area, first, prot }
    }

    pub fn all(space: &Space) -> Vec<Eye> {
        let whole = Eye {
            area: mirror(space, 0, LEN),
            first: 0,
            prot: RW,
        };
        vec![
            whole,
            Eye::shifted(space, 0, 1),
            Eye::shifted(space, 333, 7),
            Eye::by_view(space, 100, RW),
            Eye::by_view(space, 511, PROT_READ),
        ]
    }
}
