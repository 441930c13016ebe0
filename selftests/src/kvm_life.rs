// SPDX-License-Identifier: GPL-2.0

//! The space, the VM, its vCPU and the files end in any order.

use std::time::Duration;

use asfd::sys::KVM_MEM_HOLE_EXIT;

use crate::harness::skip;
use crate::support::files;
use crate::support::guest::{
    place_code, plain_code, sees, window, word, Args, Exit, Guest, Kicker, Routine, Vm,
};
use crate::support::system::eventually;
use crate::support::{Map, Space, PAGE};

crate::suite![
    closing_the_space,
    next_space_takes_over,
    closing_the_vm_first,
    every_order_of_closing,
    guest_memfd_windows_leak_nothing,
];

fn closing_the_space() {
    for flags in [0, KVM_MEM_HOLE_EXIT] {
        let (vm, space) = (Vm::new(), Space::new());
        let _code = plain_code(&vm);
        let at = 16 * PAGE;
        space.must_map(Map::file(&files::numbered(4, b'a'), at, 4 * PAGE));
        let mut shown = window(1, at, 16 * PAGE, &space, at);
        shown.flags = flags;
        vm.must_map(shown);
        let mut vcpu = vm.vcpu(0);
        let copy = space.dup();
        drop(space);
        assert_eq!(vcpu.load(at), Exit::Done(word(b'a')), "a copy keeps it");
        // Closed while the guest reads it.
        let exit = {
            let _kicker = Kicker::after(Duration::from_millis(500));
            sees(&mut vcpu, at, word(b'a'), || drop(copy))
        };
        let is_hole = |exit: &Exit| match flags {
            0 => *exit == Exit::load_of_hole(at),
            _ => exit.is_fault_at(at),
        };
        assert!(is_hole(&exit) || exit == Exit::Kicked, "{exit:?}");
        let exit = vcpu.load(at);
        assert!(is_hole(&exit), "{exit:?}");
        // The slot is still taken, and can be deleted and used again.
        let next = Space::new();
        next.must_map(Map::file(&files::numbered(1, b'n'), 0, PAGE));
        assert!(
            vm.map(window(2, at, PAGE, &next, 0)).is_err(),
            "it still overlaps"
        );
        vm.unmap_slot(1).expect("delete");
        vm.must_map(window(1, at, PAGE, &next, 0));
        assert_eq!(vcpu.load(at), Exit::Done(word(b'n')));
    }
}

/// The space that is closed has the guest's code and page tables; then another one has them.
fn next_space_takes_over() {
    let vm = Vm::new();
    let mut vcpu = vm.vcpu(0);
    for round in 0..5 {
        let space = Space::new();
        place_code(&space, 0);
        space.must_map(Map::anon(PAGE, PAGE));
        vm.must_map(window(1, 0, 16 * PAGE, &space, 0));
        assert_eq!(vcpu.store(PAGE, round), Exit::Done(round));
        // Closed while the guest runs, or before it is run.
        let args = Args {
            ebx: PAGE as u32,
            ..Default::default()
        };
        let exit = std::thread::scope(|scope| {
            let _kicker = Kicker::after(Duration::from_millis(300));
            if round % 2 == 0 {
                drop(space);
            } else {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(50));
                    drop(space);
                });
            }
            vcpu.call(Routine::Count, args)
        });
        assert!(!matches!(exit, Exit::Done(_)), "{exit:?}");
        vm.unmap_slot(1).expect("delete");
        vcpu.reset();
    }
}

fn closing_the_vm_first() {
    let Guest {
        space,
        vm,
        mut vcpu,
    } = Guest::new(16);
    space.must_map(Map::anon(4 * PAGE, PAGE));
    assert_eq!(vcpu.store(4 * PAGE, 77), Exit::Done(77));
    drop(vm);
    assert_eq!(vcpu.load(4 * PAGE), Exit::Done(77), "the vCPU keeps the VM");
    drop(vcpu);
    eventually("the window is gone", || space.info().windows == 0);
    assert_eq!(
        space.get(4 * PAGE, 4),
        77u32.to_le_bytes(),
        "the space lives on"
    );
    space.must_map(Map::anon(5 * PAGE, PAGE));
    space.unmap(0, space.end()).expect("unmap");
}

/// Space, VM, vCPU and file, closed in each of the 24 orders, with and without a pause between.
fn every_order_of_closing() {
    let mut orders = Vec::new();
    for n in 0..256u32 {
        let order = [n & 3, n >> 2 & 3, n >> 4 & 3, n >> 6 & 3];
        if (0..4).all(|k| order.contains(&k)) {
            orders.push(order);
        }
    }
    assert_eq!(orders.len(), 24);
    for (order, pause) in orders.into_iter().zip([0, 5].into_iter().cycle()) {
        let file = files::memfd(PAGE);
        let Guest {
            space,
            vm,
            mut vcpu,
        } = Guest::new(16);
        space.must_map(Map::file(&file, 4 * PAGE, PAGE));
        assert_eq!(vcpu.store(4 * PAGE, 1), Exit::Done(1));
        let mut things: [Option<Box<dyn std::any::Any>>; 4] = [
            Some(Box::new(space)),
            Some(Box::new(vm)),
            Some(Box::new(vcpu)),
            Some(Box::new(file)),
        ];
        for index in order {
            things[index as usize] = None;
            std::thread::sleep(Duration::from_millis(pause));
        }
    }
}

/// The VMs of this process that still exist, by KVM's folders in debugfs.
fn living_vms() -> usize {
    let prefix = format!("{}-", std::process::id());
    let folders = std::fs::read_dir("/sys/kernel/debug/kvm").unwrap_or_else(|_| skip("no debugfs"));
    folders
        .flatten()
        .filter(|f| f.file_name().to_string_lossy().starts_with(&prefix))
        .count()
}

/// A VM, a guest_memfd of it, a space that maps it, a window of the VM on that space: a circle
/// that would keep itself alive if a window kept its space.
fn guest_memfd_windows_leak_nothing() {
    for round in 0..6 {
        let Guest {
            space,
            vm,
            mut vcpu,
        } = Guest::new(64);
        assert_eq!(living_vms(), 1, "is it seen?");
        let file = vm.shared_guest_memfd(8 * PAGE);
        space.must_map(Map::file(&file, 16 * PAGE, 8 * PAGE));
        assert_eq!(vcpu.store(16 * PAGE, 6), Exit::Done(6));
        match round % 3 {
            0 => drop((file, space, vcpu, vm)),
            1 => drop((vm, vcpu, file, space)),
            _ => drop((space, vm, file, vcpu)),
        }
        eventually("the VM is gone", || living_vms() == 0);
    }
}
