// SPDX-License-Identifier: GPL-2.0

//! Axes: where values lie on them, and which get a tick.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

use super::number;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    Linear,
    Log,
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        match self {
            Scale::Linear => value,
            Scale::Log => value.log10(),
        }
    }

    fn value(self, place: f64) -> f64 {
        match self {
            Scale::Linear => place,
            Scale::Log => 10f64.powf(place),
        }
    }
}

pub struct Axis {
    scale: Scale,
    range: Range<f64>,
    ticks: Vec<f64>,
    label: fn(f64) -> String,
}

impl Axis {
    /// With ticks at the values, and a little room beyond them.
    pub fn of(scale: Scale, values: impl IntoIterator<Item = f64>) -> Axis {
        let mut ticks = usable(scale, values);
        ticks.dedup();
        let [low, high] = [ticks[0], ticks[ticks.len() - 1]].map(|value| scale.place(value));
        let room = if high > low { (high - low) * 0.03 } else { 0.5 };
        let range = scale.value(low - room)..scale.value(high + room);
        Axis {
            scale,
            range,
            ticks,
            label: number::tick,
        }
    }

    /// From one round tick to another, with the values between; a linear one from 0.
    pub fn around(scale: Scale, values: impl IntoIterator<Item = f64>) -> Axis {
        let values = usable(scale, values);
        let (low, high) = (values[0], values[values.len() - 1]);
        let ticks = match scale {
            Scale::Linear => linear_ticks(high),
            Scale::Log => log_ticks(low, high),
        };
        Axis {
            scale,
            range: ticks[0]..ticks[ticks.len() - 1],
            ticks,
            label: number::tick,
        }
    }

    pub fn in_bytes(self) -> Axis {
        let label = number::tick_bytes;
        Axis { label, ..self }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    /// What lies beyond its ends, as 0 does on a logarithmic axis, is put there.
    fn map(&self, value: &f64, (first, last): (i32, i32)) -> i32 {
        let value = value.clamp(self.range.start, self.range.end);
        let [low, place, high] =
            [self.range.start, value, self.range.end].map(|value| self.scale.place(value));
        let part = (place - low) / (high - low);
        first + (part * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            return Vec::new();
        }
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        (self.label)(*value)
    }
}

/// Sorted, and at least one.
fn usable(scale: Scale, values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let on_axis = |value: &f64| scale == Scale::Linear || *value > 0.0;
    let mut values: Vec<f64> = values.into_iter().filter(on_axis).collect();
    if values.is_empty() {
        values.push(1.0);
    }
    values.sort_by(f64::total_cmp);
    values
}

/// Four to ten steps of 1, 2 or 5 times a power of ten.
fn linear_ticks(high: f64) -> Vec<f64> {
    let high = if high > 0.0 { high } else { 1.0 };
    let power = 10f64.powf((high / 4.0).log10().floor());
    let step = [5.0, 2.0, 1.0]
        .map(|digit| digit * power)
        .into_iter()
        .find(|step| high / step >= 4.0)
        .unwrap_or(power);
    let steps = (high / step - 1e-9).ceil() as usize;
    (0..=steps).map(|n| n as f64 * step).collect()
}

/// Powers of ten, and between them 2 and 5 times those if there are few.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let digits: &[f64] = if last - first > 4 {
        &[1.0]
    } else {
        &[1.0, 2.0, 5.0]
    };
    let decade = |power| digits.iter().map(move |digit| digit * 10f64.powi(power));
    let ticks: Vec<f64> = (first..=last.max(first + 1)).flat_map(decade).collect();
    let from = ticks.iter().rposition(|&tick| tick <= low).unwrap_or(0);
    let to = ticks.iter().position(|&tick| tick >= high);
    let to = to.unwrap_or(ticks.len() - 1).max(from + 1);
    ticks[from..=to].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use plotters::coord::ranged1d::BoldPoints;

    #[test]
    fn round_ticks_enclose_the_values() {
        assert_eq!(
            linear_ticks(0.0),
            [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]
        );
        assert_eq!(
            linear_ticks(1900.0),
            [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0, 1200.0, 1400.0, 1600.0, 1800.0, 2000.0]
        );
        assert_eq!(linear_ticks(2000.0).len(), 5);
        assert_eq!(
            log_ticks(3.0, 110.0),
            [2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0]
        );
        assert_eq!(log_ticks(1.0, 1.0), [1.0, 2.0]);
        assert_eq!(log_ticks(10.0, 1e6), [1e1, 1e2, 1e3, 1e4, 1e5, 1e6]);
    }

    #[test]
    fn places_of_values() {
        let log = Axis::around(Scale::Log, [1.0, 100.0]);
        let linear = Axis::around(Scale::Linear, [3.0, 4.0]);
        let at = |axis: &Axis, value| axis.map(&value, (100, 300));
        assert_eq!(
            [1.0, 10.0, 100.0].map(|value| at(&log, value)),
            [100, 200, 300]
        );
        assert_eq!(
            [0.0, 1.0, 4.0].map(|value| at(&linear, value)),
            [100, 150, 300]
        );
        // Beyond it.
        assert_eq!([0.0, 1000.0].map(|value| at(&log, value)), [100, 300]);
    }

    #[test]
    fn measured_values_get_ticks() {
        let axis = Axis::of(Scale::Log, [60_000.0, 1.0, 100.0, 1.0]);
        let ticks = axis.key_points(BoldPoints(2));
        assert_eq!(ticks, [1.0, 100.0, 60_000.0]);
        assert!(axis.range.start < 1.0 && axis.range.end > 60_000.0);
        assert_eq!(axis.format_ext(&60_000.0), "60k");
        assert_eq!(axis.in_bytes().format_ext(&2048.0), "2K");
    }
}
