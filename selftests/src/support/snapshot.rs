// SPDX-License-Identifier: GPL-2.0

//! What a space holds at one moment: a call that fails must leave it as it was.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::space::Mapping;
use super::{Result, Space, PAGE};

/// Of huge mappings only this many pages are looked at.
const PAGES: u64 = 64;

#[derive(Debug, PartialEq, Eq)]
pub struct Snapshot {
    mappings: Vec<Mapping>,
    counts: [u64; 5],
    /// Of each page its address and what reading it gives.
    pages: Vec<(u64, Result<u64>)>,
}

impl Snapshot {
    pub fn take(space: &Space) -> Snapshot {
        let mappings = space.mappings();
        let info = space.info();
        let page = |addr: u64| {
            let mut bytes = [0; PAGE as usize];
            let read = space.read_at(addr, &mut bytes);
            let mut hasher = DefaultHasher::new();
            bytes.hash(&mut hasher);
            (addr, read.map(|len| hasher.finish() ^ len as u64))
        };
        let pages = mappings
            .iter()
            .flat_map(|m| (m.start..m.end).step_by(PAGE as usize).take(PAGES as usize))
            .map(page)
            .collect();
        Snapshot {
            mappings,
            counts: [
                info.mappings,
                info.mapped_bytes,
                info.mirrors,
                info.windows,
                info.seals.into(),
            ],
            pages,
        }
    }

    /// What differs, for a message.
    pub fn differs(&self, other: &Snapshot) -> Option<String> {
        if self.mappings != other.mappings {
            let only = |of: &[Mapping], not_of: &[Mapping]| -> Vec<Mapping> {
                let lacking = of.iter().filter(|m| !not_of.contains(m));
                lacking.cloned().collect()
            };
            return Some(format!(
                "mappings {:x?} became {:x?}",
                only(&self.mappings, &other.mappings),
                only(&other.mappings, &self.mappings)
            ));
        }
        if self.counts != other.counts {
            return Some(format!(
                "counts {:?} became {:?}",
                self.counts, other.counts
            ));
        }
        let changed = self.pages.iter().zip(&other.pages).find(|(a, b)| a != b);
        changed.map(|(a, b)| format!("page {:#x}: {:x?} became {:x?}", a.0, a.1, b.1))
    }
}

/// Runs `call`, which must fail, and says what it did to the space if it did anything.
#[track_caller]
pub fn unchanged<T: std::fmt::Debug>(space: &Space, call: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = Snapshot::take(space);
    let result = call();
    if let Err(e) = &result {
        if let Some(change) = before.differs(&Snapshot::take(space)) {
            panic!("failed with {e:?}, but {change}");
        }
    }
    result
}
