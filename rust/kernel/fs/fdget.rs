// SPDX-License-Identifier: GPL-2.0

//! Files by descriptor, for the time of a system call.
//!
//! C header: [`include/linux/file.h`](srctree/include/linux/file.h)

use super::{file::BadFdError, LocalFile};
use crate::{bindings, types::NotThreadSafe};
use core::ops::Deref;

/// A descriptor that is looked up, C's `CLASS(fd)`.
///
/// Where no other thread shares the task's descriptors it takes no reference to the file: the
/// descriptor has one, and only the task itself could close it. Hence it is for code that closes
/// none, and stays on its thread; what is to be kept beyond the system call is
/// [`LocalFile::fget`]'s.
///
/// # Examples
///
/// ```
/// use kernel::fs::fdget::Fdget;
///
/// // No task has that many.
/// assert!(Fdget::new(u32::MAX).is_err());
/// ```
///
/// # Invariants
///
/// `fd` is of a file that stays open until this is dropped.
pub struct Fdget {
    fd: bindings::fd,
    _not_send: NotThreadSafe,
}

impl Fdget {
    /// Looks `fd` up in the table of the current task.
    pub fn new(fd: u32) -> Result<Self, BadFdError> {
        // SAFETY: There are no requirements.
        let fd = unsafe { bindings::fdget(fd) };
        if fd.word == 0 {
            return Err(BadFdError);
        }
        // INVARIANT: Either this has a reference, or the descriptor has, which is not closed before
        // this is dropped: the system call of its only user is what we are in.
        Ok(Self {
            fd,
            _not_send: NotThreadSafe,
        })
    }

    fn as_ptr(&self) -> *const bindings::file {
        let flags = (bindings::FDPUT_FPUT | bindings::FDPUT_POS_UNLOCK) as usize;
        (self.fd.word & !flags) as *const bindings::file
    }
}

impl Deref for Fdget {
    type Target = LocalFile;

    fn deref(&self) -> &LocalFile {
        // SAFETY: By the type invariants the file is valid; no position is locked.
        unsafe { LocalFile::from_raw_file(self.as_ptr()) }
    }
}

impl Drop for Fdget {
    fn drop(&mut self) {
        if self.fd.word & bindings::FDPUT_FPUT as usize != 0 {
            // SAFETY: The flag says that the reference is ours.
            unsafe { bindings::fput(self.as_ptr().cast_mut()) };
        }
    }
}
