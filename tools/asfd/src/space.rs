// SPDX-License-Identifier: GPL-2.0

//! The space: made, shared, edited.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use crate::{
    sys, Advice, CreateFlags, Error, Mapping, Operation, Prot, Result, Rights, Seals, View,
};

/// A descriptor of an address space: of all of it, or a [`View`].
///
/// Through a view, every address and offset counts from the start of the view's window.
///
/// It is closed when dropped; the space lives as long as it has descriptors and mirrors. The
/// methods take `&self`: the kernel orders edits among threads and processes.
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
    /// | `ERANGE` | outside the window of this view |
    ///
    /// A mapping that fails changes nothing.
    pub fn map(&self, mapping: &Mapping<'_>) -> Result<u64> {
        let mut args = mapping.args();
        // SAFETY: `args` is valid for its own size.
        unsafe { sys::address_space_mmap(self.as_raw_fd(), &mut args, size_of_val(&args)) }.map_err(
            |e| {
                let error = Error::new(Operation::Map, format!("map {mapping}"), e);
                // UNMAP is needed in place of a mapping only; where the other is there, it is that.
                let (right, seal) = match mapping.replaces() {
                    true => (Rights::MAP | Rights::UNMAP, Seals::MAP | Seals::UNMAP),
                    false => (Rights::MAP, Seals::MAP),
                };
                self.explain(error, right, seal)
            },
        )
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
            let error = Error::new(Operation::Unmap, what, e);
            self.explain(error, Rights::UNMAP, Seals::UNMAP)
        })
    }

    /// Changes what the mappings in a range allow; the length is rounded up to whole pages.
    ///
    /// All of the range changes or nothing does. When it returns, nobody makes an access through
    /// the space that the mappings no longer allow.
    ///
    /// ```no_run
    /// # use asfd::{AddressSpace, CreateFlags, Mapping, Prot};
    /// # let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    /// let code = space.map(&Mapping::anonymous(1 << 20).prot(Prot::READ | Prot::WRITE))?;
    /// space.write_all_at(b"...", code)?;
    /// space.protect(code, 1 << 20, Prot::READ)?;
    /// # Ok::<(), asfd::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// | errno | meaning |
    /// |---|---|
    /// | `EINVAL` | a zero length, an unaligned address, a range that cuts a huge page |
    /// | `ENOMEM` | there is a hole in the range; out of memory or mappings |
    /// | `EACCES` | a mapping may not have it: its file is not open for writing |
    /// | `EPERM` | the descriptor lacks [`Rights::CHANGE`], or [`Seals::CHANGE`] is set |
    /// | `ERANGE` | outside the window of this view |
    pub fn protect(&self, addr: u64, len: u64, prot: Prot) -> Result<()> {
        let mut args = sys::address_space_protect {
            addr,
            len,
            prot: prot.bits(),
            __reserved: 0,
        };
        // SAFETY: `args` is what the request takes and holds no addresses of this process.
        unsafe { sys::ioctl(self.as_raw_fd(), sys::ADDRESS_SPACE_IOC_PROTECT, &mut args) }
            .map_err(|e| {
                let what = format!("protect {len} bytes at {addr:#x} ({prot})");
                let error = Error::new(Operation::Protect, what, e);
                self.explain(error, Rights::CHANGE, Seals::CHANGE)
            })
            .map(drop)
    }

    /// Tells the kernel what is going to happen with a range, or has it done something about it
    /// right away. It is madvise(2) for the space.
    ///
    /// ```no_run
    /// # use asfd::{Advice, AddressSpace, CreateFlags, Mapping};
    /// # let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    /// let scratch = space.map(&Mapping::anonymous(1 << 20).private())?;
    /// // Its memory goes back to the system; the range stays mapped and reads as zeros.
    /// space.advise(scratch, 1 << 20, Advice::DontNeed)?;
    /// # Ok::<(), asfd::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What madvise(2) says of the advice: `ENOMEM` also where there is a hole in the range (the
    /// rest of it has then been advised), and `EPERM` and `ERANGE` as
    /// [`protect`](Self::protect).
    pub fn advise(&self, addr: u64, len: u64, advice: Advice) -> Result<()> {
        let mut args = sys::address_space_advise {
            addr,
            len,
            advice: advice.number(),
            __reserved: 0,
        };
        // SAFETY: `args` is what the request takes and holds no addresses of this process.
        unsafe { sys::ioctl(self.as_raw_fd(), sys::ADDRESS_SPACE_IOC_ADVISE, &mut args) }
            .map_err(|e| {
                let what = format!("advise {advice} for {len} bytes at {addr:#x}");
                let error = Error::new(Operation::Advise, what, e);
                self.explain(error, Rights::CHANGE, Seals::CHANGE)
            })
            .map(drop)
    }

    /// Forbids edits of the whole space, to every descriptor, for as long as the space exists.
    /// Seals are added to those that there are.
    ///
    /// ```no_run
    /// # use asfd::{AddressSpace, CreateFlags, Mapping, Seals};
    /// # let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    /// space.map(&Mapping::anonymous(1 << 20).at(0))?;
    /// // It stays as it is now.
    /// space.seal(Seals::all())?;
    /// # Ok::<(), asfd::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `EPERM` if the descriptor lacks [`Rights::SEAL`] or [`Seals::SEAL`] is set.
    pub fn seal(&self, seals: Seals) -> Result<()> {
        let mut args: u32 = seals.bits();
        // SAFETY: `args` is what the request takes and holds no addresses of this process.
        unsafe { sys::ioctl(self.as_raw_fd(), sys::ADDRESS_SPACE_IOC_SEAL, &mut args) }
            .map_err(|e| {
                let what = format!("seal the space against {}", words(seals));
                let error = Error::new(Operation::Seal, what, e);
                self.explain(error, Rights::SEAL, Seals::SEAL)
            })
            .map(drop)
    }

    /// Makes another descriptor of the space that shows less of it or may do less with it.
    ///
    /// ```no_run
    /// # use asfd::{AddressSpace, CreateFlags, Prot, View};
    /// # let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    /// // For a device: it reads and writes what is mapped in 1 GiB, and can change none of it.
    /// let view = space.view(&View::of(0..1 << 30).prot(Prot::READ | Prot::WRITE))?;
    /// # Ok::<(), asfd::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// | errno | meaning |
    /// |---|---|
    /// | `EINVAL` | an empty window, or one that is not on page boundaries |
    /// | `ERANGE` | a window that is not inside that of this descriptor |
    /// | `EPERM` | this descriptor lacks [`Rights::VIEW`], or a right that the view is to have |
    /// | `EACCES` | a ceiling that is not below that of this descriptor |
    pub fn view(&self, view: &View) -> Result<AddressSpace> {
        let mut args = view.args(|| self.info().map(|info| info.window.end - info.window.start))?;
        // SAFETY: `args` is what the request takes and holds no addresses of this process.
        let fd = unsafe { sys::ioctl(self.as_raw_fd(), sys::ADDRESS_SPACE_IOC_VIEW, &mut args) }
            .map_err(|e| {
                let error = Error::new(Operation::View, format!("make a view of {view}"), e);
                self.explain(error, view.needs(), Seals::empty())
            })?;
        // SAFETY: The kernel just made this descriptor and nobody else knows of it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(AddressSpace { fd })
    }

    /// `EPERM` has two reasons, which the properties of the descriptor tell apart.
    pub(crate) fn explain(&self, error: Error, rights: Rights, seals: Seals) -> Error {
        if error.errno() != libc::EPERM {
            return error;
        }
        let Ok(info) = self.info() else {
            return error;
        };
        let missing = rights - info.rights;
        let sealed = seals & info.seals;
        if !missing.is_empty() {
            error.because(format!(
                "this descriptor lacks the right to {}",
                words(missing)
            ))
        } else if !sealed.is_empty() {
            error.because(format!("the space is sealed against {}", words(sealed)))
        } else {
            error
        }
    }
}

/// "map, unmap"
fn words(set: impl std::fmt::Display) -> String {
    set.to_string().replace(',', ", ")
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
