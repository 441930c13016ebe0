// SPDX-License-Identifier: GPL-2.0

//! Maps and unmaps, against mmap(2) and munmap(2).

use std::fs::File;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use anyhow::Result;
use asfd::{AddressSpace, CreateFlags, Mapping, Prot};
use nix::sys::mman::{mmap, munmap, MapFlags, ProtFlags};

use super::memory::{short, Area, Pages, HUGE, PAGE};
use super::Output;
use crate::clock::{compare, count, median};
use crate::record::{Chart, Measured, Unit::Instructions};

const ROUNDS: usize = 51;
const BAR: f64 = 1.1;

/// Both sides map the same memfd, shared, where nothing is, and unmap it.
struct Pair {
    memfd: File,
    space: AddressSpace,
    free: Area,
}

/// Medians of a map and of an unmap, each through the space and in the process.
type Costs = [(f64, f64); 2];

impl Pair {
    fn new(file: u64, addresses: u64) -> Result<Self> {
        Ok(Pair {
            memfd: Pages::Small.memfd(file)?,
            space: AddressSpace::create(CreateFlags::CLOEXEC)?,
            free: Area::free(addresses)?,
        })
    }

    fn mapping(&self, at: u64, len: u64) -> Mapping<'_> {
        let rw = Prot::READ | Prot::WRITE;
        Mapping::file(&self.memfd, len).prot(rw).at(at)
    }

    fn unmap(&self, at: u64, len: u64) -> Result<()> {
        Ok(self.space.unmap(at, len)?)
    }

    fn mmap(&self, at: u64, len: u64) -> Result<()> {
        let addr = NonZeroUsize::new(self.free.start() as usize + at as usize);
        let len = NonZeroUsize::new(len as usize).expect("a length");
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED_NOREPLACE;
        // SAFETY: Nothing is replaced.
        unsafe { mmap(addr, len, prot, flags, &self.memfd, 0) }?;
        Ok(())
    }

    fn munmap(&self, at: u64, len: u64) -> Result<()> {
        let start = self.free.start().wrapping_add(at as usize);
        let start = NonNull::new(start.cast()).expect("an address");
        // SAFETY: Nobody has references into it.
        Ok(unsafe { munmap(start, len as usize) }?)
    }

    fn costs(&self, at: u64, len: u64) -> Result<Costs> {
        let mapping = self.mapping(at, len);
        let (mut unmap, mut munmap) = (Vec::new(), Vec::new());
        let map = compare(
            ROUNDS,
            |_| {
                let cost = count(|| Ok(self.space.map(&mapping)?))?;
                unmap.push(count(|| self.unmap(at, len))?);
                Ok(cost)
            },
            |_| {
                let cost = count(|| self.mmap(at, len))?;
                munmap.push(count(|| self.munmap(at, len))?);
                Ok(cost)
            },
        )?;
        Ok([map, (median(unmap), median(munmap))])
    }
}

fn rows(out: &mut Output, what: &str, [map, unmap]: Costs) -> Result<()> {
    let map = Measured::new(format!("map {what}"), "mmap", Instructions, map);
    let unmap = Measured::new(format!("unmap {what}"), "munmap", Instructions, unmap);
    out.row(map.at_most(BAR))?;
    out.row(unmap.at_most(BAR))
}

fn points(out: &mut Output, chart: Chart, x: u64, [map, unmap]: Costs) -> Result<()> {
    let curves = [
        ("address_space_mmap", map.0),
        ("mmap", map.1),
        ("address_space_munmap", unmap.0),
        ("munmap", unmap.1),
    ];
    for (curve, y) in curves {
        out.point(chart, curve, x as f64, y)?;
    }
    Ok(())
}

/// From 4K to 1G, where nothing else is mapped.
pub fn by_size(out: &mut Output) -> Result<()> {
    const IN_TABLE: [u64; 3] = [PAGE, HUGE, 1 << 30];
    for len in (12..=30).step_by(3).map(|bits| 1 << bits) {
        let costs = Pair::new(len, len)?.costs(0, len)?;
        points(out, Chart::EditsBySize, len, costs)?;
        if IN_TABLE.contains(&len) {
            rows(out, &format!("{} of a memfd", short(len)), costs)?;
        }
    }
    Ok(())
}

/// Among up to 60,000 other mappings.
pub fn by_mappings(out: &mut Output) -> Result<()> {
    const MOST: u64 = 60_000;
    const IN_TABLE: [u64; 3] = [1, 1_000, MOST];
    // A hole behind each keeps them apart.
    let pair = Pair::new(PAGE, 2 * PAGE * MOST)?;
    let mut present = 0;
    for mappings in [1, 10, 100, 1_000, 10_000, MOST] {
        while present < mappings {
            pair.space.map(&pair.mapping(2 * PAGE * present, PAGE))?;
            pair.mmap(2 * PAGE * present, PAGE)?;
            present += 1;
        }
        let hole = 2 * PAGE * (mappings / 2) + PAGE;
        let costs = pair.costs(hole, PAGE)?;
        points(out, Chart::EditsByMappings, mappings, costs)?;
        if IN_TABLE.contains(&mappings) {
            rows(out, &format!("4K among {mappings} mappings"), costs)?;
        }
    }
    Ok(())
}
