// SPDX-License-Identifier: GPL-2.0

//! How long a space lives: as long as a file of it is open somewhere, and then not at all.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::Command;

use asfd::sys::ADDRESS_SPACE_CLOEXEC;
use libc::{MAP_HUGETLB, MAP_POPULATE};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::support::files::{self, TempFile};
use crate::support::process::{receive_fd, send_fd, sockets, Child};
use crate::support::system::{counter, eventually, free_huge_pages, need_huge_pages};
use crate::support::{Errno, Map, Space, HUGE, PAGE};

crate::suite![
    close_frees_anonymous_memory,
    close_frees_huge_pages,
    close_lets_go_of_files,
    killed_holder_frees_all,
    dup_keeps_it,
    fork_keeps_it,
    exec_keeps_it_unless_cloexec,
    message_keeps_it,
    message_that_is_lost_frees_it,
    another_process_takes_it,
    cannot_be_opened_again,
    many_spaces,
];

const PAGES: u64 = 8192;

fn memory(name: &str) -> u64 {
    counter("/proc/meminfo", name) * 1024
}

/// Runs `body` with a space of `PAGES` resident anonymous pages and a socket that it is sent
/// over; the memory is there until `body` returns, and soon after no more.
#[track_caller]
fn is_freed_after(body: impl FnOnce(Space)) {
    let before = memory("AnonPages");
    let space = Space::new();
    space.must_map(Map::anon(0, PAGES * PAGE).with(MAP_POPULATE));
    assert!(memory("AnonPages") > before + PAGES * PAGE * 9 / 10);
    body(space);
    eventually("the memory is free", || {
        memory("AnonPages") < before + PAGES * PAGE / 10
    });
}

/// That the pages are still there.
#[track_caller]
fn alive(space: &Space) {
    assert_eq!(space.info().resident_bytes, PAGES * PAGE);
    space.put(5 * PAGE, b"alive");
    assert_eq!(space.get(5 * PAGE, 5), b"alive");
}

fn close_frees_anonymous_memory() {
    is_freed_after(drop);
}

fn close_frees_huge_pages() {
    let _pages = need_huge_pages(4);
    let before = free_huge_pages();
    let space = Space::new();
    space.must_map(Map::anon(0, 2 * HUGE).with(MAP_HUGETLB));
    space.must_map(Map::file(&files::huge_memfd(2 * HUGE), 4 * HUGE, 2 * HUGE));
    for at in [0, HUGE, 4 * HUGE, 5 * HUGE] {
        space.put(at, b"x");
    }
    assert_eq!(free_huge_pages(), before - 4);
    space.unmap(HUGE, HUGE).expect("unmap");
    eventually("the unmapped one is free", || {
        free_huge_pages() == before - 3
    });
    drop(space);
    eventually("all huge pages are free", || free_huge_pages() == before);
}

/// A mapped file lives on without a descriptor and a name, and ends with the space.
fn close_lets_go_of_files() {
    let before = memory("Shmem");
    let space = Space::new();
    {
        let temp = TempFile::new("/tmp", PAGES * PAGE);
        space.must_map(Map::file(&files::memfd(PAGES * PAGE), 0, PAGES * PAGE).with(MAP_POPULATE));
        space.must_map(Map::file(&temp.file, PAGES * PAGE, PAGES * PAGE).with(MAP_POPULATE));
        space.must_map(
            Map::anon(2 * PAGES * PAGE, PAGES * PAGE)
                .shared()
                .with(MAP_POPULATE),
        );
        temp.file.write_all_at(b"kept", 0).expect("write");
    }
    assert_eq!(space.get(PAGES * PAGE, 4), b"kept");
    assert!(memory("Shmem") > before + 3 * PAGES * PAGE * 9 / 10);
    space.unmap(0, PAGES * PAGE).expect("unmap");
    eventually("the memfd is gone", || {
        memory("Shmem") < before + 21 * PAGES * PAGE / 10
    });
    drop(space);
    eventually("the files are gone", || {
        memory("Shmem") < before + PAGES * PAGE / 10
    });
}

fn killed_holder_frees_all() {
    let before = memory("AnonPages");
    let (ready, child_end) = sockets();
    let child = Child::spawn(|| {
        let space = Space::new();
        space.must_map(Map::anon(0, PAGES * PAGE).with(MAP_POPULATE));
        nix::unistd::write(&child_end, b"r").expect("write");
        loop {
            std::thread::park();
        }
    });
    nix::unistd::read(&ready, &mut [0]).expect("read");
    assert!(memory("AnonPages") > before + PAGES * PAGE * 9 / 10);
    kill(Pid::from_raw(child.pid()), Signal::SIGKILL).expect("kill");
    child.wait();
    eventually("the memory is free", || {
        memory("AnonPages") < before + PAGES * PAGE / 10
    });
}

fn dup_keeps_it() {
    is_freed_after(|space| {
        let copy = space.dup();
        drop(space);
        alive(&copy);
    });
}

fn fork_keeps_it() {
    is_freed_after(|space| {
        let (go, child_end) = sockets();
        let child = Child::spawn(|| {
            nix::unistd::read(&child_end, &mut [0]).expect("read");
            alive(&space);
        });
        alive(&space);
        drop(space);
        nix::unistd::write(&go, b"g").expect("write");
        child.succeed();
    });
}

fn exec_keeps_it_unless_cloexec() {
    let (kept, closed) = (
        Space::create(0).unwrap(),
        Space::create(ADDRESS_SPACE_CLOEXEC).unwrap(),
    );
    kept.must_map(Map::anon(0, PAGE));
    let id = format!("as_id:\t{}\n", kept.info().id);
    let fdinfo = |space: &Space| {
        let path = format!("/proc/self/fdinfo/{}", space.as_raw_fd());
        Command::new("cat").arg(path).output().expect("cat")
    };
    let output = fdinfo(&kept);
    assert!(
        String::from_utf8_lossy(&output.stdout).contains(&id),
        "{output:?}"
    );
    assert!(!fdinfo(&closed).status.success(), "CLOEXEC");
}

fn message_keeps_it() {
    is_freed_after(|space| {
        let (left, right) = sockets();
        let id = space.info().id;
        send_fd(&left, &space);
        drop(space);
        let space = Space::from(receive_fd(&right));
        assert_eq!(space.info().id, id);
        alive(&space);
    });
}

fn message_that_is_lost_frees_it() {
    is_freed_after(|space| {
        let (left, right) = sockets();
        send_fd(&left, &space);
        // The sockets hold each other in a cycle, with the space in a message on the way.
        send_fd(&left, &right);
        send_fd(&right, &left);
        drop((space, left, right));
        // Garbage collection of sockets runs when a socket is closed.
        drop(sockets());
    });
}

fn another_process_takes_it() {
    let (left, child_end) = sockets();
    let child = Child::spawn(|| {
        let space = Space::new();
        space.must_map(Map::anon(0, PAGE));
        space.put(0, b"from the child");
        let number = space.as_raw_fd() as u8;
        nix::unistd::write(&child_end, &[number]).expect("write");
        // Stays until its end of the socket is closed.
        let _ = nix::unistd::read(&child_end, &mut [0]);
    });
    drop(child_end);
    let mut number = [0];
    nix::unistd::read(&left, &mut number).expect("read");
    // SAFETY: Neither call takes a pointer; the results are new descriptors of ours.
    let taken = unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, child.pid(), 0);
        assert!(pidfd >= 0, "pidfd_open: {}", Errno::last());
        let fd = libc::syscall(libc::SYS_pidfd_getfd, pidfd, i64::from(number[0]), 0);
        assert!(fd >= 0, "pidfd_getfd: {}", Errno::last());
        Space::from(OwnedFd::from_raw_fd(fd as i32))
    };
    assert_eq!(taken.get(0, 14), b"from the child");
    taken.must_map(Map::anon(PAGE, PAGE));
    nix::unistd::write(&left, b"g").expect("write");
    child.succeed();
    assert_eq!(taken.get(0, 14), b"from the child", "its maker is gone");
    taken.put(PAGE, b"still of use");
}

/// There is no way from the link in /proc to a new file of the space.
fn cannot_be_opened_again() {
    let space = Space::new();
    let path = format!("/proc/self/fd/{}", space.as_raw_fd());
    assert!(std::fs::File::open(path).is_err());
}

/// Spaces come and go by the thousand; kmemleak looks for what they leave.
fn many_spaces() {
    let file = files::numbered(4, b'0');
    for round in 0..10 {
        let spaces: Vec<Space> = (0..100).map(|_| Space::new()).collect();
        for space in &spaces {
            space.must_map(Map::file(&file, 0, 4 * PAGE));
            space.must_map(Map::anon(8 * PAGE, PAGE));
            space.put(8 * PAGE, &[round]);
        }
        assert!(spaces.iter().all(|space| space.byte(8 * PAGE) == round));
    }
}
