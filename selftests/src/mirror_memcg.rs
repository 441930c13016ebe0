// SPDX-License-Identifier: GPL-2.0

//! Memory that comes into being through a mirror is the creator's, not that of the process that
//! has the mirror; its limit is an error for whoever meets it, and nobody's death.

use libc::{MADV_POPULATE_WRITE, MAP_NORESERVE};

use crate::note;
use crate::support::cgroup::{assert_near, Bystander, Cgroup};
use crate::support::files;
use crate::support::mirror::mirror;
use crate::support::probe::Fault;
use crate::support::process::Child;
use crate::support::system::eventually;
use crate::support::{Errno, Map, Space, HUGE, PAGE};

crate::suite![
    charged_to_the_creator,
    by_system_calls_too,
    page_tables_are_charged,
    own_page_tables_are_ones_own,
    limit_is_a_signal,
    limit_is_an_error_of_system_calls,
    mirror_of_a_removed_cgroup,
];

const MIB: u64 = 1 << 20;

/// Runs `body` in a process of a cgroup with little memory; nobody may be killed for it.
fn in_poor(body: impl FnOnce()) {
    let poor = Cgroup::new("poor");
    poor.set("memory.max", "8M");
    Child::spawn(|| {
        poor.enter();
        body();
    })
    .succeed();
    assert_eq!(poor.event("oom_kill"), 0);
}

fn charged_to_the_creator() {
    let memfd = files::memfd(16 * MIB);
    for (name, map) in [
        ("private memory", Map::anon(0, 16 * MIB)),
        ("shared memory", Map::anon(0, 16 * MIB).shared()),
        ("memfd", Map::file(&memfd, 0, 16 * MIB)),
    ] {
        let rich = Cgroup::new("rich");
        let space = rich.create_space();
        space.must_map(map);
        in_poor(|| {
            let area = mirror(&space, 0, 16 * MIB);
            for at in (0..16 * MIB).step_by(PAGE as usize) {
                assert_eq!(area.store(at, 1), Ok(()), "{name}");
            }
        });
        note!("{name}: {} bytes charged", rich.charged());
        assert_near(rich.charged(), 16 * MIB);
        space.unmap(0, 16 * MIB).expect("unmap");
        if map.0.fd == -1 {
            eventually("it is uncharged", || rich.charged() < 4 * MIB);
        }
    }
}

/// Who asks for the memory in the middle of a system call, or ahead of time.
fn by_system_calls_too() {
    let rich = Cgroup::new("rich");
    let space = rich.create_space();
    space.must_map(Map::anon(0, 48 * MIB).with(MAP_NORESERVE));
    let source = files::memfd(16 * MIB);
    in_poor(|| {
        let area = mirror(&space, 0, 48 * MIB);
        assert_eq!(area.read_from(0, &source, 16 * MIB), Ok(16 * MIB));
        let ahead = area.advise(16 * MIB, 16 * MIB, MADV_POPULATE_WRITE);
        ahead.expect("POPULATE_WRITE");
        // A peer that writes into this process.
        let writer = Child::spawn(|| {
            let bytes = vec![7; MIB as usize];
            for at in (32 * MIB..48 * MIB).step_by(MIB as usize) {
                let local = [std::io::IoSlice::new(&bytes)];
                let remote = [nix::sys::uio::RemoteIoVec {
                    base: area.addr() as usize + at as usize,
                    len: bytes.len(),
                }];
                let pid = nix::unistd::getppid();
                let written = nix::sys::uio::process_vm_writev(pid, &local, &remote);
                assert_eq!(written, Ok(bytes.len()));
            }
        });
        writer.succeed();
    });
    assert_eq!(space.info().resident_bytes, 48 * MIB);
    // The source's pages were not there before it was read, and are not the space's.
    assert_near(rich.charged(), 48 * MIB);
}

/// A page in each 2 MiB has a page table of its own.
fn page_tables_are_charged() {
    let rich = Cgroup::new("rich");
    let space = rich.create_space();
    const COUNT: u64 = 1024;
    space.must_map(Map::anon(0, COUNT * HUGE).with(MAP_NORESERVE));
    let before = rich.charged();
    let child = Child::spawn(|| {
        let area = mirror(&space, 0, COUNT * HUGE);
        for n in 0..COUNT {
            assert_eq!(area.store(n * HUGE, 1), Ok(()));
        }
    });
    child.succeed();
    let charged = rich.charged() - before;
    let both = 2 * COUNT * PAGE;
    note!("{charged} bytes charged");
    assert!(
        (both * 9 / 10..both * 13 / 10).contains(&charged),
        "{charged}"
    );
}

/// The mirror's page tables are those of the process that has it.
fn own_page_tables_are_ones_own() {
    let (rich, other) = (Cgroup::new("rich"), Cgroup::new("other"));
    let space = rich.create_space();
    const COUNT: u64 = 1024;
    space.must_map(Map::anon(0, COUNT * HUGE).with(MAP_NORESERVE));
    for n in 0..COUNT {
        space.put(n * HUGE, &[1]);
    }
    let before = rich.charged();
    let child = Child::spawn(|| {
        other.enter();
        let area = mirror(&space, 0, COUNT * HUGE);
        assert_eq!(area.load(0), Ok(1));
        let own = other.charged();
        for n in 0..COUNT {
            assert_eq!(area.load(n * HUGE), Ok(1));
        }
        let charged = other.charged() - own;
        assert!(charged >= COUNT * PAGE * 9 / 10, "{charged} bytes");
    });
    child.succeed();
    assert!(rich.charged() < before + MIB);
}

fn limit_is_a_signal() {
    for shared in [false, true] {
        let cgroup = Cgroup::new("limit");
        let space = cgroup.create_space();
        cgroup.set("memory.max", "16M");
        let bystander = Bystander::in_cgroup(&cgroup);
        let map = |addr, len, shared| {
            let map = Map::anon(addr, len).with(MAP_NORESERVE);
            space.must_map(if shared { map.shared() } else { map })
        };
        // Two mappings: to unmap one of them takes no memory.
        map(0, 4 * MIB, !shared);
        map(4 * MIB, 60 * MIB, shared);
        let area = mirror(&space, 0, 64 * MIB);
        let mut pages = (0..64 * MIB).step_by(PAGE as usize);
        let stopped = pages.find_map(|at| Some((at + 5, area.store(at + 5, b't').err()?)));
        let (reached, fault) = stopped.expect("more than the limit");
        assert_eq!(fault, Fault::hole(reached));
        assert!((8 * MIB..=16 * MIB).contains(&reached), "{reached}");
        assert!(cgroup.charged() <= 16 * MIB);
        // Again and again, for as long as it is so.
        for _ in 0..20 {
            assert_eq!(area.store(reached, 1), Err(Fault::hole(reached)));
        }
        // What is there can be used, and what is given back can be had again.
        assert_eq!(area.load(5), Ok(b't'));
        space.unmap(0, 4 * MIB).expect("unmap");
        map(0, 4 * MIB, !shared);
        for at in (0..2 * MIB).step_by(PAGE as usize) {
            assert_eq!(area.store(at, 2), Ok(()), "there is room again");
        }
        bystander.must_live();
    }
}

fn limit_is_an_error_of_system_calls() {
    let cgroup = Cgroup::new("limit");
    let space = cgroup.create_space();
    cgroup.set("memory.max", "16M");
    let bystander = Bystander::in_cgroup(&cgroup);
    space.must_map(Map::anon(0, 64 * MIB).with(MAP_NORESERVE));
    let area = mirror(&space, 0, 64 * MIB);
    let source = files::memfd(64 * MIB);
    // The source's pages are ours: nobody's limit.
    let mut reached = 0;
    let refused = loop {
        match area.read_from(reached, &source, 64 * MIB - reached) {
            Ok(0) => panic!("all of it came"),
            Ok(len) => reached += len,
            Err(e) => break e,
        }
    };
    assert_eq!(refused, Errno::EFAULT, "at {reached}");
    assert!((8 * MIB..=16 * MIB).contains(&reached), "{reached}");
    let ahead = area.advise(reached, 32 * MIB, MADV_POPULATE_WRITE);
    assert!(ahead.is_err(), "{ahead:?}");
    assert_eq!(area.load(0), Ok(0));
    bystander.must_live();
}

/// The creator's cgroup and the creator are gone, and so are the descriptors.
fn mirror_of_a_removed_cgroup() {
    let parent = Cgroup::new("parent");
    let child = parent.child("child");
    let space: Space = child.create_space();
    space.must_map(Map::anon(0, 16 * MIB));
    let area = mirror(&space, 0, 16 * MIB);
    drop(space);
    child.remove();
    for at in (0..16 * MIB).step_by(PAGE as usize) {
        assert_eq!(area.store(at, 1), Ok(()));
    }
    assert_near(parent.charged(), 16 * MIB);
    drop(area);
    eventually("all is uncharged", || parent.charged() < 4 * MIB);
}
