// SPDX-License-Identifier: GPL-2.0

//! KVM writes the clock of each vCPU to a page of the guest, which it keeps at hand. The page is
//! replaced and unmapped under running vCPUs: when that has returned, KVM does not write the old
//! page any more, and soon it writes the new one.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_msr_entry, Msrs};
use libc::{PROT_READ, PROT_WRITE};

use crate::support::guest::{window, Vm};
use crate::support::meeting::{add, repeat, run_out};
use crate::support::mirror::Area;
use crate::support::pages::{Size, Source};
use crate::support::smp::{Board, Code, Job, Smp, LINE};
use crate::support::system::scaled;
use crate::support::{Map, Space, HUGE, PAGE};

crate::suite![clock_page_is_replaced(300)];

const BASE: u64 = 8 * HUGE;
const AT: u64 = 64 * HUGE;
const LEN: u64 = HUGE;
/// The page of the clocks; what the vCPUs write elsewhere is in the first pages.
const CLOCK: u64 = 300 * PAGE;
const VCPUS: u64 = 2;

/// The clocks as KVM has written them: each begins with its version.
fn clocks(area: &Area) -> Vec<u8> {
    area.get(CLOCK, VCPUS * LINE)
}

fn all_written(area: &Area) -> bool {
    let written = |vcpu| area.load_word(CLOCK + LINE * vcpu).expect("the page") as u32 != 0;
    (0..VCPUS).all(written)
}

fn replaced(size: Size) {
    let (vm, space, smp) = (Vm::new(), Space::new(), Smp::default());
    let board = Board::on(&vm);
    let source = Source::new(size, 8);
    vm.must_map(window(1, BASE, LEN, &space, AT));
    let new = || {
        let file = source.full(LEN);
        let area = Area::of_file(&file, LEN, PROT_READ | PROT_WRITE);
        (file, area)
    };
    let first = new();
    space.must_map(Map::file(&first.0, AT, LEN));
    let vcpus: Vec<_> = (0..VCPUS).map(|id| vm.vcpu(id)).collect();
    for (vcpu, id) in vcpus.iter().zip(0..) {
        let msrs = Msrs::from_entries(&[kvm_msr_entry {
            index: 0x4b56_4d01,
            data: BASE + CLOCK + LINE * id + 1,
            ..Default::default()
        }]);
        let set = vcpu.fd.set_msrs(&msrs.expect("one"));
        assert_eq!(set.expect("KVM_SET_MSRS"), 1);
    }
    let [updates, rounds, seen] = [const { AtomicU64::new(0) }; 3];
    let mut current = first;
    // Pages that were taken away, and what was in them then.
    let mut gone: VecDeque<((std::fs::File, Area), Vec<u8>)> = VecDeque::new();
    let round = || {
        let next = new();
        if fastrand::bool() {
            space.unmap(AT, LEN).expect("unmap");
            let then = clocks(&current.1);
            std::thread::sleep(Duration::from_micros(fastrand::u64(0..1000)));
            assert_eq!(clocks(&current.1), then, "{size:?}: a clock in a hole");
        }
        space.must_map(Map::file(&next.0, AT, LEN).replace());
        let then = clocks(&current.1);
        gone.push_back((std::mem::replace(&mut current, next), then));
        if gone.len() > 2 {
            let ((_, area), then) = gone.pop_front().expect("some");
            assert_eq!(clocks(&area), then, "{size:?}: written after it was taken");
        }
        let started = Instant::now();
        while !all_written(&current.1) && started.elapsed() < Duration::from_secs(10) {
            if smp.stop.load(std::sync::atomic::Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        assert!(
            all_written(&current.1),
            "{size:?}: no clock in the new page"
        );
        add(&seen, true);
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..1000)));
        add(&rounds, true);
    };
    std::thread::scope(|scope| {
        for (vcpu, id) in vcpus.into_iter().zip(0..) {
            let (smp, job) = (
                &smp,
                Job {
                    code: Code::Witness,
                    vcpu: id,
                    at: BASE,
                    len: 4 * PAGE,
                },
            );
            scope.spawn(move || smp.run(vcpu, &job));
        }
        // Each has every vCPU write its clock before it goes on.
        scope.spawn(|| {
            repeat(&smp.stop, || {
                vm.fd.set_clock(&Default::default()).expect("KVM_SET_CLOCK");
                add(&updates, true);
                std::thread::sleep(Duration::from_micros(fastrand::u64(0..200)));
            });
        });
        scope.spawn(|| repeat(&smp.stop, round));
        let least = [
            ("updates", &updates, 100),
            ("rounds", &rounds, 20),
            ("seen", &seen, 20),
        ];
        run_out(Duration::from_millis(scaled(1500)), &smp.stop, &least);
    });
    assert!(board.turns(0) > 0 && board.turns(1) > 0);
}

fn clock_page_is_replaced() {
    Size::ALL.into_iter().for_each(replaced);
}
