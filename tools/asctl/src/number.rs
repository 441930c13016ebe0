// SPDX-License-Identifier: GPL-2.0

//! Numbers of bytes as people write and read them.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// An address, offset or length: `4096`, `0x1000`, `4K`, `4KiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number(pub u64);

/// Powers of 1024.
const UNITS: &str = "KMGTPE";

impl FromStr for Number {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (text, factor) = split_unit(text);
        let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(hex) => digits(hex, 16),
            None => digits(text, 10),
        };
        let number = number.ok_or("not a number: want 4096, 0x1000, 4K, 1M, ...")?;
        number
            .and_then(|n| n.checked_mul(factor))
            .map(Number)
            .ok_or_else(|| "too large".to_owned())
    }
}

/// "64M" is "64" and 1 << 20. The short form and that with "iB" are the same.
fn split_unit(text: &str) -> (&str, u64) {
    let short = text.strip_suffix("iB").unwrap_or(text);
    let unit = short.chars().next_back().map(|c| c.to_ascii_uppercase());
    match unit.and_then(|c| UNITS.find(c)) {
        // In hexadecimal, E is a digit.
        Some(_) if unit == Some('E') && text.starts_with("0x") => (text, 1),
        Some(power) => (&short[..short.len() - 1], 1 << (10 * (power + 1))),
        None => (text, 1),
    }
}

/// `None`: not a number. `Some(None)`: one that does not fit. No sign is taken.
fn digits(text: &str, radix: u32) -> Option<Option<u64>> {
    let all_digits = !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
    all_digits.then(|| u64::from_str_radix(text, radix).ok())
}

/// In TOML a number may be a number, too.
impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberVisitor;

        impl Visitor<'_> for NumberVisitor {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, such as 4096, 0x1000 or \"4K\"")
            }

            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Number, E> {
                let n = u64::try_from(n);
                n.map(Number).map_err(|_| E::custom("must not be negative"))
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Number, E> {
                Ok(Number(n))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Number, E> {
                text.parse()
                    .map_err(|e| E::custom(format!("\"{text}\": {e}")))
            }
        }

        deserializer.deserialize_any(NumberVisitor)
    }
}

/// A size for a table, as other tools of the system write it: `4K`, `1.5M`.
pub fn human(bytes: u64) -> String {
    let mut unit = "B";
    let mut size = bytes as f64;
    for (i, _) in UNITS.char_indices() {
        if size < 1023.95 {
            break;
        }
        size /= 1024.0;
        unit = &UNITS[i..=i];
    }
    if unit == "B" {
        return format!("{bytes}B");
    }
    let text = format!("{size:.1}");
    format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<u64> {
        text.parse().ok().map(|n: Number| n.0)
    }

    #[test]
    fn numbers() {
        assert_eq!(parse("0"), Some(0));
        assert_eq!(parse("4096"), Some(4096));
        assert_eq!(parse("0x10"), Some(16));
        assert_eq!(parse("0xE"), Some(14));
        assert_eq!(parse("0xffffffffffffffff"), Some(u64::MAX));
    }

    #[test]
    fn units() {
        assert_eq!(parse("4K"), Some(4096));
        assert_eq!(parse("4k"), Some(4096));
        assert_eq!(parse("4KiB"), Some(4096));
        assert_eq!(parse("1M"), Some(1 << 20));
        assert_eq!(parse("0x10G"), Some(16 << 30));
        assert_eq!(parse("1E"), Some(1 << 60));
    }

    #[test]
    fn nonsense() {
        for text in [
            "",
            "K",
            "0x",
            "-1",
            "+1",
            "1.5G",
            "4KB",
            "12Q",
            "1 K",
            "0x1g2",
            "16E",
            "iB",
            "é",
            "99999999999999999999",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!(human(0), "0B");
        assert_eq!(human(1023), "1023B");
        assert_eq!(human(4096), "4K");
        assert_eq!(human(1056768), "1M");
        assert_eq!(human(1536 << 10), "1.5M");
        assert_eq!(human((1 << 30) - 1), "1G");
        assert_eq!(human(u64::MAX), "16E");
    }
}
