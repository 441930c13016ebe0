// SPDX-License-Identifier: GPL-2.0

//! The memory of a process that has a mirror, as its debugger and its peers see it.

use libc::{PROT_NONE, PROT_READ, PROT_WRITE};

use crate::support::files;
use crate::support::mirror::{mirror, mirror_with, Area};
use crate::support::remote::Sleeper;
use crate::support::{Errno, Map, Result, Space, HUGE, PAGE};

crate::suite![
    read_by_others,
    written_by_others,
    pages_that_were_never_there,
    holes,
    protected_pages,
    what_becomes_of_it_shows,
];

type Read = fn(&Sleeper, u64, &mut [u8]) -> Result<u64>;
type Write = fn(&Sleeper, u64, &[u8]) -> Result<u64>;

const READS: [(&str, Read); 3] = [
    ("process_vm_readv", Sleeper::read_vm),
    ("/proc/PID/mem", Sleeper::read_mem),
    ("PEEKDATA", |sleeper, addr, buffer| {
        let word = sleeper.peek(addr)?.to_le_bytes();
        buffer[..8].copy_from_slice(&word);
        Ok(8)
    }),
];

const WRITES: [(&str, Write); 3] = [
    ("process_vm_writev", Sleeper::write_vm),
    ("/proc/PID/mem", Sleeper::write_mem),
    ("POKEDATA", |sleeper, addr, bytes| {
        let word = bytes[..8].try_into().expect("8 bytes");
        sleeper.poke(addr, u64::from_le_bytes(word)).map(|()| 8)
    }),
];

fn kinds() -> [(&'static str, Space); 4] {
    let file = files::memfd(8 * PAGE);
    [
        ("private memory", Map::anon(0, 8 * PAGE)),
        ("shared memory", Map::anon(0, 8 * PAGE).shared()),
        ("file", Map::file(&file, 0, 8 * PAGE)),
        ("private file", Map::file(&file, 0, 8 * PAGE).private()),
    ]
    .map(|(name, map)| {
        let space = Space::new();
        space.must_map(map);
        (name, space)
    })
}

fn read_by_others() {
    for (kind, space) in kinds() {
        let area = mirror(&space, 0, 8 * PAGE);
        let sleeper = Sleeper::new();
        for (name, read) in READS {
            for at in [0, PAGE - 4, 5 * PAGE + 7, 8 * PAGE - 8] {
                let word = fastrand::u64(..).to_le_bytes();
                space.put(at, &word);
                let mut found = [0; 8];
                assert_eq!(read(&sleeper, area.addr() + at, &mut found), Ok(8));
                assert_eq!(found, word, "{name} of {kind} at {at:#x}");
            }
        }
        let mut all = vec![0; 8 * PAGE as usize];
        assert_eq!(sleeper.read_vm(area.addr(), &mut all), Ok(8 * PAGE));
        assert_eq!(all, space.get(0, 8 * PAGE), "{kind}");
        assert_eq!(sleeper.read_mem(area.addr(), &mut all), Ok(8 * PAGE));
        assert_eq!(all, space.get(0, 8 * PAGE), "{kind}");
    }
}

fn written_by_others() {
    for (kind, space) in kinds() {
        let area = mirror(&space, 0, 8 * PAGE);
        let sleeper = Sleeper::new();
        for (name, write) in WRITES {
            for at in [0, PAGE - 4, 5 * PAGE + 7, 8 * PAGE - 8] {
                let word = fastrand::u64(..).to_le_bytes();
                assert_eq!(write(&sleeper, area.addr() + at, &word), Ok(8));
                assert_eq!(space.get(at, 8), word, "{name} of {kind} at {at:#x}");
                assert_eq!(area.get(at, 8), word, "{name} of {kind} at {at:#x}");
            }
        }
        let all = vec![b'w'; 8 * PAGE as usize];
        assert_eq!(sleeper.write_vm(area.addr(), &all), Ok(8 * PAGE));
        assert_eq!(all, space.get(0, 8 * PAGE), "{kind}");
    }
}

/// Neither the space nor the process has the page.
fn pages_that_were_never_there() {
    for (name, write) in WRITES {
        for (kind, space) in kinds() {
            let area = mirror(&space, 0, 8 * PAGE);
            let sleeper = Sleeper::new();
            let written = write(&sleeper, area.addr() + 3 * PAGE, b"12345678");
            assert_eq!(written, Ok(8), "{name} of {kind}");
            assert_eq!(area.get(3 * PAGE, 8), b"12345678", "{name} of {kind}");
        }
    }
    for (name, read) in READS {
        for (kind, space) in kinds() {
            let area = mirror(&space, 0, 8 * PAGE);
            let mut found = [9; 8];
            let read = read(&Sleeper::new(), area.addr() + 3 * PAGE, &mut found);
            assert_eq!((read, found), (Ok(8), [0; 8]), "{name} of {kind}");
        }
    }
}

fn holes() {
    let space = Space::new();
    space.must_map(Map::anon(0, 2 * PAGE));
    let area = mirror(&space, 0, 4 * PAGE);
    // Ordinary memory with such a hole.
    let plain = Area::anonymous(4 * PAGE);
    plain.unmap(2 * PAGE, 2 * PAGE).expect("munmap");
    let sleeper = Sleeper::new();
    let bytes = vec![7; PAGE as usize];
    for at in [3 * PAGE, 2 * PAGE, 2 * PAGE - 4, 2 * PAGE - 8, PAGE + 5] {
        for (name, read) in READS {
            let mut buffer = vec![0; PAGE as usize];
            let expected = read(&sleeper, plain.addr() + at, &mut buffer);
            let got = read(&sleeper, area.addr() + at, &mut buffer);
            assert_eq!(got, expected, "{name} at {at:#x}");
        }
        for (name, write) in WRITES {
            let expected = write(&sleeper, plain.addr() + at, &bytes);
            let got = write(&sleeper, area.addr() + at, &bytes);
            assert_eq!(got, expected, "{name} at {at:#x}");
        }
    }
    assert_eq!(space.info().mapped_bytes, 2 * PAGE);
}

/// A debugger writes to read-only memory by copying it. There is no copy of a space's pages: it is
/// refused.
fn protected_pages() {
    let rw = PROT_READ | PROT_WRITE;
    for (mapping, of_mirror) in [(PROT_READ, rw), (rw, PROT_READ), (PROT_READ, PROT_READ)] {
        for (kind, space) in kinds() {
            for touched in [false, true] {
                space.put(0, &[b'p'; 4 * PAGE as usize]);
                space.protect(0, 4 * PAGE, mapping).expect("PROTECT");
                let area = mirror_with(&space, 0, 4 * PAGE, of_mirror);
                if touched {
                    area.get(0, 4 * PAGE);
                }
                let sleeper = Sleeper::new();
                for (name, write) in WRITES {
                    let case = format!("{name} of {kind}, {mapping} through {of_mirror}");
                    let written = write(&sleeper, area.addr() + PAGE, b"12345678");
                    let refused = [Err(Errno::EFAULT), Err(Errno::EIO)];
                    assert!(refused.contains(&written), "{case}: {written:?}");
                    assert_eq!(space.get(PAGE, 8), b"pppppppp", "{case}");
                    assert_eq!(area.get(PAGE, 8), b"pppppppp", "{case}");
                }
                let mut found = [0; 8];
                assert_eq!(sleeper.read_vm(area.addr(), &mut found), Ok(8));
                assert_eq!(sleeper.peek(area.addr()), Ok(0x7070_7070_7070_7070));
                space.protect(0, 4 * PAGE, rw).expect("PROTECT");
            }
        }
    }
    // What may not be read is not read by peers.
    for (kind, space) in kinds() {
        space.protect(0, 4 * PAGE, PROT_NONE).expect("PROTECT");
        let area = mirror(&space, 0, 4 * PAGE);
        let sleeper = Sleeper::new();
        for (name, read) in READS {
            let got = read(&sleeper, area.addr(), &mut [0; 8]);
            let refused = [Err(Errno::EFAULT), Err(Errno::EIO)];
            assert!(refused.contains(&got), "{name} of {kind}: {got:?}");
        }
        for (name, write) in WRITES {
            assert!(
                write(&sleeper, area.addr(), &[1; 8]).is_err(),
                "{name} of {kind}"
            );
        }
        space.protect(0, 4 * PAGE, rw).expect("PROTECT");
        assert_eq!(space.get(0, 8), [0; 8], "{kind}");
    }
}

fn what_becomes_of_it_shows() {
    let space = Space::new();
    let area = mirror(&space, 0, HUGE);
    let sleeper = Sleeper::new();
    for round in 0..20 {
        space.must_map(Map::file(&files::numbered(1, round), 0, PAGE).replace());
        let mut found = [0; 8];
        for (name, read) in READS {
            assert_eq!(read(&sleeper, area.addr(), &mut found), Ok(8), "{name}");
            assert_eq!(found, [round; 8], "{name}");
        }
        space.unmap(0, PAGE).expect("unmap");
        for (name, read) in READS {
            assert!(read(&sleeper, area.addr(), &mut found).is_err(), "{name}");
        }
    }
}
