// SPDX-License-Identifier: GPL-2.0

//! Errors that say what was refused.

use std::fmt;
use std::io;

/// Result of an operation on a space.
pub type Result<T> = std::result::Result<T, Error>;

/// An operation that the kernel refused.
///
/// It is shown as one line: what was tried, the errno, and what that means for this operation.
///
/// ```no_run
/// # use asfd::{AddressSpace, CreateFlags, Mapping};
/// # let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
/// space.map(&Mapping::anonymous(4096).at(0))?;
/// let error = space.map(&Mapping::anonymous(4096).at(0)).unwrap_err();
///
/// assert_eq!(error.errno(), libc::EEXIST);
/// assert_eq!(
///     error.to_string(),
///     "cannot map 4096 bytes of anonymous memory (r-, shared) at 0x0: \
///      EEXIST: something is mapped there already"
/// );
/// # Ok::<(), asfd::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Error {
    operation: Operation,
    what: String,
    errno: i32,
    /// What is known beyond what the errno means in general.
    why: Option<String>,
}

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Make a space.
    Create,
    /// Map into a space.
    Map,
    /// Unmap from a space.
    Unmap,
    /// Change the protection of mappings.
    Protect,
    /// Give advice on mappings.
    Advise,
    /// Add seals to a space.
    Seal,
    /// Make a view.
    View,
    /// Mirror a space into this process.
    Mirror,
    /// Read bytes of a space.
    Read,
    /// Write bytes of a space.
    Write,
    /// Find mappings and holes.
    Seek,
    /// Ask for the properties of a space.
    Info,
    /// Ask for a mapping.
    Query,
    /// Make, move or delete a KVM window.
    Window,
    /// Duplicate a descriptor of this process.
    Duplicate,
    /// Get a descriptor of another process.
    Process,
}

impl Error {
    /// `what` completes "cannot ...".
    pub(crate) fn new(operation: Operation, what: String, errno: impl Into<io::Error>) -> Self {
        let errno = errno.into().raw_os_error().unwrap_or(libc::EIO);
        Error {
            operation,
            what,
            errno,
            why: None,
        }
    }

    /// The same error, with words of its own for the reason.
    pub(crate) fn because(self, why: String) -> Self {
        Error {
            why: Some(why),
            ..self
        }
    }

    /// The error number, one of `libc::E*`.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// What was tried.
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// The kind of the equivalent [`io::Error`].
    pub fn kind(&self) -> io::ErrorKind {
        io::Error::from_raw_os_error(self.errno).kind()
    }

    /// What the error number means for this operation, in words.
    pub fn meaning(&self) -> String {
        if let Some(why) = &self.why {
            return why.clone();
        }
        match meaning(self.operation, self.errno) {
            Some(words) => words.to_owned(),
            // "File exists (os error 17)": the name of the errno stands before it anyway.
            None => {
                let text = io::Error::from_raw_os_error(self.errno).to_string();
                let end = text.find(" (os error").unwrap_or(text.len());
                text[..end].to_lowercase()
            }
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: ", self.what)?;
        match name(self.errno) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "errno {}", self.errno)?,
        }
        write!(f, ": {}", self.meaning())
    }
}

impl std::error::Error for Error {}

/// Keeps the error number; the words are lost.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::from_raw_os_error(error.errno)
    }
}

fn meaning(operation: Operation, errno: i32) -> Option<&'static str> {
    use Operation::*;

    Some(match (operation, errno) {
        (Create | Map | Unmap, libc::ENOSYS) => "this kernel has no address spaces",
        (Create, libc::EINVAL) => "an unknown flag, or a 32-bit program",
        (_, libc::EMFILE) => "this process has too many files open",

        (Map, libc::EBADF) => "the space or the file is not an open descriptor",
        (Map, libc::EINVAL) => {
            "the descriptor is not an address space, a flag or protection bit is unknown, the \
             length is zero, or the address or offset is not on a page boundary"
        }
        (Map, libc::ELOOP) => "the file is an address space or ends in one",
        (Map, libc::ENODEV) => "this kind of file cannot be mapped into an address space",
        (Map, libc::EACCES) => "the file is not open for what the protection asks",
        (Map, libc::EPERM) => {
            "the descriptor of the space lacks the right, the space is sealed, or the file's own \
             seals forbid it"
        }
        (Map, libc::EEXIST) => "something is mapped there already",
        (Map, libc::ENOMEM) => {
            "out of memory, of mappings (vm.max_map_count) or of free addresses, or past the end \
             of the space"
        }
        (Map, libc::EOVERFLOW) => "offset and length pass the end of what the file can address",
        (Map, libc::E2BIG) => "this kernel does not know all of the arguments",

        (Unmap, libc::EINVAL) => {
            "the descriptor is not an address space, the length is zero, the address is not on a \
             page boundary, or the range passes the end of the space"
        }
        (Unmap, libc::EPERM) => {
            "the descriptor of the space lacks the right, or the space is sealed"
        }
        (Unmap, libc::ENOMEM) => "out of memory, or of mappings (vm.max_map_count)",

        (Protect, libc::EINVAL) => {
            "the length is zero, the address is not on a page boundary, or the range cuts a huge \
             page"
        }
        (Protect, libc::EACCES) => "a mapping there may not have this protection",
        (Protect, libc::ENOMEM) => {
            "not all of the range is mapped, or out of memory or of mappings (vm.max_map_count)"
        }
        (Advise, libc::EINVAL) => {
            "the address is not on a page boundary, or the advice does not fit the mapping or \
             this kernel"
        }
        (Advise, libc::EACCES) => "this advice needs write access",
        (Advise, libc::ENOMEM) => "not all of the range is mapped, or out of memory",
        (Advise, libc::EBUSY) => "the pages are locked or in use",
        (Advise, libc::EFAULT) => "a page cannot be brought in",

        (Seal, libc::EINVAL) => "an unknown seal",

        (View, libc::EINVAL) => {
            "the window is empty or not on page boundaries, or a right or protection bit is unknown"
        }
        (View, libc::EACCES) => "a view cannot read or write more than what it is made from",
        (View, libc::EPERM) => {
            "this descriptor may not make views, or lacks a right that the view is to have"
        }

        (Mirror, libc::EINVAL) => {
            "the length is zero, the offset is not on a page boundary, or this kernel has no mirrors"
        }
        (Mirror, libc::EACCES) => "this descriptor does not give that much access",
        (Mirror, libc::ENODEV) => "not an address space, or this kernel has no mirrors",
        (Mirror, libc::ENOMEM) => {
            "out of memory, of mappings (vm.max_map_count) or of addresses in this process, or \
             past the end of the space"
        }

        (Protect | Advise | Seal | View, libc::ENOTTY) => {
            "not an address space, or this kernel cannot do that"
        }
        (Protect | Advise | Seal, libc::EPERM) => {
            "this descriptor lacks the right, or the space is sealed"
        }
        (Map | Unmap | Protect | Advise | View | Mirror, libc::ERANGE) => {
            "outside the window of this view"
        }

        (Read | Write, libc::EIO) => "nothing is mapped there, or the mapping has no page there",
        (Read, libc::EACCES) => "not readable there, or not through this descriptor",
        (Write, libc::EACCES) => "not writable there, or not through this descriptor",
        (Write, libc::ENOSPC) => "past the end of what this descriptor shows",
        (Read | Write | Seek, libc::EINVAL) => "the offset is past what a file can have",

        (Info, libc::ENOTTY) => "not an address space",
        (Query, libc::ENOTTY) => "not an address space, or this kernel cannot be asked",
        (Seek | Query, libc::EPERM) => "this descriptor may not look at the mappings",

        (Window, libc::EBADF) => "the space is not an open descriptor",
        (Window, libc::EINVAL) => {
            "the descriptor is not an address space, the slot or a flag is unknown, the address, \
             offset or length is not on a page boundary, or the slot exists and cannot be \
             changed so"
        }
        (Window, libc::EEXIST) => "another slot of the VM covers these guest addresses",
        (Window, libc::EPERM) => "this descriptor may not be shown to a guest",
        (Window, libc::EACCES) => "this descriptor is not writable: use a read-only window",
        (Window, libc::ERANGE) => "outside the window of this view",
        (Window, libc::ENOTTY) => "not a VM, or a KVM that knows no address spaces",

        (Process, libc::ESRCH) => "no such process",
        (Process, libc::EBADF) => "the process has no such descriptor",
        (Process, libc::EPERM) => "not permitted to take descriptors of this process",
        (Process, libc::EINVAL) => "no such process number",

        (_, libc::EBADF) => "not an open descriptor",
        (_, libc::EFAULT) => "the argument cannot be read or written",
        (_, libc::ENOMEM) => "out of memory",
        _ => return None,
    })
}

fn name(errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::E2BIG => "E2BIG",
        libc::EACCES => "EACCES",
        libc::EAGAIN => "EAGAIN",
        libc::EBADF => "EBADF",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::EFAULT => "EFAULT",
        libc::EHWPOISON => "EHWPOISON",
        libc::EINTR => "EINTR",
        libc::EINVAL => "EINVAL",
        libc::EIO => "EIO",
        libc::ELOOP => "ELOOP",
        libc::EMFILE => "EMFILE",
        libc::ENFILE => "ENFILE",
        libc::ENODEV => "ENODEV",
        libc::ENOENT => "ENOENT",
        libc::ENOMEM => "ENOMEM",
        libc::ENOSPC => "ENOSPC",
        libc::ENOSYS => "ENOSYS",
        libc::ENOTTY => "ENOTTY",
        libc::ENXIO => "ENXIO",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::EOVERFLOW => "EOVERFLOW",
        libc::EPERM => "EPERM",
        libc::ERANGE => "ERANGE",
        libc::ESPIPE => "ESPIPE",
        libc::ESRCH => "ESRCH",
        libc::ETXTBSY => "ETXTBSY",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(operation: Operation, errno: i32) -> Error {
        Error::new(
            operation,
            "do it".to_owned(),
            io::Error::from_raw_os_error(errno),
        )
    }

    #[test]
    fn the_operation_decides_what_an_errno_means() {
        assert_eq!(
            error(Operation::Map, libc::EEXIST).to_string(),
            "cannot do it: EEXIST: something is mapped there already"
        );
        assert!(error(Operation::Window, libc::EEXIST)
            .meaning()
            .contains("slot"));
    }

    #[test]
    fn a_reason_of_its_own_takes_the_place_of_the_general_one() {
        let error = error(Operation::Seal, libc::EPERM).because("it is Sunday".to_owned());
        assert_eq!(error.to_string(), "cannot do it: EPERM: it is Sunday");
        assert_eq!(error.errno(), libc::EPERM);
    }

    #[test]
    fn an_unlisted_errno_still_says_something() {
        assert_eq!(
            error(Operation::Map, libc::EINTR).to_string(),
            "cannot do it: EINTR: interrupted system call"
        );
        assert_eq!(
            error(Operation::Map, libc::EXDEV).to_string(),
            format!(
                "cannot do it: errno {}: invalid cross-device link",
                libc::EXDEV
            )
        );
    }

    #[test]
    fn the_number_survives_as_an_io_error() {
        let error = error(Operation::Unmap, libc::EPERM);
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(io::Error::from(error).raw_os_error(), Some(libc::EPERM));
    }
}
