// SPDX-License-Identifier: GPL-2.0

//! Tables for people, the same columns as JSON for programs.

use std::io::{self, Write};

use anyhow::{Context, Result};
use comfy_table::{presets, CellAlignment, Table as Layout};
use serde_json::{Map, Value};

use crate::number;
use crate::report;

/// How a column of a table is shown. JSON has the plain value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Show {
    Text,
    Number,
    Size,
    Address,
    /// A list of names with commas, by their first letters.
    Initials,
}

impl Show {
    fn is_number(self) -> bool {
        matches!(self, Show::Number | Show::Size | Show::Address)
    }
}

pub struct Column {
    pub name: &'static str,
    pub show: Show,
}

/// Short for long lists of columns.
pub const fn column(name: &'static str, show: Show) -> Column {
    Column { name, show }
}

pub struct Table {
    columns: &'static [Column],
    rows: Vec<Vec<Value>>,
}

impl Table {
    pub fn new(columns: &'static [Column]) -> Self {
        let rows = Vec::new();
        Table { columns, rows }
    }

    pub fn push<const N: usize>(&mut self, row: [Value; N]) {
        assert_eq!(N, self.columns.len());
        self.rows.push(row.into());
    }

    /// Writes the table, or `{"NAME": [{"column": value, ...}, ...]}`.
    pub fn print(&self, json: bool, name: &str) -> Result<()> {
        self.print_below(json, name, None, &Map::new())
    }

    /// The same, with a line before the table, or more members in the object.
    pub fn print_below(
        &self,
        json: bool,
        name: &str,
        line: Option<String>,
        members: &Map<String, Value>,
    ) -> Result<()> {
        let text = if json {
            let rows: Vec<_> = self.rows.iter().map(|row| self.object(row)).collect();
            let mut object = members.clone();
            object.insert(name.to_owned(), rows.into());
            pretty(&object.into())?
        } else {
            let line = line.map(|line| line + "\n");
            line.unwrap_or_default() + &self.layout()
        };
        write(&text)
    }

    /// Writes the only row as `Name: value` lines, or as one JSON object.
    pub fn print_row(&self, json: bool) -> Result<()> {
        let row = &self.rows[0];
        let text = if json {
            pretty(&self.object(row))?
        } else {
            let width = self.columns.iter().map(|c| c.name.len()).max().unwrap_or(0) + 1;
            let line = |(column, value): (&Column, &Value)| {
                let name = format!("{}:", column.name);
                format!("{name:width$} {}\n", shown(column.show, value))
            };
            self.columns.iter().zip(row).map(line).collect()
        };
        write(&text)
    }

    /// The only row as an object.
    pub fn row(&self) -> Value {
        self.object(&self.rows[0])
    }

    fn object(&self, row: &[Value]) -> Value {
        let key = |column: &Column| column.name.to_lowercase();
        let pairs = self.columns.iter().map(key).zip(row.iter().cloned());
        Value::Object(Map::from_iter(pairs))
    }

    fn layout(&self) -> String {
        let mut layout = Layout::new();
        layout.load_preset(presets::NOTHING);
        layout.set_header(self.columns.iter().map(|c| c.name));
        for row in &self.rows {
            let cells = self.columns.iter().zip(row);
            layout.add_row(cells.map(|(column, value)| shown(column.show, value)));
        }
        for (column, layout) in self.columns.iter().zip(layout.column_iter_mut()) {
            layout.set_padding((0, 1));
            if column.show.is_number() {
                layout.set_cell_alignment(CellAlignment::Right);
            }
        }
        layout
            .lines()
            .map(|line| format!("{}\n", line.trim_end()))
            .collect()
    }
}

fn write(text: &str) -> Result<()> {
    let written = io::stdout().lock().write_all(text.as_bytes());
    written.context(report::STDOUT)
}

fn pretty(value: &Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn shown(show: Show, value: &Value) -> String {
    match (show, value, value.as_u64()) {
        (_, Value::Null, _) => "-".to_owned(),
        (Show::Size, _, Some(n)) => number::human(n),
        (Show::Address, _, Some(n)) => format!("{n:#x}"),
        (Show::Initials, Value::String(text), _) => initials(text),
        (_, Value::String(text), _) => printable(text),
        _ => value.to_string(),
    }
}

/// "map,unmap,query" is "muq"; "-" for none stays.
fn initials(names: &str) -> String {
    names
        .split(',')
        .filter_map(|name| name.chars().next())
        .collect()
}

/// Names come from other people's files: no control character of theirs reaches the terminal.
fn printable(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const COLUMNS: &[Column] = &[
        column("NAME", Show::Text),
        column("SIZE", Show::Size),
        column("START", Show::Address),
        column("N", Show::Number),
    ];

    fn table() -> Table {
        let mut table = Table::new(COLUMNS);
        table.push([json!("a b"), json!(4096), json!(0), json!(1)]);
        table.push([json!("x\n\x1b[1m"), json!(null), json!(1 << 20), json!(10)]);
        table
    }

    #[test]
    fn for_people() {
        let expected = "\
NAME         SIZE    START  N
a b            4K      0x0  1
x\\n\\u{1b}[1m    - 0x100000 10
";
        assert_eq!(table().layout(), expected);
    }

    #[test]
    fn names_by_their_first_letters() {
        let shown = |names| shown(Show::Initials, &json!(names));
        assert_eq!(shown("map,unmap,query"), "muq");
        assert_eq!(shown("-"), "-");
    }

    // The letters are of use only if they tell the names apart.
    #[test]
    fn the_first_letters_differ() {
        for names in [
            asfd::Rights::all().to_string(),
            asfd::Seals::all().to_string(),
        ] {
            let mut letters: Vec<_> = initials(&names).chars().collect();
            letters.sort_unstable();
            letters.dedup();
            assert_eq!(letters.len(), names.split(',').count(), "{names}");
        }
    }

    #[test]
    fn no_rows_still_have_a_header() {
        assert_eq!(Table::new(COLUMNS).layout(), "NAME SIZE START N\n");
    }

    #[test]
    fn for_programs() {
        let table = table();
        let object = table.object(&table.rows[1]);
        let expected = json!({"name": "x\n\x1b[1m", "size": null, "start": 1048576, "n": 10});
        assert_eq!(object, expected);
    }
}
