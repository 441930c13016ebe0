// SPDX-License-Identifier: GPL-2.0

//! The ways to the memory of another process.

use std::fs::OpenOptions;
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;

use nix::sys::signal::{kill, Signal};
use nix::sys::uio::{process_vm_readv, process_vm_writev, RemoteIoVec};
use nix::sys::wait::{waitpid, WaitPidFlag};
use nix::unistd::Pid;

use super::process::Child;
use super::space::errno;
use super::{Errno, Result};

/// A process that does nothing. It was forked, so what its parent has mapped it has at the same
/// addresses. It ends with this value.
pub struct Sleeper(Child);

impl Sleeper {
    pub fn new() -> Sleeper {
        Sleeper(Child::spawn(|| loop {
            std::thread::park();
        }))
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.pid())
    }

    /// process_vm_readv(2).
    pub fn read_vm(&self, addr: u64, buffer: &mut [u8]) -> Result<u64> {
        let remote = RemoteIoVec {
            base: addr as usize,
            len: buffer.len(),
        };
        let local = &mut [IoSliceMut::new(buffer)];
        process_vm_readv(self.pid(), local, &[remote]).map(|len| len as u64)
    }

    /// process_vm_writev(2).
    pub fn write_vm(&self, addr: u64, bytes: &[u8]) -> Result<u64> {
        let remote = RemoteIoVec {
            base: addr as usize,
            len: bytes.len(),
        };
        process_vm_writev(self.pid(), &[IoSlice::new(bytes)], &[remote]).map(|len| len as u64)
    }

    /// /proc/PID/mem.
    pub fn read_mem(&self, addr: u64, buffer: &mut [u8]) -> Result<u64> {
        let read = self.mem().read_at(buffer, addr);
        read.map(|len| len as u64).map_err(errno)
    }

    pub fn write_mem(&self, addr: u64, bytes: &[u8]) -> Result<u64> {
        let written = self.mem().write_at(bytes, addr);
        written.map(|len| len as u64).map_err(errno)
    }

    fn mem(&self) -> std::fs::File {
        let path = format!("/proc/{}/mem", self.pid());
        let mut options = OpenOptions::new();
        options.read(true).write(true).open(path).expect("mem")
    }

    /// PTRACE_PEEKDATA.
    pub fn peek(&self, addr: u64) -> Result<u64> {
        let mut word = 0u64;
        // The system call stores the word, where libc's function returns it.
        self.traced(|pid| {
            let data: *mut u64 = &mut word;
            // SAFETY: The process is stopped, and `data` points at a word.
            unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_PEEKDATA, pid, addr, data) }
        })?;
        Ok(word)
    }

    /// PTRACE_POKEDATA.
    pub fn poke(&self, addr: u64, word: u64) -> Result<()> {
        self.traced(|pid| {
            // SAFETY: The process is stopped; it does nothing with the word.
            unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_POKEDATA, pid, addr, word) }
        })
    }

    fn traced(&self, call: impl FnOnce(i32) -> libc::c_long) -> Result<()> {
        let pid = self.0.pid();
        let request = |request: libc::c_uint| {
            // SAFETY: Attaching and detaching take no pointers.
            let done = unsafe { libc::syscall(libc::SYS_ptrace, request, pid, 0, 0) };
            assert_eq!(done, 0, "ptrace: {}", Errno::last());
        };
        request(libc::PTRACE_ATTACH);
        waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)).expect("it stops");
        let result = Errno::result(call(pid)).map(drop);
        request(libc::PTRACE_DETACH);
        result
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = kill(self.pid(), Signal::SIGKILL);
        self.0.wait();
    }
}
