// SPDX-License-Identifier: GPL-2.0

use anyhow::Result;

use crate::cli::Protect;

pub fn run(args: &Protect) -> Result<()> {
    let space = args.space.open()?;
    Ok(space.protect(args.addr.0, args.len.0, args.prot)?)
}
