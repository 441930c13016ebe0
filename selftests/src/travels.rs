// SPDX-License-Identifier: GPL-2.0

//! Views handed around: they stay what they are wherever they get to, and keep the space alive.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

use asfd::sys::*;
use libc::{MAP_POPULATE, PROT_NONE, PROT_READ};
use nix::fcntl::{fcntl, FcntlArg, FdFlag, SealFlag};
use nix::unistd::Whence;

use crate::support::files;
use crate::support::guest::{plain_code, window, word, Exit, Vm};
use crate::support::mapped::Mapped;
use crate::support::process::{receive_fd, send_fd, sockets, Child};
use crate::support::rights::{View, RW};
use crate::support::snapshot::unchanged;
use crate::support::system::{counter, eventually};
use crate::support::{Errno, Map, Space, PAGE};

crate::suite![
    by_message,
    by_fork,
    by_exec,
    by_dup,
    by_pidfd_getfd,
    not_by_proc,
    not_into_a_space,
    positions_are_their_own,
    a_view_keeps_the_space,
    a_view_keeps_a_guest_s_memory,
    any_order_of_closing(300),
    a_view_in_a_lost_message,
    names_the_kind,
];

const BASE: u64 = 8 * PAGE;
const RIGHTS: u32 = ADDRESS_SPACE_RIGHT_QUERY | ADDRESS_SPACE_RIGHT_VIEW;

/// A space with pages a to h at `BASE`, and a view of b to e that can read, look and make views.
fn scenery() -> (Space, Space) {
    let space = Space::new();
    space.must_map(Map::file(&files::numbered(8, b'a'), BASE, 8 * PAGE));
    let view = View::of(BASE + PAGE, 4 * PAGE);
    let view = space.must_view(view.prot(PROT_READ).rights(RIGHTS));
    (space, view)
}

/// That `fd` is a view as `scenery` makes it, and no more can be done with it.
#[track_caller]
fn narrow(fd: &Space, owner_id: u64) {
    let info = fd.info();
    assert_eq!((info.addr, info.len), (BASE + PAGE, 4 * PAGE));
    assert_eq!((info.rights, info.prot), (RIGHTS, PROT_READ as u32));
    assert_eq!((info.id, info.mapped_bytes), (owner_id, 4 * PAGE));
    assert_eq!(fd.get(0, 4 * PAGE)[3 * PAGE as usize], b'e');
    assert_eq!(fd.read_at(4 * PAGE, &mut [0]), Ok(0));
    assert_eq!(fd.write_at(0, b"w"), Err(Errno::EACCES));
    assert_eq!(fd.map(Map::anon(0, PAGE).replace()), Err(Errno::EPERM));
    assert_eq!(fd.unmap(0, PAGE), Err(Errno::EPERM));
    assert_eq!(fd.protect(0, PAGE, PROT_READ), Err(Errno::EPERM));
    assert_eq!(fd.advise(0, PAGE, libc::MADV_DONTNEED), Err(Errno::EPERM));
    assert_eq!(fd.seal(1), Err(Errno::EPERM));
    assert_eq!(fd.view(View::of(0, PAGE)).err(), Some(Errno::EPERM));
    let wide = View::of(0, 5 * PAGE).rights(0).prot(PROT_NONE);
    assert_eq!(fd.view(wide).err(), Some(Errno::ERANGE));
    assert_eq!(Mapped::new(fd, 0, PAGE, RW).err(), Some(Errno::EACCES));
}

fn by_message() {
    let (space, view) = scenery();
    let (left, right) = sockets();
    let id = space.info().id;
    let child = Child::spawn(|| {
        let got = Space::from(receive_fd(&right));
        narrow(&got, id);
        // A view of the view goes on from here.
        let next = View::of(PAGE, PAGE).rights(0).prot(PROT_READ);
        send_fd(&right, &got.must_view(next));
    });
    send_fd(&left, &view);
    let next = Space::from(receive_fd(&left));
    child.succeed();
    assert_eq!(next.info().addr, BASE + 2 * PAGE);
    assert_eq!(next.get(0, PAGE)[0], b'c');
    assert_eq!(next.read_at(PAGE, &mut [0]), Ok(0));
    assert_eq!(next.query(0, 0), Err(Errno::EPERM));
}

fn by_fork() {
    let (space, view) = scenery();
    let id = space.info().id;
    Child::spawn(|| narrow(&view, id)).succeed();
    narrow(&view, id);
}

/// Close-on-exec is a choice, and the exec'd program has the view and not the space.
fn by_exec() {
    let (space, _) = scenery();
    let view = View::of(BASE + PAGE, 4 * PAGE).rights(RIGHTS);
    let (kept, closed) = (
        space.must_view(view.flags(0)),
        space.must_view(view.flags(ADDRESS_SPACE_CLOEXEC)),
    );
    for (fd, flag) in [(&kept, FdFlag::empty()), (&closed, FdFlag::FD_CLOEXEC)] {
        let have = fcntl(fd, FcntlArg::F_GETFD).map(FdFlag::from_bits_retain);
        assert_eq!(have, Ok(flag));
    }
    let fdinfo = |fd: &Space| {
        let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
        let output = Command::new("cat").arg(path).output().expect("cat");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(text)
    };
    let text = fdinfo(&kept).expect("it is open in the program");
    for line in [
        format!("as_window:\t{:x}-{:x}\n", BASE + PAGE, BASE + 5 * PAGE),
        "as_rights:\tview,query\n".into(),
        "as_prot:\trw\n".into(),
        format!("as_id:\t{}\n", space.info().id),
    ] {
        assert!(text.contains(&line), "no {line:?} in {text}");
    }
    assert_eq!(fdinfo(&closed), None, "close-on-exec");
}

fn by_dup() {
    let (space, view) = scenery();
    let id = space.info().id;
    let copy = view.dup();
    narrow(&copy, id);
    // Copies are one file with one position.
    view.seek(PAGE, Whence::SeekSet).expect("seek");
    assert_eq!(copy.seek(0, Whence::SeekCur), Ok(PAGE));
    drop(view);
    narrow(&copy, id);
}

/// As one gets it who may trace the process.
fn by_pidfd_getfd() {
    let (left, right) = sockets();
    let child = Child::spawn(|| {
        let (space, view) = scenery();
        let message = [view.as_raw_fd() as u8, space.info().id as u8];
        nix::unistd::write(&right, &message).expect("write");
        let _ = nix::unistd::read(&right, &mut [0]);
    });
    drop(right);
    let mut message = [0; 2];
    assert_eq!(nix::unistd::read(&left, &mut message), Ok(2));
    // SAFETY: Neither call takes a pointer; the results are new descriptors of ours.
    let taken = unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, child.pid(), 0);
        assert!(pidfd >= 0, "pidfd_open: {}", Errno::last());
        let fd = libc::syscall(libc::SYS_pidfd_getfd, pidfd, i64::from(message[0]), 0);
        assert!(fd >= 0, "pidfd_getfd: {}", Errno::last());
        Space::from(OwnedFd::from_raw_fd(fd as i32))
    };
    let id = taken.info().id;
    assert_eq!(id as u8, message[1]);
    narrow(&taken, id);
    nix::unistd::write(&left, b"g").expect("write");
    child.succeed();
    // The owner has gone with the child.
    narrow(&taken, id);
}

/// The link in /proc opens nothing, whatever the mode, and so widens nothing.
fn not_by_proc() {
    let (space, view) = scenery();
    for fd in [&space, &view] {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        for (read, write) in [(true, false), (false, true), (true, true)] {
            let opened = OpenOptions::new().read(read).write(write).open(&path);
            let errno = opened
                .map(|file| file.as_raw_fd())
                .map_err(|e| e.raw_os_error());
            assert_eq!(errno, Err(Some(libc::ENXIO)), "{path}, {read}, {write}");
        }
    }
    // As a path only it can be had, and is then no asfd to any call.
    let path = format!("/proc/self/fd/{}", view.as_raw_fd());
    let flags = nix::fcntl::OFlag::O_PATH;
    let by_path = nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty());
    let by_path = Space::from(by_path.expect("O_PATH"));
    assert_eq!(by_path.view(View::of(0, PAGE)).err(), Some(Errno::EBADF));
    assert_eq!(by_path.map(Map::anon(0, PAGE)), Err(Errno::EBADF));
    assert_eq!(by_path.unmap(0, PAGE), Err(Errno::EBADF));
    assert_eq!(by_path.read_at(0, &mut [0]), Err(Errno::EBADF));
}

/// A space never holds a space, by a view no more than otherwise.
fn not_into_a_space() {
    let (space, view) = scenery();
    let (other, _) = scenery();
    let full = space.must_view(View::of(0, space.end()));
    for into in [&space, &other, &full] {
        for fd in [&space, &view, &full] {
            for map in [
                Map::file(fd, 0, PAGE),
                Map::file(fd, BASE, PAGE).replace(),
                Map::file(fd, 0, PAGE).private().prot(PROT_READ),
            ] {
                assert_eq!(unchanged(into, || into.map(map)), Err(Errno::ELOOP));
            }
        }
    }
}

fn positions_are_their_own() {
    let (space, view) = scenery();
    space.seek(BASE, Whence::SeekSet).expect("seek");
    assert_eq!(view.seek(0, Whence::SeekCur), Ok(0));
    let mut byte = [0];
    assert_eq!(nix::unistd::read(&view, &mut byte), Ok(1));
    assert_eq!(byte, *b"b");
    assert_eq!(space.seek(0, Whence::SeekCur), Ok(BASE));
    assert_eq!(view.seek(0, Whence::SeekEnd), Ok(4 * PAGE));
    assert_eq!(nix::unistd::read(&view, &mut byte), Ok(0), "at the end");
    assert_eq!(view.seek(1, Whence::SeekEnd), Err(Errno::EINVAL));
    assert_eq!(view.seek(4 * PAGE + 1, Whence::SeekSet), Err(Errno::EINVAL));
}

const MANY: u64 = 8192;

fn anonymous() -> u64 {
    counter("/proc/meminfo", "AnonPages") * 1024
}

/// All of the space, not only what the view shows.
fn a_view_keeps_the_space() {
    let before = anonymous();
    let space = Space::new();
    space.must_map(Map::anon(0, MANY * PAGE).with(MAP_POPULATE));
    let least = View::of(0, PAGE).rights(0).prot(PROT_READ);
    let (wide, narrow) = (
        space.must_view(View::of(0, MANY * PAGE)),
        space.must_view(least),
    );
    let id = space.info().id;
    drop(space);
    assert_eq!(wide.info().id, id);
    wide.put(MANY * PAGE - 1, b"x");
    wide.unmap(PAGE, PAGE).expect("unmap");
    wide.must_map(Map::anon(PAGE, PAGE));
    drop(wide);
    assert_eq!((narrow.info().id, narrow.byte(0)), (id, 0));
    assert!(anonymous() > before + MANY * PAGE * 9 / 10, "all is there");
    drop(narrow);
    eventually("the memory is free", || {
        anonymous() < before + MANY * PAGE / 10
    });
}

fn a_view_keeps_a_guest_s_memory() {
    let (space, view) = scenery();
    let vm = Vm::new();
    let _code = plain_code(&vm);
    let gpa = 1 << 20;
    vm.must_map(window(1, gpa, 8 * PAGE, &space, BASE));
    let mut vcpu = vm.vcpu(0);
    drop(space);
    assert_eq!(
        vcpu.load(gpa),
        Exit::Done(word(b'a')),
        "beside the view, too"
    );
    assert_eq!(view.info().windows, 1);
    drop(view);
    assert_eq!(vcpu.load(gpa), Exit::load_of_hole(gpa));
}

/// Owners, copies, views of views and mirrors closed in every order: as long as one is left all
/// is there, and then nothing.
fn any_order_of_closing() {
    enum Hold {
        Fd(Space),
        Mirror(Mapped),
    }
    let orders = 48;
    let mut random = fastrand::Rng::with_seed(5);
    for order in 0..orders {
        let file = files::numbered(8, b'a');
        let space = Space::new();
        space.must_map(Map::file(&file, 0, 8 * PAGE));
        let view = space.must_view(View::of(PAGE, 6 * PAGE));
        let inner = view.must_view(View::of(PAGE, 2 * PAGE).rights(0).prot(PROT_READ));
        let mut held = vec![
            Hold::Mirror(Mapped::new(&view, PAGE, PAGE, PROT_READ).expect("a mirror")),
            Hold::Fd(inner.dup()),
            Hold::Fd(space),
            Hold::Fd(view),
            Hold::Fd(inner),
        ];
        random.shuffle(&mut held);
        let seal = || fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE));
        while let Some(first) = held.pop() {
            assert_eq!(seal(), Err(Errno::EBUSY), "order {order}: it is mapped");
            drop(first);
            for hold in &held {
                match hold {
                    Hold::Fd(fd) => {
                        let letter = b'a' + (fd.info().addr / PAGE) as u8;
                        assert_eq!(fd.byte(0), letter, "order {order}");
                    }
                    Hold::Mirror(mirror) => assert_eq!(mirror.get(0, 1), Ok(vec![b'c'])),
                }
            }
        }
        eventually("the mapping is gone", || seal().is_ok());
    }
}

/// A view that was sent, and whose socket is then gone, does not keep the space.
fn a_view_in_a_lost_message() {
    let file = files::memfd(PAGE);
    let (left, right) = sockets();
    {
        let space = Space::new();
        space.must_map(Map::file(&file, 0, PAGE));
        send_fd(&left, &space.must_view(View::of(0, PAGE)));
    }
    let seal = || fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE));
    assert_eq!(seal(), Err(Errno::EBUSY), "on its way");
    drop((left, right));
    eventually("the mapping is gone", || seal().is_ok());
}

/// lsof and its like tell asfds by the link.
fn names_the_kind() {
    let (space, view) = scenery();
    for fd in [&space, &view] {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let link = link.expect("link").to_string_lossy().into_owned();
        assert!(link.starts_with("anon_inode:[address_space"), "{link}");
    }
}
