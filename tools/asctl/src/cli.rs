// SPDX-License-Identifier: GPL-2.0

//! The command line and its help.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};
use asfd::{Advice, Prot, Rights, Seals};
use clap::builder::{PossibleValuesParser, TypedValueParser};
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
  asctl unmap 1234:3 1G 4K          take a page out again
  asctl view $ASFD --prot r -- sh   a shell that can read that space, and not write it
  asctl seal 1234:3 map,unmap       nobody maps or unmaps in it any more"
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

RIGHTS of a descriptor are map, unmap, change (protect and advise), seal, view (make views), query
(look at the mappings) and kvm (show to a guest); SEALS of a space are map, unmap, change and seal.
Lists of them have commas; \"none\" is the empty list. asctl ls shows their first letters.

Exit status: 0 done, 1 failed, 2 wrong usage; of asctl exec and view, the command's, 126 if it
cannot be run, 127 if it is not found."
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
    Protect(Protect),
    Advise(Advise),
    Seal(Seal),
    View(View),
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
/// One line for each descriptor; those with the same ID are of one space. START and SIZE say what
/// of the space it shows, PROT what can be read and written through it at most, RIGHTS and SEALS
/// which edits it may make and which nobody may: the first letters of map, unmap, change, seal,
/// view, query and kvm.
///
/// Processes that may not be looked at are left out. RESIDENT is "-" where taking the descriptor
/// is not permitted.
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
///
/// Of a view those in its window, counted from its start; a line before the table then says where
/// that is.
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

/// Change what the mappings in a range allow
///
/// All of the range changes or nothing does; a hole in it is an error. The length is rounded up to
/// whole pages.
#[derive(Args)]
#[command(after_help = "Examples:
  asctl protect 1234:3 0x100000 64K r")]
pub struct Protect {
    /// The space, PID:FD or FD
    pub space: Target,
    /// Where to start
    pub addr: Number,
    /// How many bytes
    pub len: Number,
    /// Accesses allowed: r, w, rw or none
    #[arg(value_parser = range::prot)]
    pub prot: Prot,
}

/// Give advice on a range, as madvise(2) does
#[derive(Args)]
#[command(after_help = "Examples:
  asctl advise 1234:3 0 64M dontneed
  asctl advise 1234:3 0 64M populate_read")]
pub struct Advise {
    /// The space, PID:FD or FD
    pub space: Target,
    /// Where to start
    pub addr: Number,
    /// How many bytes
    pub len: Number,
    /// The advice, a MADV_ name of madvise(2) in lower case
    #[arg(value_parser = advice_parser())]
    pub advice: Advice,
}

/// Forbid edits of a space, to everybody and for good
#[derive(Args)]
#[command(after_help = "Examples:
  asctl seal 1234:3 map,unmap
  asctl seal $ASFD map,unmap,change,seal
                      # from now on it stays as it is")]
pub struct Seal {
    /// The space, PID:FD or FD
    pub space: Target,
    /// What to forbid: map, unmap, change (protect and advise), seal (add seals)
    #[arg(value_name = "SEAL,...")]
    pub seals: Seals,
}

/// Run a command that holds a view of a space
///
/// A view is a descriptor that shows less of a space, or may do less with it. The command gets it
/// as an open descriptor, whose number is in the environment variable ASFD, and no other
/// descriptor of that space. What is not narrowed here is as it is for SPACE.
#[derive(Args)]
#[command(after_help = "Examples:
  asctl view $ASFD --prot r --rights query -- sh
                      # a shell that can look at everything, and change nothing
  asctl view 1234:3 --window 1G 16M --rights none -- ./device
                      # 16 MiB of it, which become the program's whole world")]
pub struct View {
    /// The space, PID:FD or FD
    pub space: Target,
    /// Only this part; what starts there is at 0 for the command
    #[arg(long, num_args = 2, value_names = ["START", "LEN"])]
    pub window: Option<Vec<Number>>,
    /// What can be read and written at most: r, w, rw or none
    #[arg(long, value_parser = range::prot)]
    pub prot: Option<Prot>,
    /// Only these rights: map, unmap, change, seal, view, query, kvm, or none
    #[arg(long, value_name = "RIGHT,...")]
    pub rights: Option<Rights>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// So that the help lists them.
fn advice_parser() -> impl TypedValueParser<Value = Advice> {
    let names = Advice::ALL.iter().map(|advice| advice.name());
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Advice>())
}

impl View {
    /// The window as a range of addresses.
    pub fn range(&self) -> Result<Option<std::ops::Range<u64>>> {
        let Some([start, len]) = self.window.as_deref() else {
            return Ok(None);
        };
        let end = start.0.checked_add(len.0);
        let end = end.context("start and length of the window are too large")?;
        Ok(Some(start.0..end))
    }
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

    fn parse(line: &str) -> std::result::Result<Command, ErrorKind> {
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
            "asctl protect 1:3 0 4K",
            "asctl protect 1:3 0 4K x",
            "asctl advise 1:3 0 4K dofork",
            "asctl seal 1:3",
            "asctl seal 1:3 map,fly",
            "asctl view 1:3",
            "asctl view 1:3 --rights fly -- true",
            "asctl view 1:3 --window 0 -- true",
            "asctl view 1:3 --prot x -- true",
            "asctl",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    fn view(line: &str) -> View {
        match parse(line) {
            Ok(Command::View(view)) => view,
            _ => panic!("{line}"),
        }
    }

    #[test]
    fn view_is_read() {
        let line = "asctl view 1:3 --window 1M 0x1000 --prot r --rights map,query -- ls --json";
        let some = view(line);
        assert_eq!(some.range().unwrap(), Some(0x100000..0x101000));
        assert_eq!(some.prot, Some(Prot::READ));
        assert_eq!(some.rights, Some(Rights::MAP | Rights::QUERY));
        assert_eq!(some.command, ["ls", "--json"]);

        let bare = view("asctl view 3 ls --prot r");
        assert_eq!(bare.range().unwrap(), None);
        assert_eq!((bare.prot, bare.rights), (None, None));
        assert_eq!(bare.command, ["ls", "--prot", "r"]);

        let none = view("asctl view 3 --rights none --prot none true");
        assert_eq!(none.rights, Some(Rights::empty()));
        assert_eq!(none.prot, Some(Prot::empty()));

        let long = view("asctl view 3 --window 16383P 15E true");
        assert!(long.range().is_err());
    }

    #[test]
    fn the_edits_are_read() {
        let Ok(Command::Seal(seal)) = parse("asctl seal 3 map,unmap") else {
            panic!();
        };
        assert_eq!(seal.seals, Seals::MAP | Seals::UNMAP);
        for advice in Advice::ALL {
            let Ok(Command::Advise(advise)) = parse(&format!("asctl advise 3 0 4K {advice}"))
            else {
                panic!("{advice}");
            };
            assert_eq!(advise.advice, *advice);
        }
        let Ok(Command::Protect(protect)) = parse("asctl protect 3 4K 8K none") else {
            panic!();
        };
        assert_eq!((protect.addr, protect.len), (Number(4096), Number(8192)));
        assert_eq!(protect.prot, Prot::empty());
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
