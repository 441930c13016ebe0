// SPDX-License-Identifier: GPL-2.0

//! What to map and where.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::sys::address_space_mmap_args;
use crate::Prot;

/// A mapping to make: what, how long, how, where.
///
/// Without further words it is shared, readable, from the start of the file, at the lowest free
/// address.
///
/// ```no_run
/// use asfd::{AddressSpace, CreateFlags, Mapping, Prot};
/// # let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
/// # let file = std::fs::File::open("bzImage")?;
///
/// let code = Mapping::file(&file, 0x2000).offset(0x1000).at(0x10_0000);
/// let heap = Mapping::anonymous(1 << 20).prot(Prot::READ | Prot::WRITE);
///
/// space.map(&code)?;
/// let heap_at = space.map(&heap)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "a Mapping does nothing until it is passed to AddressSpace::map"]
pub struct Mapping<'fd> {
    file: Option<BorrowedFd<'fd>>,
    len: u64,
    offset: u64,
    prot: Prot,
    private: bool,
    place: Place,
    extra: libc::c_int,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Free { hint: u64 },
    Vacant(u64),
    Replace(u64),
}

/// Size of the huge pages of a [`Mapping`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HugePageSize(u32);

impl HugePageSize {
    /// The system's default.
    pub const DEFAULT: Self = HugePageSize(0);
    /// 2 MiB.
    pub const MIB_2: Self = HugePageSize(21);
    /// 1 GiB.
    pub const GIB_1: Self = HugePageSize(30);

    /// A size in bytes; `None` unless it is a power of two above 1.
    pub fn from_bytes(bytes: u64) -> Option<Self> {
        (bytes.is_power_of_two() && bytes > 1).then(|| HugePageSize(bytes.trailing_zeros()))
    }
}

impl<'fd> Mapping<'fd> {
    /// `len` bytes of a file (or memfd), from its start.
    pub fn file<F: AsFd + ?Sized>(file: &'fd F, len: u64) -> Self {
        Mapping {
            file: Some(file.as_fd()),
            ..Mapping::anonymous(len)
        }
    }

    /// `len` bytes of fresh memory, all zero.
    pub fn anonymous(len: u64) -> Self {
        Mapping {
            file: None,
            len,
            offset: 0,
            prot: Prot::READ,
            private: false,
            place: Place::Free { hint: 0 },
            extra: 0,
        }
    }

    /// Starts at this offset in the file, a whole number of pages.
    pub fn offset(self, offset: u64) -> Self {
        Mapping { offset, ..self }
    }

    /// Allows these accesses.
    pub fn prot(self, prot: Prot) -> Self {
        Mapping { prot, ..self }
    }

    /// Writes go to the file and are seen by all who map it (the default).
    pub fn shared(self) -> Self {
        Mapping {
            private: false,
            ..self
        }
    }

    /// Writes stay in the space: a page is copied when it is first written.
    pub fn private(self) -> Self {
        Mapping {
            private: true,
            ..self
        }
    }

    /// Exactly at `addr`, where nothing may be mapped yet (`EEXIST`).
    pub fn at(self, addr: u64) -> Self {
        Mapping {
            place: Place::Vacant(addr),
            ..self
        }
    }

    /// Exactly at `addr`, in place of whatever is mapped there. Nobody sees a hole in between.
    pub fn replacing(self, addr: u64) -> Self {
        Mapping {
            place: Place::Replace(addr),
            ..self
        }
    }

    /// At the lowest free address at or above `hint`.
    pub fn hint(self, hint: u64) -> Self {
        Mapping {
            place: Place::Free { hint },
            ..self
        }
    }

    /// Brings the pages in at once, not at the first access.
    pub fn populate(self) -> Self {
        self.with(libc::MAP_POPULATE)
    }

    /// Sets no swap space aside.
    pub fn noreserve(self) -> Self {
        self.with(libc::MAP_NORESERVE)
    }

    /// Anonymous memory in huge pages from the hugetlb pool. A memfd that has huge pages needs
    /// no word of it here.
    pub fn hugetlb(self, size: HugePageSize) -> Self {
        let size_bits = (size.0 as libc::c_int) << libc::MAP_HUGE_SHIFT;
        self.with(libc::MAP_HUGETLB | size_bits)
    }

    fn with(self, flag: libc::c_int) -> Self {
        Mapping {
            extra: self.extra | flag,
            ..self
        }
    }

    /// Whether other mappings may be in its way.
    pub(crate) fn replaces(&self) -> bool {
        matches!(self.place, Place::Replace(_))
    }

    /// The arguments of the system call.
    pub(crate) fn args(&self) -> address_space_mmap_args {
        let kind = if self.private {
            libc::MAP_PRIVATE
        } else {
            libc::MAP_SHARED
        };
        let (fd, anonymous) = match self.file {
            Some(fd) => (fd.as_raw_fd(), 0),
            None => (-1, libc::MAP_ANONYMOUS),
        };
        let (addr, fixed) = match self.place {
            Place::Free { hint } => (hint, 0),
            Place::Vacant(addr) => (addr, libc::MAP_FIXED_NOREPLACE),
            Place::Replace(addr) => (addr, libc::MAP_FIXED),
        };
        address_space_mmap_args {
            addr,
            len: self.len,
            offset: self.offset,
            fd,
            prot: self.prot.bits(),
            flags: (kind | anonymous | fixed | self.extra) as u32,
            __reserved: 0,
        }
    }
}

/// For error messages: "4096 bytes of fd 5 from 0x1000 (rw, shared) at 0x0".
impl fmt::Display for Mapping<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of ", self.len)?;
        match self.file {
            Some(fd) => write!(f, "fd {} from {:#x}", fd.as_raw_fd(), self.offset)?,
            None => f.write_str("anonymous memory")?,
        }
        let kind = if self.private { "private" } else { "shared" };
        write!(f, " ({}, {kind})", self.prot)?;
        match self.place {
            Place::Free { hint: 0 } => Ok(()),
            Place::Free { hint } => write!(f, " at or above {hint:#x}"),
            Place::Vacant(addr) => write!(f, " at {addr:#x}"),
            Place::Replace(addr) => write!(f, " in place of what is at {addr:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults() {
        let args = Mapping::anonymous(8192).args();
        assert_eq!((args.addr, args.len, args.offset), (0, 8192, 0));
        assert_eq!(args.fd, -1);
        assert_eq!(args.prot, libc::PROT_READ as u32);
        assert_eq!(args.flags, (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u32);
    }

    #[test]
    fn places() {
        let m = Mapping::anonymous(1);
        let fixed = (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) as u32;
        let place = |m: Mapping| (m.args().addr, m.args().flags & fixed);
        assert_eq!(place(m.hint(1)), (1, 0));
        assert_eq!(place(m.at(2)), (2, libc::MAP_FIXED_NOREPLACE as u32));
        assert_eq!(place(m.replacing(3)), (3, libc::MAP_FIXED as u32));
    }

    #[test]
    fn files_and_flags() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let args = Mapping::file(&file, 5)
            .offset(4096)
            .private()
            .populate()
            .hugetlb(HugePageSize::MIB_2)
            .args();
        assert_eq!(args.fd, file.as_raw_fd());
        assert_eq!(args.offset, 4096);
        let expected =
            libc::MAP_PRIVATE | libc::MAP_POPULATE | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
        assert_eq!(args.flags, expected as u32);
    }

    #[test]
    fn huge_page_sizes() {
        assert_eq!(HugePageSize::from_bytes(2 << 20), Some(HugePageSize::MIB_2));
        assert_eq!(HugePageSize::from_bytes(3 << 20), None);
        assert_eq!(HugePageSize::from_bytes(0), None);
    }
}
