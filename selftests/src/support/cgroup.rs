// SPDX-License-Identifier: GPL-2.0

//! A memory cgroup of its own for a test.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::{kill, Signal};
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use nix::unistd::Pid;

use super::process::{receive_fd, send_fd, sockets, Child};
use super::system::counter;
use super::Space;
use crate::harness::skip;

const ROOT: &str = "/sys/fs/cgroup";

pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Skips the test where there is no memory controller.
    pub fn new(name: &str) -> Cgroup {
        let _ = fs::write(format!("{ROOT}/cgroup.subtree_control"), "+memory");
        Cgroup::below(&PathBuf::from(ROOT), name)
    }

    /// A child of this one; charges count for both.
    pub fn child(&self, name: &str) -> Cgroup {
        fs::write(self.0.join("cgroup.subtree_control"), "+memory").expect("subtree_control");
        Cgroup::below(&self.0, name)
    }

    fn below(parent: &std::path::Path, name: &str) -> Cgroup {
        let path = parent.join(format!("selftests-{name}-{}", std::process::id()));
        if let Err(e) = fs::create_dir(&path) {
            skip(&format!("{path:?}: {e}"));
        }
        if !path.join("memory.current").exists() {
            let _ = fs::remove_dir(&path);
            skip("no memory controller in cgroup2");
        }
        Cgroup(path)
    }

    /// Moves the calling process in.
    pub fn enter(&self) {
        fs::write(self.0.join("cgroup.procs"), "0").expect("cgroup.procs");
    }

    /// Moves the calling process to the root of the hierarchy.
    pub fn leave() {
        fs::write(format!("{ROOT}/cgroup.procs"), "0").expect("cgroup.procs");
    }

    /// A space that is charged to it, as whoever makes one is charged for good. The caller is at
    /// the root afterwards.
    pub fn space(&self) -> Space {
        self.enter();
        let space = Space::new();
        Cgroup::leave();
        space
    }

    pub fn set(&self, file: &str, value: &str) {
        let path = self.0.join(file);
        fs::write(&path, value).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    }

    /// May fail: `memory.reclaim` does so when it got less than it was asked for.
    pub fn try_set(&self, file: &str, value: &str) -> bool {
        fs::write(self.0.join(file), value).is_ok()
    }

    /// A space created by a process in this cgroup that has exited since.
    pub fn create_space(&self) -> Space {
        let (ours, theirs) = sockets();
        let child = Child::spawn(|| {
            self.enter();
            send_fd(&theirs, &Space::new());
        });
        let fd = receive_fd(&ours);
        child.succeed();
        Space::from(fd)
    }

    /// Bytes charged now.
    pub fn charged(&self) -> u64 {
        fs::read_to_string(self.0.join("memory.current"))
            .expect("memory.current")
            .trim()
            .parse()
            .unwrap()
    }

    /// A count of memory.events.
    pub fn event(&self, name: &str) -> u64 {
        self.number("memory.events", name)
    }

    /// A figure of memory.stat.
    pub fn stat(&self, name: &str) -> u64 {
        self.number("memory.stat", name)
    }

    fn number(&self, file: &str, name: &str) -> u64 {
        let text = fs::read_to_string(self.0.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        let line = line.unwrap_or_else(|| panic!("no {name} in {file}"));
        line.parse().expect("a number")
    }

    /// Removes it, which works as soon as no process is in it.
    pub fn remove(&self) {
        fs::remove_dir(&self.0).expect("rmdir of the cgroup");
    }

    pub fn exists(&self) -> bool {
        self.0.exists()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[track_caller]
pub fn assert_near(charged: u64, expected: u64) {
    // Page tables and other small things are charged, too.
    let room = expected / 8 + (1 << 20);
    assert!(
        charged.abs_diff(expected) < room,
        "{charged} bytes charged, about {expected} expected"
    );
}

/// A process that lives in the cgroup and has done nothing: at the limit what a space asks for
/// is refused, and nobody is killed for it.
pub struct Bystander {
    child: Child,
    killed_before: u64,
}

impl Bystander {
    pub fn in_cgroup(cgroup: &Cgroup) -> Bystander {
        let (ours, theirs) = sockets();
        let child = Child::spawn(|| {
            cgroup.enter();
            // Some memory, so that it is worth killing.
            let memory = vec![1u8; 2 << 20];
            nix::unistd::write(&theirs, &memory[..1]).expect("write");
            loop {
                std::thread::park();
            }
        });
        nix::unistd::read(&ours, &mut [0]).expect("read");
        Bystander {
            child,
            killed_before: killed(),
        }
    }

    pub fn must_live(self) {
        let pid = Pid::from_raw(self.child.pid());
        let state = waitpid(pid, Some(WaitPidFlag::WNOHANG));
        assert_eq!(state, Ok(WaitStatus::StillAlive), "the bystander");
        assert_eq!(
            killed(),
            self.killed_before,
            "processes killed on this machine"
        );
        kill(pid, Signal::SIGKILL).expect("kill");
        self.child.wait();
    }
}

fn killed() -> u64 {
    counter("/proc/vmstat", "oom_kill")
}
