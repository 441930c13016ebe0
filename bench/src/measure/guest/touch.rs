// SPDX-License-Identifier: GPL-2.0

//! The guest writes to memory for the first time, and again and again.

use std::fs::File;

use anyhow::Result;
use kvm_bindings::kvm_regs;

use super::code::guest_code;
use super::memory::{memslot, window};
use super::{ensure_nested_paging, Guest, Vcpu, MEASURED};
use crate::clock::{compare, count, median};
use crate::measure::memory::{short, Pages, MIB, PAGE};
use crate::measure::Output;
use crate::record::{Measured, Unit::Instructions};

const LEN: u64 = 64 * MIB;
const ROUNDS: usize = 3;
const PASSES: u64 = 5;
const RUNS: usize = 7;

guest_code! {
    /// Writes a word a page from rsi to rdi, rcx times.
    fn touch, bench_guest_touch, bench_guest_touch_end, [
        "1:  mov rax, rsi",
        "2:  mov [rax], rax",
        "    add rax, 4096",
        "    cmp rax, rdi",
        "    jb 2b",
        "    dec rcx",
        "    jnz 1b",
        "    hlt",
    ],
}

fn pass(vcpu: &mut Vcpu, from: u64, to: u64, times: u64) -> Result<f64> {
    vcpu.start(kvm_regs {
        rsi: from,
        rdi: to,
        rcx: times,
        ..Default::default()
    })?;
    count(|| vcpu.run())
}

/// What the first pass over the measured memory costs, where neither the guest's nor the host's page
/// tables have any of it; and what a pass costs then, some times.
fn costs<T>(
    pages: Pages,
    file: impl Fn() -> Result<File>,
    measured: impl Fn(&Guest, &File, u64) -> Result<T>,
) -> Result<(f64, Vec<f64>)> {
    let guest = Guest::new()?;
    guest.load(touch());
    let mut vcpu = guest.vcpu(0)?;
    // What the guest has of its own is there.
    pass(&mut vcpu, super::STACKS, super::STACKS + PAGE, 1)?;
    // An empty file is made last: how large its pages will be is said for all files at once.
    let _measured = measured(&guest, &file()?, LEN)?;

    let first = pass(&mut vcpu, MEASURED, MEASURED + LEN, 1)?;
    guest.ensure_mapped(pages, LEN)?;

    // A run is short, so that a timer interrupt comes in few of them.
    let more = (0..RUNS).map(|_| pass(&mut vcpu, MEASURED, MEASURED + LEN, PASSES));
    let more = more.map(|cost| Ok(cost? / PASSES as f64));
    Ok((first, more.collect::<Result<_>>()?))
}

fn rows(out: &mut Output, pages: Pages, empty: bool) -> Result<()> {
    let filled = pages.filled_memfd(LEN)?;
    let file = || {
        if empty {
            pages.memfd(LEN)
        } else {
            Ok(filled.try_clone()?)
        }
    };
    let mut steady = (Vec::new(), Vec::new());
    let first = compare(
        ROUNDS,
        |_| {
            let (first, more) = costs(pages, file, window)?;
            steady.0.extend(more);
            Ok(first)
        },
        |_| {
            let (first, more) = costs(pages, file, memslot)?;
            steady.1.extend(more);
            Ok(first)
        },
    )?;
    let what = format!(
        "{}, {}{}",
        short(LEN),
        if empty { "empty memfd, " } else { "" },
        pages.name()
    );
    let name = format!("guest first touch, {what}");
    out.row(Measured::new(name, "memslot", Instructions, first).at_most(1.1))?;
    if !empty {
        let steady = (median(steady.0), median(steady.1));
        let name = format!("guest steady state, {what}");
        out.row(Measured::new(name, "memslot", Instructions, steady).at_most(1.0))?;
    }
    Ok(())
}

pub fn first_and_steady(out: &mut Output) -> Result<()> {
    ensure_nested_paging(true)?;
    for pages in [Pages::Small, Pages::Thp] {
        rows(out, pages, false)?;
        rows(out, pages, true)?;
    }
    Ok(())
}
