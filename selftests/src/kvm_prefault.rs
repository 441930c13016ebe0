// SPDX-License-Identifier: GPL-2.0

//! KVM_PRE_FAULT_MEMORY on windows.

use std::os::fd::AsRawFd;

use asfd::sys::KVM_MEM_HOLE_EXIT;
use kvm_bindings::kvm_pre_fault_memory;
use libc::PROT_NONE;

use crate::harness::skip;
use crate::support::bench::{Bench, Gets, SHOWN, STATES};
use crate::support::guest::{Exit, Guest, Vcpu, SLOT};
use crate::support::space::errno;
use crate::support::{files, Errno, Map, Result, PAGE};

crate::suite![every_state, ranges, holes_that_exit];

/// _IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
const PRE_FAULT: u32 =
    3 << 30 | (size_of::<kvm_pre_fault_memory>() as u32) << 16 | 0xae << 8 | 0xd5;

/// The answer, with what is left of the range.
fn prefault(vcpu: &Vcpu, gpa: u64, size: u64) -> (Result<()>, u64, u64) {
    let mut range = kvm_pre_fault_memory {
        gpa,
        size,
        ..Default::default()
    };
    // SAFETY: The request takes and gives this struct.
    let answer = unsafe { asfd::sys::ioctl(vcpu.fd.as_raw_fd(), PRE_FAULT, &mut range) };
    (answer.map(drop).map_err(errno), range.gpa, range.size)
}

/// With shadow paging there is nothing that could be done for an address of the guest's.
fn need_nested_paging() {
    let npt = std::fs::read_to_string("/sys/module/kvm_amd/parameters/npt").unwrap_or_default();
    if !matches!(npt.trim(), "Y" | "1") {
        let guest = Guest::new(16);
        let (answer, ..) = prefault(&guest.vcpu, 0, PAGE);
        assert_eq!(answer, Err(Errno::EOPNOTSUPP));
        skip("only with nested paging");
    }
}

fn every_state() {
    need_nested_paging();
    let bench = Bench::new();
    for shown in &SHOWN {
        for state in &STATES {
            let what = format!("{}, {}", state.name, shown.name);
            let at = shown.gpa + state.page();
            let found = prefault(&bench.vcpu, at, PAGE);
            let expected = match state.load {
                Gets::It => (Ok(()), at + PAGE, 0),
                Gets::Mmio => (Err(Errno::ENOENT), at, PAGE),
                Gets::Fault => (Err(Errno::EFAULT), at, PAGE),
            };
            assert_eq!(found, expected, "{what}");
        }
    }
    bench.untouched();
}

/// What can be had up to the first page that cannot.
fn ranges() {
    need_nested_paging();
    let Guest {
        space,
        vm: _vm,
        mut vcpu,
    } = Guest::new(64);
    let at = 16 * PAGE;
    space.must_map(Map::file(&files::numbered(4, b'a'), at, 4 * PAGE));
    space.must_map(Map::file(
        &files::numbered(2, b'x'),
        at + 5 * PAGE,
        2 * PAGE,
    ));
    space.must_map(Map::anon(at + 7 * PAGE, PAGE).prot(PROT_NONE));
    let before = space.info().resident_bytes;
    let end = 48 * PAGE;
    let hole = at + 4 * PAGE;
    assert_eq!(prefault(&vcpu, at, end), (Ok(()), hole, end - 4 * PAGE));
    let now = space.info().resident_bytes;
    assert_eq!(
        now,
        before + 4 * PAGE,
        "they are in the space's page tables"
    );
    let found = prefault(&vcpu, hole, end);
    assert_eq!(found, (Err(Errno::ENOENT), hole, end));
    let closed = at + 7 * PAGE;
    let found = prefault(&vcpu, hole + PAGE, end);
    assert_eq!(found, (Ok(()), closed, end - 2 * PAGE));
    let found = prefault(&vcpu, closed, end);
    assert_eq!(found, (Err(Errno::EFAULT), closed, end));
    // The guest finds what is there, and nothing of it is kept when it is replaced.
    assert_eq!(vcpu.load(at + 3 * PAGE), Exit::Done(0x6464_6464));
    assert_eq!(prefault(&vcpu, at, PAGE), (Ok(()), at + PAGE, 0), "again");
    space.must_map(Map::file(&files::numbered(1, b'n'), at, PAGE).replace());
    assert_eq!(vcpu.load(at), Exit::Done(0x6e6e_6e6e));
    // A hole is not kept either.
    space.must_map(Map::anon(hole, PAGE));
    assert_eq!(vcpu.store(hole, 5), Exit::Done(5));
    assert_eq!(space.get(hole, 4), [5, 0, 0, 0]);
}

fn holes_that_exit() {
    need_nested_paging();
    let Guest { space, vm, vcpu } = Guest::with_flags(64, KVM_MEM_HOLE_EXIT);
    let at = 16 * PAGE;
    assert_eq!(prefault(&vcpu, at, PAGE), (Err(Errno::EFAULT), at, PAGE));
    space.must_map(Map::anon(at, PAGE));
    assert_eq!(prefault(&vcpu, at, PAGE), (Ok(()), at + PAGE, 0));
    // Where no slot is, as in a hole without the flag.
    vm.unmap_slot(SLOT).expect("delete");
    assert_eq!(prefault(&vcpu, at, PAGE), (Err(Errno::ENOENT), at, PAGE));
}
