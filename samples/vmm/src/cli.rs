// SPDX-License-Identifier: GPL-2.0

//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use crate::memory::PAGE;
use crate::mptable;

/// Boot Linux as a KVM guest whose memory is an address space, and map none of it
///
/// The guest's console is on standard input and output; on a terminal ^A x ends the guest. The
/// first line on standard error tells by which name asctl knows the guest's memory. Memory that is
/// mapped there, while the guest runs, is memory that it finds plugged in.
///
/// Ends with status 0 when the guest resets, 1 on failure, 2 on wrong usage.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    /// The kernel, a bzImage
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// The archive of its first files
    #[arg(long, value_name = "FILE")]
    pub initramfs: Option<PathBuf>,
    /// Memory, in bytes or with K, M or G
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = size)]
    pub mem: u64,
    /// How much it can become: what the guest is shown, most of it holes
    #[arg(long, value_name = "SIZE", default_value = "8G", value_parser = size)]
    pub max_mem: u64,
    /// Processors
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=mptable::MAX_CPUS as i64))]
    pub cpus: u8,
    /// More arguments for the kernel
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub append: Vec<String>,
}

impl Cli {
    /// Reads the arguments, or says what is wrong with them and how to end.
    pub fn read() -> Result<Cli, ExitCode> {
        Cli::try_parse().and_then(Cli::checked).map_err(|error| {
            if error.use_stderr() {
                eprintln!("vmm: {}", line(&error.to_string()));
            } else {
                // Where help cannot be written, there is no better place to say so.
                let _ = error.print();
            }
            ExitCode::from(error.exit_code() as u8)
        })
    }

    fn checked(self) -> Result<Cli, clap::Error> {
        if self.mem > self.max_mem {
            let message = "--mem is more than --max-mem";
            return Err(Cli::command().error(ErrorKind::ValueValidation, message));
        }
        Ok(self)
    }
}

/// clap's message without its heading, the usage and the pointer to the help.
fn line(message: &str) -> String {
    let first = message.split("\n\n").next().unwrap_or(message);
    let words: Vec<_> = first.split_whitespace().collect();
    let line = words.join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    format!("{line}; try 'vmm --help'")
}

/// Whole pages, and at least the first megabyte and one more.
fn size(text: &str) -> Result<u64, String> {
    const LEAST: u64 = 2 << 20;
    const MOST: u64 = 1 << 40;
    let (digits, unit) = match text.char_indices().last() {
        Some((n, 'K' | 'k')) => (&text[..n], 1 << 10),
        Some((n, 'M' | 'm')) => (&text[..n], 1 << 20),
        Some((n, 'G' | 'g')) => (&text[..n], 1 << 30),
        _ => (text, 1),
    };
    // parse() alone would take a sign.
    let number = digits.parse::<u64>().ok();
    let number = number.filter(|_| !digits.starts_with('+'));
    let bytes = number.and_then(|number| number.checked_mul(unit));
    match bytes.ok_or("want a number of bytes, or one with K, M or G")? {
        bytes if bytes % PAGE != 0 => Err("want whole pages of 4K".to_owned()),
        bytes if !(LEAST..=MOST).contains(&bytes) => Err("want 2M to 1024G".to_owned()),
        bytes => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' ')).and_then(Cli::checked)
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_are_read() {
        let cli = parse("vmm --kernel k --initramfs i --mem 96M --cpus 2 --append -x --append y");
        let cli = cli.unwrap();
        assert_eq!(cli.kernel, PathBuf::from("k"));
        assert_eq!(cli.initramfs, Some("i".into()));
        assert_eq!((cli.mem, cli.max_mem, cli.cpus), (96 << 20, 8 << 30, 2));
        assert_eq!(cli.append, ["-x", "y"]);
        let bare = parse("vmm --kernel k").unwrap();
        assert_eq!((bare.mem, bare.cpus, bare.append.len()), (64 << 20, 1, 0));
    }

    #[test]
    fn wrong_usage() {
        for line in [
            "vmm",
            "vmm --kernel",
            "vmm --kernel k other",
            "vmm --kernel k --cpus 0",
            "vmm --kernel k --cpus 255",
            "vmm --kernel k --mem 0",
            "vmm --kernel k --mem 4G --max-mem 2G",
            "vmm --kernel k --fly",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
            let said = super::line(&error.to_string());
            assert!(!said.contains('\n') && !said.contains("Usage"), "{said}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("64M", 64 << 20),
            ("2g", 2 << 30),
            ("4096K", 4 << 20),
            ("8388608", 8 << 20),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in [
            "", "M", "-1M", "+64M", "64MB", "64M ", "4097K1", "3000001", "4K", "2048G",
        ] {
            assert!(size(text).is_err(), "{text:?}");
        }
        assert!(size("18446744073709551615G").is_err());
    }
}
