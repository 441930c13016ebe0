// SPDX-License-Identifier: GPL-2.0

//! Passes over a mirror are served ahead, from what is there: they take few faults, and no page is
//! made that nobody asked for.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use libc::{MADV_NOHUGEPAGE, PROT_READ};

use crate::support::files;
use crate::support::mirror::{faults, mirror, Area};
use crate::support::pages::{Size, Source};
use crate::support::rights::RW;
use crate::support::system::free_huge_pages;
use crate::support::{Map, Space, HUGE, PAGE};

crate::suite![
    passes_over_memfds_allocate_nothing,
    passes_over_huge_files_allocate_nothing,
    passes_over_hugetlb_allocate_nothing,
    passes_over_anonymous_memory_allocate_nothing,
    forward_passes_take_few_faults,
    passes_over_huge_pages_take_few_faults,
    nothing_is_served_ahead_of_a_single_access,
];

/// Two page tables, and a part of a third.
const PAGES: u64 = 1024 + 100;
const LEN: u64 = 3 * HUGE;

/// In which order pages are touched.
type Order = (&'static str, fn(u64) -> Vec<u64>);
const ORDERS: [Order; 7] = [
    ("forward", |pages| (0..pages).collect()),
    ("backward", |pages| (0..pages).rev().collect()),
    ("the first half", |pages| (0..pages / 2).collect()),
    ("the second half", |pages| (pages / 2..pages).collect()),
    ("each third", |pages| (0..pages).step_by(3).collect()),
    // The unit before is there each time, and the one after is not.
    ("each unit", |pages| (0..pages).step_by(16).collect()),
    ("random", |pages| {
        let mut random = fastrand::Rng::with_seed(7);
        (0..pages / 4).map(|_| random.u64(0..pages)).collect()
    }),
];

/// Which pages of a file are there at first.
type Fill = (&'static str, fn(u64) -> bool);
const FILLS: [Fill; 4] = [
    ("no page", |_| false),
    ("each fifth page", |page| page % 5 == 0),
    ("runs of pages", |page| page / 40 % 2 == 0),
    ("a random half", |page| {
        fastrand::Rng::with_seed(page).bool()
    }),
];

fn filled(file: File, fill: fn(u64) -> bool) -> File {
    for page in (0..PAGES).filter(|page| fill(*page)) {
        file.write_all_at(&[1], page * PAGE).expect("write");
    }
    file
}

fn touch(area: &Area, pages: &[u64], store: bool) {
    for page in pages {
        let at = page * PAGE + 8;
        if store {
            assert_eq!(area.store(at, 2), Ok(()), "page {page}");
        } else {
            assert!(area.load(at).is_ok(), "page {page}");
        }
    }
}

/// The file then has as many blocks as one that an ordinary mapping was accessed of.
fn allocates_as_a_plain_mapping(size: Size) {
    let source = Source::new(size, 6);
    for (order, pages) in ORDERS {
        let pages = pages(PAGES);
        for (what, fill) in FILLS {
            for store in [false, true] {
                let ours = filled(source.file(LEN), fill);
                let theirs = filled(source.file(LEN), fill);
                let space = Space::new();
                space.must_map(Map::file(&ours, 0, LEN));
                touch(&mirror(&space, 0, LEN), &pages, store);
                touch(&Area::of_file(&theirs, LEN, RW), &pages, store);
                let blocks = |file: &File| file.metadata().expect("fstat").blocks();
                let (ours, theirs) = (blocks(&ours), blocks(&theirs));
                assert_eq!(ours, theirs, "{order} over {what}, store: {store}");
            }
        }
    }
}

fn passes_over_memfds_allocate_nothing() {
    allocates_as_a_plain_mapping(Size::Small);
}

fn passes_over_huge_files_allocate_nothing() {
    allocates_as_a_plain_mapping(Size::Transparent);
}

/// Of the pages of a hugetlb file only those are made that are touched, in whatever order.
fn passes_over_hugetlb_allocate_nothing() {
    const COUNT: u64 = 6;
    let source = Source::new(Size::Hugetlb, COUNT);
    let passes: [&[u64]; 6] = [
        &[0, 1],
        &[0, 1, 2],
        &[5, 4, 3],
        &[0, 2, 4],
        &[1, 2, 3, 4],
        &[3, 0, 1],
    ];
    let made: [&[u64]; 3] = [&[], &[0, 3], &[4]];
    for pass in passes {
        for there in made {
            for store in [false, true] {
                let file = source.file(COUNT * HUGE);
                let before = free_huge_pages();
                let plain = Area::of_file(&file, COUNT * HUGE, RW);
                there
                    .iter()
                    .for_each(|n| assert_eq!(plain.store(n * HUGE, 1), Ok(())));
                let space = Space::new();
                space.must_map(Map::file(&file, 0, COUNT * HUGE));
                let area = mirror(&space, 0, COUNT * HUGE);
                let small: Vec<u64> = pass.iter().map(|n| n * HUGE / PAGE + 9).collect();
                touch(&area, &small, store);
                let expected: BTreeSet<&u64> = pass.iter().chain(there).collect();
                let taken = before - free_huge_pages();
                let case = format!("{pass:?} where {there:?} were, store: {store}");
                assert_eq!(taken, expected.len() as u64, "{case}");
            }
        }
    }
}

fn passes_over_anonymous_memory_allocate_nothing() {
    for (order, pages) in ORDERS {
        let pages = pages(PAGES);
        let touched = pages.iter().collect::<BTreeSet<_>>().len() as u64 * PAGE;
        for shared in [false, true] {
            for store in [false, true] {
                let space = Space::new();
                let map = Map::anon(0, LEN);
                space.must_map(if shared { map.shared() } else { map });
                space.must_advise(0, LEN, MADV_NOHUGEPAGE);
                touch(&mirror(&space, 0, LEN), &pages, store);
                let resident = space.info().resident_bytes;
                let case = format!("{order}, shared: {shared}, store: {store}");
                if shared || store {
                    assert_eq!(resident, touched, "{case}");
                } else {
                    // What was only read may be the page of zeros.
                    assert!(resident <= touched, "{case}: {resident} {touched}");
                }
            }
        }
    }
}

/// Faults of one access a page, in that order.
fn taken(area: &Area, pages: &[u64], store: bool) -> u64 {
    // What of our own memory is used is present, then.
    touch(&Area::anonymous(PAGE), &[0], store);
    let before = faults();
    touch(area, pages, store);
    faults() - before
}

/// Of each page table a pass takes its first unit, then 16 pages and 240, and the rest. If the first
/// fault was tried as that of a huge page, it may have found the page alone.
const FAULTS_A_TABLE: u64 = 4;

fn forward_passes_take_few_faults() {
    const TABLES: u64 = 4;
    let len = TABLES * HUGE;
    let pages = len / PAGE;
    let forward: Vec<u64> = (0..pages).collect();
    let backward: Vec<u64> = (0..pages).rev().collect();
    let file = files::numbered(pages, 1);
    type Case = (&'static str, fn(&File, u64) -> Space);
    let cases: [Case; 3] = [
        ("what is in the page cache only", |file, len| {
            let space = Space::new();
            space.must_map(Map::file(file, 0, len));
            space
        }),
        ("what is present in the space", |file, len| {
            let space = Space::new();
            space.must_map(Map::file(file, 0, len));
            space.must_advise(0, len, libc::MADV_POPULATE_WRITE);
            space
        }),
        // Its pages are dirty: others get a fault for the first store to each.
        ("private memory that was written", |_, len| {
            let space = Space::new();
            space.must_map(Map::anon(0, len));
            space.must_advise(0, len, MADV_NOHUGEPAGE);
            space.put(0, &vec![1; len as usize]);
            space
        }),
    ];
    for store in [false, true] {
        let plain = taken(&Area::of_file(&file, len, RW), &forward, store);
        assert!(plain >= pages / 16, "{plain} faults: are they counted?");
        for (what, make) in &cases {
            let case = format!("{what}, store: {store}");
            let space = make(&file, len);
            let area = Area::reserve(len, HUGE).replace_by_mirror(&space, 0, RW);
            let once = taken(&area, &forward, store);
            assert!(once >= TABLES, "{case}: {once}: are they counted?");
            assert!(once <= FAULTS_A_TABLE * TABLES + 2, "{case}: {once}");
            assert!(once <= plain / 8, "{case}: {once}, plain mapping: {plain}");
            // It is there now, for all that it was touched for.
            let again = taken(&area, &forward, store);
            assert!(again <= 1, "{case}: {again} for the second pass");

            let space = make(&file, len);
            let area = Area::reserve(len, HUGE).replace_by_mirror(&space, 0, RW);
            let once = taken(&area, &backward, store);
            assert!(once <= pages / 16 + TABLES + 2, "{case}, backward: {once}");
        }
    }
}

fn passes_over_huge_pages_take_few_faults() {
    const COUNT: u64 = 8;
    for size in [Size::Transparent, Size::Hugetlb] {
        let source = Source::new(size, COUNT);
        let file = source.full(COUNT * HUGE);
        let pages: Vec<u64> = (0..COUNT * HUGE / PAGE).collect();
        for store in [false, true] {
            let space = Space::new();
            space.must_map(Map::file(&file, 0, COUNT * HUGE));
            let area = Area::reserve(COUNT * HUGE, HUGE).replace_by_mirror(&space, 0, RW);
            let once = taken(&area, &pages, store);
            // The first, then all others; the area may lie in two tables of huge pages.
            assert!((1..=5).contains(&once), "{size:?}, store: {store}: {once}");
        }
    }
}

/// Only what is mapped before it makes an access a step of a pass.
fn nothing_is_served_ahead_of_a_single_access() {
    let len = 4 * HUGE;
    let file = files::numbered(len / PAGE, 1);
    // Each in a unit of 16 pages of its own, and none in the one after another's.
    let units = len / PAGE / 16;
    let backward: Vec<u64> = (0..units).rev().map(|unit| unit * 16 + unit % 16).collect();
    let mut apart: Vec<u64> = (0..units).step_by(2).map(|unit| unit * 16 + 15).collect();
    fastrand::Rng::with_seed(3).shuffle(&mut apart);
    for pages in [backward, apart] {
        for (store, prot) in [(false, PROT_READ), (false, RW), (true, RW)] {
            let space = Space::new();
            space.must_map(Map::file(&file, 0, len).prot(prot));
            let area = Area::reserve(len, HUGE).replace_by_mirror(&space, 0, prot);
            let once = taken(&area, &pages, store);
            let least = pages.len() as u64;
            assert!(once >= least, "{once} faults of {least}, store: {store}");
            assert!(
                once <= least + 2,
                "{once} faults of {least}, store: {store}"
            );
        }
    }
}
