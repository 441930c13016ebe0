// SPDX-License-Identifier: GPL-2.0

//! Guest memory: a space. It is written with pwrite or made of mapped files; nothing here, and
//! nothing in this program, maps it.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use asfd::{AddressSpace, CreateFlags, Mapping, Prot, Window};
use kvm_ioctls::VmFd;
use nix::sys::memfd::{memfd_create, MFdFlags};

pub const PAGE: u64 = 4096;
/// What lies between here and 4G is for devices: local APICs, the I/O APIC.
const LOW_END: u64 = 3 << 30;
const HIGH_START: u64 = 4 << 30;

const RW: Prot = Prot::READ.union(Prot::WRITE);

/// Where `size` bytes of memory lie: below 3G, and from 4G on.
pub fn ranges(size: u64) -> Vec<Range<u64>> {
    let low = size.min(LOW_END);
    let both = [0..low, HIGH_START..HIGH_START + (size - low)];
    both.into_iter().filter(|range| !range.is_empty()).collect()
}

pub struct GuestMemory {
    space: AddressSpace,
    ram: Vec<Range<u64>>,
}

impl GuestMemory {
    /// Addresses of the space are guest-physical ones.
    pub fn new(size: u64) -> Result<Self> {
        let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
        let ram = ranges(size);
        // Only the space holds the memfd after this.
        let file = File::from(memfd_create(c"ram", MFdFlags::MFD_CLOEXEC).context("memfd_create")?);
        file.set_len(size)
            .with_context(|| format!("cannot make a memfd of {size} bytes"))?;
        let mut offset = 0;
        for range in &ram {
            let len = range.end - range.start;
            let part = Mapping::file(&file, len).offset(offset).prot(RW);
            space.map(&part.at(range.start))?;
            offset += len;
        }
        Ok(GuestMemory { space, ram })
    }

    pub fn ram(&self) -> &[Range<u64>] {
        &self.ram
    }

    /// Shows the space to the guest, up to `size` bytes of memory: what is mapped now, and what
    /// will be. What is not mapped is a hole, in which the guest finds a device.
    pub fn show(&self, vm: &VmFd, size: u64) -> Result<()> {
        for (slot, range) in ranges(size).into_iter().enumerate() {
            let window = Window {
                slot: slot as u32,
                guest_phys_addr: range.start,
                offset: range.start,
                size: range.end - range.start,
                ..Window::default()
            };
            self.space.map_into_vm(vm, &window)?;
        }
        Ok(())
    }

    pub fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        Ok(self.space.write_all_at(bytes, at)?)
    }

    /// Puts a part of a file in place of RAM. The file itself is mapped where it lies on pages;
    /// the guest's writes stay in the space.
    pub fn place(&self, file: &File, offset: u64, len: u64, at: u64) -> Result<()> {
        if offset.is_multiple_of(PAGE) {
            let part = Mapping::file(file, len).offset(offset).prot(RW).private();
            self.space.map(&part.replacing(at))?;
            return Ok(());
        }
        let mut done = 0;
        let mut buf = vec![0; 1 << 20];
        while done < len {
            let want = buf.len().min((len - done) as usize);
            file.read_exact_at(&mut buf[..want], offset + done)
                .context("cannot read it")?;
            self.write(&buf[..want], at + done)?;
            done += want as u64;
        }
        Ok(())
    }

    /// The descriptor by which others can reach the space, as asctl takes it.
    pub fn name(&self) -> String {
        format!("{}:{}", std::process::id(), self.space.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_the_last_gigabyte_below_4g() {
        const G: u64 = 1 << 30;
        let one = |range: Range<u64>| vec![range];
        assert_eq!(ranges(64 << 20), one(0..64 << 20));
        assert_eq!(ranges(3 * G), one(0..3 * G));
        assert_eq!(ranges(3 * G + PAGE), [0..3 * G, 4 * G..4 * G + PAGE]);
        assert_eq!(ranges(8 * G), [0..3 * G, 4 * G..9 * G]);
    }
}
