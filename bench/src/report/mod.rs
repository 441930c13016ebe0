// SPDX-License-Identifier: GPL-2.0

//! What people and programs get to see of what was measured.

mod axis;
mod bars;
mod curves;
mod number;
mod outcome;
mod picture;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use clap::ValueEnum;

use crate::measure;
use crate::record::{Chart, Measured, Point, Record};
use outcome::Outcome;

const RESULTS: &str = "results.json";

/// Rows in the order of their measurements, and the points of each chart.
struct Everything {
    rows: Vec<Measured>,
    charts: BTreeMap<Chart, Vec<Point>>,
}

impl Everything {
    fn read(paths: &[PathBuf]) -> Result<Self> {
        let mut charts = BTreeMap::<_, Vec<_>>::new();
        let mut rows = Vec::new();
        for path in paths {
            let name = path.display();
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
            ensure!(!text.is_empty(), "nothing was measured in {name}");
            let mut position = usize::MAX;
            for (line, number) in text.lines().zip(1..) {
                let record = serde_json::from_str(line)
                    .with_context(|| format!("{name}, line {number}: not a record"))?;
                match record {
                    Record::Measurement { name } => position = measure::position(&name),
                    Record::Row(row) => rows.push((position, row)),
                    Record::Point(point) => charts.entry(point.chart).or_default().push(point),
                }
            }
        }
        rows.sort_by_key(|(position, _)| *position);
        let rows = rows.into_iter().map(|(_, row)| row).collect();
        Ok(Everything { rows, charts })
    }
}

/// Prints the table, and writes results.json and the pictures to `out`.
pub fn report(measured: &[PathBuf], out: &Path) -> Result<()> {
    let text = make(measured, out)?;
    let written = std::io::stdout().write_all(text.as_bytes());
    written.context("cannot write to standard output")
}

fn make(measured: &[PathBuf], out: &Path) -> Result<String> {
    let all = Everything::read(measured)?;
    let outcomes: Vec<Outcome> = all.rows.iter().map(Outcome::of).collect();

    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let json = serde_json::to_string_pretty(&outcomes)? + "\n";
    let mut files = Vec::new();
    files.extend(write(out, RESULTS.into(), Some(json))?);
    let bars = (!outcomes.is_empty()).then(|| bars::draw(&outcomes));
    files.extend(write(out, "bars.svg".into(), bars.transpose()?)?);
    for &chart in Chart::value_variants() {
        let points = all.charts.get(&chart);
        let curves = points.map(|points| curves::draw(chart, points));
        files.extend(write(out, curves::file_name(chart), curves.transpose()?)?);
    }

    Ok(table::layout(&outcomes)
        + "
" + &table::foot(&outcomes, out, &files))
}

/// Writes a file and returns its name; or removes what an earlier run has left of it.
fn write(out: &Path, name: String, content: Option<String>) -> Result<Option<String>> {
    let path = out.join(&name);
    if let Some(content) = content {
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        return Ok(Some(name));
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sample.jsonl");

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("bench-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn all_files_are_made_and_stale_ones_removed() {
        let out = scratch("files");
        let stale = out.join("touch-by-threads.svg");
        fs::write(&stale, "").unwrap();
        make(&[SAMPLE.into()], &out).unwrap();
        assert!(!stale.exists());
        let mut files: Vec<_> = fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        let expected = [
            "bars.svg",
            "edits-by-mappings.svg",
            "guest-by-vcpus.svg",
            "results.json",
            "revoke-by-processes.svg",
        ];
        assert_eq!(files, expected);
        fs::remove_dir_all(out).unwrap();
    }

    #[test]
    fn rows_come_in_the_order_of_measurements() {
        let all = Everything::read(&[SAMPLE.into()]).unwrap();
        let names = all.rows.iter().take(4).map(|row| row.name.as_str());
        let expected = [
            "map 4K of a memfd",
            "unmap 4K of a memfd",
            "map 4K among 1000 mappings",
            "first touch of 256M, 4K pages",
        ];
        assert!(names.eq(expected), "{:?}", all.rows);
    }

    #[test]
    fn bad_input_is_named() {
        let out = scratch("bad");
        let input = out.join("input");
        let error = |text: &str| {
            fs::write(&input, text).unwrap();
            let error = make(&[SAMPLE.into(), input.clone()], &out).unwrap_err();
            assert!(!out.join(RESULTS).exists());
            format!("{error:#}").replace(&*input.to_string_lossy(), "INPUT")
        };
        assert_eq!(error(""), "nothing was measured in INPUT");
        let sample = fs::read_to_string(SAMPLE).unwrap();
        let first = sample.lines().next().unwrap();
        let cut = error(&format!("{first}\n{}", &first[..first.len() / 2]));
        assert!(cut.starts_with("INPUT, line 2: not a record: EOF"), "{cut}");
        fs::remove_file(&input).unwrap();
        let missing = make(std::slice::from_ref(&input), &out).unwrap_err();
        assert!(format!("{missing:#}").starts_with("cannot read "));
        fs::remove_dir_all(out).unwrap();
    }
}
