// SPDX-License-Identifier: GPL-2.0

//! What may not be written is not written, by whatever way.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use libc::{MADV_POPULATE_WRITE, PROT_READ, PROT_WRITE};
use nix::unistd::pipe;

use crate::harness::skip;
use crate::support::files::{self, Ext4, TempFile};
use crate::support::guest::{plain_code, Exit, Vm};
use crate::support::mirror::{mirror_with, Area};
use crate::support::probe::Fault;
use crate::support::process::sockets;
use crate::support::remote::Sleeper;
use crate::support::system::{need_huge_pages, Setting};
use crate::support::uring::Ring;
use crate::support::{Errno, Map, Result, Space, HUGE, PAGE};

crate::suite![
    read_only_mirror,
    read_only_mapping,
    read_only_both,
    read_only_file,
    made_read_only,
    mprotect_does_not_outdo_the_mapping,
];

const RW: i32 = PROT_READ | PROT_WRITE;
const LEN: u64 = 4 * PAGE;

/// What the attempts need besides the area.
struct Tools {
    ext4: Ext4,
}

/// Tries to write to the area at its start; `Ok` if it says that it did.
type Attempt = fn(&Area, &Tools) -> Result<()>;

fn vector(area: &Area) -> libc::iovec {
    libc::iovec {
        iov_base: area.pointer(0),
        iov_len: PAGE as usize,
    }
}

/// A page of bytes that the area does not have.
fn source() -> File {
    let file = files::memfd(LEN);
    file.write_all_at(&[b'X'; LEN as usize], 0).expect("write");
    file
}

const ATTEMPTS: [(&str, Attempt); 14] = [
    ("store", |area, _| {
        area.store(5, b'X').map_err(|_| Errno::EFAULT)
    }),
    ("read", |area, _| {
        area.read_from(0, &source(), PAGE).map(drop)
    }),
    ("read with O_DIRECT", |area, tools| {
        let temp = TempFile::new(tools.ext4.path(), LEN);
        temp.file
            .write_all_at(&[b'X'; LEN as usize], 0)
            .expect("write");
        let mut options = OpenOptions::new();
        let direct = options.read(true).custom_flags(libc::O_DIRECT);
        let file = direct.open(&temp.path).expect("O_DIRECT");
        area.read_from(0, &file, PAGE).map(drop)
    }),
    ("read of a pipe", |area, _| {
        let (reader, writer) = pipe().expect("pipe");
        nix::unistd::write(&writer, &[b'X'; PAGE as usize]).expect("write");
        area.read_from(0, &reader, PAGE).map(drop)
    }),
    ("recv", |area, _| {
        let (ours, theirs) = sockets();
        nix::unistd::write(&theirs, &[b'X'; 64]).expect("write");
        area.read_from(0, &ours, 64).map(drop)
    }),
    ("vmsplice of a pipe", |area, _| {
        let (reader, writer) = pipe().expect("pipe");
        nix::unistd::write(&writer, &[b'X'; 64]).expect("write");
        let vector = vector(area);
        // SAFETY: The kernel writes to the area, or refuses to.
        let done = unsafe { libc::vmsplice(reader.as_raw_fd(), &vector, 1, 0) };
        Errno::result(done).map(drop)
    }),
    ("io_uring read", |area, _| {
        Ring::new().read(&source(), area, 0, PAGE).map(drop)
    }),
    ("io_uring fixed buffer", |area, _| {
        let mut ring = Ring::new();
        ring.register(area, 0, PAGE)?;
        ring.read_fixed(&source(), area, 0, PAGE).map(drop)
    }),
    ("process_vm_writev", |area, _| {
        Sleeper::new().write_vm(area.addr(), &[b'X'; 64]).map(drop)
    }),
    ("/proc/PID/mem", |area, _| {
        Sleeper::new().write_mem(area.addr(), &[b'X'; 64]).map(drop)
    }),
    ("POKEDATA", |area, _| {
        Sleeper::new().poke(area.addr(), 0x5858)
    }),
    ("POPULATE_WRITE", |area, _| {
        area.advise(0, PAGE, MADV_POPULATE_WRITE)
    }),
    ("a futex", |area, _| {
        const SET_7: u32 = 7 << 12;
        let word = area.pointer(0);
        // SAFETY: The address is used by the kernel only.
        let done = unsafe {
            libc::syscall(
                libc::SYS_futex,
                word,
                libc::FUTEX_WAKE_OP,
                1,
                1,
                word,
                SET_7,
            )
        };
        Errno::result(done).map(drop)
    }),
    ("a guest", |area, _| {
        let vm = Vm::new();
        let _code = plain_code(&vm);
        let at = 16 * HUGE;
        vm.set_plain_slot(1, 0, at, LEN, area.addr())?;
        let mut vcpu = vm.vcpu(0);
        // Once it has read the page, and before.
        for read_first in [false, true] {
            if read_first {
                vcpu.load(at);
                vcpu.reset();
            }
            if let Exit::Done(_) = vcpu.store(at, 0x5858_5858) {
                return Ok(());
            }
            vcpu.reset();
        }
        Err(Errno::EFAULT)
    }),
];

/// None of the attempts writes to what `make` returns, which has `b'm'` everywhere. `unprotect`
/// makes it writable again, through which it is seen that the attempts are good for something.
fn check(make: &dyn Fn() -> (Space, Area)) {
    let tools = Tools {
        ext4: Ext4::mount().unwrap_or_else(|why| skip(&why)),
    };
    for (name, attempt) in ATTEMPTS {
        for touched in [false, true] {
            let (space, area) = make();
            if touched {
                assert!(area.get(0, LEN).iter().all(|byte| *byte == b'm'));
            }
            let done = attempt(&area, &tools);
            let refused = [Errno::EFAULT, Errno::EIO, Errno::EINVAL];
            let good = done.is_err_and(|e| refused.contains(&e));
            assert!(good, "{name}, touched: {touched}: {done:?}");
            let unchanged = space.get(0, LEN).iter().all(|byte| *byte == b'm');
            assert!(unchanged, "{name}, touched: {touched}");
            // Nor is the way open now.
            assert_eq!(area.load(0), Ok(b'm'), "{name}");
            assert_eq!(area.store(1, 0), Err(Fault::denied(1)), "{name}");
        }
    }
    // With all protection off they write: they would have been seen.
    for (name, attempt) in ATTEMPTS {
        let space = Space::new();
        space.must_map(Map::anon(0, LEN).shared());
        let area = mirror_with(&space, 0, LEN, RW);
        assert_eq!(attempt(&area, &tools), Ok(()), "{name}");
        let written = space.get(0, 8) != [0; 8];
        assert_eq!(written, name != "POPULATE_WRITE", "{name}");
    }
}

fn filled(map: Map) -> Space {
    let space = Space::new();
    space.must_map(map);
    space.put(0, &[b'm'; LEN as usize]);
    space
}

fn maps() -> [Map; 3] {
    [
        Map::anon(0, LEN),
        Map::anon(0, LEN).shared(),
        Map::anon(0, HUGE).with(libc::MAP_HUGETLB),
    ]
}

fn huge_pages() -> Setting {
    need_huge_pages(4)
}

fn read_only_mirror() {
    let _pages = huge_pages();
    for map in maps() {
        check(&|| {
            let space = filled(map);
            let area = mirror_with(&space, 0, LEN, PROT_READ);
            (space, area)
        });
    }
}

fn read_only_mapping() {
    let _pages = huge_pages();
    for map in maps() {
        check(&|| {
            let space = filled(map);
            space.protect(0, map.0.len, PROT_READ).expect("PROTECT");
            let area = mirror_with(&space, 0, LEN, RW);
            (space, area)
        });
    }
}

fn read_only_both() {
    check(&|| {
        let space = filled(Map::anon(0, LEN));
        space.protect(0, LEN, PROT_READ).expect("PROTECT");
        let area = mirror_with(&space, 0, LEN, PROT_READ);
        (space, area)
    });
}

/// A file that the space got for reading only, shared with others who can write it.
fn read_only_file() {
    let temp = TempFile::new("/tmp", LEN);
    temp.file
        .write_all_at(&[b'm'; LEN as usize], 0)
        .expect("write");
    check(&|| {
        let space = Space::new();
        let source = temp.open(true, false);
        space.must_map(Map::file(&source, 0, LEN).prot(PROT_READ));
        let area = mirror_with(&space, 0, LEN, RW);
        (space, area)
    });
    let mut bytes = [0; LEN as usize];
    temp.file.read_exact_at(&mut bytes, 0).expect("read");
    assert_eq!(bytes, [b'm'; LEN as usize]);
}

/// The mirror has had the pages writable, and has written them.
fn made_read_only() {
    for by_space in [false, true] {
        check(&|| {
            let space = filled(Map::anon(0, LEN));
            let area = mirror_with(&space, 0, LEN, RW);
            area.put(0, &[b'm'; LEN as usize]);
            if by_space {
                space.protect(0, LEN, PROT_READ).expect("PROTECT");
            } else {
                area.protect(0, LEN, PROT_READ).expect("mprotect");
            }
            (space, area)
        });
    }
}

/// mprotect(2) makes the mirror writable, not the mapping.
fn mprotect_does_not_outdo_the_mapping() {
    let space = filled(Map::anon(0, LEN));
    space.protect(0, LEN, PROT_READ).expect("PROTECT");
    for touched in [false, true] {
        let area = mirror_with(&space, 0, LEN, PROT_READ);
        if touched {
            area.get(0, LEN);
        }
        area.protect(0, LEN, RW).expect("mprotect");
        for at in [0, PAGE + 1, LEN - 1] {
            assert_eq!(area.store(at, 0), Err(Fault::denied(at)));
            assert_eq!(area.load(at), Ok(b'm'));
            assert_eq!(area.store(at, 0), Err(Fault::denied(at)));
        }
        area.protect(0, LEN, PROT_READ).expect("mprotect");
        area.protect(0, LEN, RW).expect("mprotect");
        assert_eq!(area.store(0, 0), Err(Fault::denied(0)));
        assert!(space.get(0, LEN).iter().all(|byte| *byte == b'm'));
    }
}
