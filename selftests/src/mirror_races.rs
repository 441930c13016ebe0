// SPDX-License-Identifier: GPL-2.0

//! Accesses through mirrors, by threads and processes, against each call that takes pages away.
//! When it has returned, no access that begins later meets what was there.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use libc::{MAP_POPULATE, PROT_NONE, PROT_READ, PROT_WRITE};
use nix::fcntl::{fallocate, FallocateFlags};

use crate::support::crew::{mapping, run, tag, time, Crew, Generations, AT, LEN, POISON};
use crate::support::files;
use crate::support::meeting::{add, repeat, run_out};
use crate::support::mirror::{mirror, Area};
use crate::support::phases::{Outcome, State};
use crate::support::probe::Fault;
use crate::support::rights::RW;
use crate::support::system::slow_zaps;
use crate::support::{Errno, Map, Space, PAGE};

crate::suite![
    ordinary_memory,
    replacement,
    unmapping,
    protection,
    truncation,
    hole_punching,
    giving_up_anonymous_memory,
    many_editors,
];

/// What the oracle is made of, tried on memory that is no mirror: loads and stores that fail say how
/// and where.
fn ordinary_memory() {
    let file = files::memfd(PAGE);
    let area = Area::of_file(&file, 2 * PAGE, RW);
    assert_eq!(area.store_word(PAGE - 8, 5), Ok(()));
    assert_eq!(area.add_word(PAGE - 8, 2), Ok(5));
    assert_eq!(area.load_word(PAGE - 8), Ok(7));
    assert_eq!(area.load_word(PAGE + 8), Err(Fault::hole(PAGE + 8)));
    assert_eq!(area.add_word(PAGE + 8, 1), Err(Fault::hole(PAGE + 8)));
    let mut bytes = [1; 16];
    let answer = area.load_bytes(PAGE - 8, &mut bytes);
    assert_eq!(answer, Err(Fault::hole(PAGE)));
    assert_eq!(bytes, [7, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]);
    let answer = area.store_bytes(PAGE - 8, &[3; 16]);
    assert_eq!(answer, Err(Fault::hole(PAGE)));
    assert_eq!(area.load_word(PAGE - 8), Ok(0x0303_0303_0303_0303));
    assert_eq!(area.pinned_read(PAGE - 8, &mut bytes), Ok(8));
    assert_eq!(area.pinned_write(PAGE, &bytes), Err(Errno::EFAULT));
    area.protect(0, 2 * PAGE, PROT_READ).expect("mprotect");
    assert_eq!(area.store_word(16, 1), Err(Fault::denied(16)));
    assert_eq!(area.load_word(16), Ok(0));
    area.protect(0, 2 * PAGE, PROT_NONE).expect("mprotect");
    assert_eq!(area.load_word(16), Err(Fault::denied(16)));
    area.unmap(0, PAGE).expect("munmap");
    assert_eq!(area.load_word(16), Err(Fault::unmapped(16)));
}

/// MAP_FIXED over a mapping never shows a hole, and what is replaced is gone.
fn replacement() {
    let (space, mut generations) = (Space::new(), Generations::new());
    let (mut current, word) = generations.next();
    space.must_map(mapping(&current));
    let crew = Crew::new(State::full_of(word));
    let mut random = fastrand::Rng::with_seed(1);
    let least = [
        ("loads", 1000),
        ("stores", 500),
        ("crossed", 50),
        ("changes", 50),
    ];
    run(&space, &crew, &least, || {
        let (next, word) = generations.next();
        let map = mapping(&next).replace();
        let map = match random.u8(0..4) {
            0 => map.private(),
            1 => map.with(MAP_POPULATE),
            _ => map,
        };
        let state = State::full_of(word);
        crew.phases.change(state, || space.must_map(map));
        generations.retire(std::mem::replace(&mut current, next));
    });
    assert_eq!(crew.holes.load(Relaxed), 0, "a hole in a replacement");
}

fn unmapping() {
    let (space, mut generations) = (Space::new(), Generations::new());
    let crew = Crew::new(State::HOLE);
    let mut random = fastrand::Rng::with_seed(2);
    let least = [
        ("loads", 1000),
        ("holes", 200),
        ("refused stores", 100),
        ("changes", 50),
    ];
    run(&space, &crew, &least, || {
        let (file, word) = generations.next();
        let map = mapping(&file);
        let map = if random.bool() {
            map
        } else {
            map.with(MAP_POPULATE)
        };
        crew.phases
            .change(State::full_of(word), || space.must_map(map));
        wait_for_loads(&crew);
        // All of it goes, or so do its pages one after the other.
        crew.phases.change(State::HOLE, || {
            if random.bool() {
                return space.unmap(AT, LEN).expect("unmap");
            }
            for at in (AT..AT + LEN).step_by(PAGE as usize) {
                space.unmap(at, PAGE).expect("unmap");
            }
        });
        generations.retire(file);
    });
}

/// Lets others look at what there is now.
fn wait_for_loads(crew: &Crew) {
    wait_for(&crew.loads, crew);
}

fn wait_for(counter: &AtomicU64, crew: &Crew) {
    let before = counter.load(Relaxed);
    for _ in 0..200 {
        if counter.load(Relaxed) >= before + 4 || crew.stop.load(Relaxed) {
            return;
        }
        std::thread::yield_now();
    }
}

fn protection() {
    let space = Space::new();
    let file = Generations::full_of(tag(0));
    space.must_map(mapping(&file));
    let crew = Crew::new(State::full_of(tag(0)));
    let mut random = fastrand::Rng::with_seed(3);
    let least = [
        ("loads", 1000),
        ("denied", 100),
        ("stores", 200),
        ("refused stores", 100),
        ("changes", 50),
    ];
    run(&space, &crew, &least, || {
        let (prot, state) = match random.u8(0..3) {
            0 => (RW, State::full_of(tag(0))),
            1 => (PROT_READ, State::read_only(tag(0))),
            _ => (PROT_NONE, State::DENIED),
        };
        let protect = || space.must_protect(AT, LEN, prot);
        crew.phases.change(state, protect);
        // A store that was refused is not made behind the caller's back.
        if prot & PROT_WRITE == 0 {
            let content = || {
                let mut bytes = vec![0; LEN as usize];
                file.read_exact_at(&mut bytes, 0).expect("read");
                bytes
            };
            let before = content();
            std::thread::yield_now();
            assert!(before == content(), "written while it was read-only");
        }
    });
}

/// A file that gets shorter, and longer again, and is filled through an ordinary mapping.
fn cut_and_fill(file: &File, crew: &Crew, number: &mut u64, ordinary: &Area) {
    crew.phases
        .change(State::HOLE, || file.set_len(0).expect("ftruncate"));
    wait_for(&crew.holes, crew);
    let zeros = State::full_of(0);
    crew.phases
        .change(zeros, || file.set_len(LEN).expect("ftruncate"));
    fill(crew, number, ordinary);
}

fn fill(crew: &Crew, number: &mut u64, ordinary: &Area) {
    wait_for_loads(crew);
    *number += 1;
    crew.phases.change(State::full_of(tag(*number)), || {
        for offset in (0..ordinary.len()).step_by(8) {
            ordinary.store_word(offset, tag(*number)).expect("a store");
        }
    });
    wait_for_loads(crew);
}

fn truncation() {
    let (space, file) = (Space::new(), files::memfd(LEN));
    space.must_map(mapping(&file));
    let ordinary = Area::of_file(&file, LEN, RW);
    let crew = Crew::new(State::full_of(0));
    let mut number = 0;
    let least = [("loads", 500), ("holes", 20), ("changes", 20)];
    run(&space, &crew, &least, || {
        cut_and_fill(&file, &crew, &mut number, &ordinary);
    });
}

/// A page whose file lost it is zeros, and not the page that was freed. It loses them by a call on
/// the file, or on the space.
fn hole_punching() {
    let (space, file) = (Space::new(), files::memfd(LEN));
    space.must_map(mapping(&file));
    let ordinary = Area::of_file(&file, LEN, RW);
    let crew = Crew::new(State::full_of(0));
    let mut number = 0;
    run(&space, &crew, &[("loads", 500), ("changes", 20)], || {
        fill(&crew, &mut number, &ordinary);
        crew.phases.change(State::full_of(0), || {
            if number % 2 == 0 {
                return space.must_advise(AT, LEN, libc::MADV_REMOVE);
            }
            punch(&file, LEN);
        });
        reuse_freed_pages();
        wait_for_loads(&crew);
    });
}

/// Private memory of the space, given up and filled again.
fn giving_up_anonymous_memory() {
    let space = Space::new();
    space.must_map(Map::anon(AT, LEN));
    let own = mirror(&space, AT, LEN);
    let crew = Crew::new(State::full_of(0));
    let mut number = 0;
    run(&space, &crew, &[("loads", 500), ("changes", 20)], || {
        fill(&crew, &mut number, &own);
        let give_up = || space.must_advise(AT, LEN, libc::MADV_DONTNEED);
        crew.phases.change(State::full_of(0), give_up);
        reuse_freed_pages();
        wait_for_loads(&crew);
    });
}

/// Whoever still has a page that was freed is shown poison.
fn reuse_freed_pages() {
    drop(Generations::full_of(POISON));
}

/// Takes the pages out of a file.
fn punch(file: &File, len: u64) {
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, mode, 0, len as i64).expect("fallocate");
}

/// Several threads edit, in ranges of their own that are neighbours, all in one mirror: the end of
/// one change is not taken for that of another.
fn many_editors() {
    const EDITORS: usize = 3;
    let _delay = slow_zaps(200);
    let space = Space::new();
    let crews: Vec<_> = (0..EDITORS).map(|_| Crew::new(State::HOLE)).collect();
    let area = mirror(&space, 0, EDITORS as u64 * PAGE);
    let counters: Vec<_> = crews
        .iter()
        .flat_map(|crew| [("changes", &crew.changes, 50), ("loads", &crew.loads, 200)])
        .collect();
    let stop = &crews[0].stop;
    std::thread::scope(|scope| {
        for (page, crew) in crews.iter().enumerate() {
            let (space, at) = (&space, page as u64 * PAGE);
            scope.spawn(move || {
                let mut number = page as u64;
                repeat(stop, || {
                    number += EDITORS as u64;
                    let file = Generations::full_of(tag(number));
                    let map = Map::file(&file, at, PAGE).replace();
                    let state = State::full_of(tag(number));
                    crew.phases.change(state, || space.must_map(map));
                    wait_for_loads(crew);
                    // The space is locked for one of these, but not for the other.
                    if number % 2 == 0 {
                        let unmap = || space.unmap(at, PAGE).expect("unmap");
                        crew.phases.change(State::HOLE, unmap);
                    } else {
                        let zeros = State::full_of(0);
                        crew.phases.change(zeros, || punch(&file, PAGE));
                        wait_for_loads(crew);
                    }
                    add(&crew.changes, true);
                });
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                let mut turn = 0;
                repeat(stop, || {
                    turn = (turn + 1) % EDITORS;
                    let (crew, offset) = (&crews[turn], turn as u64 * PAGE);
                    let began = crew.phases.begin();
                    let seen = area.load_word(offset);
                    let outcome = Outcome::of(seen, offset);
                    crew.phases.loaded(began, outcome);
                    crew.loads.fetch_add(seen.is_ok().into(), Relaxed);
                });
            });
        }
        run_out(time(), stop, &counters);
    });
}
