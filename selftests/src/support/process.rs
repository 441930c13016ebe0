// SPDX-License-Identifier: GPL-2.0

//! Other processes, and descriptors handed between them.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sys::socket::{
    recvmsg, sendmsg, socketpair, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags,
    SockFlag, SockType,
};
use nix::sys::wait::{waitpid, WaitStatus};
use nix::unistd::{fork, ForkResult, Pid};

/// A child that runs `body`; a panic in it is the test's failure when it is waited for.
pub struct Child(Pid);

impl Child {
    pub fn spawn(body: impl FnOnce()) -> Child {
        // SAFETY: Called before the test starts threads, or when those it has hold no lock.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Child => {
                let body = std::panic::AssertUnwindSafe(body);
                let result = std::panic::catch_unwind(body);
                // SAFETY: Ends the process.
                unsafe { libc::_exit(if result.is_ok() { 0 } else { 1 }) }
            }
            ForkResult::Parent { child } => Child(child),
        }
    }

    pub fn pid(&self) -> i32 {
        self.0.as_raw()
    }

    pub fn wait(&self) -> WaitStatus {
        waitpid(self.0, None).expect("waitpid")
    }

    #[track_caller]
    pub fn succeed(&self) {
        assert_eq!(self.wait(), WaitStatus::Exited(self.0, 0), "the child");
    }
}

/// A pair of sockets to hand descriptors over.
pub fn sockets() -> (OwnedFd, OwnedFd) {
    socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .expect("socketpair")
}

/// Sends `fd` by SCM_RIGHTS.
pub fn send_fd(socket: &OwnedFd, fd: &impl AsRawFd) {
    let fds = [fd.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&fds)];
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(b"fd")],
        &message,
        MsgFlags::empty(),
        None,
    );
    assert_eq!(sent, Ok(2), "sendmsg");
}

/// Receives what `send_fd` sent.
pub fn receive_fd(socket: &OwnedFd) -> OwnedFd {
    let mut bytes = [0; 2];
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut buffers,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .expect("recvmsg");
    for control in message.cmsgs().expect("whole") {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: Just received, so nobody else's.
            return unsafe { OwnedFd::from_raw_fd(fds[0]) };
        }
    }
    panic!("no descriptor came");
}
