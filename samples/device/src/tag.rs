// SPDX-License-Identifier: GPL-2.0

//! Memory that says what it is: under `--stress` every word of guest memory tells whose it is.

use std::fmt;

/// A word: kind, device, slot, page of the slot, and a generation to tell apart what is otherwise
/// alike.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tag(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Filled by the VMM before it was mapped.
    Mapped = 0xa1,
    /// Written by the device while it was mapped.
    Written = 0xa2,
    /// Overwritten by the VMM after it was unmapped.
    Poison = 0xde,
    /// Never mapped.
    Canary = 0xca,
}

impl Tag {
    pub const CANARY: Tag = Tag((Kind::Canary as u64) << 56);

    /// Where in a device's IOVAs it belongs.
    pub fn new(kind: Kind, device: u8, slot: u64, page: u64, generation: u32) -> Self {
        let generation = u64::from(generation) & 0xff_ffff;
        let place = (u64::from(device) << 48) | (slot << 32) | (page << 24);
        Tag((kind as u64) << 56 | place | generation)
    }

    /// Whether a device may find this there. A store that was cut short leaves a word of both
    /// kinds; all they differ in is the last bits of the kind and the generation.
    pub fn belongs(self, device: u8, slot: u64, page: u64) -> bool {
        let expected = Tag::new(Kind::Mapped, device, slot, page, 0);
        let kind = (self.0 >> 56) as u8;
        let known = kind == Kind::Mapped as u8 || kind == Kind::Written as u8;
        known && (self.0 ^ expected.0) << 8 >> 32 == 0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [kind, device, slot_high, slot_low, page, ..] = self.0.to_be_bytes();
        let kinds = [Kind::Mapped, Kind::Written, Kind::Poison, Kind::Canary];
        match kinds.into_iter().find(|&known| known as u8 == kind) {
            Some(Kind::Canary) => f.write_str("memory that was never mapped"),
            Some(kind) => {
                let slot = u16::from_be_bytes([slot_high, slot_low]);
                write!(
                    f,
                    "{kind:?} memory of device {device}, slot {slot} page {page}"
                )?;
                write!(f, " ({:#x})", self.0)
            }
            None => write!(f, "{:#x}, which nobody wrote", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_belongs_to_one_place() {
        let mapped = Tag::new(Kind::Mapped, 3, 0x102, 1, 77);
        let written = Tag::new(Kind::Written, 3, 0x102, 1, 0);
        for tag in [mapped, written] {
            assert!(tag.belongs(3, 0x102, 1));
            assert!(!tag.belongs(4, 0x102, 1));
            assert!(!tag.belongs(3, 0x202, 1));
            assert!(!tag.belongs(3, 0x103, 1));
            assert!(!tag.belongs(3, 0x102, 0));
        }
        // What is left when a store is cut short after n bytes, or a load sees it half done.
        for n in 0..8 {
            let mask = u64::MAX >> (8 * n);
            let mixed = (mapped.0 & mask) | (written.0 & !mask);
            assert!(Tag(mixed).belongs(3, 0x102, 1));
        }
        assert!(!Tag::CANARY.belongs(0, 0, 0));
        assert!(!Tag::new(Kind::Poison, 3, 0x102, 1, 77).belongs(3, 0x102, 1));
        assert!(!Tag(0).belongs(0, 0, 0));
    }
}
