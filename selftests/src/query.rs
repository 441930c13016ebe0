// SPDX-License-Identifier: GPL-2.0

//! PROCMAP_QUERY and fdinfo: what they say of the mappings, and that they say the same.

use std::os::fd::AsRawFd;

use asfd::sys::*;
use libc::{MAP_HUGETLB, MAP_NORESERVE, PROT_NONE, PROT_READ, PROT_WRITE};

use crate::support::files::{self, TempFile};
use crate::support::space::{errno, Mapping};
use crate::support::system::need_huge_pages;
use crate::support::{Errno, Map, Result, Space, HUGE, PAGE};

crate::suite![
    covering,
    covering_or_next,
    filters,
    file_backed,
    names_and_offsets,
    name_buffers,
    struct_versions,
    bad_pointers,
    fdinfo_agrees,
    fdinfo_of_many_mappings,
    odd_names,
    info_counts,
    neighbours_merge,
];

/// A file at 0 (3 pages from its page 2), a hole, anonymous memory at 4 pages (read-only) and
/// 5 pages (no access), a private file at 8, shared anonymous memory at 16.
fn scenery() -> Space {
    let space = Space::new();
    let file = files::memfd_named("ram", 16 * PAGE);
    space.must_map(Map::file(&file, 0, 3 * PAGE).offset(2 * PAGE));
    space.must_map(Map::anon(4 * PAGE, PAGE).prot(PROT_READ));
    space.must_map(Map::anon(5 * PAGE, PAGE).prot(PROT_NONE));
    space.must_map(Map::file(&file, 8 * PAGE, PAGE).private());
    space.must_map(Map::anon(16 * PAGE, 4 * PAGE).shared());
    space
}

type Found = std::result::Result<u64, Errno>;

fn start(space: &Space, page: u64, flags: u64) -> Found {
    space.query(page * PAGE, flags).map(|m| m.start / PAGE)
}

const NONE: Found = Err(Errno::ENOENT);

fn covering() {
    let space = scenery();
    for (page, expected) in [
        (0, Ok(0)),
        (2, Ok(0)),
        (3, NONE),
        (4, Ok(4)),
        (5, Ok(5)),
        (6, NONE),
        (8, Ok(8)),
        (9, NONE),
        (19, Ok(16)),
        (20, NONE),
    ] {
        assert_eq!(start(&space, page, 0), expected, "page {page}");
    }
    for at in [space.end() - 1, space.end(), space.end() + PAGE, u64::MAX] {
        assert_eq!(space.query(at, 0), Err(Errno::ENOENT), "{at:#x}");
        let next = space.query(at, PROCMAP_QUERY_COVERING_OR_NEXT_VMA);
        assert_eq!(next, Err(Errno::ENOENT), "{at:#x}");
    }
    assert_eq!(
        space.query(PAGE - 1, 0).map(|m| m.start),
        Ok(0),
        "not only page starts"
    );
    assert_eq!(
        Space::new().query(0, 0),
        Err(Errno::ENOENT),
        "an empty space"
    );
}

const NEXT: u64 = PROCMAP_QUERY_COVERING_OR_NEXT_VMA;

fn covering_or_next() {
    let space = scenery();
    for (page, expected) in [
        (0, Ok(0)),
        (3, Ok(4)),
        (4, Ok(4)),
        (6, Ok(8)),
        (9, Ok(16)),
        (20, NONE),
    ] {
        assert_eq!(start(&space, page, NEXT), expected, "page {page}");
    }
    let last = space.end() - PAGE;
    space.must_map(Map::anon(last, PAGE));
    assert_eq!(
        space.query(20 * PAGE, NEXT).map(|m| (m.start, m.end)),
        Ok((last, last + PAGE))
    );
}

fn filters() {
    let space = scenery();
    let (readable, writable) = (PROCMAP_QUERY_VMA_READABLE, PROCMAP_QUERY_VMA_WRITABLE);
    for (page, flags, expected) in [
        (5, readable, NONE),
        (5, readable | NEXT, Ok(8)),
        (4, writable, NONE),
        (4, readable, Ok(4)),
        (3, writable | NEXT, Ok(8)),
        (3, PROCMAP_QUERY_VMA_SHARED | NEXT, Ok(16)),
        (0, PROCMAP_QUERY_VMA_SHARED, Ok(0)),
        (8, PROCMAP_QUERY_VMA_SHARED, NONE),
        (0, PROCMAP_QUERY_VMA_EXECUTABLE | NEXT, NONE),
    ] {
        assert_eq!(
            start(&space, page, flags),
            expected,
            "page {page}, flags {flags:#x}"
        );
    }
}

fn file_backed() {
    let space = scenery();
    let backed = PROCMAP_QUERY_FILE_BACKED_VMA;
    for (page, flags, expected) in [
        (0, backed, Ok(0)),
        (4, backed, NONE),
        (4, backed | NEXT, Ok(8)),
        (8, backed | PROCMAP_QUERY_VMA_SHARED, NONE),
    ] {
        assert_eq!(
            start(&space, page, flags),
            expected,
            "page {page}, flags {flags:#x}"
        );
    }
}

fn names_and_offsets() {
    let space = scenery();
    let temp = TempFile::new("/tmp", 8 * PAGE);
    space.must_map(
        Map::file(&temp.file, 32 * PAGE, PAGE)
            .offset(5 * PAGE)
            .prot(PROT_READ),
    );
    let inode = std::os::unix::fs::MetadataExt::ino(&temp.file.metadata().expect("fstat"));
    let rw = PROT_READ | PROT_WRITE;
    let expected = [
        (0, 3, rw, true, 2, "/memfd:ram (deleted)"),
        (4, 5, PROT_READ, false, 0, ""),
        (5, 6, PROT_NONE, false, 0, ""),
        (8, 9, rw, false, 0, "/memfd:ram (deleted)"),
        (16, 20, rw, true, 0, "/dev/zero (deleted)"),
        (32, 33, PROT_READ, true, 5, temp.path.to_str().unwrap()),
    ];
    let mappings = space.mappings();
    let told: Vec<_> = mappings
        .iter()
        .map(|m| {
            (
                m.start / PAGE,
                m.end / PAGE,
                m.prot,
                m.shared,
                m.offset / PAGE,
                m.name.as_str(),
            )
        })
        .collect();
    assert_eq!(told, expected);
    assert_eq!(mappings[5].inode, inode);
    assert_eq!(
        (mappings[1].inode, mappings[1].offset),
        (0, 0),
        "no file, no inode"
    );
    assert!(mappings.iter().all(|m| m.page_size == PAGE));
    // The same file has the same inode wherever it is mapped.
    assert_eq!(mappings[0].inode, mappings[3].inode);
}

/// A query of the mapping at 0 with a buffer of `room` bytes for the name.
fn name_in(space: &Space, room: u32) -> (Result<()>, procmap_query, [u8; 64]) {
    let mut name = [0x55; 64];
    let mut query = procmap_query {
        size: size_of::<procmap_query>() as u64,
        vma_name_size: room,
        vma_name_addr: if room == 0 {
            0
        } else {
            name.as_mut_ptr() as u64
        },
        ..Default::default()
    };
    // SAFETY: The buffer has 64 bytes, and no caller says more.
    let answer = unsafe { ioctl(space.as_raw_fd(), PROCMAP_QUERY, &mut query) };
    (answer.map(drop).map_err(errno), query, name)
}

fn name_buffers() {
    let space = scenery();
    let expected = b"/memfd:ram (deleted)\0";
    let len = expected.len() as u32;
    let (answer, query, name) = name_in(&space, len);
    assert_eq!((answer, query.vma_name_size), (Ok(()), len));
    assert_eq!(&name[..len as usize], expected);
    assert_eq!(name[len as usize], 0x55, "not a byte more");
    for room in [1, 5, len - 1] {
        let (answer, _, name) = name_in(&space, room);
        assert_eq!(answer, Err(Errno::ENAMETOOLONG), "room {room}");
        assert_eq!(name, [0x55; 64]);
    }
    let (answer, query, _) = name_in(&space, 0);
    assert_eq!(
        (answer, query.vma_name_size, query.vma_end),
        (Ok(()), 0, 3 * PAGE),
        "no name asked"
    );
    let anonymous = Space::new();
    anonymous.must_map(Map::anon(0, PAGE));
    let (answer, query, _) = name_in(&anonymous, 64);
    assert_eq!(
        (answer, query.vma_name_size),
        (Ok(()), 0),
        "there is no name"
    );
}

fn struct_versions() {
    let space = scenery();
    let query = |size: u64, flags: u64, tail: u64| {
        // The struct with room behind it.
        let mut buffer = [0u64; 1024];
        (buffer[0], buffer[1]) = (size, flags);
        buffer[size_of::<procmap_query>() / 8] = tail;
        // SAFETY: The buffer is longer than any size that is passed and accepted.
        unsafe { ioctl(space.as_raw_fd(), PROCMAP_QUERY, buffer.as_mut_ptr()) }
            .map(drop)
            .map_err(errno)
    };
    let known = size_of::<procmap_query>() as u64;
    assert_eq!(query(known, 0, 0), Ok(()));
    assert_eq!(query(known + 8, 0, 0), Ok(()));
    assert_eq!(query(known + 8, 0, 1), Err(Errno::E2BIG));
    assert_eq!(query(PAGE + 1, 0, 0), Err(Errno::E2BIG));
    assert_eq!(query(0, 0, 0), Err(Errno::EINVAL));
    assert_eq!(query(8, 0, 0), Err(Errno::EINVAL));
    for bit in 6..64 {
        assert_eq!(query(known, 1 << bit, 0), Err(Errno::EINVAL), "bit {bit}");
    }
}

fn bad_pointers() {
    let space = scenery();
    for pointer in [0usize, 1 << 63, usize::MAX - 8] {
        let pointer = pointer as *mut procmap_query;
        // SAFETY: Nothing is mapped there.
        let answer = unsafe { ioctl(space.as_raw_fd(), PROCMAP_QUERY, pointer) };
        assert_eq!(answer.map_err(errno), Err(Errno::EFAULT), "{pointer:?}");
    }
    let mut query = procmap_query {
        size: size_of::<procmap_query>() as u64,
        vma_name_size: 64,
        vma_name_addr: 8,
        ..Default::default()
    };
    // SAFETY: Nothing is mapped at the name's address.
    let answer = unsafe { ioctl(space.as_raw_fd(), PROCMAP_QUERY, &mut query) };
    assert_eq!(answer.map_err(errno), Err(Errno::EFAULT), "the name");
}

#[track_caller]
fn check_fdinfo(space: &Space) {
    let text = space.fdinfo();
    let info = space.info();
    let field = |name: &str| {
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(":\t"));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .to_string()
    };
    assert_eq!(field("as_id"), info.id.to_string());
    assert_eq!(
        field("as_window"),
        format!("{:x}-{:x}", info.addr, info.addr + info.len)
    );
    assert_eq!(field("as_mappings"), info.mappings.to_string());
    assert_eq!(field("as_mapped"), format!("{} B", info.mapped_bytes));
    assert_eq!(field("as_mirrors"), info.mirrors.to_string());
    assert_eq!(field("as_windows"), info.windows.to_string());
    let lines: Vec<String> = text
        .lines()
        .filter_map(|l| l.strip_prefix("as_map:\t"))
        .map(Into::into)
        .collect();
    let expected: Vec<String> = space.mappings().iter().map(Mapping::line).collect();
    assert_eq!(lines, expected);
}

fn fdinfo_agrees() {
    let space = scenery();
    check_fdinfo(&space);
    assert!(space
        .fdinfo()
        .contains("\nas_map:\t0-3000 rw-s 2000 /memfd:ram (deleted)\n"));
    assert!(space
        .fdinfo()
        .contains("\nas_map:\t4000-5000 r--p 0 [anon]\n"));
    space.must_map(Map::anon(space.end() - PAGE, PAGE));
    check_fdinfo(&space);
    space.unmap(PAGE, PAGE).expect("unmap");
    check_fdinfo(&space);
    space.unmap(0, space.end()).expect("unmap");
    check_fdinfo(&space);
}

/// More text than fits into a page or two.
fn fdinfo_of_many_mappings() {
    let space = Space::new();
    let file = files::memfd_named("one of very many mappings", 2000 * PAGE);
    for n in 0..800 {
        space.must_map(Map::file(&file, 2 * n * PAGE, PAGE).offset(n * PAGE));
    }
    assert_eq!(space.info().mappings, 800);
    check_fdinfo(&space);
}

fn odd_names() {
    let space = Space::new();
    let name = "a b\\c\u{e9}\t\u{7f}";
    space.must_map(Map::file(&files::memfd_named(name, PAGE), 0, PAGE));
    space.must_map(Map::file(
        &files::memfd_named("two\nlines", PAGE),
        PAGE,
        PAGE,
    ));
    let text = space.fdinfo();
    assert!(text.contains("0-1000 rw-s 0 /memfd:a b"), "{text}");
    // One mapping, one line: a newline is written as the maps file of a process does.
    assert!(
        text.contains("1000-2000 rw-s 0 /memfd:two\\012lines (deleted)\n"),
        "{text}"
    );
    assert_eq!(text.lines().filter(|l| l.starts_with("as_map:")).count(), 2);
}

fn info_counts() {
    let space = scenery();
    let info = space.info();
    assert_eq!(
        (info.mappings, info.mapped_bytes, info.windows),
        (5, 10 * PAGE, 0)
    );
    assert_eq!(info.resident_bytes, 0, "nothing was touched");
    space.put(PAGE, b"x");
    space.put(17 * PAGE, b"x");
    let resident = space.info().resident_bytes;
    // Around what is touched, pages that are in memory anyway may come along.
    assert!((2 * PAGE..=10 * PAGE).contains(&resident), "{resident}");
    let more = need_huge_pages(1);
    space.must_map(Map::anon(HUGE, HUGE).with(MAP_HUGETLB | MAP_NORESERVE));
    space.put(HUGE, b"x");
    assert_eq!(
        space.info().resident_bytes,
        resident + HUGE,
        "huge pages count, too"
    );
    space.unmap(HUGE, HUGE).expect("unmap");
    drop(more);
    space.unmap(16 * PAGE, 4 * PAGE).expect("unmap");
    assert!(space.info().resident_bytes < resident);
}

/// Mappings that continue each other are one, as in a process.
fn neighbours_merge() {
    let space = Space::new();
    let file = files::memfd(8 * PAGE);
    space.must_map(Map::file(&file, 0, 2 * PAGE));
    space.must_map(Map::file(&file, 2 * PAGE, 2 * PAGE).offset(2 * PAGE));
    assert_eq!(space.info().mappings, 1);
    space.must_map(Map::file(&file, 4 * PAGE, PAGE).offset(6 * PAGE));
    assert_eq!(space.info().mappings, 2);
    assert_eq!(space.query(5 * PAGE - 1, 0).map(|m| m.offset), Ok(6 * PAGE));
    space.unmap(PAGE, PAGE).expect("unmap");
    assert_eq!(space.info().mappings, 3);
    space.must_map(Map::file(&file, PAGE, PAGE).offset(PAGE));
    assert_eq!(space.info().mappings, 2);
}
