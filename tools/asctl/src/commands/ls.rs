// SPDX-License-Identifier: GPL-2.0

use std::fs;
use std::io;
use std::os::fd::RawFd;

use anyhow::{anyhow, Context, Result};
use asfd::{process, Fdinfo};
use serde_json::json;

use crate::cli::Ls;
use crate::report::{self, Reported};
use crate::table::{column, Column, Show, Table};

const COLUMNS: &[Column] = &[
    column("PID", Show::Number),
    column("COMMAND", Show::Text),
    column("FD", Show::Number),
    column("ID", Show::Number),
    column("START", Show::Address),
    column("SIZE", Show::Size),
    column("PROT", Show::Text),
    column("RIGHTS", Show::Initials),
    column("SEALS", Show::Initials),
    column("MAPPINGS", Show::Number),
    column("MAPPED", Show::Size),
    column("RESIDENT", Show::Size),
    column("WINDOWS", Show::Number),
];

pub fn run(args: &Ls) -> Result<()> {
    let mut table = Table::new(COLUMNS);
    let mut failed = false;

    if args.pid.is_empty() {
        for pid in processes()? {
            // It ended, or is not ours to see: both are as if it had no spaces.
            let _ = add_process(&mut table, pid);
        }
    } else {
        for &pid in &args.pid {
            if let Err(error) = add_process(&mut table, pid) {
                report::warning(&error.context(format!("process {pid}")));
                failed = true;
            }
        }
    }
    table.print(args.json, "spaces")?;
    if failed {
        return Err(Reported.into());
    }
    Ok(())
}

fn processes() -> Result<Vec<u32>> {
    let entries = fs::read_dir("/proc").context("cannot read /proc")?;
    let mut pids: Vec<u32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    if pids.is_empty() {
        return Err(anyhow!("/proc shows no processes: is it mounted?"));
    }
    Ok(pids)
}

fn add_process(table: &mut Table, pid: u32) -> Result<()> {
    let spaces = process::spaces(pid).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow!("no such process"),
        _ => error.into(),
    })?;
    if spaces.is_empty() {
        return Ok(());
    }
    let comm = fs::read(format!("/proc/{pid}/comm"))?;
    let command = String::from_utf8_lossy(comm.trim_ascii_end());
    for fd in spaces {
        // Closed in the meantime: not there.
        if let Ok(fdinfo) = process::fdinfo(pid, fd) {
            add(table, pid, &command, fd, &fdinfo);
        }
    }
    Ok(())
}

fn add(table: &mut Table, pid: u32, command: &str, fd: RawFd, fdinfo: &Fdinfo) {
    // fdinfo does not tell; asking takes the right to take the descriptor.
    let resident = process::open(pid, fd)
        .and_then(|space| space.info())
        .map(|info| info.resident_bytes)
        .ok();
    table.push([
        json!(pid),
        json!(command),
        json!(fd),
        json!(fdinfo.id),
        json!(fdinfo.window.start),
        json!(fdinfo.window.end - fdinfo.window.start),
        json!(fdinfo.prot.to_string()),
        json!(fdinfo.rights.to_string()),
        json!(fdinfo.seals.to_string()),
        json!(fdinfo.mappings),
        json!(fdinfo.mapped_bytes),
        json!(resident),
        json!(fdinfo.windows),
    ]);
}
