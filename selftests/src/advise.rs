// SPDX-License-Identifier: GPL-2.0

//! ADDRESS_SPACE_IOC_ADVISE: each advice does what it is for, where that can be seen.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use libc::{
    MADV_COLD, MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE, MADV_MERGEABLE, MADV_NOHUGEPAGE,
    MADV_NORMAL, MADV_PAGEOUT, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_RANDOM, MADV_REMOVE,
    MADV_SEQUENTIAL, MADV_UNMERGEABLE, MADV_WILLNEED, MAP_HUGETLB, MAP_NORESERVE, PROT_NONE,
    PROT_READ,
};
use nix::fcntl::{fcntl, FcntlArg, SealFlag};

use crate::harness::skip;
use crate::note;
use crate::support::cgroup::Cgroup;
use crate::support::files::{self, drop_caches, Ext4, TempFile};
use crate::support::guest::{sees, word, Exit, Guest};
use crate::support::mapped::Mapped;
use crate::support::rights::{View, RW};
use crate::support::snapshot::unchanged;
use crate::support::system::{counter, eventually, need_huge_pages, Setting};
use crate::support::{Errno, Map, Space, HUGE, PAGE};

crate::suite![
    all_other_advice_is_refused,
    accepted_on_memory_of_its_own,
    dontneed,
    dontneed_of_huge_pages,
    dontneed_in_a_guest,
    holes_are_passed_over,
    stops_where_it_is_refused,
    remove,
    remove_needs_a_file_to_write,
    populate,
    populate_is_charged_to_the_creator,
    collapse,
    collapse_of_a_file,
    hugepage,
    khugepaged_collapses,
    free,
    pageout_of_a_file,
    pageout_to_swap,
    cold,
    willneed,
    read_ahead,
    advice_splits_and_merges,
    mergeable,
];

/// Since Linux 6.1.
const MADV_COLLAPSE: i32 = 25;

const ACCEPTED: [i32; 16] = [
    MADV_NORMAL,
    MADV_RANDOM,
    MADV_SEQUENTIAL,
    MADV_WILLNEED,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_REMOVE,
    MADV_COLD,
    MADV_PAGEOUT,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_COLLAPSE,
    MADV_MERGEABLE,
    MADV_UNMERGEABLE,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
];

const MIB: u64 = 1 << 20;

/// What madvise(2) knows beyond the accepted ones is for tasks that fork, dump core or have
/// signal handlers, or breaks pages.
fn all_other_advice_is_refused() {
    let space = Space::new();
    space.must_map(Map::anon(0, 4 * PAGE));
    space.put(0, &[7; 4 * PAGE as usize]);
    space.must_map(Map::file(&files::numbered(4, b'a'), 4 * PAGE, 4 * PAGE));
    let numbers = (0..=120).chain([
        255,
        256,
        256 + MADV_DONTNEED,
        1 << 16,
        i32::MAX,
        -1,
        i32::MIN,
    ]);
    let mut refused = 0;
    for advice in numbers.filter(|advice| !ACCEPTED.contains(advice)) {
        for at in [0, 4 * PAGE, 8 * PAGE] {
            let answer = unchanged(&space, || space.advise(at, PAGE, advice));
            assert_eq!(answer, Err(Errno::EINVAL), "advice {advice} at {at:#x}");
        }
        refused += 1;
    }
    assert_eq!(refused, 121 - 16 + 7);
}

/// Private anonymous memory takes all but REMOVE; a whole huge page of it COLLAPSE as well.
fn accepted_on_memory_of_its_own() {
    for advice in ACCEPTED {
        let space = Space::new();
        space.must_map(Map::anon(0, 2 * HUGE).with(MAP_NORESERVE));
        space.put(HUGE, b"some");
        let known = match advice {
            MADV_MERGEABLE | MADV_UNMERGEABLE => Path::new("/sys/kernel/mm/ksm").exists(),
            MADV_REMOVE => false,
            _ => true,
        };
        let expected = if known { Ok(()) } else { Err(Errno::EINVAL) };
        let answer = space.advise(HUGE, HUGE, advice);
        assert_eq!(answer, expected, "advice {advice}");
        assert_eq!(space.info().mapped_bytes, 2 * HUGE);
        let kept = space.get(HUGE, 4);
        let drops = matches!(advice, MADV_DONTNEED | MADV_FREE);
        assert!(kept == b"some" || drops, "advice {advice}: {kept:?}");
    }
}

fn dontneed() {
    let file = files::numbered(8, b'a');
    let space = Space::new();
    space.must_map(Map::anon(0, 8 * PAGE));
    space.must_map(Map::file(&file, 8 * PAGE, 8 * PAGE).private());
    space.must_map(Map::file(&file, 16 * PAGE, 8 * PAGE));
    space.must_map(Map::anon(24 * PAGE, 8 * PAGE).shared());
    for n in 0..4 {
        space.put(n * 8 * PAGE, &[b'X'; 8 * PAGE as usize]);
    }
    assert_eq!(space.info().resident_bytes, 32 * PAGE);
    space.must_advise(PAGE, 30 * PAGE, MADV_DONTNEED);
    assert_eq!(space.info().resident_bytes, 2 * PAGE, "but the ends");
    for page in 0..32 {
        let expected = match page {
            0 => b'X',
            1..8 => 0,
            // Copies are gone, and what is in the file shows again.
            8..16 => b'X',
            _ => b'X',
        };
        assert_eq!(space.byte(page * PAGE), expected, "page {page}");
    }
    // The file had been written through the shared mapping.
    files::number(&file, 8, b'a');
    space.must_advise(8 * PAGE, 8 * PAGE, MADV_DONTNEED);
    for page in 0..8 {
        assert_eq!(space.byte((8 + page) * PAGE), b'a' + page as u8);
    }
    assert_eq!(space.info().mappings, 4);
}

fn dontneed_of_huge_pages() {
    let _pages = need_huge_pages(2);
    let space = Space::new();
    space.must_map(Map::anon(0, 2 * HUGE).with(MAP_HUGETLB));
    space.put(0, b"first");
    space.put(HUGE, b"second");
    let part = unchanged(&space, || space.advise(PAGE, HUGE, MADV_DONTNEED));
    assert_eq!(part, Err(Errno::EINVAL), "it begins within a huge page");
    space.must_advise(HUGE, HUGE, MADV_DONTNEED);
    assert_eq!(space.get(0, 5), b"first");
    assert_eq!(space.info().resident_bytes, HUGE);
    assert_eq!(space.get(HUGE, 6), [0; 6]);
}

/// The guest has the page in its own page tables, and must not keep it.
fn dontneed_in_a_guest() {
    let Guest {
        space,
        vm: _vm,
        mut vcpu,
    } = Guest::new(64);
    let at = 16 * PAGE;
    space.must_map(Map::anon(at, 4 * PAGE));
    for round in 0..10 {
        assert_eq!(vcpu.store(at, word(b'x')), Exit::Done(word(b'x')));
        let exit = sees(&mut vcpu, at, word(b'x'), || {
            space.must_advise(at, PAGE, MADV_DONTNEED);
        });
        assert_eq!(exit, Exit::Done(0), "round {round}");
    }
}

fn holes_are_passed_over() {
    let file = files::memfd(4 * PAGE);
    for (advice, gone) in [
        (MADV_DONTNEED, true),
        (MADV_REMOVE, true),
        (MADV_COLD, false),
    ] {
        let space = Space::new();
        for n in [1, 3, 5] {
            let at = n * 4 * PAGE;
            let map = if advice == MADV_REMOVE {
                Map::file(&file, at, 2 * PAGE).offset((n - 1) / 2 * PAGE)
            } else {
                Map::anon(at, 2 * PAGE)
            };
            space.must_map(map);
        }
        for n in [1, 3, 5] {
            space.put(n * 4 * PAGE, &[b'X'; 2 * PAGE as usize]);
        }
        let answer = space.advise(0, 32 * PAGE, advice);
        assert_eq!(answer, Err(Errno::ENOMEM), "advice {advice}");
        let expected = if gone { 0 } else { b'X' };
        for n in [1, 3, 5] {
            let bytes = space.get(n * 4 * PAGE, 2 * PAGE);
            assert!(
                bytes.iter().all(|b| *b == expected),
                "advice {advice}, at {n}"
            );
        }
        // Without a hole in the range all is well.
        assert_eq!(space.advise(4 * PAGE, 2 * PAGE, advice), Ok(()));
        assert_eq!(space.advise(5 * PAGE, 2 * PAGE, advice), Err(Errno::ENOMEM));
    }
}

/// As madvise(2): what comes before is done, what comes after is not.
fn stops_where_it_is_refused() {
    let space = Space::new();
    space.must_map(Map::file(&files::numbered(2, b'a'), 0, 2 * PAGE));
    space.must_map(Map::anon(2 * PAGE, 2 * PAGE));
    space.must_map(Map::file(&files::numbered(2, b'c'), 4 * PAGE, 2 * PAGE));
    space.put(2 * PAGE, &[b'X'; 2 * PAGE as usize]);
    assert_eq!(space.advise(0, 6 * PAGE, MADV_REMOVE), Err(Errno::EINVAL));
    let picture: Vec<u8> = (0..6).map(|page| space.byte(page * PAGE)).collect();
    assert_eq!(picture, [0, 0, b'X', b'X', b'c', b'd']);
}

fn remove() {
    let temp = TempFile::new("/tmp", 8 * PAGE);
    for file in [&files::memfd(8 * PAGE), &temp.file] {
        files::number(file, 8, b'a');
        let blocks = || file.metadata().expect("fstat").blocks();
        let before = blocks();
        let (space, other) = (Space::new(), Space::new());
        space.must_map(Map::file(file, 0, 4 * PAGE).offset(2 * PAGE));
        other.must_map(Map::file(file, 0, 8 * PAGE));
        assert_eq!(other.byte(3 * PAGE), b'd');
        space.must_advise(PAGE, 2 * PAGE, MADV_REMOVE);
        let picture: Vec<u8> = (0..8).map(|page| other.byte(page * PAGE)).collect();
        assert_eq!(picture, [b'a', b'b', b'c', 0, 0, b'f', b'g', b'h']);
        assert_eq!(space.info().mapped_bytes, 4 * PAGE);
        let size = file.metadata().expect("fstat").len();
        assert_eq!(size, 8 * PAGE);
        // Reading a hole of a tmpfs makes a page again, so ask once it is punched once more.
        space.must_advise(PAGE, 2 * PAGE, MADV_REMOVE);
        assert_eq!(before - blocks(), 2 * PAGE / 512, "given back");
    }
    let _pages = need_huge_pages(2);
    let space = Space::new();
    space.must_map(Map::file(&files::huge_memfd(2 * HUGE), 0, 2 * HUGE));
    space.put(0, b"huge");
    space.put(HUGE, b"huge");
    space.must_advise(0, HUGE, MADV_REMOVE);
    assert_eq!(space.info().resident_bytes, HUGE);
    assert_eq!((space.byte(0), space.byte(HUGE)), (0, b'h'));
}

fn remove_needs_a_file_to_write() {
    let temp = TempFile::new("/tmp", 4 * PAGE);
    files::number(&temp.file, 4, b'a');
    let reading = temp.open(true, false);
    let future = files::numbered(4, b'a');
    fcntl(
        &future,
        FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_FUTURE_WRITE),
    )
    .expect("seal");
    let memfd = files::numbered(4, b'a');
    let len = 4 * PAGE;
    for (what, errno, map) in [
        ("anonymous", Errno::EINVAL, Map::anon(0, len)),
        (
            "private",
            Errno::EACCES,
            Map::file(&memfd, 0, len).private(),
        ),
        (
            "a file opened for reading",
            Errno::EACCES,
            Map::file(&reading, 0, len).prot(PROT_READ),
        ),
        (
            "a memfd sealed against writing",
            Errno::EACCES,
            Map::file(&future, 0, len).prot(PROT_READ),
        ),
    ] {
        let space = Space::new();
        space.must_map(map);
        let answer = unchanged(&space, || space.advise(0, len, MADV_REMOVE));
        assert_eq!(answer, Err(errno), "{what}");
    }
    // The descriptor that asks needs to be one for writing, too.
    let space = Space::new();
    space.must_map(Map::file(&memfd, 0, len));
    for prot in [PROT_NONE, PROT_READ] {
        let view = space.must_view(View::of(PAGE, PAGE).prot(prot));
        let answer = unchanged(&space, || view.advise(0, PAGE, MADV_REMOVE));
        assert_eq!(answer, Err(Errno::EACCES), "prot {prot}");
    }
    let view = space.must_view(View::of(PAGE, PAGE));
    view.must_advise(0, PAGE, MADV_REMOVE);
    assert_eq!((space.byte(0), space.byte(PAGE)), (b'a', 0));
}

fn populate() {
    let file = files::numbered(16, b'a');
    for (what, map) in [
        ("anonymous", Map::anon(0, 16 * PAGE)),
        ("anonymous, shared", Map::anon(0, 16 * PAGE).shared()),
        ("a file", Map::file(&file, 0, 16 * PAGE)),
        ("a private file", Map::file(&file, 0, 16 * PAGE).private()),
    ] {
        for advice in [MADV_POPULATE_READ, MADV_POPULATE_WRITE] {
            let space = Space::new();
            space.must_map(map);
            assert_eq!(space.info().resident_bytes, 0);
            space.must_advise(0, 16 * PAGE, advice);
            let resident = space.info().resident_bytes;
            assert_eq!(resident, 16 * PAGE, "{what}, advice {advice}");
        }
    }
    let space = Space::new();
    space.must_map(Map::anon(0, 16 * PAGE));
    space.must_advise(4 * PAGE, 2 * PAGE, MADV_POPULATE_WRITE);
    assert_eq!(space.info().resident_bytes, 2 * PAGE, "no more than asked");
    for (prot, advice, errno) in [
        (PROT_READ, MADV_POPULATE_WRITE, Errno::EINVAL),
        (PROT_NONE, MADV_POPULATE_WRITE, Errno::EINVAL),
        (PROT_NONE, MADV_POPULATE_READ, Errno::EINVAL),
    ] {
        space.must_protect(8 * PAGE, 4 * PAGE, prot);
        let answer = space.advise(8 * PAGE, 2 * PAGE, advice);
        assert_eq!(answer, Err(errno), "advice {advice} with prot {prot}");
        let answer = space.advise(12 * PAGE, 5 * PAGE, advice);
        assert_eq!(answer, Err(Errno::ENOMEM), "a hole behind");
    }
    let short = files::memfd(2 * PAGE);
    space.must_map(Map::file(&short, 32 * PAGE, 4 * PAGE));
    let answer = space.advise(32 * PAGE, 4 * PAGE, MADV_POPULATE_READ);
    assert_eq!(answer, Err(Errno::EFAULT), "past the end of the file");
    assert_eq!(short.metadata().expect("fstat").len(), 2 * PAGE);
}

/// Whoever gives the advice; and at the creator's limit it fails, and nobody is killed.
fn populate_is_charged_to_the_creator() {
    let (creator, caller) = (Cgroup::new("creator"), Cgroup::new("caller"));
    let space = creator.space();
    let killed = || counter("/proc/vmstat", "oom_kill");
    let before = killed();
    caller.enter();
    space.must_map(Map::anon(0, 64 * MIB).with(MAP_NORESERVE));
    space.must_advise(0, 8 * MIB, MADV_POPULATE_WRITE);
    let charged = creator.charged();
    assert!((8 * MIB..11 * MIB).contains(&charged), "{charged}");
    creator.set("memory.max", "16M");
    let answer = space.advise(0, 64 * MIB, MADV_POPULATE_WRITE);
    assert_eq!(answer, Err(Errno::ENOMEM));
    let resident = space.info().resident_bytes;
    assert!((12 * MIB..16 * MIB).contains(&resident), "{resident}");
    assert!(creator.charged() <= 16 * MIB);
    assert!(caller.charged() < 8 * MIB);
    assert_eq!(killed(), before);
    Cgroup::leave();
}

fn meminfo(name: &str) -> u64 {
    counter("/proc/meminfo", name) * 1024
}

/// 2 MiB of memory, each page with its number in it.
fn fill(space: &Space, at: u64) {
    for page in 0..HUGE / PAGE {
        space.put(at + page * PAGE, &page.to_le_bytes());
    }
}

#[track_caller]
fn filled(space: &Space, at: u64) {
    for page in 0..HUGE / PAGE {
        let bytes = space.get(at + page * PAGE, 8);
        assert_eq!(bytes, page.to_le_bytes(), "page {page}");
    }
}

fn collapse() {
    let space = Space::new();
    space.must_map(Map::anon(0, 3 * HUGE));
    fill(&space, HUGE);
    let before = meminfo("AnonHugePages");
    space.must_advise(HUGE, HUGE, MADV_NOHUGEPAGE);
    let answer = space.advise(HUGE, HUGE, MADV_COLLAPSE);
    assert_eq!(answer, Err(Errno::EINVAL), "not wanted here");
    space.must_advise(HUGE, HUGE, MADV_HUGEPAGE);
    space.must_advise(HUGE, HUGE, MADV_COLLAPSE);
    assert_eq!(meminfo("AnonHugePages"), before + HUGE);
    assert_eq!(space.info().resident_bytes, HUGE);
    filled(&space, HUGE);
    // It is one page now, and can be taken apart again.
    space.must_protect(HUGE + PAGE, PAGE, PROT_READ);
    space.unmap(HUGE + 4 * PAGE, PAGE).expect("unmap");
    space.put(HUGE, &0u64.to_le_bytes());
    assert_eq!(space.write_at(HUGE + PAGE, b"x"), Err(Errno::EACCES));
    assert_eq!(space.get(HUGE + 5 * PAGE, 8), 5u64.to_le_bytes());
    assert_eq!(space.info().resident_bytes, HUGE - PAGE);
    drop(space);
    eventually("the huge page is gone", || {
        meminfo("AnonHugePages") == before
    });
}

fn collapse_of_a_file() {
    let file = files::memfd(2 * HUGE);
    let space = Space::new();
    space.must_map(Map::file(&file, 0, 2 * HUGE));
    fill(&space, 0);
    let before = meminfo("ShmemHugePages");
    space.must_advise(0, HUGE, MADV_COLLAPSE);
    assert_eq!(meminfo("ShmemHugePages"), before + HUGE);
    filled(&space, 0);
}

/// With HUGEPAGE the first touch brings a huge page, and without it a small one.
fn hugepage() {
    let enabled = "/sys/kernel/mm/transparent_hugepage/enabled";
    if !fs::read_to_string(enabled).is_ok_and(|text| text.contains("[madvise]")) {
        skip("huge pages are not for those who ask");
    }
    let space = Space::new();
    space.must_map(Map::anon(0, 4 * HUGE));
    space.must_advise(HUGE, HUGE, MADV_HUGEPAGE);
    for (at, resident) in [(0, PAGE), (HUGE, HUGE), (2 * HUGE, PAGE)] {
        let before = space.info().resident_bytes;
        space.put(at + 5 * PAGE, b"x");
        assert_eq!(space.info().resident_bytes - before, resident, "{at:#x}");
    }
    space.must_advise(HUGE, HUGE, MADV_DONTNEED);
    space.must_advise(HUGE, HUGE, MADV_NOHUGEPAGE);
    let before = space.info().resident_bytes;
    space.put(HUGE, b"x");
    assert_eq!(space.info().resident_bytes - before, PAGE);
}

/// The daemon takes spaces that asked for it as it takes processes, and lets go of them.
fn khugepaged_collapses() {
    let folder = "/sys/kernel/mm/transparent_hugepage/khugepaged";
    let _settings: Vec<Setting> = [
        ("scan_sleep_millisecs", "10"),
        ("alloc_sleep_millisecs", "10"),
        ("pages_to_scan", "4096"),
    ]
    .map(|(name, value)| Setting::set(&format!("{folder}/{name}"), value))
    .into();
    let before = meminfo("AnonHugePages");
    let space = Space::new();
    space.must_map(Map::anon(0, 4 * HUGE));
    for n in 0..4 {
        fill(&space, n * HUGE);
    }
    assert_eq!(meminfo("AnonHugePages"), before);
    space.must_advise(0, 4 * HUGE, MADV_HUGEPAGE);
    eventually("khugepaged collapses", || {
        meminfo("AnonHugePages") >= before + 2 * HUGE
    });
    for n in 0..4 {
        filled(&space, n * HUGE);
    }
    // Closed while it is at it.
    for _ in 0..20 {
        let space = Space::new();
        space.must_map(Map::anon(0, HUGE));
        space.must_advise(0, HUGE, MADV_HUGEPAGE);
        space.put(0, b"x");
    }
    drop(space);
    eventually("huge pages are gone", || meminfo("AnonHugePages") == before);
}

/// Under pressure the pages go, but those written since the advice.
fn free() {
    let cgroup = Cgroup::new("free");
    let space = cgroup.space();
    space.must_map(Map::anon(0, 8 * MIB));
    space.put(0, &vec![b'f'; 8 * MIB as usize]);
    space.must_advise(0, 4 * MIB, MADV_FREE);
    space.put(MIB, &[b'k'; PAGE as usize]);
    eventually("the memory is reclaimed", || {
        cgroup.try_set("memory.reclaim", "8M");
        space.info().resident_bytes <= 4 * MIB + 16 * PAGE
    });
    assert_eq!(space.byte(MIB), b'k', "written since");
    let kept = space.get(4 * MIB, 4 * MIB);
    assert!(kept.iter().all(|byte| *byte == b'f'), "not given");
    let zeros = (0..4 * MIB).step_by(PAGE as usize);
    let zeros = zeros.filter(|at| space.byte(*at) == 0).count() as u64;
    assert!(zeros > 4 * MIB / PAGE - 16, "{zeros} pages are zeros");
    let file = files::memfd(PAGE);
    space.must_map(Map::file(&file, 16 * MIB, PAGE));
    let answer = space.advise(16 * MIB, PAGE, MADV_FREE);
    assert_eq!(answer, Err(Errno::EINVAL), "a file");
}

/// A file on a disk, with its pages numbered and none of them in memory.
fn cold_file(ext4: &Ext4, pages: u64) -> TempFile {
    let temp = TempFile::new(ext4.path(), pages * PAGE);
    files::number(&temp.file, pages, 1);
    temp.file.sync_all().expect("fsync");
    drop_caches();
    temp
}

fn disk() -> Ext4 {
    Ext4::mount().unwrap_or_else(|why| skip(&why))
}

fn in_core(file: &File, pages: u64) -> Vec<bool> {
    let mapped = Mapped::new(file, 0, pages * PAGE, PROT_READ).expect("mmap");
    mapped.in_core()
}

fn count(pages: &[bool]) -> usize {
    pages.iter().filter(|page| **page).count()
}

fn pageout_of_a_file() {
    let ext4 = disk();
    let temp = cold_file(&ext4, 64);
    let space = Space::new();
    space.must_map(Map::file(&temp.file, 0, 64 * PAGE));
    space.must_advise(0, 64 * PAGE, MADV_POPULATE_READ);
    assert_eq!(space.info().resident_bytes, 64 * PAGE);
    // Some may be on their way to the LRU lists, on another CPU.
    drop_caches();
    eventually("the pages are given back", || {
        space.must_advise(0, 32 * PAGE, MADV_PAGEOUT);
        space.info().resident_bytes == 32 * PAGE
    });
    let pages = in_core(&temp.file, 64);
    assert_eq!(count(&pages[..32]), 0, "{pages:?}");
    assert_eq!(count(&pages[32..]), 32, "{pages:?}");
    assert!((0..64).all(|page| space.byte(page * PAGE) == page as u8 + 1));
}

/// A device to swap to, for as long as it lives.
struct Swap {
    device: String,
    image: String,
}

impl Swap {
    fn on() -> std::result::Result<Swap, String> {
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output();
            let output = output.map_err(|e| format!("{program}: {e}"))?;
            let text = String::from_utf8_lossy(&output.stdout).trim().to_string();
            if output.status.success() {
                Ok(text)
            } else {
                Err(format!(
                    "{program}: {}",
                    String::from_utf8_lossy(&output.stderr)
                ))
            }
        };
        let image = format!("/tmp/swap-{}", std::process::id());
        let file = File::create(&image).map_err(|e| e.to_string())?;
        // Without holes: swapping out must not need memory for the image as well.
        file.write_all_at(&vec![0; 32 << 20], 0)
            .map_err(|e| e.to_string())?;
        let device = run("losetup", &["-f"])?;
        let swap = Swap { device, image };
        run("losetup", &[&swap.device, &swap.image])?;
        run("mkswap", &[&swap.device])?;
        run("swapon", &[&swap.device])?;
        Ok(swap)
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let _ = Command::new("swapoff").arg(&self.device).output();
        let _ = Command::new("losetup").args(["-d", &self.device]).output();
        let _ = fs::remove_file(&self.image);
    }
}

fn pageout_to_swap() {
    let _swap = Swap::on().unwrap_or_else(|why| skip(&why));
    let Guest {
        space,
        vm: _vm,
        mut vcpu,
    } = Guest::new(4 * MIB / PAGE);
    space.must_map(Map::anon(MIB, 2 * MIB));
    for page in 0..2 * MIB / PAGE {
        space.put(MIB + page * PAGE, &(page as u32).to_le_bytes());
    }
    assert_eq!(vcpu.load(MIB + PAGE), Exit::Done(1));
    let full = space.info().resident_bytes;
    eventually("the pages are swapped out", || {
        space.must_advise(MIB, MIB, MADV_PAGEOUT);
        space.info().resident_bytes <= full - MIB * 3 / 4
    });
    // They come back for whoever asks.
    assert_eq!(vcpu.load(MIB + PAGE), Exit::Done(1));
    for page in 0..2 * MIB / PAGE {
        let bytes = space.get(MIB + page * PAGE, 4);
        assert_eq!(bytes, (page as u32).to_le_bytes(), "page {page}");
    }
    // What is in swap goes with the space.
    space.must_advise(MIB, MIB, MADV_PAGEOUT);
    drop(space);
    eventually("swap is free", || {
        meminfo("SwapFree") == meminfo("SwapTotal")
    });
}

/// Pages in use are on the active list, and with this advice no longer.
fn cold() {
    let cgroup = Cgroup::new("cold");
    let space = cgroup.space();
    space.must_map(Map::anon(0, 4 * MIB));
    let active = || {
        // Nothing is on its way from list to list.
        drop_caches();
        cgroup.stat("active_anon")
    };
    for _ in 0..4 {
        for at in (0..4 * MIB).step_by(PAGE as usize) {
            space.put(at, b"x");
        }
    }
    let before = active();
    assert!(before >= 2 * MIB, "{before} bytes are active");
    space.must_advise(0, 4 * MIB, MADV_COLD);
    eventually("pages are inactive", || active() < before / 4);
    assert_eq!(space.info().resident_bytes, 4 * MIB, "they stay");
    assert_eq!(space.byte(MIB), b'x');
}

fn willneed() {
    let ext4 = disk();
    let temp = cold_file(&ext4, 64);
    let space = Space::new();
    space.must_map(Map::file(&temp.file, 0, 32 * PAGE).offset(16 * PAGE));
    assert_eq!(count(&in_core(&temp.file, 64)), 0, "nothing was read");
    space.must_advise(8 * PAGE, 16 * PAGE, MADV_WILLNEED);
    // Pages 24 to 39 of the file.
    eventually("the pages are read", || {
        let pages = in_core(&temp.file, 64);
        count(&pages[24..40]) == 16
    });
    assert_eq!(space.info().resident_bytes, 0, "into the page cache only");
}

/// How much comes along with a page that is read: around it, none, what follows.
fn read_ahead() {
    let ext4 = disk();
    for (advice, below, above) in [
        (MADV_NORMAL, true, true),
        (MADV_RANDOM, false, false),
        (MADV_SEQUENTIAL, false, true),
    ] {
        let temp = cold_file(&ext4, 128);
        let space = Space::new();
        space.must_map(Map::file(&temp.file, 0, 128 * PAGE).prot(PROT_READ));
        // Each undoes the one before.
        for before in [MADV_RANDOM, MADV_SEQUENTIAL, advice] {
            space.must_advise(0, 128 * PAGE, before);
        }
        assert_eq!(space.byte(64 * PAGE), 65);
        let pages = in_core(&temp.file, 128);
        assert!(pages[64], "the page itself");
        assert_eq!(count(&pages[..64]) > 0, below, "advice {advice}: {pages:?}");
        assert_eq!(count(&pages[65..]) > 0, above, "advice {advice}: {pages:?}");
    }
}

/// Advice that is kept is a property of mappings, as their protection is.
fn advice_splits_and_merges() {
    for (set, clear) in [
        (MADV_RANDOM, MADV_NORMAL),
        (MADV_SEQUENTIAL, MADV_NORMAL),
        (MADV_NOHUGEPAGE, MADV_HUGEPAGE),
    ] {
        let space = Space::new();
        space.must_map(Map::anon(0, 8 * PAGE));
        space.must_advise(0, 8 * PAGE, clear);
        assert_eq!(space.info().mappings, 1);
        space.must_advise(2 * PAGE, PAGE, set);
        assert_eq!(space.info().mappings, 3, "advice {set}");
        space.must_advise(0, 8 * PAGE, clear);
        assert_eq!(space.info().mappings, 1, "advice {clear}");
        // And the length is rounded up to whole pages.
        space.must_advise(0, 1, set);
        assert_eq!(space.query(0, 0).map(|m| m.end), Ok(PAGE));
    }
}

fn mergeable() {
    let folder = "/sys/kernel/mm/ksm";
    if !Path::new(folder).exists() {
        skip("no KSM in this kernel");
    }
    let number = |name: &str| -> u64 {
        let text = fs::read_to_string(format!("{folder}/{name}")).expect(name);
        text.trim().parse().expect("a number")
    };
    const PAGES: u64 = 256;
    let space = Space::new();
    space.must_map(Map::anon(0, PAGES * PAGE));
    space.put(0, &[0x4b; (PAGES * PAGE) as usize]);
    let shared = || number("pages_sharing") + number("pages_shared");
    let before = shared();
    space.must_advise(0, PAGES * PAGE, MADV_MERGEABLE);
    let _settings: Vec<Setting> = [
        ("sleep_millisecs", "0"),
        ("pages_to_scan", "2000"),
        ("run", "1"),
    ]
    .map(|(name, value)| Setting::set(&format!("{folder}/{name}"), value))
    .into();
    eventually("equal pages are merged", || shared() >= before + PAGES / 2);
    // Whoever writes one gets his own again.
    space.put(5 * PAGE, b"mine");
    assert_eq!(space.get(5 * PAGE, 4), b"mine");
    assert_eq!(space.byte(6 * PAGE), 0x4b);
    space.must_protect(0, PAGES * PAGE, PROT_READ);
    space.must_protect(0, PAGES * PAGE, RW);
    space.must_advise(0, PAGES * PAGE, MADV_UNMERGEABLE);
    // The daemon counts when it comes by.
    eventually("each has its own again", || shared() == before);
    assert_eq!(space.get(7 * PAGE, 4), [0x4b; 4]);
    note!("{PAGES} pages merged and taken apart");
    // A space that ends while its pages are merged.
    space.must_advise(0, PAGES * PAGE, MADV_MERGEABLE);
    eventually("equal pages are merged", || shared() >= before + PAGES / 2);
    drop(space);
    eventually("the pages are gone", || shared() == before);
}
