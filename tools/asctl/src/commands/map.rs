// SPDX-License-Identifier: GPL-2.0

use std::io::{self, Write};

use anyhow::{Context, Result};

use crate::cli::Map;
use crate::range::Memfds;
use crate::report;

pub fn run(args: &Map) -> Result<()> {
    let space = args.space.open()?;
    let addr = args.range().map(&space, &mut Memfds::new())?;
    writeln!(io::stdout(), "{addr:#x}").context(report::STDOUT)
}
