// SPDX-License-Identifier: GPL-2.0

//! Mirrors: what mmap(2) of a space accepts, how long a mirror lives, and how it is counted.

use std::os::fd::AsRawFd;

use libc::{
    MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_HUGETLB, MAP_LOCKED, MAP_NORESERVE, MAP_POPULATE,
    MAP_PRIVATE, MAP_SHARED, MAP_SHARED_VALIDATE, MAP_SYNC, PROT_EXEC, PROT_NONE, PROT_READ,
    PROT_WRITE,
};

use crate::support::files;
use crate::support::mirror::{mirror, mirror_with, Area, Peer};
use crate::support::probe::Fault;
use crate::support::process::{receive_fd, send_fd, sockets, Child};
use crate::support::system::{counter, eventually};
use crate::support::{Errno, Map, Space, PAGE};

crate::suite![
    arguments,
    at_an_address,
    past_the_end_of_the_space,
    any_offset_and_length,
    the_last_page,
    protection_can_be_raised_later,
    never_executable,
    several_of_one_range,
    several_processes,
    counted,
    counted_while_split,
    keeps_the_space_alive,
    sent_descriptor_is_not_needed,
    killed_process_lets_go,
    replaced_by_other_memory,
];

const RW: i32 = PROT_READ | PROT_WRITE;

/// A space with 16 pages, numbered from 1, at 0.
fn numbered_space() -> Space {
    let space = Space::new();
    space.must_map(Map::file(&files::numbered(16, 1), 0, 16 * PAGE));
    space
}

fn try_mirror(space: &Space, len: u64, prot: i32, flags: i32, offset: u64) -> Result<Area, Errno> {
    Area::mmap(0, len, prot, flags, space.as_raw_fd(), offset)
}

fn arguments() {
    let space = numbered_space();
    type Case = (u64, i32, i32, u64, Option<Errno>);
    #[rustfmt::skip]
    let cases: &[Case] = &[
        // len, prot, flags, offset, error
        (PAGE, PROT_READ, MAP_SHARED, 0, None),
        (PAGE, RW, MAP_SHARED, 0, None),
        (PAGE, PROT_WRITE, MAP_SHARED, 0, None),
        (PAGE, PROT_NONE, MAP_SHARED, 0, None),
        (PAGE, RW, MAP_SHARED_VALIDATE, 0, None),
        (PAGE, RW, MAP_SHARED | MAP_NORESERVE, 0, None),
        (PAGE, RW, MAP_SHARED | MAP_LOCKED, 0, None),
        (PAGE, RW, MAP_SHARED | MAP_POPULATE, 0, None),
        (1, RW, MAP_SHARED, 0, None),
        (PAGE + 1, RW, MAP_SHARED, PAGE, None),
        // Holes only.
        (PAGE, RW, MAP_SHARED, 1 << 40, None),
        (PAGE, PROT_READ, MAP_PRIVATE, 0, Some(Errno::EINVAL)),
        (PAGE, RW, MAP_PRIVATE, 0, Some(Errno::EINVAL)),
        (PAGE, PROT_NONE, MAP_PRIVATE, 0, Some(Errno::EINVAL)),
        (PAGE, PROT_EXEC, MAP_SHARED, 0, Some(Errno::EPERM)),
        (PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, 0, Some(Errno::EPERM)),
        (PAGE, RW | PROT_EXEC, MAP_SHARED_VALIDATE, 0, Some(Errno::EPERM)),
        (PAGE, RW, MAP_SHARED_VALIDATE | MAP_SYNC, 0, Some(Errno::EOPNOTSUPP)),
        (PAGE, RW, MAP_SHARED | MAP_HUGETLB, 0, Some(Errno::EINVAL)),
        (PAGE, RW, 0, 0, Some(Errno::EINVAL)),
        (0, RW, MAP_SHARED, 0, Some(Errno::EINVAL)),
        (PAGE, RW, MAP_SHARED, 1, Some(Errno::EINVAL)),
        (PAGE, RW, MAP_SHARED, PAGE - 1, Some(Errno::EINVAL)),
        (PAGE, RW, MAP_SHARED, PAGE / 2, Some(Errno::EINVAL)),
    ];
    for case in cases {
        let &(len, prot, flags, offset, error) = case;
        let result = try_mirror(&space, len, prot, flags, offset);
        assert_eq!(result.as_ref().err(), error.as_ref(), "{case:x?}");
        assert_eq!(space.info().mirrors, error.is_none() as u64, "{case:x?}");
    }
    assert_eq!(space.info().mirrors, 0);
    assert_eq!(space.info().mappings, 1, "the space is as it was");
}

/// Over something, or not over it.
fn at_an_address() {
    let space = numbered_space();
    let area = Area::anonymous(4 * PAGE);
    area.put(0, b"mine");
    let at = |flags, offset| {
        let (fd, addr) = (space.as_raw_fd(), area.addr());
        Area::mmap(addr, PAGE, RW, MAP_SHARED | flags, fd, offset).map(Area::forget)
    };
    assert_eq!(at(MAP_FIXED_NOREPLACE, 0), Err(Errno::EEXIST));
    assert_eq!((area.get(0, 4), space.info().mirrors), (b"mine".into(), 0));
    let elsewhere = at(0, 0).expect("a hint");
    assert_ne!(elsewhere.0, area.addr());
    assert_eq!(area.get(0, 4), b"mine");
    for page in [2, 5] {
        assert_eq!(at(MAP_FIXED, page * PAGE), Ok((area.addr(), PAGE)));
        assert_eq!(area.load(0), Ok(page as u8 + 1));
        assert_eq!(area.load(PAGE), Ok(0));
    }
    assert_eq!(space.info().mirrors, 2);
}

fn past_the_end_of_the_space() {
    let space = numbered_space();
    let end = space.end();
    for (offset, len) in [
        (end, PAGE),
        (end - PAGE, 2 * PAGE),
        (end - PAGE, PAGE + 1),
        (end + PAGE, PAGE),
        (end - 16 * PAGE, 1 << 30),
        (PAGE, end),
    ] {
        let refused = try_mirror(&space, len, RW, MAP_SHARED, offset);
        assert_eq!(
            refused.err(),
            Some(Errno::ENOMEM),
            "{len:#x} at {offset:#x}"
        );
    }
    // What no file has, mmap(2) itself may refuse.
    for (offset, len) in [
        (1 << 62, PAGE),
        (1 << 63, PAGE),
        (u64::MAX - PAGE + 1, PAGE),
        (u64::MAX - PAGE + 1, 2 * PAGE),
        ((1 << 63) - PAGE, 2 * PAGE),
    ] {
        let refused = try_mirror(&space, len, RW, MAP_SHARED, offset).err();
        let good = [Some(Errno::ENOMEM), Some(Errno::EOVERFLOW)];
        assert!(
            good.contains(&refused),
            "{len:#x} at {offset:#x}: {refused:?}"
        );
    }
    // Nor is the length of an area a way around.
    for len in [u64::MAX, u64::MAX - PAGE, 1 << 63, end + PAGE] {
        let refused = try_mirror(&space, len, RW, MAP_SHARED, 0).err();
        assert_eq!(refused, Some(Errno::ENOMEM), "{len:#x}");
    }
    assert_eq!(space.info().mirrors, 0);
}

/// Page n of a mirror at o is page o + n of the space, or a hole where that has one.
fn any_offset_and_length() {
    const PAGES: u64 = 64;
    let space = Space::new();
    let file = files::numbered(PAGES, 1);
    // Holes at every fifth page; the others lie in the reverse order.
    let shown = |page: u64| match page % 5 {
        4 => None,
        _ if page >= PAGES => None,
        _ => Some(PAGES - page),
    };
    for page in 0..PAGES {
        if let Some(number) = shown(page) {
            let map = Map::file(&file, page * PAGE, PAGE).offset((number - 1) * PAGE);
            space.must_map(map);
        }
    }
    let mut random = fastrand::Rng::with_seed(1);
    for round in 0..400 {
        let first = random.u64(0..PAGES);
        let len = random.u64(1..PAGES * PAGE);
        let whole = len.next_multiple_of(PAGE);
        let area = mirror_with(&space, first * PAGE, len, PROT_READ);
        for page in 0..whole / PAGE {
            let at = page * PAGE + random.u64(0..PAGE);
            let expected = shown(first + page).map(|number| number as u8);
            let expected = expected.ok_or(Fault::hole(at));
            assert_eq!(area.load(at), expected, "{round}: {first} + {page}");
        }
    }
}

/// Both ends of the space.
fn the_last_page() {
    let space = Space::new();
    let last = space.end() - PAGE;
    space.must_map(Map::anon(last, PAGE));
    space.must_map(Map::anon(0, PAGE));
    let (high, low) = (mirror(&space, last, PAGE), mirror(&space, 0, PAGE));
    high.put(PAGE - 4, b"last");
    low.put(0, b"first");
    assert_eq!(space.get(last + PAGE - 4, 4), b"last");
    assert_eq!(space.get(0, 5), b"first");
    assert_eq!(space.byte(last), 0);
    let both = mirror(&space, last - PAGE, 2 * PAGE);
    assert_eq!(both.load(PAGE - 1), Err(Fault::hole(PAGE - 1)));
    assert_eq!(both.get(2 * PAGE - 4, 4), b"last");
}

fn protection_can_be_raised_later() {
    let space = numbered_space();
    let area = mirror_with(&space, 0, 4 * PAGE, PROT_NONE);
    assert_eq!(area.load(5), Err(Fault::denied(5)));
    assert_eq!(area.store(5, 5), Err(Fault::denied(5)));
    for round in 0..5 {
        area.protect(0, 4 * PAGE, PROT_READ).expect("mprotect");
        assert_eq!(area.load(5), Ok(1));
        assert_eq!(area.store(PAGE, 5), Err(Fault::denied(PAGE)));
        // A part of it.
        area.protect(PAGE, PAGE, RW).expect("mprotect");
        assert_eq!(area.store(PAGE, round), Ok(()));
        assert_eq!(space.byte(PAGE), round);
        assert_eq!(area.store(2 * PAGE, 5), Err(Fault::denied(2 * PAGE)));
        assert_eq!(area.store(PAGE - 1, 5), Err(Fault::denied(PAGE - 1)));
        area.protect(PAGE, PAGE, PROT_READ).expect("mprotect");
        assert_eq!(area.store(PAGE, 77), Err(Fault::denied(PAGE)));
        area.protect(0, 4 * PAGE, PROT_NONE).expect("mprotect");
        assert_eq!(area.load(PAGE), Err(Fault::denied(PAGE)));
    }
    assert_eq!(space.byte(0), 1);
    assert_eq!(space.byte(PAGE), 4);
}

fn never_executable() {
    let space = numbered_space();
    let area = mirror(&space, 0, 4 * PAGE);
    for prot in [PROT_EXEC, PROT_READ | PROT_EXEC, RW | PROT_EXEC] {
        assert_eq!(area.protect(0, 4 * PAGE, prot), Err(Errno::EACCES));
        assert_eq!(area.protect(PAGE, PAGE, prot), Err(Errno::EACCES));
    }
    // Old programs, to which all that is readable is executable, get what they ask for, no more.
    const READ_IMPLIES_EXEC: libc::c_ulong = 0x0400000;
    // SAFETY: Takes no pointers; this process ends soon.
    assert_ne!(unsafe { libc::personality(READ_IMPLIES_EXEC) }, -1);
    let old = mirror_with(&space, 0, PAGE, PROT_READ);
    assert_eq!(old.load(0), Ok(1));
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    let start = format!("{:x}-", old.addr());
    let line = maps.lines().find(|l| l.starts_with(&start));
    let line = line.expect("the mirror in maps");
    assert!(line.contains(" r--s "), "{line}");
}

/// Of one range and of ranges that overlap: all are the same memory.
fn several_of_one_range() {
    let space = numbered_space();
    space.must_map(Map::anon(16 * PAGE, 16 * PAGE));
    let areas: Vec<Area> = (0..8)
        .map(|n| mirror(&space, n * 2 * PAGE, 8 * PAGE))
        .collect();
    assert_eq!(space.info().mirrors, 8);
    for (writer, area) in (0..).zip(&areas) {
        for page in 0..8 {
            assert_eq!(area.store(page * PAGE + 9, writer), Ok(()));
            let at = (u64::from(writer) * 2 + page) * PAGE + 9;
            assert_eq!(space.byte(at), writer, "{at:#x}");
            for (first, other) in (0..).step_by(2).zip(&areas) {
                let Some(there) = at.checked_sub(first * PAGE) else {
                    continue;
                };
                if there < 8 * PAGE {
                    assert_eq!(other.load(there), Ok(writer), "mirror at {first}, {at:#x}");
                }
            }
        }
    }
}

fn several_processes() {
    let space = numbered_space();
    space.must_map(Map::anon(16 * PAGE, 4 * PAGE));
    let peers: Vec<Peer> = (0..3)
        .map(|n| Peer::new(|| mirror(&space, n * PAGE, 20 * PAGE)))
        .collect();
    let own = mirror(&space, 0, 20 * PAGE);
    for (n, peer) in (0..).zip(&peers) {
        for page in [4, 16, 17, 19] {
            let byte = 100 + n as u8 + page as u8;
            assert_eq!(peer.store((page - n) * PAGE, byte), Ok(()));
            for (m, other) in (0..).zip(&peers) {
                assert_eq!(other.load((page - m) * PAGE), Ok(byte));
            }
            assert_eq!(own.load(page * PAGE), Ok(byte));
        }
    }
    assert_eq!(space.info().mirrors, 4);
    peers.into_iter().for_each(Peer::end);
    eventually("only our own is left", || space.info().mirrors == 1);
}

fn counted() {
    let (space, other) = (numbered_space(), numbered_space());
    let copy = space.dup();
    let mirrors = || {
        assert_eq!(copy.info().mirrors, space.info().mirrors);
        assert!(space
            .fdinfo()
            .lines()
            .any(|l| l == format!("as_mirrors:\t{}", space.info().mirrors)));
        space.info().mirrors
    };
    assert_eq!(mirrors(), 0);
    let first = mirror(&space, 0, PAGE);
    assert_eq!(mirrors(), 1);
    let second = mirror(&copy, 0, PAGE);
    assert_eq!(mirrors(), 2);
    assert_eq!(other.info().mirrors, 0, "another space");
    let ready = sockets();
    let child = Child::spawn(|| {
        // A fork has copies of both.
        assert_eq!(space.info().mirrors, 4);
        let _third = mirror(&space, 0, PAGE);
        assert_eq!(space.info().mirrors, 5);
        nix::unistd::write(&ready.1, b"r").expect("write");
    });
    nix::unistd::read(&ready.0, &mut [0]).expect("read");
    child.succeed();
    eventually("the child's are gone", || mirrors() == 2);
    drop(first);
    assert_eq!(mirrors(), 1);
    drop(second);
    assert_eq!(mirrors(), 0);
}

/// Mirrors of this process at the addresses of `area`, by /proc/self/maps.
fn listed(area: &Area) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    let number = |text: &str| u64::from_str_radix(text, 16).expect("hex");
    let starts = maps
        .lines()
        .filter_map(|l| Some(number(l.split_once('-')?.0)));
    let range = area.addr()..area.addr() + area.len();
    starts.filter(|start| range.contains(start)).count() as u64
}

/// Each VMA is one, whatever made two of it.
fn counted_while_split() {
    let space = numbered_space();
    let area = mirror(&space, 0, 16 * PAGE);
    let check = |at_least: u64, what: &str| {
        let mirrors = space.info().mirrors;
        assert_eq!(mirrors, listed(&area), "after {what}");
        assert!(mirrors >= at_least, "{mirrors} after {what}");
    };
    check(1, "mmap");
    area.protect(4 * PAGE, 4 * PAGE, PROT_READ)
        .expect("mprotect");
    check(3, "mprotect of a part");
    area.protect(4 * PAGE, 4 * PAGE, RW).expect("mprotect");
    check(1, "mprotect back");
    area.unmap(6 * PAGE, PAGE).expect("munmap");
    check(2, "munmap in the middle");
    area.unmap(0, PAGE).expect("munmap");
    area.unmap(15 * PAGE, PAGE).expect("munmap");
    check(2, "munmap at both ends");
    for page in 0..16 {
        let gone = [0, 6, 15].contains(&page);
        let expected = if gone {
            Err(Fault::unmapped(page * PAGE))
        } else {
            Ok(page as u8 + 1)
        };
        assert_eq!(area.load(page * PAGE), expected, "page {page}");
    }
    drop(area);
    assert_eq!(space.info().mirrors, 0);
}

fn anonymous_memory() -> u64 {
    counter("/proc/meminfo", "AnonPages") * 1024
}

const BIG: u64 = 32 << 20;

/// Runs `body` with the only mirror of a space with much memory, whose descriptors are closed; when
/// it returns the memory is freed.
fn mirror_is_all_there_is(body: impl FnOnce(Area)) {
    let before = anonymous_memory();
    let space = Space::new();
    space.must_map(Map::anon(0, BIG).with(MAP_POPULATE));
    space.put(7 * PAGE, b"alive");
    let area = mirror(&space, 0, BIG);
    drop(space);
    assert!(anonymous_memory() > before + BIG * 9 / 10);
    body(area);
    eventually("the memory is free", || {
        anonymous_memory() < before + BIG / 10
    });
}

fn keeps_the_space_alive() {
    mirror_is_all_there_is(|area| {
        assert_eq!(area.get(7 * PAGE, 5), b"alive");
        area.put(BIG - 4, b"more");
        // The last page of it is enough.
        area.unmap(0, BIG - PAGE).expect("munmap");
        assert!(anonymous_memory() > BIG * 9 / 10);
        assert_eq!(area.get(BIG - 4, 4), b"more");
    });
    // One that was never touched, and one that cannot be.
    mirror_is_all_there_is(drop);
    mirror_is_all_there_is(|area| {
        area.protect(0, BIG, PROT_NONE).expect("mprotect");
        assert_eq!(area.load(0), Err(Fault::denied(0)));
        area.protect(0, BIG, PROT_READ).expect("mprotect");
        assert_eq!(area.get(7 * PAGE, 5), b"alive");
    });
    // A child's copy of it.
    mirror_is_all_there_is(|area| {
        let (go, wait) = sockets();
        let child = Child::spawn(|| {
            nix::unistd::read(&wait, &mut [0]).expect("read");
            assert_eq!(area.get(7 * PAGE, 5), b"alive");
        });
        drop(area);
        nix::unistd::write(&go, b"g").expect("write");
        child.succeed();
    });
}

fn sent_descriptor_is_not_needed() {
    let (ours, theirs) = sockets();
    let child = Child::spawn(|| {
        let space = numbered_space();
        send_fd(&theirs, &space);
    });
    let space = Space::from(receive_fd(&ours));
    child.succeed();
    let area = mirror(&space, 0, PAGE);
    drop(space);
    assert_eq!(area.load(0), Ok(1));
    assert_eq!(area.store(0, 9), Ok(()));
    assert_eq!(area.load(0), Ok(9));
}

fn killed_process_lets_go() {
    let space = numbered_space();
    for _ in 0..5 {
        let peer = Peer::new(|| mirror(&space, 0, 16 * PAGE));
        assert_eq!(peer.load(0), Ok(1));
        assert_eq!(space.info().mirrors, 1);
        // SAFETY: Takes no pointers; the process is our child.
        assert_eq!(unsafe { libc::kill(peer.pid(), libc::SIGKILL) }, 0);
        eventually("the mirror is gone", || space.info().mirrors == 0);
    }
}

fn replaced_by_other_memory() {
    let space = numbered_space();
    let area = mirror(&space, 0, 4 * PAGE);
    assert_eq!(area.load(PAGE), Ok(2));
    let flags = MAP_PRIVATE | libc::MAP_ANONYMOUS | MAP_FIXED;
    let addr = area.addr() + PAGE;
    Area::mmap(addr, PAGE, RW, flags, -1, 0)
        .expect("mmap")
        .forget();
    assert_eq!(area.load(PAGE), Ok(0));
    assert_eq!(area.store(PAGE, 55), Ok(()));
    assert_eq!(space.byte(PAGE), 2, "the space has no part in it");
    assert_eq!(area.load(0), Ok(1));
    assert_eq!(area.load(2 * PAGE), Ok(3));
    assert_eq!(space.info().mirrors, 2);
}
