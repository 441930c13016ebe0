// SPDX-License-Identifier: GPL-2.0

use anyhow::Result;

use crate::cli::Advise;

pub fn run(args: &Advise) -> Result<()> {
    let space = args.space.open()?;
    Ok(space.advise(args.addr.0, args.len.0, args.advice)?)
}
