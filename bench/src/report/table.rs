// SPDX-License-Identifier: GPL-2.0

//! The table.

use std::path::Path;

use comfy_table::{presets, CellAlignment, ContentArrangement, Table};

use super::number;
use super::outcome::Outcome;

const WIDTH: u16 = 120;

const COLUMNS: [(&str, CellAlignment); 8] = {
    use CellAlignment::{Left, Right};
    [
        ("OPERATION", Left),
        ("AGAINST", Left),
        ("UNIT", Left),
        ("SPACE", Right),
        ("OTHER", Right),
        ("RATIO", Right),
        ("BAR", Left),
        ("MET", Left),
    ]
};

pub fn layout(outcomes: &[Outcome]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(WIDTH);
    table.set_header(COLUMNS.map(|(name, _)| name));
    table.add_rows(outcomes.iter().map(cells));
    for ((_, alignment), column) in COLUMNS.iter().zip(table.column_iter_mut()) {
        column.set_padding((0, 1));
        column.set_cell_alignment(*alignment);
    }
    let lines = table.lines();
    lines.map(|line| format!("{}\n", line.trim_end())).collect()
}

fn cells(row: &Outcome) -> [String; COLUMNS.len()] {
    let met = match row.met {
        None => "-",
        Some(true) => "yes",
        Some(false) => "NO",
    };
    [
        row.name.to_owned(),
        row.alternative_name.to_owned(),
        number::short_unit(row.unit).to_owned(),
        number::cost(row.unit, row.space),
        number::cost(row.unit, row.alternative),
        number::ratio(row.ratio),
        number::bar(row.unit, row.bar),
        met.to_owned(),
    ]
}

/// How to read the table, what it leaves out, what came of it and where the rest is.
pub fn foot(outcomes: &[Outcome], out: &Path, files: &[String]) -> String {
    let count = |met| outcomes.iter().filter(|row| row.met == met).count();
    format!(
        "\
RATIO: SPACE / OTHER, rounded to 2 decimals, below 0.1 to 2 digits. So rounded it is held against BAR.
instr: instructions that the only CPU executes for it, in programs, kernel and guest: the same on every run, but for 1% or
       so (seen: 4%) where processes or vCPUs take turns. Left out: cache and TLB misses, IPIs, memory bandwidth, contention
       for locks.
us:    wall time on several emulated CPUs, which share the host's: noisy.
IPIs:  those that these CPUs receive meanwhile.

Bars met: {}, missed: {}; rows without a bar: {}
In {}: {}
",
        count(Some(true)),
        count(Some(false)),
        count(None),
        out.display(),
        files.join(" "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Measured, Unit};

    fn rows() -> [Measured; 4] {
        let new = Measured::new;
        [
            new("map 4K", "mmap", Unit::Instructions, (2100.0, 2000.0)).at_most(1.1),
            new("take 2M", "memslot", Unit::Microseconds, (2.5, 5.0)).cheaper(10.0),
            new("replace", "memslot", Unit::Exits, (0.0, 12.0)).at_most(0.0),
            new("page tables", "mmap", Unit::Bytes, (4096.0, 0.0)),
        ]
    }

    #[test]
    fn for_people() {
        let rows = rows();
        let expected = "\
OPERATION   AGAINST UNIT  SPACE OTHER RATIO BAR            MET
map 4K      mmap    instr 2,100 2,000  1.05 <= 1.1x        yes
take 2M     memslot us     2.50     5  0.50 >= 10x cheaper NO
replace     memslot exits     0    12     0 0 exits        yes
page tables mmap    bytes 4,096     0     - -              -
";
        assert_eq!(layout(&rows.each_ref().map(Outcome::of)), expected);
    }

    #[test]
    fn long_names_are_wrapped() {
        let mut rows = rows();
        rows[0].name = "map ".repeat(40);
        let text = layout(&rows.each_ref().map(Outcome::of));
        assert!(
            text.lines().all(|line| line.len() <= WIDTH.into()),
            "{text}"
        );
        assert_eq!(text.matches("map").count(), 42, "{text}");
        assert!(text.contains(" 1.05 <= 1.1x        yes\n"), "{text}");
    }

    #[test]
    fn the_foot_counts() {
        // The last one has no bar.
        let [a, b, c, _] = rows();
        let rows = [a, b, c];
        let files = ["results.json", "bars.svg"].map(str::to_owned);
        let text = foot(&rows.each_ref().map(Outcome::of), Path::new("o"), &files);
        let last = "\
Bars met: 2, missed: 1; rows without a bar: 0
In o: results.json bars.svg
";
        assert!(text.ends_with(last), "{text}");
    }
}
