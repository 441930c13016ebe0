// SPDX-License-Identifier: GPL-2.0

//! `ADDRESS_SPACE_IOC_SEAL`: what can no longer be done to a space, through any asfd.

use kernel::{
    fmt,
    mm::edit::MmapWriteGuard,
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
    uaccess::{UserPtr, UserSlice},
    uapi,
};

use crate::{
    file::Asfd,
    rights::{fmt_bits, Rights},
};

/// The seals of a space. None is ever taken off.
///
/// They are set under the mmap write lock of the space, and whoever changes its mappings looks at
/// them under that lock: when the call that set a seal returns, nothing it forbids is under way.
/// Only an advice looks before it takes locks; one that is under way is not stopped.
pub(crate) struct Seals(Atomic<u32>);

/// A seal.
#[derive(Clone, Copy)]
pub(crate) enum Seal {
    Map = uapi::ADDRESS_SPACE_SEAL_MAP as isize,
    Unmap = uapi::ADDRESS_SPACE_SEAL_UNMAP as isize,
    Change = uapi::ADDRESS_SPACE_SEAL_CHANGE as isize,
    /// Adding seals.
    Add = uapi::ADDRESS_SPACE_SEAL_SEAL as isize,
}

impl Seals {
    /// As fdinfo spells them, from bit 0 up.
    const NAMES: [&'static str; 4] = ["map", "unmap", "change", "seal"];
    const KNOWN: u32 = (1 << Self::NAMES.len()) - 1;

    pub(crate) fn none() -> Self {
        Self(Atomic::new(0))
    }

    /// Fails with [`EPERM`] if `seal` is set.
    pub(crate) fn forbid(&self, seal: Seal) -> Result {
        if self.bits() & seal as u32 == 0 {
            Ok(())
        } else {
            Err(EPERM)
        }
    }

    fn add(&self, bits: u32, _guard: &MmapWriteGuard<'_>) -> Result {
        self.forbid(Seal::Add)?;
        // The lock keeps others from adding.
        self.0.store(self.bits() | bits, Relaxed);
        Ok(())
    }

    /// The bits, for user space.
    pub(crate) fn bits(&self) -> u32 {
        self.0.load(Relaxed)
    }
}

impl fmt::Display for Seals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_bits(self.bits(), &Self::NAMES, f)
    }
}

/// `ADDRESS_SPACE_IOC_SEAL`.
pub(crate) fn seal(asfd: &Asfd, arg: UserPtr) -> Result {
    asfd.rights.require(Rights::SEAL)?;
    let bits: u32 = UserSlice::new(arg, size_of::<u32>()).reader().read()?;
    if bits & !Seals::KNOWN != 0 {
        return Err(EINVAL);
    }
    let guard = asfd.owner.mm().mmap_write_lock_killable()?;
    asfd.owner.space().seals.add(bits, &guard)
}

#[kernel::macros::kunit_tests(address_space_seals)]
mod tests {
    use super::*;
    use kernel::mm::OwnedMm;

    const ALL: [Seal; 4] = [Seal::Map, Seal::Unmap, Seal::Change, Seal::Add];

    #[test]
    fn seals_forbid_themselves_alone() -> Result {
        let mm = OwnedMm::new()?;
        let guard = mm.mmap_write_lock_killable()?;
        for set in ALL {
            let seals = Seals::none();
            seals.add(set as u32, &guard)?;
            for asked in ALL {
                assert_eq!(seals.forbid(asked).is_err(), set as u32 == asked as u32);
            }
        }
        Ok(())
    }

    #[test]
    fn seals_add_up_until_sealed() -> Result {
        let mm = OwnedMm::new()?;
        let guard = mm.mmap_write_lock_killable()?;
        let seals = Seals::none();
        for (n, seal) in ALL.into_iter().enumerate() {
            seals.add(seal as u32, &guard)?;
            assert_eq!(seals.bits(), (2 << n) - 1);
        }
        assert!(seals.add(0, &guard).is_err());
        assert_eq!(seals.bits(), Seals::KNOWN);
        Ok(())
    }
}
