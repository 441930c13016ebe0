// SPDX-License-Identifier: GPL-2.0

//! What the holder of an asfd may do with it.

use kernel::{fmt, prelude::*, uapi};

/// A set of `ADDRESS_SPACE_RIGHT_*`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rights(u32);

impl Rights {
    pub(crate) const MAP: Rights = Rights(uapi::ADDRESS_SPACE_RIGHT_MAP);
    pub(crate) const UNMAP: Rights = Rights(uapi::ADDRESS_SPACE_RIGHT_UNMAP);
    pub(crate) const QUERY: Rights = Rights(uapi::ADDRESS_SPACE_RIGHT_QUERY);
    pub(crate) const KVM: Rights = Rights(uapi::ADDRESS_SPACE_RIGHT_KVM);
    pub(crate) const ALL: Rights = Rights((1 << Self::NAMES.len()) - 1);

    /// As fdinfo spells them, from bit 0 up.
    const NAMES: [&'static str; 7] = ["map", "unmap", "change", "seal", "view", "query", "kvm"];

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
        let mut names = Self::NAMES
            .iter()
            .enumerate()
            .filter(|(bit, _)| self.0 & (1 << bit) != 0)
            .map(|(_, name)| name);
        f.write_str(names.next().unwrap_or(&"-"))?;
        names.try_for_each(|name| write!(f, ",{name}"))
    }
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
    fn ceiling_grants_its_bits() {
        for bits in 0..4 {
            let ceiling = Ceiling(bits);
            assert_eq!(ceiling.require(Access::Read).is_ok(), bits & 1 != 0);
            assert_eq!(ceiling.require(Access::Write).is_ok(), bits & 2 != 0);
        }
    }
}
