// SPDX-License-Identifier: GPL-2.0

//! The VMM: guest memory, an IOMMU for each device, and the processes that the devices are.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};

use anyhow::{bail, ensure, Context, Result};
use asfd::{AddressSpace, CreateFlags, Mapping, Prot, View};
use nix::sys::memfd::{memfd_create, MFdFlags};

use crate::wire::{Channel, Reply, Request};

pub const RW: Prot = Prot::READ.union(Prot::WRITE);

/// The guest's memory, by guest-physical address.
pub struct GuestMemory(File);

impl GuestMemory {
    pub fn new(len: u64) -> Result<Self> {
        let memfd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).context("memfd_create")?;
        let file = File::from(memfd);
        file.set_len(len).context("ftruncate")?;
        Ok(GuestMemory(file))
    }

    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_exact_at(buf, at).context("guest memory")
    }

    pub fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
        self.0.write_all_at(buf, at).context("guest memory")
    }
}

/// What a device sees of guest memory. Its I/O virtual addresses are the addresses of a space.
pub struct Iommu {
    space: AddressSpace,
}

/// A range of IOVAs.
#[derive(Clone, Copy, Debug)]
pub struct Iova {
    pub at: u64,
    pub len: u64,
}

impl Iommu {
    pub fn new() -> Result<Self> {
        let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
        Ok(Iommu { space })
    }

    /// Maps guest memory where nothing is mapped.
    pub fn map(&self, iova: Iova, memory: &GuestMemory, guest: u64, prot: Prot) -> Result<()> {
        let mapping = Mapping::file(&memory.0, iova.len).offset(guest).prot(prot);
        self.space.map(&mapping.at(iova.at))?;
        Ok(())
    }

    /// Maps other guest memory in place of what is mapped. The device sees the one or the other,
    /// and no hole in between.
    pub fn replace(&self, iova: Iova, memory: &GuestMemory, guest: u64, prot: Prot) -> Result<()> {
        let mapping = Mapping::file(&memory.0, iova.len).offset(guest).prot(prot);
        self.space.map(&mapping.replacing(iova.at))?;
        Ok(())
    }

    /// When this returns, the device cannot reach the memory any more, whatever it holds.
    pub fn unmap(&self, iova: Iova) -> Result<()> {
        Ok(self.space.unmap(iova.at, iova.len)?)
    }

    pub fn protect(&self, iova: Iova, prot: Prot) -> Result<()> {
        Ok(self.space.protect(iova.at, iova.len, prot)?)
    }

    pub fn info(&self) -> Result<asfd::Info> {
        Ok(self.space.info()?)
    }
}

/// A device as the VMM has it: an IOMMU, and a process that knows nothing but a socket.
pub struct Device {
    pub name: String,
    pub iommu: Iommu,
    pub channel: Channel,
    process: Child,
}

impl Device {
    pub fn start(name: &str) -> Result<Self> {
        let (channel, theirs) = Channel::pair()?;
        // A program of its own: it inherits no memory of ours, and no descriptor but these.
        let process = Command::new("/proc/self/exe")
            .arg("--serve")
            .stdin(Stdio::from(theirs))
            .spawn()
            .context("cannot start a device process")?;
        Ok(Device {
            name: name.to_owned(),
            iommu: Iommu::new()?,
            channel,
            process,
        })
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Hands the device a view of the first `len` bytes of IOVA: it can read and write what is
    /// mapped there, and change none of it. The device mirrors it.
    pub fn attach(&self, len: u64) -> Result<()> {
        let view = self.iommu.space.view(&View::of(0..len).prot(RW))?;
        self.channel.send(&Request::Attach, Some(view.as_fd()))?;
        match self.reply()? {
            Reply::Attached => Ok(()),
            other => bail!("{other:?} in place of Attached"),
        }
    }

    pub fn reply(&self) -> Result<Reply> {
        let message = self.channel.receive()?;
        let (reply, _) = message.with_context(|| format!("device {} is gone", self.name))?;
        Ok(reply)
    }

    /// Without its socket a device ends. Returns what is left of it then.
    pub fn end(&mut self) -> Result<asfd::Info> {
        self.channel.close();
        let status = self.process.wait().context("wait")?;
        ensure!(status.success(), "device {}: {status}", self.name);
        self.iommu.info()
    }
}
