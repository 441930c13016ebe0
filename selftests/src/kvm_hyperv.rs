// SPDX-License-Identifier: GPL-2.0

//! Pages that a guest shares with Hyper-V, or KVM in its place, in windows.

use crate::harness::skip;
use crate::support::areas::{enter, set_clock, set_msr, Area};
use crate::support::bench::Bench;

crate::suite![hypercall_page, reference_clock, assist_page];

const GUEST_OS: u32 = 0x4000_0000;
const HYPERCALL: u32 = 0x4000_0001;
const REFERENCE_TSC: u32 = 0x4000_0021;
const VP_ASSIST_PAGE: u32 = 0x4000_0073;

fn need_hyperv() {
    if !set_msr(&Bench::new(), GUEST_OS, 1) {
        skip("KVM without Hyper-V");
    }
}

/// KVM writes the instructions that make a hypercall.
fn hypercall_page() {
    need_hyperv();
    let start = |bench: &mut Bench, gpa| {
        assert!(set_msr(bench, GUEST_OS, 1));
        set_msr(bench, HYPERCALL, gpa | 1)
    };
    Area {
        at: 0,
        len: 16,
        seed: 0x55,
        start,
        poke: |bench, gpa| {
            set_msr(bench, HYPERCALL, gpa | 1);
        },
        stop: |bench| assert!(set_msr(bench, GUEST_OS, 0)),
    }
    .keeps_the_promises();
}

/// At least the sequence number is written, which says whether there is a clock.
fn reference_clock() {
    need_hyperv();
    Area {
        at: 0,
        len: 24,
        seed: 0x55,
        start: |bench, gpa| set_msr(bench, REFERENCE_TSC, gpa | 1),
        poke: |bench, gpa| {
            assert!(set_msr(bench, REFERENCE_TSC, gpa | 1));
            set_clock(bench);
            enter(bench);
        },
        stop: |bench| assert!(set_msr(bench, REFERENCE_TSC, 0)),
    }
    .keeps_the_promises();
}

/// Its first word is cleared.
fn assist_page() {
    need_hyperv();
    Area {
        at: 0,
        len: 4,
        seed: 0x55,
        start: |bench, gpa| set_msr(bench, VP_ASSIST_PAGE, gpa | 1),
        poke: |bench, gpa| {
            set_msr(bench, VP_ASSIST_PAGE, gpa | 1);
        },
        stop: |bench| assert!(set_msr(bench, VP_ASSIST_PAGE, 0)),
    }
    .keeps_the_promises();
}
