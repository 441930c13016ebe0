// SPDX-License-Identifier: GPL-2.0

//! The prot of a view: a ceiling on what is read and written through it, whichever way, and on
//! nothing else.

use asfd::sys::*;
use libc::{PROT_EXEC, PROT_NONE, PROT_READ, PROT_WRITE};
use nix::fcntl::{fcntl, FcntlArg, OFlag};

use crate::support::files;
use crate::support::guest::{plain_code, window, word, Exit, Vm};
use crate::support::mapped::Mapped;
use crate::support::rights::{spelled_prot, View, ALL_RIGHTS, RW};
use crate::support::snapshot::unchanged;
use crate::support::{Errno, Map, Result, Space, PAGE};

crate::suite![
    bytes,
    bytes_of_any_mapping,
    mirrors,
    mirrors_changed_later,
    windows,
    window_flags,
    a_guest_behind_a_reading_view,
    mappings_are_not_limited,
    file_mode,
];

const CEILINGS: [i32; 4] = [PROT_NONE, PROT_READ, PROT_WRITE, RW];
const LEN: u64 = 8 * PAGE;
const BASE: u64 = 16 * PAGE;

/// Pages a to h at `BASE`.
fn scenery() -> Space {
    let space = Space::new();
    space.must_map(Map::file(&files::numbered(8, b'a'), BASE, LEN));
    space
}

fn under(space: &Space, prot: i32) -> Space {
    space.must_view(View::of(BASE, LEN).prot(prot))
}

/// `Ok` if the ceiling has all of `needed`.
fn within(ceiling: i32, needed: i32) -> Result<()> {
    if needed & !ceiling == 0 {
        Ok(())
    } else {
        Err(Errno::EACCES)
    }
}

/// What a mapping with `prot` asks for: one that can be written can be read.
fn asks_for(prot: i32) -> i32 {
    if prot & PROT_WRITE != 0 {
        prot | PROT_READ
    } else {
        prot
    }
}

fn bytes() {
    let space = scenery();
    for ceiling in CEILINGS {
        let (view, name) = (under(&space, ceiling), spelled_prot(ceiling));
        assert_eq!(view.info().prot, ceiling as u32);
        assert_eq!(view.field("as_prot"), name);
        for len in [1, PAGE as usize, LEN as usize] {
            let mut buffer = vec![0; len];
            let read = unchanged(&space, || view.read_at(0, &mut buffer));
            let expected = within(ceiling, PROT_READ).map(|()| len);
            assert_eq!(read, expected, "{name}: pread of {len}");
            let original = space.get(BASE, len as u64);
            if read.is_ok() {
                assert_eq!(buffer, original);
            } else {
                assert!(buffer.iter().all(|byte| *byte == 0), "{name}");
            }
            let written = unchanged(&space, || view.write_at(0, &vec![b'w'; len]));
            let expected = within(ceiling, PROT_WRITE).map(|()| len);
            assert_eq!(written, expected, "{name}: pwrite of {len}");
            let now = if written.is_ok() { b'w' } else { b'a' };
            assert_eq!(space.byte(BASE), now);
            space.put(BASE, &original);
        }
        // Holes are no way round, nor are positions and vectors.
        let (mut first, mut second) = ([0], [0]);
        let mut vector = [&mut first, &mut second].map(|b| std::io::IoSliceMut::new(b));
        let expected = within(ceiling, PROT_READ).map(|()| 2);
        assert_eq!(view.readv_at(PAGE, &mut vector), expected, "{name}");
        let plain = nix::unistd::read(&view, &mut [0]);
        assert_eq!(plain, within(ceiling, PROT_READ).map(|()| 1), "{name}");
        let plain = nix::unistd::write(&view, b"a");
        assert_eq!(plain, within(ceiling, PROT_WRITE).map(|()| 1), "{name}");
    }
}

/// What can be done is what both the ceiling and the mapping permit.
fn bytes_of_any_mapping() {
    for prot in [PROT_NONE, PROT_READ, PROT_WRITE, RW] {
        let space = Space::new();
        space.must_map(Map::anon(BASE, LEN).prot(prot));
        for ceiling in CEILINGS {
            let view = under(&space, ceiling);
            let what = format!("{} over {}", spelled_prot(ceiling), spelled_prot(prot));
            let read = within(ceiling & prot, PROT_READ).map(|()| 1);
            // What can be written is a mapping that x86 can read, but nobody asks for that here.
            assert_eq!(view.read_at(PAGE, &mut [0]), read, "{what}");
            let written = within(ceiling & prot, PROT_WRITE).map(|()| 1);
            assert_eq!(view.write_at(PAGE, b"w"), written, "{what}");
        }
    }
}

fn mirrors() {
    let space = scenery();
    for ceiling in CEILINGS {
        let view = under(&space, ceiling);
        for prot in CEILINGS {
            let what = format!("{} under {}", spelled_prot(prot), spelled_prot(ceiling));
            let mirror = unchanged(&space, || Mapped::new(&view, PAGE, PAGE, prot).map(Some));
            let expected = within(ceiling, asks_for(prot));
            match (mirror, expected) {
                (Ok(Some(mirror)), Ok(())) if prot & PROT_READ != 0 => {
                    assert_eq!(mirror.get(0, 1), Ok(vec![b'b']), "{what}");
                }
                (mirror, expected) => assert_eq!(mirror.map(drop), expected, "{what}"),
            }
            assert_eq!(
                Mapped::new(&view, PAGE, PAGE, prot | PROT_EXEC).err(),
                Some(Errno::EPERM),
                "{what}, executable"
            );
        }
        assert_eq!(space.info().mirrors, 0);
    }
}

/// mprotect(2) of a mirror goes as far as the view it was made from allowed, and no further.
fn mirrors_changed_later() {
    let space = scenery();
    for ceiling in CEILINGS {
        for first in CEILINGS {
            if within(ceiling, asks_for(first)).is_err() {
                continue;
            }
            for then in CEILINGS {
                let view = under(&space, ceiling);
                let mirror = Mapped::new(&view, PAGE, PAGE, first).expect("a mirror");
                // The ceiling is the mirror's own by now.
                drop(view);
                let what = format!(
                    "{} to {} under {}",
                    spelled_prot(first),
                    spelled_prot(then),
                    spelled_prot(ceiling)
                );
                let expected = within(ceiling, asks_for(then));
                assert_eq!(mirror.protect(then), expected, "{what}");
                let now = if expected.is_ok() { then } else { first };
                let read = mirror.get(0, 1);
                if now & PROT_READ != 0 {
                    assert_eq!(read, Ok(vec![b'b']), "{what}");
                } else if now == PROT_NONE {
                    assert_eq!(read, Err(Errno::EFAULT), "{what}");
                }
                assert_eq!(mirror.protect(PROT_READ | PROT_EXEC), Err(Errno::EACCES));
            }
        }
    }
}

fn windows() {
    let (space, vm) = (scenery(), Vm::new());
    for ceiling in CEILINGS {
        let view = under(&space, ceiling);
        for flags in [
            0,
            KVM_MEM_LOG_DIRTY_PAGES,
            KVM_MEM_HOLE_EXIT,
            KVM_MEM_READONLY,
            KVM_MEM_READONLY | KVM_MEM_HOLE_EXIT,
        ] {
            let mut window = window(1, 0, 4 * PAGE, &view, PAGE);
            window.flags = flags;
            let needed = if flags & KVM_MEM_READONLY != 0 {
                PROT_READ
            } else {
                RW
            };
            let answer = unchanged(&space, || vm.map(window));
            let what = format!("flags {flags:#x} under {}", spelled_prot(ceiling));
            assert_eq!(answer, within(ceiling, needed), "{what}");
            let made = u64::from(answer.is_ok());
            assert_eq!(space.info().windows, made, "{what}");
            if made == 1 {
                vm.unmap_slot(1).expect("delete");
            }
        }
    }
}

/// A slot that was made through one descriptor and is changed through another.
fn window_flags() {
    let (space, vm) = (scenery(), Vm::new());
    let reading = under(&space, PROT_READ);
    let full = |flags| kvm_map_address_space {
        flags,
        ..window(1, 0, LEN, &space, BASE)
    };
    let narrow = |flags| kvm_map_address_space {
        flags,
        ..window(1, 0, LEN, &reading, 0)
    };
    vm.must_map(full(0));
    for flags in [0, KVM_MEM_LOG_DIRTY_PAGES] {
        assert_eq!(vm.map(narrow(flags)), Err(Errno::EACCES), "{flags:#x}");
    }
    assert!(vm.map(narrow(KVM_MEM_READONLY)).is_err(), "read-only later");
    vm.unmap_slot(1).expect("delete");
    vm.must_map(narrow(KVM_MEM_READONLY));
    assert!(vm.map(full(0)).is_err(), "writable later");
    assert_eq!(vm.map(narrow(0)), Err(Errno::EACCES), "writable later");
    vm.must_map(full(KVM_MEM_READONLY));
}

fn a_guest_behind_a_reading_view() {
    let (space, vm) = (scenery(), Vm::new());
    let _code = plain_code(&vm);
    let gpa = 1 << 20;
    let mut through = window(1, gpa, 4 * PAGE, &under(&space, PROT_READ), PAGE);
    // The descriptor need not stay open, as the space does.
    let view = under(&space, PROT_READ);
    through.asfd = std::os::fd::AsRawFd::as_raw_fd(&view);
    through.flags = KVM_MEM_READONLY;
    vm.must_map(through);
    drop(view);
    let mut vcpu = vm.vcpu(0);
    for page in 0..4 {
        let at = gpa + page * PAGE;
        let letter = b'b' + page as u8;
        assert_eq!(vcpu.load(at), Exit::Done(word(letter)), "page {page}");
        assert_eq!(vcpu.store(at, 7), Exit::store_to_hole(at, 7));
        assert_eq!(vcpu.load(at), Exit::Done(word(letter)), "page {page}");
        assert_eq!(space.byte(BASE + (page + 1) * PAGE), letter);
    }
    let behind = gpa + 4 * PAGE;
    assert_eq!(vcpu.load(behind), Exit::load_of_hole(behind));
}

/// A daemon fills a guest's memory that it can neither read nor write.
fn mappings_are_not_limited() {
    let space = scenery();
    let secret = files::numbered(4, b's');
    for ceiling in CEILINGS {
        let rights = ALL_RIGHTS & !ADDRESS_SPACE_RIGHT_KVM;
        let daemon = space.must_view(View::of(BASE, LEN).prot(ceiling).rights(rights));
        for prot in CEILINGS {
            daemon.must_map(Map::file(&secret, 0, PAGE).prot(prot).replace());
            let made = space.query(BASE, 0).expect("a mapping");
            assert_eq!((made.start, made.prot), (BASE, prot));
            daemon.must_protect(0, PAGE, RW);
            assert_eq!(space.query(BASE, 0).map(|m| m.prot), Ok(RW));
            space.put(BASE, b"s");
            for advice in [libc::MADV_POPULATE_READ, libc::MADV_POPULATE_WRITE] {
                daemon.must_advise(0, PAGE, advice);
            }
        }
        let read = daemon.read_at(0, &mut [0]).map(drop);
        assert_eq!(read, within(ceiling, PROT_READ));
        // Removing is writing zeros into the file.
        let removed = unchanged(&space, || daemon.advise(0, PAGE, libc::MADV_REMOVE));
        assert_eq!(removed, within(ceiling, PROT_WRITE), "REMOVE");
        let now = if removed.is_ok() { 0 } else { b's' };
        assert_eq!(space.byte(BASE), now);
        files::number(&secret, 4, b's');
    }
}

/// Programs look at the mode of a descriptor; it is the same for all, as what counts is the
/// ceiling and that answers EACCES, not EBADF.
fn file_mode() {
    let space = scenery();
    for ceiling in CEILINGS {
        let view = under(&space, ceiling);
        let mode = fcntl(&view, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
        let mode = mode.expect("F_GETFL") & OFlag::O_ACCMODE;
        assert_eq!(mode, OFlag::O_RDWR, "{}", spelled_prot(ceiling));
        // Nor does changing the flags of the file change the ceiling.
        let _ = fcntl(&view, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK));
        let read = view.read_at(0, &mut [0]).map(drop);
        assert_eq!(read, within(ceiling, PROT_READ));
    }
}
