// SPDX-License-Identifier: GPL-2.0

//! Seals against calls under way: when SEAL has returned, what it shuts has happened or never
//! will.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use asfd::sys::*;
use libc::{MADV_DONTNEED, MAP_HUGETLB, MAP_NORESERVE, PROT_NONE, PROT_READ};

use crate::note;
use crate::support::rights::{View, RW};
use crate::support::snapshot::Snapshot;
use crate::support::space::errno;
use crate::support::userfault::MissingPage;
use crate::support::{Errno, Map, Result, Space, HUGE, PAGE};

crate::suite![
    no_mapping_after_the_seal,
    no_huge_mapping_after_the_seal,
    no_replacement_after_the_seal,
    no_unmapping_after_the_seal,
    no_protection_after_the_seal,
    no_advice_after_the_seal,
    no_seal_after_the_last,
    sealed_while_its_arguments_are_read,
];

const EDITORS: u64 = 6;
/// Pages that an editor has for itself.
const OWN: u64 = 4096;
const ROUNDS: u64 = 30;

/// Editors edit, each its own part of a space, until they are told EPERM; meanwhile the space is
/// sealed.
fn race(seal: u32, prepare: fn(&Space), edit: fn(&Space, u64, u64) -> Result<()>) {
    let (mut early, mut edits) = (0, 0);
    for round in 0..ROUNDS {
        let space = Space::new();
        prepare(&space);
        let (sealed, started, done) =
            (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let before = std::thread::scope(|scope| {
            for editor in 0..EDITORS {
                let (space, sealed, started, done) = (&space, &sealed, &started, &done);
                scope.spawn(move || {
                    started.fetch_add(1, Ordering::AcqRel);
                    for n in 0..OWN / 2 {
                        let late = sealed.load(Ordering::Acquire);
                        match edit(space, editor * OWN, n) {
                            Ok(()) => assert!(!late, "editor {editor} was let in"),
                            Err(e) => return assert_eq!(e, Errno::EPERM, "editor {editor}"),
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            while started.load(Ordering::Acquire) < EDITORS {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_micros(200 + 97 * (round % 31)));
            space.seal(seal).expect("SEAL");
            let count = space.info().mappings;
            sealed.store(true, Ordering::Release);
            (count, space.mappings())
        });
        // No editor is left.
        let after = (space.info().mappings, space.mappings());
        assert!(before == after, "round {round}: changed after the seal");
        let done = done.into_inner();
        early += u64::from(done > 0);
        edits += done;
    }
    note!("{edits} edits before the seals, {early} rounds of {ROUNDS} with some");
    assert!(early > ROUNDS / 2, "the seals came too early");
}

fn no_mapping_after_the_seal() {
    race(
        ADDRESS_SPACE_SEAL_MAP,
        |_| (),
        |space, base, n| {
            // Every second page, so that none merges with another.
            let map = Map::anon((base + 2 * n) * PAGE, PAGE).prot(PROT_READ);
            space.map(map).map(drop)
        },
    );
}

/// Mappings that take long to prepare, before the space is looked at.
fn no_huge_mapping_after_the_seal() {
    race(
        ADDRESS_SPACE_SEAL_MAP,
        |_| (),
        |space, base, n| {
            let map = Map::anon((base + 2 * n) * HUGE, HUGE).with(MAP_HUGETLB | MAP_NORESERVE);
            space.map(map).map(drop)
        },
    );
}

/// All of the editors' pages, mapped in pieces that do not merge.
fn pieces(space: &Space) {
    for editor in 0..EDITORS {
        let map = Map::anon(editor * OWN * PAGE, OWN * PAGE);
        let map = if editor % 2 == 0 { map } else { map.shared() };
        space.must_map(map.with(MAP_NORESERVE));
    }
}

fn no_replacement_after_the_seal() {
    race(ADDRESS_SPACE_SEAL_UNMAP, pieces, |space, base, n| {
        let map = Map::anon((base + 2 * n) * PAGE, PAGE).prot(PROT_READ);
        space.map(map.replace()).map(drop)
    });
}

fn no_unmapping_after_the_seal() {
    race(ADDRESS_SPACE_SEAL_UNMAP, pieces, |space, base, n| {
        space.unmap((base + 2 * n) * PAGE, PAGE)
    });
}

fn no_protection_after_the_seal() {
    race(ADDRESS_SPACE_SEAL_CHANGE, pieces, |space, base, n| {
        let prot = [PROT_READ, PROT_NONE][n as usize % 2];
        space.protect((base + 2 * n) * PAGE, PAGE, prot)
    });
}

/// No advice begins after the seal: what is written once those under way have ended stays. (One
/// that is under way is not stopped by a seal.)
fn no_advice_after_the_seal() {
    const PAGES: u64 = 16;
    let mut dropped = 0;
    for round in 0..ROUNDS {
        let space = Space::new();
        space.must_map(Map::anon(0, PAGES * PAGE));
        let (sealed, started) = (AtomicBool::new(false), AtomicU64::new(0));
        let dropping = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for adviser in 0..EDITORS {
                let (space, sealed, started) = (&space, &sealed, &started);
                let dropping = &dropping;
                scope.spawn(move || {
                    started.fetch_add(1, Ordering::AcqRel);
                    loop {
                        let late = sealed.load(Ordering::Acquire);
                        match space.advise(0, PAGES * PAGE, MADV_DONTNEED) {
                            Ok(()) => assert!(!late, "adviser {adviser} was let in"),
                            Err(e) => return assert_eq!(e, Errno::EPERM),
                        };
                        dropping.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            while started.load(Ordering::Acquire) < EDITORS {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_micros(200 + 97 * (round % 31)));
            space.seal(ADDRESS_SPACE_SEAL_CHANGE).expect("SEAL");
            sealed.store(true, Ordering::Release);
        });
        space.put(0, &[b'k'; (PAGES * PAGE) as usize]);
        let refused = space.advise(0, PAGES * PAGE, MADV_DONTNEED);
        assert_eq!(refused, Err(Errno::EPERM));
        let kept = space.get(0, PAGES * PAGE);
        assert!(kept.iter().all(|byte| *byte == b'k'), "round {round}");
        dropped += dropping.load(Ordering::Relaxed);
    }
    note!("{dropped} times dropped");
    assert!(dropped > ROUNDS);
}

/// When SEAL_SEAL has been set, the seals are the last ones.
fn no_seal_after_the_last() {
    for round in 0..100 {
        let space = Space::new();
        let others = [
            ADDRESS_SPACE_SEAL_MAP,
            ADDRESS_SPACE_SEAL_UNMAP,
            ADDRESS_SPACE_SEAL_CHANGE,
        ];
        let go = AtomicBool::new(false);
        let set = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for seal in others {
                let (space, go, set) = (&space, &go, &set);
                scope.spawn(move || {
                    while !go.load(Ordering::Acquire) {
                        std::hint::spin_loop();
                    }
                    match space.seal(seal) {
                        Ok(()) => drop(set.fetch_or(seal.into(), Ordering::AcqRel)),
                        Err(e) => assert_eq!(e, Errno::EPERM),
                    }
                });
            }
            go.store(true, Ordering::Release);
            for _ in 0..round {
                std::hint::spin_loop();
            }
            space.seal(ADDRESS_SPACE_SEAL_SEAL).expect("SEAL");
            let last = space.info().seals;
            std::thread::sleep(Duration::from_micros(500));
            assert_eq!(space.info().seals, last, "round {round}: one more");
        });
        let set = set.load(Ordering::Acquire) as u32 | ADDRESS_SPACE_SEAL_SEAL;
        assert_eq!(
            space.info().seals,
            set,
            "round {round}: those that were let"
        );
    }
}

/// A call that began before the seal, and waits for its arguments until after it.
fn sealed_while_its_arguments_are_read() {
    type Call = fn(&Space, *mut u8) -> Result<()>;
    type Provide = fn(&MissingPage);
    fn request(space: &Space, number: u32, arguments: *mut u8) -> Result<()> {
        // SAFETY: A page, which is more than any struct takes.
        let answer = unsafe { ioctl(space.as_raw_fd(), number, arguments) };
        answer.map(drop).map_err(errno)
    }
    let calls: [(&str, u32, Call, Provide); 4] = [
        (
            "mmap",
            ADDRESS_SPACE_SEAL_MAP,
            |space, arguments| {
                let size = size_of::<address_space_mmap_args>();
                // SAFETY: As above.
                unsafe { address_space_mmap(space.as_raw_fd(), arguments.cast(), size) }
                    .map(drop)
                    .map_err(errno)
            },
            |page| page.provide_struct(Map::anon(8 * PAGE, PAGE).0),
        ),
        (
            "PROTECT",
            ADDRESS_SPACE_SEAL_CHANGE,
            |space, arguments| request(space, ADDRESS_SPACE_IOC_PROTECT, arguments),
            |page| {
                page.provide_struct(address_space_protect {
                    addr: 0,
                    len: PAGE,
                    prot: PROT_READ as u32,
                    __reserved: 0,
                })
            },
        ),
        (
            "ADVISE",
            ADDRESS_SPACE_SEAL_CHANGE,
            |space, arguments| request(space, ADDRESS_SPACE_IOC_ADVISE, arguments),
            |page| {
                page.provide_struct(address_space_advise {
                    addr: 0,
                    len: PAGE,
                    advice: MADV_DONTNEED as u32,
                    __reserved: 0,
                })
            },
        ),
        (
            "SEAL",
            ADDRESS_SPACE_SEAL_SEAL,
            |space, arguments| request(space, ADDRESS_SPACE_IOC_SEAL, arguments),
            |page| page.provide_struct(ADDRESS_SPACE_SEAL_MAP),
        ),
    ];
    for (what, seal, call, provide) in calls {
        let space = Space::new();
        space.must_map(Map::anon(0, 4 * PAGE));
        space.put(0, &[7; 4 * PAGE as usize]);
        let page = MissingPage::new();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| call(&space, page.as_ptr()));
            page.wait();
            space.seal(seal).expect("SEAL");
            let before = Snapshot::take(&space);
            provide(&page);
            let answer = waiting.join().expect("the call");
            assert_eq!(answer, Err(Errno::EPERM), "{what}");
            assert_eq!(before.differs(&Snapshot::take(&space)), None, "{what}");
        });
    }
    // And a seal that waits itself does not hold up those whom it is going to shut out.
    let space = Space::new();
    let page = MissingPage::new();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| request(&space, ADDRESS_SPACE_IOC_SEAL, page.as_ptr()));
        page.wait();
        space.must_map(Map::anon(0, PAGE));
        space.must_view(View::of(0, PAGE).prot(RW));
        page.provide_struct(ADDRESS_SPACE_SEAL_MAP);
        assert_eq!(waiting.join().expect("the call"), Ok(()));
        assert_eq!(space.map(Map::anon(PAGE, PAGE)), Err(Errno::EPERM));
    });
}
