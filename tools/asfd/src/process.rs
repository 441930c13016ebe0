// SPDX-License-Identifier: GPL-2.0

//! The spaces of other processes, and those that this one inherited.
//!
//! Looking needs what reading `/proc/PID/fd` needs; taking a descriptor needs to be allowed to
//! trace the process, see ptrace(2).
//!
//! ```no_run
//! use asfd::process;
//!
//! let pid = 4711;
//! for fd in process::spaces(pid)? {
//!     let id = process::fdinfo(pid, fd)?.id;
//!     let mappings = process::open(pid, fd)?.mappings().count();
//!     println!("fd {fd}: space {id}, {mappings} mappings");
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{pidfd_getfd, pidfd_open, Pid, PidfdFlags, PidfdGetfdFlags};

use crate::{AddressSpace, Error, Fdinfo, Operation, Result};

/// What the links in `/proc/PID/fd` of an asfd point to.
const LINK: &str = "anon_inode:[address_space]";

/// The descriptors of a process that are spaces, in order.
pub fn spaces(pid: u32) -> io::Result<Vec<RawFd>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        // Gone in the meantime: closed, which is no error.
        let is_space = fs::read_link(entry.path()).is_ok_and(|link| link == Path::new(LINK));
        if is_space {
            let name = entry.file_name();
            found.extend(name.to_str().and_then(|n| n.parse::<RawFd>().ok()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// What `/proc/PID/fdinfo/FD` says.
pub fn fdinfo(pid: u32, fd: RawFd) -> io::Result<Fdinfo> {
    let text = fs::read(format!("/proc/{pid}/fdinfo/{fd}"))?;
    Fdinfo::parse(&text).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Duplicates a descriptor of another process, or of this one, into this one (close-on-exec).
///
/// # Errors
///
/// `ESRCH` if there is no such process, `EBADF` if it has no such descriptor, `EPERM` if it is
/// not allowed, `ENOTTY` if the descriptor is not an address space.
pub fn open(pid: u32, fd: RawFd) -> Result<AddressSpace> {
    let refused = |errno| {
        let what = format!("open fd {fd} of process {pid}");
        Error::new(Operation::Process, what, errno)
    };
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let process = process.ok_or_else(|| refused(Errno::SRCH))?;
    let pidfd = pidfd_open(process, PidfdFlags::empty()).map_err(refused)?;
    let taken = pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty()).map_err(refused)?;
    // The number of the duplicate would say nothing to the caller.
    AddressSpace::try_from(taken).map_err(|e| {
        let what = format!("use fd {fd} of process {pid}");
        Error::new(Operation::Info, what, e)
    })
}

/// Duplicates a descriptor that this process was started with (close-on-exec).
///
/// ```no_run
/// // Under `asctl exec`.
/// let fd = std::env::var("ASFD")?.parse()?;
/// let space = asfd::process::inherited(fd)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// `EBADF` if it is not open, `ENOTTY` if it is not an address space.
pub fn inherited(fd: RawFd) -> Result<AddressSpace> {
    // SAFETY: The call takes numbers and makes a descriptor of its own.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    if copy == -1 {
        let error = io::Error::last_os_error();
        return Err(Error::new(
            Operation::Duplicate,
            format!("use fd {fd}"),
            error,
        ));
    }
    // SAFETY: It was just made and nobody else knows of it.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    let space = AddressSpace::try_from(copy);
    space.map_err(|e| Error::new(Operation::Info, format!("use fd {fd}"), e))
}

/// Closes a descriptor that this process was started with when it executes another program.
///
/// For programs that hand a view to another program, and not what the view is made from.
///
/// # Errors
///
/// `EBADF` if it is not open.
pub fn close_on_exec(fd: RawFd) -> Result<()> {
    // SAFETY: The call takes numbers; it closes nothing in this program, whose memory it leaves
    // alone.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        let what = format!("close fd {fd} on exec");
        return Err(Error::new(
            Operation::Duplicate,
            what,
            io::Error::last_os_error(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn no_such_process() {
        assert_eq!(open(0, 0).unwrap_err().errno(), libc::ESRCH);
        assert_eq!(open(u32::MAX, 0).unwrap_err().errno(), libc::ESRCH);
        assert!(spaces(u32::MAX).is_err());
    }

    #[test]
    fn no_such_descriptor() {
        assert_eq!(inherited(-1).unwrap_err().errno(), libc::EBADF);
        let file = fs::File::open("/dev/null").unwrap();
        let error = inherited(file.as_raw_fd()).unwrap_err();
        assert_eq!(error.errno(), libc::ENOTTY, "{error}");
    }

    #[test]
    fn close_on_exec_is_set() {
        assert_eq!(close_on_exec(-1).unwrap_err().errno(), libc::EBADF);
        let file = fs::File::open("/dev/null").unwrap();
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        close_on_exec(file.as_raw_fd()).unwrap();
        let flags = rustix::io::fcntl_getfd(&file).unwrap();
        assert_eq!(flags, rustix::io::FdFlags::CLOEXEC);
    }

    #[test]
    fn another_kind_of_file() {
        let file = fs::File::open("/dev/null").unwrap();
        let (pid, fd) = (std::process::id(), file.as_raw_fd());
        assert!(!spaces(pid).unwrap().contains(&fd));
        assert_eq!(
            fdinfo(pid, fd).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        let error = open(pid, fd).unwrap_err();
        assert_eq!(error.errno(), libc::ENOTTY, "{error}");
    }
}
