// SPDX-License-Identifier: GPL-2.0

//! What is printed: headings, commands, and whether a step did what it should.

use std::cell::Cell;
use std::fmt;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{ensure, Context, Result};

pub fn heading(text: &str) {
    println!("\n== {text}");
}

#[derive(Default)]
pub struct Steps {
    done: Cell<u32>,
    wrong: Cell<u32>,
}

impl Steps {
    pub fn check(&self, what: &str, right: bool) {
        self.done.set(self.done.get() + 1);
        self.wrong.set(self.wrong.get() + u32::from(!right));
        let verdict = if right { "ok" } else { "WRONG" };
        println!("  {verdict:<5} | {what}");
    }

    pub fn all_right(&self) -> bool {
        self.wrong.get() == 0
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} checks, {} failed", self.done.get(), self.wrong.get())
    }
}

/// Runs asctl as anybody would, in a process of its own.
pub fn asctl(args: &[&str]) -> Result<()> {
    println!("$ asctl {}", args.join(" "));
    run(args, &[])
}

/// Writes into a space.
pub fn asctl_write(space: &str, at: u64, bytes: &[u8]) -> Result<()> {
    let at = format!("{at:#x}");
    let text = String::from_utf8_lossy(bytes);
    println!("$ echo '{}' | asctl write {space} {at}", text.trim_end());
    run(&["write", space, &at], bytes)
}

fn run(args: &[&str], input: &[u8]) -> Result<()> {
    let mut command = Command::new("asctl");
    let mut asctl = command
        .args(args)
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot run asctl")?;
    let mut stdin = asctl.stdin.take().expect("it is taken once");
    // If it does not read all, it says so itself.
    let _ = stdin.write_all(input);
    drop(stdin);
    let status = asctl.wait()?;
    ensure!(status.success(), "asctl {}: {status}", args[0]);
    Ok(())
}
