// SPDX-License-Identifier: GPL-2.0

//! Who waits for a page of a mirror can be killed, and is in nobody's way.

use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use libc::{MADV_POPULATE_READ, PROT_READ, PROT_WRITE};
use nix::sys::signal::{kill, Signal};
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use nix::unistd::Pid;

use crate::harness::skip;
use crate::support::files::{self, Ext4, TempFile};
use crate::support::fuse::{StallingFile, BYTE};
use crate::support::mirror::{mirror, Area};
use crate::support::process::Child;
use crate::support::remote::Sleeper;
use crate::support::system::eventually;
use crate::support::{Errno, Map, Space, PAGE};

crate::suite![
    waits_and_gets_it,
    killed_while_waiting,
    unmapping_does_not_wait,
    other_edits_do_not_wait,
    own_memory_can_be_changed,
    failed_read_is_a_signal,
];

/// Each access that has to wait is in a range of its own, as what was read once is cached.
const RANGE: u64 = 1 << 20;
const RANGES: u64 = 32;

/// So long may take what does not wait.
const PROMPT: Duration = Duration::from_secs(20);

/// What a waiting access got in the end.
#[derive(Debug, PartialEq)]
enum Got {
    It,
    Bus,
    Fault,
    Other(String),
}

/// Accesses at the start of a range; they run in a process of their own.
type Wait = fn(&Area, u64, &TempFile) -> Got;

fn by_signal<T>(access: crate::support::mirror::Access<T>) -> Got {
    match access {
        Ok(_) => Got::It,
        Err(fault) if fault.signal == libc::SIGBUS => Got::Bus,
        Err(fault) => Got::Other(format!("{fault:?}")),
    }
}

fn by_errno<T>(call: crate::support::Result<T>) -> Got {
    match call {
        Ok(_) => Got::It,
        Err(Errno::EFAULT) => Got::Fault,
        Err(e) => Got::Other(e.to_string()),
    }
}

const WAITS: [(&str, Wait); 7] = [
    ("a load", |area, at, _| by_signal(area.load(at))),
    ("a store", |area, at, _| by_signal(area.store(at, BYTE))),
    ("write", |area, at, _| {
        by_errno(area.write_to(at, &files::memfd(0), PAGE))
    }),
    ("read", |area, at, _| {
        let source = files::memfd(PAGE);
        by_errno(area.read_from(at, &source, PAGE))
    }),
    ("write with O_DIRECT", |area, at, temp| {
        let mut options = std::fs::OpenOptions::new();
        let direct = options.write(true).custom_flags(libc::O_DIRECT);
        let file = direct.open(&temp.path).expect("O_DIRECT");
        by_errno(area.write_to(at, &file, PAGE))
    }),
    ("process_vm_readv", |area, at, _| {
        // By another process, from this one's mirror.
        let sleeper = Sleeper::new();
        by_errno(sleeper.read_vm(area.addr() + at, &mut [0; 8]))
    }),
    ("POPULATE_READ", |area, at, _| {
        by_errno(area.advise(at, PAGE, MADV_POPULATE_READ))
    }),
];

struct Stage {
    /// Ends before the file does.
    area: Area,
    space: Space,
    stalling: StallingFile,
    temp: TempFile,
    _ext4: Ext4,
    next: std::cell::Cell<u64>,
}

impl Stage {
    fn new() -> Stage {
        let ext4 = Ext4::mount().unwrap_or_else(|why| skip(&why));
        let stalling = StallingFile::new(RANGE * RANGES);
        let space = Space::new();
        let map = Map::file(&stalling.file, 0, RANGE * RANGES);
        space
            .map(map)
            .unwrap_or_else(|e| skip(&format!("FUSE in a space: {e}")));
        Stage {
            area: mirror(&space, 0, RANGE * RANGES),
            space,
            temp: TempFile::new(ext4.path(), PAGE),
            stalling,
            _ext4: ext4,
            next: 0.into(),
        }
    }

    /// A range that nobody has used.
    fn range(&self) -> u64 {
        let range = self.next.get();
        self.next.set(range + 1);
        assert!(range < RANGES);
        range * RANGE
    }

    /// A process in which an access to `at` waits for the file. It exits with what it got.
    fn waiter(&self, at: u64, wait: Wait) -> Child {
        self.stalling.stall();
        let child = Child::spawn(|| {
            let code = match wait(&self.area, at, &self.temp) {
                Got::It => 10,
                Got::Bus => 11,
                Got::Fault => 12,
                Got::Other(what) => panic!("{what}"),
            };
            // SAFETY: Ends the process.
            unsafe { libc::_exit(code) };
        });
        eventually("the file is read", || self.stalling.waiting() > 0);
        // It has read, and now it sleeps.
        std::thread::sleep(Duration::from_millis(50));
        let state = waitpid(Pid::from_raw(child.pid()), Some(WaitPidFlag::WNOHANG));
        assert_eq!(state, Ok(WaitStatus::StillAlive), "it waits");
        child
    }
}

fn got(child: &Child) -> Got {
    match child.wait() {
        WaitStatus::Exited(_, 10) => Got::It,
        WaitStatus::Exited(_, 11) => Got::Bus,
        WaitStatus::Exited(_, 12) => Got::Fault,
        other => Got::Other(format!("{other:?}")),
    }
}

/// Whether the process ends soon, and how.
fn ends_soon(child: &Child) -> Option<WaitStatus> {
    let started = Instant::now();
    while started.elapsed() < PROMPT {
        match waitpid(Pid::from_raw(child.pid()), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(5)),
            Ok(status) => return Some(status),
            Err(e) => panic!("waitpid: {e}"),
        }
    }
    None
}

/// Does it in another process, which has to be done soon.
#[track_caller]
fn promptly(what: &str, body: impl FnOnce()) {
    let child = Child::spawn(body);
    match ends_soon(&child) {
        Some(WaitStatus::Exited(_, 0)) => (),
        Some(other) => panic!("{what}: {other:?}"),
        None => panic!("{what} waits"),
    }
}

fn waits_and_gets_it() {
    let stage = Stage::new();
    for (name, wait) in WAITS {
        let at = stage.range();
        let waiter = stage.waiter(at, wait);
        stage.stalling.go_on();
        assert_eq!(got(&waiter), Got::It, "{name}");
        if name != "read" {
            assert_eq!(stage.area.load(at), Ok(BYTE), "{name}");
        }
        assert_eq!(stage.space.byte(at + PAGE), BYTE, "{name}");
    }
}

fn killed_while_waiting() {
    let stage = Stage::new();
    for (name, wait) in WAITS {
        let waiter = stage.waiter(stage.range(), wait);
        kill(Pid::from_raw(waiter.pid()), Signal::SIGKILL).expect("kill");
        let end = ends_soon(&waiter);
        let killed = matches!(end, Some(WaitStatus::Signaled(_, Signal::SIGKILL, _)));
        assert!(killed, "{name}: {end:?}");
        assert!(stage.stalling.waiting() > 0, "it was not answered");
        stage.stalling.go_on();
    }
}

/// When munmap returns nobody can reach the page, also who waits for it.
fn unmapping_does_not_wait() {
    let stage = Stage::new();
    for replace in [false, true] {
        for (name, wait) in WAITS {
            let at = stage.range();
            let waiter = stage.waiter(at, wait);
            promptly("munmap", || {
                if replace {
                    stage.space.must_map(Map::anon(at, RANGE).replace());
                } else {
                    stage.space.unmap(at, RANGE).expect("unmap");
                }
            });
            assert!(stage.stalling.waiting() > 0, "it was not answered");
            stage.stalling.go_on();
            let got = got(&waiter);
            let good = match (replace, name) {
                (true, _) => [Got::It, Got::It],
                // Whose pages were got before is short, or done.
                (false, _) => [Got::Bus, Got::Fault],
            };
            assert!(good.contains(&got), "{name}, replaced: {replace}: {got:?}");
            if replace {
                let byte = if name == "a store" { BYTE } else { 0 };
                assert_eq!(stage.area.load(at), Ok(byte), "{name}");
            }
        }
    }
}

fn other_edits_do_not_wait() {
    let stage = Stage::new();
    for (name, wait) in [WAITS[0], WAITS[2]] {
        let at = stage.range();
        // Cached, so that it can be read meanwhile.
        let (cached, unused) = (stage.range(), stage.range());
        assert_eq!(stage.area.load(cached), Ok(BYTE));
        let waiter = stage.waiter(at, wait);
        let far = 1 << 40;
        promptly("mmap elsewhere", || {
            stage.space.must_map(Map::anon(far, PAGE));
            stage.space.put(far, b"x");
        });
        promptly("munmap elsewhere", || {
            stage.space.unmap(far, PAGE).expect("unmap")
        });
        promptly("munmap of a part", || {
            stage.space.unmap(unused, RANGE).expect("unmap");
        });
        promptly("PROTECT", || {
            stage.space.protect(at, RANGE, PROT_READ).expect("PROTECT");
        });
        promptly("INFO", || assert!(stage.space.info().mappings > 0));
        promptly("pread", || assert_eq!(stage.space.byte(cached), BYTE));
        promptly("a load", || assert_eq!(stage.area.load(cached), Ok(BYTE)));
        promptly("a new mirror", || {
            assert_eq!(mirror(&stage.space, cached, PAGE).load(0), Ok(BYTE));
        });
        stage.stalling.go_on();
        assert_eq!(got(&waiter), Got::It, "{name}");
    }
}

/// A thread waits; the others go on with their address space, and can take the mirror away.
fn own_memory_can_be_changed() {
    let stage = Stage::new();
    for (name, take_away) in [("kept", false), ("taken away", true)] {
        let at = stage.range();
        stage.stalling.stall();
        let child = Child::spawn(|| {
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| stage.area.load(at));
                eventually("the file is read", || stage.stalling.waiting() > 0);
                std::thread::sleep(Duration::from_millis(50));
                // The others' memory.
                let other = Area::anonymous(16 * PAGE);
                other.put(0, b"x");
                other.protect(0, PAGE, PROT_READ).expect("mprotect");
                other
                    .protect(0, PAGE, PROT_READ | PROT_WRITE)
                    .expect("mprotect");
                drop(other);
                drop(mirror(&stage.space, 0, PAGE));
                if take_away {
                    stage.area.unmap(at, PAGE).expect("munmap");
                }
                assert!(stage.stalling.waiting() > 0, "it was not answered");
                // Only now the parent lets the file answer.
                let marker = format!("/tmp/changed-{}", std::process::id());
                std::fs::write(&marker, b"").expect("write");
                let got = waiter.join().expect("the waiting thread");
                match take_away {
                    false => assert_eq!(got, Ok(BYTE)),
                    true => assert_eq!(got.map_err(|f| f.signal), Err(libc::SIGSEGV)),
                }
            });
        });
        let marker = format!("/tmp/changed-{}", child.pid());
        let started = Instant::now();
        while !std::fs::exists(&marker).unwrap_or(false) {
            if started.elapsed() > PROMPT {
                let _ = kill(Pid::from_raw(child.pid()), Signal::SIGKILL);
                stage.stalling.go_on();
                panic!("{name}: the process waits with its thread");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = std::fs::remove_file(&marker);
        stage.stalling.go_on();
        child.succeed();
    }
}

/// The file system is gone: no page comes any more.
fn failed_read_is_a_signal() {
    let stage = Stage::new();
    let at = stage.range();
    let waiter = stage.waiter(at, WAITS[0].1);
    let next = stage.waiter(stage.range(), WAITS[2].1);
    stage.stalling.abort();
    assert_eq!(got(&waiter), Got::Bus);
    assert_eq!(got(&next), Got::Fault);
    let at = at + RANGE * 4;
    assert_eq!(stage.area.load(at).map_err(|f| f.signal), Err(libc::SIGBUS));
    assert_eq!(stage.space.read_at(at, &mut [0]), Err(Errno::EIO));
}
