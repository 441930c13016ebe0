// SPDX-License-Identifier: GPL-2.0

//! A guest that runs from a space: code, data, kinds of memory, the dirty log.

use std::os::unix::fs::FileExt;

use asfd::sys::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use libc::MAP_HUGETLB;

use crate::support::files;
use crate::support::guest::{place_code, window, word, Args, Exit, Guest, Routine, Vm, CODE, SLOT};
use crate::support::system::need_huge_pages;
use crate::support::{Map, Space, HUGE, PAGE};

crate::suite![
    runs_code_and_data,
    first_touch_is_a_store,
    offset_and_address_differ,
    above_four_gigabytes,
    private_and_huge_memory,
    copies_across,
    two_vms_share,
    dirty_log,
    dirty_log_switched_on_late,
    readonly_window,
    guest_memfd_of_the_same_vm,
];

fn runs_code_and_data() {
    let mut guest = Guest::new(64);
    let file = files::numbered(8, b'a');
    guest.space.must_map(Map::file(&file, 8 * PAGE, 8 * PAGE));
    for page in 0..8 {
        assert_eq!(
            guest.vcpu.load((8 + page) * PAGE),
            Exit::Done(word(b'a' + page as u8))
        );
    }
    assert_eq!(
        guest.vcpu.store(9 * PAGE + 4, 0x12345678),
        Exit::Done(0x12345678)
    );
    assert_eq!(
        guest.space.get(9 * PAGE + 4, 4),
        0x12345678u32.to_le_bytes(),
        "by the space"
    );
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, PAGE + 4).expect("read");
    assert_eq!(bytes, 0x12345678u32.to_le_bytes(), "by the file");
    guest.space.put(10 * PAGE, b"NEWS");
    assert_eq!(
        guest.vcpu.load(10 * PAGE),
        Exit::Done(u32::from_le_bytes(*b"NEWS"))
    );
    file.write_all_at(b"FILE", 3 * PAGE).expect("write");
    assert_eq!(
        guest.vcpu.load(11 * PAGE),
        Exit::Done(u32::from_le_bytes(*b"FILE"))
    );
}

/// Pages that nobody has touched, of each kind, where anonymous memory would be zero pages.
fn first_touch_is_a_store() {
    let mut guest = Guest::new(2048);
    let file = files::memfd(16 * PAGE);
    let kinds = [
        Map::anon(0, 16 * PAGE),
        Map::anon(0, 16 * PAGE).shared(),
        Map::file(&file, 0, 16 * PAGE),
        Map::file(&file, 0, 16 * PAGE).private(),
    ];
    for (n, mut map) in (0..).zip(kinds) {
        map.0.addr = (256 + 16 * n) * PAGE;
        guest.space.must_map(map);
        for page in 0..16 {
            let at = map.0.addr + page * PAGE;
            assert_eq!(guest.vcpu.store(at, 5), Exit::Done(5), "{map:x?}");
            assert_eq!(guest.space.get(at, 4), [5, 0, 0, 0]);
        }
    }
}

fn offset_and_address_differ() {
    let (space, vm) = (Space::new(), Vm::new());
    place_code(&space, 0x123_4567_8000);
    space.must_map(Map::file(&files::numbered(8, b'a'), 1 << 40, 8 * PAGE));
    vm.must_map(window(0, 0, PAGE, &space, 0x123_4567_8000));
    // Pages 2 to 4 of the file, from 0x7f000000 and once more from 0x1000.
    vm.must_map(window(
        1,
        0x7f00_0000,
        3 * PAGE,
        &space,
        (1 << 40) + 2 * PAGE,
    ));
    vm.must_map(window(2, 0x1000, 3 * PAGE, &space, (1 << 40) + 2 * PAGE));
    let mut vcpu = vm.vcpu(0);
    for page in 0..3 {
        let expected = Exit::Done(word(b'c' + page as u8));
        assert_eq!(vcpu.load(0x7f00_0000 + page * PAGE), expected);
        assert_eq!(vcpu.load(0x1000 + page * PAGE), expected);
    }
    assert_eq!(
        vcpu.load(0x7f00_0000 + 3 * PAGE),
        Exit::load_of_hole(0x7f00_0000 + 3 * PAGE)
    );
    assert_eq!(vcpu.store(0x7f00_0000, 99), Exit::Done(99));
    assert_eq!(vcpu.load(0x1000), Exit::Done(99));
}

/// The last page that 32-bit code reaches, backed by the last page of the space.
fn above_four_gigabytes() {
    let (space, vm) = (Space::new(), Vm::new());
    let end = space.end();
    place_code(&space, 0);
    space.must_map(Map::file(&files::numbered(1, b'z'), end - PAGE, PAGE));
    vm.must_map(window(0, 0, PAGE, &space, 0));
    vm.must_map(window(
        1,
        (1 << 32) - PAGE,
        1 << 20,
        &space,
        end - (1 << 20),
    ));
    let mut vcpu = vm.vcpu(0);
    let at = (1u64 << 32) - PAGE;
    assert_eq!(vcpu.load(at), Exit::load_of_hole(at));
    vm.unmap_slot(1).expect("delete");
    vm.must_map(window(1, at, PAGE, &space, end - PAGE));
    assert_eq!(vcpu.load(at), Exit::Done(word(b'z')));
}

fn private_and_huge_memory() {
    let _pages = need_huge_pages(2);
    let mut guest = Guest::new(4096);
    let file = files::numbered(4, b'a');
    guest
        .space
        .must_map(Map::file(&file, 8 * PAGE, 4 * PAGE).private());
    guest.space.must_map(Map::anon(16 * PAGE, 4 * PAGE));
    guest
        .space
        .must_map(Map::anon(HUGE, HUGE).with(MAP_HUGETLB));
    guest
        .space
        .must_map(Map::file(&files::huge_memfd(HUGE), 2 * HUGE, HUGE));
    assert_eq!(guest.vcpu.load(8 * PAGE), Exit::Done(word(b'a')));
    assert_eq!(guest.vcpu.store(8 * PAGE, 1), Exit::Done(1));
    assert_eq!(guest.vcpu.load(8 * PAGE), Exit::Done(1));
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).expect("read");
    assert_eq!(byte, [b'a'], "the file of a private mapping is not written");
    for at in [16 * PAGE, HUGE, 2 * HUGE - 4, 2 * HUGE, 3 * HUGE - PAGE] {
        assert_eq!(guest.vcpu.load(at), Exit::Done(0), "{at:#x}");
        assert_eq!(guest.vcpu.store(at, at as u32), Exit::Done(at as u32));
        assert_eq!(guest.vcpu.load(at), Exit::Done(at as u32));
        assert_eq!(guest.space.get(at, 4), (at as u32).to_le_bytes());
    }
}

fn copies_across() {
    let Guest {
        space,
        vm: _vm,
        mut vcpu,
    } = Guest::new(1024);
    space.must_map(Map::file(&files::numbered(40, 1), 64 * PAGE, 40 * PAGE));
    space.must_map(Map::anon(256 * PAGE, 20 * PAGE));
    space.must_map(Map::anon(276 * PAGE, 20 * PAGE).shared());
    let args = Args {
        esi: (64 * PAGE) as u32,
        edi: (256 * PAGE) as u32,
        ecx: 40 * PAGE as u32 / 4,
        ..Default::default()
    };
    assert!(matches!(vcpu.call(Routine::Copy, args), Exit::Done(_)));
    assert!(space.get(64 * PAGE, 40 * PAGE) == space.get(256 * PAGE, 40 * PAGE));
}

fn two_vms_share() {
    let (space, vms) = (Space::new(), [Vm::new(), Vm::new()]);
    place_code(&space, 0);
    space.must_map(Map::anon(4 * PAGE, 4 * PAGE));
    vms.iter()
        .for_each(|vm| vm.must_map(window(0, 0, 16 * PAGE, &space, 0)));
    let [mut first, mut second] = vms.each_ref().map(|vm| vm.vcpu(0));
    assert_eq!(first.store(4 * PAGE, 5), Exit::Done(5));
    assert_eq!(second.load(4 * PAGE), Exit::Done(5));
    space.unmap(4 * PAGE, PAGE).expect("unmap");
    for vcpu in [&mut first, &mut second] {
        assert_eq!(vcpu.load(4 * PAGE), Exit::load_of_hole(4 * PAGE));
    }
    assert_eq!(second.store(5 * PAGE, 6), Exit::Done(6));
    let [gone, _stays] = vms;
    drop((first, gone));
    assert_eq!(second.load(5 * PAGE), Exit::Done(6));
    space.must_map(Map::anon(4 * PAGE, PAGE));
    assert_eq!(second.load(4 * PAGE), Exit::Done(0));
}

/// The dirty pages but for the guest's page table.
fn data_pages(vm: &Vm) -> Vec<u64> {
    let mut pages = vm.dirty_pages(SLOT, 64 * PAGE);
    pages.retain(|page| *page != CODE / PAGE);
    pages
}

fn dirty_log() {
    let guest = Guest::with_flags(64, KVM_MEM_LOG_DIRTY_PAGES);
    let Guest {
        space,
        vm,
        mut vcpu,
    } = guest;
    space.must_map(Map::file(&files::memfd(16 * PAGE), 16 * PAGE, 16 * PAGE));
    space.must_map(Map::anon(32 * PAGE, 8 * PAGE));
    let dirty = || data_pages(&vm);
    assert_eq!(dirty(), []);
    // The first touch of a page may count as a write, on any slot: KVM maps it writable at once.
    (16..40).for_each(|page| assert!(matches!(vcpu.load(page * PAGE), Exit::Done(_))));
    dirty();
    let pages = [16, 19, 31, 32, 39];
    for round in 0..3 {
        for page in 16..40 {
            assert!(matches!(vcpu.load(page * PAGE), Exit::Done(_)));
        }
        assert_eq!(dirty(), [], "reading leaves clean, round {round}");
        for page in pages {
            assert_eq!(vcpu.store(page * PAGE + 4, round), Exit::Done(round));
        }
        assert_eq!(dirty(), pages, "round {round}");
    }
    assert_eq!(vcpu.store(17 * PAGE, 1), Exit::Done(1));
    space.must_map(Map::file(&files::memfd(PAGE), 17 * PAGE, PAGE).replace());
    assert_eq!(dirty(), [17], "written before it was replaced");
    assert_eq!(vcpu.store(17 * PAGE, 1), Exit::Done(1));
    assert_eq!(dirty(), [17], "the new one, too");
}

fn dirty_log_switched_on_late() {
    let Guest {
        space,
        vm,
        mut vcpu,
    } = Guest::new(64);
    space.must_map(Map::file(&files::memfd(16 * PAGE), 16 * PAGE, 16 * PAGE));
    (16..32).for_each(|page| assert_eq!(vcpu.store(page * PAGE, 1), Exit::Done(1)));
    let mut logged = window(SLOT, 0, 64 * PAGE, &space, 0);
    logged.flags = KVM_MEM_LOG_DIRTY_PAGES;
    vm.must_map(logged);
    assert_eq!(vcpu.store(20 * PAGE, 2), Exit::Done(2));
    assert_eq!(vcpu.store(21 * PAGE, 2), Exit::Done(2));
    assert_eq!(data_pages(&vm), [20, 21]);
    logged.flags = 0;
    vm.must_map(logged);
    assert_eq!(vcpu.store(22 * PAGE, 3), Exit::Done(3));
    assert!(
        vm.fd.get_dirty_log(SLOT, 64 << 12).is_err(),
        "no log any more"
    );
}

fn readonly_window() {
    let guest = Guest::new(16);
    let Guest {
        space,
        vm,
        mut vcpu,
    } = guest;
    let file = files::numbered(4, b'a');
    space.must_map(Map::file(&file, 32 * PAGE, 4 * PAGE));
    let mut extra = window(SLOT + 1, 32 * PAGE, 8 * PAGE, &space, 32 * PAGE);
    extra.flags = KVM_MEM_READONLY;
    vm.must_map(extra);
    assert_eq!(vcpu.load(33 * PAGE), Exit::Done(word(b'b')));
    assert_eq!(vcpu.store(33 * PAGE, 1), Exit::store_to_hole(33 * PAGE, 1));
    assert_eq!(vcpu.load(33 * PAGE), Exit::Done(word(b'b')));
    assert_eq!(
        vcpu.store(36 * PAGE, 1),
        Exit::store_to_hole(36 * PAGE, 1),
        "a hole"
    );
    // Through another window on the same pages it can be written.
    vm.must_map(window(SLOT + 2, 64 * PAGE, 8 * PAGE, &space, 32 * PAGE));
    assert_eq!(vcpu.store(65 * PAGE, 2), Exit::Done(2));
    assert_eq!(vcpu.load(33 * PAGE), Exit::Done(2));
}

fn guest_memfd_of_the_same_vm() {
    let Guest {
        space,
        vm,
        mut vcpu,
    } = Guest::with_flags(64, KVM_MEM_LOG_DIRTY_PAGES);
    let file = vm.shared_guest_memfd(8 * PAGE);
    space.must_map(Map::file(&file, 16 * PAGE, 8 * PAGE));
    for page in 16..24 {
        assert_eq!(vcpu.load(page * PAGE), Exit::Done(0));
    }
    data_pages(&vm);
    assert_eq!(vcpu.store(18 * PAGE, 6), Exit::Done(6));
    assert_eq!(data_pages(&vm), [18]);
    assert_eq!(space.get(18 * PAGE, 4), 6u32.to_le_bytes());
    space.put(19 * PAGE, &7u32.to_le_bytes());
    assert_eq!(vcpu.load(19 * PAGE), Exit::Done(7));
    space.unmap(18 * PAGE, PAGE).expect("unmap");
    assert_eq!(vcpu.load(18 * PAGE), Exit::load_of_hole(18 * PAGE));
    space.must_map(Map::file(&file, 18 * PAGE, PAGE).offset(2 * PAGE));
    assert_eq!(
        vcpu.load(18 * PAGE),
        Exit::Done(6),
        "the page was kept by its file"
    );
}
