// SPDX-License-Identifier: GPL-2.0

//! The ratio of a row, and whether it meets the row's bar.

use serde::Serialize;

use crate::record::{Measured, Unit};

/// A row as results.json has it.
///
/// What is held against the bar is the ratio as it is printed: rounded, see [`rounded`]. So the
/// table never says "1.10" and "NO" at a bar of 1.1.
#[derive(Debug, PartialEq, Serialize)]
pub struct Outcome<'a> {
    pub name: &'a str,
    pub unit: Unit,
    pub space: f64,
    pub alternative: f64,
    pub alternative_name: &'a str,
    /// [`None`] if the alternative costs nothing.
    pub ratio: Option<f64>,
    /// The highest ratio allowed; [`None`] if the row is only reported, as is `met` then.
    pub bar: Option<f64>,
    pub met: Option<bool>,
}

impl<'a> Outcome<'a> {
    pub fn of(row: &'a Measured) -> Self {
        let ratio = (row.alternative != 0.0).then(|| rounded(row.space / row.alternative));
        let meets = |bar| ratio.map_or(row.space == 0.0, |ratio| ratio <= bar);
        Outcome {
            name: &row.name,
            unit: row.unit,
            space: row.space,
            alternative: row.alternative,
            alternative_name: &row.alternative_name,
            ratio,
            bar: row.bar,
            met: row.bar.map(meets),
        }
    }
}

/// To two decimals; below 0.1 to two significant digits, so that only nothing is 0.
fn rounded(ratio: f64) -> f64 {
    let text = if ratio < 0.1 {
        format!("{ratio:.1e}")
    } else {
        format!("{ratio:.2}")
    };
    text.parse().expect("a number")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(space: f64, alternative: f64, bar: Option<f64>) -> Measured {
        let row = Measured::new("map", "mmap", Unit::Exits, (space, alternative));
        Measured { bar, ..row }
    }

    #[test]
    fn ratios_and_bars() {
        let tenth = Some(1.0 / 10.0);
        for (space, alternative, bar, ratio, met) in [
            (110.0, 100.0, Some(1.1), Some(1.1), Some(true)),
            (1104.0, 1000.0, Some(1.1), Some(1.1), Some(true)),
            (1106.0, 1000.0, Some(1.1), Some(1.11), Some(false)),
            (1004.0, 1000.0, Some(1.0), Some(1.0), Some(true)),
            (1006.0, 1000.0, Some(1.0), Some(1.01), Some(false)),
            (3.0, 2.0, None, Some(1.5), None),
            (12345.0, 10.0, None, Some(1234.5), None),
            (994.0, 10000.0, tenth, Some(0.099), Some(true)),
            (996.0, 10000.0, tenth, Some(0.1), Some(true)),
            (1046.0, 10000.0, tenth, Some(0.1), Some(true)),
            (1060.0, 10000.0, tenth, Some(0.11), Some(false)),
            (1234.0, 1e6, tenth, Some(0.0012), Some(true)),
            (0.0, 700.0, Some(0.0), Some(0.0), Some(true)),
            (1.0, 7e6, Some(0.0), Some(1.4e-7), Some(false)),
            (0.0, 0.0, Some(0.0), None, Some(true)),
            (1.0, 0.0, Some(1.1), None, Some(false)),
            (1.0, 0.0, None, None, None),
        ] {
            let row = row(space, alternative, bar);
            let outcome = Outcome::of(&row);
            assert_eq!((outcome.ratio, outcome.met), (ratio, met), "{row:?}");
        }
    }

    #[test]
    fn json() {
        let rows = [row(3.0, 2.0, None), row(0.0, 0.0, Some(0.0))];
        let outcomes: Vec<_> = rows.iter().map(Outcome::of).collect();
        let expected = serde_json::json!([
            {"name": "map", "unit": "exits", "space": 3.0, "alternative": 2.0,
             "alternative_name": "mmap", "ratio": 1.5, "bar": null, "met": null},
            {"name": "map", "unit": "exits", "space": 0.0, "alternative": 0.0,
             "alternative_name": "mmap", "ratio": null, "bar": 0.0, "met": true},
        ]);
        assert_eq!(serde_json::to_value(outcomes).unwrap(), expected);
    }
}
