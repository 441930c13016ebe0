// SPDX-License-Identifier: GPL-2.0

//! What address spaces cost, against what a user would otherwise do for the same work.
//!
//! `bench measure` runs in the VM and prints what it measures, a JSON object a line; `bench report`
//! makes the table, the pictures and results.json of that. `make bench` does both.

mod clock;
mod measure;
mod record;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use measure::Pass;

/// Measure what address spaces cost
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure, in the VM, and print what came of it, a JSON object a line
    Measure {
        pass: Pass,
        /// Only those measurements whose names contain this
        #[arg(long, default_value = "")]
        only: String,
    },
    /// Print a table of what was measured; write results.json and pictures
    Report {
        /// Where results.json and the pictures go
        #[arg(long, default_value = "build/bench")]
        out: PathBuf,
        /// What `bench measure` printed
        #[arg(required = true)]
        measured: Vec<PathBuf>,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Measure { pass, only } => measure::run(pass, &only),
        Command::Report { out, measured } => report::report(&measured, &out),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
