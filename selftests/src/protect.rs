// SPDX-License-Identifier: GPL-2.0

//! ADDRESS_SPACE_IOC_PROTECT: all of the range or nothing of it, at once, and for everybody.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use asfd::sys::{KVM_MEM_HOLE_EXIT, KVM_MEM_LOG_DIRTY_PAGES};
use libc::{MAP_HUGETLB, MAP_NORESERVE, PROT_NONE, PROT_READ, PROT_WRITE};
use nix::sys::signal::{kill, Signal};
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use nix::unistd::Pid;

use crate::note;
use crate::support::cgroup::Cgroup;
use crate::support::faults::Faults;
use crate::support::files::{self, TempFile};
use crate::support::guest::{word, Args, Exit, Guest, Routine, Vm};
use crate::support::mapped::Mapped;
use crate::support::process::{sockets, Child};
use crate::support::rights::{spelled_prot, View, RW};
use crate::support::snapshot::{unchanged, Snapshot};
use crate::support::system::{counter, eventually, need_huge_pages, Setting};
use crate::support::{Errno, Map, Result, Space, HUGE, PAGE};

crate::suite![
    every_change_of_every_kind,
    pages_and_edges,
    against_a_model,
    merges_back,
    all_or_nothing,
    mapping_limit,
    mapping_limit_after_merges,
    every_allocation_fails_once,
    out_of_memory,
    huge_pages,
    private_copies_stay,
    guest_reads_and_writes,
    stops_a_running_guest,
    stops_writers,
    a_guest_with_a_dirty_log,
    a_mirror_too,
    large_ranges,
];

const PROTS: [i32; 4] = [PROT_NONE, PROT_READ, PROT_WRITE, RW];

fn permits(prot: i32, needed: i32) -> Result<usize> {
    if prot & needed != 0 {
        Ok(1)
    } else {
        Err(Errno::EACCES)
    }
}

/// What can be done with the page at `at` is what `prot` says; its first byte is `byte`.
#[track_caller]
fn serves(space: &Space, at: u64, prot: i32, byte: u8, what: &str) {
    let mut buffer = [0];
    let read = space.read_at(at, &mut buffer);
    assert_eq!(read, permits(prot, PROT_READ), "{what}: pread");
    if read.is_ok() {
        assert_eq!(buffer, [byte], "{what}: what is read");
    }
    let written = space.write_at(at, &[byte]);
    assert_eq!(written, permits(prot, PROT_WRITE), "{what}: pwrite");
    assert_eq!(space.query(at, 0).map(|m| m.prot), Ok(prot), "{what}");
}

fn every_change_of_every_kind() {
    let vm = Vm::new();
    let gmem = vm.guest_memfd(4 * PAGE, 3).ok();
    let temp = TempFile::new("/tmp", 4 * PAGE);
    files::number(&temp.file, 4, b'a');
    let memfd = files::numbered(4, b'a');
    let mut kinds = vec![
        ("anonymous", Map::anon(0, 4 * PAGE)),
        ("anonymous, shared", Map::anon(0, 4 * PAGE).shared()),
        ("a memfd", Map::file(&memfd, 0, 4 * PAGE)),
        ("a memfd, private", Map::file(&memfd, 0, 4 * PAGE).private()),
        ("a file", Map::file(&temp.file, 0, 4 * PAGE)),
    ];
    if let Some(file) = &gmem {
        kinds.push(("guest_memfd", Map::file(file, 0, 4 * PAGE)));
    }
    for (what, map) in kinds {
        for touched in [false, true] {
            for first in PROTS {
                let space = Space::new();
                space.must_map(map.prot(first));
                space.must_protect(0, 4 * PAGE, RW);
                for page in 0..4 {
                    if touched {
                        space.put(page * PAGE, &[b'A' + page as u8]);
                    }
                }
                let byte = space.byte(PAGE);
                for then in PROTS {
                    let what = format!("{what}: {}", spelled_prot(then));
                    space.must_protect(0, 4 * PAGE, then);
                    serves(&space, PAGE, then, byte, &what);
                    assert_eq!(space.info().mappings, 1, "{what}");
                    assert_eq!(space.info().mapped_bytes, 4 * PAGE, "{what}");
                }
            }
        }
    }
}

/// Only the pages of the range change, which begins at 0 as well as it ends at the end.
fn pages_and_edges() {
    for base in [0, 1 << 30, Space::new().end() - 8 * PAGE] {
        let file = files::numbered(8, b'a');
        for (at, len, rounded) in [
            (0, 1, 1),
            (0, PAGE, 1),
            (0, PAGE + 1, 2),
            (3, 2 * PAGE, 2),
            (7, PAGE, 1),
            (7, 1, 1),
            (0, 8 * PAGE, 8),
        ] {
            let space = Space::new();
            space.must_map(Map::file(&file, base, 8 * PAGE));
            space.must_protect(base + at * PAGE, len, PROT_READ);
            for page in 0..8 {
                let inside = (at..at + rounded).contains(&page);
                let prot = if inside { PROT_READ } else { RW };
                let what = format!("page {page} from {base:#x}");
                serves(&space, base + page * PAGE, prot, b'a' + page as u8, &what);
            }
        }
    }
}

/// Random ranges over mappings of several kinds with a hole.
fn against_a_model() {
    const PAGES: u64 = 24;
    let file = files::numbered(8, b'a');
    for seed in 0..5 {
        let mut random = fastrand::Rng::with_seed(seed);
        let space = Space::new();
        space.must_map(Map::file(&file, 0, 8 * PAGE));
        space.must_map(Map::anon(8 * PAGE, 4 * PAGE));
        space.must_map(Map::anon(12 * PAGE, 3 * PAGE).shared());
        space.must_map(Map::file(&file, 17 * PAGE, 7 * PAGE).private());
        let mut model: Vec<Option<i32>> = (0..PAGES)
            .map(|page| (!(15..17).contains(&page)).then_some(RW))
            .collect();
        for step in 0..80 {
            let at = random.u64(0..PAGES);
            let len = random.u64(1..=PAGES - at).min(random.u64(1..12));
            let prot = PROTS[random.usize(0..4)];
            let range = at as usize..(at + len) as usize;
            let answer = unchanged(&space, || space.protect(at * PAGE, len * PAGE, prot));
            let expected = if model[range.clone()].iter().all(Option::is_some) {
                model[range].fill(Some(prot));
                Ok(())
            } else {
                Err(Errno::ENOMEM)
            };
            let what = format!("seed {seed}, step {step}: {prot} for {len} at {at}");
            assert_eq!(answer, expected, "{what}");
            for (page, prot) in (0..).zip(&model) {
                let found = space.query(page * PAGE, 0).map(|m| m.prot).ok();
                assert_eq!(found, *prot, "{what}: page {page}");
                let read = space.read_at(page * PAGE, &mut [0]);
                let expected = prot.map_or(Err(Errno::EIO), |prot| permits(prot, PROT_READ));
                assert_eq!(read, expected, "{what}: page {page}");
            }
        }
    }
}

fn merges_back() {
    let file = files::numbered(64, b'0');
    for (what, map) in [
        ("anonymous", Map::anon(0, 64 * PAGE)),
        ("a file", Map::file(&file, 0, 64 * PAGE)),
        ("a private file", Map::file(&file, 0, 64 * PAGE).private()),
    ] {
        let space = Space::new();
        space.must_map(map);
        space.put(0, &[7; 64 * PAGE as usize]);
        for page in (1..64).step_by(2) {
            space.must_protect(page * PAGE, PAGE, PROT_READ);
        }
        assert_eq!(space.info().mappings, 64, "{what}");
        space.must_protect(0, 64 * PAGE, PROT_READ);
        assert_eq!(space.info().mappings, 1, "{what}");
        for page in 1..63 {
            space.must_protect(page * PAGE, PAGE, PROT_NONE);
            assert_eq!(space.info().mappings, 3, "{what}, page {page}");
            space.must_protect(page * PAGE, PAGE, PROT_READ);
            assert_eq!(space.info().mappings, 1, "{what}, page {page}");
        }
        space.must_protect(0, 64 * PAGE, RW);
        assert_eq!(space.info().mappings, 1, "{what}");
        assert!(space.get(0, 64 * PAGE).iter().all(|byte| *byte == 7));
    }
}

/// Several mappings that could, and one that cannot, in every place.
fn all_or_nothing() {
    let temp = TempFile::new("/tmp", 2 * PAGE);
    let reading = temp.open(true, false);
    const MAPPINGS: u64 = 6;
    type Spoil<'a> = &'a dyn Fn(&Space, u64);
    // What it does to a place, what PROTECT then says, and to which prot.
    let spoils: [(&str, Spoil, Errno, &[i32]); 2] = [
        (
            "a hole",
            &|space, at| space.unmap(at + PAGE, PAGE).expect("unmap"),
            Errno::ENOMEM,
            &PROTS,
        ),
        (
            "a file opened for reading",
            &|space, at| {
                let map = Map::file(&reading, at, 2 * PAGE);
                space.must_map(map.prot(PROT_READ).replace());
            },
            Errno::EACCES,
            &[PROT_WRITE, RW],
        ),
    ];
    for (what, spoil, errno, prots) in spoils {
        for place in 0..MAPPINGS {
            let space = Space::new();
            for n in 0..MAPPINGS {
                // Neighbours that do not merge.
                let map = Map::anon(n * 2 * PAGE, 2 * PAGE);
                let map = if n % 2 == 0 { map } else { map.shared() };
                space.must_map(map.prot([RW, PROT_NONE, PROT_READ][n as usize % 3]));
            }
            spoil(&space, place * 2 * PAGE);
            let end = MAPPINGS * 2 * PAGE;
            for (start, len) in [(0, end), (PAGE, end - PAGE), (0, end - 1)] {
                for prot in prots {
                    let answer = unchanged(&space, || space.protect(start, len, *prot));
                    assert_eq!(answer, Err(errno), "{what} at {place}");
                }
            }
        }
    }
}

/// At vm.max_map_count what would split is refused, whole; what fits is done.
fn mapping_limit() {
    const LIMIT: u64 = 48;
    let limit = Setting::set("/proc/sys/vm/max_map_count", &LIMIT.to_string());
    // From page, pages, and how many mappings it adds, of three with 5 pages each.
    let shapes = [
        (1, 1, 2),
        (0, 1, 1),
        (4, 1, 1),
        (4, 2, 2),
        (1, 12, 2),
        (0, 14, 1),
        (3, 10, 2),
        (0, 15, 0),
    ];
    let mut refused = 0;
    for room in 0..=5u64 {
        for (at, pages, adds) in shapes {
            let space = Space::new();
            space.must_map(Map::anon(0, 5 * PAGE));
            space.must_map(Map::anon(5 * PAGE, 5 * PAGE).shared());
            space.must_map(Map::anon(10 * PAGE, 5 * PAGE));
            space.put(0, &[7; 15 * PAGE as usize]);
            for n in 3..LIMIT - room {
                space.must_map(Map::anon((20 + 2 * n) * PAGE, PAGE).prot(PROT_NONE));
            }
            assert_eq!(space.info().mappings, LIMIT - room);
            let answer = unchanged(&space, || space.protect(at * PAGE, pages * PAGE, PROT_READ));
            let what = format!("{pages} at {at} with room for {room}");
            match answer {
                Ok(()) => {
                    assert!(adds <= room, "{what}: more than the limit");
                    assert_eq!(space.info().mappings, LIMIT - room + adds, "{what}");
                }
                Err(e) => {
                    assert_eq!(e, Errno::ENOMEM, "{what}");
                    // A split may ask for one more than is left of it in the end.
                    assert!(adds > 0 && room < adds + 2, "{what}: there was room");
                    refused += 1;
                }
            }
        }
    }
    drop(limit);
    note!("{refused} refused");
    assert!(refused >= 10, "{refused}");
}

/// The same where what is done first has merged before the limit is met.
fn mapping_limit_after_merges() {
    const LIMIT: u64 = 48;
    let limit = Setting::set("/proc/sys/vm/max_map_count", &LIMIT.to_string());
    let mut refused = 0;
    for room in 0..=1 {
        for first in (0..19).step_by(2) {
            for last in (first..19).step_by(2) {
                for prot in [PROT_NONE, PROT_READ] {
                    let space = striped();
                    for n in space.info().mappings..LIMIT - room {
                        space.must_map(Map::anon((20 + 2 * n) * PAGE, PAGE).prot(PROT_NONE));
                    }
                    let len = (last + 1 - first) * PAGE;
                    let answer = unchanged(&space, || space.protect(first * PAGE, len, prot));
                    let what = format!("{prot} for {first} to {last}, room {room}");
                    assert!(matches!(answer, Ok(()) | Err(Errno::ENOMEM)), "{what}");
                    assert!(space.info().mappings <= LIMIT, "{what}");
                    refused += u64::from(answer.is_err());
                }
            }
        }
    }
    drop(limit);
    note!("{refused} refused");
    assert!(refused > 10, "{refused}");
}

/// Three mappings that do not merge, to be split at both ends.
fn three() -> Space {
    let space = Space::new();
    space.must_map(Map::anon(0, 4 * PAGE));
    space.must_map(Map::anon(4 * PAGE, 4 * PAGE).shared());
    space.must_map(Map::anon(8 * PAGE, 4 * PAGE));
    space.put(0, &[7; 12 * PAGE as usize]);
    space
}

/// Mappings of one kind whose protections alternate, then one of another kind: what is protected
/// merges with what was so before, and has to come apart again if the last one cannot be split.
fn striped() -> Space {
    let space = Space::new();
    space.must_map(Map::anon(0, 15 * PAGE));
    space.must_map(Map::anon(15 * PAGE, 4 * PAGE).shared());
    space.put(0, &[7; 19 * PAGE as usize]);
    for page in [3, 9] {
        space.must_protect(page * PAGE, 3 * PAGE, PROT_READ);
    }
    space
}

/// For each allocation of PROTECT and VIEW: it fails, and nothing has happened.
fn every_allocation_fails_once() {
    let faults = Faults::new();
    type Call = (&'static str, fn() -> Space, fn(&Space) -> Result<()>);
    let calls: [Call; 8] = [
        ("a split", three, |space| {
            space.protect(PAGE, PAGE, PROT_READ)
        }),
        ("two splits", three, |space| {
            space.protect(PAGE, 8 * PAGE, PROT_READ)
        }),
        ("no access", three, |space| {
            space.protect(2 * PAGE, 8 * PAGE, PROT_NONE)
        }),
        ("merges", striped, |space| {
            space.protect(0, 14 * PAGE, PROT_READ)
        }),
        ("merges before a split", striped, |space| {
            space.protect(0, 17 * PAGE, PROT_READ)
        }),
        ("merges between splits", striped, |space| {
            space.protect(PAGE, 16 * PAGE, PROT_NONE)
        }),
        ("a view", three, |space| {
            space.view(View::of(0, PAGE)).map(drop)
        }),
        ("a view of a view", three, |space| {
            let view = space.view(View::of(0, PAGE))?;
            view.view(View::of(0, PAGE)).map(drop)
        }),
    ];
    for (what, scenery, call) in calls {
        let (mut failed, mut survived, mut n) = (0, 0, 0);
        loop {
            n += 1;
            let space = scenery();
            let descriptors = || std::fs::read_dir("/proc/self/fd").expect("fd").count();
            let (before, open) = (Snapshot::take(&space), descriptors());
            let (result, injected) = faults.inject(n, || call(&space));
            assert_eq!(descriptors(), open, "{what}, allocation {n}");
            let change = before.differs(&Snapshot::take(&space));
            match (result, &change) {
                (Ok(()), _) => survived += u32::from(injected),
                (Err(Errno::ENOMEM | Errno::ENFILE), None) => failed += 1,
                _ => panic!("{what}, allocation {n}: {result:?}, {change:?}"),
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
}

/// The splits of PROTECT are charged to the creator. At its limit they are refused, whole, and
/// nobody is killed.
fn out_of_memory() {
    const MIB: u64 = 1 << 20;
    let cgroup = Cgroup::new("protect");
    let space = cgroup.space();
    cgroup.set("memory.max", "6M");
    let killed = || counter("/proc/vmstat", "oom_kill");
    let (ours, theirs) = sockets();
    let bystander = Child::spawn(|| {
        cgroup.enter();
        let memory = vec![1u8; 1 << 20];
        nix::unistd::write(&theirs, &memory[..1]).expect("write");
        loop {
            std::thread::park();
        }
    });
    nix::unistd::read(&ours, &mut [0]).expect("read");
    let before = killed();
    space.must_map(Map::anon(0, 64 * MIB).with(MAP_NORESERVE));
    space.must_map(Map::anon(64 * MIB, 64 * MIB).with(MAP_NORESERVE).shared());
    let full = (0..64 * MIB)
        .step_by(PAGE as usize)
        .find(|at| space.write_at(*at, b"x") != Ok(1));
    assert!(full.expect("the limit") < 10 * MIB);
    // Room for some splits, after which there is none.
    cgroup.set("memory.max", "6400K");
    let (mut done, mut refused) = (0, 0);
    // Each adds two mappings; some in private, some in shared memory.
    for n in 0..12000u64 {
        let at = 32 * MIB + 2 * n * PAGE;
        let mappings = space.info().mappings;
        match space.protect(at, PAGE, PROT_READ) {
            Ok(()) => done += 1,
            Err(e) => {
                assert_eq!(e, Errno::ENOMEM, "at {at:#x}");
                assert_eq!(space.info().mappings, mappings);
                let prot = space.query(at, 0).map(|m| m.prot);
                assert_eq!(prot, Ok(RW), "at {at:#x}");
                refused += 1;
            }
        }
        if refused >= 20 {
            break;
        }
    }
    note!("{done} done, {refused} refused");
    assert!(refused >= 20, "no call met the limit");
    assert!(cgroup.charged() <= 7 * MIB);
    // A range over many mappings, when there is no memory to split its ends.
    let all = space.mappings();
    let wide = space.protect(16 * MIB + PAGE, 100 * MIB, PROT_NONE);
    if let Err(e) = wide {
        assert_eq!((e, space.mappings()), (Errno::ENOMEM, all));
    }
    let pid = Pid::from_raw(bystander.pid());
    let state = waitpid(pid, Some(WaitPidFlag::WNOHANG));
    assert_eq!(state, Ok(WaitStatus::StillAlive), "the bystander");
    assert_eq!((killed(), cgroup.event("oom_kill")), (before, 0));
    // With memory it goes on.
    cgroup.set("memory.max", "64M");
    space.must_protect(PAGE, PAGE, PROT_READ);
    assert_eq!(space.write_at(PAGE, b"x"), Err(Errno::EACCES));
    kill(pid, Signal::SIGKILL).expect("kill");
    bystander.wait();
}

fn huge_pages() {
    let _pages = need_huge_pages(4);
    let file = files::huge_memfd(2 * HUGE);
    for (what, map) in [
        ("anonymous", Map::anon(HUGE, 2 * HUGE).with(MAP_HUGETLB)),
        (
            "shared",
            Map::anon(HUGE, 2 * HUGE).with(MAP_HUGETLB).shared(),
        ),
        ("a memfd", Map::file(&file, HUGE, 2 * HUGE)),
    ] {
        let space = Space::new();
        space.must_map(map);
        space.must_map(Map::anon(HUGE - PAGE, PAGE));
        space.must_map(Map::anon(3 * HUGE, PAGE));
        for at in [HUGE - PAGE, HUGE, 2 * HUGE, 3 * HUGE] {
            space.put(at, b"h");
        }
        for (at, len) in [
            (HUGE, PAGE),
            (HUGE + PAGE, HUGE),
            (2 * HUGE, HUGE - PAGE),
            (HUGE + PAGE, HUGE - PAGE),
            (HUGE - PAGE, 2 * PAGE),
            (3 * HUGE - PAGE, 2 * PAGE),
            (HUGE - PAGE, HUGE),
            (HUGE + PAGE, 2 * HUGE),
        ] {
            let answer = unchanged(&space, || space.protect(at, len, PROT_READ));
            assert_eq!(answer, Err(Errno::EINVAL), "{what}: {at:#x}, {len:#x}");
        }
        space.must_protect(2 * HUGE, HUGE, PROT_READ);
        serves(&space, HUGE, RW, b'h', what);
        serves(&space, 2 * HUGE, PROT_READ, b'h', what);
        space.must_protect(HUGE - PAGE, 2 * HUGE + 2 * PAGE, PROT_NONE);
        for at in [HUGE - PAGE, HUGE, 2 * HUGE, 3 * HUGE] {
            serves(&space, at, PROT_NONE, b'h', what);
        }
        space.must_protect(HUGE - PAGE, 2 * HUGE + 2 * PAGE, RW);
        for at in [HUGE - PAGE, HUGE, 2 * HUGE, 3 * HUGE] {
            serves(&space, at, RW, b'h', what);
        }
    }
}

/// A private page that was written stays the space's own, and one that was not is not written
/// into the file when it can be again.
fn private_copies_stay() {
    let file = files::numbered(4, b'a');
    let space = Space::new();
    space.must_map(Map::file(&file, 0, 4 * PAGE).private());
    space.put(0, b"own");
    for prot in [PROT_READ, PROT_NONE, RW] {
        space.must_protect(0, 4 * PAGE, prot);
    }
    assert_eq!(space.get(0, 3), b"own");
    space.put(PAGE, b"mine");
    let mut bytes = [0; 2 * PAGE as usize];
    file.read_exact_at(&mut bytes, 0).expect("read");
    assert_eq!((bytes[0], bytes[PAGE as usize]), (b'a', b'b'));
    file.write_all_at(b"new", 2 * PAGE).expect("write");
    assert_eq!(space.get(2 * PAGE, 3), b"new", "not copied yet");
    // A mapping made for reading only may be written later, if it is private.
    let temp = TempFile::new("/tmp", PAGE);
    let reading = temp.open(true, false);
    space.must_map(
        Map::file(&reading, 8 * PAGE, PAGE)
            .private()
            .prot(PROT_READ),
    );
    space.must_protect(8 * PAGE, PAGE, RW);
    space.put(8 * PAGE, b"own");
    temp.file.read_exact_at(&mut bytes[..3], 0).expect("read");
    assert_eq!(bytes[..3], [0; 3]);
}

fn guest_reads_and_writes() {
    let Guest {
        space,
        vm: _vm,
        mut vcpu,
    } = Guest::new(64);
    let at = 16 * PAGE;
    let file = files::numbered(2, b'a');
    for map in [
        Map::file(&file, at, 2 * PAGE),
        Map::file(&file, at, 2 * PAGE).private(),
    ] {
        space.must_map(map.replace());
        for round in 0..3 {
            space.must_protect(at, PAGE, RW);
            assert_eq!(vcpu.load(at), Exit::Done(word(b'a')), "round {round}");
            assert_eq!(vcpu.store(at, word(b'a')), Exit::Done(word(b'a')));
            space.must_protect(at, PAGE, PROT_READ);
            assert_eq!(vcpu.load(at), Exit::Done(word(b'a')));
            assert_eq!(vcpu.store(at, 7), Exit::store_to_hole(at, 7));
            assert_eq!(space.byte(at), b'a');
            // Its neighbour is as it was.
            let next = at + PAGE;
            assert_eq!(vcpu.store(next, word(b'b')), Exit::Done(word(b'b')));
            space.must_protect(at, PAGE, PROT_NONE);
            for exit in [vcpu.load(at), vcpu.store(at, 7)] {
                assert!(exit.is_fault_at(at), "{exit:?}");
            }
            assert_eq!(vcpu.load(next), Exit::Done(word(b'b')));
        }
        space.must_protect(at, PAGE, RW);
        assert_eq!(vcpu.load(at), Exit::Done(word(b'a')));
    }
}

/// When PROTECT returns, the running guest cannot write the page any more.
fn stops_a_running_guest() {
    let Guest {
        space,
        vm: _vm,
        mut vcpu,
    } = Guest::with_flags(64, KVM_MEM_HOLE_EXIT);
    let at = 16 * PAGE;
    for round in 0..16 {
        let file = files::memfd(PAGE);
        space.must_map(Map::file(&file, at, PAGE).replace());
        let count = || {
            let mut bytes = [0; 4];
            file.read_exact_at(&mut bytes, 0).expect("read");
            u32::from_le_bytes(bytes)
        };
        let prot = [PROT_READ, PROT_NONE][round % 2];
        let args = Args {
            ebx: at as u32,
            ..Default::default()
        };
        let exit = std::thread::scope(|scope| {
            scope.spawn(|| {
                eventually("the guest counts", || count() > 0);
                space.must_protect(at, PAGE, prot);
                let after = count();
                for _ in 0..20 {
                    std::thread::sleep(Duration::from_millis(2));
                    assert_eq!(count(), after, "the page is still written");
                }
            });
            vcpu.call(Routine::Count, args)
        });
        if prot == PROT_READ {
            assert!(
                matches!(exit, Exit::MmioWrite { addr, .. } if addr == at),
                "{exit:?}"
            );
        } else {
            assert!(exit.is_fault_at(at), "{exit:?}");
        }
        // And it can again as soon as it may.
        let before = count();
        space.must_protect(at, PAGE, RW);
        let next = before.wrapping_add(1);
        assert_eq!(vcpu.store(at, next), Exit::Done(next));
        assert_eq!(count(), next);
    }
}

/// Nor can a write(2) under way.
fn stops_writers() {
    let stop = AtomicBool::new(false);
    let space = Space::new();
    let file = files::memfd(4 * PAGE);
    space.must_map(Map::file(&file, 0, 4 * PAGE));
    let content = || {
        let mut bytes = vec![0; 4 * PAGE as usize];
        file.read_exact_at(&mut bytes, 0).expect("read");
        bytes
    };
    std::thread::scope(|scope| {
        for writer in 0..2u8 {
            let (space, stop) = (&space, &stop);
            scope.spawn(move || {
                let mut round = writer;
                while !stop.load(Ordering::Relaxed) {
                    round = round.wrapping_add(2);
                    let answer = space.write_at(0, &[round; 4 * PAGE as usize]);
                    assert!(matches!(answer, Ok(_) | Err(Errno::EACCES)), "{answer:?}");
                }
            });
        }
        let _end = crate::support::system::RaiseAtEnd(&stop);
        for _ in 0..80 {
            let before = content();
            eventually("they write", || content() != before);
            space.must_protect(0, 4 * PAGE, PROT_READ);
            let after = content();
            for _ in 0..4 {
                std::thread::sleep(Duration::from_micros(300));
                assert!(content() == after, "a write after PROTECT");
            }
            space.must_protect(0, 4 * PAGE, RW);
        }
    });
}

/// Write protection of the log and of the space do not undo each other.
fn a_guest_with_a_dirty_log() {
    let Guest {
        space,
        vm,
        mut vcpu,
    } = Guest::with_flags(64, KVM_MEM_LOG_DIRTY_PAGES);
    let (slot, at) = (crate::support::guest::SLOT, 16 * PAGE);
    space.must_map(Map::file(&files::numbered(2, b'a'), at, 2 * PAGE));
    let dirty = || {
        let pages = vm.dirty_pages(slot, 64 * PAGE);
        pages.contains(&16)
    };
    assert_eq!(vcpu.store(at, 1), Exit::Done(1));
    assert!(dirty(), "it was written");
    space.must_protect(at, PAGE, PROT_READ);
    assert_eq!(vcpu.store(at, 2), Exit::store_to_hole(at, 2));
    assert!(!dirty(), "it was not written");
    space.must_protect(at, PAGE, RW);
    assert!(!dirty(), "it was not written yet");
    assert_eq!(vcpu.store(at, 3), Exit::Done(3));
    assert!(dirty(), "it was written");
    assert!(!dirty(), "it is told once");
    assert_eq!(vcpu.store(at, 4), Exit::Done(4));
    assert!(dirty(), "it was written again");
}

/// A mirror that has touched the page loses it, and gets it back.
fn a_mirror_too() {
    let space = Space::new();
    space.must_map(Map::file(&files::numbered(4, b'a'), 0, 4 * PAGE));
    let mirror = Mapped::new(&space, 0, 4 * PAGE, RW).expect("a mirror");
    for round in 0..4 {
        assert_eq!(mirror.get(PAGE, 1), Ok(vec![b'b']), "round {round}");
        space.must_protect(PAGE, PAGE, PROT_NONE);
        assert_eq!(mirror.get(PAGE, 1), Err(Errno::EFAULT), "round {round}");
        assert_eq!(mirror.get(2 * PAGE, 1), Ok(vec![b'c']));
        space.must_protect(PAGE, PAGE, [PROT_READ, RW][round % 2]);
    }
}

/// A large range in one call, with all that is in it.
fn large_ranges() {
    let space = Space::new();
    let file = files::memfd(4096 * PAGE);
    space.must_map(Map::file(&file, 0, 4096 * PAGE).with(libc::MAP_POPULATE));
    space.must_map(Map::anon(1 << 40, 1 << 42).with(MAP_NORESERVE));
    space.put((1 << 40) + 5 * PAGE, b"x");
    space.must_protect(0, 4096 * PAGE, PROT_READ);
    assert_eq!(space.info().resident_bytes, 4097 * PAGE, "pages stay");
    space.must_protect(1 << 40, 1 << 42, PROT_READ);
    assert_eq!(space.byte((1 << 40) + 5 * PAGE), b'x');
    assert_eq!(space.write_at((1 << 41) + PAGE, b"x"), Err(Errno::EACCES));
}
