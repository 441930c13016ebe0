// SPDX-License-Identifier: GPL-2.0

//! Huge pages of a space are huge pages in its mirrors, where the addresses suit.

use std::fs::File;

use libc::{MADV_COLLAPSE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, PROT_NONE, PROT_READ, PROT_WRITE};

use crate::harness::skip;
use crate::note;
use crate::support::files::{self, TempFile, Tmpfs};
use crate::support::mirror::{faults, mirror, Area, Peer};
use crate::support::probe::Fault;
use crate::support::system::{counter, need_huge_pages, Setting};
use crate::support::{Map, Space, HUGE, PAGE};

crate::suite![
    one_fault_for_each_hugetlb_page,
    one_fault_for_each_huge_page_of_a_file,
    one_fault_for_each_huge_page_of_memory,
    addresses_that_do_not_suit,
    addresses_are_chosen_to_suit,
    parts_are_protected,
    parts_are_replaced,
    parts_are_unmapped,
    parts_of_mirrors,
    hugetlb_pages_are_replaced,
    split_and_collapsed,
    zeros,
];

const RW: i32 = PROT_READ | PROT_WRITE;
const COUNT: u64 = 4;
const LEN: u64 = COUNT * HUGE;

/// Memory of huge pages in a space at `LEN`, all of them present.
struct Huge {
    space: Space,
    file: Option<File>,
    _keep: Box<dyn std::any::Any>,
}

type Kind = (&'static str, fn() -> Huge);

impl Huge {
    fn hugetlb() -> Huge {
        let pages = need_huge_pages(COUNT);
        let file = files::huge_memfd(LEN);
        let space = Space::new();
        space.must_map(Map::file(&file, LEN, LEN));
        Huge::filled(space, Some(file), Box::new(pages))
    }

    fn file() -> Huge {
        let tmpfs = Tmpfs::mount("huge=always").unwrap_or_else(|why| skip(&why));
        let temp = TempFile::new(tmpfs.path(), LEN);
        let space = Space::new();
        space.must_map(Map::file(&temp.file, LEN, LEN));
        let before = counter("/proc/meminfo", "ShmemHugePages");
        let file = temp.file.try_clone().expect("dup");
        let huge = Huge::filled(space, Some(file), Box::new((temp, tmpfs)));
        let now = counter("/proc/meminfo", "ShmemHugePages");
        if now - before < LEN / 1024 {
            skip("no huge pages for files");
        }
        huge
    }

    fn memory() -> Huge {
        let space = Space::new();
        space.must_map(Map::anon(LEN, LEN));
        space.advise(LEN, LEN, MADV_HUGEPAGE).expect("HUGEPAGE");
        let before = counter("/proc/meminfo", "AnonHugePages");
        let huge = Huge::filled(space, None, Box::new(()));
        let now = counter("/proc/meminfo", "AnonHugePages");
        if now - before < LEN / 1024 {
            skip("no huge pages for memory");
        }
        huge
    }

    /// The first byte of each small page is its number, roughly.
    fn filled(space: Space, file: Option<File>, keep: Box<dyn std::any::Any>) -> Huge {
        for page in 0..LEN / PAGE {
            space.put(LEN + page * PAGE, &[number(page)]);
        }
        Huge {
            space,
            file,
            _keep: keep,
        }
    }

    /// A mirror of all of it at an address that suits.
    fn mirror(&self) -> Area {
        Area::reserve(LEN, HUGE).replace_by_mirror(&self.space, LEN, RW)
    }

    fn each() -> [Kind; 3] {
        [
            ("hugetlb", Huge::hugetlb),
            ("a file", Huge::file),
            ("memory", Huge::memory),
        ]
    }
}

fn number(page: u64) -> u8 {
    (page % 251) as u8 + 1
}

/// The space's page that the test is about, from the start of its memory: in the middle of the
/// second huge page.
const MIDDLE: u64 = HUGE + 100 * PAGE;

#[track_caller]
fn all_as_it_was(area: &Area, except: std::ops::Range<u64>) {
    for page in 0..LEN / PAGE {
        let at = page * PAGE;
        if !except.contains(&at) {
            assert_eq!(area.load(at), Ok(number(page)), "page {page}");
        }
    }
}

/// Loads, or stores to, each small page; returns the faults that it took.
fn pass(area: &Area, store: bool) -> u64 {
    // What of our own memory is used is present, then.
    let before = faults();
    for page in 0..area.len() / PAGE {
        if store {
            assert_eq!(area.store(page * PAGE, number(page)), Ok(()));
        } else {
            assert_eq!(area.load(page * PAGE), Ok(number(page)));
        }
    }
    faults() - before
}

fn few_faults(huge: &Huge) {
    pass(&huge.mirror(), false);
    for store in [false, true] {
        let area = huge.mirror();
        let taken = pass(&area, store);
        assert!(taken >= 1, "{taken} faults: are they counted?");
        assert!(taken <= COUNT + 1, "{taken} faults, store: {store}");
        // Then it is all there, and can be written as it could be read.
        let taken = pass(&area, true);
        assert!(taken <= COUNT + 1, "{taken} faults for stores");
        let taken = pass(&area, false);
        assert!(taken <= 1, "{taken} faults of what is present");
    }
    let area = mirror(&huge.space, LEN, LEN);
    let taken = pass(&area, false);
    assert!(taken <= COUNT + 1, "{taken} faults where the kernel chose");
}

fn one_fault_for_each_hugetlb_page() {
    few_faults(&Huge::hugetlb());
}

fn one_fault_for_each_huge_page_of_a_file() {
    few_faults(&Huge::file());
}

fn one_fault_for_each_huge_page_of_memory() {
    few_faults(&Huge::memory());
}

/// Small pages of a huge page where the mirror lies otherwise.
fn addresses_that_do_not_suit() {
    for (kind, make) in Huge::each() {
        let huge = make();
        let space = &huge.space;
        for shift in [PAGE, HUGE / 2, HUGE - PAGE] {
            // Neither the address nor the offset may be taken for that of a huge page.
            let area = Area::reserve(LEN - HUGE, HUGE).replace_by_mirror(space, LEN + shift, RW);
            for page in 0..area.len() / PAGE {
                let expected = number(page + shift / PAGE);
                let case = format!("{kind}, {shift:#x}, page {page}");
                assert_eq!(area.load(page * PAGE), Ok(expected), "{case}");
            }
            let at = HUGE + 5 * PAGE;
            assert_eq!(area.store(at + 1, 9), Ok(()));
            assert_eq!(space.byte(LEN + shift + at + 1), 9, "{kind}, {shift:#x}");
            drop(area);
            let (addr, len) = Area::reserve(LEN, HUGE).forget();
            let head = Area::adopt(addr, shift);
            let tail = Area::adopt(addr + shift, len - shift);
            let area = tail.replace_by_mirror(space, LEN, RW);
            for page in 0..area.len() / PAGE {
                assert_eq!(
                    area.load(page * PAGE),
                    Ok(number(page)),
                    "{kind}, {shift:#x}"
                );
            }
            drop(head);
        }
        // A part of a huge page only.
        let at = LEN + HUGE + 7 * PAGE;
        let part = mirror(space, at, 3 * PAGE);
        for page in 0..3 {
            let expected = number((at - LEN) / PAGE + page);
            assert_eq!(part.load(page * PAGE), Ok(expected), "{kind}");
        }
    }
}

fn addresses_are_chosen_to_suit() {
    let space = Space::new();
    let mut kept = Vec::new();
    let mut random = fastrand::Rng::with_seed(5);
    for round in 0..64u64 {
        // Whatever else the process maps meanwhile.
        let other = Area::anonymous(random.u64(1..64) * PAGE);
        let len = HUGE * random.u64(1..8) + PAGE * random.u64(0..16);
        let area = mirror(&space, round % 8 * HUGE, len);
        assert_eq!(area.addr() % HUGE, 0, "{len:#x} bytes");
        let at_start = mirror(&space, 0, HUGE);
        assert_eq!(at_start.addr() % HUGE, 0);
        if random.bool() {
            kept.push((other, area, at_start));
        }
    }
    assert_eq!(space.info().mirrors, 2 * kept.len() as u64);
}

fn parts_are_protected() {
    for (kind, make) in [Huge::each()[1], Huge::each()[2]] {
        let huge = make();
        let area = huge.mirror();
        let peer = Peer::new(|| huge.mirror());
        pass(&area, true);
        assert_eq!(peer.store(MIDDLE, number(MIDDLE / PAGE)), Ok(()));
        let middle = LEN + MIDDLE;
        huge.space
            .protect(middle, PAGE, PROT_READ)
            .expect("PROTECT");
        assert_eq!(area.store(MIDDLE, 0), Err(Fault::denied(MIDDLE)), "{kind}");
        assert_eq!(peer.store(MIDDLE, 0), Err(Fault::denied(MIDDLE)), "{kind}");
        for at in [MIDDLE - 1, MIDDLE + PAGE] {
            let byte = area.load(at).expect("readable");
            assert_eq!(area.store(at, byte), Ok(()), "{kind}");
            assert_eq!(peer.store(at, byte), Ok(()), "{kind}");
        }
        all_as_it_was(&area, 0..0);
        huge.space
            .protect(middle, PAGE, PROT_NONE)
            .expect("PROTECT");
        assert_eq!(area.load(MIDDLE), Err(Fault::denied(MIDDLE)), "{kind}");
        assert_eq!(peer.load(MIDDLE), Err(Fault::denied(MIDDLE)), "{kind}");
        all_as_it_was(&area, MIDDLE..MIDDLE + PAGE);
        huge.space.protect(LEN, LEN, RW).expect("PROTECT");
        pass(&area, true);
        all_as_it_was(&area, 0..0);
    }
}

fn parts_are_replaced() {
    for (kind, make) in [Huge::each()[1], Huge::each()[2]] {
        let huge = make();
        let area = huge.mirror();
        let peer = Peer::new(|| huge.mirror());
        pass(&area, true);
        assert_eq!(peer.load(MIDDLE), Ok(number(MIDDLE / PAGE)));
        let other = files::numbered(2, b'A');
        let map = Map::file(&other, LEN + MIDDLE, 2 * PAGE).replace();
        huge.space.must_map(map);
        for (at, byte) in [(0, b'A'), (PAGE, b'B')] {
            assert_eq!(area.load(MIDDLE + at), Ok(byte), "{kind}");
            assert_eq!(peer.load(MIDDLE + at), Ok(byte), "{kind}");
            assert_eq!(area.store(MIDDLE + at, byte), Ok(()), "{kind}");
        }
        all_as_it_was(&area, MIDDLE..MIDDLE + 2 * PAGE);
        if let Some(file) = &huge.file {
            let alias = Area::of_file(file, LEN, PROT_READ);
            assert_eq!(alias.load(MIDDLE), Ok(number(MIDDLE / PAGE)), "the file");
            // Back again, which makes it whole.
            let map = Map::file(file, LEN + MIDDLE, 2 * PAGE).offset(MIDDLE);
            huge.space.must_map(map.replace());
            all_as_it_was(&area, 0..0);
        }
        // A whole huge page by small ones, and the other way round.
        huge.space.must_map(Map::anon(LEN + HUGE, HUGE).replace());
        assert_eq!(area.load(MIDDLE), Ok(0), "{kind}");
        assert_eq!(peer.load(HUGE), Ok(0), "{kind}");
        all_as_it_was(&area, HUGE..2 * HUGE);
        if let Some(file) = &huge.file {
            let map = Map::file(file, LEN + HUGE, HUGE).offset(HUGE);
            huge.space.must_map(map.replace());
            all_as_it_was(&area, 0..0);
        }
    }
}

fn parts_are_unmapped() {
    for (kind, make) in [Huge::each()[1], Huge::each()[2]] {
        let huge = make();
        let area = huge.mirror();
        let peer = Peer::new(|| huge.mirror());
        pass(&area, true);
        assert_eq!(peer.load(MIDDLE), Ok(number(MIDDLE / PAGE)));
        huge.space.unmap(LEN + MIDDLE, PAGE).expect("unmap");
        assert_eq!(
            area.load(MIDDLE + 1),
            Err(Fault::hole(MIDDLE + 1)),
            "{kind}"
        );
        assert_eq!(peer.store(MIDDLE, 1), Err(Fault::hole(MIDDLE)), "{kind}");
        all_as_it_was(&area, MIDDLE..MIDDLE + PAGE);
        huge.space.unmap(LEN + HUGE, HUGE).expect("unmap");
        assert_eq!(area.load(HUGE), Err(Fault::hole(HUGE)), "{kind}");
        assert_eq!(peer.load(2 * HUGE - 1), Err(Fault::hole(2 * HUGE - 1)));
        all_as_it_was(&area, HUGE..2 * HUGE);
    }
}

/// mprotect, munmap and mremap of parts of the mirror, not of the space.
fn parts_of_mirrors() {
    for (kind, make) in Huge::each() {
        let huge = make();
        let area = huge.mirror();
        let whole = huge.mirror();
        pass(&area, true);
        area.protect(MIDDLE, PAGE, PROT_READ).expect("mprotect");
        assert_eq!(area.store(MIDDLE, 1), Err(Fault::denied(MIDDLE)), "{kind}");
        area.protect(MIDDLE, PAGE, RW).expect("mprotect");
        pass(&area, true);
        area.unmap(MIDDLE, PAGE).expect("munmap");
        assert_eq!(area.load(MIDDLE), Err(Fault::unmapped(MIDDLE)), "{kind}");
        all_as_it_was(&area, MIDDLE..MIDDLE + PAGE);
        all_as_it_was(&whole, 0..0);
        // To an address that does not suit.
        let (target, _) = Area::reserve(LEN + PAGE, HUGE).forget();
        let (addr, len) = whole.forget();
        // SAFETY: Our own area, moved over reserved addresses.
        let moved = unsafe {
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            let to = (target + PAGE) as *mut libc::c_void;
            libc::mremap(addr as *mut _, len as usize, len as usize, flags, to)
        };
        assert_eq!(moved as u64, target + PAGE, "{kind}: mremap");
        let moved = Area::adopt(moved as u64, len);
        all_as_it_was(&moved, 0..0);
        pass(&moved, true);
        drop(Area::adopt(target, PAGE));
        huge.space.unmap(LEN + HUGE, HUGE).expect("unmap");
        assert_eq!(moved.load(HUGE + 5), Err(Fault::hole(HUGE + 5)), "{kind}");
        all_as_it_was(&moved, HUGE..2 * HUGE);
    }
}

fn hugetlb_pages_are_replaced() {
    let huge = Huge::hugetlb();
    let _more = need_huge_pages(1);
    let area = huge.mirror();
    let peer = Peer::new(|| huge.mirror());
    pass(&area, true);
    assert_eq!(peer.load(MIDDLE), Ok(number(MIDDLE / PAGE)));
    let second = LEN + HUGE;
    huge.space
        .protect(second, HUGE, PROT_READ)
        .expect("PROTECT");
    assert_eq!(area.store(MIDDLE, 1), Err(Fault::denied(MIDDLE)));
    assert_eq!(peer.store(MIDDLE, 1), Err(Fault::denied(MIDDLE)));
    all_as_it_was(&area, 0..0);
    huge.space.protect(second, HUGE, RW).expect("PROTECT");
    assert_eq!(peer.store(MIDDLE + 1, 1), Ok(()));
    let other = files::huge_memfd(HUGE);
    huge.space
        .must_map(Map::file(&other, second, HUGE).replace());
    assert_eq!(area.load(MIDDLE), Ok(0), "another page");
    assert_eq!(peer.store(MIDDLE, 3), Ok(()));
    assert_eq!(area.load(MIDDLE), Ok(3));
    huge.space.unmap(second, HUGE).expect("unmap");
    assert_eq!(area.load(MIDDLE), Err(Fault::hole(MIDDLE)));
    assert_eq!(peer.load(HUGE), Err(Fault::hole(HUGE)));
    // Small pages where a huge one was, and the first again.
    huge.space.must_map(Map::anon(second, HUGE));
    assert_eq!(area.load(MIDDLE), Ok(0));
    assert_eq!(area.store(MIDDLE, 4), Ok(()));
    let first = huge.file.as_ref().expect("a file");
    let map = Map::file(first, second, HUGE).offset(HUGE).replace();
    huge.space.must_map(map);
    all_as_it_was(&area, 0..0);
    assert_eq!(peer.load(MIDDLE + 1), Ok(1));
}

/// The space's memory becomes huge, or small, under the mirror.
fn split_and_collapsed() {
    let space = Space::new();
    space.must_map(Map::anon(LEN, LEN));
    space.advise(LEN, LEN, MADV_NOHUGEPAGE).expect("NOHUGEPAGE");
    let area = Area::reserve(LEN, HUGE).replace_by_mirror(&space, LEN, RW);
    for page in 0..LEN / PAGE {
        assert_eq!(area.store(page * PAGE, number(page)), Ok(()));
    }
    let huge_before = counter("/proc/meminfo", "AnonHugePages");
    for round in 0..4 {
        space.advise(LEN, LEN, MADV_HUGEPAGE).expect("HUGEPAGE");
        let done = space.advise(LEN, LEN, MADV_COLLAPSE);
        note!("round {round}: COLLAPSE: {done:?}");
        if round == 0 && done.is_ok() {
            let now = counter("/proc/meminfo", "AnonHugePages");
            assert!(now >= huge_before + LEN / 1024, "{huge_before} {now}");
        }
        pass(&area, round % 2 == 0);
        assert_eq!(area.store(MIDDLE + 1, round), Ok(()));
        assert_eq!(space.byte(LEN + MIDDLE + 1), round);
        // Splits one of them.
        let part = LEN + MIDDLE;
        space.protect(part, PAGE, PROT_READ).expect("PROTECT");
        all_as_it_was(&area, 0..0);
        space.protect(part, PAGE, RW).expect("PROTECT");
        let one = Map::anon(LEN + 3 * HUGE, PAGE).replace();
        space.must_map(one);
        assert_eq!(area.load(3 * HUGE), Ok(0));
        assert_eq!(area.store(3 * HUGE, number(3 * HUGE / PAGE)), Ok(()));
        all_as_it_was(&area, 0..0);
    }
}

/// The huge page of zeros, if there is one.
fn zeros() {
    let path = "/sys/kernel/mm/transparent_hugepage/use_zero_page";
    let _setting = Setting::set(path, "1");
    let space = Space::new();
    space.must_map(Map::anon(LEN, LEN));
    space.advise(LEN, LEN, MADV_HUGEPAGE).expect("HUGEPAGE");
    let areas = [(); 2].map(|()| Area::reserve(LEN, HUGE).replace_by_mirror(&space, LEN, RW));
    for area in &areas {
        (0..LEN / PAGE).for_each(|page| assert_eq!(area.load(page * PAGE), Ok(0)));
    }
    assert_eq!(areas[0].store(MIDDLE, 5), Ok(()));
    assert_eq!(areas[1].load(MIDDLE), Ok(5));
    assert_eq!(areas[1].load(MIDDLE + PAGE), Ok(0));
    space.put(LEN + 3 * HUGE + 9, b"x");
    assert_eq!(areas[0].load(3 * HUGE + 9), Ok(b'x'));
    assert_eq!(areas[1].load(3 * HUGE + 9), Ok(b'x'));
    // Nobody else's zeros.
    let other = Space::new();
    other.must_map(Map::anon(LEN, LEN));
    other.advise(LEN, LEN, MADV_HUGEPAGE).expect("HUGEPAGE");
    let area = Area::reserve(LEN, HUGE).replace_by_mirror(&other, LEN, RW);
    (0..LEN / PAGE).for_each(|page| assert_eq!(area.load(page * PAGE), Ok(0)));
}
