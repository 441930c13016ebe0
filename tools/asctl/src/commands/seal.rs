// SPDX-License-Identifier: GPL-2.0

use anyhow::Result;

use crate::cli::Seal;

pub fn run(args: &Seal) -> Result<()> {
    Ok(args.space.open()?.seal(args.seals)?)
}
