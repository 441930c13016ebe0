// SPDX-License-Identifier: GPL-2.0

//! Which right each call needs and which seals shut it: one table, walked with every set of
//! rights and every set of seals.

use std::fs::File;

use asfd::sys::*;
use libc::{MADV_DONTNEED, MADV_POPULATE_READ, PROT_NONE, PROT_READ};
use nix::unistd::Whence;

use crate::note;
use crate::support::files;
use crate::support::guest::{window, Vm};
use crate::support::mapped::Mapped;
use crate::support::rights::{spelled, View, ALL_RIGHTS, ALL_SEALS, RIGHTS, RW, SEALS};
use crate::support::snapshot::{unchanged, Snapshot};
use crate::support::{Errno, Map, Result, Space, PAGE};

crate::suite![
    every_set_of_rights(300),
    every_set_of_seals(300),
    seals_add_up,
    seals_are_the_space_s,
    seals_leave_the_bytes,
];

/// Where the scenery begins in the space, and every view's window with it.
const BASE: u64 = 32 * PAGE;
const WINDOW: u64 = 64 * PAGE;

/// A descriptor in front of a door.
struct Visitor<'a> {
    fd: &'a Space,
    /// Where its offset 0 lies in the space.
    start: u64,
    file: &'a File,
    vm: &'a Vm,
}

impl Visitor<'_> {
    /// Page `page` of the scenery as this descriptor counts.
    fn at(&self, page: u64) -> u64 {
        BASE + page * PAGE - self.start
    }
}

struct Door {
    name: &'static str,
    /// All of these are needed.
    rights: u32,
    /// Any of these shuts it.
    seals: u32,
    /// Must succeed when the door is open.
    pass: fn(&Visitor) -> Result<()>,
}

const MAP: u32 = ADDRESS_SPACE_RIGHT_MAP;
const UNMAP: u32 = ADDRESS_SPACE_RIGHT_UNMAP;
const CHANGE: u32 = ADDRESS_SPACE_RIGHT_CHANGE;
const QUERY: u32 = ADDRESS_SPACE_RIGHT_QUERY;
const SEAL_MAP: u32 = ADDRESS_SPACE_SEAL_MAP;
const SEAL_UNMAP: u32 = ADDRESS_SPACE_SEAL_UNMAP;
const SEAL_CHANGE: u32 = ADDRESS_SPACE_SEAL_CHANGE;
const SEAL_SEAL: u32 = ADDRESS_SPACE_SEAL_SEAL;

const fn door(
    name: &'static str,
    rights: u32,
    seals: u32,
    pass: fn(&Visitor) -> Result<()>,
) -> Door {
    Door {
        name,
        rights,
        seals,
        pass,
    }
}

const DOORS: &[Door] = &[
    door("mmap by hint", MAP, SEAL_MAP, |v| {
        v.fd.map(Map::anon(v.at(0), PAGE).hint()).map(drop)
    }),
    door("mmap of a file by hint", MAP, SEAL_MAP, |v| {
        v.fd.map(Map::file(v.file, v.at(0), PAGE).hint()).map(drop)
    }),
    door("mmap MAP_FIXED in a hole", MAP, SEAL_MAP, |v| {
        v.fd.map(Map::file(v.file, v.at(12), PAGE).replace())
            .map(drop)
    }),
    door("mmap MAP_FIXED_NOREPLACE", MAP, SEAL_MAP, |v| {
        v.fd.map(Map::anon(v.at(12), PAGE)).map(drop)
    }),
    door(
        "mmap MAP_FIXED over a mapping",
        MAP | UNMAP,
        SEAL_MAP | SEAL_UNMAP,
        |v| v.fd.map(Map::anon(v.at(1), PAGE).replace()).map(drop),
    ),
    door(
        "mmap MAP_FIXED over a hole and a mapping",
        MAP | UNMAP,
        SEAL_MAP | SEAL_UNMAP,
        |v| {
            let map = Map::file(v.file, v.at(11), 2 * PAGE).replace();
            v.fd.map(map).map(drop)
        },
    ),
    door("munmap", UNMAP, SEAL_UNMAP, |v| v.fd.unmap(v.at(1), PAGE)),
    door("munmap of a hole", UNMAP, SEAL_UNMAP, |v| {
        v.fd.unmap(v.at(12), PAGE)
    }),
    door("PROTECT", CHANGE, SEAL_CHANGE, |v| {
        v.fd.protect(v.at(1), PAGE, PROT_READ)
    }),
    door("PROTECT to what it is", CHANGE, SEAL_CHANGE, |v| {
        v.fd.protect(v.at(1), PAGE, RW)
    }),
    door("ADVISE DONTNEED", CHANGE, SEAL_CHANGE, |v| {
        v.fd.advise(v.at(8), PAGE, MADV_DONTNEED)
    }),
    door("ADVISE POPULATE_READ", CHANGE, SEAL_CHANGE, |v| {
        v.fd.advise(v.at(8), PAGE, MADV_POPULATE_READ)
    }),
    door("SEAL", ADDRESS_SPACE_RIGHT_SEAL, SEAL_SEAL, |v| {
        v.fd.seal(SEAL_CHANGE)
    }),
    door("VIEW", ADDRESS_SPACE_RIGHT_VIEW, 0, |v| {
        let least = View::of(v.at(0), PAGE).rights(0).prot(PROT_NONE);
        v.fd.view(least).map(drop)
    }),
    door("PROCMAP_QUERY", QUERY, 0, |v| {
        v.fd.query(v.at(0), 0).map(drop)
    }),
    door("SEEK_DATA", QUERY, 0, |v| {
        v.fd.seek(v.at(0), Whence::SeekData).map(drop)
    }),
    door("SEEK_HOLE", QUERY, 0, |v| {
        v.fd.seek(v.at(0), Whence::SeekHole).map(drop)
    }),
    // Without the right the lines are missing, which has no errno.
    door("mappings in fdinfo", QUERY, 0, |v| {
        match v.fd.map_lines().len() {
            0 => Err(Errno::EPERM),
            lines => {
                assert_eq!(lines, 2);
                Ok(())
            }
        }
    }),
    door("KVM_MAP_ADDRESS_SPACE", ADDRESS_SPACE_RIGHT_KVM, 0, |v| {
        v.vm.map(window(1, 0, PAGE, v.fd, v.at(0)))?;
        v.vm.unmap_slot(1)
    }),
    door("pread", 0, 0, |v| {
        assert_eq!(v.fd.read_at(v.at(1), &mut [0])?, 1);
        assert_eq!(v.fd.byte(v.at(1)), b'b');
        Ok(())
    }),
    door("pwrite", 0, 0, |v| {
        v.fd.write_at(v.at(9), b"w").map(|len| assert_eq!(len, 1))
    }),
    door("a mirror", 0, 0, |v| {
        let mirror = Mapped::new(v.fd, v.at(1), PAGE, RW)?;
        assert_eq!(mirror.get(0, 1), Ok(vec![b'b']));
        Ok(())
    }),
    door("INFO", 0, 0, |v| {
        assert_eq!(v.fd.info().mappings, 2);
        Ok(())
    }),
    door("fdinfo", 0, 0, |v| {
        assert_eq!(v.fd.field("as_mappings"), "2");
        Ok(())
    }),
    door("SEEK_SET and SEEK_END", 0, 0, |v| {
        v.fd.seek(PAGE, Whence::SeekSet)?;
        v.fd.seek(0, Whence::SeekEnd).map(drop)
    }),
];

/// Pages a to h of a file and four anonymous ones from `BASE` on, then a hole.
fn scenery(file: &File) -> Space {
    let space = Space::new();
    space.must_map(Map::file(file, BASE, 8 * PAGE));
    space.must_map(Map::anon(BASE + 8 * PAGE, 4 * PAGE));
    space.put(BASE + 8 * PAGE, &[b'X'; 4 * PAGE as usize]);
    space
}

/// Goes to the door; open or shut, it has to be as `open` says.
#[track_caller]
fn knock(door: &Door, visitor: &Visitor, owner: &Space, open: bool, who: &str) {
    let (answer, expected) = if open {
        ((door.pass)(visitor), Ok(()))
    } else {
        let answer = unchanged(owner, || (door.pass)(visitor));
        (answer, Err(Errno::EPERM))
    };
    assert_eq!(answer, expected, "{}, {who}", door.name);
}

fn every_set_of_rights() {
    let (file, vm) = (files::numbered(8, b'a'), Vm::new());
    for door in DOORS {
        let mut space = scenery(&file);
        for rights in 0..=ALL_RIGHTS {
            let open = rights & door.rights == door.rights;
            let view = space.must_view(View::of(BASE, WINDOW).rights(rights));
            let visitor = Visitor {
                fd: &view,
                start: BASE,
                file: &file,
                vm: &vm,
            };
            knock(door, &visitor, &space, open, &spelled(&RIGHTS, rights));
            if open {
                // What it did must not be in the next one's way.
                space = scenery(&file);
            }
        }
    }
    note!("{} doors", DOORS.len());
}

fn every_set_of_seals() {
    let (file, vm) = (files::numbered(8, b'a'), Vm::new());
    for door in DOORS {
        for seals in 0..=ALL_SEALS {
            for who in ["the owner", "a view made before", "a view made after"] {
                let owner = scenery(&file);
                let view = || owner.must_view(View::of(BASE, WINDOW));
                let before = view();
                owner.seal(seals).expect("SEAL");
                let after = view();
                let (fd, start) = match who {
                    "the owner" => (&owner, 0),
                    "a view made before" => (&before, BASE),
                    _ => (&after, BASE),
                };
                let visitor = Visitor {
                    fd,
                    start,
                    file: &file,
                    vm: &vm,
                };
                let open = seals & door.seals == 0;
                let sealed = spelled(&SEALS, seals);
                knock(
                    door,
                    &visitor,
                    &owner,
                    open,
                    &format!("{who}, sealed {sealed}"),
                );
            }
        }
    }
}

/// Seals are only ever added, until that is sealed as well; every descriptor shows them.
fn seals_add_up() {
    for first in 0..=ALL_SEALS {
        for second in 0..=ALL_SEALS {
            let owner = Space::new();
            let early = owner.must_view(View::of(0, PAGE).rights(ADDRESS_SPACE_RIGHT_SEAL));
            owner.seal(first).expect("the first seals");
            let open = first & SEAL_SEAL == 0;
            let expected = if open { Ok(()) } else { Err(Errno::EPERM) };
            assert_eq!(early.seal(second), expected, "{second:#x} on {first:#x}");
            let late = owner.must_view(View::of(0, PAGE).rights(0).prot(PROT_NONE));
            let seals = if open { first | second } else { first };
            for fd in [&owner, &early, &late] {
                assert_eq!(fd.info().seals, seals, "{first:#x}, {second:#x}");
                assert_eq!(fd.field("as_seals"), spelled(&SEALS, seals));
            }
        }
    }
}

/// Not those of another space, nor of the file.
fn seals_are_the_space_s() {
    let file = files::numbered(8, b'a');
    let (sealed, other) = (scenery(&file), scenery(&file));
    sealed.seal(ALL_SEALS).expect("SEAL");
    assert_eq!(other.info().seals, 0);
    other.must_map(Map::anon(0, PAGE));
    other.unmap(BASE, PAGE).expect("unmap");
    other.must_protect(BASE + PAGE, PAGE, PROT_READ);
    let fresh = Space::new();
    assert_eq!(fresh.info().seals, 0);
    fresh.must_map(Map::file(&file, 0, 8 * PAGE));
}

/// A space with every seal still serves its bytes, is shown, and is freed.
fn seals_leave_the_bytes() {
    let (file, vm) = (files::numbered(8, b'a'), Vm::new());
    let space = scenery(&file);
    vm.must_map(window(1, 0, 8 * PAGE, &space, BASE));
    space.seal(ALL_SEALS).expect("SEAL");
    let before = Snapshot::take(&space);
    assert_eq!(space.get(BASE, 1), b"a");
    space.put(BASE, b"A");
    space.put(BASE, b"a");
    vm.must_map(window(2, 1 << 20, 8 * PAGE, &space, BASE));
    vm.unmap_slot(2).expect("delete");
    assert_eq!(before.differs(&Snapshot::take(&space)), None);
    let view = space.must_view(View::of(BASE, WINDOW));
    drop(space);
    assert_eq!(view.info().seals, ALL_SEALS);
    assert_eq!(view.unmap(0, PAGE), Err(Errno::EPERM));
    assert_eq!(view.get(0, 1), b"a");
}
