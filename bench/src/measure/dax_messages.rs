// SPDX-License-Identifier: GPL-2.0

//! What a daemon sends a VMM to have files mapped into a DAX window, and the answers.
//!
//! It is framed as in vhost-user (VHOST_USER_BACKEND_SHMEM_MAP): a header, which says how much
//! follows, with the file's descriptor, then the numbers; and a header and one number for the
//! answer. Each is sent with one call. Who receives reads the header, then the rest. Programs that
//! do this poll for messages as well; here a thread of the VMM waits for nothing else.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use anyhow::{bail, ensure, Context, Result};
use nix::sys::socket::{recvmsg, sendmsg, ControlMessage, ControlMessageOwned, MsgFlags};

#[derive(Clone, Copy)]
pub enum Request {
    Map,
    Unmap,
    /// The guest touches all pages. This is for the measurement alone.
    Touch,
}

pub struct Message {
    pub request: Request,
    pub file_offset: u64,
    pub window_offset: u64,
    pub len: u64,
}

/// Request, flags, length of what follows.
const HEADER: usize = 12;
/// Number of the window, offset in the file, offset in the window, length, protection.
const MESSAGE: usize = HEADER + 40;
const ANSWER: usize = HEADER + 8;

impl Message {
    fn encode(&self) -> [u8; MESSAGE] {
        let mut bytes = [0; MESSAGE];
        bytes[0] = self.request as u8;
        bytes[8] = (MESSAGE - HEADER) as u8;
        let numbers = [self.file_offset, self.window_offset, self.len];
        for (to, number) in bytes[HEADER + 8..].chunks_exact_mut(8).zip(numbers) {
            to.copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8; MESSAGE]) -> Result<Message> {
        let number =
            |n: usize| u64::from_ne_bytes(std::array::from_fn(|byte| bytes[HEADER + 8 * n + byte]));
        Ok(Message {
            request: match bytes[0] {
                0 => Request::Map,
                1 => Request::Unmap,
                2 => Request::Touch,
                other => bail!("no such request: {other}"),
            },
            file_offset: number(1),
            window_offset: number(2),
            len: number(3),
        })
    }
}

/// One end of the socket.
#[derive(Clone, Copy)]
pub struct Link<'a> {
    pub socket: &'a UnixStream,
    /// If not: no descriptors, and messages are read at once, whose lengths are known.
    pub vhost_user: bool,
}

/// Room for what comes with a message.
pub fn control() -> Vec<u8> {
    nix::cmsg_space!([RawFd; 1])
}

impl Link<'_> {
    /// Sends a message, and waits for the answer.
    pub fn ask(mut self, message: &Message, file: Option<&File>) -> Result<()> {
        let bytes = message.encode();
        match file {
            Some(file) => {
                let fds = [file.as_raw_fd()];
                let rights = [ControlMessage::ScmRights(&fds)];
                let iov = [IoSlice::new(&bytes)];
                let fd = self.socket.as_raw_fd();
                sendmsg::<()>(fd, &iov, &rights, MsgFlags::empty(), None).context("sendmsg")?;
            }
            None => self.socket.write_all(&bytes).context("write")?,
        }
        let mut answer = [0; ANSWER];
        let (header, number) = answer.split_at_mut(if self.vhost_user { HEADER } else { ANSWER });
        self.socket.read_exact(header).context("no answer")?;
        self.socket.read_exact(number).context("no answer")
    }

    pub fn receive(mut self, control: &mut [u8]) -> Result<(Message, Option<File>)> {
        let mut bytes = [0; MESSAGE];
        if !self.vhost_user {
            self.socket.read_exact(&mut bytes).context("read")?;
            return Ok((Message::decode(&bytes)?, None));
        }
        let (header, rest) = bytes.split_at_mut(HEADER);
        let file = self.receive_header(header, control)?;
        self.socket.read_exact(rest).context("read")?;
        Ok((Message::decode(&bytes)?, file))
    }

    fn receive_header(self, header: &mut [u8], control: &mut [u8]) -> Result<Option<File>> {
        let mut iov = [IoSliceMut::new(header)];
        let fd = self.socket.as_raw_fd();
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<()>(fd, &mut iov, Some(control), flags)?;
        ensure!(received.bytes == HEADER, "half a header");
        let Some(ControlMessageOwned::ScmRights(fds)) = received.cmsgs()?.next() else {
            return Ok(None);
        };
        // SAFETY: The kernel just made the descriptor, and nobody else knows of it.
        let own = |fd: &RawFd| File::from(unsafe { OwnedFd::from_raw_fd(*fd) });
        Ok(fds.first().map(own))
    }

    pub fn answer(mut self) -> Result<()> {
        self.socket.write_all(&[0; ANSWER]).context("write")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_descriptors_arrive() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        for (vhost_user, file) in [
            (true, Some(File::open("/dev/null").unwrap())),
            (true, None),
            (false, None),
        ] {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let link = Link {
                        socket: &theirs,
                        vhost_user,
                    };
                    let (message, received) = link.receive(&mut control()).unwrap();
                    assert_eq!(received.is_some(), file.is_some());
                    assert!(matches!(message.request, Request::Touch));
                    let numbers = (message.file_offset, message.window_offset, message.len);
                    assert_eq!(numbers, (1 << 40, 0x1000, 0x2000));
                    link.answer().unwrap();
                });
                let message = Message {
                    request: Request::Touch,
                    file_offset: 1 << 40,
                    window_offset: 0x1000,
                    len: 0x2000,
                };
                let link = Link {
                    socket: &ours,
                    vhost_user,
                };
                link.ask(&message, file.as_ref()).unwrap();
            });
        }
    }
}
