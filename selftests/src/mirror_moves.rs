// SPDX-License-Identifier: GPL-2.0

//! Mirrors that come, move, change and go, alone or with their processes, while what they show is
//! replaced: a page that was taken out is not seen at any of the places that they have been at.

use std::os::fd::AsRawFd;
use std::sync::Barrier;
use std::time::Duration;

use libc::{MAP_SHARED, PROT_NONE, PROT_READ};
use nix::sys::signal::{kill, Signal};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use crate::support::cgroup::Cgroup;
use crate::support::crew::{mapping, run_with, tag, Crew, Eyes, Generations, Job, AT, LEN};
use crate::support::meeting::add;
use crate::support::mirror::{mirror, mirror_with, Area};
use crate::support::phases::{Outcome, Phases, State};
use crate::support::probe::Fault;
use crate::support::process::Child;
use crate::support::rights::{View, RW};
use crate::support::shared::Shared;
use crate::support::system::{eventually, scaled};
use crate::support::{Map, Space, HUGE, PAGE};

crate::suite![
    moving_mirrors,
    moving_page_tables,
    mirrors_that_come_and_go,
    protecting_mirrors,
    forks,
    killed_processes,
    first_mirrors,
    last_close,
];

/// Addresses of this process at which the kernel puts nothing by itself.
const PLACES: [u64; 2] = [0x10_0000_0000, 0x11_0000_0000];

/// A job that replaces the pages, and now and then leaves a hole for a while.
fn editor<'a>(space: &'a Space, crew: &'a Shared<Crew>) -> Job<'a> {
    let mut generations = Generations::new();
    let mut current = None;
    Box::new(move || {
        let (next, word) = generations.next();
        let map = mapping(&next).replace();
        crew.phases
            .change(State::full_of(word), || space.must_map(map));
        if let Some(old) = current.replace(next) {
            generations.retire(old);
        }
        std::thread::yield_now();
        if word % 4 == 0 {
            let unmap = || space.unmap(AT, LEN).expect("unmap");
            crew.phases.change(State::HOLE, unmap);
            generations.retire(current.take().expect("just mapped"));
        }
        add(&crew.changes, true);
    })
}

/// A job that looks at what may be at a place just now: the page at `at`, which is the watched
/// one, or nothing at all.
fn watcher(crew: &Shared<Crew>, at: u64, seed: u64) -> Job<'_> {
    let mut random = fastrand::Rng::with_seed(seed);
    Box::new(move || {
        let place = random.choice(PLACES).expect("two");
        let area = std::mem::ManuallyDrop::new(Area::adopt(place, at + LEN));
        let offset = at + random.u64(0..LEN / PAGE) * PAGE + 8 * random.u64(0..256);
        let began = crew.phases.begin();
        let answer = area.load_word(offset);
        match answer {
            // Not there, or not for long enough.
            Err(fault) if fault == Fault::unmapped(offset) => add(&crew.refused, true),
            Err(fault) if fault == Fault::denied(offset) => add(&crew.denied, true),
            _ => {
                let outcome = Outcome::of(answer, offset);
                add(&crew.crossed, crew.phases.loaded(began, outcome));
                add(&crew.loads, answer.is_ok());
                // A store: what is retired must not get it.
                let _ = area.store_word(offset + 8 * 256, 1);
            }
        }
    })
}

const LEAST: [(&str, u64); 5] = [
    ("changes", 50),
    ("others", 50),
    ("loads", 500),
    ("refused stores", 20),
    ("crossed", 20),
];

/// A mirror of `[offset, offset + len)` is moved from one place to the other and back.
fn moved(offset: u64, len: u64) {
    let space = Space::new();
    let crew = Crew::new(State::HOLE);
    let flags = MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
    let fd = space.as_raw_fd();
    let mut area = Area::mmap(PLACES[0], len, RW, flags, fd, offset).expect("a mirror");
    let mut turn = 0;
    let mover = || {
        turn += 1;
        area.remap(len, Some(PLACES[turn % 2])).expect("mremap");
        add(&crew.others, true);
        std::thread::yield_now();
    };
    let jobs = vec![
        editor(&space, &crew),
        watcher(&crew, AT - offset, 10),
        watcher(&crew, AT - offset, 11),
        Box::new(mover),
    ];
    run_with(&space, &crew, &LEAST, jobs);
}

fn moving_mirrors() {
    moved(AT, LEN);
}

/// So large that whole page tables move.
fn moving_page_tables() {
    moved(0, 2 * HUGE);
}

fn mirrors_that_come_and_go() {
    let space = Space::new();
    let crew = Crew::new(State::HOLE);
    let mut random = fastrand::Rng::with_seed(12);
    let fd = space.as_raw_fd();
    let jobs = vec![
        editor(&space, &crew),
        watcher(&crew, 0, 13),
        watcher(&crew, 0, 14),
        Box::new(|| {
            let place = random.choice(PLACES).expect("two");
            let flags = MAP_SHARED | libc::MAP_FIXED;
            let area = Area::mmap(place, LEN, RW, flags, fd, AT).expect("a mirror");
            if random.bool() {
                area.advise(0, LEN, libc::MADV_POPULATE_READ).ok();
            }
            std::thread::sleep(Duration::from_micros(random.u64(0..300)));
            if random.bool() {
                drop(area);
            } else {
                // Another mirror takes its place next time.
                area.forget();
            }
            add(&crew.others, true);
        }),
    ];
    run_with(&space, &crew, &LEAST, jobs);
}

fn protecting_mirrors() {
    let space = Space::new();
    let crew = Crew::new(State::HOLE);
    let fd = space.as_raw_fd();
    let flags = MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
    let areas = PLACES.map(|at| Area::mmap(at, LEN, RW, flags, fd, AT).expect("a mirror"));
    let mut random = fastrand::Rng::with_seed(15);
    let jobs = vec![
        editor(&space, &crew),
        watcher(&crew, 0, 16),
        watcher(&crew, 0, 17),
        Box::new(|| {
            let area = random.choice(&areas).expect("two");
            let prot = random.choice([RW, RW, PROT_READ, PROT_NONE]).expect("some");
            let page = random.u64(0..LEN / PAGE) * PAGE;
            area.protect(page, PAGE, prot).expect("mprotect");
            // None of a read-only mirror's pages is written by it.
            if prot == PROT_READ {
                let answer = area.store_word(page, 0);
                let hole = answer == Err(Fault::hole(page));
                assert!(hole || answer == Err(Fault::denied(page)), "{answer:x?}");
            }
            add(&crew.others, true);
            std::thread::yield_now();
        }),
    ];
    let least = [
        ("changes", 50),
        ("others", 50),
        ("loads", 500),
        ("denied", 50),
        ("crossed", 20),
    ];
    run_with(&space, &crew, &least, jobs);
}

/// A process that forks all the time, and children that look for a moment.
fn forks() {
    let space = Space::new();
    let crew = Crew::new(State::HOLE);
    let eyes = Eyes::wide(&space);
    let mut seed = 100;
    let jobs = vec![
        editor(&space, &crew),
        Box::new(|| {
            seed += 1;
            let child = Child::spawn(|| {
                let (eyes, mut random) = (eyes.inherited(), fastrand::Rng::with_seed(seed));
                for _ in 0..20 {
                    crew.look(&eyes, &mut random);
                    crew.poke(&eyes, &mut random);
                }
            });
            child.succeed();
            add(&crew.others, true);
        }),
    ];
    let least = [("changes", 50), ("others", 20), ("loads", 500)];
    run_with(&space, &crew, &least, jobs);
}

/// Processes that are killed in the midst of it.
fn killed_processes() {
    let space = Space::new();
    let crew = Crew::new(State::HOLE);
    let mut random = fastrand::Rng::with_seed(18);
    let jobs = vec![
        editor(&space, &crew),
        Box::new(|| {
            let seed = random.u64(..);
            let child = Child::spawn(|| crew.work(&Eyes::wide(&space), seed));
            std::thread::sleep(Duration::from_micros(random.u64(0..8000)));
            let pid = Pid::from_raw(child.pid());
            kill(pid, Signal::SIGKILL).expect("kill");
            match child.wait() {
                WaitStatus::Signaled(_, Signal::SIGKILL, _) => {}
                // It had just been told to stop.
                WaitStatus::Exited(_, 0) => {}
                other => panic!("{other:?}"),
            }
            add(&crew.others, true);
        }),
    ];
    let least = [("changes", 50), ("others", 20), ("loads", 500)];
    run_with(&space, &crew, &least, jobs);
}

/// A space that has had no mirrors gets two at the moment when a page is replaced.
fn first_mirrors() {
    let mut random = fastrand::Rng::with_seed(20);
    for round in 1..=scaled(100) {
        let (space, mut generations) = (Space::new(), Generations::new());
        let ((old, before), (new, after)) = (generations.next(), generations.next());
        space.must_map(mapping(&old).with(libc::MAP_POPULATE));
        let phases = Phases::new(State::full_of(before));
        let (start, wait) = (Barrier::new(3), random.u64(0..300));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    start.wait();
                    let area = mirror(&space, AT, LEN);
                    for _ in 0..100 {
                        let began = phases.begin();
                        phases.loaded(began, Outcome::of(area.load_word(0), 0));
                    }
                });
            }
            start.wait();
            std::thread::sleep(Duration::from_micros(wait));
            let map = mapping(&new).replace();
            phases.change(State::full_of(after), || space.must_map(map));
            generations.retire(old);
        });
        assert_eq!(space.info().mirrors, 0, "round {round}");
    }
}

/// The descriptors, the mirrors and a process that has one end at the same moment; what is left
/// works to the end, and then all of the memory comes back.
fn last_close() {
    const ANON: u64 = 64 * PAGE;
    let cgroup = Cgroup::new("last-close");
    cgroup.enter();
    let mut random = fastrand::Rng::with_seed(19);
    let (before, mut kept) = (cgroup.charged(), Vec::new());
    for round in 1..=scaled(100) {
        let space = Space::new();
        let file = Generations::full_of(tag(round));
        space.must_map(mapping(&file));
        let anon = AT + LEN;
        space.must_map(Map::anon(anon, ANON).with(libc::MAP_POPULATE));
        let view = space.must_view(View::of(AT, LEN + ANON).prot(PROT_READ));
        let (one, two) = (
            mirror(&space, AT, LEN + ANON),
            mirror_with(&view, 0, LEN, PROT_READ),
        );
        let child = Child::spawn(|| while one.load_word(LEN).is_ok() {});
        one.store_word(LEN, 0).expect("a store");
        let pid = Pid::from_raw(child.pid());
        let keep = random.u8(0..8) == 0;
        let start = Barrier::new(4);
        let wait = |micros: u64| {
            start.wait();
            std::thread::sleep(Duration::from_micros(micros));
        };
        let waits: [u64; 4] = std::array::from_fn(|_| random.u64(0..200));
        let left = std::thread::scope(|scope| {
            scope.spawn(|| {
                wait(waits[0]);
                drop(space);
                drop(view);
            });
            scope.spawn(|| {
                wait(waits[1]);
                kill(pid, Signal::SIGKILL).expect("kill");
            });
            let last = scope.spawn(|| {
                wait(waits[2]);
                keep.then_some(two)
            });
            scope.spawn(|| {
                start.wait();
                for n in 0..50 {
                    let offset = n % (LEN / PAGE) * PAGE;
                    assert_eq!(one.load_word(offset), Ok(tag(round)), "round {round}");
                    one.store_word(LEN + n * PAGE, n).expect("a store");
                }
                drop(one);
            });
            last.join().expect("a thread")
        });
        child.wait();
        kept.extend(left.map(|area| (area, tag(round))));
    }
    // A mirror alone keeps its space.
    for (area, word) in &kept {
        assert_eq!(area.load_word(0), Ok(*word));
        assert_eq!(area.store_word(0, 0), Err(Fault::denied(0)));
    }
    drop(kept);
    eventually("the memory of the spaces comes back", || {
        cgroup.charged() < before + (8 << 20)
    });
    Cgroup::leave();
}
