// SPDX-License-Identifier: GPL-2.0

//! Where a mapping goes: fixed, fixed where nothing is, by hint; replacement is atomic, and one
//! that fails leaves the old mapping.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use asfd::sys::PROCMAP_QUERY_VMA_READABLE;
use libc::{MAP_HUGETLB, MAP_POPULATE, PROT_READ};
use nix::fcntl::{fcntl, FcntlArg, SealFlag};
use nix::unistd::Whence;

use crate::note;
use crate::support::faults::Faults;
use crate::support::files::{self, numbered};
use crate::support::guest::Vm;
use crate::support::snapshot::{unchanged, Snapshot};
use crate::support::system::{no_huge_pages, RaiseAtEnd};
use crate::support::{Errno, Map, Result, Space, HUGE, PAGE};

crate::suite![
    replaces,
    failed_replacement_leaves_the_old,
    every_allocation_fails_once,
    no_transient_hole,
    address_zero,
    hints,
    hints_against_a_model,
    populate,
];

/// Pages a to h of a file, with data of its own in a private mapping of pages 4 and 5.
fn scenery() -> Space {
    let space = Space::new();
    space.must_map(Map::file(&numbered(8, b'a'), 0, 8 * PAGE));
    space.must_map(Map::anon(4 * PAGE, 2 * PAGE).replace());
    space.put(4 * PAGE, &[b'X'; 2 * PAGE as usize]);
    space
}

fn picture(space: &Space) -> String {
    (0..8).map(|page| space.byte(page * PAGE) as char).collect()
}

fn replaces() {
    let other = numbered(8, b'0');
    for (start, pages, expected) in [
        (0, 1, "0bcdXXgh"),
        (1, 2, "a01dXXgh"),
        (3, 2, "abc01Xgh"),
        (4, 2, "abcd01gh"),
        (5, 3, "abcdX012"),
        (0, 8, "01234567"),
    ] {
        let space = scenery();
        assert_eq!(picture(&space), "abcdXXgh");
        let map = Map::file(&other, start * PAGE, pages * PAGE).replace();
        assert_eq!(space.map(map), Ok(start * PAGE));
        assert_eq!(picture(&space), expected);
        assert_eq!(space.info().mapped_bytes, 8 * PAGE);
    }
    let space = scenery();
    assert_eq!(
        space.map(Map::file(&other, 20 * PAGE, PAGE).replace()),
        Ok(20 * PAGE),
        "in a hole"
    );
    assert_eq!(space.byte(20 * PAGE), b'0');
}

/// Replacements that fail late: in the file's own mmap, for want of memory, by a seal.
fn failed_replacement_leaves_the_old() {
    let sealed = numbered(512, b's');
    fcntl(&sealed, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).expect("seal");
    let folder = std::fs::File::open("/tmp").expect("/tmp");
    let status = std::fs::File::open("/proc/self/status").expect("/proc/self/status");
    let huge = files::huge_memfd(HUGE);
    let vm = Vm::new();
    let gmem = vm.guest_memfd(HUGE, 3).ok();
    let _none = no_huge_pages();
    let mut replacements = vec![
        (
            "MAP_HUGETLB",
            Errno::ENOMEM,
            Map::anon(0, HUGE).with(MAP_HUGETLB),
        ),
        (
            "MAP_HUGETLB, shared",
            Errno::ENOMEM,
            Map::anon(0, HUGE).shared().with(MAP_HUGETLB),
        ),
        ("a hugetlb memfd", Errno::ENOMEM, Map::file(&huge, 0, HUGE)),
        (
            "a hugetlb memfd, private",
            Errno::ENOMEM,
            Map::file(&huge, 0, HUGE).private(),
        ),
        ("a sealed memfd", Errno::EPERM, Map::file(&sealed, 0, HUGE)),
        (
            "a folder",
            Errno::ENODEV,
            Map::file(&folder, 0, HUGE).prot(PROT_READ),
        ),
        (
            "a file of proc",
            Errno::ENODEV,
            Map::file(&status, 0, HUGE).prot(PROT_READ),
        ),
        (
            "the end of the space",
            Errno::ENOMEM,
            Map::anon(0, Space::new().end() + PAGE),
        ),
    ];
    if let Some(file) = &gmem {
        replacements.push((
            "guest_memfd, private",
            Errno::EINVAL,
            Map::file(file, 0, HUGE).private(),
        ));
    }
    for (what, expected, map) in replacements {
        let space = Space::new();
        // Several mappings of several kinds, with a hole, within and around the huge page.
        space.must_map(Map::file(&numbered(8, b'a'), 0, 8 * PAGE));
        space.must_map(Map::anon(8 * PAGE, 8 * PAGE));
        space.put(8 * PAGE, &[b'X'; PAGE as usize]);
        space.must_map(Map::anon(20 * PAGE, PAGE).prot(PROT_READ));
        space.must_map(Map::anon(HUGE - PAGE, 2 * PAGE).shared());
        space.put(HUGE - PAGE, &[b'Y'; 2 * PAGE as usize]);
        let refused = unchanged(&space, || space.map(map.replace()));
        assert_eq!(refused, Err(expected), "{what}");
    }
}

/// For each allocation a call makes: it fails, and the call either fails and changed nothing,
/// or succeeds and did all of it.
fn every_allocation_fails_once() {
    let other = numbered(8, b'0');
    type Edit = fn(&Space, &std::fs::File) -> Result<u64>;
    let edits: [(&str, Edit); 7] = [
        ("map", |space, other| {
            space.map(Map::file(other, 16 * PAGE, 4 * PAGE))
        }),
        ("map by hint", |space, _| {
            space.map(Map::anon(0, 4 * PAGE).hint())
        }),
        ("replace the middle", |space, other| {
            space.map(Map::file(other, PAGE, 2 * PAGE).replace())
        }),
        ("replace over two", |space, _| {
            space.map(Map::anon(3 * PAGE, 2 * PAGE).replace())
        }),
        ("replace all", |space, other| {
            space.map(Map::file(other, 0, 8 * PAGE).replace())
        }),
        ("anonymous shared", |space, _| {
            space.map(Map::anon(0, 8 * PAGE).shared().replace())
        }),
        ("split", |space, _| space.unmap(PAGE, PAGE).map(|()| 0)),
    ];
    let faults = Faults::new();
    for (what, edit) in edits {
        let (mut failed, mut survived, mut n) = (0, 0, 0);
        loop {
            n += 1;
            let space = scenery();
            let before = Snapshot::take(&space);
            let (result, injected) = faults.inject(n, || edit(&space, &other));
            let change = before.differs(&Snapshot::take(&space));
            match (result, change) {
                (Ok(_), Some(_)) => survived += u32::from(injected),
                (Err(Errno::ENOMEM), None) => failed += 1,
                (result, change) => panic!("{what}, allocation {n}: {result:?}, {change:?}"),
            }
            if !injected {
                assert!(result.is_ok(), "{what}: {result:?} without a fault");
                break;
            }
            assert!(n < 1000, "{what} does not end");
        }
        note!("{what}: {failed} failed, {survived} made do");
        assert_ne!(failed, 0, "{what}: no allocation could fail it");
    }
    create_fails_cleanly(&faults);
}

fn create_fails_cleanly(faults: &Faults) {
    let mut n = 1;
    loop {
        let (result, injected) = faults.inject(n, || Space::create(0));
        match result {
            Err(Errno::ENOMEM | Errno::ENFILE) => assert!(injected),
            Ok(space) => assert_eq!(space.info().mappings, 0),
            Err(e) => panic!("create, allocation {n}: {e}"),
        }
        if !injected {
            break;
        }
        n += 1;
    }
    assert!(n > 1);
}

/// While a range is replaced again and again, whoever reads it, or asks for it, finds it mapped.
fn no_transient_hole() {
    const PAGES: u64 = 8;
    const MEETINGS: u64 = 200;
    let space = Space::new();
    let letters = [b'A', b'B'];
    let files = letters.map(|letter| {
        let file = files::memfd(PAGES * PAGE);
        std::os::unix::fs::FileExt::write_all_at(&file, &[letter; 8 * PAGE as usize], 0).unwrap();
        file
    });
    // The replaced range is the middle of what is read, so that it is split and merged as well.
    space.must_map(Map::file(&files[0], 0, PAGES * PAGE));
    let (stop, meetings, replaced) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _end = RaiseAtEnd(&stop);
            let mut last = 0;
            let mut bytes = vec![0; (PAGES * PAGE) as usize];
            while meetings.load(Ordering::Relaxed) < MEETINGS {
                assert_eq!(
                    space.read_at(0, &mut bytes),
                    Ok(bytes.len()),
                    "a hole was seen"
                );
                for page in bytes.chunks(PAGE as usize) {
                    assert!(letters.contains(&page[0]), "neither the old nor the new");
                    assert!(page.iter().all(|byte| *byte == page[0]), "half of a page");
                }
                for address in [2 * PAGE, 3 * PAGE, 6 * PAGE - 1] {
                    assert!(space.query(address, PROCMAP_QUERY_VMA_READABLE).is_ok());
                }
                let hole = Space::seek(&space, 0, Whence::SeekHole);
                assert_eq!(hole, Ok(PAGES * PAGE), "a hole was found");
                let now = replaced.load(Ordering::Relaxed);
                meetings.fetch_add(u64::from(now != last), Ordering::Relaxed);
                last = now;
            }
        });
        for file in files.iter().cycle() {
            let map = Map::file(file, 2 * PAGE, 4 * PAGE)
                .offset(2 * PAGE)
                .replace();
            assert_eq!(space.map(map), Ok(2 * PAGE));
            replaced.fetch_add(1, Ordering::Relaxed);
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
    });
    note!("{replaced:?} replacements, {meetings:?} of them met");
    assert!(meetings.into_inner() >= MEETINGS);
}

fn address_zero() {
    let space = Space::new();
    let file = numbered(2, b'0');
    assert_eq!(space.map(Map::file(&file, 0, 2 * PAGE)), Ok(0));
    assert_eq!(space.byte(0), b'0');
    space.put(0, b"zero");
    assert_eq!(
        space.query(0, 0).map(|m| (m.start, m.end)),
        Ok((0, 2 * PAGE))
    );
    assert_eq!(space.seek(0, Whence::SeekData), Ok(0));
    assert_eq!(space.map(Map::anon(0, PAGE)), Err(Errno::EEXIST));
    assert_eq!(space.map(Map::anon(0, PAGE).replace()), Ok(0));
    assert_eq!(space.byte(0), 0);
    space.unmap(0, PAGE).expect("unmap");
    assert_eq!(space.read_at(0, &mut [0]), Err(Errno::EIO));
    assert_eq!(
        space.map(Map::anon(0, PAGE).hint()),
        Ok(0),
        "the lowest free one"
    );
    space.unmap(0, 2 * PAGE).expect("unmap");
    assert_eq!(space.mappings(), []);
}

fn hints() {
    let space = Space::new();
    let end = space.end();
    let hint = |addr, pages| space.map(Map::anon(addr, pages * PAGE).prot(PROT_READ).hint());
    assert_eq!(hint(0, 4), Ok(0));
    assert_eq!(hint(0, 1), Ok(4 * PAGE), "the next free one");
    assert_eq!(hint(10 * PAGE, 2), Ok(10 * PAGE), "as asked");
    assert_eq!(hint(5 * PAGE, 5), Ok(5 * PAGE), "just fits");
    assert_eq!(hint(1, 1), Ok(12 * PAGE), "0 to 11 are full");
    assert_eq!(hint(20 * PAGE + 1, 1), Ok(21 * PAGE), "rounded up");
    assert_eq!(hint(22 * PAGE - 1, 1), Ok(22 * PAGE), "rounded up");
    assert_eq!(hint(0, 8), Ok(13 * PAGE), "the first that is large enough");
    assert_eq!(hint(0, 3), Ok(23 * PAGE));
    assert_eq!(hint(end - 2 * PAGE, 1), Ok(end - 2 * PAGE));
    assert_eq!(hint(end - 2 * PAGE, 1), Ok(end - PAGE));
    assert_eq!(
        hint(end - 2 * PAGE, 1),
        Err(Errno::ENOMEM),
        "nothing is free above"
    );
    assert_eq!(hint(1 << 46, 1), Ok(1 << 46));
    // The same with a file behind it.
    let file = files::memfd(PAGE);
    assert_eq!(space.map(Map::file(&file, 0, PAGE).hint()), Ok(26 * PAGE));
    assert_eq!(file.as_raw_fd(), Map::file(&file, 0, 0).0.fd);
}

/// Random maps by hint and unmaps in 64 pages against a search over a bitmap.
fn hints_against_a_model() {
    const PAGES: u64 = 64;
    let file = files::memfd(PAGES * PAGE);
    for seed in 0..8 {
        let mut random = fastrand::Rng::with_seed(seed);
        let space = Space::new();
        // Behind the model's pages everything is taken.
        space.must_map(
            Map::anon(PAGES * PAGE, space.end() - PAGES * PAGE).with(libc::MAP_NORESERVE),
        );
        let mut used = [false; PAGES as usize];
        for step in 0..250 {
            let len = random.u64(1..6);
            let at = random.u64(0..PAGES);
            if random.u8(..) < 100 {
                let len = len.min(PAGES - at);
                space.unmap(at * PAGE, len * PAGE).expect("unmap");
                used[at as usize..(at + len) as usize].fill(false);
                continue;
            }
            let slack = [0, 0, 1, PAGE - 1][random.usize(0..4)];
            let from = at + u64::from(slack != 0);
            let free =
                |start: u64| used[start as usize..].iter().take_while(|u| !**u).count() as u64;
            let expected = (from..PAGES).find(|start| free(*start) >= len);
            let hint = at * PAGE + slack;
            let map = if random.bool() {
                Map::anon(hint, len * PAGE).prot(PROT_READ).hint()
            } else {
                Map::file(&file, hint, len * PAGE).hint()
            };
            let answer = space.map(map);
            let wanted = expected.map(|page| page * PAGE).ok_or(Errno::ENOMEM);
            assert_eq!(answer, wanted, "seed {seed}, step {step}: {map:x?}");
            if let Some(start) = expected {
                used[start as usize..(start + len) as usize].fill(true);
            }
        }
    }
}

fn populate() {
    let space = Space::new();
    let file = numbered(16, b'0');
    let resident = |map: Map| {
        let before = space.info().resident_bytes;
        space.must_map(map.replace());
        space.info().resident_bytes - before
    };
    assert_eq!(resident(Map::anon(0, 16 * PAGE)), 0, "not asked for");
    let (file_at, private_at) = (32 * PAGE, 64 * PAGE);
    for (what, map) in [
        ("anonymous", Map::anon(16 * PAGE, 16 * PAGE)),
        ("a file", Map::file(&file, file_at, 16 * PAGE)),
        (
            "a private file",
            Map::file(&file, private_at, 16 * PAGE).private(),
        ),
        (
            "a read-only file",
            Map::file(&file, 96 * PAGE, 16 * PAGE).prot(PROT_READ),
        ),
    ] {
        assert_eq!(resident(map.with(MAP_POPULATE)), 16 * PAGE, "{what}");
    }
    assert_eq!(space.byte(file_at + 15 * PAGE), b'?');
    // Private pages are the space's own by now.
    files::number(&file, 16, b'a');
    assert_eq!((space.byte(file_at), space.byte(private_at)), (b'a', b'0'));
    // Past the end of the file nothing can be populated; as in mmap(2) that is no failure.
    assert_eq!(
        resident(Map::file(&file, 128 * PAGE, 32 * PAGE).with(MAP_POPULATE)),
        16 * PAGE
    );
}
