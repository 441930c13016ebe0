// SPDX-License-Identifier: GPL-2.0

//! The properties of a space and of a descriptor of it.

use std::ops::Range;
use std::os::fd::AsRawFd;

use crate::{sys, AddressSpace, Error, Operation, Prot, Result, Rights, Seals};

/// Answer of [`AddressSpace::info`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Number of the space, unique while the machine is up.
    pub id: u64,
    /// What of the space this descriptor shows.
    pub window: Range<u64>,
    /// Mappings in the window.
    pub mappings: u64,
    /// Bytes mapped in the window.
    pub mapped_bytes: u64,
    /// Bytes of the window present in the space's page tables.
    pub resident_bytes: u64,
    /// Mirrors of the whole space in processes.
    pub mirrors: u64,
    /// KVM windows on the whole space.
    pub windows: u64,
    /// What this descriptor may do.
    pub rights: Rights,
    /// What this descriptor can read and write at most.
    pub prot: Prot,
    /// What nobody can do any more.
    pub seals: Seals,
}

impl AddressSpace {
    /// Asks the kernel for the properties of the space and of this descriptor.
    ///
    /// ```no_run
    /// # use asfd::{AddressSpace, CreateFlags};
    /// # let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    /// let info = space.info()?;
    /// println!("space {} has {} mappings", info.id, info.mappings);
    /// # Ok::<(), asfd::Error>(())
    /// ```
    pub fn info(&self) -> Result<Info> {
        let mut raw = sys::address_space_info::default();
        // SAFETY: `raw` is what the request fills in.
        unsafe { sys::ioctl(self.as_raw_fd(), sys::ADDRESS_SPACE_IOC_INFO, &mut raw) }.map_err(
            |e| {
                let what = format!("ask for the properties of fd {}", self.as_raw_fd());
                Error::new(Operation::Info, what, e)
            },
        )?;
        Ok(Info::from(raw))
    }
}

impl From<sys::address_space_info> for Info {
    fn from(raw: sys::address_space_info) -> Self {
        Info {
            id: raw.id,
            window: raw.addr..raw.addr.saturating_add(raw.len),
            mappings: raw.mappings,
            mapped_bytes: raw.mapped_bytes,
            resident_bytes: raw.resident_bytes,
            mirrors: raw.mirrors,
            windows: raw.windows,
            rights: Rights::from_bits_retain(raw.rights),
            prot: Prot::from_bits_retain(raw.prot),
            seals: Seals::from_bits_retain(raw.seals),
        }
    }
}
