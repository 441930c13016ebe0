// SPDX-License-Identifier: GPL-2.0

//! 2M of its memory replaced while a guest reads it: how often the guest finds nothing there.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{ensure, Result};
use asfd::AddressSpace;

use super::memory::{delete_slot, memslot, rw, set_slot, window, SLOT};
use super::running::{Place, Running, Use};
use super::{Guest, MEASURED};
use crate::measure::memory::{Area, Pages, HUGE, PAGE};
use crate::measure::Output;
use crate::record::{Measured, Unit::Exits};

const REPLACEMENTS: usize = 200;
/// What the first word of each page of the two files is, in turn.
const VALUES: [u64; 2] = [1, 2];
/// What is read of a bus that nobody drives, but for two bits.
const NOTHING: u64 = 3;

fn files() -> Result<[File; 2]> {
    let file = |value: u64| {
        let file = Pages::Small.filled_memfd(HUGE)?;
        for at in (0..HUGE).step_by(PAGE as usize) {
            file.write_all_at(&value.to_le_bytes(), at)?;
        }
        Ok::<_, anyhow::Error>(file)
    };
    Ok([file(VALUES[0])?, file(VALUES[1])?])
}

/// How the memory is made and how another file is put in its place.
trait Replace: Sized {
    fn new(guest: &Guest, files: [File; 2]) -> Result<Self>;
    fn replace(&self, guest: &Guest, with: usize) -> Result<()>;
}

struct Space {
    space: AddressSpace,
    files: [File; 2],
}

impl Replace for Space {
    fn new(guest: &Guest, files: [File; 2]) -> Result<Self> {
        Ok(Space {
            space: window(guest, &files[0], HUGE)?,
            files,
        })
    }

    fn replace(&self, _: &Guest, with: usize) -> Result<()> {
        self.space.map(&rw(&self.files[with], HUGE).replacing(0))?;
        Ok(())
    }
}

/// KVM has no call for it: the slot is deleted, and added with another address.
struct Memslot([Area; 2]);

impl Replace for Memslot {
    fn new(guest: &Guest, [first, second]: [File; 2]) -> Result<Self> {
        let second = Area::huge_aligned(&second, 0, HUGE)?;
        Ok(Memslot([memslot(guest, &first, HUGE)?, second]))
    }

    fn replace(&self, guest: &Guest, with: usize) -> Result<()> {
        delete_slot(&guest.vm, SLOT)?;
        set_slot(&guest.vm, SLOT, MEASURED, HUGE, &self.0[with])
    }
}

/// Exits to userspace that vCPUs take which read all of it, all the time.
fn exits<T: Replace>(vcpus: usize) -> Result<f64> {
    let guest = Guest::new()?;
    let memory = T::new(&guest, files()?)?;
    let all = Use {
        from: MEASURED,
        to: MEASURED + HUGE,
        extra: None,
    };
    let mut running = Running::read(guest, &vec![all; vcpus], Place::OtherCpus)?;
    for round in 1..=REPLACEMENTS {
        let before = VALUES.map(|value| running.seen(value));
        memory.replace(&running.guest, round % 2)?;
        // All vCPUs read what is there now, and before the next round nothing else.
        running.pass()?;
        running.pass()?;
        let now = running.seen(VALUES[round % 2]) - before[round % 2];
        let pages = HUGE / PAGE * vcpus as u64;
        ensure!(
            now >= pages,
            "{now} reads of a file in the place of another"
        );
    }
    let (exits, nothing) = (running.exits(), running.seen(NOTHING));
    ensure!(
        running.seen(0) == 0,
        "{} reads of neither file",
        running.seen(0)
    );
    ensure!(
        exits >= nothing,
        "{exits} exits, but {nothing} reads of nothing"
    );
    running.stop()?;
    Ok(exits as f64)
}

pub fn parallel(out: &mut Output) -> Result<()> {
    const VCPUS: usize = 4;
    let exits = (exits::<Space>(VCPUS)?, exits::<Memslot>(VCPUS)?);
    ensure!(
        exits.1 > 0.0,
        "a guest reads a memslot while it is deleted, and no exit is seen"
    );
    let name = format!("replace 2M {REPLACEMENTS} times, {VCPUS} vCPUs reading it");
    out.row(Measured::new(name, "memslot deleted, added", Exits, exits).at_most(0.0))
}
