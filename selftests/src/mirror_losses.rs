// SPDX-License-Identifier: GPL-2.0

//! Whatever the kernel does with pages behind everybody's back, and whatever is done to mappings
//! that are not taken away: what is written through mirrors is not lost.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use libc::{PROT_READ, PROT_WRITE};

use crate::note;
use crate::support::cgroup::Cgroup;
use crate::support::crew::time;
use crate::support::files::{self, Ext4, TempFile};
use crate::support::meeting::{add, repeat, run_out};
use crate::support::mirror::{mirror, Area};
use crate::support::probe::Fault;
use crate::support::process::Child;
use crate::support::rights::RW;
use crate::support::shared::Shared;
use crate::support::swap::Swap;
use crate::support::system::{counter, cpus, stay_on, RaiseAtEnd, Setting};
use crate::support::{Map, Space, HUGE, PAGE};

crate::suite![
    paging_out,
    thrashing,
    reclaim,
    migration,
    huge_pages,
    ksm,
    writeback,
    neighbours,
    protection,
    mirror_protection,
    forks,
];

const WORKERS: usize = 3;
/// Pages of each kind of small mapping, and of the huge one, of which every eighth is used.
const SMALL: u64 = 16;
const KINDS: usize = 5;
const USED: usize = KINDS * SMALL as usize + 64;

/// How often each worker has added 1 to its word of each page.
struct Ledger {
    stop: AtomicBool,
    counts: [[AtomicU64; USED]; WORKERS],
    additions: AtomicU64,
    denied: AtomicU64,
    disturbances: AtomicU64,
}

/// A space with mappings of every kind, and where its used pages are.
struct Room {
    space: Space,
    pages: Vec<u64>,
    /// Which of them are used, when not all are.
    used: std::ops::Range<usize>,
    ledger: Shared<Ledger>,
    ext4: Option<TempFile>,
    temp: TempFile,
    _mount: Option<Ext4>,
}

/// Where the small mappings begin, and the one of 2 MiB.
const SMALL_AT: u64 = 16 * PAGE;
const HUGE_AT: u64 = HUGE;
const LEN: u64 = 2 * HUGE;

impl Room {
    fn new() -> Room {
        let mount = Ext4::mount().ok();
        let ext4 = mount
            .as_ref()
            .map(|mount| TempFile::new(mount.path(), SMALL * PAGE));
        let temp = TempFile::new("/tmp", SMALL * PAGE);
        let len = SMALL * PAGE;
        // The private mapping must not begin with what is written to the shared one.
        let (memfd, other) = (files::memfd(len), files::memfd(len));
        let disk = ext4.as_ref().unwrap_or(&temp);
        let kinds: [Map; KINDS] = [
            Map::anon(0, len),
            Map::anon(0, len).shared(),
            Map::file(&memfd, 0, len),
            Map::file(&other, 0, len).private(),
            Map::file(&disk.file, 0, len),
        ];
        let (space, mut pages) = (Space::new(), Vec::new());
        for (n, mut map) in (0..).zip(kinds) {
            map.0.addr = SMALL_AT + n * len;
            space.must_map(map);
            pages.extend((0..SMALL).map(|page| map.0.addr + page * PAGE));
        }
        space.must_map(Map::anon(HUGE_AT, HUGE));
        pages.extend((0..64).map(|n| HUGE_AT + n * 8 * PAGE));
        assert_eq!(pages.len(), USED);
        let ledger = Shared::new(Ledger {
            stop: AtomicBool::new(false),
            counts: [const { [const { AtomicU64::new(0) }; USED] }; WORKERS],
            additions: AtomicU64::new(0),
            denied: AtomicU64::new(0),
            disturbances: AtomicU64::new(0),
        });
        Room {
            space,
            pages,
            used: 0..USED,
            ledger,
            ext4,
            temp,
            _mount: mount,
        }
    }

    /// Where worker `n`'s word is in each page.
    fn word(worker: usize) -> u64 {
        8 + 128 * worker as u64
    }

    /// Adds 1 to words of random pages, and looks whether the additions before are there.
    fn work(&self, worker: usize, area: &Area) {
        let mut random = fastrand::Rng::with_seed(worker as u64);
        repeat(&self.ledger.stop, || {
            let page = random.usize(self.used.clone());
            let offset = self.pages[page] + Room::word(worker);
            let count = &self.ledger.counts[worker][page];
            match area.add_word(offset, 1) {
                Ok(old) => {
                    let known = count.fetch_add(1, Relaxed);
                    let at = self.pages[page];
                    assert_eq!(old, known, "worker {worker}, the page at {at:#x}");
                    add(&self.ledger.additions, true);
                }
                Err(fault) => {
                    assert_eq!(fault, Fault::denied(offset));
                    add(&self.ledger.denied, true);
                }
            }
            // Others read what is there, so that pages are also mapped for reading only.
            let other = self.pages[random.usize(self.used.clone())];
            if let Err(fault) = area.load_word(other) {
                assert_eq!(fault, Fault::denied(other));
            }
        });
    }

    /// Runs the workers, two threads and a process, against `disturb`.
    fn run(&self, refusals: bool, disturbances: u64, mut disturb: impl FnMut(&Area) + Send) {
        let area = mirror(&self.space, 0, LEN);
        let child = Child::spawn(|| self.work(2, &mirror(&self.space, 0, LEN)));
        let ledger = &self.ledger;
        let end = RaiseAtEnd(&ledger.stop);
        std::thread::scope(|scope| {
            let _end = RaiseAtEnd(&ledger.stop);
            scope.spawn(|| self.work(0, &area));
            // In this process, by a mirror of its own.
            scope.spawn(|| self.work(1, &mirror(&self.space, 0, LEN)));
            scope.spawn(|| {
                repeat(&ledger.stop, || {
                    disturb(&area);
                    add(&ledger.disturbances, true);
                });
            });
            let denied = if refusals { 20 } else { 0 };
            let least = [
                ("additions", &ledger.additions, 2000),
                ("refused", &ledger.denied, denied),
                ("disturbances", &ledger.disturbances, disturbances),
            ];
            run_out(time(), &ledger.stop, &least);
        });
        drop(end);
        child.succeed();
        if !refusals {
            assert_eq!(ledger.denied.load(Relaxed), 0, "an access was refused");
        }
        self.check(&area);
    }

    /// That all additions are there, for the descriptor as well.
    fn check(&self, area: &Area) {
        self.space
            .must_protect(SMALL_AT, SMALL * KINDS as u64 * PAGE, RW);
        for worker in 0..WORKERS {
            for (page, at) in self.pages.iter().enumerate() {
                let known = self.ledger.counts[worker][page].load(Relaxed);
                let mut bytes = [0; 8];
                let offset = at + Room::word(worker);
                assert_eq!(self.space.read_at(offset, &mut bytes), Ok(8));
                assert_eq!(u64::from_le_bytes(bytes), known, "the page at {at:#x}");
                if area.protect(0, LEN, RW).is_ok() {
                    assert_eq!(area.load_word(offset), Ok(known), "the page at {at:#x}");
                }
            }
        }
    }
}

/// The figure of /proc/vmstat, for notes.
fn vmstat(name: &str) -> u64 {
    counter("/proc/vmstat", name)
}

/// Says how often the kernel did it, as far as it counts that.
fn noted(names: &[&str], test: impl FnOnce()) -> u64 {
    let figures = || names.iter().map(|name| vmstat(name)).collect::<Vec<_>>();
    let before = figures();
    test();
    let changes: Vec<u64> = figures().iter().zip(&before).map(|(a, b)| a - b).collect();
    note!("{names:?}: {changes:?}");
    changes.iter().sum()
}

fn paging_out() {
    let swap = Swap::on(1);
    note!("swap: {}", swap.is_some());
    let room = Room::new();
    let mut random = fastrand::Rng::with_seed(1);
    let swapped = noted(&["pswpout", "pswpin"], || {
        room.run(false, 50, |_| {
            let page = room.pages[random.usize(0..USED)];
            let (at, len) = match random.u8(0..4) {
                0 => (0, LEN),
                _ => (page, PAGE),
            };
            // Most of the range is a hole.
            let advice = [libc::MADV_PAGEOUT, libc::MADV_PAGEOUT, libc::MADV_COLD];
            let _ = room
                .space
                .advise(at, len, random.choice(advice).expect("some"));
        });
    });
    assert!(swap.is_none() || swapped > 0, "nothing was swapped");
}

/// Few pages, and on each CPU one who does nothing but page them out: what is gone again as soon
/// as it is there is not taken for a hole.
fn thrashing() {
    let swap = Swap::on(1);
    note!("swap: {}", swap.is_some());
    let mut room = Room::new();
    room.used = 0..2;
    let page_out = || {
        room.space
            .must_advise(SMALL_AT, 2 * PAGE, libc::MADV_PAGEOUT)
    };
    // A page that was just brought in can only be paged out from the CPU that did so.
    let others: Vec<Child> = cpus()
        .into_iter()
        .map(|cpu| {
            Child::spawn(|| {
                stay_on(cpu);
                repeat(&room.ledger.stop, page_out);
            })
        })
        .collect();
    let swapped = noted(&["pswpout", "pswpin"], || {
        room.run(false, 50, |_| page_out());
    });
    others.iter().for_each(Child::succeed);
    assert!(swap.is_none() || swapped > 0, "nothing was swapped");
}

/// As a cgroup does that has got too large.
fn reclaim() {
    let swap = Swap::on(1);
    let cgroup = Cgroup::new("reclaim");
    cgroup.enter();
    let room = Room::new();
    let swapped = noted(&["pswpout", "pswpin"], || {
        room.run(false, 2, |_| {
            cgroup.try_set("memory.reclaim", "64K");
        });
    });
    Cgroup::leave();
    assert!(swap.is_none() || swapped > 0, "nothing was swapped");
}

/// Memory is fragmented and made whole again.
fn migration() {
    let room = Room::new();
    let moved = noted(&["pgmigrate_success", "compact_success"], || {
        let mut files = Vec::new();
        room.run(false, 3, |_| {
            // Every other page of some files, so that others have to move.
            let file = files::memfd(2 * HUGE);
            for page in 0..2 * HUGE / PAGE {
                file.write_all_at(&[1], page * PAGE).expect("write");
            }
            let mode = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
                | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
            for page in (0..2 * HUGE / PAGE).step_by(2) {
                nix::fcntl::fallocate(&file, mode, (page * PAGE) as i64, PAGE as i64)
                    .expect("fallocate");
            }
            files.push(file);
            if files.len() > 16 {
                files.remove(0);
            }
            std::fs::write("/proc/sys/vm/compact_memory", "1").expect("compact_memory");
        });
    });
    assert!(moved > 0, "no page was moved");
}

/// Small pages become a huge one, which is split again.
fn huge_pages() {
    let room = Room::new();
    room.space.must_advise(HUGE_AT, HUGE, libc::MADV_HUGEPAGE);
    let mut random = fastrand::Rng::with_seed(3);
    let names = ["thp_collapse_alloc", "thp_split_page", "thp_split_pmd"];
    let collapsed = noted(&names, || {
        room.run(false, 20, |_| {
            // It may fail, when pages are in use for a moment.
            let _ = room.space.advise(HUGE_AT, HUGE, libc::MADV_COLLAPSE);
            std::thread::yield_now();
            let part = HUGE_AT + random.u64(0..HUGE / PAGE) * PAGE;
            match random.u8(0..3) {
                // Advice on part of it splits it.
                0 => room.space.must_advise(part, PAGE, libc::MADV_COLD),
                1 => room.space.must_advise(part, PAGE, libc::MADV_PAGEOUT),
                // So does what makes it two mappings.
                _ => {
                    room.space.must_advise(part, PAGE, libc::MADV_RANDOM);
                    room.space.must_advise(part, PAGE, libc::MADV_NORMAL);
                }
            }
        });
    });
    assert!(collapsed > 0, "no huge page was made");
}

fn ksm() {
    let room = Room::new();
    let ksm = "/sys/kernel/mm/ksm";
    let _settings = [
        ("pages_to_scan", "2000"),
        ("sleep_millisecs", "5"),
        ("run", "1"),
    ]
    .map(|(file, value)| Setting::set(&format!("{ksm}/{file}"), value));
    // Pages that are not used are all zeros, and are merged again and again.
    for at in [SMALL_AT, HUGE_AT] {
        let len = if at == HUGE_AT { HUGE } else { SMALL * PAGE };
        room.space.must_advise(at, len, libc::MADV_POPULATE_WRITE);
        room.space.must_advise(at, len, libc::MADV_MERGEABLE);
    }
    room.run(false, 20, |_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        for at in [SMALL_AT, HUGE_AT] {
            room.space.must_advise(at, PAGE, libc::MADV_UNMERGEABLE);
            room.space.must_advise(at, PAGE, libc::MADV_MERGEABLE);
        }
    });
    let merged = std::fs::read_to_string(format!("{ksm}/pages_sharing")).expect("pages_sharing");
    note!("pages merged at the end: {}", merged.trim());
}

/// Dirty pages of a file system on a disk are written, and for that made read-only.
fn writeback() {
    let room = Room::new();
    note!("ext4: {}", room.ext4.is_some());
    let file = room.ext4.as_ref().unwrap_or(&room.temp);
    room.run(false, 20, |_| file.file.sync_all().expect("fsync"));
    // What is on the disk is what was written.
    crate::support::files::drop_caches();
    for (page, at) in room.pages.iter().enumerate() {
        let index = (at - SMALL_AT) / PAGE;
        if (4 * SMALL..5 * SMALL).contains(&index) {
            for worker in 0..WORKERS {
                let mut word = [0; 8];
                let place = (index - 4 * SMALL) * PAGE + Room::word(worker);
                file.file.read_exact_at(&mut word, place).expect("read");
                let known = room.ledger.counts[worker][page].load(Relaxed);
                assert_eq!(u64::from_le_bytes(word), known, "page {index} of the file");
            }
        }
    }
}

/// What is beside the pages is mapped, changed and unmapped all the time, which splits and merges
/// mappings.
fn neighbours() {
    let room = Room::new();
    let mut random = fastrand::Rng::with_seed(4);
    room.run(false, 50, |_| {
        let page = room.pages[random.usize(0..USED - 64)];
        match random.u8(0..4) {
            0 => {
                let after = SMALL_AT + KINDS as u64 * SMALL * PAGE;
                room.space.must_map(Map::anon(after, 8 * PAGE).replace());
                room.space.must_protect(after + PAGE, 2 * PAGE, PROT_READ);
                room.space.unmap(after, 8 * PAGE).expect("unmap");
            }
            // Unused pages between the used ones of the huge mapping.
            1 => {
                let at = HUGE_AT + (1 + 8 * random.u64(0..64)) * PAGE;
                room.space.unmap(at, 6 * PAGE).expect("unmap");
            }
            2 => room.space.must_advise(page, PAGE, libc::MADV_RANDOM),
            _ => room.space.must_advise(page, PAGE, libc::MADV_NORMAL),
        }
    });
}

fn protection() {
    let room = Room::new();
    let mut random = fastrand::Rng::with_seed(5);
    room.run(true, 50, |_| {
        let page = room.pages[random.usize(0..USED - 64)];
        let pages = random.u64(1..4);
        let end = SMALL_AT + KINDS as u64 * SMALL * PAGE;
        let len = (pages * PAGE).min(end - page);
        let prot = random
            .choice([RW, RW, PROT_READ, PROT_WRITE, 0])
            .expect("some");
        room.space.must_protect(page, len, prot);
    });
}

fn mirror_protection() {
    let room = Room::new();
    let mut random = fastrand::Rng::with_seed(6);
    room.run(true, 50, |area| {
        let page = room.pages[random.usize(0..USED)];
        let prot = random.choice([RW, RW, PROT_READ, 0]).expect("some");
        area.protect(page, PAGE, prot).expect("mprotect");
    });
}

/// A process with mirrors forks, and the children read and go.
fn forks() {
    let room = Room::new();
    let mut random = fastrand::Rng::with_seed(7);
    room.run(false, 30, |area| {
        let page = random.usize(0..USED);
        let known = room.ledger.counts[0][page].load(Relaxed);
        let child = Child::spawn(|| {
            let seen = area.load_word(room.pages[page] + Room::word(0));
            assert!(seen.expect("a load") >= known, "a child sees the past");
        });
        child.succeed();
    });
}
