// SPDX-License-Identifier: GPL-2.0

//! `--stress` on the VMM's side: map, replace and unmap as fast as it goes, under the devices'
//! loads and stores.
//!
//! All devices share one pool of buffers. Before a buffer is mapped every word of it says for
//! which device and slot; as soon as the unmapping has returned it is overwritten with poison. So
//! a device that reaches memory it no longer has reads poison, or what the memory is used for
//! next; and if it still writes there, the poison is no longer whole when the buffer's turn comes
//! again. Between the buffers lies memory that is never mapped.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use asfd::Prot;

use crate::ring::{to_bytes, to_words};
use crate::tag::{Kind, Tag};
use crate::vmm::{Device, GuestMemory, Iova, RW};
use crate::wire::{Reply, Request};
use crate::worker::{is_read_only, Job, Tally, IOVA_LEN, PAGE, SLOTS, SLOT_LEN};

const GUEST_LEN: u64 = 64 << 20;
/// Fewer than there are slots: a buffer soon serves for another slot, or another device.
const BUFFERS_PER_DEVICE: u64 = 24;

/// Guest memory of one slot's length, not mapped for any device.
struct Buffer {
    /// Guest-physical.
    at: u64,
    /// The word that it is full of.
    poison: Tag,
}

/// What the threads share.
struct Stress {
    memory: GuestMemory,
    pool: Mutex<Vec<Buffer>>,
    generation: AtomicU32,
    maps: AtomicU64,
    unmaps: AtomicU64,
    tallies: Vec<Mutex<Tally>>,
    /// Something is wrong, so it is over.
    failed: AtomicBool,
}

pub fn run(duration: Duration, devices: u8, seed: u64) -> Result<()> {
    println!("{devices} devices, seed {seed}");
    let stress = Stress::new(devices)?;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut mappers = Vec::new();
    for number in 0..devices {
        let device = Device::start(&number.to_string())?;
        device.attach(IOVA_LEN)?;
        mappers.push(Mapper {
            stress: &stress,
            number,
            device,
            slots: (0..SLOTS).map(|_| None).collect(),
            random: random.fork(),
        });
    }

    let started = Instant::now();
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for mapper in mappers {
            threads.push(scope.spawn(|| {
                let result = mapper.run(started + duration);
                stress.failed.fetch_or(result.is_err(), Relaxed);
                result
            }));
        }
        show_progress(&stress, started, duration);
        for thread in threads {
            let ended = thread.join();
            ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        anyhow::Ok(())
    })?;
    stress.check_at_rest()?;
    stress.summary(started.elapsed())
}

/// A line now and then, some twenty in all.
fn show_progress(stress: &Stress, started: Instant, duration: Duration) {
    let pause = (duration / 20).max(Duration::from_secs(1));
    let mut next = pause;
    while !stress.failed.load(Relaxed) && started.elapsed() < duration {
        thread::sleep(Duration::from_millis(20));
        if started.elapsed() >= next {
            next += pause;
            let tally = stress.total();
            println!(
                "{:4} s: {} maps, {} unmaps; {} loads, {} stores, {} faults",
                started.elapsed().as_secs(),
                stress.maps.load(Relaxed),
                stress.unmaps.load(Relaxed),
                tally.loads,
                tally.stores,
                tally.holes + tally.denied
            );
        }
    }
}

impl Stress {
    fn new(devices: u8) -> Result<Self> {
        let memory = GuestMemory::new(GUEST_LEN)?;
        let canaries = to_bytes(&[Tag::CANARY.0; SLOT_LEN as usize / 8]);
        for at in (0..GUEST_LEN).step_by(SLOT_LEN as usize) {
            memory.write(at, &canaries)?;
        }
        let stress = Stress {
            memory,
            pool: Mutex::new(Vec::new()),
            generation: AtomicU32::new(0),
            maps: AtomicU64::new(0),
            unmaps: AtomicU64::new(0),
            tallies: (0..devices).map(|_| Mutex::default()).collect(),
            failed: AtomicBool::new(false),
        };
        for n in 0..u64::from(devices) * BUFFERS_PER_DEVICE {
            // Each has canaries on both sides.
            stress.put(0, 0, (2 * n + 1) * SLOT_LEN)?;
        }
        Ok(stress)
    }

    /// Takes a buffer out of the pool. Nobody may have written to it since it was put there.
    fn take(&self, random: &mut fastrand::Rng) -> Result<Option<Buffer>> {
        let buffer = {
            let mut pool = self.pool.lock().unwrap();
            if pool.is_empty() {
                return Ok(None);
            }
            let n = random.usize(..pool.len());
            pool.swap_remove(n)
        };
        self.check(buffer.at, |word, _| word == buffer.poison)
            .with_context(|| format!("written to after it was unmapped: {}", buffer.poison))?;
        Ok(Some(buffer))
    }

    /// Poisons guest memory that is no longer mapped, and puts it into the pool.
    fn put(&self, device: u8, slot: u64, at: u64) -> Result<()> {
        let generation = self.generation.fetch_add(1, Relaxed);
        let poison = Tag::new(Kind::Poison, device, slot, 0, generation);
        let bytes = to_bytes(&[poison.0; SLOT_LEN as usize / 8]);
        self.memory.write(at, &bytes)?;
        self.pool.lock().unwrap().push(Buffer { at, poison });
        Ok(())
    }

    /// Fills a buffer for a slot.
    fn fill(&self, buffer: &Buffer, device: u8, slot: u64) -> Result<()> {
        let generation = self.generation.fetch_add(1, Relaxed);
        let word = |at: u64| Tag::new(Kind::Mapped, device, slot, at / PAGE, generation).0;
        let words: Vec<_> = (0..SLOT_LEN).step_by(8).map(word).collect();
        self.memory.write(buffer.at, &to_bytes(&words))
    }

    /// Looks at every word of a slot's length of guest memory, and its offset there.
    fn check(&self, at: u64, is_right: impl Fn(Tag, u64) -> bool) -> Result<()> {
        let mut bytes = vec![0; SLOT_LEN as usize];
        self.memory.read(at, &mut bytes)?;
        for (n, word) in to_words(&bytes).enumerate() {
            let offset = 8 * n as u64;
            if !is_right(Tag(word), offset) {
                bail!("guest memory at {:#x} has {}", at + offset, Tag(word));
            }
        }
        Ok(())
    }

    /// With all devices gone: every buffer is poison still, and what was never mapped untouched.
    fn check_at_rest(&self) -> Result<()> {
        let count = self.pool.lock().unwrap().len();
        let all = BUFFERS_PER_DEVICE as usize * self.tallies.len();
        ensure!(count == all, "{count} buffers of {all} came back");
        while self.take(&mut fastrand::Rng::with_seed(0))?.is_some() {}
        for at in (0..GUEST_LEN).step_by(2 * SLOT_LEN as usize) {
            self.check(at, |word, _| word == Tag::CANARY)
                .context("it was never mapped")?;
        }
        Ok(())
    }

    fn total(&self) -> Tally {
        let mut total = Tally::default();
        for tally in &self.tallies {
            total += *tally.lock().unwrap();
        }
        total
    }

    /// The figures. What was never tried is no success.
    fn summary(&self, elapsed: Duration) -> Result<()> {
        println!("\ndevice    loads   stores      MiB    holes   denied");
        for (number, tally) in self.tallies.iter().enumerate() {
            let Tally {
                loads,
                stores,
                bytes,
                holes,
                denied,
            } = *tally.lock().unwrap();
            let mib = bytes >> 20;
            println!("{number:6} {loads:8} {stores:8} {mib:8} {holes:8} {denied:8}");
            let tried = loads > 0 && stores > 0 && bytes > 0 && holes > 0 && denied > 0;
            ensure!(
                tried,
                "device {number} did not get to everything: run it for longer"
            );
        }
        let seconds = elapsed.as_secs_f64();
        let rate = |count: &AtomicU64| count.load(Relaxed) as f64 / seconds;
        let total = self.total();
        println!(
            "\nIn {seconds:.1} s, each second: {:.0} maps, {:.0} unmaps, {:.0} faults, {:.1} MiB.",
            rate(&self.maps),
            rate(&self.unmaps),
            (total.holes + total.denied) as f64 / seconds,
            total.bytes as f64 / seconds / f64::from(1 << 20)
        );
        println!("No device saw, or changed, a byte that was not mapped for it.");
        Ok(())
    }
}

/// The one who edits a device's space.
struct Mapper<'a> {
    stress: &'a Stress,
    number: u8,
    device: Device,
    /// Guest-physical addresses of what is mapped.
    slots: Vec<Option<u64>>,
    random: fastrand::Rng,
}

impl Mapper<'_> {
    fn run(mut self, deadline: Instant) -> Result<()> {
        self.edit_until(deadline)
            .and_then(|()| self.finish())
            .with_context(|| format!("device {}", self.number))?;
        self.device.end().map(drop)
    }

    fn edit_until(&mut self, deadline: Instant) -> Result<()> {
        let job = Job {
            device: self.number,
            seed: self.random.u64(..),
        };
        self.device.channel.send(&Request::Work(job), None)?;
        while Instant::now() < deadline && !self.stress.failed.load(Relaxed) {
            for _ in 0..50 {
                self.edit()?;
            }
            while let Some(reply) = self.device.channel.poll()? {
                self.note(reply)?;
            }
        }
        Ok(())
    }

    fn edit(&mut self) -> Result<()> {
        let slot = self.random.u64(..SLOTS);
        let iova = Iova {
            at: slot * SLOT_LEN,
            len: SLOT_LEN,
        };
        let prot = if is_read_only(slot) { Prot::READ } else { RW };
        let stress = self.stress;
        let old = self.slots[slot as usize];
        let new = match old {
            Some(_) if self.random.bool() => None,
            _ => stress.take(&mut self.random)?,
        };
        if let Some(buffer) = &new {
            stress.fill(buffer, self.number, slot)?;
        }
        let iommu = &self.device.iommu;
        match (old, &new) {
            (None, None) => {}
            (None, Some(new)) => iommu.map(iova, &stress.memory, new.at, prot)?,
            (Some(_), Some(new)) => iommu.replace(iova, &stress.memory, new.at, prot)?,
            (Some(_), None) => iommu.unmap(iova)?,
        }
        stress.maps.fetch_add(new.is_some().into(), Relaxed);
        stress.unmaps.fetch_add(old.is_some().into(), Relaxed);
        self.slots[slot as usize] = new.map(|buffer| buffer.at);
        match old {
            Some(guest) => self.revoked(slot, guest),
            None => Ok(()),
        }
    }

    /// The device cannot reach this any more. What it stored before is all in its place.
    fn revoked(&self, slot: u64, guest: u64) -> Result<()> {
        let belongs = |word: Tag, at: u64| word.belongs(self.number, slot, at / PAGE);
        self.stress.check(guest, belongs).context("just unmapped")?;
        self.stress.put(self.number, slot, guest)
    }

    /// Returns whether the device is done.
    fn note(&self, reply: Reply) -> Result<bool> {
        match reply {
            Reply::Worked { tally, last } => {
                *self.stress.tallies[usize::from(self.number)]
                    .lock()
                    .unwrap() = tally;
                Ok(last)
            }
            Reply::Violation(what) => bail!("{what}"),
            other => bail!("{other:?} in place of figures"),
        }
    }

    fn finish(&mut self) -> Result<()> {
        self.device.channel.send(&Request::Stop, None)?;
        while !self.note(self.device.reply()?)? {}
        for slot in 0..SLOTS {
            let iova = Iova {
                at: slot * SLOT_LEN,
                len: SLOT_LEN,
            };
            if let Some(guest) = self.slots[slot as usize].take() {
                self.device.iommu.unmap(iova)?;
                self.revoked(slot, guest)?;
            }
        }
        Ok(())
    }
}
