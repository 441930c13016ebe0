// SPDX-License-Identifier: GPL-2.0

use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use asfd::{AddressSpace, CreateFlags};

use crate::cli::Exec;
use crate::range::Memfds;
use crate::report::Status;
use crate::spec;

pub fn run(args: &Exec) -> Result<()> {
    let ranges = spec::read(&args.spec)?;
    // Without close-on-exec: the command is to have it.
    let space = AddressSpace::create(CreateFlags::empty())?;
    let mut memfds = Memfds::new();
    for (number, range) in ranges {
        range
            .map(&space, &mut memfds)
            .with_context(|| format!("{}: range {number}", args.spec.display()))?;
    }

    Err(become_command(&args.command, &space))
}

/// Executes the command, which inherits the space; returns only if it cannot.
pub fn become_command(command: &[OsString], space: &AddressSpace) -> anyhow::Error {
    let program = &command[0];
    let error = Command::new(program)
        .args(&command[1..])
        .env("ASFD", space.as_raw_fd().to_string())
        .exec();
    // As env(1) does.
    let status = match error.kind() {
        io::ErrorKind::NotFound => 127,
        _ => 126,
    };
    let message = format!("cannot run {}", program.to_string_lossy());
    anyhow::Error::new(error).context(Status(status, message))
}
