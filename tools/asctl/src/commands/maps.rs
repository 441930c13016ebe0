// SPDX-License-Identifier: GPL-2.0

use std::ffi::OsStr;

use anyhow::Result;
use serde_json::json;

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
    table.print(args.json, "mappings")
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
