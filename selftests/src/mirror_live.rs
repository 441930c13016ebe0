// SPDX-License-Identifier: GPL-2.0

//! What is done to a space shows at once in each mirror, and what cannot be had is told exactly.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use libc::{MAP_FIXED, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE};
use nix::unistd::pipe;

use crate::support::files;
use crate::support::mirror::{mirror, mirror_with, Access, Area, Peer};
use crate::support::probe::Fault;
use crate::support::{Errno, Map, Result, Space, PAGE};

crate::suite![
    edits_show_in_every_mirror,
    protection_shows_in_every_mirror,
    edits_of_another_process_show,
    many_edits_of_one_page,
    holes_are_exact,
    accesses_across_pages,
    permissions,
    write_only_is_not_readable,
    end_of_the_file,
    system_calls,
    system_calls_that_may_not_write,
    unrelated_ranges_stay,
];

const RW: i32 = PROT_READ | PROT_WRITE;

/// Mirrors of `[0, len)` of a space: one of this process that starts there, one that starts a page
/// later, a part of a bigger one, and those of other processes.
struct Mirrors {
    len: u64,
    own: Vec<(u64, Area)>,
    peers: Vec<Peer>,
}

impl Mirrors {
    fn of(space: &Space, len: u64) -> Mirrors {
        let peers = (0..2)
            .map(|_| Peer::new(|| mirror(space, 0, len)))
            .collect();
        let own = vec![
            (0, mirror(space, 0, len)),
            (PAGE, mirror(space, PAGE, len)),
            (0, mirror(space, 0, 64 * len)),
        ];
        Mirrors { len, own, peers }
    }

    /// What a load at `at` of the space gives is the same in all of them.
    #[track_caller]
    fn all_load(&self, at: u64, expected: Access<u8>, when: &str) {
        assert!(at < self.len);
        for (number, peer) in self.peers.iter().enumerate() {
            assert_eq!(peer.load(at), expected, "{when}: process {number}");
        }
        for (number, (start, area)) in self.own.iter().enumerate() {
            let Some(there) = at.checked_sub(*start) else {
                continue;
            };
            let expected = expected.map_err(|fault| Fault {
                addr: fault.addr - start,
                ..fault
            });
            assert_eq!(area.load(there), expected, "{when}: mirror {number}");
        }
    }

    #[track_caller]
    fn all_store(&self, at: u64, expected: Access<()>, when: &str) {
        assert!(at < self.len);
        for (number, peer) in self.peers.iter().enumerate() {
            assert_eq!(peer.store(at, 200), expected, "{when}: process {number}");
        }
        for (number, (start, area)) in self.own.iter().enumerate() {
            let Some(there) = at.checked_sub(*start) else {
                continue;
            };
            let expected = expected.map_err(|fault| Fault {
                addr: fault.addr - start,
                ..fault
            });
            assert_eq!(area.store(there, 200), expected, "{when}: mirror {number}");
        }
    }
}

fn edits_show_in_every_mirror() {
    let space = Space::new();
    let mirrors = Mirrors::of(&space, 8 * PAGE);
    let at = 3 * PAGE;
    let files = [b'a', b'b'].map(|first| files::numbered(8, first));
    for round in 0..3 {
        let check = |expected, what| mirrors.all_load(at + 5, expected, what);
        check(Err(Fault::hole(at + 5)), "a hole");
        space.must_map(Map::file(&files[0], at, PAGE));
        check(Ok(b'a'), "mapped");
        space.must_map(Map::file(&files[1], at, PAGE).replace());
        check(Ok(b'b'), "replaced by another file");
        space.must_map(Map::file(&files[1], at, PAGE).offset(PAGE).replace());
        check(Ok(b'c'), "replaced by another page");
        space.must_map(Map::anon(at, PAGE).replace());
        check(Ok(0), "replaced by anonymous memory");
        space.put(at + 5, b"x");
        check(Ok(b'x'), "written by pwrite");
        space.must_map(Map::anon(at, PAGE).replace());
        check(Ok(0), "replaced by new anonymous memory");
        space.must_map(Map::anon(at, PAGE).shared().replace());
        check(Ok(0), "replaced by shared memory");
        // The whole range, of which it is a part.
        space.must_map(Map::file(&files[0], 0, 8 * PAGE).replace());
        check(Ok(b'd'), "replaced with its neighbours");
        mirrors.all_load(at - 1, Ok(b'c'), "its neighbour");
        space.unmap(at, PAGE).expect("unmap");
        check(Err(Fault::hole(at + 5)), "unmapped");
        mirrors.all_load(at - 1, Ok(b'c'), "the page before");
        mirrors.all_load(at + PAGE, Ok(b'e'), "the page behind");
        space.unmap(0, 8 * PAGE).expect("unmap");
        mirrors.all_load(at + PAGE, Err(Fault::hole(at + PAGE)), "all unmapped");
        if round == 1 {
            // From here on the pages have been written by each mirror.
            space.must_map(Map::file(&files[0], at, PAGE));
            mirrors.all_store(at + 5, Ok(()), "written");
            space.unmap(at, PAGE).expect("unmap");
            number(&files[0]);
        }
    }
}

fn number(file: &File) {
    files::number(file, 8, b'a');
}

fn protection_shows_in_every_mirror() {
    for shared in [false, true] {
        let space = Space::new();
        let map = Map::anon(0, 8 * PAGE);
        space.must_map(if shared { map.shared() } else { map });
        let mirrors = Mirrors::of(&space, 8 * PAGE);
        let at = 3 * PAGE;
        for _ in 0..3 {
            mirrors.all_store(at, Ok(()), "writable");
            space.protect(at, PAGE, PROT_READ).expect("PROTECT");
            mirrors.all_store(at + 1, Err(Fault::denied(at + 1)), "read-only");
            mirrors.all_load(at, Ok(200), "read-only");
            space.protect(at, PAGE, PROT_NONE).expect("PROTECT");
            mirrors.all_load(at + 2, Err(Fault::denied(at + 2)), "no access");
            mirrors.all_store(at + 3, Err(Fault::denied(at + 3)), "no access");
            mirrors.all_store(at - 1, Ok(()), "the page before");
            mirrors.all_store(at + PAGE, Ok(()), "the page behind");
            space.protect(0, 8 * PAGE, PROT_READ).expect("PROTECT");
            mirrors.all_store(at - 1, Err(Fault::denied(at - 1)), "all read-only");
            mirrors.all_load(at + 1, Ok(0), "what was refused is not there");
            space.protect(0, 8 * PAGE, RW).expect("PROTECT");
            mirrors.all_load(at, Ok(200), "writable again");
        }
    }
}

fn edits_of_another_process_show() {
    let space = Space::new();
    let mirrors = Mirrors::of(&space, 4 * PAGE);
    let file = files::numbered(1, b'f');
    let edits: [(&dyn Fn(), Access<u8>); 4] = [
        (
            &|| {
                space.must_map(Map::file(&file, PAGE, PAGE).replace());
            },
            Ok(b'f'),
        ),
        (&|| space.put(PAGE, b"g"), Ok(b'g')),
        (
            &|| space.protect(PAGE, PAGE, PROT_NONE).expect("PROTECT"),
            Err(Fault::denied(PAGE)),
        ),
        (
            &|| space.unmap(PAGE, PAGE).expect("unmap"),
            Err(Fault::hole(PAGE)),
        ),
    ];
    for round in 0..2 {
        for (number, (edit, expected)) in edits.iter().enumerate() {
            crate::support::process::Child::spawn(edit).succeed();
            mirrors.all_load(PAGE, *expected, &format!("round {round}, edit {number}"));
        }
        files::number(&file, 1, b'f');
    }
}

fn many_edits_of_one_page() {
    let space = Space::new();
    let mirrors = Mirrors::of(&space, 4 * PAGE);
    let file = files::numbered(16, 0);
    let mut random = fastrand::Rng::with_seed(2);
    for round in 0..150 {
        let (page, number) = (random.u64(0..4), random.u8(0..16));
        let at = page * PAGE;
        let when = format!("round {round}");
        match random.u8(0..4) {
            0 => {
                space.unmap(at, PAGE).expect("unmap");
                mirrors.all_load(at, Err(Fault::hole(at)), &when);
            }
            1 => {
                space.must_map(Map::anon(at, PAGE).replace());
                mirrors.all_load(at, Ok(0), &when);
                mirrors.all_store(at, Ok(()), &when);
            }
            2 => {
                let map = Map::file(&file, at, PAGE).offset(u64::from(number) * PAGE);
                space.must_map(map.private().replace());
                mirrors.all_load(at, Ok(number), &when);
                mirrors.all_store(at, Ok(()), &when);
                mirrors.all_load(at, Ok(200), &when);
            }
            _ => {
                let map = Map::file(&file, at, PAGE).offset(u64::from(number) * PAGE);
                space.must_map(map.replace());
                mirrors.all_load(at, Ok(number), &when);
            }
        }
    }
}

/// `si_addr` is the address of the access, not of its page.
fn holes_are_exact() {
    let space = Space::new();
    space.must_map(Map::anon(4 * PAGE, PAGE));
    space.must_map(Map::anon(8 * PAGE, PAGE).prot(PROT_NONE));
    let area = mirror(&space, 0, 16 * PAGE);
    for inside in [0, 1, 7, 8, 2047, PAGE - 9, PAGE - 8, PAGE - 2, PAGE - 1] {
        for page in [0, 3, 5, 15] {
            let at = page * PAGE + inside;
            assert_eq!(area.load(at), Err(Fault::hole(at)));
            assert_eq!(area.store(at, 1), Err(Fault::hole(at)));
            let word = at & !7;
            assert_eq!(area.add_word(word, 1), Err(Fault::hole(word)));
        }
        let at = 8 * PAGE + inside;
        assert_eq!(area.load(at), Err(Fault::denied(at)));
        assert_eq!(area.store(at, 1), Err(Fault::denied(at)));
        assert_eq!(area.store(4 * PAGE + inside, 1), Ok(()));
    }
}

/// A word of which some bytes lie in one page and some in the next: the fault is at the first byte
/// that cannot be had, and nothing is stored.
fn accesses_across_pages() {
    let space = Space::new();
    space.must_map(Map::anon(2 * PAGE, 2 * PAGE));
    space.must_map(Map::anon(6 * PAGE, PAGE).prot(PROT_READ));
    space.must_map(Map::anon(7 * PAGE, PAGE));
    let area = mirror(&space, 0, 16 * PAGE);
    for before in 1..8 {
        let crossing = |page: u64| page * PAGE - before;
        let pattern = 0x1111_1111_1111_1111;
        // From a hole: at the first byte. Into a hole: at the hole's first byte.
        let (from, into) = (crossing(2), crossing(4));
        assert_eq!(area.load_word(from), Err(Fault::hole(from)));
        assert_eq!(area.store_word(from, pattern), Err(Fault::hole(from)));
        assert_eq!(area.load_word(into), Err(Fault::hole(4 * PAGE)));
        assert_eq!(area.store_word(into, pattern), Err(Fault::hole(4 * PAGE)));
        // From a read-only page into a writable one, whether that is present or not.
        let from = crossing(7);
        assert_eq!(area.load_word(from), Ok(0));
        assert_eq!(area.store_word(from, pattern), Err(Fault::denied(from)));
        assert_eq!(space.get(2 * PAGE, 8), [0; 8]);
        assert_eq!(space.get(4 * PAGE - 8, 8), [0; 8]);
        assert_eq!(space.get(7 * PAGE - 8, 16), [0; 16]);
    }
    let inside = 3 * PAGE - 3;
    assert_eq!(area.store_word(inside, 0x0807_0605_0403_0201), Ok(()));
    assert_eq!(space.get(inside, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(area.load_word(inside), Ok(0x0807_0605_0403_0201));
}

/// Protection of the mapping, of the mirror, and access.
fn permissions() {
    type Kind = (&'static str, fn(&File) -> Map);
    let kinds: [Kind; 4] = [
        ("private memory", |_| Map::anon(0, 4 * PAGE)),
        ("shared memory", |_| Map::anon(0, 4 * PAGE).shared()),
        ("shared file", |file| Map::file(file, 0, 4 * PAGE)),
        ("private file", |file| {
            Map::file(file, 0, 4 * PAGE).private()
        }),
    ];
    for (kind, map) in kinds {
        for mapping in [PROT_NONE, PROT_READ, PROT_WRITE, RW] {
            for of_mirror in [PROT_READ, RW] {
                // Pages that were touched before, when all was permitted, and pages that were not.
                for touched in [false, true] {
                    let case = format!("{kind}, {mapping} through {of_mirror}, {touched}");
                    let file = files::memfd(4 * PAGE);
                    let space = Space::new();
                    let area = if touched {
                        space.must_map(map(&file));
                        let area = mirror(&space, 0, 4 * PAGE);
                        for at in [0, PAGE] {
                            assert_eq!(area.store(at, 0), Ok(()));
                        }
                        space.protect(0, 4 * PAGE, mapping).expect("PROTECT");
                        area.protect(0, 4 * PAGE, of_mirror).expect("mprotect");
                        area
                    } else {
                        space.must_map(map(&file).prot(mapping));
                        mirror_with(&space, 0, 4 * PAGE, of_mirror)
                    };
                    let at = PAGE + 11;
                    let good = mapping & of_mirror & PROT_READ != 0;
                    let load = if good { Ok(0) } else { Err(Fault::denied(11)) };
                    assert_eq!(area.load(11), load, "load: {case}");
                    let good = mapping & of_mirror & PROT_WRITE != 0;
                    let store = if good { Ok(()) } else { Err(Fault::denied(at)) };
                    assert_eq!(area.store(at, 7), store, "store: {case}");
                    // One that loads is a store.
                    let word = PAGE + 64;
                    let add = if good {
                        Ok(0)
                    } else {
                        Err(Fault::denied(word))
                    };
                    assert_eq!(area.add_word(word, 1), add, "add: {case}");
                    space.protect(0, 4 * PAGE, RW).expect("PROTECT");
                    let now = if good { 7 } else { 0 };
                    assert_eq!(space.byte(at), now, "what is there: {case}");
                    assert_eq!(space.byte(word), now / 7, "what is there: {case}");
                }
            }
        }
    }
}

/// The CPU knows no memory that can be written and not read, but until it is written it is not there.
fn write_only_is_not_readable() {
    let space = Space::new();
    let file = files::numbered(2, b'a');
    space.must_map(Map::anon(0, 2 * PAGE).prot(PROT_WRITE));
    space.must_map(Map::file(&file, 2 * PAGE, 2 * PAGE).prot(PROT_WRITE));
    let area = mirror(&space, 0, 4 * PAGE);
    for page in 0..4 {
        let at = page * PAGE + 3;
        assert_eq!(area.load(at), Err(Fault::denied(at)), "page {page}");
        assert_eq!(area.load(at), Err(Fault::denied(at)), "page {page} again");
    }
    assert_eq!(area.store(0, 5), Ok(()));
    assert_eq!(area.store(2 * PAGE, 6), Ok(()));
    assert_eq!(area.load(PAGE), Err(Fault::denied(PAGE)), "its neighbour");
    assert_eq!(area.load(3 * PAGE), Err(Fault::denied(3 * PAGE)));
    space.protect(0, 4 * PAGE, PROT_READ).expect("PROTECT");
    assert_eq!((area.load(0), area.load(2 * PAGE)), (Ok(5), Ok(6)));
    let mut bytes = [0];
    file.read_exact_at(&mut bytes, 0).expect("read");
    assert_eq!(bytes, [6]);
}

fn end_of_the_file() {
    let space = Space::new();
    let file = files::numbered(4, 10);
    space.must_map(Map::file(&file, 0, 8 * PAGE));
    space.must_map(Map::file(&file, 8 * PAGE, 8 * PAGE).private());
    let mirrors = Mirrors::of(&space, 16 * PAGE);
    let pages = |end: u64, when: &str| {
        for page in 0..8 {
            for at in [page * PAGE + 1, (page + 8) * PAGE + 1] {
                let expected = match page {
                    _ if page >= end => Err(Fault::hole(at)),
                    _ if page >= 2 => Ok(0),
                    _ => Ok(10 + page as u8),
                };
                mirrors.all_load(at, expected, &format!("{when}: page {page}"));
            }
        }
    };
    mirrors.all_load(3 * PAGE, Ok(13), "before");
    mirrors.all_load(4 * PAGE, Err(Fault::hole(4 * PAGE)), "before");
    file.set_len(2 * PAGE).expect("ftruncate");
    pages(2, "cut off");
    mirrors.all_store(2 * PAGE + 9, Err(Fault::hole(2 * PAGE + 9)), "cut off");
    file.set_len(6 * PAGE).expect("ftruncate");
    pages(6, "grown");
    // In the middle of a page: the rest of it is zeros.
    file.set_len(PAGE + 1).expect("ftruncate");
    mirrors.all_load(PAGE, Ok(11), "in the middle");
    mirrors.all_load(PAGE + 1, Ok(0), "in the middle");
    mirrors.all_load(2 * PAGE, Err(Fault::hole(2 * PAGE)), "in the middle");
}

/// A call that reads or writes memory at the given offset of an area.
type Call = fn(&Area, u64, &Files) -> Result<u64>;

/// What the calls need.
struct Files {
    file: File,
    pipe: (OwnedFd, OwnedFd),
    sockets: (OwnedFd, OwnedFd),
}

impl Files {
    fn new() -> Files {
        let files = Files {
            file: files::numbered(4, b'f'),
            pipe: pipe().expect("pipe"),
            sockets: crate::support::process::sockets(),
        };
        for fd in [&files.pipe.1, &files.sockets.1] {
            assert_eq!(nix::unistd::write(fd, &[b'p'; 8192]), Ok(8192));
        }
        files
    }
}

/// As many bytes as the calls are asked to move.
const LEN: u64 = 2 * PAGE;

fn vector(area: &Area, at: u64) -> [libc::iovec; 2] {
    let part = |from| libc::iovec {
        iov_base: area.pointer(at + from),
        iov_len: PAGE as usize,
    };
    [part(0), part(PAGE)]
}

const INTO: [(&str, Call); 6] = [
    ("read", |area, at, files| {
        area.read_from(at, &files.file, LEN)
    }),
    ("read of a pipe", |area, at, files| {
        area.read_from(at, &files.pipe.0, LEN)
    }),
    ("read of a socket", |area, at, files| {
        area.read_from(at, &files.sockets.0, LEN)
    }),
    ("preadv", |area, at, files| {
        let fd = files.file.as_raw_fd();
        // SAFETY: The kernel writes to the area, or refuses to.
        let done = unsafe { libc::preadv(fd, vector(area, at).as_ptr(), 2, 0) };
        Errno::result(done).map(|n| n as u64)
    }),
    ("getrandom", |area, at, _| {
        // SAFETY: As above.
        let done = unsafe { libc::getrandom(area.pointer(at), LEN as usize, 0) };
        Errno::result(done).map(|n| n as u64)
    }),
    ("fstat", |area, at, files| {
        // SAFETY: As above.
        let done = unsafe {
            let stat = area.pointer(at + PAGE - 16);
            libc::syscall(libc::SYS_fstat, files.file.as_raw_fd(), stat)
        };
        Errno::result(done).map(|n| n as u64)
    }),
];

const FROM: [(&str, Call); 4] = [
    ("write", |area, at, files| {
        area.write_to(at, &files.file, LEN)
    }),
    ("write to a pipe", |area, at, files| {
        area.write_to(at, &files.pipe.1, LEN)
    }),
    ("write to a socket", |area, at, files| {
        area.write_to(at, &files.sockets.1, LEN)
    }),
    ("pwritev", |area, at, files| {
        let fd = files.file.as_raw_fd();
        // SAFETY: The kernel reads the area, or refuses to.
        let done = unsafe { libc::pwritev(fd, vector(area, at).as_ptr(), 2, 0) };
        Errno::result(done).map(|n| n as u64)
    }),
];

/// Where of two pages the second is there, the first, none, or both, and at which offset.
const SHAPES: [(bool, bool); 4] = [(true, true), (true, false), (false, true), (false, false)];

/// Ordinary memory of which the pages are there or not.
fn ordinary(shape: (bool, bool)) -> Area {
    let area = Area::anonymous(4 * PAGE);
    area.put(0, &[b'm'; 4 * PAGE as usize]);
    for (page, there) in [(0, shape.0), (1, shape.1), (2, shape.1)] {
        if !there {
            area.unmap(page * PAGE, PAGE).expect("munmap");
        }
    }
    area
}

/// System calls get of a mirror with holes what they get of ordinary memory with such holes.
fn system_calls() {
    for shape in SHAPES {
        for at in [16, PAGE - 1] {
            for (name, call) in INTO.into_iter().chain(FROM) {
                let expected = {
                    let area = ordinary(shape);
                    call(&area, at, &Files::new())
                };
                for protected in [false, true] {
                    let space = Space::new();
                    for (page, there) in [(0, shape.0), (1, shape.1), (2, shape.1), (3, true)] {
                        if there {
                            space.must_map(Map::anon(page * PAGE, PAGE));
                            space.put(page * PAGE, &[b'm'; PAGE as usize]);
                        } else if protected {
                            space.must_map(Map::anon(page * PAGE, PAGE).prot(PROT_NONE));
                        }
                    }
                    let area = mirror(&space, 0, 4 * PAGE);
                    let got = call(&area, at, &Files::new());
                    let case = format!("{name} at {at} of {shape:?}, protected: {protected}");
                    assert_eq!(got, expected, "{case}");
                    // What came is what the space has.
                    if let Ok(len @ 1..) = got {
                        let len = len.min(if shape.1 { LEN } else { PAGE - at });
                        assert_eq!(area.get(at, len), space.get(at, len), "{case}");
                        let untouched = area.get(at, len).iter().all(|byte| *byte == b'm');
                        let into = INTO.iter().any(|(into, _)| *into == name);
                        // A few random bytes may be those that were there.
                        assert!(untouched != into || into && len < 8, "{case}");
                    }
                }
            }
        }
    }
}

fn system_calls_that_may_not_write() {
    // Read-only is the mapping, or the mirror; the pages are present in the mirror, or not.
    for (mapping, of_mirror, touched) in [
        (PROT_READ, RW, false),
        (PROT_READ, RW, true),
        (RW, PROT_READ, false),
        (RW, PROT_READ, true),
    ] {
        for (name, call) in INTO {
            let space = Space::new();
            space.must_map(Map::anon(0, 4 * PAGE));
            space.put(0, &[b'm'; 4 * PAGE as usize]);
            space.protect(0, 4 * PAGE, mapping).expect("PROTECT");
            let area = mirror_with(&space, 0, 4 * PAGE, of_mirror);
            if touched {
                area.get(0, 4 * PAGE);
            }
            let refused = call(&area, 0, &Files::new());
            assert_eq!(refused, Err(Errno::EFAULT), "{name}");
            assert_eq!(space.get(0, 4 * PAGE), [b'm'; 4 * PAGE as usize], "{name}");
        }
        for (name, call) in FROM {
            let space = Space::new();
            space.must_map(Map::anon(0, 4 * PAGE));
            space.protect(0, 4 * PAGE, mapping).expect("PROTECT");
            let area = mirror_with(&space, 0, 4 * PAGE, of_mirror);
            assert!(call(&area, 0, &Files::new()).is_ok(), "{name}");
        }
    }
}

/// What is done elsewhere in the space takes nothing from a mirror: its pages stay present.
fn unrelated_ranges_stay() {
    let space = Space::new();
    space.must_map(Map::file(&files::numbered(16, 1), 0, 16 * PAGE));
    let area = mirror(&space, 0, 16 * PAGE);
    area.get(0, 16 * PAGE);
    let before = crate::support::mirror::faults();
    let at = 1 << 30;
    space.must_map(Map::anon(at, 16 * PAGE));
    space.put(at, b"x");
    space.protect(at, 16 * PAGE, PROT_READ).expect("PROTECT");
    space.unmap(at, 16 * PAGE).expect("unmap");
    area.get(0, 16 * PAGE);
    // The pwrite above may count as one, and so may the pages of our own code and stack.
    let taken = crate::support::mirror::faults() - before;
    assert!(taken < 12, "{taken} faults");
    // A mapping elsewhere in this process, neither.
    let flags = MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let other = Area::mmap(0, PAGE, RW, flags, -1, 0).expect("mmap");
    Area::mmap(other.addr(), PAGE, RW, flags | MAP_FIXED, -1, 0)
        .expect("mmap")
        .forget();
    assert_eq!(area.load(5 * PAGE), Ok(6));
}
