// SPDX-License-Identifier: GPL-2.0

//! Whose memory it is: that of the cgroup in which the space was created, whoever touches it
//! and whatever became of the creator.

use std::thread::scope;

use libc::{MAP_NORESERVE, MAP_POPULATE};

use crate::support::cgroup::{assert_near, Bystander, Cgroup};
use crate::support::files;
use crate::support::guest::{place_code, window, Exit, Vm};
use crate::support::process::Child;
use crate::support::system::eventually;
use crate::support::{Errno, Map, Space, PAGE};

crate::suite![
    charged_to_the_creator,
    files_too,
    a_guest_too,
    not_to_whoever_writes,
    stays_when_the_creator_moves,
    limit_holds,
    limit_holds_for_populate,
    limit_holds_for_a_guest,
    removed_cgroup,
    creators_that_exited,
];

const MIB: u64 = 1 << 20;

/// Writes a byte to each page of the range, and says how far it came.
fn touch(space: &Space, start: u64, len: u64) -> Result<(), (u64, Errno)> {
    for addr in (start..start + len).step_by(PAGE as usize) {
        space.write_at(addr, b"t").map_err(|e| (addr - start, e))?;
    }
    Ok(())
}

fn charged_to_the_creator() {
    let cgroup = Cgroup::new("creator");
    let space = cgroup.create_space();
    space.must_map(Map::anon(0, 64 * MIB).with(MAP_NORESERVE));
    assert_near(cgroup.charged(), 0);
    touch(&space, 0, 16 * MIB).expect("pwrite");
    assert_near(cgroup.charged(), 16 * MIB);
    space.must_map(Map::anon(64 * MIB, 16 * MIB).with(MAP_POPULATE));
    assert_near(cgroup.charged(), 32 * MIB);
    space.unmap(0, 64 * MIB).expect("unmap");
    eventually("unmapped memory is uncharged", || {
        cgroup.charged() < 20 * MIB
    });
    drop(space);
    eventually("all is uncharged", || cgroup.charged() < 4 * MIB);
}

/// Pages of a memfd that come into being through the space, as for a process that maps it.
fn files_too() {
    let cgroup = Cgroup::new("files");
    let space = cgroup.create_space();
    let file = files::memfd(16 * MIB);
    space.must_map(Map::file(&file, 0, 16 * MIB));
    touch(&space, 0, 8 * MIB).expect("pwrite");
    assert_near(cgroup.charged(), 8 * MIB);
    let shared = Map::anon(16 * MIB, 8 * MIB).shared().with(MAP_POPULATE);
    space.must_map(shared);
    assert_near(cgroup.charged(), 16 * MIB);
}

fn a_guest_too() {
    let cgroup = Cgroup::new("guest");
    let space = cgroup.create_space();
    place_code(&space, 0);
    space.must_map(Map::anon(MIB, 16 * MIB));
    let vm = Vm::new();
    vm.must_map(window(0, 0, 32 * MIB, &space, 0));
    let mut vcpu = vm.vcpu(0);
    for addr in (MIB..9 * MIB).step_by(PAGE as usize) {
        assert_eq!(vcpu.store(addr, 1), Exit::Done(1), "at {addr:#x}");
    }
    assert_near(cgroup.charged(), 8 * MIB);
}

/// A process with little memory of its own fills the space of one with much.
fn not_to_whoever_writes() {
    let (rich, poor) = (Cgroup::new("rich"), Cgroup::new("poor"));
    let space = rich.create_space();
    space.must_map(Map::anon(0, 32 * MIB));
    poor.set("memory.max", "8M");
    let writer = Child::spawn(|| {
        poor.enter();
        touch(&space, 0, 32 * MIB).expect("pwrite");
    });
    writer.succeed();
    assert_near(rich.charged(), 32 * MIB);
    assert_eq!(poor.event("oom_kill"), 0);
}

fn stays_when_the_creator_moves() {
    let (first, second) = (Cgroup::new("first"), Cgroup::new("second"));
    let child = Child::spawn(|| {
        first.enter();
        let space = Space::new();
        second.enter();
        space.must_map(Map::anon(0, 16 * MIB));
        touch(&space, 0, 16 * MIB).expect("pwrite");
        assert_near(first.charged(), 16 * MIB);
        assert!(second.charged() < 8 * MIB);
        Cgroup::leave();
    });
    child.succeed();
}

fn limit_holds() {
    let cgroup = Cgroup::new("limit");
    let space = cgroup.create_space();
    cgroup.set("memory.max", "16M");
    let bystander = Bystander::in_cgroup(&cgroup);
    // Two mappings: to unmap one of them takes no memory.
    space.must_map(Map::anon(0, 4 * MIB));
    space.must_map(Map::anon(4 * MIB, 60 * MIB).shared().with(MAP_NORESERVE));
    let (reached, refused) = touch(&space, 0, 64 * MIB).expect_err("more than the limit");
    assert_eq!(refused, Errno::ENOMEM, "at {reached}");
    assert!((8 * MIB..=16 * MIB).contains(&reached), "{reached}");
    assert!(cgroup.charged() <= 16 * MIB);
    // One call that crosses the limit is short, or fails.
    let short = space.write_at(reached - 4 * PAGE, &[7; 64 * PAGE as usize]);
    assert!(
        matches!(short, Ok(16384..=262143) | Err(Errno::ENOMEM)),
        "{short:?}"
    );
    // What is there can be used, and what is given back can be had again.
    assert_eq!(space.byte(0), b't');
    space.unmap(0, 4 * MIB).expect("unmap");
    space.must_map(Map::anon(0, 4 * MIB));
    touch(&space, 0, 2 * MIB).expect("there is room again");
    bystander.must_live();
}

fn limit_holds_for_populate() {
    let cgroup = Cgroup::new("populate");
    let space = cgroup.create_space();
    cgroup.set("memory.max", "16M");
    let bystander = Bystander::in_cgroup(&cgroup);
    // As in mmap(2) the mapping is made, and populated as far as it goes.
    assert_eq!(
        space.map(Map::anon(0, 64 * MIB).with(MAP_POPULATE | MAP_NORESERVE)),
        Ok(0)
    );
    let resident = space.info().resident_bytes;
    assert!((4 * MIB..=16 * MIB).contains(&resident), "{resident}");
    assert!(cgroup.charged() <= 16 * MIB);
    bystander.must_live();
}

fn limit_holds_for_a_guest() {
    let cgroup = Cgroup::new("kvm-limit");
    let space = cgroup.create_space();
    place_code(&space, 0);
    space.must_map(Map::anon(MIB, 63 * MIB).with(MAP_NORESERVE));
    cgroup.set("memory.max", "16M");
    let bystander = Bystander::in_cgroup(&cgroup);
    let vm = Vm::new();
    vm.must_map(window(0, 0, 64 * MIB, &space, 0));
    let mut vcpu = vm.vcpu(0);
    let mut pages = (MIB..64 * MIB).step_by(PAGE as usize);
    let stopped = pages.find_map(|addr| match vcpu.store(addr, 1) {
        Exit::Done(_) => None,
        exit => Some((addr, exit)),
    });
    let (addr, exit) = stopped.expect("more than the limit");
    assert!(exit.is_fault_at(addr), "{exit:?} at {addr:#x}");
    assert!((8 * MIB..=17 * MIB).contains(&addr), "{addr:#x}");
    assert!(cgroup.charged() <= 16 * MIB);
    bystander.must_live();
}

/// The creator's cgroup is removed: its memory counts for the ancestors from then on.
fn removed_cgroup() {
    let parent = Cgroup::new("parent");
    let child = parent.child("child");
    let space = child.create_space();
    space.must_map(Map::anon(0, 64 * MIB).with(MAP_NORESERVE));
    touch(&space, 0, 8 * MIB).expect("pwrite");
    assert_near(child.charged(), 8 * MIB);
    child.remove();
    assert!(!child.exists());
    touch(&space, 8 * MIB, 8 * MIB).expect("pwrite");
    assert_near(parent.charged(), 16 * MIB);
    parent.set("memory.max", "24M");
    let (reached, refused) = touch(&space, 16 * MIB, 48 * MIB).expect_err("the parent's limit");
    assert_eq!(refused, Errno::ENOMEM, "at {reached}");
    assert!(reached < 9 * MIB, "{reached}");
    drop(space);
    eventually("all is uncharged", || parent.charged() < 4 * MIB);
}

/// Faults on spaces whose creators are gone and whose memory serves others: KASAN sees a use
/// after free.
fn creators_that_exited() {
    for _ in 0..4 {
        let cgroup = Cgroup::new("gone");
        let spaces: Vec<Space> = (0..8).map(|_| cgroup.create_space()).collect();
        cgroup.remove();
        // New tasks in the memory of the old ones.
        (0..16).for_each(|_| Child::spawn(|| ()).succeed());
        scope(|scope| {
            for half in spaces.chunks(4) {
                scope.spawn(move || {
                    for space in half {
                        space.must_map(Map::anon(0, MIB));
                        space.must_map(Map::file(&files::memfd(MIB), MIB, MIB));
                        touch(space, 0, 2 * MIB).expect("pwrite");
                    }
                });
            }
        });
    }
}
