// SPDX-License-Identifier: GPL-2.0

//! The space: made, shared, edited.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use crate::{sys, CreateFlags, Error, Mapping, Operation, Result};

/// A descriptor of an address space.
///
/// It is closed when dropped; the space lives until its last descriptor is closed. The methods
/// take `&self`: the kernel orders edits among threads and processes.
#[derive(Debug)]
pub struct AddressSpace {
    fd: OwnedFd,
}

impl AddressSpace {
    /// Makes an empty space.
    ///
    /// ```no_run
    /// use asfd::{AddressSpace, CreateFlags};
    ///
    /// let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    /// // For a program that is to be executed.
    /// let inherited = AddressSpace::create(CreateFlags::empty())?;
    /// # Ok::<(), asfd::Error>(())
    /// ```
    pub fn create(flags: CreateFlags) -> Result<Self> {
        let fd = sys::address_space_create(flags.bits())
            .map_err(|e| Error::new(Operation::Create, "create an address space".into(), e))?;
        // SAFETY: The kernel just made this descriptor and nobody else knows of it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(AddressSpace { fd })
    }

    /// Another descriptor of the same space, close-on-exec.
    pub fn try_clone(&self) -> Result<Self> {
        let what = || format!("duplicate fd {}", self.as_raw_fd());
        let fd = self
            .fd
            .try_clone()
            .map_err(|e| Error::new(Operation::Duplicate, what(), e))?;
        Ok(AddressSpace { fd })
    }

    /// Maps, and returns the address.
    ///
    /// ```no_run
    /// # use asfd::{AddressSpace, CreateFlags, Mapping, Prot};
    /// # let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    /// let addr = space.map(&Mapping::anonymous(1 << 20).prot(Prot::READ | Prot::WRITE))?;
    /// // All zero again, and nobody sees a hole in between.
    /// space.map(&Mapping::anonymous(1 << 20).replacing(addr))?;
    /// # Ok::<(), asfd::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// | errno | meaning |
    /// |---|---|
    /// | `EINVAL` | a zero length, an unaligned address or offset, an impossible huge page size |
    /// | `ELOOP` | the file is an address space |
    /// | `ENODEV` | this kind of file cannot be mapped into a space |
    /// | `EACCES` | the file is not open for what the protection asks |
    /// | `EPERM` | the descriptor lacks the right, or a seal of space or file forbids it |
    /// | `EEXIST` | [`Mapping::at`], and something is there |
    /// | `ENOMEM` | out of memory, mappings or addresses; past the end of the space |
    /// | `EOVERFLOW` | offset and length pass what the file can address |
    ///
    /// A mapping that fails changes nothing.
    pub fn map(&self, mapping: &Mapping<'_>) -> Result<u64> {
        let mut args = mapping.args();
        // SAFETY: `args` is valid for its own size.
        unsafe { sys::address_space_mmap(self.as_raw_fd(), &mut args, size_of_val(&args)) }
            .map_err(|e| Error::new(Operation::Map, format!("map {mapping}"), e))
    }

    /// Unmaps `len` bytes at `addr`; holes in the range are passed over, the length is rounded up
    /// to whole pages. When it returns, nobody reaches the pages through the space any more.
    ///
    /// ```no_run
    /// # use asfd::{AddressSpace, CreateFlags, Mapping};
    /// # let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    /// let addr = space.map(&Mapping::anonymous(1 << 20))?;
    /// space.unmap(addr + 4096, 4096)?;
    /// # Ok::<(), asfd::Error>(())
    /// ```
    pub fn unmap(&self, addr: u64, len: u64) -> Result<()> {
        sys::address_space_munmap(self.as_raw_fd(), addr, len).map_err(|e| {
            let what = format!("unmap {len} bytes at {addr:#x}");
            Error::new(Operation::Unmap, what, e)
        })
    }
}

/// Takes a descriptor that came by inheritance or over a socket. It is closed if it is not an
/// address space.
///
/// ```no_run
/// use std::os::fd::OwnedFd;
/// use asfd::AddressSpace;
/// # fn received() -> OwnedFd { unimplemented!() }
///
/// let fd: OwnedFd = received();
/// let space = AddressSpace::try_from(fd)?;
/// # Ok::<(), asfd::Error>(())
/// ```
impl TryFrom<OwnedFd> for AddressSpace {
    type Error = Error;

    fn try_from(fd: OwnedFd) -> Result<Self> {
        let space = AddressSpace { fd };
        space.info()?;
        Ok(space)
    }
}

impl From<AddressSpace> for OwnedFd {
    fn from(space: AddressSpace) -> Self {
        space.fd
    }
}

impl AsFd for AddressSpace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for AddressSpace {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl IntoRawFd for AddressSpace {
    fn into_raw_fd(self) -> RawFd {
        self.fd.into_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_space_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = AddressSpace::try_from(OwnedFd::from(file)).unwrap_err();
        assert_eq!(error.errno(), libc::ENOTTY);
        assert!(error.to_string().contains("not an address space"));
    }
}
