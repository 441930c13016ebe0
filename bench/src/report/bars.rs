// SPDX-License-Identifier: GPL-2.0

//! The picture of all ratios: each a bar that begins at 1, which is the alternative.

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::axis::{Axis, Scale};
use super::number;
use super::outcome::Outcome;
use super::picture::{self, Key, Mark, MARGIN, TEXT};
use crate::record::Unit;

const PLOT: i32 = 560;
const ROW: i32 = 22;
/// The column of ratios.
const RATIO: i32 = 56;
/// Ticks and what they mean, below the bars.
const BELOW: i32 = 52;

const MET: RGBColor = RGBColor(60, 150, 90);
const MISSED: RGBColor = RGBColor(205, 60, 50);
const REPORTED: RGBColor = RGBColor(130, 145, 165);

fn colour(met: Option<bool>) -> RGBColor {
    match met {
        Some(true) => MET,
        Some(false) => MISSED,
        None => REPORTED,
    }
}

fn legend() -> [Key; 4] {
    let key = |mark, colour, text: &str| Key {
        mark,
        colour,
        text: text.to_owned(),
    };
    [
        key(Mark::Bar, MET, "meets its bar"),
        key(Mark::Bar, MISSED, "misses its bar"),
        key(Mark::Bar, REPORTED, "has no bar"),
        key(Mark::Limit, BLACK, "the bar: highest ratio allowed"),
    ]
}

/// What is said on the right of a bar, behind its ratio.
fn remark(row: &Outcome) -> String {
    let noisy = match row.unit {
        Unit::Microseconds => " (wall time, noisy)",
        Unit::Instructions | Unit::Bytes | Unit::Exits | Unit::Ipis => "",
    };
    format!("{}{noisy}", row.alternative_name)
}

pub fn draw(outcomes: &[Outcome]) -> Result<String> {
    let legend = legend();
    let remarks: Vec<String> = outcomes.iter().map(remark).collect();
    let left = MARGIN + picture::widest(outcomes.iter().map(|row| row.name)) + 8;
    let right = RATIO + 8 + picture::widest(remarks.iter().map(String::as_str)) + MARGIN;
    let top = picture::header_height(&legend);
    let bottom = top + outcomes.len() as i32 * ROW;
    let size = (left + PLOT + right, bottom + BELOW + MARGIN);

    let ratios = outcomes.iter().flat_map(|row| [row.ratio, row.bar]);
    let axis = Axis::around(Scale::Log, ratios.flatten().chain([0.5, 2.0]));

    picture::svg(size, |root| {
        let title = "Cost through a space, in costs of the alternative";
        let remark = "to the left of 1 it is cheaper; 0 is beyond the left end";
        picture::header(root, title, remark, &legend)?;
        let mut chart = ChartBuilder::on(root)
            .margin_left(left)
            .margin_right(right)
            .margin_top(top)
            .margin_bottom(MARGIN)
            .x_label_area_size(BELOW)
            .build_cartesian_2d(axis, outcomes.len() as f64..0.0)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .x_desc("ratio; 1 is what the alternative costs")
            .label_style(picture::style(TEXT, HPos::Center))
            .draw()?;

        let at = |ratio, row: f64| chart.backend_coord(&(ratio, row));
        let one = at(1.0, 0.0).0;
        let line = vec![(one, top), (one, bottom)];
        for (row, (outcome, remark)) in outcomes.iter().zip(&remarks).enumerate() {
            let middle = row as f64 + 0.5;
            let (end, y) = at(outcome.ratio.unwrap_or(1.0), middle);
            let name = picture::style(TEXT, HPos::Right);
            root.draw(&Text::new(outcome.name, (left - 8, y), name))?;
            let number = number::ratio(outcome.ratio);
            let ends = left + PLOT + RATIO;
            root.draw(&Text::new(
                number,
                (ends, y),
                picture::style(TEXT, HPos::Right),
            ))?;
            let text = picture::style(TEXT, HPos::Left);
            root.draw(&Text::new(remark.as_str(), (ends + 8, y), text))?;
            if outcome.ratio.is_some() {
                // Ratios of 1 are seen, too.
                let bar = [(end.min(one - 3), y - 7), (end.max(one + 3), y + 7)];
                root.draw(&Rectangle::new(bar, colour(outcome.met).filled()))?;
            }
            if let Some(bar) = outcome.bar {
                picture::limit(root, BLACK, at(bar, middle))?;
            }
        }
        root.draw(&PathElement::new(line, BLACK))?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Measured;

    #[test]
    fn each_row_is_there_in_its_colour() {
        let new = Measured::new;
        let rows = [
            new("map <4K> & unmap", "mmap", Unit::Instructions, (2.0, 1.0)).at_most(1.1),
            new("replace", "memslot", Unit::Exits, (0.0, 12.0)).at_most(0.0),
            new("hole", "no slot", Unit::Microseconds, (1.0, 1.0)),
            new("tables", "none", Unit::Bytes, (1.0, 0.0)),
        ];
        let svg = draw(&rows.each_ref().map(Outcome::of)).unwrap();
        let texts = picture::tests::texts(&svg);
        for text in [
            "map <4K> & unmap",
            "2.00",
            "mmap",
            "0",
            "memslot",
            "1.00",
            "no slot (wall time, noisy)",
            "-",
            "none",
            "the bar: highest ratio allowed",
        ] {
            assert!(texts.iter().any(|found| found == text), "{text}: {texts:?}");
        }
        // Once in the legend, once for a row.
        for colour in ["#3C965A", "#CD3C32", "#8291A5"] {
            assert_eq!(svg.matches(colour).count(), 2, "{colour}");
        }
    }
}
