// SPDX-License-Identifier: GPL-2.0

//! `--stress` on the device's side: loads and stores at random IOVAs, whatever is mapped.

use std::ops::AddAssign;
use std::time::{Duration, Instant};

use anyhow::{bail, Result};
use serde::{Deserialize, Serialize};

use crate::dma::{Access, Dma, Fault, Kind as FaultKind};
use crate::ring::{to_bytes, to_words};
use crate::tag::{Kind, Tag};
use crate::wire::{Channel, Reply, Request};

/// The IOVAs are slots: each is empty or has one buffer mapped.
pub const SLOTS: u64 = 32;
pub const PAGE: u64 = 4096;
pub const SLOT_LEN: u64 = 4 * PAGE;
pub const IOVA_LEN: u64 = SLOTS * SLOT_LEN;

/// Every other slot is mapped read-only, so that the device knows where no store may succeed.
pub fn is_read_only(slot: u64) -> bool {
    slot % 2 == 0
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Job {
    pub device: u8,
    pub seed: u64,
}

/// What has been done.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    pub loads: u64,
    pub stores: u64,
    pub bytes: u64,
    pub holes: u64,
    pub denied: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.loads += other.loads;
        self.stores += other.stores;
        self.bytes += other.bytes;
        self.holes += other.holes;
        self.denied += other.denied;
    }
}

/// Accesses and checks until told to stop.
pub fn work(channel: &Channel, dma: Dma, job: &Job) -> Result<Reply> {
    const TELL: Duration = Duration::from_millis(200);

    let mut worker = Worker {
        dma,
        device: job.device,
        random: fastrand::Rng::with_seed(job.seed),
        tally: Tally::default(),
    };
    let mut told = Instant::now();
    loop {
        for _ in 0..50 {
            if let Err(violation) = worker.access() {
                return Ok(Reply::Violation(violation));
            }
        }
        let tally = worker.tally;
        match channel.poll()? {
            Some(Request::Stop) => return Ok(Reply::Worked { tally, last: true }),
            Some(other) => bail!("{other:?} in place of Stop"),
            None => {}
        }
        if told.elapsed() >= TELL {
            channel.send(&Reply::Worked { tally, last: false }, None)?;
            told = Instant::now();
        }
    }
}

struct Worker<'a> {
    dma: Dma<'a>,
    device: u8,
    random: fastrand::Rng,
    tally: Tally,
}

/// What must never be.
type Violation = String;

impl Worker<'_> {
    fn access(&mut self) -> Result<(), Violation> {
        // Often across the border of two slots.
        let len = 8 * self.random.u64(1..=SLOT_LEN / 8);
        let at = 8 * self.random.u64(0..=(IOVA_LEN - len) / 8);
        if self.random.bool() {
            self.load(at, len)
        } else {
            self.store(at, len)
        }
    }

    fn load(&mut self, at: u64, len: u64) -> Result<(), Violation> {
        let mut buf = vec![0; len as usize];
        let result = self.dma.load(at, &mut buf);
        let done = self.done(result, Access::Load, at, len)?;
        self.tally.loads += 1;

        // A load that faults half-way has loaded what comes before.
        for (n, word) in to_words(&buf[..done as usize]).enumerate() {
            let iova = at + 8 * n as u64;
            let (slot, page) = place(iova);
            if !Tag(word).belongs(self.device, slot, page) {
                return Err(format!("at {iova:#x} it saw {}", Tag(word)));
            }
        }
        Ok(())
    }

    fn store(&mut self, at: u64, len: u64) -> Result<(), Violation> {
        let word = |iova| {
            let (slot, page) = place(iova);
            Tag::new(Kind::Written, self.device, slot, page, 0).0
        };
        let words: Vec<_> = (at..at + len).step_by(8).map(word).collect();
        let result = self.dma.store(at, &to_bytes(&words));
        let done = self.done(result, Access::Store, at, len)?;
        self.tally.stores += 1;

        let stored = (at..at + done).step_by(8);
        match stored.map(place).find(|&(slot, _)| is_read_only(slot)) {
            Some((slot, _)) => Err(format!("it stored to the read-only slot {slot}")),
            None => Ok(()),
        }
    }

    /// How many bytes were accessed, and that what ended it is what can be.
    fn done(
        &mut self,
        result: Result<(), Fault>,
        access: Access,
        at: u64,
        len: u64,
    ) -> Result<u64, Violation> {
        let Err(fault) = result else {
            self.tally.bytes += len;
            return Ok(len);
        };
        let inside = (at..at + len).contains(&fault.iova);
        match fault.kind {
            FaultKind::Hole => self.tally.holes += 1,
            FaultKind::NotPermitted => self.tally.denied += 1,
            FaultKind::Outside | FaultKind::Strange { .. } => {}
        }
        let possible = match fault.kind {
            FaultKind::Hole => inside,
            FaultKind::NotPermitted => {
                inside && access == Access::Store && is_read_only(place(fault.iova).0)
            }
            FaultKind::Outside | FaultKind::Strange { .. } => false,
        };
        if !possible || fault.access != access {
            return Err(format!("{access:?} of {len} bytes at {at:#x}: {fault}"));
        }
        self.tally.bytes += fault.iova - at;
        Ok(fault.iova - at)
    }
}

/// The slot of an IOVA, and the page in it.
fn place(iova: u64) -> (u64, u64) {
    (iova / SLOT_LEN, iova % SLOT_LEN / PAGE)
}
