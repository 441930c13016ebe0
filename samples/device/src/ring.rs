// SPDX-License-Identifier: GPL-2.0

//! A ring of descriptors in guest memory: the guest's driver posts, the device processes.
//!
//! To the device it is memory like any other, reached through its IOMMU.

use std::fmt;

use anyhow::{ensure, Result};

use crate::dma::{Dma, Fault};
use crate::vmm::GuestMemory;

/// Where the ring is for the device.
pub const RING: u64 = 0;
const SLOTS: u64 = 64;
/// Bytes of a descriptor.
const SIZE: u64 = 64;
pub const RING_LEN: u64 = SLOTS * SIZE;

/// What the device is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    Copy { from: u64, to: u64, len: u64 },
    Checksum { from: u64, len: u64 },
}

/// Six numbers: what, from, to, length, whether it is done, and the result.
type Raw = [u64; 6];
const DONE: u64 = 4 * 8;

impl Descriptor {
    fn raw(self) -> Raw {
        match self {
            Descriptor::Copy { from, to, len } => [1, from, to, len, 0, 0],
            Descriptor::Checksum { from, len } => [2, from, 0, len, 0, 0],
        }
    }

    fn from_raw(raw: Raw) -> Option<Self> {
        let [what, from, to, len, ..] = raw;
        match what {
            1 => Some(Descriptor::Copy { from, to, len }),
            2 => Some(Descriptor::Checksum { from, len }),
            _ => None,
        }
    }
}

impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Descriptor::Copy { from, to, len } => {
                write!(f, "copy {len} from {from:#x} to {to:#x}")
            }
            Descriptor::Checksum { from, len } => write!(f, "checksum {len} from {from:#x}"),
        }
    }
}

fn offset(index: u64) -> u64 {
    index % SLOTS * SIZE
}

pub fn to_bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub fn to_words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let word = |chunk: &[u8]| u64::from_le_bytes(chunk.try_into().unwrap());
    bytes.chunks_exact(8).map(word)
}

/// The driver in the guest, of which only this is simulated: it writes to the guest's memory.
pub struct Driver {
    /// Guest-physical.
    ring: u64,
    next: u64,
}

impl Driver {
    pub fn new(ring: u64) -> Self {
        Driver { ring, next: 0 }
    }

    /// Puts a descriptor in the ring and returns its number, to tell the device.
    pub fn post(&mut self, memory: &GuestMemory, descriptor: Descriptor) -> Result<u64> {
        let index = self.next;
        self.next += 1;
        let bytes = to_bytes(&descriptor.raw());
        memory.write(self.ring + offset(index), &bytes)?;
        Ok(index)
    }

    /// What the device wrote there.
    pub fn result(&self, memory: &GuestMemory, index: u64) -> Result<u64> {
        let mut bytes = [0; 16];
        memory.read(self.ring + offset(index) + DONE, &mut bytes)?;
        let words: Vec<_> = to_words(&bytes).collect();
        ensure!(words[0] == 1, "the device has not completed {index}");
        Ok(words[1])
    }
}

/// The device's part. The data goes through `mirror`, the ring is found through `ring`.
pub fn process(ring: Dma, data: Dma, index: u64) -> Result<(), Fault> {
    let at = RING + offset(index);
    let mut bytes = [0; size_of::<Raw>()];
    ring.load(at, &mut bytes)?;
    let mut raw = Raw::default();
    for (to, word) in raw.iter_mut().zip(to_words(&bytes)) {
        *to = word;
    }
    let result = match Descriptor::from_raw(raw) {
        Some(Descriptor::Copy { from, to, len }) => {
            data.copy(to, from, len as usize)?;
            0
        }
        Some(Descriptor::Checksum { from, len }) => data.checksum(from, len as usize)?,
        // The driver's mistake, which it finds out by the missing completion.
        None => return Ok(()),
    };
    ring.store(at + DONE, &to_bytes(&[1, result]))
}
