// SPDX-License-Identifier: GPL-2.0

//! What a process can do with a mirror, as with any of its memory: fork, move it, cut it, advise,
//! lock; and what it cannot.

use libc::{
    c_void, MADV_COLD, MADV_COLLAPSE, MADV_DODUMP, MADV_DOFORK, MADV_DONTDUMP, MADV_DONTFORK,
    MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE, MADV_KEEPONFORK, MADV_MERGEABLE, MADV_NOHUGEPAGE,
    MADV_NORMAL, MADV_PAGEOUT, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_RANDOM, MADV_REMOVE,
    MADV_SEQUENTIAL, MADV_UNMERGEABLE, MADV_WILLNEED, MADV_WIPEONFORK, MREMAP_DONTUNMAP,
    MREMAP_FIXED, MREMAP_MAYMOVE, PROT_READ, PROT_WRITE,
};

use crate::support::files;
use crate::support::mirror::{mirror, mirror_with, Area};
use crate::support::probe::Fault;
use crate::support::process::{sockets, Child};
use crate::support::snapshot::Snapshot;
use crate::support::system::{counter, Setting};
use crate::support::userfault::{can_register, MODE_MINOR, MODE_MISSING, MODE_WP};
use crate::support::{Errno, Map, Result, Space, PAGE};

crate::suite![
    fork_shares_it,
    not_for_children,
    moved,
    shrunk,
    not_grown,
    not_duplicated,
    moved_over_another,
    cut_into_pieces,
    advice_changes_nothing,
    populated,
    locked,
    locked_from_the_start,
    mincore_tells_what_is_there,
    files_in_proc,
    clear_refs,
    remap_file_pages,
    userfaultfd_is_refused,
    not_in_core_dumps,
];

const RW: i32 = PROT_READ | PROT_WRITE;
const PAGES: u64 = 16;

/// Page n of the space is full of n + 1.
fn numbered_space() -> Space {
    let space = Space::new();
    space.must_map(Map::file(&files::numbered(PAGES, 1), 0, PAGES * PAGE));
    space
}

/// That page n of the area is page `first + n` of the space.
#[track_caller]
fn shows(area: &Area, first: u64, pages: u64) {
    for page in 0..pages {
        let expected = (first + page) as u8 + 1;
        assert_eq!(area.load(page * PAGE + 9), Ok(expected), "page {page}");
    }
}

fn fork_shares_it() {
    let space = numbered_space();
    space.must_map(Map::anon(PAGES * PAGE, PAGES * PAGE));
    let area = mirror(&space, 0, 2 * PAGES * PAGE);
    // Some of it is present.
    assert_eq!(area.store(PAGES * PAGE, 1), Ok(()));
    assert_eq!(area.load(0), Ok(1));
    let (ours, theirs) = sockets();
    let child = Child::spawn(|| {
        let wait = || nix::unistd::read(&theirs, &mut [0]).expect("read");
        let tell = || nix::unistd::write(&theirs, b"x").expect("write");
        assert_eq!(area.load(PAGES * PAGE), Ok(1));
        assert_eq!(area.store(PAGES * PAGE, 2), Ok(()));
        assert_eq!(area.store(3 * PAGE, 102), Ok(()));
        tell();
        wait();
        assert_eq!(area.load(PAGES * PAGE), Ok(3), "the parent's store");
        assert_eq!(area.load(PAGE), Err(Fault::hole(PAGE)), "unmapped");
        assert_eq!(area.load(2 * PAGE), Ok(b'n'), "replaced");
        // A grandchild, from a process that has used it.
        Child::spawn(|| assert_eq!(area.store(4 * PAGE, 9), Ok(()))).succeed();
        assert_eq!(area.load(4 * PAGE), Ok(9));
    });
    nix::unistd::read(&ours, &mut [0]).expect("read");
    assert_eq!(area.load(PAGES * PAGE), Ok(2), "the child's store");
    assert_eq!(space.byte(3 * PAGE), 102);
    assert_eq!(area.store(PAGES * PAGE, 3), Ok(()));
    space.unmap(PAGE, PAGE).expect("unmap");
    let other = files::numbered(1, b'n');
    space.must_map(Map::file(&other, 2 * PAGE, PAGE).replace());
    nix::unistd::write(&ours, b"x").expect("write");
    child.succeed();
    assert_eq!(area.load(4 * PAGE), Ok(9));
}

fn not_for_children() {
    let space = numbered_space();
    let area = mirror(&space, 0, 4 * PAGE);
    area.advise(0, 4 * PAGE, MADV_DONTFORK).expect("DONTFORK");
    Child::spawn(|| {
        assert_eq!(area.load(5), Err(Fault::unmapped(5)));
        assert_eq!(space.info().mirrors, 1);
    })
    .succeed();
    shows(&area, 0, 4);
    // As for all memory that is not of the usual kind, there is no way back.
    let back = area.advise(0, 4 * PAGE, MADV_DOFORK);
    assert_eq!(back, Err(Errno::EINVAL));
}

fn mremap(addr: u64, old_len: u64, new_len: u64, flags: i32, new_addr: u64) -> Result<u64> {
    // SAFETY: The callers name areas of theirs that nothing borrows.
    let moved = unsafe {
        let (from, to) = (addr as *mut c_void, new_addr as *mut c_void);
        libc::mremap(from, old_len as usize, new_len as usize, flags, to)
    };
    if moved == libc::MAP_FAILED {
        Err(Errno::last())
    } else {
        Ok(moved as u64)
    }
}

fn moved() {
    let space = numbered_space();
    for touched in [false, true] {
        let area = mirror(&space, 2 * PAGE, 4 * PAGE);
        if touched {
            shows(&area, 2, 4);
        }
        let (target, len) = Area::reserve(4 * PAGE, PAGE).forget();
        let (addr, _) = area.forget();
        let to = mremap(addr, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, target);
        assert_eq!(to, Ok(target));
        let (old, new) = (Area::adopt(addr, len), Area::adopt(target, len));
        assert_eq!(old.load(7), Err(Fault::unmapped(7)));
        shows(&new, 2, 4);
        assert_eq!(space.info().mirrors, 1);
        // It is as alive as before.
        assert_eq!(new.store(PAGE, 99), Ok(()));
        assert_eq!(space.byte(3 * PAGE), 99);
        let file = files::numbered(1, b'x');
        space.must_map(Map::file(&file, 3 * PAGE, PAGE).replace());
        assert_eq!(new.load(PAGE), Ok(b'x'));
        space.unmap(4 * PAGE, PAGE).expect("unmap");
        assert_eq!(new.load(2 * PAGE + 3), Err(Fault::hole(2 * PAGE + 3)));
        // The middle of it, to an address of the kernel's choice.
        let (target, _) = Area::reserve(PAGE, PAGE).forget();
        let flags = MREMAP_MAYMOVE | MREMAP_FIXED;
        let middle = mremap(new.addr() + PAGE, PAGE, PAGE, flags, target);
        let middle = Area::adopt(middle.expect("mremap"), PAGE);
        assert_eq!(middle.load(0), Ok(b'x'));
        assert_eq!(new.load(PAGE), Err(Fault::unmapped(PAGE)));
        space.unmap(3 * PAGE, PAGE).expect("unmap");
        assert_eq!(middle.load(1), Err(Fault::hole(1)));
        assert_eq!(new.load(0), Ok(3));
        space.unmap(0, PAGES * PAGE).expect("unmap");
        let file = files::numbered(PAGES, 1);
        space.must_map(Map::file(&file, 0, PAGES * PAGE));
    }
}

fn shrunk() {
    let space = numbered_space();
    let area = mirror(&space, 0, 8 * PAGE);
    shows(&area, 0, 8);
    let same = mremap(area.addr(), 8 * PAGE, 3 * PAGE, 0, 0);
    assert_eq!(same, Ok(area.addr()));
    shows(&area, 0, 3);
    assert_eq!(area.load(3 * PAGE), Err(Fault::unmapped(3 * PAGE)));
    assert_eq!(space.info().mirrors, 1);
    // Shrunk and moved at once.
    let (target, len) = Area::reserve(2 * PAGE, PAGE).forget();
    let flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    let moved = mremap(area.addr(), 3 * PAGE, len, flags, target);
    assert_eq!(moved, Ok(target));
    let moved = Area::adopt(target, len);
    shows(&moved, 0, 2);
    assert_eq!(area.load(0), Err(Fault::unmapped(0)));
    assert_eq!(space.info().mirrors, 1);
}

fn not_grown() {
    let space = numbered_space();
    let area = mirror(&space, 0, 4 * PAGE);
    let (target, _) = Area::reserve(8 * PAGE, PAGE).forget();
    for (flags, to) in [
        (0, 0),
        (MREMAP_MAYMOVE, 0),
        (MREMAP_MAYMOVE | MREMAP_FIXED, target),
    ] {
        let grown = mremap(area.addr(), 4 * PAGE, 8 * PAGE, flags, to);
        assert_eq!(grown, Err(Errno::EFAULT), "flags {flags}");
    }
    shows(&area, 0, 4);
    assert_eq!(
        area.load(4 * PAGE).map_err(|f| f.signal),
        Err(libc::SIGSEGV)
    );
    assert_eq!(space.info().mirrors, 1);
}

/// With an old length of 0, or with MREMAP_DONTUNMAP, there would be two.
fn not_duplicated() {
    let space = numbered_space();
    let area = mirror(&space, 0, 4 * PAGE);
    shows(&area, 0, 4);
    let twice = mremap(area.addr(), 0, 4 * PAGE, MREMAP_MAYMOVE, 0);
    assert!(
        matches!(twice, Err(Errno::EINVAL | Errno::EFAULT)),
        "{twice:?}"
    );
    let flags = MREMAP_MAYMOVE | MREMAP_DONTUNMAP;
    let kept = mremap(area.addr(), 4 * PAGE, 4 * PAGE, flags, 0);
    assert_eq!(kept, Err(Errno::EINVAL));
    shows(&area, 0, 4);
    assert_eq!(space.info().mirrors, 1);
}

/// The mirror that was there is gone, and is counted no more.
fn moved_over_another() {
    let (space, other) = (numbered_space(), numbered_space());
    let below = mirror(&other, 0, 4 * PAGE);
    shows(&below, 0, 4);
    let (addr, len) = mirror(&space, 4 * PAGE, 4 * PAGE).forget();
    let flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    let moved = mremap(addr, len, len, flags, below.addr());
    assert_eq!(moved, Ok(below.addr()));
    shows(&below, 4, 4);
    assert_eq!((space.info().mirrors, other.info().mirrors), (1, 0));
    other.unmap(0, PAGES * PAGE).expect("unmap");
    shows(&below, 4, 4);
    // The mirror of a space that has no descriptor any more.
    drop(other);
    let last = mirror(&space, 0, 4 * PAGE);
    drop(space);
    let (addr, len) = last.forget();
    assert_eq!(
        mremap(addr, len, len, flags, below.addr()),
        Ok(below.addr())
    );
    shows(&below, 0, 4);
}

fn cut_into_pieces() {
    let space = numbered_space();
    let mut random = fastrand::Rng::with_seed(6);
    for _ in 0..20 {
        let area = mirror(&space, 0, PAGES * PAGE);
        let mut there = [true; PAGES as usize];
        let mut writable = [true; PAGES as usize];
        for _ in 0..12 {
            let first = random.u64(0..PAGES);
            let count = random.u64(1..=(PAGES - first).min(4));
            let range = first as usize..(first + count) as usize;
            if random.bool() {
                area.unmap(first * PAGE, count * PAGE).expect("munmap");
                there[range].fill(false);
            } else {
                let read_only = random.bool();
                let prot = if read_only { PROT_READ } else { RW };
                // Fails in part where something is not there, as it is known to.
                for page in range.filter(|page| there[*page]) {
                    let done = area.protect(page as u64 * PAGE, PAGE, prot);
                    assert_eq!(done, Ok(()));
                    writable[page] = !read_only;
                }
            }
            for page in 0..PAGES {
                let (at, number) = (page * PAGE, page as u8 + 1);
                let (load, store) = match (there[page as usize], writable[page as usize]) {
                    (false, _) => (Err(Fault::unmapped(at)), Err(Fault::unmapped(at))),
                    (_, true) => (Ok(number), Ok(())),
                    (_, false) => (Ok(number), Err(Fault::denied(at))),
                };
                assert_eq!(area.load(at), load);
                assert_eq!(area.store(at, number), store);
            }
        }
    }
    assert_eq!(space.info().mirrors, 0);
}

/// Of a mirror: refused, or without effect on what the space has.
fn advice_changes_nothing() {
    const GUARD_INSTALL: i32 = 102;
    const GUARD_REMOVE: i32 = 103;
    for populated in [false, true] {
        let space = numbered_space();
        space.must_map(Map::anon(PAGES * PAGE, PAGES * PAGE));
        for page in 0..PAGES {
            space.put((PAGES + page) * PAGE + 9, &[(PAGES + page) as u8 + 1]);
        }
        let area = mirror(&space, 0, 2 * PAGES * PAGE);
        if populated {
            shows(&area, 0, 2 * PAGES);
        }
        let before = Snapshot::take(&space);
        // What cannot be: memory that is not the process's own to give away.
        for advice in [
            MADV_FREE,
            MADV_WIPEONFORK,
            MADV_COLLAPSE,
            MADV_DODUMP,
            GUARD_INSTALL,
        ] {
            let done = area.advise(0, area.len(), advice);
            assert_eq!(done, Err(Errno::EINVAL), "advice {advice}");
            shows(&area, 0, 2 * PAGES);
        }
        assert!(area.advise(0, area.len(), MADV_REMOVE).is_err());
        for advice in [
            MADV_NORMAL,
            MADV_RANDOM,
            MADV_SEQUENTIAL,
            MADV_WILLNEED,
            MADV_DONTNEED,
            MADV_COLD,
            MADV_PAGEOUT,
            MADV_HUGEPAGE,
            MADV_NOHUGEPAGE,
            MADV_MERGEABLE,
            MADV_UNMERGEABLE,
            MADV_DONTDUMP,
            MADV_KEEPONFORK,
            GUARD_REMOVE,
        ] {
            let done = area.advise(0, area.len(), advice);
            let good = [Ok(()), Err(Errno::EINVAL), Err(Errno::EBADF)];
            assert!(good.contains(&done), "advice {advice}: {done:?}");
            shows(&area, 0, 2 * PAGES);
            assert_eq!(area.store(PAGE + 100, 1), Ok(()), "advice {advice}");
            assert_eq!(area.store(PAGE + 100, 2), Ok(()), "advice {advice}");
        }
        assert_eq!(before.differs(&Snapshot::take(&space)), None);
    }
}

fn populated() {
    let space = numbered_space();
    space.must_map(Map::anon(PAGES * PAGE, PAGES * PAGE));
    space.must_map(Map::anon(3 * PAGES * PAGE, PAGE).prot(PROT_READ));
    let area = mirror(&space, 0, 4 * PAGES * PAGE);
    let mapped = 2 * PAGES * PAGE;
    for advice in [MADV_POPULATE_READ, MADV_POPULATE_WRITE] {
        assert_eq!(area.advise(0, mapped, advice), Ok(()));
        assert_eq!(
            area.advise(0, mapped + PAGE, advice),
            Err(Errno::EFAULT),
            "{advice}"
        );
        let hole = area.advise(mapped, PAGE, advice);
        assert_eq!(hole, Err(Errno::EFAULT), "{advice}");
    }
    assert_eq!(space.info().resident_bytes, mapped);
    let read_only = 3 * PAGES * PAGE;
    assert_eq!(area.advise(read_only, PAGE, MADV_POPULATE_READ), Ok(()));
    let refused = area.advise(read_only, PAGE, MADV_POPULATE_WRITE);
    assert_eq!(refused, Err(Errno::EFAULT), "a read-only mapping");
    let area = mirror_with(&space, 0, mapped, PROT_READ);
    assert_eq!(area.advise(0, mapped, MADV_POPULATE_READ), Ok(()));
    let refused = area.advise(0, mapped, MADV_POPULATE_WRITE);
    assert_eq!(refused, Err(Errno::EINVAL), "a read-only mirror");
    assert_eq!(area.store(0, 1), Err(Fault::denied(0)));
    // At the start, as far as there is something; the mirror is made all the same.
    let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&space);
    let area = Area::mmap(0, 4 * PAGES * PAGE, RW, flags, fd, 0).expect("mmap");
    shows(&area, 0, PAGES);
    assert_eq!(area.load(mapped), Err(Fault::hole(mapped)));
}

fn locked_kib() -> u64 {
    counter("/proc/self/status", "VmLck")
}

/// Accepted, and without effect.
fn locked() {
    let space = numbered_space();
    let area = mirror(&space, 0, PAGES * PAGE);
    let whole = (area.pointer(0), area.len() as usize);
    let before = locked_kib();
    // SAFETY: All of these only concern which pages are present.
    unsafe {
        assert_eq!(libc::mlock(whole.0, whole.1), 0, "{}", Errno::last());
        assert_eq!(locked_kib(), before);
        shows(&area, 0, PAGES);
        space.unmap(PAGE, PAGE).expect("unmap");
        assert_eq!(area.load(PAGE), Err(Fault::hole(PAGE)));
        assert_eq!(libc::munlock(whole.0, whole.1), 0);
        let on_fault = libc::MLOCK_ONFAULT as _;
        let there = libc::mlock2(area.pointer(2 * PAGE), PAGE as usize, on_fault);
        assert_eq!(there, 0, "{}", Errno::last());
        // Also where a page is missing.
        let holes = libc::mlock2(whole.0, whole.1, on_fault);
        assert_eq!(holes, 0, "{}", Errno::last());
        let holes = libc::mlock(whole.0, whole.1);
        assert_eq!(holes, 0, "{}", Errno::last());
        assert_eq!(libc::munlock(whole.0, whole.1), 0);
        assert_eq!(locked_kib(), before);
    }
    assert_eq!(area.load(0), Ok(1));
    // The space's memory is not locked: it can be taken away.
    assert_eq!(area.load(PAGE), Err(Fault::hole(PAGE)));
}

fn locked_from_the_start() {
    let space = numbered_space();
    let early = mirror(&space, 0, 2 * PAGES * PAGE);
    // SAFETY: Concerns only which pages are present.
    let all = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) };
    assert_eq!(all, 0, "mlockall: {}", Errno::last());
    let late = mirror(&space, 0, 2 * PAGES * PAGE);
    for area in [&early, &late] {
        shows(area, 0, PAGES);
        let hole = PAGES * PAGE;
        assert_eq!(area.load(hole), Err(Fault::hole(hole)));
    }
    space.unmap(0, PAGE).expect("unmap");
    assert_eq!(early.load(0), Err(Fault::hole(0)));
    assert_eq!(late.load(0), Err(Fault::hole(0)));
    // SAFETY: As above.
    assert_eq!(unsafe { libc::munlockall() }, 0);
    assert_eq!(late.load(PAGE), Ok(2));
}

fn mincore_tells_what_is_there() {
    let space = numbered_space();
    let area = mirror(&space, 0, 2 * PAGES * PAGE);
    let mincore = || {
        let mut pages = [0xffu8; 2 * PAGES as usize];
        // SAFETY: A byte for each page of the area.
        let done =
            unsafe { libc::mincore(area.pointer(0), area.len() as usize, pages.as_mut_ptr()) };
        assert_eq!(done, 0, "mincore: {}", Errno::last());
        pages
    };
    assert!(mincore()[PAGES as usize..].iter().all(|page| page & 1 == 0));
    shows(&area, 0, PAGES);
    let pages = mincore();
    assert!(
        pages[PAGES as usize..].iter().all(|page| page & 1 == 0),
        "holes"
    );
    space.unmap(0, PAGES * PAGE).expect("unmap");
    assert!(mincore().iter().all(|page| page & 1 == 0), "unmapped");
}

fn files_in_proc() {
    let space = numbered_space();
    let area = mirror(&space, 0, 2 * PAGES * PAGE);
    for present in [false, true] {
        if present {
            shows(&area, 0, PAGES);
        }
        let start = format!("{:x}-{:x} rw-s", area.addr(), area.addr() + area.len());
        for name in ["maps", "smaps"] {
            let text = std::fs::read_to_string(format!("/proc/self/{name}")).expect("read");
            assert!(text.lines().any(|l| l.starts_with(&start)), "{name}");
        }
        for name in ["smaps_rollup", "status", "stat", "statm", "limits", "auxv"] {
            std::fs::read(format!("/proc/self/{name}")).expect("read");
        }
        let pagemap = std::fs::File::open("/proc/self/pagemap").expect("pagemap");
        let mut entries = vec![0; (2 * PAGES * 8) as usize];
        let at = area.addr() / PAGE * 8;
        std::os::unix::fs::FileExt::read_exact_at(&pagemap, &mut entries, at).expect("pagemap");
        for (page, entry) in entries.chunks(8).enumerate() {
            // No page where there is a hole.
            let there = entry[7] & 0x80 != 0;
            assert!(!there || page < PAGES as usize, "page {page}");
        }
        shows(&area, 0, PAGES);
    }
}

/// What is said about accesses is forgotten, what was stored is not.
fn clear_refs() {
    let space = numbered_space();
    let area = mirror(&space, 0, PAGES * PAGE);
    for round in 0..3 {
        for what in ["1", "2", "3", "4", "5"] {
            for page in 0..PAGES {
                assert_eq!(area.store(page * PAGE + 1, round), Ok(()));
            }
            let _ = std::fs::write("/proc/self/clear_refs", what);
            shows(&area, 0, PAGES);
            for page in 0..PAGES {
                assert_eq!(space.byte(page * PAGE + 1), round);
            }
        }
    }
}

/// Another part of the space at the same address, if at all.
fn remap_file_pages() {
    let space = numbered_space();
    let area = mirror(&space, 0, 8 * PAGE);
    shows(&area, 0, 8);
    // SAFETY: Changes what the area shows.
    let done = unsafe {
        let (start, len) = (area.pointer(PAGE), 2 * PAGE);
        libc::syscall(libc::SYS_remap_file_pages, start, len, 0, 10, 0)
    };
    let first = if done == 0 { 10 } else { 1 };
    assert_eq!(area.load(PAGE), Ok(first + 1));
    assert_eq!(area.load(2 * PAGE), Ok(first + 2));
    assert_eq!(area.load(0), Ok(1));
    assert_eq!(area.load(3 * PAGE), Ok(4));
    space.unmap(u64::from(first) * PAGE, PAGE).expect("unmap");
    assert_eq!(area.load(PAGE), Err(Fault::hole(PAGE)));
}

fn userfaultfd_is_refused() {
    let space = numbered_space();
    let area = mirror(&space, 0, 4 * PAGE);
    let plain = Area::anonymous(4 * PAGE);
    assert_eq!(can_register(plain.addr(), 4 * PAGE, MODE_MISSING), Ok(()));
    for present in [false, true] {
        for mode in [MODE_MISSING, MODE_WP, MODE_MINOR, MODE_MISSING | MODE_WP] {
            let refused = can_register(area.addr(), 4 * PAGE, mode);
            assert_eq!(refused, Err(Errno::EINVAL), "mode {mode}, {present}");
        }
        shows(&area, 0, 4);
    }
}

/// Bytes that no process has in its own memory before this one does.
fn secret(seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(64).collect()
}

/// A memfd whose pages hold the secret; the process that wrote it is gone.
fn secretive_file(seed: u64) -> std::fs::File {
    use std::os::unix::fs::FileExt;
    let file = files::memfd(PAGES * PAGE);
    Child::spawn(|| {
        for page in 0..PAGES {
            file.write_all_at(&secret(seed), page * PAGE + 64)
                .expect("write");
        }
    })
    .succeed();
    file
}

/// Whatever of this process's memory is dumped, a mirror is not.
fn not_in_core_dumps() {
    let _pattern = Setting::set("/proc/sys/kernel/core_pattern", "/tmp/core-%p");
    let (shown, ordinary) = (secretive_file(11), secretive_file(12));
    let child = Child::spawn(|| {
        let limit = libc::rlimit {
            rlim_cur: libc::RLIM_INFINITY,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: The struct is what the call takes.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &limit) }, 0);
        // All kinds of mappings.
        std::fs::write("/proc/self/coredump_filter", "0x1ff").expect("coredump_filter");
        let space = Space::new();
        space.must_map(Map::file(&shown, 0, PAGES * PAGE));
        let area = mirror(&space, 0, PAGES * PAGE);
        let _ = area.advise(0, area.len(), MADV_DODUMP);
        let plain = Area::of_file(&ordinary, PAGES * PAGE, RW);
        for page in 0..PAGES {
            assert_eq!(area.load(page * PAGE), Ok(0));
            assert_eq!(area.store(page * PAGE, 1), Ok(()));
            assert_eq!(plain.load(page * PAGE), Ok(0));
        }
        std::process::abort();
    });
    let status = child.wait();
    let path = format!("/tmp/core-{}", child.pid());
    let core = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}; {status:?}"));
    let _ = std::fs::remove_file(&path);
    let holds = |seed| {
        let secret = secret(seed);
        core.windows(secret.len()).any(|bytes| bytes == secret)
    };
    assert!(holds(12), "an ordinary mapping is in the core dump");
    assert!(!holds(11), "the mirror is in the core dump");
}
