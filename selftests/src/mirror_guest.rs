// SPDX-License-Identifier: GPL-2.0

//! An ordinary memslot whose memory is a mirror.

use std::time::Duration;

use libc::{PROT_READ, PROT_WRITE};

use crate::support::files;
use crate::support::guest::{plain_code, sees, word, Exit, Kicker, OwnMemory, Vcpu, Vm};
use crate::support::mirror::{mirror_with, Area};
use crate::support::system::need_huge_pages;
use crate::support::{Map, Space, HUGE, PAGE};

crate::suite![
    guest_uses_the_space,
    edits_show_in_the_guest,
    running_guest_sees_edits,
    guest_of_huge_pages,
    dirty_log_of_a_mirror,
];

/// Where the slot lies in the guest.
const BASE: u64 = 16 * HUGE;

struct Guest {
    space: Space,
    area: Area,
    vm: Vm,
    vcpu: Vcpu,
    _code: OwnMemory,
}

impl Guest {
    /// A slot of `len` bytes from the start of a space.
    fn new(len: u64, flags: u32) -> Guest {
        let (space, vm) = (Space::new(), Vm::new());
        let code = plain_code(&vm);
        let prot = PROT_READ | PROT_WRITE;
        let area = Area::reserve(len, HUGE).replace_by_mirror(&space, 0, prot);
        vm.set_plain_slot(1, flags, BASE, len, area.addr())
            .expect("an ordinary slot");
        let vcpu = vm.vcpu(0);
        Guest {
            space,
            area,
            vm,
            vcpu,
            _code: code,
        }
    }

    /// Nothing that the guest could read or write.
    #[track_caller]
    fn sees_nothing(&mut self, at: u64) {
        let load = self.vcpu.load(BASE + at);
        assert!(!matches!(load, Exit::Done(_)), "load: {load:?}");
        self.vcpu.reset();
        let store = self.vcpu.store(BASE + at, 1);
        assert!(!matches!(store, Exit::Done(_)), "store: {store:?}");
        self.vcpu.reset();
    }
}

fn guest_uses_the_space() {
    let mut guest = Guest::new(64 * PAGE, 0);
    let file = files::numbered(8, b'a');
    guest.space.must_map(Map::file(&file, 0, 8 * PAGE));
    guest.space.must_map(Map::anon(16 * PAGE, 8 * PAGE));
    for page in 0..8 {
        let at = page * PAGE;
        let expected = Exit::Done(word(b'a' + page as u8));
        assert_eq!(guest.vcpu.load(BASE + at), expected);
        let stored = guest.vcpu.store(BASE + at, 77);
        assert_eq!(stored, Exit::Done(77));
        assert_eq!(guest.space.get(at, 4), 77u32.to_le_bytes());
        assert_eq!(guest.area.load(at), Ok(77));
        let memory = 16 * PAGE + at;
        assert_eq!(guest.vcpu.store(BASE + memory, 5), Exit::Done(5));
        guest.space.put(memory, &[6, 0, 0, 0]);
        assert_eq!(guest.vcpu.load(BASE + memory), Exit::Done(6));
    }
    guest.sees_nothing(8 * PAGE);
}

fn edits_show_in_the_guest() {
    let mut guest = Guest::new(64 * PAGE, 0);
    let at = 4 * PAGE;
    for round in 0..5 {
        guest.sees_nothing(at);
        guest
            .space
            .must_map(Map::file(&files::numbered(1, b'f'), at, PAGE));
        assert_eq!(guest.vcpu.load(BASE + at), Exit::Done(word(b'f')));
        assert_eq!(guest.vcpu.store(BASE + at, round), Exit::Done(round));
        let other = files::numbered(1, b'g');
        guest.space.must_map(Map::file(&other, at, PAGE).replace());
        assert_eq!(guest.vcpu.load(BASE + at), Exit::Done(word(b'g')));
        guest.space.protect(at, PAGE, PROT_READ).expect("PROTECT");
        assert_eq!(guest.vcpu.load(BASE + at), Exit::Done(word(b'g')));
        let store = guest.vcpu.store(BASE + at, 9);
        assert!(!matches!(store, Exit::Done(_)), "{store:?}");
        guest.vcpu.reset();
        assert_eq!(guest.space.byte(at), b'g');
        guest.space.unmap(at, PAGE).expect("unmap");
    }
    // A mirror that is not writable.
    let read_only = mirror_with(&guest.space, 0, 64 * PAGE, PROT_READ);
    guest.space.must_map(Map::anon(at, PAGE));
    guest
        .vm
        .set_plain_slot(2, 0, 2 * BASE, 64 * PAGE, read_only.addr())
        .expect("an ordinary slot");
    assert_eq!(guest.vcpu.load(2 * BASE + at), Exit::Done(0));
    let store = guest.vcpu.store(2 * BASE + at, 9);
    assert!(!matches!(store, Exit::Done(_)), "{store:?}");
    assert_eq!(guest.space.byte(at), 0);
}

fn running_guest_sees_edits() {
    let Guest {
        space,
        area: _area,
        vm: _vm,
        mut vcpu,
        _code,
    } = Guest::new(64 * PAGE, 0);
    let at = 4 * PAGE;
    let files = [b'a', b'b'].map(|byte| files::numbered(1, byte));
    space.must_map(Map::file(&files[0], at, PAGE));
    for round in 0..20u8 {
        let (old, new) = (word(b'a' + round % 2), word(b'a' + (round + 1) % 2));
        let next = &files[(round as usize + 1) % 2];
        let exit = sees(&mut vcpu, BASE + at, old, || {
            space.must_map(Map::file(next, at, PAGE).replace());
        });
        assert_eq!(exit, Exit::Done(new), "round {round}");
    }
    let _kicker = Kicker::after(Duration::from_millis(500));
    let exit = sees(&mut vcpu, BASE + at, word(b'a'), || {
        space.unmap(at, PAGE).expect("unmap");
    });
    assert!(!matches!(exit, Exit::Done(_)), "{exit:?}");
}

fn guest_of_huge_pages() {
    let _pages = need_huge_pages(2);
    let file = files::huge_memfd(2 * HUGE);
    let mut guest = Guest::new(2 * HUGE, 0);
    guest.space.must_map(Map::file(&file, 0, 2 * HUGE));
    for at in (0..2 * HUGE).step_by(37 * PAGE as usize) {
        assert_eq!(
            guest.vcpu.store(BASE + at, at as u32 + 1),
            Exit::Done(at as u32 + 1)
        );
        assert_eq!(guest.space.get(at, 4), (at as u32 + 1).to_le_bytes());
    }
    guest.space.unmap(HUGE, HUGE).expect("unmap");
    guest.sees_nothing(HUGE + 5 * PAGE);
    assert_eq!(guest.vcpu.load(BASE), Exit::Done(1));
    guest.space.must_map(Map::anon(HUGE, HUGE));
    assert_eq!(guest.vcpu.load(BASE + HUGE), Exit::Done(0));
    // A store into the new memory is not one into the file.
    let alias = Area::of_file(&file, 2 * HUGE, PROT_READ);
    let before = alias.get(HUGE, HUGE);
    assert_eq!(guest.vcpu.store(BASE + HUGE, 99), Exit::Done(99));
    assert_eq!(guest.vcpu.store(BASE + HUGE + 5 * PAGE, 99), Exit::Done(99));
    assert!(alias.get(HUGE, HUGE) == before);
}

fn dirty_log_of_a_mirror() {
    const LOG: u32 = 1;
    let len = 64 * PAGE;
    let mut guest = Guest::new(len, LOG);
    guest.space.must_map(Map::anon(0, len));
    for page in 0..64 {
        assert_eq!(guest.vcpu.load(BASE + page * PAGE), Exit::Done(0));
    }
    guest.vm.dirty_pages(1, len);
    for round in 0..4 {
        let pages = [3 + round, 17, 40 + round];
        for page in pages {
            let stored = guest.vcpu.store(BASE + page * PAGE, 1);
            assert_eq!(stored, Exit::Done(1));
        }
        assert_eq!(guest.vm.dirty_pages(1, len), pages);
    }
}
