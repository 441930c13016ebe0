// SPDX-License-Identifier: GPL-2.0

//! Passes over a mirror, against passes over a plain shared mapping of the same memfd.

use std::fs;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use asfd::{AddressSpace, CreateFlags, Mapping, Prot};

use super::memory::{Area, Pages, MIB, PAGE};
use super::process::Process;
use super::Output;
use crate::clock::{compare, count};
use crate::record::{
    Measured,
    Unit::{Bytes, Instructions},
};

const LEN: u64 = 256 * MIB;
const PLAIN: &str = "plain shared mapping";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}
use Access::{Read, Write};

impl Access {
    fn verb(self) -> &'static str {
        match self {
            Read => "read",
            Write => "write",
        }
    }

    /// A word in each 4K, whatever the size of the pages.
    fn pass(self, area: &Area) {
        match self {
            Read => area.read(PAGE),
            Write => area.write(PAGE),
        }
    }
}

/// A space with nothing but the file, at 0. Nobody has touched it.
fn space_of(file: impl AsFd, len: u64) -> Result<AddressSpace> {
    let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    let rw = Prot::READ | Prot::WRITE;
    space.map(&Mapping::file(&file, len).prot(rw).at(0))?;
    Ok(space)
}

/// Instructions of a first pass over a fresh mapping of a file or an asfd, which gets page tables
/// of its own: it shares none with a neighbour, whatever else is mapped.
fn first_pass(file: impl AsFd, access: Access) -> Result<f64> {
    let area = Area::huge_aligned(file, 0, LEN)?;
    count(|| {
        access.pass(&area);
        Ok(())
    })
}

/// The first pass of a process: over what nobody has touched through the space (or else), over
/// what another mirror shows already, and over a memfd that gets its pages only then.
pub fn first_touch(out: &mut Output) -> Result<()> {
    const BAR: f64 = 1.1;
    const ROUNDS: usize = 3;
    let mut row = |access: Access, pages: Pages, what: &str, costs| {
        let name = format!("first {} of 256M, {}{what}", access.verb(), pages.name());
        out.row(Measured::new(name, PLAIN, Instructions, costs).at_most(BAR))
    };
    for pages in Pages::ALL {
        let memfd = pages.filled_memfd(LEN)?;
        for access in [Read, Write] {
            let cold = || first_pass(space_of(&memfd, LEN)?, access);
            let plain = || first_pass(&memfd, access);
            row(access, pages, "", compare(ROUNDS, |_| cold(), |_| plain())?)?;

            let space = space_of(&memfd, LEN)?;
            let other = Area::of(&space, 0, LEN)?;
            access.pass(&other);
            let warm = || first_pass(&space, access);
            let what = ", mirrored before";
            row(
                access,
                pages,
                what,
                compare(ROUNDS, |_| warm(), |_| plain())?,
            )?;
        }
        drop(memfd);
        let empty = |in_space: bool| -> Result<f64> {
            let memfd = pages.memfd(LEN)?;
            if in_space {
                first_pass(space_of(&memfd, LEN)?, Write)
            } else {
                first_pass(&memfd, Write)
            }
        };
        let what = ", empty memfd";
        row(
            Write,
            pages,
            what,
            compare(ROUNDS, |_| empty(true), |_| empty(false))?,
        )?;
    }
    Ok(())
}

/// Passes over what is there.
pub fn steady(out: &mut Output) -> Result<()> {
    const ROUNDS: usize = 9;
    for pages in Pages::ALL {
        let memfd = pages.filled_memfd(LEN)?;
        let mirror = Area::of(space_of(&memfd, LEN)?, 0, LEN)?;
        let plain = Area::of(&memfd, 0, LEN)?;
        let pass = |area: &Area| {
            count(|| {
                Write.pass(area);
                Read.pass(area);
                Ok(())
            })
        };
        pass(&mirror)?;
        pass(&plain)?;
        let costs = compare(ROUNDS, |_| pass(&mirror), |_| pass(&plain))?;
        let name = format!("write and read 256M again, {}", pages.name());
        out.row(Measured::new(name, PLAIN, Instructions, costs).at_most(1.0))?;
    }
    Ok(())
}

/// What the page tables of a second process take, that touches all of what another has.
pub fn page_tables(out: &mut Output) -> Result<()> {
    for pages in Pages::ALL {
        let memfd = pages.filled_memfd(LEN)?;
        let space = space_of(&memfd, LEN)?;
        let costs = (second_process(&space)?, second_process(&memfd)?);
        let name = format!("page tables of a second process, 256M, {}", pages.name());
        out.row(Measured::new(name, PLAIN, Bytes, costs).at_most(1.0))?;
    }
    Ok(())
}

/// How much larger our page tables are with all of a file or an asfd that another process has, too.
fn second_process(file: impl AsFd) -> Result<f64> {
    let touched = || -> Result<Area> {
        let area = Area::of(&file, 0, LEN)?;
        Write.pass(&area);
        Ok(area)
    };
    let mut kept = None;
    let first = Process::serve(|_| {
        kept = Some(touched()?);
        Ok(())
    })?;
    first.ask(0)?;
    let before = own_page_tables()?;
    let _second = touched()?;
    Ok((own_page_tables()? - before) as f64)
}

fn own_page_tables() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmPTE:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let number = number.context("no VmPTE in /proc/self/status")?;
    Ok(number.parse::<u64>()? << 10)
}
