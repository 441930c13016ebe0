// SPDX-License-Identifier: GPL-2.0

//! The messages between the VMM and a device process: JSON over a UNIX socket, a view along with
//! the one that needs it.

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    recvmsg, sendmsg, shutdown, socketpair, AddressFamily, ControlMessage, ControlMessageOwned,
    MsgFlags, Shutdown, SockFlag, SockType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::dma::Fault;
use crate::worker::{Job, Tally};

/// What the VMM says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Mirror the view that comes with this.
    Attach,
    /// There is a descriptor in the ring. Which mirror to use is the device's own choice; it is
    /// asked for here so that the demonstration can have it cheat.
    Kick {
        index: u64,
        mirror: usize,
    },
    /// Try what the view does not allow.
    Trespass,
    /// Access random addresses until told to stop.
    Work(Job),
    Stop,
}

/// What the device says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    Attached,
    /// The descriptor has been processed, or this came in between.
    Processed(Result<(), Fault>),
    /// What was tried, the errno that is due, and the one that came of it; 0 is success.
    Trespassed(Vec<(String, i32, i32)>),
    /// How far the work is; the last one after [`Request::Stop`].
    Worked {
        tally: Tally,
        last: bool,
    },
    /// The device saw what it must never see.
    Violation(String),
}

/// One end of the socket.
pub struct Channel(OwnedFd);

/// The other process has ended, or has closed its socket.
#[derive(Debug)]
pub struct Gone;

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the other process is gone")
    }
}

impl std::error::Error for Gone {}

/// No message is longer.
const LONGEST: usize = 4096;

impl Channel {
    pub fn pair() -> Result<(Channel, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            // Keeps messages apart, and tells when the other side is gone.
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .context("socketpair")?;
        Ok((Channel(ours), theirs))
    }

    pub fn from_stdin() -> Result<Channel> {
        let stdin = std::io::stdin().as_fd().try_clone_to_owned();
        Ok(Channel(stdin.context("standard input")?))
    }

    /// Tells the other side that nothing more comes.
    pub fn close(&self) {
        // It fails if that side has closed it already.
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }

    pub fn send(&self, message: &impl Serialize, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let text = serde_json::to_vec(message)?;
        assert!(text.len() <= LONGEST);
        let fds = fd.map(|fd| fd.as_raw_fd());
        let rights = [ControlMessage::ScmRights(fds.as_slice())];
        let control = if fds.is_some() { &rights[..] } else { &[] };
        let (fd, flags) = (self.0.as_raw_fd(), MsgFlags::MSG_NOSIGNAL);
        sendmsg::<()>(fd, &[IoSlice::new(&text)], control, flags, None).context(Gone)?;
        Ok(())
    }

    /// Waits for a message; `None` when the other side has closed the socket.
    pub fn receive<M: DeserializeOwned>(&self) -> Result<Option<(M, Option<OwnedFd>)>> {
        let mut text = [0; LONGEST];
        match self.receive_bytes(&mut text, MsgFlags::empty()) {
            Ok((0, _)) | Err(Errno::ECONNRESET) => Ok(None),
            Ok((n, fd)) => Ok(Some((serde_json::from_slice(&text[..n])?, fd))),
            Err(errno) => Err(errno).context("recvmsg"),
        }
    }

    /// A message that is there already.
    pub fn poll<M: DeserializeOwned>(&self) -> Result<Option<M>> {
        let mut text = [0; LONGEST];
        match self.receive_bytes(&mut text, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN) => Ok(None),
            Ok((0, _)) => Err(Gone.into()),
            Ok((n, _)) => Ok(Some(serde_json::from_slice(&text[..n])?)),
            Err(errno) => Err(errno).context(Gone),
        }
    }

    fn receive_bytes(
        &self,
        text: &mut [u8],
        flags: MsgFlags,
    ) -> nix::Result<(usize, Option<OwnedFd>)> {
        let mut control = cmsg_space!([i32; 1]);
        let mut parts = [IoSliceMut::new(text)];
        let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
        let mut fd = None;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: The kernel just made this descriptor for us and nobody else knows of it.
                fd = fds.first().map(|&fd| unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        Ok((message.bytes, fd))
    }
}
