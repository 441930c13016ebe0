// SPDX-License-Identifier: GPL-2.0

//! Several windows on one space, the same part of it more than once, several spaces in one VM, one
//! space in several VMs, windows by views, ordinary slots between them: at random, against a model
//! that says what each access of each guest gets.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use asfd::sys::{KVM_MEM_HOLE_EXIT, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use libc::{PROT_NONE, PROT_READ, PROT_WRITE};

use crate::note;
use crate::support::files;
use crate::support::guest::{window, Exit, OwnMemory, Vcpu, Vm};
use crate::support::rights::View;
use crate::support::smp::Board;
use crate::support::system::scaled;
use crate::support::{Errno, Map, Space, HUGE, PAGE};

crate::suite![
    composed_at_random(600),
    windows_over_all_of_memory,
    parts_in_another_order
];

const RW: i32 = PROT_READ | PROT_WRITE;
const SPACES: usize = 3;
const VMS: usize = 2;
/// Pages of each space, of each guest's memory, and of each file.
const PAGES: u64 = 24;
const AT: u64 = 1 << 33;
const BASE: u64 = 8 * HUGE;
const WORD: u64 = 24;
const PLAIN_MEMORY: u64 = 0x7200_0000;

/// A page of a space: of which file, and what is allowed.
#[derive(Clone, Copy)]
struct Backing {
    file: usize,
    page: u64,
    prot: i32,
}

#[derive(Clone, Copy, Debug)]
enum Shown {
    /// A page of a space.
    Space(usize, u64),
    /// A page of the ordinary memory.
    Plain(u64),
}

#[derive(Clone, Debug)]
struct Slot {
    gpa_page: u64,
    shown: Shown,
    pages: u64,
    flags: u32,
    /// A window by a view that begins at this page of the space.
    view: Option<u64>,
}

struct Machine {
    vm: Vm,
    vcpu: Vcpu,
    slots: Vec<Option<Slot>>,
}

struct World {
    spaces: Vec<(Space, Vec<Option<Backing>>)>,
    machines: Vec<Machine>,
    files: Vec<File>,
    _boards: Board,
    plain: OwnMemory,
    /// What the words are that are not 0.
    words: HashMap<(usize, u64), u32>,
    random: fastrand::Rng,
    met: [u64; 5],
}

/// The ordinary memory, as one of the files.
const PLAIN_FILE: usize = usize::MAX;

impl World {
    fn new() -> World {
        let board = Board::unplugged();
        let machines = (0..VMS).map(|_| {
            let vm = Vm::new();
            board.plug(&vm);
            let vcpu = vm.vcpu(0);
            let slots = vec![None; 8];
            Machine { vm, vcpu, slots }
        });
        let machines = machines.collect();
        World {
            spaces: (0..SPACES)
                .map(|_| (Space::new(), vec![None; PAGES as usize]))
                .collect(),
            machines,
            files: (0..3).map(|_| files::memfd(PAGES * PAGE)).collect(),
            _boards: board,
            plain: OwnMemory::at(PLAIN_MEMORY, PAGES * PAGE, 0),
            words: HashMap::new(),
            random: fastrand::Rng::with_seed(5),
            met: [0; 5],
        }
    }

    fn some_pages(&mut self) -> (u64, u64) {
        let first = self.random.u64(0..PAGES);
        (first, self.random.u64(1..=(PAGES - first).min(8)))
    }

    fn edit(&mut self) {
        let which = self.random.usize(0..SPACES);
        let (first, count) = self.some_pages();
        let (at, len) = (AT + first * PAGE, count * PAGE);
        let prot = [RW, RW, PROT_READ, PROT_NONE][self.random.usize(0..4)];
        let (file, offset) = (
            self.random.usize(0..self.files.len()),
            self.random.u64(0..=PAGES - count),
        );
        let choice = self.random.u8(0..8);
        let (space, pages) = &mut self.spaces[which];
        let pages = &mut pages[first as usize..][..count as usize];
        match choice {
            0 | 1 => {
                space.unmap(at, len).expect("unmap");
                pages.fill(None);
            }
            2 | 3 => {
                let answer = space.protect(at, len, prot);
                if pages.iter().any(|page| page.is_none()) {
                    assert_eq!(answer, Err(Errno::ENOMEM));
                } else {
                    assert_eq!(answer, Ok(()));
                    pages.iter_mut().flatten().for_each(|page| page.prot = prot);
                }
            }
            _ => {
                let map = Map::file(&self.files[file], at, len).offset(offset * PAGE);
                space.must_map(map.prot(prot).replace());
                for (page, n) in pages.iter_mut().zip(offset..) {
                    *page = Some(Backing {
                        file,
                        page: n,
                        prot,
                    });
                }
            }
        }
    }

    /// Makes a slot, or deletes one, or changes its flags.
    fn change_slots(&mut self) {
        let which = self.random.usize(0..VMS);
        let (space, id) = (self.random.usize(0..SPACES), self.random.usize(0..8));
        let (gpa_page, pages) = self.some_pages();
        let from = self.random.u64(0..=PAGES - pages);
        let view = self.random.bool().then(|| self.random.u64(0..=from));
        let prot = if self.random.bool() { RW } else { PROT_READ };
        let hole_exit = self.random.bool();
        let plain = self.random.u8(0..4) == 0;
        let machine = &mut self.machines[which];
        let number = id as u32 + 1;
        let gpa = BASE + gpa_page * PAGE;
        if let Some(mut slot) = machine.slots[id].take() {
            if self.random.bool() {
                machine.vm.unmap_slot(number).expect("delete");
                return;
            }
            slot.flags ^= KVM_MEM_LOG_DIRTY_PAGES;
            self.call(which, number, &slot).expect("other flags");
            self.machines[which].slots[id] = Some(slot);
            return;
        }
        let mut slot = Slot {
            gpa_page,
            shown: Shown::Space(space, from),
            pages,
            flags: if hole_exit { KVM_MEM_HOLE_EXIT } else { 0 },
            view,
        };
        if plain {
            (slot.shown, slot.flags) = (Shown::Plain(from), 0);
        }
        // A view may allow less than the mappings.
        if prot == PROT_READ {
            slot.flags |= KVM_MEM_READONLY;
        }
        let overlaps = machine.slots.iter().flatten().any(|other| {
            other.gpa_page < gpa_page + pages && gpa_page < other.gpa_page + other.pages
        });
        let answer = self.call(which, number, &slot);
        if overlaps {
            assert_eq!(answer, Err(Errno::EEXIST), "{gpa:#x}");
        } else {
            assert_eq!(answer, Ok(()), "{slot:x?}");
            self.machines[which].slots[id] = Some(slot);
        }
    }

    fn call(&self, machine: usize, number: u32, slot: &Slot) -> Result<(), Errno> {
        let vm = &self.machines[machine].vm;
        let (gpa, len) = (BASE + slot.gpa_page * PAGE, slot.pages * PAGE);
        let (space, page) = match slot.shown {
            Shown::Plain(page) => {
                let memory = self.plain.0 + page * PAGE;
                return vm.set_plain_slot(number, slot.flags, gpa, len, memory);
            }
            Shown::Space(space, page) => (&self.spaces[space].0, page),
        };
        let (view, offset) = match slot.view {
            None => (space.dup(), AT + page * PAGE),
            Some(start) => {
                let prot = match slot.flags & KVM_MEM_READONLY {
                    0 => RW,
                    _ => PROT_READ,
                };
                let view = View::of(AT + start * PAGE, (PAGES - start) * PAGE);
                (space.must_view(view.prot(prot)), (page - start) * PAGE)
            }
        };
        let mut shown = window(number, gpa, len, &view, offset);
        shown.flags = slot.flags;
        // The view itself is closed at once: the window is one on the space.
        vm.map(shown)
    }

    /// One access by one guest.
    fn access(&mut self) {
        let which = self.random.usize(0..VMS);
        let (page, store) = (self.random.u64(0..PAGES), self.random.bool());
        let value = self.random.u32(1..);
        let at = BASE + page * PAGE + WORD;
        let machine = &mut self.machines[which];
        let exit = if store {
            machine.vcpu.store(at, value)
        } else {
            machine.vcpu.load(at)
        };
        let mmio = if store {
            Exit::store_to_hole(at, value)
        } else {
            Exit::load_of_hole(at)
        };
        let inside = |slot: &&Slot| (slot.gpa_page..slot.gpa_page + slot.pages).contains(&page);
        let slot = machine.slots.iter().flatten().find(inside);
        let Some(slot) = slot else {
            assert_eq!(exit, mmio, "no slot at {at:#x}");
            self.met[0] += 1;
            return;
        };
        let says = format!("{slot:x?} at {at:#x}, VM {which}");
        let place = page - slot.gpa_page;
        let readonly = slot.flags & KVM_MEM_READONLY != 0;
        let backing = match slot.shown {
            Shown::Plain(first) => Some(Backing {
                file: PLAIN_FILE,
                page: first + place,
                prot: RW,
            }),
            Shown::Space(space, first) => self.spaces[space].1[(first + place) as usize],
        };
        match backing {
            _ if store && readonly => {
                assert_eq!(exit, mmio, "{says}: read-only");
                self.met[1] += 1;
            }
            None if slot.flags & KVM_MEM_HOLE_EXIT != 0 => {
                assert!(exit.is_fault_at(at - WORD), "{says}: a hole: {exit:?}");
                self.met[2] += 1;
            }
            None => assert_eq!(exit, mmio, "{says}: a hole"),
            Some(Backing {
                prot: PROT_NONE, ..
            }) => {
                assert!(exit.is_fault_at(at - WORD), "{says}: PROT_NONE: {exit:?}");
                self.met[3] += 1;
            }
            Some(Backing { prot, .. }) if store && prot == PROT_READ => {
                assert_eq!(exit, mmio, "{says}: PROT_READ");
            }
            Some(Backing { file, page, .. }) => {
                if store {
                    self.words.insert((file, page), value);
                }
                let word = self.words.get(&(file, page)).copied().unwrap_or(0);
                assert_eq!(exit, Exit::Done(word), "{says}");
                self.met[4] += 1;
            }
        }
    }

    /// That all memory is as the model says.
    fn check(&self) {
        for (number, file) in self.files.iter().enumerate() {
            for page in 0..PAGES {
                let mut word = [0; 4];
                file.read_exact_at(&mut word, page * PAGE + WORD)
                    .expect("read");
                let expected = self.words.get(&(number, page)).copied().unwrap_or(0);
                assert_eq!(u32::from_le_bytes(word), expected, "{number}, {page}");
            }
        }
        for (number, (space, _)) in self.spaces.iter().enumerate() {
            let slots = self.machines.iter().flat_map(|m| m.slots.iter().flatten());
            let shown = |slot: &&Slot| matches!(slot.shown, Shown::Space(n, _) if n == number);
            let windows = slots.filter(shown).count();
            assert_eq!(space.info().windows, windows as u64, "space {number}");
        }
    }
}

fn composed_at_random() {
    let mut world = World::new();
    for _ in 0..scaled(6000) {
        match world.random.u8(0..16) {
            0 | 1 => world.edit(),
            2 => world.change_slots(),
            _ => world.access(),
        }
    }
    world.check();
    let [none, readonly, holes, forbidden, done] = world.met;
    note!("{none} outside of slots, {readonly} read-only, {holes} hole exits, {forbidden} forbidden, {done} done");
    assert!(world.met.iter().all(|count| *count > 20));
}

/// Each page of a range is a window of its own, and they show the space backwards.
fn parts_in_another_order() {
    const COUNT: u64 = 200;
    let (vm, space) = (Vm::new(), Space::new());
    let _board = Board::on(&vm);
    space.must_map(Map::anon(AT, COUNT * PAGE));
    let mut vcpu = vm.vcpu(0);
    for n in 0..COUNT {
        let offset = AT + (COUNT - 1 - n) * PAGE;
        vm.must_map(window(n as u32 + 1, BASE + n * PAGE, PAGE, &space, offset));
        space.put(offset, &(n as u32 + 7).to_le_bytes());
    }
    assert_eq!(space.info().windows, COUNT);
    for n in 0..COUNT {
        assert_eq!(vcpu.load(BASE + n * PAGE), Exit::Done(n as u32 + 7));
    }
    // One page of the space goes, in the middle of what the guest sees as one range.
    space.unmap(AT + 50 * PAGE, PAGE).expect("unmap");
    for n in 0..COUNT {
        let at = BASE + n * PAGE;
        let expected = match COUNT - 1 - n {
            50 => Exit::load_of_hole(at),
            _ => Exit::Done(n as u32 + 7),
        };
        assert_eq!(vcpu.load(at), expected, "page {n}");
    }
}

/// The windows of two spaces take turns in all of what 32-bit code reaches, behind the code.
fn windows_over_all_of_memory() {
    const PART: u64 = 128 << 20;
    let (vm, spaces) = (Vm::new(), [Space::new(), Space::new()]);
    let _board = Board::on(&vm);
    let mut vcpu = vm.vcpu(0);
    // The code takes the first part, and its page tables do not map the ones at 2 GiB.
    let parts = (1..16).chain(24..31);
    for part in parts.clone() {
        let (at, space) = (part * PART, &spaces[part as usize % 2]);
        space.must_map(Map::anon(at, PART));
        vm.must_map(window(part as u32, at, PART, space, at));
    }
    for part in parts.clone() {
        for at in [part * PART, (part + 1) * PART - PAGE] {
            assert_eq!(vcpu.store(at, at as u32), Exit::Done(at as u32));
        }
    }
    for part in parts {
        let (at, space) = (part * PART, &spaces[part as usize % 2]);
        assert_eq!(space.get(at, 4), (at as u32).to_le_bytes());
        assert_eq!(space.info().resident_bytes % PAGE, 0);
        let other = &spaces[(part as usize + 1) % 2];
        assert_eq!(other.read_at(at, &mut [0]), Err(Errno::EIO));
    }
}
