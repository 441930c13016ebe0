// SPDX-License-Identifier: GPL-2.0

//! The pictures of what grows.

use anyhow::Result;
use clap::ValueEnum;
use plotters::prelude::*;

use super::axis::{Axis, Scale};
use super::picture::{self, Key, Mark, MARGIN, TEXT};
use crate::record::{Chart, Point};

const WIDTH: i32 = 900;
const PLOT: i32 = 400;

const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 100, 180),
    RGBColor(225, 125, 0),
    RGBColor(0, 140, 100),
    RGBColor(200, 60, 130),
    RGBColor(110, 80, 170),
    RGBColor(120, 120, 120),
    RGBColor(150, 90, 40),
    RGBColor(60, 170, 210),
];

/// What a chart says of itself.
struct Labels {
    title: &'static str,
    x: &'static str,
    y: &'static str,
    scales: (Scale, Scale),
    noisy: bool,
}

fn labels(chart: Chart) -> Labels {
    use Scale::{Linear, Log};
    let (title, x, y, scales, noisy) = match chart {
        Chart::EditsBySize => (
            "Map and unmap, by size",
            "bytes mapped (log)",
            "instructions",
            (Log, Linear),
            false,
        ),
        Chart::EditsByMappings => (
            "Map and unmap 4K, by the mappings present",
            "mappings (log)",
            "instructions",
            (Log, Linear),
            false,
        ),
        Chart::RevokeByProcesses => (
            "Taking a range away from processes",
            "processes that have it mapped (log)",
            "instructions (log)",
            (Log, Log),
            false,
        ),
        Chart::TouchByThreads => (
            "First touch, by threads",
            "threads",
            "pages a second",
            (Linear, Linear),
            true,
        ),
        Chart::EditsByProcesses => (
            "Map and unmap, by processes that do so",
            "processes",
            "maps and unmaps a second",
            (Linear, Linear),
            true,
        ),
        Chart::GuestByVcpus => (
            "A guest's accesses while 2M come and go",
            "vCPUs",
            "accesses a second (log)",
            (Linear, Log),
            true,
        ),
    };
    Labels {
        title,
        x,
        y,
        scales,
        noisy,
    }
}

pub fn file_name(chart: Chart) -> String {
    let value = chart.to_possible_value();
    format!("{}.svg", value.expect("a name").get_name())
}

/// Each curve with its points from left to right, in the order in which they came first.
fn curves(points: &[Point]) -> Vec<(&str, Vec<(f64, f64)>)> {
    let mut curves: Vec<(&str, Vec<_>)> = Vec::new();
    for Point { curve, x, y, .. } in points {
        match curves.iter_mut().find(|(name, _)| name == curve) {
            Some((_, points)) => points.push((*x, *y)),
            None => curves.push((curve, vec![(*x, *y)])),
        }
    }
    for (_, points) in &mut curves {
        points.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    }
    curves
}

pub fn draw(chart: Chart, points: &[Point]) -> Result<String> {
    let labels = labels(chart);
    let curves = curves(points);
    let colours = COLOURS.iter().cycle();
    let key = |((name, _), &colour): (&(&str, _), &RGBColor)| Key {
        mark: Mark::Curve,
        colour,
        text: (*name).to_owned(),
    };
    let legend: Vec<Key> = curves.iter().zip(colours.clone()).map(key).collect();
    let remark = if labels.noisy {
        "noisy: wall time on emulated CPUs"
    } else {
        "counted: runs differ by 1% or so"
    };
    let x = Axis::of(labels.scales.0, points.iter().map(|point| point.x));
    let y = Axis::around(labels.scales.1, points.iter().map(|point| point.y));
    let x = if chart == Chart::EditsBySize {
        x.in_bytes()
    } else {
        x
    };

    let top = picture::header_height(&legend);
    picture::svg((WIDTH, top + PLOT + MARGIN), |root| {
        picture::header(root, labels.title, remark, &legend)?;
        let mut chart = ChartBuilder::on(root)
            .margin(MARGIN)
            .margin_top(top)
            .x_label_area_size(52)
            .y_label_area_size(72)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .x_desc(labels.x)
            .y_desc(labels.y)
            .label_style(("sans-serif", TEXT))
            .draw()?;
        for ((_, points), colour) in curves.iter().zip(colours) {
            let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
            chart.draw_series(line.point_size(3))?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(curve: &str, x: f64, y: f64) -> Point {
        Point {
            chart: Chart::EditsBySize,
            curve: curve.to_owned(),
            x,
            y,
        }
    }

    #[test]
    fn curves_in_order() {
        let points = [
            point("space", 2.0, 20.0),
            point("mmap", 1.0, 1.0),
            point("space", 1.0, 10.0),
        ];
        let expected = [
            ("space", vec![(1.0, 10.0), (2.0, 20.0)]),
            ("mmap", vec![(1.0, 1.0)]),
        ];
        assert_eq!(curves(&points), expected);
    }

    #[test]
    fn every_chart_names_its_curves() {
        let points = [
            point("<space> & co", 4096.0, 1500.0),
            point("<space> & co", 8192.0, 0.0),
            point("mmap", 4096.0, 1000.0),
        ];
        for &chart in Chart::value_variants() {
            let svg = draw(chart, &points).unwrap();
            let texts = picture::tests::texts(&svg);
            let labels = labels(chart);
            for text in [labels.title, labels.x, labels.y, "<space> & co", "mmap"] {
                assert!(texts.iter().any(|found| found == text), "{text}: {texts:?}");
            }
            let noisy = texts.iter().any(|text| text.starts_with("noisy: "));
            assert_eq!(noisy, labels.noisy, "{chart:?}");
            assert!(svg.matches("<polyline").count() >= 2, "{svg}");
        }
    }

    #[test]
    fn a_file_for_each_chart() {
        assert_eq!(
            file_name(Chart::RevokeByProcesses),
            "revoke-by-processes.svg"
        );
    }
}
