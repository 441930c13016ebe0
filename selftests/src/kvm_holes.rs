// SPDX-License-Identifier: GPL-2.0

//! What a guest meets where a space has a hole, or a mapping that cannot serve the access.

use std::os::unix::fs::FileExt;

use asfd::sys::KVM_MEM_HOLE_EXIT;
use libc::{PROT_NONE, PROT_READ};

use crate::support::files;
use crate::support::guest::{window, word, Exit, Guest, SLOT};
use crate::support::{Map, PAGE};

crate::suite![
    hole_filled_and_unmapped,
    hole_exit,
    hole_exit_can_be_switched,
    mappings_that_cannot_serve,
    truncated_file,
    writes_to_read_only,
];

fn hole_filled_and_unmapped() {
    let mut guest = Guest::new(64);
    let file = files::numbered(4, b'a');
    let at = 20 * PAGE;
    for round in 0..5 {
        assert_eq!(guest.vcpu.load(at), Exit::load_of_hole(at), "round {round}");
        // The answer of the VMM is what the load gives.
        guest.vcpu.answer = 0xabcd_0000 + round;
        assert_eq!(guest.vcpu.load(at + 8), Exit::load_of_hole(at + 8));
        assert_eq!(guest.vcpu.resume(), Exit::Done(0xabcd_0000 + round));
        assert_eq!(guest.vcpu.store(at + 4, 7), Exit::store_to_hole(at + 4, 7));
        guest.space.must_map(Map::file(&file, at, 4 * PAGE));
        assert_eq!(guest.vcpu.load(at + PAGE), Exit::Done(word(b'b')), "filled");
        assert_eq!(guest.vcpu.store(at, round), Exit::Done(round));
        guest.space.unmap(at, 4 * PAGE).expect("unmap");
    }
    assert_eq!(guest.vcpu.load(at + PAGE), Exit::load_of_hole(at + PAGE));
    // Behind the window is a hole as well.
    assert_eq!(guest.vcpu.load(64 * PAGE), Exit::load_of_hole(64 * PAGE));
}

fn hole_exit() {
    let mut guest = Guest::with_flags(64, KVM_MEM_HOLE_EXIT);
    let at = 20 * PAGE;
    for exit in [
        guest.vcpu.load(at),
        guest.vcpu.store(at, 1),
        guest.vcpu.load(at + PAGE - 4),
    ] {
        assert!(exit.is_fault_at(at), "{exit:?}");
    }
    // The exit comes again until the hole is filled; then the guest goes on where it was.
    assert!(guest.vcpu.load(at).is_fault_at(at));
    assert!(guest.vcpu.resume().is_fault_at(at));
    guest
        .space
        .must_map(Map::file(&files::numbered(1, b'f'), at, PAGE));
    assert_eq!(guest.vcpu.resume(), Exit::Done(word(b'f')));
    guest.space.unmap(at, PAGE).expect("unmap");
    assert!(guest.vcpu.load(at).is_fault_at(at));
    // Where there is no window, MMIO as ever.
    assert_eq!(guest.vcpu.load(64 * PAGE), Exit::load_of_hole(64 * PAGE));
}

/// Slot by slot: the same hole is the one or the other.
fn hole_exit_can_be_switched() {
    let mut guest = Guest::new(8);
    let mut extra = window(SLOT + 1, 8 * PAGE, 8 * PAGE, &guest.space, 8 * PAGE);
    extra.flags = KVM_MEM_HOLE_EXIT;
    guest.vm.must_map(extra);
    assert_eq!(guest.vcpu.load(7 * PAGE), Exit::load_of_hole(7 * PAGE));
    assert!(guest.vcpu.load(8 * PAGE).is_fault_at(8 * PAGE));
    guest.vm.unmap_slot(SLOT + 1).expect("delete");
    extra.flags = 0;
    guest.vm.must_map(extra);
    assert_eq!(guest.vcpu.load(8 * PAGE), Exit::load_of_hole(8 * PAGE));
}

fn mappings_that_cannot_serve() {
    for flags in [0, KVM_MEM_HOLE_EXIT] {
        let mut guest = Guest::with_flags(64, flags);
        guest
            .space
            .must_map(Map::anon(16 * PAGE, PAGE).prot(PROT_NONE));
        guest
            .space
            .must_map(Map::file(&files::numbered(1, b'a'), 24 * PAGE, 4 * PAGE));
        for page in [16, 25, 27] {
            let at = page * PAGE;
            let exit = guest.vcpu.load(at);
            assert!(exit.is_fault_at(at), "load of page {page}: {exit:?}");
            let exit = guest.vcpu.store(at + 8, 1);
            assert!(exit.is_fault_at(at), "store to page {page}: {exit:?}");
        }
        assert_eq!(guest.vcpu.load(24 * PAGE), Exit::Done(word(b'a')));
        // Mended, the guest goes on.
        assert!(guest.vcpu.load(16 * PAGE).is_fault_at(16 * PAGE));
        guest.space.must_map(Map::anon(16 * PAGE, PAGE).replace());
        assert_eq!(guest.vcpu.resume(), Exit::Done(0));
    }
}

fn truncated_file() {
    let mut guest = Guest::new(64);
    let file = files::numbered(4, b'a');
    guest.space.must_map(Map::file(&file, 16 * PAGE, 4 * PAGE));
    assert_eq!(guest.vcpu.store(18 * PAGE, 7), Exit::Done(7));
    file.set_len(2 * PAGE).expect("ftruncate");
    let exit = guest.vcpu.load(18 * PAGE);
    assert!(exit.is_fault_at(18 * PAGE), "{exit:?}");
    assert_eq!(guest.vcpu.load(17 * PAGE), Exit::Done(word(b'b')));
    file.set_len(4 * PAGE).expect("ftruncate");
    assert_eq!(
        guest.vcpu.load(18 * PAGE),
        Exit::Done(0),
        "what was cut off is gone"
    );
}

fn writes_to_read_only() {
    let mut guest = Guest::new(64);
    let file = files::numbered(4, b'a');
    guest
        .space
        .must_map(Map::file(&file, 16 * PAGE, 4 * PAGE).prot(PROT_READ));
    guest
        .space
        .must_map(Map::anon(32 * PAGE, PAGE).prot(PROT_READ));
    for at in [16 * PAGE, 19 * PAGE + 8, 32 * PAGE] {
        assert_eq!(
            guest.vcpu.store(at, 0x55),
            Exit::store_to_hole(at, 0x55),
            "{at:#x}"
        );
        assert!(matches!(guest.vcpu.load(at), Exit::Done(_)), "{at:#x}");
        assert_eq!(
            guest.vcpu.store(at, 0x66),
            Exit::store_to_hole(at, 0x66),
            "after a load"
        );
    }
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).expect("read");
    assert_eq!(byte, [b'a']);
    assert_eq!(guest.vcpu.load(16 * PAGE), Exit::Done(word(b'a')));
    // Writable again by a replacement.
    guest
        .space
        .must_map(Map::file(&file, 16 * PAGE, PAGE).replace());
    assert_eq!(guest.vcpu.store(16 * PAGE, 0x77), Exit::Done(0x77));
}
