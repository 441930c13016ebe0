// SPDX-License-Identifier: GPL-2.0

//! Huge pages of a space are huge pages of its guests, where addresses and slots suit.

use asfd::sys::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use libc::{MADV_COLLAPSE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, PROT_READ};

use crate::harness::skip;
use crate::support::files;
use crate::support::guest::{window, Exit, Vcpu, Vm};
use crate::support::pages::{Size, Source};
use crate::support::rights::View;
use crate::support::smp::{each, leaves, Board, Code};
use crate::support::system::no_khugepaged;
use crate::support::{Map, Space, HUGE, PAGE};

crate::suite![
    huge_where_addresses_agree,
    ends_of_slots_are_small,
    logging_makes_them_small,
    parts_are_unmapped,
    parts_are_protected,
    huge_again_when_collapsed,
    by_a_view,
    aliases,
];

/// Where the memory is in the space, and where the guest has it.
const AT: u64 = 64 * HUGE;
const BASE: u64 = 8 * HUGE;
const COUNT: u64 = 3;
const LEN: u64 = COUNT * HUGE;
const SMALL: u64 = HUGE / PAGE;

/// Memory of huge pages in a space, from `AT`.
struct Huge {
    space: Space,
    size: Option<Size>,
    _source: Option<Source>,
}

impl Huge {
    fn file(size: Size) -> Huge {
        let source = Source::new(size, COUNT);
        let space = Space::new();
        space.must_map(Map::file(&source.full(LEN), AT, LEN));
        Huge {
            space,
            size: Some(size),
            _source: Some(source),
        }
    }

    fn memory() -> Huge {
        let space = Space::new();
        space.must_map(Map::anon(AT, LEN));
        space.must_advise(AT, LEN, MADV_HUGEPAGE);
        for page in 0..COUNT {
            space.put(AT + page * HUGE, &[0]);
        }
        Huge {
            space,
            size: None,
            _source: None,
        }
    }

    fn each() -> impl Iterator<Item = Huge> {
        let files = [Size::Transparent, Size::Hugetlb].into_iter();
        files
            .map(Huge::file)
            .chain(std::iter::once_with(Huge::memory))
    }

    fn unit(&self) -> u64 {
        self.size.map_or(PAGE, Size::unit)
    }
}

/// A guest that counts the pages which it has of the memory.
struct Guest {
    vm: Vm,
    vcpu: Vcpu,
    _board: Board,
    before: [u64; 3],
}

impl Guest {
    fn new() -> Guest {
        let vm = Vm::new();
        let board = Board::on(&vm);
        let mut vcpu = vm.vcpu(0);
        // What the code needs is not counted.
        touch(&mut vcpu, PAGE, PAGE);
        let before = leaves(&vm);
        Guest {
            vm,
            vcpu,
            _board: board,
            before,
        }
    }

    /// Reads all pages, then says how many of 4 KiB and of 2 MiB they take.
    #[track_caller]
    fn pages(&mut self, at: u64, len: u64) -> [u64; 2] {
        touch(&mut self.vcpu, at, len);
        self.present()
    }

    fn present(&self) -> [u64; 2] {
        let [small, huge, giant] = leaves(&self.vm);
        assert_eq!(giant, 0);
        [small - self.before[0], huge - self.before[1]]
    }
}

#[track_caller]
fn touch(vcpu: &mut Vcpu, at: u64, len: u64) {
    let exit = each(vcpu, Code::Read, at, len, PAGE, 0);
    assert!(matches!(exit, Exit::Done(_)), "{exit:?}");
}

/// Also what is mapped by a store is huge, and what is read can then be written without a fault.
fn huge_where_addresses_agree() {
    for huge in Huge::each() {
        for shift in [0, PAGE, HUGE / 2, HUGE - PAGE] {
            for store in [false, true] {
                let mut guest = Guest::new();
                let at = BASE + shift;
                guest.vm.must_map(window(1, at, LEN, &huge.space, AT));
                if store {
                    let exit = each(&mut guest.vcpu, Code::Fill, at, LEN, PAGE, 7);
                    assert_eq!(exit, Exit::Done(7));
                }
                let expected = if shift == 0 {
                    [0, COUNT]
                } else {
                    [COUNT * SMALL, 0]
                };
                let got = guest.pages(at, LEN);
                assert_eq!(got, expected, "{:?} shifted by {shift:#x}", huge.size);
            }
        }
        assert_eq!(huge.space.get(AT + LEN - PAGE, 4), 7u32.to_le_bytes());
    }
}

/// A slot that ends within a huge page shows the part of it that is its own.
fn ends_of_slots_are_small() {
    for huge in Huge::each() {
        for (skip, cut, expected) in [
            (PAGE, 0, [SMALL - 1, COUNT - 1]),
            (0, PAGE, [SMALL - 1, COUNT - 1]),
            (3 * PAGE, 5 * PAGE, [2 * SMALL - 8, COUNT - 2]),
            (0, LEN - PAGE, [1, 0]),
        ] {
            let mut guest = Guest::new();
            let (at, len) = (BASE + skip, LEN - skip - cut);
            guest
                .vm
                .must_map(window(1, at, len, &huge.space, AT + skip));
            assert_eq!(guest.pages(at, len), expected, "{:?}", huge.size);
            for outside in [at - PAGE, at + len] {
                let exit = guest.vcpu.load(outside);
                assert_eq!(exit, Exit::load_of_hole(outside));
            }
        }
    }
}

/// A page that is logged is small, one that is not any more is huge again; nothing is lost.
fn logging_makes_them_small() {
    let eager = std::fs::read_to_string("/sys/module/kvm/parameters/eager_page_split");
    let tdp = std::fs::read_to_string("/sys/module/kvm/parameters/tdp_mmu");
    let splits =
        [eager, tdp].map(|what| what.is_ok_and(|value| value.starts_with('Y'))) == [true; 2];
    for huge in Huge::each() {
        let mut guest = Guest::new();
        let mut shown = window(1, BASE, LEN, &huge.space, AT);
        guest.vm.must_map(shown);
        assert_eq!(guest.pages(BASE, LEN), [0, COUNT]);
        for round in 0..3 {
            shown.flags = KVM_MEM_LOG_DIRTY_PAGES;
            guest.vm.must_map(shown);
            if splits {
                let got = guest.present();
                assert_eq!(got, [COUNT * SMALL, 0], "split at once, {:?}", huge.size);
            }
            let written = [0, 5, SMALL - 1, SMALL, LEN / PAGE - 1];
            for page in written {
                let exit = guest.vcpu.store(BASE + page * PAGE, round);
                assert_eq!(exit, Exit::Done(round));
            }
            let dirty = guest.vm.dirty_pages(1, LEN);
            assert_eq!(dirty, written, "{:?}, round {round}", huge.size);
            let exit = each(&mut guest.vcpu, Code::Fill, BASE, LEN, PAGE, round);
            assert_eq!(exit, Exit::Done(round));
            let got = guest.pages(BASE, LEN);
            assert_eq!(got, [COUNT * SMALL, 0], "logged, {:?}", huge.size);
            let all: Vec<u64> = (0..LEN / PAGE).collect();
            assert_eq!(guest.vm.dirty_pages(1, LEN), all);
            shown.flags = 0;
            guest.vm.must_map(shown);
            let got = guest.pages(BASE, LEN);
            assert_eq!(got, [0, COUNT], "no longer logged, {:?}", huge.size);
            assert_eq!(huge.space.get(AT + HUGE - PAGE, 4), round.to_le_bytes());
        }
    }
}

/// What is around a hole stays, and what is put there is seen.
fn parts_are_unmapped() {
    for huge in Huge::each() {
        let (mut guest, unit) = (Guest::new(), huge.unit());
        guest.vm.must_map(window(1, BASE, LEN, &huge.space, AT));
        let exit = each(&mut guest.vcpu, Code::Fill, BASE, LEN, PAGE, 3);
        assert_eq!(exit, Exit::Done(3));
        let part = HUGE.next_multiple_of(unit) + if unit == PAGE { 100 * PAGE } else { 0 };
        huge.space.unmap(AT + part, unit).expect("unmap");
        for at in [part, part + unit - PAGE] {
            let exit = guest.vcpu.load(BASE + at);
            assert_eq!(exit, Exit::load_of_hole(BASE + at), "{:?}", huge.size);
        }
        for at in [part - PAGE, part + unit] {
            assert_eq!(guest.vcpu.load(BASE + at), Exit::Done(3), "{at:#x}");
        }
        touch(&mut guest.vcpu, BASE, part);
        let [small, pages] = guest.pages(BASE + part + unit, LEN - part - unit);
        let expected = if unit == PAGE { SMALL - 1 } else { 0 };
        assert_eq!([small, pages], [expected, COUNT - 1], "{:?}", huge.size);
        let file = files::numbered(1, b'n');
        huge.space.must_map(Map::file(&file, AT + part, PAGE));
        let expected = Exit::Done(crate::support::guest::word(b'n'));
        assert_eq!(guest.vcpu.load(BASE + part), expected);
    }
}

fn parts_are_protected() {
    for huge in Huge::each() {
        let (mut guest, unit) = (Guest::new(), huge.unit());
        guest.vm.must_map(window(1, BASE, LEN, &huge.space, AT));
        let exit = each(&mut guest.vcpu, Code::Fill, BASE, LEN, PAGE, 3);
        assert_eq!(exit, Exit::Done(3));
        let part = HUGE.next_multiple_of(unit) + if unit == PAGE { 100 * PAGE } else { 0 };
        huge.space.must_protect(AT + part, unit, PROT_READ);
        let at = BASE + part;
        assert_eq!(guest.vcpu.store(at, 9), Exit::store_to_hole(at, 9));
        assert_eq!(guest.vcpu.load(at), Exit::Done(3), "{:?}", huge.size);
        for at in [at - PAGE, at + unit] {
            assert_eq!(guest.vcpu.store(at, 4), Exit::Done(4), "{at:#x}");
        }
        huge.space
            .must_protect(AT + part, unit, PROT_READ | libc::PROT_WRITE);
        assert_eq!(guest.vcpu.store(at, 5), Exit::Done(5));
        // Of one kind again, they are one mapping in the guest, too.
        let exit = each(&mut guest.vcpu, Code::Fill, BASE, LEN, PAGE, 6);
        assert_eq!(exit, Exit::Done(6));
        if unit == HUGE {
            assert_eq!(guest.pages(BASE, LEN), [0, COUNT]);
        }
    }
}

/// Small pages that the guest has become huge when they do in the space.
fn huge_again_when_collapsed() {
    let _setting = no_khugepaged();
    let mut guest = Guest::new();
    let space = Space::new();
    space.must_map(Map::anon(AT, LEN));
    space.must_advise(AT, LEN, MADV_NOHUGEPAGE);
    guest.vm.must_map(window(1, BASE, LEN, &space, AT));
    for page in 0..LEN / PAGE {
        space.put(AT + page * PAGE, &(page as u32).to_le_bytes());
    }
    assert_eq!(guest.pages(BASE, LEN), [COUNT * SMALL, 0]);
    space.must_advise(AT, LEN, MADV_HUGEPAGE);
    for page in 0..COUNT {
        if space.advise(AT + page * HUGE, HUGE, MADV_COLLAPSE).is_err() {
            skip("no memory for huge pages");
        }
        let huge = page + 1;
        let expected = [(COUNT - huge) * SMALL, huge];
        assert_eq!(guest.pages(BASE, LEN), expected, "{page} collapsed");
    }
    for page in 0..LEN / PAGE {
        let exit = guest.vcpu.load(BASE + page * PAGE);
        assert_eq!(exit, Exit::Done(page as u32));
    }
}

/// A view that begins within a huge page shows it where offsets agree; and a window that cannot be
/// written is huge as well.
fn by_a_view() {
    for huge in Huge::each() {
        let start = AT - 5 * PAGE;
        let view = huge
            .space
            .must_view(View::of(start, LEN + 5 * PAGE).prot(PROT_READ));
        for (offset, expected) in [(5 * PAGE, [0, COUNT]), (4 * PAGE, [COUNT * SMALL - 1, 0])] {
            let mut guest = Guest::new();
            let mut shown = window(1, BASE, LEN, &view, offset);
            shown.flags = KVM_MEM_READONLY;
            guest.vm.must_map(shown);
            let hole = 5 * PAGE - offset;
            let got = guest.pages(BASE + hole, LEN - hole);
            assert_eq!(got, expected, "{:?} from {offset:#x}", huge.size);
            let exit = guest.vcpu.store(BASE + HUGE, 1);
            assert_eq!(exit, Exit::store_to_hole(BASE + HUGE, 1));
        }
    }
}

/// The same huge page at two addresses, one that suits and one that does not: when a part of it
/// goes, it goes from both.
fn aliases() {
    for huge in Huge::each() {
        let (mut guest, unit) = (Guest::new(), huge.unit());
        let second = BASE + 2 * LEN + PAGE;
        guest.vm.must_map(window(1, BASE, LEN, &huge.space, AT));
        guest.vm.must_map(window(2, second, LEN, &huge.space, AT));
        touch(&mut guest.vcpu, BASE, LEN);
        assert_eq!(guest.pages(second, LEN), [COUNT * SMALL, COUNT]);
        assert_eq!(guest.vcpu.store(second + HUGE, 8), Exit::Done(8));
        assert_eq!(guest.vcpu.load(BASE + HUGE), Exit::Done(8));
        huge.space.unmap(AT + HUGE, unit).expect("unmap");
        for at in [BASE + HUGE, second + HUGE] {
            assert_eq!(guest.vcpu.load(at), Exit::load_of_hole(at), "{at:#x}");
            let next = at + unit;
            assert_eq!(guest.vcpu.load(next), Exit::Done(0), "{next:#x}");
        }
    }
}
