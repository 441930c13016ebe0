// SPDX-License-Identifier: GPL-2.0

use anyhow::Result;
use serde_json::json;

use crate::cli::Info;
use crate::table::{column, Column, Show, Table};

const COLUMNS: &[Column] = &[
    column("ID", Show::Number),
    column("START", Show::Address),
    column("END", Show::Address),
    column("MAPPINGS", Show::Number),
    column("MAPPED", Show::Size),
    column("RESIDENT", Show::Size),
    column("MIRRORS", Show::Number),
    column("WINDOWS", Show::Number),
    column("RIGHTS", Show::Text),
    column("PROT", Show::Text),
    column("SEALS", Show::Text),
];

pub fn run(args: &Info) -> Result<()> {
    table(&args.space.open()?.info()?).print_row(args.json)
}

/// The properties as the only row of a table.
pub fn table(info: &asfd::Info) -> Table {
    let mut table = Table::new(COLUMNS);
    table.push([
        json!(info.id),
        json!(info.window.start),
        json!(info.window.end),
        json!(info.mappings),
        json!(info.mapped_bytes),
        json!(info.resident_bytes),
        json!(info.mirrors),
        json!(info.windows),
        json!(info.rights.to_string()),
        json!(info.prot.to_string()),
        json!(info.seals.to_string()),
    ]);
    table
}
