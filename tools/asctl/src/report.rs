// SPDX-License-Identifier: GPL-2.0

//! How failure is told: one line on standard error, and an exit status.

use std::io;
use std::process::ExitCode;

use anyhow::Error;
use clap::error::ErrorKind;

/// An exit status of its own goes with some failures; without one it is 1.
#[derive(Debug)]
pub struct Status(pub u8, pub String);

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.1)
    }
}

impl std::error::Error for Status {}

/// For errors of standard output.
pub const STDOUT: &str = "cannot write to standard output";

/// A failure that has been told already.
#[derive(Debug)]
pub struct Reported;

impl std::fmt::Display for Reported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("failed")
    }
}

impl std::error::Error for Reported {}

/// Reports wrong usage, or prints the help that was asked for, and returns the status.
pub fn usage(error: &clap::Error) -> ExitCode {
    let asked_for_help = !error.use_stderr();
    let no_arguments = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if asked_for_help || no_arguments {
        // Where it cannot be written, there is no better place to say so.
        let _ = error.print();
    } else {
        eprintln!("asctl: {}", usage_line(&error.to_string()));
    }
    ExitCode::from(error.exit_code() as u8)
}

/// clap's message in one line: without its heading, the usage and the pointer to the help.
fn usage_line(message: &str) -> String {
    let parts = message
        .split("\n\n")
        .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|part| !part.starts_with("Usage:") && !part.starts_with("For more information"));
    let line = parts.collect::<Vec<_>>().join("; ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    format!("{line}; try 'asctl --help'")
}

/// Reports the error and returns the status to exit with.
pub fn failure(error: &Error) -> ExitCode {
    // Who closed our standard output has read enough.
    if !is_broken_pipe(error) && !error.is::<Reported>() {
        warning(error);
    }
    let status = error.downcast_ref::<Status>().map_or(1, |status| status.0);
    ExitCode::from(status)
}

/// Reports an error that is not the end.
pub fn warning(error: &Error) {
    eprintln!("asctl: {}", line(error));
}

fn is_broken_pipe(error: &Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// "vm.toml: range 2: cannot open disk.img: No such file or directory"
fn line(error: &Error) -> String {
    let parts: Vec<_> = error.chain().map(|e| strip(&e.to_string())).collect();
    parts.join(": ")
}

/// Without what std adds to the messages of the system.
fn strip(message: &str) -> String {
    match message.rsplit_once(" (os error ") {
        Some((text, tail)) if tail.ends_with(')') => text.to_owned(),
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_in_one_line() {
        let message = "error: unexpected argument '-x' found\n\n  tip: use '-- -x'\n\n\
                       Usage: asctl ls\n\nFor more information, try '--help'.\n";
        assert_eq!(
            usage_line(message),
            "unexpected argument '-x' found; tip: use '-- -x'; try 'asctl --help'"
        );
    }

    #[test]
    fn one_line() {
        let error = Error::from(io::Error::from_raw_os_error(2))
            .context("cannot open a")
            .context("range 2");
        assert_eq!(
            line(&error),
            "range 2: cannot open a: No such file or directory"
        );
    }
}
