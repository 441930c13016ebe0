// SPDX-License-Identifier: GPL-2.0

//! Memory is copied away while vCPUs write it, as live migration does: all of it once, then what
//! is reported dirty. With the guest at rest and the last report copied, copy and memory are the
//! same: no page is lost, while logging goes on and off and pages are replaced.

use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use asfd::sys::KVM_MEM_LOG_DIRTY_PAGES;

use crate::support::dirty::{Tracker, Way};
use crate::support::guest::{window, Vm};
use crate::support::meeting::{add, repeat, run_out};
use crate::support::pages::{Size, Source};
use crate::support::smp::{Board, Code, Job, Smp};
use crate::support::system::scaled;
use crate::support::{Map, Space, HUGE, PAGE};

crate::suite![
    migrated_by_log(600),
    migrated_by_clearing(600),
    migrated_by_clearing_what_is_set_at_first(600),
    migrated_by_ring(600),
];

const BASE: u64 = 8 * HUGE;
const AT: u64 = 64 * HUGE;
const LEN: u64 = 2 * HUGE;
const SLOT: (u32, u64) = (1, LEN / PAGE);
const VCPUS: u64 = 2;

struct Migration<'a> {
    vm: &'a Vm,
    tracker: Tracker,
    space: Space,
    source: Source,
    smp: &'a Smp,
    copy: Vec<u8>,
    random: fastrand::Rng,
    sessions: &'a AtomicU64,
    dirty: &'a AtomicU64,
    replaced: &'a AtomicU64,
}

impl Migration<'_> {
    fn log(&self, on: bool) {
        let mut shown = window(SLOT.0, BASE, LEN, &self.space, AT);
        shown.flags = if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        self.vm.must_map(shown);
    }

    fn fetch(&mut self, at: u64, len: u64) {
        let bytes = &mut self.copy[at as usize..][..len as usize];
        assert_eq!(self.space.read_at(AT + at, bytes), Ok(len as usize));
    }

    fn round(&mut self) {
        for (slot, page) in self.tracker.take(self.vm, &[SLOT]) {
            if slot == SLOT.0 {
                self.fetch(page * PAGE, PAGE);
                add(self.dirty, true);
            }
        }
    }

    /// Another file for some pages. That the VMM knows: it copies them.
    fn replace(&mut self) {
        let unit = self.source.size.unit();
        let first = self.random.u64(0..LEN / unit);
        let count = self.random.u64(1..=(LEN / unit - first).min(8));
        let (at, len) = (first * unit, count * unit);
        let file = self.source.full(len);
        if unit == PAGE {
            file.write_all_at(&vec![0xee; len as usize], 0)
                .expect("write");
        }
        self.space
            .must_map(Map::file(&file, AT + at, len).replace());
        self.fetch(at, len);
        add(self.replaced, true);
    }

    fn session(&mut self) {
        self.log(true);
        self.fetch(0, LEN);
        for _ in 0..self.random.u64(1..4) {
            std::thread::sleep(Duration::from_micros(self.random.u64(0..5000)));
            self.round();
            if self.random.bool() {
                self.replace();
            }
        }
        let smp = self.smp;
        smp.paused(VCPUS, || {
            // Rings hold less than all pages: a vCPU may be waiting for this.
            self.round();
            for page in 0..LEN / PAGE {
                let now = self.space.get(AT + page * PAGE, PAGE);
                let copy = &self.copy[(page * PAGE) as usize..][..PAGE as usize];
                assert!(
                    now == copy,
                    "page {page} was lost ({:?}, {:?}): {:x?} is {:x?}",
                    self.tracker.way,
                    self.source.size,
                    &copy[..68],
                    &now[..68]
                );
            }
        });
        // Without logging, as long as the vCPUs need to have everything writable again.
        self.log(false);
        std::thread::sleep(Duration::from_micros(self.random.u64(0..5000)));
        add(self.sessions, true);
    }
}

fn migrate(way: Way, size: Size) {
    let (vm, smp) = (Vm::new(), Smp::default());
    let _board = Board::on(&vm);
    let mut tracker = Tracker::new(&vm, way);
    let vcpus: Vec<_> = (0..VCPUS).map(|id| vm.vcpu(id)).collect();
    vcpus.iter().for_each(|vcpu| tracker.add(vcpu));
    let source = Source::new(size, 2 * LEN / HUGE);
    let space = Space::new();
    space.must_map(Map::file(&source.full(LEN), AT, LEN));
    let [sessions, dirty, replaced] = [const { AtomicU64::new(0) }; 3];
    let mut migration = Migration {
        vm: &vm,
        tracker,
        space,
        source,
        smp: &smp,
        copy: vec![0; LEN as usize],
        random: fastrand::Rng::with_seed(7),
        sessions: &sessions,
        dirty: &dirty,
        replaced: &replaced,
    };
    migration.log(false);
    std::thread::scope(|scope| {
        for (vcpu, id) in vcpus.into_iter().zip(0..) {
            let smp = &smp;
            let job = Job {
                code: Code::Scribble,
                vcpu: id,
                at: BASE,
                len: LEN,
            };
            scope.spawn(move || smp.run(vcpu, &job));
        }
        scope.spawn(|| repeat(&smp.stop, || migration.session()));
        let least = [
            ("sessions", &sessions, 5),
            ("dirty pages", &dirty, 500),
            ("replaced", &replaced, 3),
            (
                "full rings",
                &smp.full,
                if way == Way::Ring { 5 } else { 0 },
            ),
        ];
        run_out(Duration::from_millis(scaled(1500)), &smp.stop, &least);
    });
}

fn by(way: Way) {
    Size::ALL.into_iter().for_each(|size| migrate(way, size));
}

fn migrated_by_log() {
    by(Way::Log);
}

fn migrated_by_clearing() {
    by(Way::Clear);
}

fn migrated_by_clearing_what_is_set_at_first() {
    by(Way::InitiallySet);
}

fn migrated_by_ring() {
    by(Way::Ring);
}
