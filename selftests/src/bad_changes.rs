// SPDX-License-Identifier: GPL-2.0

//! What VIEW, SEAL, PROTECT and ADVISE refuse, and that a refusal leaves everything as it was.

use std::fs::File;
use std::os::fd::AsRawFd;

use asfd::sys::*;
use libc::{MADV_DONTNEED, MADV_NORMAL, PROT_NONE, PROT_READ, PROT_WRITE};
use nix::fcntl::{fcntl, FcntlArg, SealFlag};
use nix::sys::resource::{getrlimit, setrlimit, Resource};

use crate::support::files::{self, TempFile};
use crate::support::rights::{request, View, ALL_RIGHTS, ALL_SEALS, RW};
use crate::support::snapshot::unchanged;
use crate::support::space::errno;
use crate::support::{Errno, Map, Result, Space, PAGE};

crate::suite![
    views,
    wider_views,
    seals,
    protections,
    protections_a_mapping_may_not_have,
    advice,
    through_a_view,
    bad_pointers,
    other_descriptors,
    other_requests,
    no_descriptor_left,
];

/// Pages 0 to 7 of a file, a hole, anonymous memory at 12 to 16, and the last page of the space.
fn scenery() -> Space {
    let space = Space::new();
    space.must_map(Map::file(&files::numbered(8, b'a'), 0, 8 * PAGE));
    space.must_map(Map::anon(12 * PAGE, 4 * PAGE));
    space.put(12 * PAGE, &[b'X'; 4 * PAGE as usize]);
    space.must_map(Map::anon(space.end() - PAGE, PAGE));
    space
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("fd").count()
}

/// That the call fails so, with no trace of it: neither in the space nor a descriptor.
#[track_caller]
fn refused<T: std::fmt::Debug>(
    space: &Space,
    what: &str,
    expected: Errno,
    call: impl FnOnce() -> Result<T>,
) {
    let before = descriptors();
    let answer = unchanged(space, call);
    assert_eq!(answer.map(drop), Err(expected), "{what}");
    assert_eq!(descriptors(), before, "{what}: a descriptor is left");
}

/// Single bits of 32 that are not in `known`.
fn unknown_bits(known: u32) -> impl Iterator<Item = u32> {
    (0..32)
        .map(|bit| 1 << bit)
        .filter(move |bit| bit & known == 0)
}

const TOP: u64 = u64::MAX - PAGE + 1;

fn views() {
    let space = scenery();
    let end = space.end();
    let (inv, range) = (Errno::EINVAL, Errno::ERANGE);
    for (what, expected, addr, len) in [
        ("unaligned address", inv, 1, PAGE),
        ("unaligned address", inv, PAGE / 2, PAGE),
        ("unaligned length", inv, 0, 1),
        ("unaligned length", inv, 0, PAGE + 1),
        ("unaligned length", inv, PAGE, 2 * PAGE - 1),
        ("unaligned beyond the end", inv, end - 1, 2),
        ("no length", inv, 0, 0),
        ("no length at the end", inv, end, 0),
        ("one page more than all", range, 0, end + PAGE),
        ("at the end", range, end, PAGE),
        ("over the end", range, end - PAGE, 2 * PAGE),
        ("beyond the end", range, end + PAGE, PAGE),
        ("up to 2^64", range, TOP, PAGE),
        ("past 2^64", range, TOP, 2 * PAGE),
        ("around to the start", range, PAGE, TOP),
        ("the largest length", range, 0, TOP),
    ] {
        let view = View::of(addr, len);
        refused(&space, what, expected, || space.view(view));
        // A view with nothing to use it for is no exception.
        let nothing = view.rights(0).prot(PROT_NONE);
        refused(&space, what, expected, || space.view(nothing));
    }
    let good = View::of(0, PAGE);
    for bit in unknown_bits(RW as u32) {
        let mut bad = good;
        bad.0.prot = bit;
        refused(&space, &format!("prot {bit:#x}"), inv, || space.view(bad));
        bad.0.prot |= RW as u32;
        refused(&space, &format!("prot {bit:#x} too"), inv, || {
            space.view(bad)
        });
    }
    for bit in unknown_bits(ALL_RIGHTS) {
        let bad = good.rights(bit | ALL_RIGHTS);
        refused(&space, &format!("right {bit:#x}"), inv, || space.view(bad));
        refused(&space, &format!("right {bit:#x}"), inv, || {
            space.view(good.rights(bit))
        });
    }
    for bit in unknown_bits(ADDRESS_SPACE_CLOEXEC) {
        for flags in [bit, bit | ADDRESS_SPACE_CLOEXEC] {
            let bad = good.flags(flags);
            refused(&space, &format!("flags {flags:#x}"), inv, || {
                space.view(bad)
            });
        }
    }
    for bit in unknown_bits(0) {
        let mut bad = good;
        bad.0.__reserved = bit;
        refused(&space, &format!("reserved {bit:#x}"), inv, || {
            space.view(bad)
        });
    }
    for (addr, len) in [(0, end), (end - PAGE, PAGE), (8 * PAGE, PAGE)] {
        let view = space.must_view(View::of(addr, len));
        assert_eq!((view.info().addr, view.info().len), (addr, len));
    }
}

/// One step past what the descriptor itself has, in each direction.
fn wider_views() {
    let space = scenery();
    let narrow = View::of(4 * PAGE, 8 * PAGE);
    for missing in (0..7).map(|bit| 1 << bit) {
        let rights = ALL_RIGHTS & !missing;
        let view = space.must_view(narrow.rights(rights));
        let asked = View::of(0, PAGE).rights(missing);
        refused(&space, "another right", Errno::EPERM, || view.view(asked));
        let asked = View::of(0, PAGE).rights(ALL_RIGHTS);
        refused(&space, "all rights", Errno::EPERM, || view.view(asked));
        if missing != ADDRESS_SPACE_RIGHT_VIEW {
            view.must_view(View::of(0, PAGE).rights(rights));
        } else {
            let least = View::of(0, PAGE).rights(0).prot(PROT_NONE);
            refused(&space, "without VIEW", Errno::EPERM, || view.view(least));
        }
    }
    for ceiling in [PROT_NONE, PROT_READ, PROT_WRITE, RW] {
        let view = space.must_view(narrow.prot(ceiling));
        for prot in [PROT_NONE, PROT_READ, PROT_WRITE, RW] {
            let asked = View::of(0, PAGE).prot(prot);
            if prot & !ceiling == 0 {
                assert_eq!(view.must_view(asked).info().prot, prot as u32);
            } else {
                refused(&space, "more prot", Errno::EACCES, || view.view(asked));
            }
        }
    }
    let view = space.must_view(narrow);
    for (what, addr, len) in [
        ("one page longer", 0, 9 * PAGE),
        ("over the end", 7 * PAGE, 2 * PAGE),
        ("behind it", 8 * PAGE, PAGE),
        ("far behind it", 1 << 40, PAGE),
        ("as if from 0", 0, 12 * PAGE),
        ("a page before it", TOP, 2 * PAGE),
        (
            "where it starts, past 2^64",
            u64::MAX - 4 * PAGE + 1,
            4 * PAGE,
        ),
        ("the space's end", space.end() - 5 * PAGE, PAGE),
        ("all", 0, TOP),
    ] {
        refused(&space, what, Errno::ERANGE, || {
            view.view(View::of(addr, len))
        });
    }
    view.must_view(View::of(0, 8 * PAGE));
    view.must_view(View::of(7 * PAGE, PAGE));
}

fn seals() {
    let space = scenery();
    for bit in unknown_bits(ALL_SEALS) {
        for seals in [bit, bit | ADDRESS_SPACE_SEAL_MAP, bit | ALL_SEALS] {
            refused(&space, &format!("seals {seals:#x}"), Errno::EINVAL, || {
                space.seal(seals)
            });
            assert_eq!(space.info().seals, 0);
        }
    }
    space.must_map(Map::anon(8 * PAGE, PAGE));
}

fn protections() {
    let space = scenery();
    let end = space.end();
    let (inv, nomem) = (Errno::EINVAL, Errno::ENOMEM);
    for (what, expected, addr, len) in [
        ("unaligned", inv, 1, PAGE),
        ("unaligned", inv, PAGE - 1, PAGE),
        ("no length", inv, 0, 0),
        ("no length in a hole", inv, 8 * PAGE, 0),
        ("a hole", nomem, 8 * PAGE, PAGE),
        ("a hole in the middle", nomem, 7 * PAGE, 6 * PAGE),
        ("a hole at the end", nomem, 6 * PAGE, 3 * PAGE),
        (
            "a hole at the end, by a byte",
            nomem,
            6 * PAGE,
            2 * PAGE + 1,
        ),
        ("a hole at the start", nomem, 11 * PAGE, 2 * PAGE),
        ("all of it", nomem, 0, end),
        ("at the end", nomem, end, PAGE),
        ("over the end", nomem, end - PAGE, 2 * PAGE),
        ("over the end by a byte", nomem, end - PAGE, PAGE + 1),
        ("beyond the end", nomem, end + PAGE, PAGE),
        ("up to 2^64", nomem, TOP, PAGE),
        ("past 2^64", nomem, TOP, 2 * PAGE),
        ("around to the start", nomem, PAGE, TOP),
    ] {
        for prot in [PROT_NONE, PROT_READ, RW] {
            refused(&space, what, expected, || space.protect(addr, len, prot));
        }
    }
    // A length that rounds up to 2^64.
    for len in [u64::MAX, TOP + 1] {
        let answer = unchanged(&space, || space.protect(0, len, PROT_READ));
        assert!(
            matches!(answer, Err(Errno::ENOMEM | Errno::EINVAL)),
            "{answer:?}"
        );
    }
    for bit in unknown_bits(RW as u32) {
        for prot in [bit, bit | PROT_READ as u32] {
            refused(&space, &format!("prot {prot:#x}"), inv, || {
                space.protect(0, PAGE, prot as i32)
            });
        }
    }
    for bit in unknown_bits(0) {
        let bad = address_space_protect {
            addr: 0,
            len: PAGE,
            prot: PROT_READ as u32,
            __reserved: bit,
        };
        refused(&space, &format!("reserved {bit:#x}"), inv, || {
            request(space.as_raw_fd(), ADDRESS_SPACE_IOC_PROTECT, bad)
        });
    }
    space.must_protect(0, 1, PROT_READ);
    assert_eq!(space.query(0, 0).map(|m| m.end), Ok(PAGE), "rounded up");
}

/// Mappings that may never be written, beside some that may: none of them changes.
fn protections_a_mapping_may_not_have() {
    let temp = TempFile::new("/tmp", 8 * PAGE);
    let future = files::memfd(8 * PAGE);
    let sealed_later = files::memfd(8 * PAGE);
    let add = |file: &File, seal| fcntl(file, FcntlArg::F_ADD_SEALS(seal)).expect("seal");
    add(&future, SealFlag::F_SEAL_FUTURE_WRITE);
    let reading = temp.open(true, false);
    for (what, file) in [
        ("a file opened for reading", &reading),
        ("a memfd sealed against writing", &future),
    ] {
        let space = Space::new();
        space.must_map(Map::anon(0, 4 * PAGE));
        space.put(0, &[7; 4 * PAGE as usize]);
        space.must_map(Map::file(file, 4 * PAGE, 4 * PAGE).prot(PROT_READ));
        space.must_map(Map::anon(8 * PAGE, 4 * PAGE));
        for (addr, len) in [(4, 4), (5, 1), (3, 2), (7, 2), (0, 12), (2, 3)] {
            for prot in [RW, PROT_WRITE] {
                refused(&space, what, Errno::EACCES, || {
                    space.protect(addr * PAGE, len * PAGE, prot)
                });
            }
        }
        space.must_protect(0, 12 * PAGE, PROT_NONE);
        space.must_protect(0, 12 * PAGE, PROT_READ);
        assert_eq!(space.byte(0), 7);
        // A private one writes its own pages.
        let private = Map::file(file, 20 * PAGE, PAGE).private().prot(PROT_READ);
        space.must_map(private);
        space.must_protect(20 * PAGE, PAGE, RW);
        space.put(20 * PAGE, b"own");
    }
    // Once it is mapped shared for writing, a memfd cannot be sealed against it.
    let space = Space::new();
    space.must_map(Map::file(&sealed_later, 0, PAGE));
    space.must_protect(0, PAGE, PROT_READ);
    let sealed = fcntl(&sealed_later, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE));
    assert_eq!(sealed, Err(Errno::EBUSY), "it may become writable again");
    space.must_protect(0, PAGE, RW);
}

fn advice() {
    let space = scenery();
    let end = space.end();
    let (inv, nomem) = (Errno::EINVAL, Errno::ENOMEM);
    for (what, expected, addr, len) in [
        ("unaligned", inv, 1, PAGE),
        ("unaligned", inv, PAGE - 1, PAGE),
        ("no length", inv, 0, 0),
        ("a hole", nomem, 8 * PAGE, PAGE),
        ("holes only", nomem, 8 * PAGE, 4 * PAGE),
        ("nothing up to the last page", nomem, 1 << 40, PAGE),
        ("at the end", nomem, end, PAGE),
        ("over the end", nomem, end - PAGE, 2 * PAGE),
        ("beyond the end", nomem, end + PAGE, PAGE),
        ("up to 2^64", nomem, TOP, PAGE),
        ("past 2^64", nomem, TOP, 2 * PAGE),
        ("around to the start", nomem, PAGE, TOP),
    ] {
        for advice in [MADV_NORMAL, MADV_DONTNEED, libc::MADV_POPULATE_READ] {
            refused(&space, what, expected, || space.advise(addr, len, advice));
        }
    }
    for len in [u64::MAX, TOP + 1] {
        let answer = unchanged(&space, || space.advise(0, len, MADV_DONTNEED));
        assert!(
            matches!(answer, Err(Errno::ENOMEM | Errno::EINVAL)),
            "{answer:?}"
        );
    }
    for bit in unknown_bits(0) {
        let bad = address_space_advise {
            addr: 0,
            len: PAGE,
            advice: MADV_DONTNEED as u32,
            __reserved: bit,
        };
        refused(&space, &format!("reserved {bit:#x}"), inv, || {
            request(space.as_raw_fd(), ADDRESS_SPACE_IOC_ADVISE, bad)
        });
    }
}

/// Beyond a view's window is ERANGE for every call, whatever the space has there.
fn through_a_view() {
    let space = scenery();
    space.must_map(Map::anon(8 * PAGE, 4 * PAGE));
    // Everything up to 15 is mapped; the window is 4 to 11.
    let view = space.must_view(View::of(4 * PAGE, 8 * PAGE));
    let out = [
        (8 * PAGE, PAGE),
        (7 * PAGE, 2 * PAGE),
        (0, 9 * PAGE),
        (7 * PAGE, PAGE + 1),
        (TOP, PAGE),
        (TOP, 2 * PAGE),
        (1 << 40, PAGE),
        (space.end() - PAGE, PAGE),
        (space.end() - 5 * PAGE, PAGE),
    ];
    for (addr, len) in out {
        let what = format!("{addr:#x}, {len:#x}");
        let no = |call: &dyn Fn() -> Result<()>| refused(&space, &what, Errno::ERANGE, call);
        no(&|| view.protect(addr, len, PROT_READ));
        no(&|| view.advise(addr, len, MADV_DONTNEED));
        no(&|| view.advise(addr, len, libc::MADV_POPULATE_WRITE));
        no(&|| view.unmap(addr, len));
        no(&|| view.map(Map::anon(addr, len)).map(drop));
        no(&|| view.map(Map::anon(addr, len).replace()).map(drop));
        if len % PAGE == 0 {
            no(&|| view.view(View::of(addr, len)).map(drop));
        }
    }
    // By hint there is no room: the window is full, and the space behind it is not looked at.
    for hint in [0, PAGE, 7 * PAGE, 8 * PAGE] {
        let answer = unchanged(&space, || view.map(Map::anon(hint, PAGE).hint()));
        let expected = if hint < 8 * PAGE {
            matches!(answer, Err(Errno::ENOMEM))
        } else {
            matches!(answer, Err(Errno::ENOMEM | Errno::ERANGE))
        };
        assert!(expected, "hint {hint:#x}: {answer:?}");
    }
    view.unmap(7 * PAGE, PAGE).expect("the last page");
    assert_eq!(
        view.map(Map::anon(0, 2 * PAGE).hint()),
        Err(Errno::ENOMEM),
        "one is free, and the next is another's"
    );
    assert_eq!(view.map(Map::anon(0, PAGE).hint()), Ok(7 * PAGE));
}

fn bad_pointers() {
    let space = scenery();
    for number in [
        ADDRESS_SPACE_IOC_PROTECT,
        ADDRESS_SPACE_IOC_ADVISE,
        ADDRESS_SPACE_IOC_SEAL,
        ADDRESS_SPACE_IOC_VIEW,
    ] {
        for pointer in [0usize, 8, 1 << 63, usize::MAX - 8, usize::MAX] {
            refused(&space, &format!("{number:#x}"), Errno::EFAULT, || {
                // SAFETY: Nothing is mapped there.
                unsafe { ioctl(space.as_raw_fd(), number, pointer as *mut u8) }.map_err(errno)
            });
        }
    }
}

fn other_descriptors() {
    let memfd = files::memfd(PAGE);
    let before = descriptors();
    let fd = memfd.as_raw_fd();
    let view = View::of(0, PAGE).0;
    let answers = [
        request(fd, ADDRESS_SPACE_IOC_VIEW, view),
        request(fd, ADDRESS_SPACE_IOC_SEAL, 1u32),
        request(
            fd,
            ADDRESS_SPACE_IOC_PROTECT,
            address_space_protect::default(),
        ),
        request(
            fd,
            ADDRESS_SPACE_IOC_ADVISE,
            address_space_advise::default(),
        ),
    ];
    assert_eq!(answers, [Err(Errno::ENOTTY); 4]);
    assert_eq!(request(-1, ADDRESS_SPACE_IOC_VIEW, view), Err(Errno::EBADF));
    assert_eq!(descriptors(), before);
}

/// The right number with another size or direction is another request.
fn other_requests() {
    let space = scenery();
    let magic = ADDRESS_SPACE_IOC_MAGIC << 8;
    let mut requests: Vec<u32> = (5..=0xff).map(|number| magic | number).collect();
    for known in [
        ADDRESS_SPACE_IOC_PROTECT,
        ADDRESS_SPACE_IOC_ADVISE,
        ADDRESS_SPACE_IOC_SEAL,
        ADDRESS_SPACE_IOC_VIEW,
    ] {
        requests.extend([known ^ 3 << 30, known & !(3 << 30), known + (8 << 16)]);
    }
    for number in requests {
        refused(&space, &format!("{number:#x}"), Errno::ENOTTY, || {
            request(space.as_raw_fd(), number, [0u64; 512])
        });
    }
}

/// At the limit of descriptors no view is made, and there is nothing of it.
fn no_descriptor_left() {
    let space = scenery();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    let mut open = Vec::new();
    setrlimit(Resource::RLIMIT_NOFILE, 32, hard).expect("setrlimit");
    let refused = loop {
        match space.view(View::of(0, PAGE)) {
            Ok(view) => open.push(view),
            Err(e) => break e,
        }
        assert!(open.len() <= 32);
    };
    assert_eq!(refused, Errno::EMFILE);
    let last = open.pop().expect("one");
    drop(last);
    open.push(space.must_view(View::of(0, PAGE)));
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("setrlimit");
    // What is bad for itself is said first.
    let bad = space.view(View::of(1, PAGE));
    assert_eq!(bad.err(), Some(Errno::EINVAL));
}
