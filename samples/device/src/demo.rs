// SPDX-License-Identifier: GPL-2.0

//! Step by step: what a device can reach, what it cannot, and what it finds out.

use std::cell::Cell;
use std::fs;
use std::time::Instant;

use anyhow::{bail, ensure, Result};
use asfd::{process, Prot, Rights};
use nix::errno::Errno;

use crate::dma::{self, Access, Fault, Kind};
use crate::ring::{Descriptor, Driver, RING, RING_LEN};
use crate::vmm::{Device, GuestMemory, Iova, RW};
use crate::wire::{Reply, Request};

const K: u64 = 1 << 10;
const GUEST_LEN: u64 = 64 << 20;
/// All IOVAs that a device can have.
const IOVA_LEN: u64 = 1 << 30;

/// IOVAs, and the guest memory that they stand for.
const SOURCE: Iova = iova(0x1_0000, 16 * K);
const TARGET: Iova = iova(0x2_0000, 16 * K);
const FAR: Iova = iova(0x100_0000, 4 * K);
const GUEST_RINGS: u64 = 0x10_0000;
const GUEST_SOURCE: u64 = 0x20_0000;
const GUEST_TARGET: u64 = 0x30_0000;
const GUEST_FAR: u64 = 0x40_0000;
const GUEST_OTHER: u64 = 0x50_0000;

const COPY_ALL: Descriptor = Descriptor::Copy {
    from: SOURCE.at,
    to: TARGET.at,
    len: SOURCE.len,
};

const fn iova(at: u64, len: u64) -> Iova {
    Iova { at, len }
}

pub fn run() -> Result<()> {
    let started = Instant::now();
    let memory = GuestMemory::new(GUEST_LEN)?;
    let steps = Steps::default();
    let mut disk = Port::start("disk", &memory, GUEST_RINGS, &steps)?;
    let mut net = Port::start("net", &memory, GUEST_RINGS + RING_LEN, &steps)?;

    heading("A VMM with 64 MiB of guest memory, and two devices: processes that have a view each.");
    disk.introduce()?;
    net.introduce()?;

    heading("The driver maps 16K to read, 16K to write. The device moves data, no copy between.");
    let text = moves_data(&mut disk)?;

    heading("What it was not given raises a signal. It survives that, and reports a DMA fault.");
    faults(&mut disk, &text)?;
    // Another device, another space: the same address is nothing to it.
    net.faults(checksum(SOURCE.at, 8), hole(SOURCE.at))?;

    heading("The view has no rights. It cannot be made into more.");
    disk.trespasses()?;

    heading("The driver puts other memory in place, and takes the right to write away.");
    changes(&mut disk, &text)?;

    heading("A narrower view comes, of 1M. The device cheats and keeps its mirror of the old one.");
    older_view(&mut disk)?;

    heading("The devices end.");
    disk.end()?;
    net.end()?;

    let (done, wrong) = (steps.done.get(), steps.wrong.get());
    let seconds = started.elapsed().as_secs_f32();
    heading(&format!("{done} checks, {wrong} failed, {seconds:.1} s"));
    ensure!(wrong == 0, "not everything was as it should be");
    Ok(())
}

/// Returns what is at `SOURCE`, and at `TARGET` after that.
fn moves_data(disk: &mut Port) -> Result<Vec<u8>> {
    let text: Vec<u8> = (0..SOURCE.len).map(|n| (n % 251) as u8).collect();
    disk.memory.write(GUEST_SOURCE, &text)?;
    disk.map(SOURCE, GUEST_SOURCE, Prot::READ)?;
    disk.map(TARGET, GUEST_TARGET, RW)?;
    disk.completes(COPY_ALL)?;
    disk.guest_has("the copy", GUEST_TARGET, &text)?;

    let sum = disk.completes(checksum(TARGET.at, TARGET.len))?;
    let right = sum == dma::checksum(&text);
    disk.check("result in the ring", "is the checksum", right);
    Ok(text)
}

fn faults(disk: &mut Port, text: &[u8]) -> Result<()> {
    let end = SOURCE.at + SOURCE.len;
    disk.faults(copy(end - 2 * K, TARGET.at, 4 * K), hole(end))?;
    // What comes before the fault has been moved.
    disk.guest_has("the last 2K", GUEST_TARGET, &text[14 << 10..])?;

    let end = fault(TARGET.at + TARGET.len, Access::Store, Kind::Hole);
    disk.faults(copy(SOURCE.at, TARGET.at + 12 * K, 8 * K), end)?;

    let read_only = fault(SOURCE.at, Access::Store, Kind::NotPermitted);
    disk.faults(copy(TARGET.at, SOURCE.at, 4 * K), read_only)?;
    disk.guest_has("the source as before", GUEST_SOURCE, text)?;

    disk.faults(checksum(0x12_3456, 8), hole(0x12_3456))
}

fn changes(disk: &mut Port, text: &[u8]) -> Result<()> {
    let other: Vec<u8> = text.iter().rev().copied().collect();
    disk.memory.write(GUEST_OTHER, &other)?;
    let iommu = &disk.device.iommu;
    iommu.replace(SOURCE, disk.memory, GUEST_OTHER, Prot::READ)?;
    disk.completes(COPY_ALL)?;
    disk.guest_has("a copy of the other memory", GUEST_TARGET, &other)?;

    disk.device.iommu.protect(TARGET, Prot::READ)?;
    let no_longer = fault(TARGET.at, Access::Store, Kind::NotPermitted);
    disk.faults(COPY_ALL, no_longer)?;
    disk.device.iommu.protect(TARGET, RW)
}

/// Less in a new view takes nothing back: unmapping does, from every view and mirror.
fn older_view(disk: &mut Port) -> Result<()> {
    let from_far = copy(FAR.at, TARGET.at, FAR.len);
    disk.map(FAR, GUEST_FAR, RW)?;
    disk.attach(1 << 20)?;
    let outside = fault(FAR.at, Access::Load, Kind::Outside);
    disk.faults(from_far, outside)?;
    disk.cheats = true;
    disk.completes(from_far)?;

    disk.device.iommu.unmap(FAR)?;
    println!("        (the driver unmaps it, and the guest puts a secret there)");
    let secret = [b's'; FAR.len as usize];
    disk.memory.write(GUEST_FAR, &secret)?;
    disk.faults(from_far, hole(FAR.at))?;
    let store = fault(FAR.at, Access::Store, Kind::Hole);
    disk.faults(copy(TARGET.at, FAR.at, FAR.len), store)?;
    disk.guest_has("the secret unharmed", GUEST_FAR, &secret)?;
    disk.cheats = false;
    disk.completes(COPY_ALL).map(drop)
}

fn heading(text: &str) {
    println!("\n== {text}");
}

fn copy(from: u64, to: u64, len: u64) -> Descriptor {
    Descriptor::Copy { from, to, len }
}

fn checksum(from: u64, len: u64) -> Descriptor {
    Descriptor::Checksum { from, len }
}

fn fault(iova: u64, access: Access, kind: Kind) -> Fault {
    Fault { iova, access, kind }
}

fn hole(iova: u64) -> Fault {
    fault(iova, Access::Load, Kind::Hole)
}

/// Of the table that is printed.
#[derive(Default)]
struct Steps {
    done: Cell<u32>,
    wrong: Cell<u32>,
}

/// A device and the driver of it in the guest.
struct Port<'a> {
    device: Device,
    driver: Driver,
    memory: &'a GuestMemory,
    steps: &'a Steps,
    /// It uses its first mirror for data, not its latest.
    cheats: bool,
    mirrors: usize,
}

impl<'a> Port<'a> {
    fn start(name: &str, memory: &'a GuestMemory, ring: u64, steps: &'a Steps) -> Result<Self> {
        let mut port = Port {
            device: Device::start(name)?,
            driver: Driver::new(ring),
            memory,
            steps,
            cheats: false,
            mirrors: 0,
        };
        port.map(iova(RING, RING_LEN), ring, RW)?;
        port.attach(IOVA_LEN)?;
        Ok(port)
    }

    fn attach(&mut self, len: u64) -> Result<()> {
        self.mirrors += 1;
        self.device.attach(len)
    }

    fn map(&self, iova: Iova, guest: u64, prot: Prot) -> Result<()> {
        self.device.iommu.map(iova, self.memory, guest, prot)
    }

    /// A line of the table.
    fn check(&self, what: &str, outcome: &str, right: bool) {
        let Steps { done, wrong } = self.steps;
        done.set(done.get() + 1);
        wrong.set(wrong.get() + u32::from(!right));
        let verdict = if right { "ok" } else { "WRONG" };
        println!(
            "  {:<5} {what:<36} {outcome:<44} {verdict}",
            self.device.name
        );
    }

    fn guest_has(&self, what: &str, guest: u64, expected: &[u8]) -> Result<()> {
        let mut bytes = vec![0; expected.len()];
        self.memory.read(guest, &mut bytes)?;
        self.check("guest memory", &format!("has {what}"), bytes == expected);
        Ok(())
    }

    /// What can be found out about the process: it has its view, and no guest memory.
    fn introduce(&self) -> Result<()> {
        let pid = self.device.pid();
        let fds = process::spaces(pid)?;
        let [fd] = fds[..] else {
            bail!("process {pid} has {} spaces", fds.len());
        };
        let view = process::fdinfo(pid, fd)?;
        ensure!(
            view.id == self.device.iommu.info()?.id,
            "it has another space"
        );
        ensure!(view.rights == Rights::empty(), "it has rights");
        let name = "memfd:guest";
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        ensure!(!maps.contains(name), "it has mapped guest memory");
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let link = fs::read_link(entry?.path())?;
            ensure!(
                !link.to_string_lossy().contains(name),
                "it has guest memory"
            );
        }
        println!(
            "  {:<5} process {pid}: space {}, window {:#x}-{:#x}, prot {}, rights {}",
            self.device.name, view.id, view.window.start, view.window.end, view.prot, view.rights
        );
        Ok(())
    }

    /// The driver posts a descriptor, and the device says what came of it.
    fn kick(&mut self, descriptor: Descriptor) -> Result<(u64, Result<(), Fault>)> {
        let index = self.driver.post(self.memory, descriptor)?;
        let mirror = if self.cheats { 0 } else { self.mirrors - 1 };
        let request = Request::Kick { index, mirror };
        self.device.channel.send(&request, None)?;
        match self.device.reply()? {
            Reply::Processed(outcome) => Ok((index, outcome)),
            other => bail!("{other:?} in place of Processed"),
        }
    }

    /// The device has to do it. Returns the result that it wrote into the ring.
    fn completes(&mut self, descriptor: Descriptor) -> Result<u64> {
        let (index, outcome) = self.kick(descriptor)?;
        let result = self.driver.result(self.memory, index);
        self.tell(descriptor, outcome, outcome.is_ok() && result.is_ok());
        Ok(result.unwrap_or(0))
    }

    /// The device has to report exactly this, and complete nothing.
    fn faults(&mut self, descriptor: Descriptor, expected: Fault) -> Result<()> {
        let (index, outcome) = self.kick(descriptor)?;
        let result = self.driver.result(self.memory, index);
        self.tell(
            descriptor,
            outcome,
            outcome == Err(expected) && result.is_err(),
        );
        Ok(())
    }

    fn tell(&self, descriptor: Descriptor, outcome: Result<(), Fault>, right: bool) {
        let said = outcome.map_or_else(|fault| fault.to_string(), |()| "done".to_owned());
        self.check(&descriptor.to_string(), &said, right);
    }

    fn trespasses(&mut self) -> Result<()> {
        self.device.channel.send(&Request::Trespass, None)?;
        let Reply::Trespassed(tried) = self.device.reply()? else {
            bail!("the device does not say what it tried");
        };
        ensure!(!tried.is_empty(), "the device tried nothing");
        for (what, due, errno) in tried {
            let said = match errno {
                0 => "done".to_owned(),
                errno => format!("{:?}", Errno::from_raw(errno)),
            };
            self.check(&what, &said, errno == due);
        }
        Ok(())
    }

    /// It has survived all of that; and with the process its mirrors are gone.
    fn end(mut self) -> Result<()> {
        let before = self.device.iommu.info()?.mirrors;
        let right = before == self.mirrors as u64;
        self.check("mirrors of its space", &before.to_string(), right);
        let after = self.device.end()?.mirrors;
        self.check(
            "mirrors when its process has ended",
            &after.to_string(),
            after == 0,
        );
        Ok(())
    }
}
