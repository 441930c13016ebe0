// SPDX-License-Identifier: GPL-2.0

//! The measurements, and the three passes that they are made in.

mod bytes;
mod dax;
mod dax_guest;
mod dax_messages;
mod edits;
mod guest;
mod memory;
mod mirrors;
mod parallel;
mod process;
mod revoke;

use std::io::Write;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::record::{Chart, Measured, Point, Record};

/// A run of the VM.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pass {
    /// One CPU, whose clock counts instructions
    Counted,
    /// The same, without nested paging (kvm_amd.npt=0)
    Shadow,
    /// Several CPUs and their wall time, which is noisy
    Parallel,
}

struct Measurement {
    pass: Pass,
    name: &'static str,
    run: fn(&mut Output) -> Result<()>,
}

const fn counted(name: &'static str, run: fn(&mut Output) -> Result<()>) -> Measurement {
    Measurement {
        pass: Pass::Counted,
        name,
        run,
    }
}

const fn shadow(name: &'static str, run: fn(&mut Output) -> Result<()>) -> Measurement {
    Measurement {
        pass: Pass::Shadow,
        name,
        run,
    }
}

const fn parallel(name: &'static str, run: fn(&mut Output) -> Result<()>) -> Measurement {
    Measurement {
        pass: Pass::Parallel,
        name,
        run,
    }
}

/// In the order of the table.
const MEASUREMENTS: &[Measurement] = &[
    counted("edits-by-size", edits::by_size),
    counted("edits-by-mappings", edits::by_mappings),
    counted("mirror-first-touch", mirrors::first_touch),
    counted("mirror-steady", mirrors::steady),
    counted("mirror-page-tables", mirrors::page_tables),
    counted("guest-touch", guest::touch::first_and_steady),
    counted("guest-page-tables", guest::tables::nested_paging),
    shadow("guest-page-tables-shadow", guest::tables::shadow_paging),
    counted("guest-take", guest::take::counted),
    parallel("guest-take-parallel", guest::take::parallel),
    parallel("guest-replace-parallel", guest::replace::parallel),
    counted("guest-holes", guest::holes::exits),
    counted("guest-mmio", guest::holes::exits_by_memory),
    parallel("guest-by-vcpus", guest::take::curves),
    counted("dax", dax::map),
    counted("revoke", revoke::by_processes),
    counted("bytes", bytes::read_and_write),
    parallel("touches", parallel::touches),
    parallel("edits", parallel::edits),
];

/// Where measurements put what they find.
pub struct Output(());

impl Output {
    pub fn row(&mut self, row: Measured) -> Result<()> {
        self.write(&Record::Row(row))
    }

    pub fn point(&mut self, chart: Chart, curve: &str, x: f64, y: f64) -> Result<()> {
        let curve = curve.to_owned();
        self.write(&Record::Point(Point { chart, curve, x, y }))
    }

    fn write(&mut self, record: &Record) -> Result<()> {
        let line = serde_json::to_string(record)? + "\n";
        std::io::stdout().write_all(line.as_bytes())?;
        Ok(())
    }
}

/// Makes the measurements of a pass whose names contain `only`.
pub fn run(pass: Pass, only: &str) -> Result<()> {
    memory::stop_khugepaged()?;
    let chosen = |m: &&Measurement| m.pass == pass && m.name.contains(only);
    for measurement in MEASUREMENTS.iter().filter(chosen) {
        eprintln!("{}", measurement.name);
        let mut out = Output(());
        out.write(&Record::Measurement {
            name: measurement.name.to_owned(),
        })?;
        (measurement.run)(&mut out).with_context(|| measurement.name)?;
    }
    Ok(())
}

/// Where a measurement's rows come in the table, whichever pass it is in; unknown ones are last.
pub fn position(name: &str) -> usize {
    let found = MEASUREMENTS.iter().position(|m| m.name == name);
    found.unwrap_or(MEASUREMENTS.len())
}
