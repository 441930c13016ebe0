// SPDX-License-Identifier: GPL-2.0

//! The TOML file that describes a space.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use serde::Deserialize;

use crate::number::Number;
use crate::range::{self, Place, Range, Source};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SpecFile {
    #[serde(default)]
    range: Vec<SpecRange>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SpecRange {
    file: Option<PathBuf>,
    memfd: Option<String>,
    #[serde(default)]
    anonymous: bool,
    at: Option<Number>,
    offset: Option<Number>,
    len: Option<Number>,
    prot: Option<String>,
    #[serde(default)]
    private: bool,
    #[serde(default)]
    populate: bool,
}

/// A range and its number in the file, for messages.
pub type Numbered = (usize, Range);

/// Reads a spec, `-` from standard input. The ranges come in the order to map them in.
pub fn read(path: &Path) -> Result<Vec<Numbered>> {
    let text = if path == Path::new("-") {
        io::read_to_string(io::stdin()).context("cannot read standard input")?
    } else {
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    parse(&text, folder).with_context(|| path.display().to_string())
}

fn parse(text: &str, folder: &Path) -> Result<Vec<Numbered>> {
    let spec: SpecFile = toml::from_str(text).map_err(|e| one_line(text, &e))?;
    let mut ranges = Vec::new();
    for (i, range) in spec.range.into_iter().enumerate() {
        let number = i + 1;
        let range = range
            .resolve(folder)
            .with_context(|| format!("range {number}"))?;
        ranges.push((number, range));
    }
    // One that may lie anywhere must not take the place of one that may not.
    ranges.sort_by_key(|(_, range)| range.place == Place::Free);
    Ok(ranges)
}

/// toml's own message draws the line over several lines.
fn one_line(text: &str, error: &toml::de::Error) -> anyhow::Error {
    let message = error.message().trim_end().replace('\n', ", ");
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => anyhow::anyhow!("line {}: {message}", before.matches('\n').count() + 1),
        None => anyhow::anyhow!("{message}"),
    }
}

impl SpecRange {
    fn resolve(self, folder: &Path) -> Result<Range> {
        let source = match (self.file, self.memfd, self.anonymous) {
            (Some(path), None, false) => Source::File(folder.join(path)),
            (None, Some(name), false) => Source::Memfd(name),
            (None, None, true) => Source::Anonymous,
            _ => bail!("want exactly one of file = PATH, memfd = NAME, anonymous = true"),
        };
        if self.len.is_none() && !matches!(source, Source::File(_)) {
            bail!("len is missing: only that of a file is known");
        }
        let prot = self
            .prot
            .map(|text| range::prot(&text).map_err(|e| anyhow::anyhow!("prot = \"{text}\": {e}")));
        Ok(Range {
            source,
            offset: self.offset.map_or(0, |n| n.0),
            len: self.len.map(|n| n.0),
            prot: prot.transpose()?,
            private: self.private,
            populate: self.populate,
            place: self.at.map_or(Place::Free, |n| Place::At(n.0)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use asfd::Prot;

    fn error(text: &str) -> String {
        format!("{:#}", parse(text, Path::new("")).unwrap_err())
    }

    #[test]
    fn everything() {
        let text = r#"
            [[range]]
            anonymous = true
            len = "1M"
            populate = true

            [[range]]
            file = "kernel.img"
            offset = 0x1000
            len = "16K"
            at = "0x100000"
            private = true
            prot = "rw"

            [[range]]
            memfd = "ram"
            len = 8192
            at = 0
        "#;
        let ranges = parse(text, Path::new("/vm")).unwrap();
        let numbers: Vec<_> = ranges.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [2, 3, 1]);
        assert_eq!(
            ranges[0].1,
            Range {
                source: Source::File("/vm/kernel.img".into()),
                offset: 4096,
                len: Some(16384),
                prot: Some(Prot::READ | Prot::WRITE),
                private: true,
                populate: false,
                place: Place::At(0x100000),
            }
        );
        assert_eq!(ranges[1].1.source, Source::Memfd("ram".into()));
        assert_eq!(ranges[1].1.place, Place::At(0));
        assert_eq!(ranges[2].1.place, Place::Free);
        assert!(ranges[2].1.populate);
    }

    #[test]
    fn nothing_is_an_empty_space() {
        assert_eq!(parse("", Path::new("")).unwrap(), []);
    }

    #[test]
    fn mistakes_are_told_in_one_line() {
        assert!(error("[[range]]\nfile = 'a'\nmemfd = 'b'").starts_with("range 1: want exactly"));
        assert!(error("[[range]]\nmemfd = 'b'").starts_with("range 1: len is missing"));
        assert!(error("[[range]]\nfile = 'a'\nprot = 'x'").contains("want r, w, rw or none"));
        for (text, line) in [
            ("[[range]]\nflie = 'a'", "line 2: unknown field `flie`"),
            (
                "[[range]]\nfile = 'a'\nlen = '4Q'",
                "line 3: \"4Q\": not a number",
            ),
            ("[[range]]\nat = -1", "line 2: must not be negative"),
            ("[[range]]\nat = 1.5", "line 2: invalid type"),
            ("[[ranges]]", "line 1: unknown field"),
            ("[[range", "line 1: "),
        ] {
            let error = error(text);
            assert!(error.starts_with(line), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
