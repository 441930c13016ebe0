// SPDX-License-Identifier: GPL-2.0

//! Taking memory back from all who have it mapped, against asking each of them over a socket.
//!
//! Asking also takes trust, which no figure shows: a process that does not answer is waited for,
//! and one that keeps its mapping, or another of the same memfd, keeps the memory. The space takes
//! it away whether they agree or not.

use std::fs::File;

use anyhow::Result;
use asfd::{AddressSpace, CreateFlags, Mapping, Prot};

use super::memory::{short, Area, Pages, HUGE, PAGE};
use super::process::{ask_all, Process};
use super::Output;
use crate::clock::{compare, count};
use crate::record::{Chart, Measured, Unit::Instructions};

const ROUNDS: usize = 7;
const CHEAPER: f64 = 5.0;
/// By so many processes the bar holds.
const PROCESSES: usize = 10;

/// The range in the picture: the one with most to do in each process.
const CURVES: (Pages, u64) = (Pages::Small, HUGE);

const TOUCH_MIRROR: u8 = 0;
const MMAP_AND_TOUCH: u8 = 1;
const MUNMAP: u8 = 2;

/// One of those who have the range, by one side or the other.
fn process(space: &AddressSpace, memfd: &File, len: u64) -> Result<Process> {
    let mirror = Area::of(space, 0, len)?;
    let mut mapping = None;
    Process::serve(move |command| {
        match command {
            TOUCH_MIRROR => mirror.read(PAGE),
            MMAP_AND_TOUCH => mapping.insert(Area::of(memfd, 0, len)?).read(PAGE),
            // That is what dropping it does.
            _ => mapping = None,
        }
        Ok(())
    })
}

fn costs(pages: Pages, len: u64, processes: usize) -> Result<(f64, f64)> {
    let memfd = pages.filled_memfd(len)?;
    let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    let mapping = Mapping::file(&memfd, len).prot(Prot::READ | Prot::WRITE);
    // Of all that is there nothing else goes.
    space.map(&mapping.at(1 << 30))?;
    let processes = (0..processes)
        .map(|_| process(&space, &memfd, len))
        .collect::<Result<Vec<_>>>()?;
    compare(
        ROUNDS,
        |_| {
            space.map(&mapping.at(0))?;
            ask_all(&processes, TOUCH_MIRROR)?;
            count(|| Ok(space.unmap(0, len)?))
        },
        |_| {
            ask_all(&processes, MMAP_AND_TOUCH)?;
            count(|| ask_all(&processes, MUNMAP))
        },
    )
}

/// From 1, 10 and 100 processes.
pub fn by_processes(out: &mut Output) -> Result<()> {
    let ranges = [
        (Pages::Small, PAGE),
        (Pages::Small, 64 << 10),
        (Pages::Small, HUGE),
        (Pages::Thp, HUGE),
    ];
    for (pages, len) in ranges {
        let range = format!("{} ({})", short(len), pages.name());
        for processes in [1, PROCESSES, 100] {
            let costs = costs(pages, len, processes)?;
            if (pages, len) == CURVES {
                let mut point = |side: &str, y| {
                    let curve = format!("{side}, {range}");
                    out.point(Chart::RevokeByProcesses, &curve, processes as f64, y)
                };
                point("address_space_munmap", costs.0)?;
                point("asking each to munmap", costs.1)?;
            }

            let who = match processes {
                1 => "1 process".to_owned(),
                n => format!("{n} processes"),
            };
            let row = Measured::new(
                format!("revoke {range} from {who}"),
                "message to each, munmap",
                Instructions,
                costs,
            );
            out.row(if processes == PROCESSES {
                row.cheaper(CHEAPER)
            } else {
                row
            })?;
        }
    }
    Ok(())
}
