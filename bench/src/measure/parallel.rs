// SPDX-License-Identifier: GPL-2.0

//! Throughput of faults and edits, by how many make them. It is wall time on CPUs that others use
//! as well: it shows what waits for what, and no more than that.

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, Result};
use asfd::{AddressSpace, CreateFlags, Mapping, Prot, Rights, View};

use super::memory::{Area, Pages, MIB, PAGE};
use super::process::{ask_all, Process};
use super::Output;
use crate::record::Chart;

const WORKERS: [u64; 3] = [1, 2, 4];
/// How long a point is measured, in many rounds: the clock may tick every few milliseconds only.
const MEASURED: Duration = Duration::from_millis(400);

/// How often a second `work` does what it does `times` times. What `prepare` returns is there
/// meanwhile, and takes no time.
fn per_second<T>(
    times: u64,
    mut prepare: impl FnMut() -> Result<T>,
    mut work: impl FnMut(&T) -> Result<()>,
) -> Result<f64> {
    // The first round warms up.
    work(&prepare()?)?;
    let (mut rounds, mut elapsed) = (0, Duration::ZERO);
    while elapsed < MEASURED {
        let prepared = prepare()?;
        let start = Instant::now();
        work(&prepared)?;
        elapsed += start.elapsed();
        rounds += 1;
    }
    Ok((times * rounds) as f64 / elapsed.as_secs_f64())
}

/// Does `work` in so many threads, each with its number.
fn in_threads(threads: u64, work: impl Fn(u64) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..threads).map(|n| scope.spawn(move || work(n))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}

/// First loads from 64M in 4K pages, each worker its part. (With stores a plain mapping would have a
/// fault a page; so both have one for 16.)
pub fn touches(out: &mut Output) -> Result<()> {
    const LEN: u64 = 64 * MIB;
    const PAGES: u64 = LEN / PAGE;
    let chart = Chart::TouchByThreads;
    let memfd = Pages::Small.filled_memfd(LEN)?;
    let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    let rw = Prot::READ | Prot::WRITE;
    // In place of what was there: its pages are no longer present in the space.
    let map_anew = || space.map(&Mapping::file(&memfd, LEN).prot(rw).replacing(0));

    for workers in WORKERS {
        let part = LEN / workers;
        let x = workers as f64;
        let by_threads = |area: &Area| {
            in_threads(workers, |n| {
                area.read_part(n * part, part, PAGE);
                Ok(())
            })
        };

        let plain = per_second(PAGES, || Area::of(&memfd, 0, LEN), by_threads)?;
        out.point(chart, "plain mapping, threads", x, plain)?;

        let mirror = || {
            map_anew()?;
            Area::of(&space, 0, LEN)
        };
        let absent = per_second(PAGES, mirror, by_threads)?;
        out.point(chart, "mirror, threads", x, absent)?;

        // All of it was just touched through another mirror.
        let present = per_second(PAGES, || Area::of(&space, 0, LEN), by_threads)?;
        let curve = "mirror of pages present in the space, threads";
        out.point(chart, curve, x, present)?;

        let processes = (0..workers).map(|n| {
            let mirror = Area::of(&space, 0, LEN)?;
            Process::serve(move |_| {
                mirror.read_part(n * part, part, PAGE);
                Ok(())
            })
        });
        let processes: Vec<_> = processes.collect::<Result<_>>()?;
        let by_processes = |_: &u64| ask_all(&processes, 0);
        let rate = per_second(PAGES, || Ok(map_anew()?), by_processes)?;
        out.point(chart, "mirror, processes", x, rate)?;
    }
    Ok(())
}

/// Maps a page of the memfd and unmaps it, again and again.
fn edit(space: &AddressSpace, memfd: &File, at: u64) -> Result<()> {
    let rw = Prot::READ | Prot::WRITE;
    for _ in 0..EDITS {
        space.map(&Mapping::file(memfd, PAGE).prot(rw).at(at))?;
        space.unmap(at, PAGE)?;
    }
    Ok(())
}

fn edit_own(memfd: &File) -> Result<()> {
    (0..EDITS).try_for_each(|_| Area::of(memfd, 0, PAGE).map(drop))
}

/// Of each worker.
const EDITS: u64 = 4000;

/// Pairs of a map and an unmap, each worker at a place of its own.
pub fn edits(out: &mut Output) -> Result<()> {
    let chart = Chart::EditsByProcesses;
    let memfd = Pages::Small.filled_memfd(PAGE)?;
    let whole = AddressSpace::create(CreateFlags::CLOEXEC)?;
    let rw = Prot::READ | Prot::WRITE;
    // Nobody has a tree with one mapping.
    let filled = |space: AddressSpace| {
        for at in (0..64).map(|n| MIB * n) {
            space.map(&Mapping::file(&memfd, PAGE).prot(rw).at(at))?;
        }
        anyhow::Ok(space)
    };
    let whole = filled(whole)?;

    for workers in WORKERS {
        let x = workers as f64;
        let times = workers * EDITS;
        let by_processes = |work: &dyn Fn(u64) -> Result<Process>| {
            let processes: Vec<_> = (0..workers).map(work).collect::<Result<_>>()?;
            per_second(times, || Ok(()), |()| ask_all(&processes, 0))
        };

        let views = by_processes(&|n| {
            let start = MIB * n + PAGE;
            let view = View::of(start..start + PAGE).rights(Rights::MAP | Rights::UNMAP);
            let view = whole.view(&view)?;
            let memfd = &memfd;
            Process::serve(move |_| edit(&view, memfd, 0))
        })?;
        out.point(chart, "one space, a view each", x, views)?;

        let spaces = by_processes(&|_| {
            let space = filled(AddressSpace::create(CreateFlags::CLOEXEC)?)?;
            let memfd = &memfd;
            Process::serve(move |_| edit(&space, memfd, PAGE))
        })?;
        out.point(chart, "a space each", x, spaces)?;

        let own = by_processes(&|_| Process::serve(|_| edit_own(&memfd)))?;
        out.point(chart, "mmap, each its own memory", x, own)?;

        let threads = per_second(
            times,
            || Ok(()),
            |()| in_threads(workers, |_| edit_own(&memfd)),
        )?;
        out.point(chart, "mmap, threads of one process", x, threads)?;
    }
    Ok(())
}
