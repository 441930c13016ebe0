// SPDX-License-Identifier: GPL-2.0

//! asctl: build, list, read and edit address spaces.

#![forbid(unsafe_code)]

mod cli;
mod commands;
mod hexdump;
mod number;
mod range;
mod report;
mod spec;
mod table;
mod target;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return report::usage(&error),
    };
    let result = match cli.command {
        Command::Exec(args) => commands::exec::run(&args),
        Command::Ls(args) => commands::ls::run(&args),
        Command::Maps(args) => commands::maps::run(&args),
        Command::Info(args) => commands::info::run(&args),
        Command::Read(args) => commands::read::run(&args),
        Command::Write(args) => commands::write::run(&args),
        Command::Map(args) => commands::map::run(&args),
        Command::Unmap(args) => commands::unmap::run(&args),
        Command::Protect(args) => commands::protect::run(&args),
        Command::Advise(args) => commands::advise::run(&args),
        Command::Seal(args) => commands::seal::run(&args),
        Command::View(args) => commands::view::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report::failure(&error),
    }
}
