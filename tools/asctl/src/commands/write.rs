// SPDX-License-Identifier: GPL-2.0

use std::io::{self, Read};

use anyhow::{Context, Result};

use crate::cli::Write;

pub fn run(args: &Write) -> Result<()> {
    let space = args.space.open()?;
    let mut stdin = io::stdin().lock();
    let mut buf = vec![0; 1 << 20];
    let mut at = args.addr.0;
    loop {
        let n = stdin.read(&mut buf).context("cannot read standard input")?;
        if n == 0 {
            return Ok(());
        }
        space
            .write_all_at(&buf[..n], at)
            .context("not all of standard input is written")?;
        at = at
            .checked_add(n as u64)
            .context("standard input is too long")?;
    }
}
