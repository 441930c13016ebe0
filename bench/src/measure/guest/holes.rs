// SPDX-License-Identifier: GPL-2.0

//! Exits of a guest that loads from where nothing is: for each, KVM reads its code and walks its
//! page tables.

use anyhow::{bail, ensure, Context, Result};
use asfd::{AddressSpace, CreateFlags};
use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuExit;

use super::code::guest_code;
use super::memory::window_on;
use super::{Guest, Vcpu, MEASURED};
use crate::clock::{compare, count};
use crate::measure::memory::MIB;
use crate::measure::Output;
use crate::record::{Measured, Unit::Instructions};

const ROUNDS: usize = 5;
const LOADS: u64 = 500;

guest_code! {
    /// Loads the word at rsi, rcx times.
    fn load, bench_guest_load, bench_guest_load_end, [
        "1:  mov rax, [rsi]",
        "    dec rcx",
        "    jnz 1b",
        "    hlt",
    ],
}

/// Loads from an address; there and back again, to this program, each time.
fn cost(vcpu: &mut Vcpu, addr: u64) -> Result<f64> {
    vcpu.start(kvm_regs {
        rsi: addr,
        rcx: LOADS,
        ..Default::default()
    })?;
    let mut exits = 0;
    let cost = count(|| loop {
        match vcpu.fd.run().context("KVM_RUN")? {
            VcpuExit::MmioRead(at, data) => {
                ensure!(at == addr, "an exit for {at:#x}");
                data.fill(0xff);
                exits += 1;
            }
            VcpuExit::Hlt => return Ok(()),
            other => bail!("{other:x?}"),
        }
    })?;
    ensure!(exits == LOADS, "{exits} exits");
    Ok(cost / LOADS as f64)
}

pub fn exits(out: &mut Output) -> Result<()> {
    let guest = Guest::new()?;
    guest.load(load());
    let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    window_on(&guest, &space, MIB)?;
    let vcpu = std::cell::RefCell::new(guest.vcpu(0)?);
    let costs = compare(
        ROUNDS,
        |_| cost(&mut vcpu.borrow_mut(), MEASURED),
        |_| cost(&mut vcpu.borrow_mut(), MEASURED + 2 * MIB),
    )?;
    out.row(Measured::new(
        "exit of a guest's load from a hole",
        "address with no slot",
        Instructions,
        costs,
    ))
}

pub fn exits_by_memory(out: &mut Output) -> Result<()> {
    let (in_window, _space) = Guest::in_window()?;
    let in_memslot = Guest::new()?;
    let vcpu = |guest: &Guest| {
        guest.load(load());
        guest.vcpu(0)
    };
    let (mut ours, mut theirs) = (vcpu(&in_window)?, vcpu(&in_memslot)?);
    let costs = compare(
        ROUNDS,
        |_| cost(&mut ours, MEASURED),
        |_| cost(&mut theirs, MEASURED),
    )?;
    out.row(Measured::new(
        "MMIO exit of a guest that is in a window",
        "in a memslot",
        Instructions,
        costs,
    ))
}
