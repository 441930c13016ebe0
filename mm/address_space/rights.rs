// SPDX-License-Identifier: GPL-2.0

//! What the holder of an asfd may do with it.

use kernel::{fmt, prelude::*, uapi};

/// A set of `ADDRESS_SPACE_RIGHT_*`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rights(u32);

impl Rights {
    pub(crate) const MAP: Rights = Rights(uapi::ADDRESS_SPACE_RIGHT_MAP);
    pub(crate) const UNMAP: Rights = Rights(uapi::ADDRESS_SPACE_RIGHT_UNMAP);
    pub(crate) const CHANGE: Rights = Rights(uapi::ADDRESS_SPACE_RIGHT_CHANGE);
    pub(crate) const SEAL: Rights = Rights(uapi::ADDRESS_SPACE_RIGHT_SEAL);
    pub(crate) const VIEW: Rights = Rights(uapi::ADDRESS_SPACE_RIGHT_VIEW);
    pub(crate) const QUERY: Rights = Rights(uapi::ADDRESS_SPACE_RIGHT_QUERY);
    pub(crate) const KVM: Rights = Rights(uapi::ADDRESS_SPACE_RIGHT_KVM);
    pub(crate) const ALL: Rights = Rights((1 << Self::NAMES.len()) - 1);

    /// As fdinfo spells them, from bit 0 up.
    const NAMES: [&'static str; 7] = ["map", "unmap", "change", "seal", "view", "query", "kvm"];

    /// What user space asks for: [`EINVAL`] if there is no such right.
    pub(crate) fn from_bits(bits: u32) -> Result<Self> {
        if bits & !Self::ALL.0 != 0 {
            return Err(EINVAL);
        }
        Ok(Self(bits))
    }

    /// Fails with [`EPERM`] unless all of `needed` are there.
    pub(crate) fn require(self, needed: Rights) -> Result {
        if self.0 & needed.0 == needed.0 {
            Ok(())
        } else {
            Err(EPERM)
        }
    }

    /// The bits, for user space.
    pub(crate) fn bits(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_bits(self.0, &Self::NAMES, f)
    }
}

/// The names of the bits that are set, from bit 0 up.
pub(crate) fn fmt_bits(bits: u32, names: &[&str], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut names = names
        .iter()
        .enumerate()
        .filter(|(bit, _)| bits & (1 << bit) != 0)
        .map(|(_, name)| name);
    f.write_str(names.next().unwrap_or(&"-"))?;
    names.try_for_each(|name| write!(f, ",{name}"))
}

/// What an access wants to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// A set of `PROT_READ` and `PROT_WRITE`: the most that may be done through an asfd.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ceiling(u32);

impl Ceiling {
    pub(crate) const ALL: Ceiling = Ceiling(uapi::PROT_READ | uapi::PROT_WRITE);

    /// What user space asks for: [`EINVAL`] if there is no such access.
    pub(crate) fn from_prot(prot: u32) -> Result<Self> {
        if prot & !Self::ALL.0 != 0 {
            return Err(EINVAL);
        }
        Ok(Self(prot))
    }

    /// Fails with [`EACCES`] if `other` is not within it.
    pub(crate) fn require_all(self, other: Ceiling) -> Result {
        if other.0 & !self.0 == 0 {
            Ok(())
        } else {
            Err(EACCES)
        }
    }

    /// Fails with [`EACCES`] if `access` is beyond it.
    pub(crate) fn require(self, access: Access) -> Result {
        let needed = match access {
            Access::Read => uapi::PROT_READ,
            Access::Write => uapi::PROT_WRITE,
        };
        if self.0 & needed != 0 {
            Ok(())
        } else {
            Err(EACCES)
        }
    }

    /// The bits, for user space.
    pub(crate) fn bits(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Ceiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            match (self.require(Access::Read), self.require(Access::Write)) {
                (Ok(()), Ok(())) => "rw",
                (Ok(()), Err(_)) => "r-",
                (Err(_), Ok(())) => "-w",
                (Err(_), Err(_)) => "--",
            },
        )
    }
}

#[kernel::macros::kunit_tests(address_space_rights)]
mod tests {
    use super::*;

    #[test]
    fn require_is_subset() {
        for have in 0..=Rights::ALL.0 {
            for need in [0, 1, 3, 0x40, 0x55, Rights::ALL.0] {
                let granted = Rights(have).require(Rights(need)).is_ok();
                assert_eq!(granted, need & !have == 0);
            }
        }
    }

    #[test]
    fn every_right_has_a_name() {
        assert_eq!(Rights::ALL.0, 0x7f);
        assert!(Rights::ALL.require(Rights::KVM).is_ok());
    }

    #[test]
    fn unknown_bits_are_refused() {
        for bit in 0..32 {
            assert_eq!(Rights::from_bits(1 << bit).is_ok(), bit < 7);
            assert_eq!(Ceiling::from_prot(1 << bit).is_ok(), bit < 2);
        }
    }

    #[test]
    fn ceilings_only_shrink() {
        for have in 0..4 {
            for want in 0..4 {
                let granted = Ceiling(have).require_all(Ceiling(want)).is_ok();
                assert_eq!(granted, have | want == have);
            }
        }
    }

    #[test]
    fn ceiling_grants_its_bits() {
        for bits in 0..4 {
            let ceiling = Ceiling(bits);
            assert_eq!(ceiling.require(Access::Read).is_ok(), bits & 1 != 0);
            assert_eq!(ceiling.require(Access::Write).is_ok(), bits & 2 != 0);
        }
    }
}
