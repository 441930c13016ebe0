// SPDX-License-Identifier: GPL-2.0

use anyhow::Result;

use crate::cli::Unmap;

pub fn run(args: &Unmap) -> Result<()> {
    let space = args.space.open()?;
    Ok(space.unmap(args.addr.0, args.len.0)?)
}
