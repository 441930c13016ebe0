// SPDX-License-Identifier: GPL-2.0

//! What a guest shares with Xen, or KVM in its place, in windows.

use std::os::fd::AsRawFd;

use kvm_bindings::{
    kvm_irq_routing_xen_evtchn, kvm_xen_hvm_attr, kvm_xen_hvm_config, kvm_xen_vcpu_attr,
};

use crate::harness::skip;
use crate::support::areas::{enter, set_clock, Area};
use crate::support::bench::{Bench, OFFSET, SHOWN, STATES};
use crate::support::guest::{Args, Exit};
use crate::support::space::errno;
use crate::support::{Errno, Map, Result, PAGE};

crate::suite![
    shared_info,
    vcpu_info,
    event_channels,
    vcpu_time,
    runstate,
    runstate_across_pages
];

/// Not in the crates that the tests use.
const fn iow(number: u32, size: usize) -> u32 {
    1 << 30 | (size as u32) << 16 | 0xae << 8 | number
}
const HVM_CONFIG: u32 = iow(0x7a, size_of::<kvm_xen_hvm_config>());
const HVM_SET_ATTR: u32 = iow(0xc9, size_of::<kvm_xen_hvm_attr>());
const VCPU_SET_ATTR: u32 = iow(0xcb, size_of::<kvm_xen_vcpu_attr>());
const EVTCHN_SEND: u32 = iow(0xd0, size_of::<kvm_irq_routing_xen_evtchn>());

/// Attributes of the VM.
const LONG_MODE: u16 = 0;
const SHARED_INFO: u16 = 1;
/// Attributes of a vCPU.
const VCPU_INFO: u16 = 0;
const TIME_INFO: u16 = 1;
const RUNSTATE_ADDR: u16 = 2;
const RUNSTATE_CURRENT: u16 = 3;
/// Instead of an address: none any more.
const NONE: u64 = u64::MAX;

fn ioctl<T>(fd: &impl AsRawFd, number: u32, mut argument: T) -> Result<i32> {
    // SAFETY: The struct is what the number is made of.
    unsafe { asfd::sys::ioctl(fd.as_raw_fd(), number, &mut argument) }.map_err(errno)
}

/// Makes the VM one that Xen is played for.
fn configure(bench: &Bench) {
    let config = kvm_xen_hvm_config {
        // Intercept hypercalls, send events.
        flags: 1 << 1 | 1 << 5,
        msr: 0x4000_0200,
        ..Default::default()
    };
    if let Err(e) = ioctl(&bench.vm.fd, HVM_CONFIG, config) {
        skip(&format!("KVM without Xen: {e}"));
    }
}

/// All that is used of the unions begins at their start.
fn first(value: u64) -> [u64; 8] {
    [value, 0, 0, 0, 0, 0, 0, 0]
}

fn set(bench: &Bench, type_: u16, value: u64) -> Result<i32> {
    let mut attr = kvm_xen_hvm_attr {
        type_,
        ..Default::default()
    };
    attr.u.pad = first(value);
    ioctl(&bench.vm.fd, HVM_SET_ATTR, attr)
}

fn set_vcpu(bench: &Bench, type_: u16, value: u64) -> Result<i32> {
    let mut attr = kvm_xen_vcpu_attr {
        type_,
        ..Default::default()
    };
    attr.u.pad = first(value);
    ioctl(&bench.vcpu.fd, VCPU_SET_ATTR, attr)
}

/// An event on a port.
fn send(bench: &Bench, port: u32) -> Result<i32> {
    let event = kvm_irq_routing_xen_evtchn {
        port,
        vcpu: 0,
        priority: u32::MAX,
    };
    ioctl(&bench.vm.fd, EVTCHN_SEND, event)
}

/// KVM writes the wall clock there.
fn shared_info() {
    Area {
        at: 0,
        len: PAGE,
        seed: 0,
        start: |bench, gpa| {
            configure(bench);
            set(bench, SHARED_INFO, gpa >> 12).is_ok()
        },
        poke: |bench, _| {
            let _ = set(bench, LONG_MODE, 0);
        },
        stop: |bench| assert_eq!(set(bench, SHARED_INFO, NONE), Ok(0)),
    }
    .keeps_the_promises();
}

/// KVM marks there what is pending.
fn vcpu_info() {
    Area {
        at: 0x340,
        len: 64,
        seed: 0,
        start: |bench, gpa| {
            configure(bench);
            set_vcpu(bench, VCPU_INFO, gpa).is_ok()
        },
        poke: |bench, _| {
            set_clock(bench);
            enter(bench);
        },
        stop: |bench| assert_eq!(set_vcpu(bench, VCPU_INFO, NONE), Ok(0)),
    }
    .keeps_the_promises();
}

/// Events go through both pages, and wait while they cannot be delivered.
fn event_channels() {
    let mut bench = Bench::new();
    configure(&bench);
    let page = |name: &str| {
        let state = STATES.iter().find(|state| state.name == name);
        state.expect("there").page()
    };
    let (shared, info) = (page("file"), page("anonymous"));
    let gpa = SHOWN[1].gpa;
    assert_eq!(set(&bench, SHARED_INFO, (gpa + shared) >> 12), Ok(0));
    assert_eq!(set_vcpu(&bench, VCPU_INFO, gpa + info), Ok(0));
    // struct compat_shared_info: evtchn_pending at 0x800, 32 words.
    let pending = |bench: &Bench| bench.space.get(OFFSET + shared + 0x800, 4);
    // struct compat_vcpu_info: evtchn_upcall_pending at 0, evtchn_pending_sel at 4.
    let selected = |bench: &Bench| {
        let info = bench.space.get(OFFSET + info, 8);
        (info[0], info[4])
    };
    assert_eq!(selected(&bench), (0, 0));
    assert_eq!(send(&bench, 5), Ok(0));
    assert_eq!(pending(&bench), [1 << 5, 0, 0, 0]);
    assert_eq!(selected(&bench), (1, 1));
    assert_eq!(send(&bench, 5), Ok(0), "it is pending");
    // The guest has seen it; the next one comes while its page is gone.
    bench.space.put(OFFSET + shared + 0x800, &[0; 4]);
    bench.space.unmap(OFFSET + info, PAGE).expect("unmap");
    let sent = send(&bench, 6);
    assert_eq!(sent, Ok(0));
    assert_eq!(pending(&bench), [1 << 6, 0, 0, 0]);
    // cpuid is an exit that ends in KVM, which then delivers what waits.
    let look = |bench: &mut Bench| bench.run(&[0x0f, 0xa2, 0xf4], Args::default());
    assert!(matches!(look(&mut bench), Exit::Done(_)));
    bench.space.must_map(Map::anon(OFFSET + info, PAGE));
    assert!(matches!(look(&mut bench), Exit::Done(_)));
    assert_eq!(selected(&bench), (1, 1), "delivered when there is a page");
    // Without the shared page there is no event.
    bench.space.unmap(OFFSET + shared, PAGE).expect("unmap");
    let sent = send(&bench, 7);
    assert!(sent.is_err(), "{sent:?}");
    bench.untouched();
}

fn vcpu_time() {
    Area {
        at: 0x340,
        len: 32,
        seed: 0,
        start: |bench, gpa| {
            configure(bench);
            set_vcpu(bench, TIME_INFO, gpa).is_ok()
        },
        poke: |bench, _| {
            set_clock(bench);
            enter(bench);
        },
        stop: |bench| assert_eq!(set_vcpu(bench, TIME_INFO, NONE), Ok(0)),
    }
    .keeps_the_promises();
}

/// From running to blocked and back.
fn change_runstate(bench: &mut Bench, _: u64) {
    for state in [2, 0] {
        let changed = set_vcpu(bench, RUNSTATE_CURRENT, state);
        assert_eq!(changed, Ok(0), "state {state}");
    }
}

fn start_runstate(bench: &mut Bench, gpa: u64) -> bool {
    configure(bench);
    match set_vcpu(bench, RUNSTATE_ADDR, gpa) {
        Err(Errno::EOPNOTSUPP) => skip("this kernel counts no steal time"),
        answer => answer.is_ok(),
    }
}

fn runstate() {
    Area {
        at: 0x340,
        len: 44,
        seed: 0,
        start: start_runstate,
        poke: change_runstate,
        stop: |bench| assert_eq!(set_vcpu(bench, RUNSTATE_ADDR, NONE), Ok(0)),
    }
    .keeps_the_promises();
}

/// Its first half in one page, the second in another that goes and comes.
fn runstate_across_pages() {
    let mut bench = Bench::new();
    let state = STATES.iter().find(|s| s.name == "file").expect("there");
    for shown in &SHOWN[..2] {
        let at = state.page() + PAGE - 20;
        assert!(start_runstate(&mut bench, shown.gpa + at));
        let second = OFFSET + state.page() + PAGE;
        for round in 0..3 {
            bench.space.put(OFFSET + at, &[0; 44]);
            change_runstate(&mut bench, 0);
            let there = bench.space.get(OFFSET + at, 44);
            assert_ne!(there[..20], [0; 20], "round {round}, {}", shown.name);
            assert_ne!(there[20..], [0; 24], "round {round}, {}", shown.name);
            bench.space.unmap(second, PAGE).expect("unmap");
            change_runstate(&mut bench, 0);
            bench.untouched();
            let again = Map::anon(second, PAGE);
            bench.space.must_map(again);
        }
    }
}
