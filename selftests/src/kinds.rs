// SPDX-License-Identifier: GPL-2.0

//! What a space can be made of: each kind of file, shared and private, and anonymous memory.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use asfd::sys::PROCMAP_QUERY_VMA_READABLE;
use libc::{MAP_HUGETLB, MAP_NORESERVE, MAP_POPULATE, PROT_READ, PROT_WRITE};

use crate::harness::skip;
use crate::support::files::{self, drop_caches, Ext4, TempFile};
use crate::support::guest::Vm;
use crate::support::snapshot::unchanged;
use crate::support::system::need_huge_pages;
use crate::support::{Errno, Map, Space, HUGE, PAGE};

crate::suite![
    memfd_file,
    tmpfs_file,
    ext4_file,
    ext4_writes_reach_the_disk,
    huge_memfd,
    guest_memfd,
    guest_memfd_refuses_private,
    anonymous,
    anonymous_huge_pages,
    same_page_twice,
    truncation_and_growth,
];

/// The file as a process of its own sees it: by a mapping, as not every kind can be read.
struct Alias(*mut u8, usize);

impl Alias {
    fn of(file: &File, len: u64) -> Alias {
        let prot = PROT_READ | PROT_WRITE;
        let len = len as usize;
        // SAFETY: A new mapping at a free address.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                prot,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED, "mmap of the file: {}", Errno::last());
        Alias(at.cast(), len)
    }

    fn read(&self, offset: u64) -> u8 {
        assert!((offset as usize) < self.1);
        // SAFETY: Inside the mapping.
        unsafe { self.0.add(offset as usize).read_volatile() }
    }

    fn write(&self, offset: u64, byte: u8) {
        assert!((offset as usize) < self.1);
        // SAFETY: Inside the mapping, which nothing borrows.
        unsafe { self.0.add(offset as usize).write_volatile(byte) }
    }
}

impl Drop for Alias {
    fn drop(&mut self) {
        // SAFETY: Mapped by `of`.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

/// Shared: both see what either writes. `unit` is the size of the file's pages, of which it has
/// four.
fn check_shared(file: &File, unit: u64) {
    let space = Space::new();
    let alias = Alias::of(file, 4 * unit);
    for page in 0..4 {
        alias.write(page * unit, 10 + page as u8);
    }
    // All of it at 0, and its last two pages again at 8 units.
    space.must_map(Map::file(file, 0, 4 * unit));
    space.must_map(Map::file(file, 8 * unit, 2 * unit).offset(2 * unit));
    for page in 0..4 {
        assert_eq!(space.byte(page * unit), 10 + page as u8, "the file's bytes");
        assert_eq!(space.byte(page * unit + 1), 0, "the file's zeros");
    }
    space.put(2 * unit - 2, b"1234");
    assert_eq!(
        [alias.read(2 * unit - 1), alias.read(2 * unit)],
        *b"23",
        "a write in the file"
    );
    space.put(8 * unit + 7, b"x");
    assert_eq!(
        space.byte(2 * unit + 7),
        b'x',
        "a write seen at another address"
    );
    alias.write(3 * unit + 9, b'y');
    assert_eq!(space.byte(3 * unit + 9), b'y', "a write of a process");
    assert_eq!(
        space.byte(9 * unit + 9),
        b'y',
        "a write of a process, elsewhere"
    );
    let info = space.info();
    assert_eq!((info.mappings, info.mapped_bytes), (2, 6 * unit));
    space.unmap(0, 4 * unit).expect("unmap");
    assert_eq!(space.byte(8 * unit + 7), b'x', "still there elsewhere");
    assert_eq!(alias.read(2 * unit), b'3', "still in the file");
}

/// Private: what the space writes stays in the space, what others write is seen until then.
fn check_private(file: &File, unit: u64) {
    let space = Space::new();
    let alias = Alias::of(file, 4 * unit);
    (0..4).for_each(|page| alias.write(page * unit, 40 + page as u8));
    space.must_map(Map::file(file, 0, 4 * unit).private());
    space.must_map(Map::file(file, 4 * unit, 4 * unit).private());
    assert_eq!(space.byte(unit), 41);
    alias.write(unit, 99);
    assert_eq!(space.byte(unit), 99, "not yet copied: the file's");
    space.put(unit, &[7]);
    space.put(3 * unit - 1, &[8, 9]);
    assert_eq!(
        (alias.read(unit), alias.read(3 * unit)),
        (99, 43),
        "the file is not written"
    );
    assert_eq!(
        (space.byte(5 * unit), space.byte(7 * unit)),
        (99, 43),
        "nor the other mapping"
    );
    alias.write(unit, 55);
    assert_eq!(space.byte(unit), 7, "copied: the space's own");
    assert_eq!((space.byte(3 * unit - 1), space.byte(3 * unit)), (8, 9));
    space.must_map(Map::file(file, unit, unit).offset(unit).private().replace());
    assert_eq!(space.byte(unit), 55, "a new mapping starts from the file");
}

fn check(file: &File, unit: u64) {
    check_shared(file, unit);
    check_private(file, unit);
}

fn memfd_file() {
    check(&files::memfd(4 * PAGE), PAGE);
}

fn tmpfs_file() {
    check(&TempFile::new("/tmp", 4 * PAGE).file, PAGE);
}

fn ext4_file() {
    let ext4 = Ext4::mount().unwrap_or_else(|why| skip(&why));
    check(&TempFile::new(ext4.path(), 4 * PAGE).file, PAGE);
}

/// What the space wrote is dirty: it survives when the page cache is dropped.
fn ext4_writes_reach_the_disk() {
    let ext4 = Ext4::mount().unwrap_or_else(|why| skip(&why));
    let temp = TempFile::new(ext4.path(), 8 * PAGE);
    let space = Space::new();
    space.must_map(Map::file(&temp.file, 0, 8 * PAGE));
    for round in 1..6u8 {
        // Read first, so that the write finds a clean page in the space's tables.
        assert_eq!(space.byte(3 * PAGE), round - 1);
        (0..8).for_each(|page| space.put(page * PAGE, &[round; 16]));
        temp.file.sync_all().expect("fsync");
        drop_caches();
        let mut bytes = [0; 16];
        temp.file.read_exact_at(&mut bytes, 3 * PAGE).expect("read");
        assert_eq!(bytes, [round; 16]);
    }
    drop(space);
    drop_caches();
    let mut bytes = [0; 16];
    temp.file.read_exact_at(&mut bytes, 7 * PAGE).expect("read");
    assert_eq!(bytes, [5; 16]);
}

fn huge_memfd() {
    let _pages = need_huge_pages(8);
    check(&files::huge_memfd(4 * HUGE), HUGE);
    let space = Space::new();
    let file = files::huge_memfd(2 * HUGE);
    space.must_map(Map::file(&file, 0, HUGE + 1));
    assert_eq!(
        space.info().mapped_bytes,
        2 * HUGE,
        "the length is rounded to huge pages"
    );
    let mapping = space
        .query(HUGE, PROCMAP_QUERY_VMA_READABLE)
        .expect("PROCMAP_QUERY");
    assert_eq!(
        (mapping.start, mapping.end, mapping.page_size),
        (0, 2 * HUGE, HUGE)
    );
    let split = unchanged(&space, || space.unmap(PAGE, PAGE));
    assert_eq!(split, Err(Errno::EINVAL), "a huge page cannot be split");
    space.unmap(HUGE, HUGE).expect("whole huge pages can go");
    assert_eq!(space.info().mapped_bytes, HUGE);
}

fn guest_memfd() {
    check_shared(&Vm::new().shared_guest_memfd(4 * PAGE), PAGE);
}

fn guest_memfd_refuses_private() {
    let vm = Vm::new();
    let space = Space::new();
    space.must_map(Map::anon(0, 4 * PAGE));
    let shared = vm.shared_guest_memfd(4 * PAGE);
    let refused = unchanged(&space, || {
        space.map(Map::file(&shared, 0, PAGE).private().replace())
    });
    assert_eq!(refused, Err(Errno::EINVAL), "MAP_PRIVATE");
    // Of no use to anybody: memory that is the guest's alone.
    if let Ok(secret) = vm.guest_memfd(4 * PAGE, 1) {
        let refused = unchanged(&space, || {
            space.map(Map::file(&secret, 0, 4 * PAGE).replace())
        });
        assert_eq!(refused, Err(Errno::ENODEV), "private memory");
    }
}

fn anonymous() {
    for shared in [false, true] {
        let space = Space::new();
        let kind = |map: Map| if shared { map.shared() } else { map };
        space.must_map(kind(Map::anon(0, 8 * PAGE)));
        space.must_map(kind(Map::anon(16 * PAGE, 8 * PAGE)).with(MAP_NORESERVE | MAP_POPULATE));
        assert!(
            space.get(0, 8 * PAGE).iter().all(|byte| *byte == 0),
            "zeros at first"
        );
        space.put(PAGE - 1, b"ab");
        space.put(16 * PAGE, b"c");
        assert_eq!(space.get(PAGE - 1, 2), b"ab");
        assert_eq!(space.byte(17 * PAGE), 0);
        space.unmap(0, 2 * PAGE).expect("unmap");
        space.must_map(kind(Map::anon(0, 2 * PAGE)));
        assert_eq!(space.get(PAGE - 1, 2), [0, 0], "zeros again");
    }
}

fn anonymous_huge_pages() {
    let _pages = need_huge_pages(4);
    for shared in [false, true] {
        let space = Space::new();
        let map = Map::anon(2 * HUGE, 2 * HUGE).with(MAP_HUGETLB);
        space.must_map(if shared { map.shared() } else { map });
        assert_eq!(space.byte(2 * HUGE), 0);
        space.put(3 * HUGE - 1, b"ab");
        assert_eq!(space.get(3 * HUGE - 1, 2), b"ab");
        let mapping = space.query(3 * HUGE, 0).expect("PROCMAP_QUERY");
        assert_eq!(mapping.page_size, HUGE);
        // By hint: the lowest range that suits huge pages.
        let hinted = Map::anon(PAGE, HUGE).with(MAP_HUGETLB).hint();
        assert_eq!(space.map(hinted), Ok(HUGE));
    }
}

/// One page of a file at two addresses, one of them read-only.
fn same_page_twice() {
    let space = Space::new();
    let file = files::numbered(1, b'0');
    space.must_map(Map::file(&file, 0, PAGE));
    space.must_map(Map::file(&file, PAGE, PAGE).prot(PROT_READ));
    space.put(PAGE - 4, b"last");
    assert_eq!(space.get(2 * PAGE - 4, 4), b"last");
    assert_eq!(space.write_at(PAGE, b"x"), Err(Errno::EACCES));
    assert_eq!(space.byte(0), b'0');
}

fn truncation_and_growth() {
    let space = Space::new();
    let file = files::numbered(4, b'0');
    space.must_map(Map::file(&file, 0, 8 * PAGE));
    assert_eq!(space.byte(3 * PAGE), b'3');
    file.set_len(2 * PAGE).expect("ftruncate");
    assert_eq!(space.byte(PAGE), b'1');
    for page in 2..8 {
        assert_eq!(
            space.read_at(page * PAGE, &mut [0]),
            Err(Errno::EIO),
            "page {page}"
        );
        assert_eq!(
            space.write_at(page * PAGE, b"x"),
            Err(Errno::EIO),
            "page {page}"
        );
    }
    file.set_len(6 * PAGE).expect("ftruncate");
    assert_eq!(
        space.byte(3 * PAGE),
        0,
        "what was cut off does not come back"
    );
    space.put(5 * PAGE, b"new");
    let mut bytes = [0; 3];
    file.read_exact_at(&mut bytes, 5 * PAGE).expect("read");
    assert_eq!(&bytes, b"new");
}
