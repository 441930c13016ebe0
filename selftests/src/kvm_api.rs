// SPDX-License-Identifier: GPL-2.0

//! KVM_MAP_ADDRESS_SPACE: what it takes and what it refuses, slots and their flags.

use std::os::fd::AsRawFd;

use asfd::sys::*;
use kvm_bindings::KVM_CAP_MULTI_ADDRESS_SPACE;

use crate::support::files;
use std::time::Duration;

use crate::support::guest::{
    place_code, plain_code, window, Args, Exit, Kicker, OwnMemory, Routine, Vm,
};
use crate::support::space::errno;
use crate::support::{Errno, Map, Space, PAGE};

crate::suite![
    ordinary_slots_work,
    capability,
    wrong_descriptors,
    wrong_values,
    wrong_ranges,
    bad_pointer,
    overlaps,
    deletion,
    changes_of_a_slot,
    plain_slots_do_not_take_hole_exit,
    plain_slots_and_windows_keep_apart,
    counts_windows,
    maps_nothing_in_the_caller,
    many_windows,
];

const SIZE: u64 = 16 * PAGE;

/// A space with its first 16 pages mapped.
fn scenery() -> Space {
    let space = Space::new();
    space.must_map(Map::file(&files::numbered(16, b'a'), 0, SIZE));
    space
}

/// The guest of these tests on ordinary memory: when this fails, look no further.
fn ordinary_slots_work() {
    let vm = Vm::new();
    let _code = plain_code(&vm);
    let base = 1 << 20;
    let memory = OwnMemory::at(0x6000_0000, SIZE, 0x77);
    vm.set_plain_slot(1, KVM_MEM_LOG_DIRTY_PAGES, base, SIZE, memory.0)
        .expect("plain");
    let mut vcpu = vm.vcpu(0);
    assert_eq!(vcpu.load(base), Exit::Done(0x7777_7777));
    assert_eq!(vcpu.load(base + PAGE), Exit::Done(0x7777_7777));
    vm.dirty_pages(1, SIZE);
    assert_eq!(vcpu.load(base), Exit::Done(0x7777_7777));
    assert_eq!(vcpu.store(base + PAGE, 5), Exit::Done(5));
    assert_eq!(memory.bytes()[PAGE as usize..][..4], [5, 0, 0, 0]);
    assert_eq!(vm.dirty_pages(1, SIZE), [1]);
    memory.forget();
    assert_eq!(
        vcpu.store(base, 0x7777_7777),
        Exit::Done(0x7777_7777),
        "a page not there yet"
    );
    assert_eq!(vcpu.store(base + PAGE, 5), Exit::Done(5));
    let hole = base + SIZE;
    assert_eq!(vcpu.load(hole), Exit::load_of_hole(hole));
    assert_eq!(
        vcpu.resume(),
        Exit::Done(vcpu.answer),
        "what the VMM answers is loaded"
    );
    assert_eq!(vcpu.store(hole, 9), Exit::store_to_hole(hole, 9));
    let args = |ecx: u64| Args {
        ebx: base as u32,
        ecx: ecx as u32,
        esi: base as u32,
        edi: (base + 2 * PAGE) as u32,
        ..Default::default()
    };
    assert!(matches!(
        vcpu.call(Routine::Copy, args(PAGE / 2)),
        Exit::Done(_)
    ));
    assert_eq!(memory.bytes()[3 * PAGE as usize..][..4], [5, 0, 0, 0]);
    // The endless ones, until they are kicked.
    for (routine, ecx) in [
        (Routine::Count, 0),
        (Routine::Walk, SIZE),
        (Routine::Await, 0x7777_7777),
    ] {
        let _kicker = Kicker::after(Duration::from_millis(100));
        let before = memory.bytes();
        assert_eq!(vcpu.call(routine, args(ecx)), Exit::Kicked);
        match routine {
            Routine::Count => assert_ne!(memory.bytes()[..4], before[..4]),
            Routine::Walk => {
                assert_ne!(vcpu.edx(), 0);
                assert_eq!(memory.bytes()[PAGE as usize + 4..][..4], [5, 0, 0, 0]);
                vcpu.store(base, 0x7777_7777);
            }
            _ => {}
        }
    }
}

fn capability() {
    let vm = Vm::new();
    let cap = u64::from(KVM_CAP_ADDRESS_SPACE);
    assert_eq!(vm.fd.check_extension_raw(cap), 1, "asked of the VM");
    // SAFETY: Takes a number.
    let system = unsafe { libc::ioctl(vm.kvm.as_raw_fd(), 0xae03, cap) };
    assert_eq!(system, 1, "asked of /dev/kvm");
}

fn wrong_descriptors() {
    let (vm, space) = (Vm::new(), scenery());
    let closed = nix::unistd::dup(&space).expect("dup").as_raw_fd();
    for fd in [-1, closed, 9999] {
        assert_eq!(
            vm.map(window(0, 0, SIZE, &fd, 0)),
            Err(Errno::EBADF),
            "{fd}"
        );
    }
    let memfd = files::memfd(SIZE);
    let folder = std::fs::File::open("/").expect("/");
    let own = [memfd.as_raw_fd(), folder.as_raw_fd(), vm.fd.as_raw_fd()];
    for fd in own {
        assert_eq!(vm.map(window(0, 0, SIZE, &fd, 0)), Err(Errno::EINVAL));
    }
    vm.must_map(window(0, 0, SIZE, &space, 0));
}

fn wrong_values() {
    let (vm, space) = (Vm::new(), scenery());
    let good = window(0, 0, SIZE, &space, 0);
    let refused = |what: &str, window: kvm_map_address_space| {
        assert_eq!(vm.map(window), Err(Errno::EINVAL), "{what}");
        assert_eq!(space.info().windows, 0, "{what}");
    };
    let known = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY | KVM_MEM_HOLE_EXIT;
    for bit in (0..32).map(|bit| 1 << bit).filter(|bit| bit & known == 0) {
        refused(
            &format!("flag {bit:#x}"),
            kvm_map_address_space { flags: bit, ..good },
        );
    }
    for bit in 0..32 {
        refused(
            "pad1",
            kvm_map_address_space {
                pad1: 1 << bit,
                ..good
            },
        );
    }
    for word in 0..11 {
        let mut bad = good;
        bad.pad2[word] = 1 << (word * 5);
        refused(&format!("pad2[{word}]"), bad);
        // Also where nothing but the slot is looked at.
        bad.memory_size = 0;
        assert_eq!(vm.map(bad), Err(Errno::EINVAL), "pad2[{word}], deleting");
    }
    for slot in [0xffff, 9 << 16, u32::MAX] {
        refused(
            &format!("slot {slot:#x}"),
            kvm_map_address_space { slot, ..good },
        );
    }
    vm.must_map(good);
}

fn wrong_ranges() {
    let (vm, space) = (Vm::new(), scenery());
    let end = space.end();
    let gpa = 1 << 20;
    for (what, expected, bad) in [
        (
            "unaligned address",
            Errno::EINVAL,
            window(0, gpa + 1, SIZE, &space, 0),
        ),
        (
            "unaligned address",
            Errno::EINVAL,
            window(0, gpa + 2048, SIZE, &space, 0),
        ),
        (
            "unaligned size",
            Errno::EINVAL,
            window(0, gpa, SIZE - 1, &space, 0),
        ),
        (
            "size below a page",
            Errno::EINVAL,
            window(0, gpa, 1, &space, 0),
        ),
        (
            "unaligned offset",
            Errno::EINVAL,
            window(0, gpa, SIZE, &space, 1),
        ),
        (
            "address past 2^64",
            Errno::EINVAL,
            window(0, u64::MAX - PAGE + 1, 2 * PAGE, &space, 0),
        ),
        (
            "more pages than a slot has",
            Errno::EINVAL,
            window(0, 0, 1 << 44, &space, 0),
        ),
        (
            "offset at the end",
            Errno::ENOMEM,
            window(0, gpa, PAGE, &space, end),
        ),
        (
            "over the end",
            Errno::ENOMEM,
            window(0, gpa, 2 * PAGE, &space, end - PAGE),
        ),
        (
            "offset past 2^64",
            Errno::ENOMEM,
            window(0, gpa, 2 * PAGE, &space, u64::MAX - PAGE + 1),
        ),
    ] {
        assert_eq!(vm.map(bad), Err(expected), "{what}: {bad:x?}");
        assert_eq!(space.info().windows, 0, "{what}");
    }
    vm.must_map(window(0, gpa, PAGE, &space, end - PAGE));
    // Holes may be shown: it is what a window is for.
    vm.must_map(window(1, 2 * gpa, 1 << 36, &space, 0));
}

fn bad_pointer() {
    let vm = Vm::new();
    for pointer in [0usize, 1 << 63, usize::MAX - 8] {
        let pointer = pointer as *mut kvm_map_address_space;
        // SAFETY: Nothing is mapped there.
        let answer = unsafe { ioctl(vm.fd.as_raw_fd(), KVM_MAP_ADDRESS_SPACE, pointer) };
        assert_eq!(answer.map_err(errno), Err(Errno::EFAULT), "{pointer:?}");
    }
}

fn overlaps() {
    let (vm, space, other) = (Vm::new(), scenery(), scenery());
    let memory = OwnMemory::at(0x6000_0000, SIZE, b'M');
    let base = 1 << 20;
    vm.must_map(window(0, base, SIZE, &space, 0));
    vm.set_plain_slot(1, 0, base + SIZE, SIZE, memory.0)
        .expect("a plain slot behind it");
    for (gpa, len) in [
        (base, SIZE),
        (base, PAGE),
        (base - PAGE, 2 * PAGE),
        (base + SIZE - PAGE, PAGE),
        (base + SIZE, PAGE),
        (base + 2 * SIZE - PAGE, 2 * PAGE),
        (0, 1 << 30),
    ] {
        for space in [&space, &other] {
            let answer = vm.map(window(2, gpa, len, space, 0));
            assert_eq!(answer, Err(Errno::EEXIST), "{gpa:#x}, {len:#x}");
        }
    }
    for gpa in [base, base + SIZE - PAGE] {
        assert_eq!(
            vm.set_plain_slot(2, 0, gpa, PAGE, memory.0),
            Err(Errno::EEXIST)
        );
    }
    assert_eq!((space.info().windows, other.info().windows), (1, 0));
    // Beside them there is room, and the same part of a space may be shown twice.
    vm.must_map(window(2, base - SIZE, SIZE, &space, 0));
    vm.must_map(window(3, base + 2 * SIZE, SIZE, &other, 0));
    // SMM's set of slots, where there is one, is another.
    if vm
        .fd
        .check_extension_raw(KVM_CAP_MULTI_ADDRESS_SPACE.into())
        > 1
    {
        vm.must_map(window(1 << 16, base, SIZE, &space, 0));
    }
}

fn deletion() {
    let (vm, space) = (Vm::new(), scenery());
    assert_eq!(vm.unmap_slot(7), Err(Errno::EINVAL), "there is none");
    vm.must_map(window(7, 0, SIZE, &space, 0));
    assert_eq!(vm.unmap_slot(6), Err(Errno::EINVAL), "another slot");
    assert_eq!(vm.unmap_slot(7), Ok(()), "asfd is not looked at");
    assert_eq!(space.info().windows, 0);
    assert_eq!(vm.unmap_slot(7), Err(Errno::EINVAL), "no longer");
    // The slot and the addresses are free again, for either kind.
    let memory = OwnMemory::at(0x6000_0000, SIZE, b'M');
    vm.set_plain_slot(7, 0, 0, SIZE, memory.0).expect("plain");
    vm.set_plain_slot(7, 0, 0, 0, memory.0).expect("deleted");
    vm.must_map(window(7, 0, SIZE, &space, 0));
    let mut delete = window(7, 0, 0, &files::memfd(PAGE), 0);
    delete.flags = 0;
    assert_eq!(vm.map(delete), Ok(()), "any descriptor");
}

fn changes_of_a_slot() {
    let (vm, space, other) = (Vm::new(), scenery(), scenery());
    let base = 1 << 20;
    let good = window(4, base, 8 * PAGE, &space, 0);
    vm.must_map(good);
    let flags = |flags| kvm_map_address_space { flags, ..good };
    assert_eq!(vm.map(good), Ok(()), "as it is");
    assert_eq!(vm.map(flags(KVM_MEM_LOG_DIRTY_PAGES)), Ok(()), "log on");
    assert_eq!(vm.map(good), Ok(()), "log off");
    for (what, bad) in [
        ("read-only", flags(KVM_MEM_READONLY)),
        ("larger", window(4, base, SIZE, &space, 0)),
        ("smaller", window(4, base, PAGE, &space, 0)),
        ("another offset", window(4, base, 8 * PAGE, &space, PAGE)),
        ("another space", window(4, base, 8 * PAGE, &other, 0)),
        ("moved", window(4, base + (1 << 20), 8 * PAGE, &space, 0)),
    ] {
        assert_eq!(vm.map(bad), Err(Errno::EINVAL), "{what}");
    }
    // A copy of the descriptor is the same space.
    assert_eq!(vm.map(window(4, base, 8 * PAGE, &space.dup(), 0)), Ok(()));
    assert_eq!((space.info().windows, other.info().windows), (1, 0));
}

fn plain_slots_do_not_take_hole_exit() {
    let vm = Vm::new();
    let memory = OwnMemory::at(0x6000_0000, SIZE, b'M');
    let answer = vm.set_plain_slot(0, KVM_MEM_HOLE_EXIT, 0, SIZE, memory.0);
    assert_eq!(answer, Err(Errno::EINVAL));
    vm.set_plain_slot(0, 0, 0, SIZE, memory.0)
        .expect("without it");
}

/// A plain slot does not turn into a window by a change, nor a window into a plain slot.
fn plain_slots_and_windows_keep_apart() {
    let (vm, space) = (Vm::new(), scenery());
    let memory = OwnMemory::at(0x6000_0000, SIZE, b'M');
    let base = 1 << 20;
    place_code(&space, 1 << 30);
    vm.must_map(window(9, 0, PAGE, &space, 1 << 30));
    vm.must_map(window(0, base, SIZE, &space, 0));
    vm.set_plain_slot(1, 0, base + SIZE, SIZE, memory.0)
        .expect("plain");
    assert!(
        vm.map(window(1, base + SIZE, SIZE, &space, 0)).is_err(),
        "a window in its place"
    );
    for hva in [memory.0, 0, PAGE] {
        for flags in [0, KVM_MEM_LOG_DIRTY_PAGES] {
            let answer = vm.set_plain_slot(0, flags, base, SIZE, hva);
            assert!(answer.is_err(), "a plain slot at {hva:#x} in its place");
        }
    }
    let mut vcpu = vm.vcpu(0);
    assert_eq!(vcpu.load(base), Exit::Done(0x6161_6161));
    assert_eq!(vcpu.load(base + SIZE), Exit::Done(0x4d4d_4d4d));
}

fn counts_windows() {
    let (first, second, space) = (Vm::new(), Vm::new(), scenery());
    for slot in 0..4 {
        first.must_map(window(slot, (slot as u64) << 20, SIZE, &space, 0));
        second.must_map(window(slot, (slot as u64) << 20, SIZE, &space, 0));
        assert_eq!(space.info().windows, 2 * (u64::from(slot) + 1));
    }
    assert!(
        space.fdinfo().contains("\nas_windows:\t8\n"),
        "{}",
        space.fdinfo()
    );
    first.unmap_slot(2).expect("delete");
    assert_eq!(space.info().windows, 7);
    drop(second);
    crate::support::system::eventually("the VM's windows are gone", || space.info().windows == 3);
}

fn maps_nothing_in_the_caller() {
    let (vm, space) = (Vm::new(), scenery());
    let own = || {
        std::fs::read_to_string("/proc/self/maps")
            .expect("maps")
            .lines()
            .count()
    };
    let before = own();
    vm.must_map(window(0, 0, 1 << 30, &space, 0));
    assert_eq!(own(), before);
    assert_eq!(space.info().mirrors, 0);
}

/// Several spaces in one VM and several windows on each.
fn many_windows() {
    let vm = Vm::new();
    let spaces: Vec<Space> = (0..16)
        .map(|n| {
            let space = Space::new();
            space.must_map(Map::file(&files::numbered(16, 16 * n), 0, SIZE));
            space
        })
        .collect();
    place_code(&spaces[0], 1 << 30);
    vm.must_map(window(300, 0, PAGE, &spaces[0], 1 << 30));
    let base = |slot: u64| (1 << 20) + slot * SIZE;
    for slot in 0..256 {
        let space = &spaces[slot as usize % 16];
        vm.must_map(window(
            slot as u32,
            base(slot),
            SIZE / 2,
            space,
            (slot / 32) * PAGE,
        ));
    }
    let mut vcpu = vm.vcpu(0);
    for slot in 0..256 {
        let byte = (slot % 16) * 16 + slot / 32;
        let expected = u32::from_le_bytes([byte as u8; 4]);
        assert_eq!(vcpu.load(base(slot)), Exit::Done(expected), "slot {slot}");
        assert_eq!(
            vcpu.load(base(slot) + SIZE / 2),
            Exit::load_of_hole(base(slot) + SIZE / 2)
        );
    }
}
