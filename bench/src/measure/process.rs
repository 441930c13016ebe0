// SPDX-License-Identifier: GPL-2.0

//! Other processes that take part in a measurement, each at the other end of a socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::sys::wait::waitpid;
use nix::unistd::{fork, ForkResult, Pid};

/// A copy of this process, as of when it was made. It ends when this is dropped.
pub struct Process {
    pub pid: Pid,
    pub socket: UnixStream,
}

impl Process {
    /// Makes one that does `work`, with its end of the socket.
    pub fn spawn(work: impl FnOnce(&UnixStream) -> Result<()>) -> Result<Process> {
        let (socket, theirs) = UnixStream::pair().context("socketpair")?;
        // SAFETY: This process has no other threads, so the copy can do whatever it could.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Parent { child: pid } => Ok(Process { pid, socket }),
            ForkResult::Child => {
                drop(socket);
                // It is told before the socket closes, which may be the end of all.
                let failed = work(&theirs)
                    .inspect_err(|e| eprintln!("process {}: {e:#}", Pid::this()))
                    .is_err();
                // SAFETY: Nothing of this process has to be brought to an end in order.
                unsafe { libc::_exit(failed.into()) }
            }
        }
    }

    /// Makes one that does what the bytes say which it is sent, and answers each.
    pub fn serve(mut handle: impl FnMut(u8) -> Result<()>) -> Result<Process> {
        Process::spawn(|mut socket| {
            let mut command = [0];
            loop {
                socket.read_exact(&mut command).context("read")?;
                handle(command[0])?;
                socket.write_all(&command).context("write")?;
            }
        })
    }

    pub fn send(&self, command: u8) -> Result<()> {
        (&self.socket).write_all(&[command]).context("write")
    }

    /// Waits for the answer to a command.
    pub fn wait(&self) -> Result<()> {
        (&self.socket).read_exact(&mut [0]).context("read")
    }

    pub fn ask(&self, command: u8) -> Result<()> {
        self.send(command)?;
        self.wait()
    }
}

/// Asks all and waits for all of the answers.
pub fn ask_all(processes: &[Process], command: u8) -> Result<()> {
    processes.iter().try_for_each(|p| p.send(command))?;
    processes.iter().try_for_each(Process::wait)
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}
