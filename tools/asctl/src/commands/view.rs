// SPDX-License-Identifier: GPL-2.0

use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use asfd::{process, AddressSpace};

use super::exec::become_command;
use crate::cli::View;

pub fn run(args: &View) -> Result<()> {
    let space = args.space.open()?;
    let info = space.info()?;
    let view = match args.range()? {
        Some(window) => asfd::View::of(window),
        None => asfd::View::whole(),
    };
    let view = view
        .prot(args.prot.unwrap_or(info.prot))
        .rights(args.rights.unwrap_or(info.rights))
        .inheritable();
    let view = space.view(&view)?;
    keep_others_back(&view, info.id)?;
    Err(become_command(&args.command, &view))
}

/// A command that inherited what the view is made from would not be held by the view.
fn keep_others_back(view: &AddressSpace, id: u64) -> Result<()> {
    let pid = std::process::id();
    let others = || -> Result<()> {
        for fd in process::spaces(pid)? {
            if fd != view.as_raw_fd() && process::fdinfo(pid, fd)?.id == id {
                process::close_on_exec(fd)?;
            }
        }
        Ok(())
    };
    others().context("cannot keep other descriptors of the space from the command")
}
