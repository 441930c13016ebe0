// SPDX-License-Identifier: GPL-2.0

//! KVM's own paravirtual areas, in windows.

use crate::support::areas::{enter, set_clock, set_msr, Area};
use crate::support::bench::Bench;

crate::suite![
    system_time,
    system_time_by_its_old_register,
    wall_clock,
    steal_time,
];

/// An area that is named by a register, with bit 0 to enable it.
macro_rules! clock {
    ($msr:expr, $len:expr) => {
        Area {
            at: 0x340,
            len: $len,
            seed: 0,
            start: |bench, gpa| set_msr(bench, $msr, gpa | 1),
            poke: |bench, _| {
                set_clock(bench);
                enter(bench);
            },
            stop: |bench| assert!(set_msr(bench, $msr, 0)),
        }
    };
}

fn system_time() {
    clock!(0x4b56_4d01, 32).keeps_the_promises();
}

fn system_time_by_its_old_register() {
    clock!(0x12, 32).keeps_the_promises();
}

fn wall_clock() {
    const WALL_CLOCK: u32 = 0x4b56_4d00;
    let write = |bench: &mut Bench, gpa| set_msr(bench, WALL_CLOCK, gpa);
    Area {
        at: 0x340,
        len: 12,
        seed: 0,
        start: write,
        poke: |bench, gpa| assert!(set_msr(bench, WALL_CLOCK, gpa)),
        stop: |_| {},
    }
    .keeps_the_promises();
}

fn steal_time() {
    const STEAL_TIME: u32 = 0x4b56_4d03;
    let bench = Bench::new();
    if !set_msr(&bench, STEAL_TIME, 0x1000_0001) {
        crate::harness::skip("this kernel counts no steal time");
    }
    drop(bench);
    Area {
        at: 0x340,
        len: 64,
        seed: 0,
        start: |bench, gpa| set_msr(bench, STEAL_TIME, gpa | 1),
        poke: |bench, _| enter(bench),
        stop: |bench| assert!(set_msr(bench, STEAL_TIME, 0)),
    }
    .keeps_the_promises();
}
