// SPDX-License-Identifier: GPL-2.0

//! The command line and its help.

use std::ffi::OsString;
use std::path::PathBuf;

use asfd::Prot;
use clap::{Args, Parser, Subcommand};

use crate::number::Number;
use crate::range::{self, Place, Range, Source};
use crate::target::Target;

/// Build, list, read and edit address spaces.
///
/// An address space is a set of mappings that no process runs in. It is held by an open file
/// descriptor, and KVM guests can be run from it.
#[derive(Parser)]
#[command(
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = EXAMPLES,
    after_long_help = EXAMPLES_AND_WORDS
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

macro_rules! examples {
    () => {
        "Examples:
  asctl exec vm.toml -- sh          a shell that holds the space of vm.toml as fd $ASFD
  asctl ls                          the spaces of all processes
  asctl maps 1234:3                 what is mapped in the space that process 1234 has as fd 3
  asctl read 1234:3 0x1000 64       64 bytes of it
  asctl map 1234:3 --file disk.img --at 1G
                                    map a file into it
  asctl unmap 1234:3 1G 4K          take a page out again"
    };
}

const EXAMPLES: &str = examples!();

const EXAMPLES_AND_WORDS: &str = concat!(
    examples!(),
    "

SPACE is one of
  PID:FD      a descriptor of another process (needs the right to trace it, see ptrace(2))
  :FD, FD     a descriptor that asctl inherited, \"$ASFD\" in a program run by asctl exec

ADDR, LEN and OFFSET are bytes: decimal or 0x hexadecimal, with K, M, G or T for powers of 1024.

Exit status: 0 done, 1 failed, 2 wrong usage; of asctl exec, the command's, 126 if it cannot be
run, 127 if it is not found."
);

#[derive(Subcommand)]
pub enum Command {
    Exec(Exec),
    Ls(Ls),
    Maps(Maps),
    Info(Info),
    Read(Read),
    Write(Write),
    Map(Map),
    Unmap(Unmap),
}

/// Build a space and run a command that holds it
///
/// The command gets the space as an open descriptor; its number is in the environment variable
/// ASFD.
#[derive(Args)]
#[command(after_help = EXEC_HELP)]
pub struct Exec {
    /// Description of the space, TOML; "-" for standard input
    pub spec: PathBuf,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

const EXEC_HELP: &str = r#"A SPEC has one [[range]] for each mapping:

  [[range]]
  memfd = "ram"       # a new memfd; ranges with the same name share it
  len = "64M"
  at = 0              # left out: the lowest free address
  prot = "rw"         # "r", "w", "rw" or "none"; left out: "r" for files, else "rw"

  [[range]]
  file = "kernel.img" # relative to the folder of the SPEC
  offset = 0x1000     # in the file
  len = "16K"         # left out: the rest of the file
  private = true      # writes stay in the space

  [[range]]
  anonymous = true
  len = "1M"
  populate = true     # bring the pages in at once

Ranges with "at" are mapped first, then the others, each in the order of the file.

Examples:
  asctl exec vm.toml -- sh
  asctl exec vm.toml -- sh -c 'asctl maps $ASFD'
  asctl exec /dev/null -- sh -c 'asctl map $ASFD --anonymous --len 4K; asctl ls -p $$'
                      # from an empty space"#;

/// List the spaces of all processes
///
/// One line for each descriptor. Processes that may not be looked at are left out. RESIDENT is
/// "-" where taking the descriptor is not permitted.
#[derive(Args)]
#[command(after_help = "Examples:
  asctl ls
  asctl ls --pid 1234
  asctl ls --json | jq '.spaces[] | select(.windows > 0)'")]
pub struct Ls {
    /// Only the spaces of these processes
    #[arg(short, long, value_name = "PID", value_delimiter = ',')]
    pub pid: Vec<u32>,
    /// Write JSON; sizes are in bytes
    #[arg(short = 'J', long)]
    pub json: bool,
}

/// List the mappings of a space
#[derive(Args)]
#[command(after_help = "Examples:
  asctl maps 1234:3
  asctl maps --json $ASFD")]
pub struct Maps {
    /// The space, PID:FD or FD
    pub space: Target,
    /// Write JSON; sizes and addresses are numbers of bytes
    #[arg(short = 'J', long)]
    pub json: bool,
}

/// Show the properties of a space and of the descriptor
#[derive(Args)]
#[command(after_help = "Examples:
  asctl info 1234:3")]
pub struct Info {
    /// The space, PID:FD or FD
    pub space: Target,
    /// Write JSON; sizes and addresses are numbers of bytes
    #[arg(short = 'J', long)]
    pub json: bool,
}

/// Write bytes of a space to standard output
///
/// The bytes come out as they are, to a terminal as a hexadecimal dump.
#[derive(Args)]
#[command(after_help = "Examples:
  asctl read 1234:3 0x1000 256
  asctl read 1234:3 0 64M > memory.img")]
pub struct Read {
    /// The space, PID:FD or FD
    pub space: Target,
    /// Where to start
    pub addr: Number,
    /// How many bytes
    pub len: Number,
    /// Write a hexadecimal dump, whatever standard output is
    #[arg(long, conflicts_with = "raw")]
    pub hex: bool,
    /// Write the bytes as they are, to a terminal too
    #[arg(long)]
    pub raw: bool,
}

/// Write standard input into a space
#[derive(Args)]
#[command(after_help = "Examples:
  printf hello | asctl write 1234:3 0x1000
  asctl write 1234:3 0 < memory.img")]
pub struct Write {
    /// The space, PID:FD or FD
    pub space: Target,
    /// Where to start
    pub addr: Number,
}

/// Map a file, a new memfd or anonymous memory into a space
///
/// Prints the address.
#[derive(Args)]
#[command(after_help = "Examples:
  asctl map 1234:3 --file disk.img --at 1G
  asctl map 1234:3 --memfd scratch --len 2M --hint 0x100000
  asctl map 1234:3 --anonymous --len 4K --replace 0")]
pub struct Map {
    /// The space, PID:FD or FD
    pub space: Target,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Start here in the file
    #[arg(long, default_value = "0")]
    pub offset: Number,
    /// Bytes to map [default: the rest of the file]
    #[arg(long)]
    pub len: Option<Number>,
    /// Accesses allowed: r, w, rw or none [default: r for files, else rw]
    #[arg(long, value_parser = range::prot)]
    pub prot: Option<Prot>,
    /// Writes stay in the space and do not reach the file
    #[arg(long)]
    pub private: bool,
    /// Bring the pages in at once
    #[arg(long)]
    pub populate: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct SourceArgs {
    /// Map this file
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Map a new memfd of this name
    #[arg(long, value_name = "NAME")]
    memfd: Option<String>,
    /// Map fresh memory
    #[arg(long)]
    anonymous: bool,
}

#[derive(Args)]
#[group(multiple = false)]
pub struct PlaceArgs {
    /// Exactly here, where nothing may be mapped yet [default: the lowest free address]
    #[arg(long, value_name = "ADDR")]
    at: Option<Number>,
    /// Exactly here, in place of what is mapped
    #[arg(long, value_name = "ADDR")]
    replace: Option<Number>,
    /// At the lowest free address from here on
    #[arg(long, value_name = "ADDR")]
    hint: Option<Number>,
}

/// Unmap a range of a space
///
/// Holes in the range are passed over; the length is rounded up to whole pages.
#[derive(Args)]
#[command(after_help = "Examples:
  asctl unmap 1234:3 0x100000 64K")]
pub struct Unmap {
    /// The space, PID:FD or FD
    pub space: Target,
    /// Where to start
    pub addr: Number,
    /// How many bytes
    pub len: Number,
}

impl Map {
    pub fn range(&self) -> Range {
        Range {
            source: self.source.source(),
            offset: self.offset.0,
            len: self.len.map(|len| len.0),
            prot: self.prot,
            private: self.private,
            populate: self.populate,
            place: self.place.place(),
        }
    }
}

impl SourceArgs {
    fn source(&self) -> Source {
        // clap sees to it that there is exactly one.
        match (&self.file, &self.memfd) {
            (Some(path), _) => Source::File(path.clone()),
            (_, Some(name)) => Source::Memfd(name.clone()),
            _ => Source::Anonymous,
        }
    }
}

impl PlaceArgs {
    fn place(&self) -> Place {
        match (self.at, self.replace, self.hint) {
            (Some(addr), ..) => Place::At(addr.0),
            (_, Some(addr), _) => Place::Replace(addr.0),
            (.., Some(addr)) => Place::Hint(addr.0),
            _ => Place::Free,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::error::ErrorKind;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Command, ErrorKind> {
        Cli::try_parse_from(line.split(' '))
            .map(|cli| cli.command)
            .map_err(|e| e.kind())
    }

    fn map(line: &str) -> Range {
        match parse(line) {
            Ok(Command::Map(map)) => map.range(),
            _ => panic!("{line}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn map_is_read() {
        let range = map("asctl map 1:3 --file a --at 1M --offset 4K --prot rw --private");
        assert_eq!(range.source, Source::File("a".into()));
        assert_eq!(range.place, Place::At(1 << 20));
        assert_eq!((range.offset, range.len), (4096, None));
        assert_eq!(range.prot, Some(Prot::READ | Prot::WRITE));
        assert!(range.private && !range.populate);

        let range = map("asctl map 3 --memfd ram --len 0x2000 --replace 0");
        assert_eq!(range.source, Source::Memfd("ram".into()));
        assert_eq!(range.place, Place::Replace(0));
        assert_eq!(
            map("asctl map 3 --anonymous --hint 7").place,
            Place::Hint(7)
        );
        assert_eq!(map("asctl map 3 --anonymous").place, Place::Free);
    }

    #[test]
    fn wrong_usage() {
        for line in [
            "asctl map 1:3 --len 4K",
            "asctl map 1:3 --file a --anonymous",
            "asctl map 1:3 --anonymous --at 0 --hint 0",
            "asctl map 1:3 --anonymous --prot x",
            "asctl map 1:x --anonymous",
            "asctl read 1:3 0",
            "asctl read 1:3 0 -5",
            "asctl exec spec",
            "asctl",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_command_of_exec_keeps_its_options() {
        for line in ["asctl exec s -- ls --json", "asctl exec s ls --json"] {
            let Ok(Command::Exec(exec)) = parse(line) else {
                panic!("{line}");
            };
            assert_eq!(exec.command, ["ls", "--json"]);
        }
    }
}
