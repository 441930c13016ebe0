// SPDX-License-Identifier: GPL-2.0

//! address_space_munmap.

use crate::support::files;
use crate::support::snapshot::{unchanged, Snapshot};
use crate::support::system::counter;
use crate::support::{Errno, Map, Space, PAGE};
use asfd::sys::address_space_munmap;
use std::os::fd::AsRawFd;

crate::suite![
    splits,
    passes_over_holes,
    holes_only,
    whole_space,
    rounds_up,
    refusals,
    wrong_descriptors,
    memory_comes_back,
];

/// The mapped pages of the first `pages`, as a string: '.' a hole, else what the page is full of.
fn picture(space: &Space, pages: u64) -> String {
    let page = |n| match space.read_at(n * PAGE, &mut [0]) {
        Ok(_) => space.byte(n * PAGE) as char,
        Err(Errno::EIO) => '.',
        Err(e) => panic!("page {n}: {e}"),
    };
    (0..pages).map(page).collect()
}

/// Pages a to f at 0, a hole of two pages, then k to n.
fn scenery() -> Space {
    let space = Space::new();
    space.must_map(Map::file(&files::numbered(6, b'a'), 0, 6 * PAGE));
    space.must_map(Map::file(&files::numbered(4, b'k'), 8 * PAGE, 4 * PAGE));
    assert_eq!(picture(&space, 13), "abcdef..klmn.");
    space
}

fn splits() {
    let cases = [
        (0, 2, "..cdef..klmn."),
        (1, 1, "a.cdef..klmn."),
        (2, 3, "ab...f..klmn."),
        (4, 2, "abcd....klmn."),
        (0, 6, "........klmn."),
        (9, 2, "abcdef..k..n."),
    ];
    for (start, pages, expected) in cases {
        let space = scenery();
        space.unmap(start * PAGE, pages * PAGE).expect("unmap");
        assert_eq!(picture(&space, 13), expected);
        let mappings = space.mappings();
        let total: u64 = mappings.iter().map(|m| m.end - m.start).sum();
        assert_eq!(total, (10 - pages) * PAGE);
        assert_eq!(space.info().mapped_bytes, total);
        assert_eq!(space.info().mappings, mappings.len() as u64);
        for mapping in &mappings[..] {
            // A part keeps the offset of what it shows.
            let base = if mapping.start < 8 * PAGE {
                0
            } else {
                8 * PAGE
            };
            assert_eq!(mapping.offset, mapping.start - base, "{mapping:x?}");
        }
    }
}

fn passes_over_holes() {
    let cases = [
        (4, 6, "abcd......mn."),
        (5, 8, "abcde........"),
        (6, 3, "abcdef...lmn."),
        (0, 13, "............."),
    ];
    for (start, pages, expected) in cases {
        let space = scenery();
        space.unmap(start * PAGE, pages * PAGE).expect("unmap");
        assert_eq!(picture(&space, 13), expected);
    }
}

fn holes_only() {
    let space = scenery();
    let before = Snapshot::take(&space);
    for (start, pages) in [(6, 2), (7, 1), (12, 1), (100, 1 << 20)] {
        assert_eq!(space.unmap(start * PAGE, pages * PAGE), Ok(()), "{start}");
    }
    assert_eq!(Space::new().unmap(0, PAGE), Ok(()), "an empty space");
    assert_eq!(before.differs(&Snapshot::take(&space)), None);
}

fn whole_space() {
    let space = scenery();
    space.must_map(Map::anon(space.end() - PAGE, PAGE));
    space
        .unmap(space.end() - PAGE, PAGE)
        .expect("the last page");
    assert_eq!(space.info().mappings, 2);
    space.must_map(Map::anon(space.end() - PAGE, PAGE));
    space.unmap(0, space.end()).expect("all");
    assert_eq!(space.mappings(), []);
    let info = space.info();
    assert_eq!(
        (info.mappings, info.mapped_bytes, info.resident_bytes),
        (0, 0, 0)
    );
    space.must_map(Map::anon(0, PAGE));
}

fn rounds_up() {
    for (len, expected) in [
        (1, ".bcdef.."),
        (PAGE - 1, ".bcdef.."),
        (PAGE + 1, "..cdef.."),
    ] {
        let space = scenery();
        space.unmap(0, len).expect("unmap");
        assert_eq!(picture(&space, 8), expected, "len {len}");
    }
    let space = Space::new();
    space.must_map(Map::anon(space.end() - PAGE, PAGE));
    space
        .unmap(space.end() - PAGE, 1)
        .expect("rounded up to the end");
    assert_eq!(space.info().mappings, 0);
}

fn refusals() {
    let space = scenery();
    let end = space.end();
    space.must_map(Map::anon(end - PAGE, PAGE));
    let cases = [
        ("zero length", 0, 0),
        ("zero length in a hole", 6 * PAGE, 0),
        ("unaligned", 1, PAGE),
        ("unaligned", PAGE / 2, 2 * PAGE),
        ("at the end", end, PAGE),
        ("beyond the end", end + PAGE, PAGE),
        ("over the end", end - PAGE, 2 * PAGE),
        ("over the end by a byte", end - PAGE, PAGE + 1),
        ("longer than the space", 0, end + 1),
        ("longer than all", 0, u64::MAX),
        ("length that rounds to nothing", PAGE, u64::MAX - 1),
        ("past 2^64", PAGE, u64::MAX - PAGE + 1),
        ("last address", u64::MAX - PAGE + 1, PAGE),
    ];
    for (what, addr, len) in cases {
        let refused = unchanged(&space, || space.unmap(addr, len));
        assert_eq!(refused, Err(Errno::EINVAL), "{what}: {addr:#x}, {len:#x}");
    }
}

fn wrong_descriptors() {
    let errno = |fd| address_space_munmap(fd, 0, PAGE).map_err(crate::support::space::errno);
    assert_eq!(errno(-1), Err(Errno::EBADF));
    assert_eq!(errno(9999), Err(Errno::EBADF));
    assert_eq!(errno(files::memfd(PAGE).as_raw_fd()), Err(Errno::EINVAL));
    let null = std::fs::File::open("/dev/null").expect("/dev/null");
    assert_eq!(errno(null.as_raw_fd()), Err(Errno::EINVAL));
}

/// Pages of anonymous memory are freed by unmapping, not first when the space goes.
fn memory_comes_back() {
    const PAGES: u64 = 16384;
    let space = Space::new();
    let anonymous = || counter("/proc/meminfo", "AnonPages") * 1024;
    let before = anonymous();
    space.must_map(Map::anon(0, PAGES * PAGE).with(libc::MAP_POPULATE));
    assert_eq!(space.info().resident_bytes, PAGES * PAGE);
    let held = anonymous() - before;
    assert!(held > PAGES * PAGE * 9 / 10, "{held}");
    space.unmap(PAGE, (PAGES - 2) * PAGE).expect("unmap");
    assert_eq!(space.info().resident_bytes, 2 * PAGE);
    crate::support::system::eventually("the memory is free again", || {
        anonymous() < before + PAGES * PAGE / 10
    });
}
