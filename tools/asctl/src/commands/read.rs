// SPDX-License-Identifier: GPL-2.0

use std::io::{self, IsTerminal, Write};

use anyhow::{bail, Context, Result};
use asfd::AddressSpace;

use crate::cli::Read;
use crate::hexdump::Hexdump;
use crate::report;

pub fn run(args: &Read) -> Result<()> {
    let space = args.space.open()?;
    let (addr, len) = (args.addr.0, args.len.0);
    let stdout = io::stdout().lock();

    if args.hex || (stdout.is_terminal() && !args.raw) {
        let mut dump = Hexdump::new(io::BufWriter::new(stdout), addr);
        let copied = copy(&space, addr, len, &mut dump);
        // What comes before a hole is shown, too.
        dump.finish().context(report::STDOUT)?;
        copied
    } else {
        copy(&space, addr, len, stdout)
    }
}

fn copy(space: &AddressSpace, addr: u64, len: u64, mut out: impl Write) -> Result<()> {
    const CHUNK: u64 = 1 << 20;

    let end = addr
        .checked_add(len)
        .context("address and length are too large")?;
    let mut buf = vec![0; CHUNK.min(len) as usize];
    let mut at = addr;
    while at < end {
        let want = CHUNK.min(end - at) as usize;
        let n = space.read_at(&mut buf[..want], at)?;
        if n == 0 {
            bail!(
                "only {} of {len} bytes: the space, or the view of it, ends at {at:#x}",
                at - addr
            );
        }
        out.write_all(&buf[..n]).context(report::STDOUT)?;
        at += n as u64;
    }
    out.flush().context(report::STDOUT)
}
