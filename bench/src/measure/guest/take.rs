// SPDX-License-Identifier: GPL-2.0

//! 2M of its memory taken from a running guest and given back, against a memslot deleted and added.
//!
//! The guest writes to 62M of other memory all the time. On one CPU it is not to be measured: vCPUs
//! run when nobody else wants the CPU, be it that the caller waits for readers of the memslots, and
//! what they access then is taken off, at the instructions that an access takes when nothing
//! changes. What is left is the work of the caller, and of the kernel on its behalf.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result};
use asfd::AddressSpace;

use super::memory::{delete_slot, memslot, rw, set_slot, window, SLOT};
use super::running::{other_cpus, Place, Running, Use};
use super::{ensure_nested_paging, Guest, MEASURED};
use crate::clock::{instructions, median, ticks_per_microsecond};
use crate::measure::memory::{short, Area, Pages, HUGE, MIB, PAGE};
use crate::measure::Output;
use crate::record::{Chart, Measured, Unit};

const LEN: u64 = 64 * MIB;
/// Where the 2M begin that come and go. A user who means to do that gives them a slot of their own.
const REST: u64 = LEN - HUGE;
const TAKEN_SLOT: u32 = SLOT + 1;
const ROUNDS: usize = 7;
/// Of which wall time is taken: what else goes on in the kernel, and where, differs.
const VMS: usize = 5;

/// How the guest has its memory, and so how it is taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Window,
    Memslot,
    /// The same in a VM where KVM drops the page tables of that slot only, not those of the VM,
    /// which is not its default.
    MemslotZappedAlone,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Side::Window => "window",
            Side::Memslot => "memslot deleted, added",
            Side::MemslotZappedAlone => "the same, SLOT_ZAP_ALL off",
        }
    }
}

enum Memory {
    Window(AddressSpace, File),
    Memslots { _rest: Area, taken: Area },
}

impl Memory {
    fn new(side: Side, guest: &Guest, file: File) -> Result<Memory> {
        if side == Side::Window {
            return Ok(Memory::Window(window(guest, &file, LEN)?, file));
        }
        if side == Side::MemslotZappedAlone {
            guest.keep_other_slots()?;
        }
        let taken = Area::huge_aligned(&file, REST, HUGE)?;
        set_slot(&guest.vm, TAKEN_SLOT, MEASURED + REST, HUGE, &taken)?;
        Ok(Memory::Memslots {
            _rest: memslot(guest, &file, REST)?,
            taken,
        })
    }

    fn take_and_give_back(&self, guest: &Guest) -> Result<()> {
        match self {
            Memory::Window(space, file) => {
                space.unmap(REST, HUGE)?;
                space.map(&rw(file, HUGE).offset(REST).at(REST))?;
                Ok(())
            }
            Memory::Memslots { taken, .. } => {
                delete_slot(&guest.vm, TAKEN_SLOT)?;
                set_slot(&guest.vm, TAKEN_SLOT, MEASURED + REST, HUGE, taken)
            }
        }
    }
}

/// What it costs in one round.
#[derive(Clone, Copy)]
struct Cost {
    /// Until the caller has its answers.
    answered: f64,
    /// Until the guest has, after that, used all its memory again.
    used: f64,
}

struct Machine {
    running: Running,
    memory: Memory,
}

impl Machine {
    fn new(side: Side, pages: Pages, vcpus: u64, place: Place) -> Result<Machine> {
        let guest = Guest::new()?;
        let memory = Memory::new(side, &guest, pages.filled_memfd(LEN)?)?;
        let part = |n| MEASURED + REST / PAGE * n / vcpus * PAGE;
        let uses: Vec<Use> = (0..vcpus)
            .map(|n| Use {
                from: part(n),
                to: part(n + 1),
                extra: (n == 0).then_some((MEASURED + REST, MEASURED + LEN)),
            })
            .collect();
        let running = Running::write(guest, &uses, place)?;
        running.guest.ensure_mapped(pages, LEN)?;
        Ok(Machine { running, memory })
    }

    fn now(&self) -> (u64, u64) {
        (instructions(), self.running.accesses())
    }

    /// Instructions of the machine for an access when nothing changes and nobody else runs: the
    /// guest's own, and what timer interrupts add to them.
    fn per_access(&self) -> f64 {
        let before = self.now();
        std::thread::sleep(Duration::from_millis(40));
        let after = self.now();
        (after.0 - before.0) as f64 / (after.1 - before.1) as f64
    }

    fn cost(&mut self, per_access: f64, change: bool) -> Result<Cost> {
        // All 64M are mapped for the guest: there is something to take.
        self.running.pass()?;
        let before = self.now();
        if change {
            self.memory.take_and_give_back(&self.running.guest)?;
        }
        let answered = self.now();
        self.running.pass()?;
        let used = self.now();
        let work =
            |now: (u64, u64)| (now.0 - before.0) as f64 - (now.1 - before.1) as f64 * per_access;
        Ok(Cost {
            answered: work(answered),
            used: work(used),
        })
    }

    /// IPIs that CPUs receive while it is done: the median of some rounds.
    fn ipis(side: Side, pages: Pages, vcpus: u64) -> Result<f64> {
        let mut machine = Machine::new(side, pages, vcpus, Place::OtherCpus)?;
        let mut counts = Vec::new();
        for _ in 0..ROUNDS {
            machine.running.pass()?;
            let before = ipis_received()?;
            machine.memory.take_and_give_back(&machine.running.guest)?;
            counts.push((ipis_received()? - before) as f64);
        }
        machine.running.stop()?;
        Ok(median(counts))
    }

    /// Medians of some rounds, without what a round costs in which nothing changes.
    fn medians(side: Side, pages: Pages, vcpus: u64, place: Place) -> Result<Cost> {
        let vms = if place == Place::OtherCpus { VMS } else { 1 };
        let (mut costs, mut nothing) = (Vec::new(), Vec::new());
        for _ in 0..vms {
            let mut machine = Machine::new(side, pages, vcpus, place)?;
            let per_access = match place {
                Place::WhenIdle => machine.per_access(),
                // On CPUs of their own, they take nothing from the caller.
                Place::OtherCpus => 0.0,
            };
            for _ in 0..ROUNDS {
                costs.push(machine.cost(per_access, true)?);
                nothing.push(machine.cost(per_access, false)?);
            }
            machine.running.stop()?;
        }
        let [cost, nothing] = [costs, nothing].map(|costs| Cost {
            answered: median(costs.iter().map(|cost| cost.answered).collect()),
            used: median(costs.iter().map(|cost| cost.used).collect()),
        });
        Ok(Cost {
            answered: cost.answered - nothing.answered,
            used: cost.used - nothing.used,
        })
    }
}

/// How many IPIs all CPUs have received so far: to call a function there, and to have it schedule.
fn ipis_received() -> Result<u64> {
    let counted = std::fs::read_to_string("/proc/interrupts")?;
    let of = |kind: &str| -> Result<u64> {
        let line = counted
            .lines()
            .find_map(|line| line.trim().strip_prefix(kind));
        let numbers = line.with_context(|| format!("no {kind} in /proc/interrupts"))?;
        Ok(numbers
            .split_whitespace()
            .map_while(|word| word.parse::<u64>().ok())
            .sum())
    };
    Ok(of("CAL:")? + of("RES:")?)
}

const ALTERNATIVES: [Side; 2] = [Side::Memslot, Side::MemslotZappedAlone];

/// `ticks` of the counter are one of the unit.
fn rows(
    out: &mut Output,
    (pages, vcpus): (Pages, &str),
    unit: Unit,
    ticks: f64,
    costs: impl Fn(Side) -> Result<Cost>,
) -> Result<()> {
    let (taken, pages) = (short(HUGE), pages.name());
    let name = format!("take {taken}, give it back, {pages}, {vcpus}");
    let all = short(LEN);
    let used = format!("take {taken}, give it back, use all {all}, {pages}, {vcpus}");
    let window = costs(Side::Window)?;
    for side in ALTERNATIVES {
        let slot = costs(side)?;
        let costs = (window.answered / ticks, slot.answered / ticks);
        out.row(row(&name, side, unit, costs))?;
        // In time, it says more of when vCPUs were given a CPU.
        if unit == Unit::Instructions {
            out.row(row(&used, side, unit, (window.used, slot.used)))?;
        }
    }
    Ok(())
}

fn row(name: &str, side: Side, unit: Unit, costs: (f64, f64)) -> Measured {
    let row = Measured::new(name, side.name(), unit, costs);
    // The bar is for KVM as it comes.
    match side {
        Side::Memslot => row.cheaper(10.0),
        _ => row,
    }
}

pub fn counted(out: &mut Output) -> Result<()> {
    ensure_nested_paging(true)?;
    for pages in [Pages::Small, Pages::Thp] {
        for (vcpus, number) in [("1 vCPU", 1), ("4 vCPUs", 4)] {
            let costs = |side| Machine::medians(side, pages, number, Place::WhenIdle);
            rows(out, (pages, vcpus), Unit::Instructions, 1.0, costs)?;
        }
    }
    Ok(())
}

pub fn parallel(out: &mut Output) -> Result<()> {
    const VCPUS: u64 = 4;
    let vcpus = match other_cpus()?.len() {
        1 => format!("{VCPUS} vCPUs on 1 CPU"),
        cpus => format!("{VCPUS} vCPUs on {cpus} CPUs"),
    };
    for pages in [Pages::Small, Pages::Thp] {
        let costs = |side| Machine::medians(side, pages, VCPUS, Place::OtherCpus);
        let ticks = ticks_per_microsecond()?;
        rows(out, (pages, &vcpus), Unit::Microseconds, ticks, costs)?;

        let name = format!("IPIs of taking {}, {}, {vcpus}", short(HUGE), pages.name());
        let window = Machine::ipis(Side::Window, pages, VCPUS)?;
        for side in ALTERNATIVES {
            let costs = (window, Machine::ipis(side, pages, VCPUS)?);
            out.row(Measured::new(&name, side.name(), Unit::Ipis, costs))?;
        }
    }
    Ok(())
}

/// Accesses a second of the guest, while 2M are taken and given back all the time.
pub fn curves(out: &mut Output) -> Result<()> {
    const MICROSECONDS: f64 = 500_000.0;
    for vcpus in 1..=4 {
        for (curve, side, change) in [
            ("window", Side::Window, true),
            ("memslot", Side::Memslot, true),
            ("nothing changes", Side::Memslot, false),
        ] {
            let machine = Machine::new(side, Pages::Small, vcpus, Place::OtherCpus)?;
            let before = machine.now();
            let elapsed = || -> Result<f64> {
                Ok((instructions() - before.0) as f64 / ticks_per_microsecond()?)
            };
            while elapsed()? < MICROSECONDS {
                if change {
                    machine.memory.take_and_give_back(&machine.running.guest)?;
                } else {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            let rate = (machine.running.accesses() - before.1) as f64 / elapsed()? * 1e6;
            machine.running.stop()?;
            out.point(Chart::GuestByVcpus, curve, vcpus as f64, rate)?;
        }
    }
    Ok(())
}
