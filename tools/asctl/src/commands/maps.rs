// SPDX-License-Identifier: GPL-2.0

use std::ffi::OsStr;

use anyhow::Result;
use asfd::{AddressSpace, CreateFlags, Info};
use serde_json::{json, Map};

use crate::cli::Maps;
use crate::table::{column, Column, Show, Table};

const COLUMNS: &[Column] = &[
    column("START", Show::Address),
    column("END", Show::Address),
    column("SIZE", Show::Size),
    column("PAGE", Show::Size),
    column("PROT", Show::Text),
    column("TYPE", Show::Text),
    column("OFFSET", Show::Address),
    column("NAME", Show::Text),
];

pub fn run(args: &Maps) -> Result<()> {
    let space = args.space.open()?;
    let info = space.info()?;
    let mut table = Table::new(COLUMNS);
    for mapping in space.mappings() {
        let m = mapping?;
        table.push([
            json!(m.start),
            json!(m.end),
            json!(m.len()),
            json!(m.page_size),
            json!(m.prot.to_string()),
            json!(if m.shared { "shared" } else { "private" }),
            json!(m.offset),
            json!(name(m.name.as_deref())),
        ]);
    }
    let members = Map::from_iter([("space".to_owned(), super::info::table(&info).row())]);
    table.print_below(args.json, "mappings", caption(&info, &new()?), &members)
}

/// A descriptor that shows and allows everything.
fn new() -> asfd::Result<Info> {
    AddressSpace::create(CreateFlags::CLOEXEC)?.info()
}

/// Who looks through a view, or at a sealed space, is told: the addresses and the protection in
/// the table are not what they seem.
fn caption(info: &Info, full: &Info) -> Option<String> {
    let what = |info: &Info| (info.window.clone(), info.prot, info.rights, info.seals);
    if what(info) == what(full) {
        return None;
    }
    let Info {
        id, window, prot, ..
    } = info;
    Some(format!(
        "space {id} from {:#x} to {:#x}, prot {prot}, rights {}, seals {}",
        window.start, window.end, info.rights, info.seals
    ))
}

/// What the kernel keeps in files of its own goes by a short name.
fn name(path: Option<&OsStr>) -> String {
    const GONE: &str = " (deleted)";

    let Some(path) = path else {
        return "[anon]".to_owned();
    };
    let path = path.to_string_lossy();
    match path.strip_suffix(GONE) {
        Some("/dev/zero") => "[anon]".to_owned(),
        Some(file) if file.starts_with("/memfd:") => file[1..].to_owned(),
        _ => path.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use asfd::{Prot, Rights, Seals};

    #[test]
    fn only_what_is_not_full_is_said() {
        let full = Info {
            id: 1,
            window: 0..0x1000,
            mappings: 0,
            mapped_bytes: 0,
            resident_bytes: 0,
            mirrors: 0,
            windows: 0,
            rights: Rights::all(),
            prot: Prot::READ | Prot::WRITE,
            seals: Seals::empty(),
        };
        let mut info = Info {
            id: 7,
            mappings: 3,
            ..full.clone()
        };
        let caption = |info: &Info| caption(info, &full);
        assert_eq!(caption(&info), None);
        info.rights = Rights::MAP | Rights::QUERY;
        let said = caption(&info).unwrap();
        let expected = "space 7 from 0x0 to 0x1000, prot rw, rights map,query, seals -";
        assert_eq!(said, expected);
        info.rights = Rights::all();
        info.seals = Seals::MAP;
        assert!(caption(&info).unwrap().ends_with("seals map"));
        info.seals = Seals::empty();
        info.window.end = 0x800;
        assert!(caption(&info).unwrap().contains("to 0x800"));
    }

    #[test]
    fn names() {
        let name = |path| name(Some(OsStr::new(path)));
        assert_eq!(name("/memfd:ram (deleted)"), "memfd:ram");
        assert_eq!(name("/dev/zero (deleted)"), "[anon]");
        assert_eq!(name("/tmp/a (deleted)"), "/tmp/a (deleted)");
        assert_eq!(name("/dev/zero"), "/dev/zero");
        assert_eq!(super::name(None), "[anon]");
    }
}
