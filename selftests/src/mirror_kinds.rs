// SPDX-License-Identifier: GPL-2.0

//! Mirrors of each kind of memory, and of memory that changes its place or its state.

use std::fs::File;
use std::os::unix::fs::FileExt;

use libc::{MADV_FREE, MADV_MERGEABLE, MADV_PAGEOUT, MADV_UNMERGEABLE};
use libc::{MAP_HUGETLB, MAP_POPULATE, PROT_READ, PROT_WRITE};
use nix::fcntl::{fallocate, FallocateFlags};

use crate::harness::skip;
use crate::note;
use crate::support::files::{self, Ext4, TempFile};
use crate::support::guest::Vm;
use crate::support::mirror::{mirror, mirror_with, Area, Peer};
use crate::support::probe::Fault;
use crate::support::swap::Swap;
use crate::support::system::{counter, eventually, need_huge_pages, Setting};
use crate::support::{Map, Space, HUGE, PAGE};

crate::suite![
    memfd_file,
    tmpfs_file,
    ext4_file,
    huge_memfd,
    guest_memfd,
    private_files,
    private_huge_file,
    anonymous,
    read_only_file,
    zero_page_then_write,
    file_page_then_copy,
    holes_punched,
    cut_off_files,
    paged_out,
    freed_lazily,
    merged_by_ksm,
    moved_by_compaction,
];

const RW: i32 = PROT_READ | PROT_WRITE;

/// Four units of memory at 0 of a space, as several mirrors see them.
struct Views {
    space: Space,
    unit: u64,
    whole: Area,
    /// Without the first unit.
    rest: Area,
    peer: Peer,
}

impl Views {
    fn of(map: Map, unit: u64) -> Views {
        let space = Space::new();
        space.must_map(map);
        let peer = Peer::new(|| mirror(&space, 0, 4 * unit));
        Views {
            whole: mirror(&space, 0, 4 * unit),
            rest: mirror(&space, unit, 3 * unit),
            peer,
            space,
            unit,
        }
    }

    #[track_caller]
    fn all_see(&self, at: u64, byte: u8, what: &str) {
        assert_eq!(self.whole.load(at), Ok(byte), "{what}: the whole, {at:#x}");
        assert_eq!(self.peer.load(at), Ok(byte), "{what}: a process, {at:#x}");
        assert_eq!(self.space.byte(at), byte, "{what}: pread, {at:#x}");
        if let Some(there) = at.checked_sub(self.unit) {
            assert_eq!(self.rest.load(there), Ok(byte), "{what}: the rest, {at:#x}");
        }
    }

    /// Whoever writes, all see it.
    #[track_caller]
    fn check(&self) {
        for unit in 0..4 {
            let at = unit * self.unit + 123;
            let first = 10 * unit as u8;
            self.all_see(at + 1, 0, "zeros");
            assert_eq!(self.whole.store(at, first + 1), Ok(()));
            self.all_see(at, first + 1, "a store");
            assert_eq!(self.peer.store(at, first + 2), Ok(()));
            self.all_see(at, first + 2, "a store of a process");
            self.space.put(at, &[first + 3]);
            self.all_see(at, first + 3, "pwrite");
            if unit > 0 {
                assert_eq!(self.rest.store(at - self.unit, first + 4), Ok(()));
                self.all_see(at, first + 4, "a store elsewhere");
            }
        }
        let end = 4 * self.unit - 1;
        assert_eq!(self.whole.store(end, 7), Ok(()));
        self.all_see(end, 7, "the last byte");
        let edge = 2 * self.unit - 3;
        assert_eq!(self.whole.store_word(edge, u64::MAX), Ok(()));
        (edge..edge + 8).for_each(|at| self.all_see(at, 0xff, "across units"));
    }
}

/// What mirrors write is in the file, and what is written to the file is in the mirrors.
fn check_shared(file: &File, unit: u64) {
    let views = Views::of(Map::file(file, 0, 4 * unit), unit);
    views.check();
    let alias = Area::of_file(file, 4 * unit, RW);
    for at in [0, 123, unit - 1, unit, 3 * unit + 5, 4 * unit - 1] {
        assert_eq!(views.whole.store(at, 99), Ok(()));
        assert_eq!(alias.load(at), Ok(99), "in the file");
        assert_eq!(alias.store(at, 111), Ok(()));
        views.all_see(at, 111, "by the file");
    }
}

/// What mirrors write is in the space and not in the file.
fn check_private(file: &File, unit: u64) {
    let alias = Area::of_file(file, 4 * unit, RW);
    let views = Views::of(Map::file(file, 0, 4 * unit).private(), unit);
    for n in 0..4 {
        let at = n * unit;
        assert_eq!(alias.store(at, 50), Ok(()));
        views.all_see(at, 50, "the file's");
        assert_eq!(alias.store(at, 51), Ok(()));
        views.all_see(at, 51, "still the file's");
        assert_eq!(views.peer.store(at, 60), Ok(()));
        views.all_see(at, 60, "a copy");
        assert_eq!(alias.load(at), Ok(51), "the file is not written");
        assert_eq!(alias.store(at, 52), Ok(()));
        views.all_see(at, 60, "a copy is a copy");
        // Back to what a new mapping of the file has.
        assert_eq!(alias.store(at, 0), Ok(()));
        let again = Map::file(file, at, unit).offset(at).private().replace();
        views.space.must_map(again);
        views.all_see(at, 0, "mapped anew");
    }
    views.check();
    assert!(alias.get(0, 4 * unit).iter().all(|byte| *byte == 0));
}

fn memfd_file() {
    check_shared(&files::memfd(4 * PAGE), PAGE);
}

fn tmpfs_file() {
    check_shared(&TempFile::new("/tmp", 4 * PAGE).file, PAGE);
}

fn ext4_file() {
    let ext4 = Ext4::mount().unwrap_or_else(|why| skip(&why));
    let temp = TempFile::new(ext4.path(), 4 * PAGE);
    check_shared(&temp.file, PAGE);
    // By another descriptor, with read(2).
    let views = Views::of(Map::file(&temp.file, 0, 4 * PAGE), PAGE);
    assert_eq!(views.whole.store(PAGE, b'!'), Ok(()));
    let mut byte = [0];
    let other = temp.open(true, false);
    other.read_exact_at(&mut byte, PAGE).expect("read");
    assert_eq!(byte, [b'!']);
}

fn huge_memfd() {
    let _pages = need_huge_pages(4);
    check_shared(&files::huge_memfd(4 * HUGE), HUGE);
}

fn guest_memfd() {
    check_shared(&Vm::new().shared_guest_memfd(4 * PAGE), PAGE);
}

fn private_files() {
    check_private(&files::memfd(4 * PAGE), PAGE);
    check_private(&TempFile::new("/tmp", 4 * PAGE).file, PAGE);
    match Ext4::mount() {
        Ok(ext4) => check_private(&TempFile::new(ext4.path(), 4 * PAGE).file, PAGE),
        Err(why) => note!("not on ext4: {why}"),
    }
}

fn private_huge_file() {
    // The file's, the copies, and the copies that replace them.
    let _pages = need_huge_pages(12);
    check_private(&files::huge_memfd(4 * HUGE), HUGE);
}

fn anonymous() {
    for map in [Map::anon(0, 4 * PAGE), Map::anon(0, 4 * PAGE).shared()] {
        Views::of(map, PAGE).check();
        Views::of(map.with(MAP_POPULATE), PAGE).check();
    }
    let _pages = need_huge_pages(4);
    for map in [Map::anon(0, 4 * HUGE), Map::anon(0, 4 * HUGE).shared()] {
        Views::of(map.with(MAP_HUGETLB), HUGE).check();
    }
}

fn read_only_file() {
    let temp = TempFile::new("/tmp", 4 * PAGE);
    files::number(&temp.file, 4, 1);
    let space = Space::new();
    space.must_map(Map::file(&temp.open(true, false), 0, 4 * PAGE).prot(PROT_READ));
    // The mirror may be writable, the mapping cannot.
    let area = mirror(&space, 0, 4 * PAGE);
    for page in 0..4 {
        let at = page * PAGE + 1;
        let denied = Err(Fault::denied(at));
        assert_eq!(area.store(at, 9), denied, "before a load");
        assert_eq!(area.load(at), Ok(page as u8 + 1));
        assert_eq!(area.store(at, 9), denied, "after a load");
    }
    // A private mapping of it can be written, and the file is as it was.
    let source = temp.open(true, false);
    space.must_map(Map::file(&source, 0, 4 * PAGE).private().replace());
    assert_eq!(area.load(PAGE), Ok(2));
    assert_eq!(area.store(PAGE, 9), Ok(()));
    assert_eq!(area.load(PAGE), Ok(9));
    let mut byte = [0];
    temp.file.read_exact_at(&mut byte, PAGE).expect("read");
    assert_eq!(byte, [2]);
}

/// Who has read the page of zeros sees what is written later.
fn zero_page_then_write() {
    for writer in 0..4 {
        let views = Views::of(Map::anon(0, 4 * PAGE), PAGE);
        let at = 2 * PAGE + 5;
        for page in 0..4 {
            views.all_see(page * PAGE + 5, 0, "zeros");
        }
        match writer {
            0 => views.space.put(at, &[9]),
            1 => assert_eq!(views.whole.store(at, 9), Ok(())),
            2 => assert_eq!(views.rest.store(at - PAGE, 9), Ok(())),
            _ => assert_eq!(views.peer.store(at, 9), Ok(())),
        }
        views.all_see(at, 9, "written");
        for page in [0, 1, 3] {
            views.all_see(
                page * PAGE + 5,
                0,
                "zeros are shared, what is written is not",
            );
        }
        // Another space has zeros still.
        let other = Space::new();
        other.must_map(Map::anon(0, PAGE));
        assert_eq!(mirror(&other, 0, PAGE).load(5), Ok(0));
    }
}

/// Who has read the file's page of a private mapping sees the copy that another makes.
fn file_page_then_copy() {
    for writer in 0..4 {
        let file = files::numbered(4, 1);
        let views = Views::of(Map::file(&file, 0, 4 * PAGE).private(), PAGE);
        let at = 2 * PAGE + 5;
        views.all_see(at, 3, "the file's");
        match writer {
            0 => views.space.put(at, &[9]),
            1 => assert_eq!(views.whole.store(at, 9), Ok(())),
            2 => assert_eq!(views.rest.store(at - PAGE, 9), Ok(())),
            _ => assert_eq!(views.peer.store(at, 9), Ok(())),
        }
        views.all_see(at, 9, "the copy");
        views.all_see(at + 1, 3, "the rest of the copy");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        assert_eq!(byte, [3], "the file");
    }
}

fn punch(file: &File, offset: u64, len: u64) {
    let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, how, offset as i64, len as i64).expect("punch hole");
}

fn holes_punched() {
    let ext4 = Ext4::mount().unwrap_or_else(|why| skip(&why));
    let _pages = need_huge_pages(4);
    let on_disk = TempFile::new(ext4.path(), 4 * PAGE);
    for (file, unit) in [
        (&files::memfd(4 * PAGE), PAGE),
        (&on_disk.file, PAGE),
        (&files::huge_memfd(4 * HUGE), HUGE),
    ] {
        let views = Views::of(Map::file(file, 0, 4 * unit), unit);
        for round in 1..4 {
            (0..4).for_each(|n| assert_eq!(views.whole.store(n * unit + 9, round), Ok(())));
            (0..4).for_each(|n| views.all_see(n * unit + 9, round, "before"));
            punch(file, unit, 2 * unit);
            for n in 0..4 {
                let now = if n == 0 || n == 3 { round } else { 0 };
                views.all_see(n * unit + 9, now, "after");
            }
            // From here on it is a new page.
            assert_eq!(views.peer.store(unit + 9, 77), Ok(()));
            views.all_see(unit + 9, 77, "a new page");
            let alias = Area::of_file(file, 4 * unit, PROT_READ);
            assert_eq!(alias.load(unit + 9), Ok(77), "it is the file's");
        }
    }
}

fn cut_off_files() {
    let ext4 = Ext4::mount().unwrap_or_else(|why| skip(&why));
    let _pages = need_huge_pages(4);
    let on_disk = TempFile::new(ext4.path(), 4 * PAGE);
    let in_memory = TempFile::new("/tmp", 4 * PAGE);
    for (file, unit) in [
        (&in_memory.file, PAGE),
        (&on_disk.file, PAGE),
        (&files::huge_memfd(4 * HUGE), HUGE),
    ] {
        let views = Views::of(Map::file(file, 0, 4 * unit), unit);
        for round in 1..4 {
            (0..4).for_each(|n| assert_eq!(views.whole.store(n * unit + 9, round), Ok(())));
            (0..4).for_each(|n| views.all_see(n * unit + 9, round, "before"));
            file.set_len(2 * unit).expect("ftruncate");
            views.all_see(unit + 9, round, "what is left");
            for n in [2, 3] {
                let at = n * unit + 9;
                assert_eq!(views.whole.load(at), Err(Fault::hole(at)));
                assert_eq!(views.whole.store(at, 1), Err(Fault::hole(at)));
                assert_eq!(views.peer.load(at), Err(Fault::hole(at)));
                assert_eq!(views.peer.store(at, 1), Err(Fault::hole(at)));
                let there = at - unit;
                assert_eq!(views.rest.load(there), Err(Fault::hole(there)));
            }
            file.set_len(4 * unit).expect("ftruncate");
            (2..4).for_each(|n| views.all_see(n * unit + 9, 0, "grown again"));
        }
    }
}

const MIB: u64 = 1 << 20;

fn word_of(page: u64, round: u64) -> u64 {
    (page + 1) * 0x1_0000_0001 + round
}

/// Pages that a mirror wrote go to swap and come back, also while mirrors have them mapped.
fn paged_out() {
    let Some(_swap) = Swap::on(1) else {
        skip("no swap");
    };
    let pages = MIB / PAGE;
    let memfd = files::memfd(MIB);
    for (name, map) in [
        ("private memory", Map::anon(0, MIB)),
        ("shared memory", Map::anon(0, MIB).shared()),
        ("memfd", Map::file(&memfd, 0, MIB)),
        ("private memfd", Map::file(&memfd, 0, MIB).private()),
    ] {
        let space = Space::new();
        space.must_map(map);
        let (first, second) = (mirror(&space, 0, MIB), mirror(&space, 0, MIB));
        for round in 0..2 {
            for page in 0..pages {
                let area = if page % 2 == 0 { &first } else { &second };
                let word = word_of(page, round);
                assert_eq!(area.store_word(page * PAGE + 8, word), Ok(()), "{name}");
            }
            let before = space.info().resident_bytes;
            assert!(before >= MIB, "{name}: {before}");
            space.advise(0, MIB, MADV_PAGEOUT).expect("PAGEOUT");
            let left = space.info().resident_bytes;
            assert!(left < MIB / 2, "{name}: {left} of {before} bytes stay");
            for page in 0..pages {
                let area = if page % 3 == 0 { &first } else { &second };
                let word = area.load_word(page * PAGE + 8);
                assert_eq!(word, Ok(word_of(page, round)), "{name}: page {page}");
            }
            // All of them are mapped in both mirrors now, clean in swap.
            space.advise(0, MIB, MADV_PAGEOUT).expect("PAGEOUT");
            for page in 0..pages {
                let bytes = space.get(page * PAGE + 8, 8);
                assert_eq!(bytes, word_of(page, round).to_le_bytes(), "{name}");
            }
        }
    }
}

/// What is written after MADV_FREE is kept, what was written before may be lost.
fn freed_lazily() {
    let Some(_swap) = Swap::on(2) else {
        skip("no swap");
    };
    let space = Space::new();
    let pages = 512;
    space.must_map(Map::anon(0, pages * PAGE));
    let area = mirror(&space, 0, pages * PAGE);
    for round in 0..5 {
        let (old, new) = (2 * round + 1, 2 * round + 2);
        (0..pages).for_each(|page| assert_eq!(area.store(page * PAGE, old), Ok(())));
        space.advise(0, pages * PAGE, MADV_FREE).expect("FREE");
        // Every third is written again, every third is read.
        for page in 0..pages {
            let at = page * PAGE;
            match page % 3 {
                0 => assert_eq!(area.store(at, new), Ok(())),
                1 => assert!([Ok(0), Ok(old)].contains(&area.load(at))),
                _ => (),
            }
        }
        space
            .advise(0, pages * PAGE, MADV_PAGEOUT)
            .expect("PAGEOUT");
        let mut lost = 0;
        for page in 0..pages {
            let now = area.load(page * PAGE);
            match page % 3 {
                0 => assert_eq!(now, Ok(new), "round {round}: page {page}"),
                _ => assert!([Ok(0), Ok(old)].contains(&now), "page {page}: {now:x?}"),
            }
            lost += (now == Ok(0)) as u32;
            assert_eq!(now, Ok(space.byte(page * PAGE)), "it stays what it is");
        }
        note!("round {round}: {lost} pages were freed");
    }
}

const KSM: &str = "/sys/kernel/mm/ksm";

fn ksm(name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("{KSM}/{name}")).expect("KSM");
    text.trim().parse().expect("a number")
}

/// A page that has been merged is written by nobody: a store through a mirror gets a copy, also by
/// a mirror that could write the page before it was merged.
fn merged_by_ksm() {
    if !std::fs::exists(KSM).unwrap_or(false) {
        skip("no KSM in this kernel");
    }
    const PAGES: u64 = 16;
    let len = PAGES * PAGE;
    let space = Space::new();
    space.must_map(Map::anon(0, len));
    let areas = [mirror(&space, 0, len), mirror(&space, 0, len)];
    (0..PAGES).for_each(|page| areas[0].put(page * PAGE, &[b'k'; PAGE as usize]));
    space.advise(0, len, MADV_MERGEABLE).expect("MERGEABLE");
    let _settings = [
        ("sleep_millisecs", "5"),
        ("pages_to_scan", "1000"),
        ("run", "1"),
    ]
    .map(|(name, value)| Setting::set(&format!("{KSM}/{name}"), value));
    // What is counted is what a whole scan has found.
    let wait = || {
        let scans = ksm("full_scans");
        eventually("the pages are merged", || {
            ksm("full_scans") > scans + 2 && ksm("pages_sharing") == PAGES - 1
        });
    };
    for round in 0..6u64 {
        wait();
        let page = 2 * round % PAGES;
        // Read before, or not.
        if round % 2 == 0 {
            for area in &areas {
                (0..PAGES).for_each(|page| assert_eq!(area.load(page * PAGE), Ok(b'k')));
            }
        }
        let writer = &areas[round as usize / 2 % 2];
        assert_eq!(writer.store(page * PAGE + 3, b'!'), Ok(()));
        for other in 0..PAGES {
            let expected = if other == page { b'!' } else { b'k' };
            assert_eq!(space.byte(other * PAGE + 3), expected, "page {other}");
            for area in &areas {
                assert_eq!(area.load(other * PAGE + 3), Ok(expected), "page {other}");
            }
        }
        // Through the mirror that has the page writable.
        assert_eq!(writer.store(page * PAGE + 3, b'k'), Ok(()));
    }
    wait();
    space.advise(0, len, MADV_UNMERGEABLE).expect("UNMERGEABLE");
    assert_eq!(areas[0].store(5, b'!'), Ok(()));
    assert_eq!(areas[1].get(0, 8), b"kkkkk!kk");
    assert_eq!(areas[1].load(PAGE + 5), Ok(b'k'));
}

/// Compaction moves pages that mirrors have mapped; what they wrote moves along, and what they
/// write then is not lost.
fn moved_by_compaction() {
    let memfd = files::memfd(16 * MIB);
    let space = Space::new();
    space.must_map(Map::anon(0, 16 * MIB));
    space.must_map(Map::file(&memfd, 16 * MIB, 16 * MIB));
    let area = mirror(&space, 0, 32 * MIB);
    let pages = 32 * MIB / PAGE;
    // Memory in between, which is free again afterwards: there is something to compact.
    let between = Area::anonymous(64 * MIB);
    for page in 0..pages {
        assert_eq!(area.store_word(page * PAGE, word_of(page, 0)), Ok(()));
        assert_eq!(between.store(2 * page * PAGE, 1), Ok(()));
        assert_eq!(between.store((2 * page + 1) * PAGE, 1), Ok(()));
    }
    drop(between);
    let moved = || counter("/proc/vmstat", "pgmigrate_success");
    let before = moved();
    for round in 0..4 {
        std::fs::write("/proc/sys/vm/compact_memory", "1").expect("compact_memory");
        for page in 0..pages {
            let at = page * PAGE;
            assert_eq!(area.load_word(at), Ok(word_of(page, round)), "page {page}");
            assert_eq!(area.store_word(at, word_of(page, round + 1)), Ok(()));
        }
    }
    for page in 0..pages {
        let bytes = space.get(page * PAGE, 8);
        assert_eq!(bytes, word_of(page, 4).to_le_bytes(), "page {page}");
    }
    note!("{} pages were moved", moved() - before);
    assert!(moved() > before, "nothing was moved");
    // Read-only ones do not become writable on the way.
    let read_only = mirror_with(&space, 0, 32 * MIB, PROT_READ);
    (0..pages).for_each(|page| assert!(read_only.load(page * PAGE).is_ok()));
    std::fs::write("/proc/sys/vm/compact_memory", "1").expect("compact_memory");
    for at in (0..32 * MIB).step_by(PAGE as usize * 37) {
        assert_eq!(read_only.store(at, 1), Err(Fault::denied(at)));
    }
}
