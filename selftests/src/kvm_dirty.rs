// SPDX-License-Identifier: GPL-2.0

//! The pages that are reported dirty are those that were written by the guest, or by KVM on its
//! behalf, and no others: whichever way they are asked for and whatever they are made of, while
//! they are replaced, unmapped and mapped again.

use std::collections::BTreeSet;

use asfd::sys::KVM_MEM_LOG_DIRTY_PAGES;
use kvm_bindings::{kvm_msr_entry, Msrs};
use libc::MADV_HUGEPAGE;

use crate::note;
use crate::support::dirty::{Page, Tracker, Way};
use crate::support::guest::{window, Args, Exit, OwnMemory, Routine, Vcpu, Vm};
use crate::support::pages::{Size, Source};
use crate::support::smp::{each, Board, Code};
use crate::support::system::scaled;
use crate::support::{Map, Space, HUGE, PAGE};

crate::suite![
    by_log(400),
    by_clearing(400),
    by_clearing_what_is_set_at_first(400),
    by_ring(400),
];

/// The window, in the guest and in the space, and an ordinary slot next to it.
const BASE: u64 = 8 * HUGE;
const AT: u64 = 64 * HUGE;
const LEN: u64 = 2 * HUGE;
const PAGES: u64 = LEN / PAGE;
const WINDOW: u32 = 1;
const PLAIN: u32 = 2;
const PLAIN_PAGES: u64 = 64;
const PLAIN_BASE: u64 = BASE + LEN;
const SLOTS: [(u32, u64); 2] = [(WINDOW, PAGES), (PLAIN, PLAIN_PAGES)];
/// No slot is here.
const NOTHING: u64 = 0x6000_0000;

/// What the window shows.
#[derive(Clone, Copy, Debug)]
enum Kind {
    File(Size),
    PrivateFile,
    Memory,
}

const KINDS: [Kind; 5] = [
    Kind::File(Size::Small),
    Kind::File(Size::Transparent),
    Kind::File(Size::Hugetlb),
    Kind::PrivateFile,
    Kind::Memory,
];

struct Trial {
    vm: Vm,
    vcpu: Vcpu,
    _board: Board,
    plain: OwnMemory,
    tracker: Tracker,
    space: Space,
    kind: Kind,
    source: Source,
    files: [std::fs::File; 2],
    random: fastrand::Rng,
    /// What the next report has to be.
    written: BTreeSet<Page>,
    mapped: Vec<bool>,
    logged: bool,
    reports: u64,
    reported: u64,
}

impl Trial {
    fn new(way: Way, kind: Kind) -> Trial {
        let vm = Vm::new();
        let board = Board::on(&vm);
        let mut tracker = Tracker::new(&vm, way);
        let vcpu = vm.vcpu(0);
        tracker.add(&vcpu);
        let size = match kind {
            Kind::File(size) => size,
            _ => Size::Small,
        };
        let source = Source::new(size, 2 * LEN / HUGE);
        let files = [(); 2].map(|()| source.full(LEN));
        let mut trial = Trial {
            vm,
            vcpu,
            _board: board,
            plain: OwnMemory::at(0x7100_0000, PLAIN_PAGES * PAGE, 0),
            tracker,
            space: Space::new(),
            kind,
            source,
            files,
            random: fastrand::Rng::with_seed(1),
            written: BTreeSet::new(),
            mapped: vec![false; PAGES as usize],
            logged: false,
            reports: 0,
            reported: 0,
        };
        trial.map(0, PAGES);
        let memory = trial.plain.0;
        let len = PLAIN_PAGES * PAGE;
        let plain =
            trial
                .vm
                .set_plain_slot(PLAIN, KVM_MEM_LOG_DIRTY_PAGES, PLAIN_BASE, len, memory);
        plain.expect("an ordinary slot");
        trial.initially(PLAIN, PLAIN_PAGES);
        trial.log(true);
        trial
    }

    fn initially(&mut self, slot: u32, pages: u64) {
        if self.tracker.way == Way::InitiallySet {
            self.written.extend((0..pages).map(|page| (slot, page)));
        }
    }

    /// Switches logging of the window.
    fn log(&mut self, on: bool) {
        let mut shown = window(WINDOW, BASE, LEN, &self.space, AT);
        shown.flags = if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        self.vm.must_map(shown);
        self.logged = on;
        if on {
            self.initially(WINDOW, PAGES);
        }
    }

    /// Maps something at these pages of the window, in place of what is there.
    fn map(&mut self, page: u64, count: u64) {
        let (at, len) = (AT + page * PAGE, count * PAGE);
        let file = &self.files[self.random.usize(0..2)];
        let file = Map::file(file, at, len).offset(page * PAGE).replace();
        self.space.must_map(match self.kind {
            Kind::File(_) => file,
            Kind::PrivateFile => file.private(),
            Kind::Memory => Map::anon(at, len).replace(),
        });
        if let Kind::Memory = self.kind {
            self.space.must_advise(at, len, MADV_HUGEPAGE);
        }
        self.mapped[page as usize..][..count as usize].fill(true);
    }

    fn unmap(&mut self, page: u64, count: u64) {
        let (at, len) = (AT + page * PAGE, count * PAGE);
        self.space.unmap(at, len).expect("unmap");
        self.mapped[page as usize..][..count as usize].fill(false);
    }

    /// A random part of the window that can be mapped and unmapped.
    fn part(&mut self) -> (u64, u64) {
        let unit = self.source.size.unit() / PAGE;
        let first = self.random.u64(0..PAGES / unit);
        let count = self.random.u64(1..=(PAGES / unit - first).min(16));
        (first * unit, count * unit)
    }

    fn is_mapped(&self, page: u64, count: u64) -> bool {
        let pages = &self.mapped[page as usize..];
        pages.len() >= count as usize && pages[..count as usize].iter().all(|there| *there)
    }

    fn wrote(&mut self, slot: u32, page: u64) {
        if self.logged || slot == PLAIN {
            self.written.insert((slot, page));
        }
    }

    /// What there is in a page comes from a hole, by an instruction that KVM emulates.
    fn emulated(&mut self, page: u64) {
        let args = Args {
            esi: NOTHING as u32,
            edi: (BASE + page * PAGE) as u32,
            ecx: 1,
            ..Default::default()
        };
        let exit = self.vcpu.call(Routine::Copy, args);
        assert_eq!(exit, Exit::load_of_hole(NOTHING));
        let exit = self.vcpu.resume();
        assert!(matches!(exit, Exit::Done(_)), "{exit:?}");
        self.wrote(WINDOW, page);
    }

    fn set_msr(&mut self, index: u32, data: u64) {
        let msrs = Msrs::from_entries(&[kvm_msr_entry {
            index,
            data,
            ..Default::default()
        }]);
        let set = self.vcpu.fd.set_msrs(&msrs.expect("one"));
        assert_eq!(set.expect("KVM_SET_MSRS"), 1, "{index:#x}");
    }

    /// KVM itself writes: the time at each entry that asks for it, or once the time of day.
    fn clock(&mut self, page: u64, wall: bool) {
        const WALL_CLOCK: u32 = 0x4b56_4d00;
        const SYSTEM_TIME: u32 = 0x4b56_4d01;
        let gpa = BASE + page * PAGE;
        if wall {
            self.set_msr(WALL_CLOCK, gpa);
        } else {
            self.set_msr(SYSTEM_TIME, gpa + 64 + 1);
            self.store_plain();
            self.set_msr(SYSTEM_TIME, 0);
        }
        self.wrote(WINDOW, page);
    }

    fn store(&mut self, page: u64, offset: u64) {
        let at = BASE + page * PAGE + offset;
        let exit = self.vcpu.store(at, 1);
        if self.is_mapped(page, 1) {
            assert_eq!(exit, Exit::Done(1));
            self.wrote(WINDOW, page);
        } else {
            assert_eq!(exit, Exit::store_to_hole(at, 1));
        }
    }

    fn store_plain(&mut self) {
        let page = self.random.u64(0..PLAIN_PAGES);
        assert_eq!(self.vcpu.store(PLAIN_BASE + page * PAGE, 1), Exit::Done(1));
        self.wrote(PLAIN, page);
    }

    fn act(&mut self) {
        let page = self.random.u64(0..PAGES);
        match self.random.u8(0..24) {
            0..6 => self.store(page, 8),
            6 => self.store_plain(),
            // A word in two pages.
            7 if self.is_mapped(page, 2) => {
                let at = BASE + (page + 1) * PAGE - 2;
                assert_eq!(self.vcpu.store(at, 2), Exit::Done(2));
                self.wrote(WINDOW, page);
                self.wrote(WINDOW, page + 1);
            }
            // Some pages at once.
            8..11 if self.is_mapped(page, 24) => {
                let (at, len) = (BASE + page * PAGE, 24 * PAGE);
                let step = self.random.u64(1..6) * PAGE;
                let exit = each(&mut self.vcpu, Code::Fill, at, len, step, 3);
                assert_eq!(exit, Exit::Done(3));
                (0..24)
                    .step_by((step / PAGE) as usize)
                    .for_each(|n| self.wrote(WINDOW, page + n));
            }
            11 if self.is_mapped(page, 1) => self.emulated(page),
            12 if self.is_mapped(page, 1) => self.clock(page, true),
            13 if self.is_mapped(page, 1) => self.clock(page, false),
            // By others than the guest.
            14 if self.is_mapped(page, 1) => self.space.put(AT + page * PAGE, b"host"),
            15 | 16 => {
                let (page, count) = self.part();
                self.unmap(page, count);
            }
            17..20 => {
                let (page, count) = self.part();
                self.map(page, count);
            }
            20 => {
                self.report();
                self.log(false);
                for _ in 0..4 {
                    let page = self.random.u64(0..PAGES);
                    self.store(page, 16);
                }
                self.log(true);
            }
            _ => self.report(),
        }
        // Rings are not to overflow.
        if self.written.len() > 100 {
            self.report();
        }
    }

    #[track_caller]
    fn report(&mut self) {
        let reported = self.tracker.take(&self.vm, &SLOTS);
        let written = std::mem::take(&mut self.written);
        let lost: Vec<_> = written.difference(&reported).collect();
        let false_: Vec<_> = reported.difference(&written).collect();
        assert!(
            lost.is_empty() && false_.is_empty(),
            "{:?} of {:?}, report {}: not reported {lost:?}, not written {false_:?}",
            self.kind,
            self.tracker.way,
            self.reports
        );
        self.reports += 1;
        self.reported += reported.len() as u64;
    }
}

fn exactly(way: Way) {
    for kind in KINDS {
        let mut trial = Trial::new(way, kind);
        for _ in 0..scaled(300) {
            trial.act();
        }
        trial.report();
        note!(
            "{kind:?}: {} reports, {} pages",
            trial.reports,
            trial.reported
        );
        assert!(trial.reported > 50);
    }
}

fn by_log() {
    exactly(Way::Log);
}

fn by_clearing() {
    exactly(Way::Clear);
}

fn by_clearing_what_is_set_at_first() {
    exactly(Way::InitiallySet);
}

fn by_ring() {
    exactly(Way::Ring);
}
