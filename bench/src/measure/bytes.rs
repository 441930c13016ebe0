// SPDX-License-Identifier: GPL-2.0

//! Reading and writing the bytes of a space, against those of a process that has them mapped.

use std::io::{IoSlice, IoSliceMut};

use anyhow::{ensure, Result};
use asfd::{AddressSpace, Advice, CreateFlags, Mapping, Prot};
use nix::sys::uio::{process_vm_readv, process_vm_writev, RemoteIoVec};

use super::memory::{short, Area, Pages, MIB, PAGE};
use super::process::Process;
use super::Output;
use crate::clock::{compare, count};
use crate::record::{Measured, Unit::Instructions};

const ROUNDS: usize = 21;
const BAR: f64 = 1.1;

/// All pages are present: in the file, in the space and in the process.
pub fn read_and_write(out: &mut Output) -> Result<()> {
    for pages in [Pages::Small, Pages::Thp] {
        for len in [PAGE, MIB] {
            both(out, pages, len)?;
        }
    }
    Ok(())
}

fn both(out: &mut Output, pages: Pages, len: u64) -> Result<()> {
    let all = len.next_multiple_of(2 * MIB);
    let memfd = pages.filled_memfd(all)?;
    let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    space.map(
        &Mapping::file(&memfd, all)
            .prot(Prot::READ | Prot::WRITE)
            .at(0),
    )?;
    space.advise(0, all, Advice::PopulateWrite)?;

    // It has the same memory at the same address.
    let area = Area::of(&memfd, 0, all)?;
    let process = Process::serve(|_| {
        area.write(PAGE);
        Ok(())
    })?;
    process.ask(0)?;
    let remote = [RemoteIoVec {
        base: area.start() as usize,
        len: len as usize,
    }];

    let mut buf = vec![1; len as usize];
    let mut other = vec![1; len as usize];
    let read = compare(
        ROUNDS,
        |_| count(|| done(space.read_at(&mut buf, 0)?, len)),
        |_| {
            count(|| {
                let mut local = [IoSliceMut::new(&mut other)];
                done(process_vm_readv(process.pid, &mut local, &remote)?, len)
            })
        },
    )?;
    let write = compare(
        ROUNDS,
        |_| count(|| done(space.write_at(&buf, 0)?, len)),
        |_| {
            count(|| {
                let local = [IoSlice::new(&other)];
                done(process_vm_writev(process.pid, &local, &remote)?, len)
            })
        },
    )?;
    for (call, alternative, costs) in [
        ("pread", "process_vm_readv", read),
        ("pwrite", "process_vm_writev", write),
    ] {
        let name = format!("{call} {} ({})", short(len), pages.name());
        let row = Measured::new(name, alternative, Instructions, costs);
        out.row(if len == MIB { row.at_most(BAR) } else { row })?;
    }
    Ok(())
}

fn done(bytes: usize, len: u64) -> Result<()> {
    ensure!(bytes as u64 == len, "{bytes} of {len} bytes");
    Ok(())
}
