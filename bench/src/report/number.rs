// SPDX-License-Identifier: GPL-2.0

//! Numbers for people.

use crate::record::Unit;

const POWERS: [&str; 5] = ["", "k", "M", "G", "T"];

/// "12.50", "1,234", "1.235M". Bytes in full: their millions could be taken for 2^20.
pub fn cost(unit: Unit, value: f64) -> String {
    if value < 100.0 && value.fract() != 0.0 {
        format!("{value:.2}")
    } else if unit == Unit::Bytes || value.round() < 1e6 {
        grouped(value)
    } else {
        let (mut power, mut value) = (2, value / 1e6);
        while value >= 999.95 && power + 1 < POWERS.len() {
            (power, value) = (power + 1, value / 1e3);
        }
        let decimals = match value {
            v if v < 9.9995 => 3,
            v if v < 99.995 => 2,
            _ => 1,
        };
        format!("{value:.decimals$}{}", POWERS[power])
    }
}

/// "1,234,567"
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// "0.040", "1.10"; "-" if there is none.
pub fn ratio(ratio: Option<f64>) -> String {
    match ratio {
        None => "-".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(ratio) => {
            let decimals = (1.0 - ratio.log10().floor()).max(2.0) as usize;
            format!("{ratio:.decimals$}")
        }
    }
}

/// What a bar asks for; "-" for nothing.
pub fn bar(unit: Unit, bar: Option<f64>) -> String {
    let Some(bar) = bar else {
        return "-".to_owned();
    };
    let times = (1.0 / bar).round();
    if bar == 0.0 {
        format!("0 {}", short_unit(unit))
    } else if bar < 1.0 && (times * bar - 1.0).abs() < 1e-9 {
        format!(">= {times}x cheaper")
    } else {
        format!("<= {bar:?}x")
    }
}

pub fn short_unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Instructions => "instr",
        Unit::Bytes => "bytes",
        Unit::Exits => "exits",
        Unit::Ipis => "IPIs",
        Unit::Microseconds => "us",
    }
}

/// At an axis: "0.05", "20", "2.5k", "1M".
pub fn tick(value: f64) -> String {
    scaled(value, 1e3, &POWERS)
}

/// At an axis of bytes: "4K", "1G".
pub fn tick_bytes(value: f64) -> String {
    scaled(value, 1024.0, &["", "K", "M", "G", "T"])
}

fn scaled(mut value: f64, step: f64, powers: &[&str]) -> String {
    let mut power = 0;
    // A hair below the next power is that power: ticks come out of logarithms.
    while value >= step * (1.0 - 1e-9) && power + 1 < powers.len() {
        (power, value) = (power + 1, value / step);
    }
    let decimals = if value < 1.0 { 6 } else { 2 };
    let text = format!("{value:.decimals$}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text}{}", powers[power])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs() {
        for (value, expected) in [
            (0.0, "0"),
            (3.25, "3.25"),
            (7.0, "7"),
            (250.5, "250"),
            (1234.0, "1,234"),
            (999_999.4, "999,999"),
            (999_999.5, "1.000M"),
            (1_234_567.0, "1.235M"),
            (12_345_678.0, "12.35M"),
            (123_456_789.0, "123.5M"),
            (999_960_000.0, "1.000G"),
            (1.5e12, "1.500T"),
        ] {
            assert_eq!(cost(Unit::Instructions, value), expected);
        }
        assert_eq!(cost(Unit::Bytes, 2_097_152.0), "2,097,152");
    }

    #[test]
    fn ratios() {
        for (value, expected) in [
            (Some(1234.5), "1234.50"),
            (Some(1.1), "1.10"),
            (Some(0.5), "0.50"),
            (Some(0.1), "0.10"),
            (Some(0.099), "0.099"),
            (Some(0.04), "0.040"),
            (Some(0.001), "0.0010"),
            (Some(0.0), "0"),
            (None, "-"),
        ] {
            assert_eq!(ratio(value), expected);
        }
    }

    #[test]
    fn bars() {
        for (value, expected) in [
            (Some(1.1), "<= 1.1x"),
            (Some(1.0), "<= 1.0x"),
            (Some(1.0 / 10.0), ">= 10x cheaper"),
            (Some(1.0 / 3.0), ">= 3x cheaper"),
            (Some(0.9), "<= 0.9x"),
            (Some(0.0), "0 exits"),
            (None, "-"),
        ] {
            assert_eq!(bar(Unit::Exits, value), expected);
        }
    }

    #[test]
    fn ticks() {
        for (value, expected) in [
            (0.0, "0"),
            (0.05, "0.05"),
            (1.0, "1"),
            (20.0, "20"),
            (999.999_999_999_9, "1k"),
            (2500.0, "2.5k"),
            (60_000.0, "60k"),
            (1e6, "1M"),
        ] {
            assert_eq!(tick(value), expected);
        }
        assert_eq!([4096.0, f64::from(1 << 30)].map(tick_bytes), ["4K", "1G"]);
    }
}
