// SPDX-License-Identifier: GPL-2.0

//! What `/proc/PID/fdinfo/N` tells of an asfd.

use std::ffi::OsString;
use std::fmt;
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;

use crate::{Prot, Rights, Seals};

/// The `as_` lines of an asfd's fdinfo. Lines that are not known are passed over.
///
/// ```
/// let fdinfo = asfd::Fdinfo::parse(
///     b"pos:\t0\n\
///       as_id:\t7\n\
///       as_window:\t0-7fffbffff000\n\
///       as_rights:\tmap,unmap,query\n\
///       as_prot:\trw\n\
///       as_seals:\t-\n\
///       as_mappings:\t1\n\
///       as_mapped:\t1048576 B\n\
///       as_mirrors:\t0\n\
///       as_windows:\t0\n\
///       as_map:\t0-100000 rw-s 0 memfd:ram\n",
/// )?;
/// assert_eq!(fdinfo.id, 7);
/// assert_eq!(fdinfo.maps[0].name, "memfd:ram");
/// # Ok::<(), asfd::FdinfoError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fdinfo {
    /// Number of the space, unique while the machine is up.
    pub id: u64,
    /// What of the space the descriptor shows.
    pub window: Range<u64>,
    /// What the descriptor may do.
    pub rights: Rights,
    /// What the descriptor can read and write at most.
    pub prot: Prot,
    /// What nobody can do any more.
    pub seals: Seals,
    /// Number of mappings in the window.
    pub mappings: u64,
    /// Bytes mapped in the window.
    pub mapped_bytes: u64,
    /// Mirrors of the whole space.
    pub mirrors: u64,
    /// KVM windows on the whole space.
    pub windows: u64,
    /// The mappings.
    pub maps: Vec<FdinfoMapping>,
}

/// One mapping in [`Fdinfo`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdinfoMapping {
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
    /// What it allows.
    pub prot: Prot,
    /// Whether writes go to the file.
    pub shared: bool,
    /// Where `start` lies in the file.
    pub offset: u64,
    /// Name of the file, `[anon]` for anonymous memory.
    pub name: OsString,
}

/// An fdinfo that is not that of an asfd, or not one this crate can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FdinfoError {
    /// There is no line with this key.
    Missing(&'static str),
    /// The value of this line cannot be read.
    Malformed(String),
}

impl fmt::Display for FdinfoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FdinfoError::Missing(key) => {
                write!(f, "not the fdinfo of an address space: no line {key}")
            }
            FdinfoError::Malformed(line) => write!(f, "cannot make sense of fdinfo line {line:?}"),
        }
    }
}

impl std::error::Error for FdinfoError {}

impl Fdinfo {
    /// Reads the text of an fdinfo file. It is bytes: names of files are.
    pub fn parse(text: &[u8]) -> Result<Self, FdinfoError> {
        let fields = Fields(text);
        Ok(Fdinfo {
            id: fields.get("as_id", decimal)?,
            window: fields.get("as_window", range)?,
            rights: fields.get("as_rights", |s| Some(Rights::from_text(s)))?,
            prot: fields.get("as_prot", |s| Some(Prot::from_chars(s)))?,
            seals: fields.get("as_seals", |s| Some(Seals::from_text(s)))?,
            mappings: fields.get("as_mappings", decimal)?,
            mapped_bytes: fields.get("as_mapped", |s| decimal(s.strip_suffix(" B")?))?,
            mirrors: fields.get("as_mirrors", decimal)?,
            windows: fields.get("as_windows", decimal)?,
            maps: fields
                .all("as_map")
                .map(|line| mapping(line).ok_or_else(|| malformed("as_map", line)))
                .collect::<Result<_, _>>()?,
        })
    }
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn all<'b>(&'b self, key: &'b str) -> impl Iterator<Item = &'a [u8]> + 'b {
        self.0.split(|&b| b == b'\n').filter_map(move |line| {
            line.strip_prefix(key.as_bytes())?
                .strip_prefix(b":")
                .map(<[u8]>::trim_ascii_start)
        })
    }

    fn get<T>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T, FdinfoError> {
        let value = self.all(key).next().ok_or(FdinfoError::Missing(key))?;
        std::str::from_utf8(value)
            .ok()
            .and_then(parse)
            .ok_or_else(|| malformed(key, value))
    }
}

fn malformed(key: &str, value: &[u8]) -> FdinfoError {
    FdinfoError::Malformed(format!("{key}: {}", String::from_utf8_lossy(value)))
}

fn decimal(text: &str) -> Option<u64> {
    text.parse().ok()
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

fn range(text: &str) -> Option<Range<u64>> {
    let (start, end) = text.split_once('-')?;
    let range = hex(start)?..hex(end)?;
    (range.start <= range.end).then_some(range)
}

/// `0-100000 rw-s 0 memfd:ram`: the name is the rest of the line, blanks and all.
fn mapping(line: &[u8]) -> Option<FdinfoMapping> {
    let mut fields = line.splitn(4, |&b| b == b' ');
    let mut text = || std::str::from_utf8(fields.next()?).ok();

    let range = range(text()?)?;
    let prot = text()?;
    let offset = hex(text()?)?;
    let shared = match prot.as_bytes().get(3)? {
        b's' => true,
        b'p' => false,
        _ => return None,
    };
    Some(FdinfoMapping {
        start: range.start,
        end: range.end,
        prot: Prot::from_chars(prot),
        shared,
        offset,
        name: unescape(fields.next()?),
    })
}

/// The kernel writes a newline in a name as `\012`.
fn unescape(name: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&byte, tail)) = rest.split_first() {
        match rest.strip_prefix(br"\012") {
            Some(tail) => {
                out.push(b'\n');
                rest = tail;
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t1044\n\
        as_id:\t7\nas_window:\t0-7fffbffff000\n\
        as_rights:\tmap,unmap,change,seal,view,query,kvm\nas_prot:\trw\nas_seals:\t-\n\
        as_mappings:\t3\nas_mapped:\t1056768 B\nas_mirrors:\t0\nas_windows:\t1\n\
        as_map:\t0-100000 rw-s 0 memfd:ram\n\
        as_map:\t100000-101000 r--p 3000 /tmp/a b\\012c\n\
        as_map:\t200000-201000 ---p 0 [anon]\n";

    #[test]
    fn everything() {
        let fdinfo = Fdinfo::parse(TEXT.as_bytes()).unwrap();
        assert_eq!(fdinfo.id, 7);
        assert_eq!(fdinfo.window, 0..0x7fff_bfff_f000);
        assert_eq!(fdinfo.rights, Rights::all());
        assert_eq!(fdinfo.prot, Prot::READ | Prot::WRITE);
        assert_eq!(fdinfo.seals, Seals::empty());
        assert_eq!((fdinfo.mappings, fdinfo.mapped_bytes), (3, 1056768));
        assert_eq!((fdinfo.mirrors, fdinfo.windows), (0, 1));
        assert_eq!(
            fdinfo.maps[1],
            FdinfoMapping {
                start: 0x100000,
                end: 0x101000,
                prot: Prot::READ,
                shared: false,
                offset: 0x3000,
                name: "/tmp/a b\nc".into(),
            }
        );
        assert_eq!(fdinfo.maps[2].prot, Prot::empty());
        assert_eq!(fdinfo.maps[2].name, "[anon]");
    }

    #[test]
    fn names_are_bytes() {
        let mut text = TEXT.as_bytes().to_vec();
        text.extend(b"as_map:\t300000-301000 r--s 0 /tmp/\xff\n");
        let fdinfo = Fdinfo::parse(&text).unwrap();
        assert_eq!(fdinfo.maps[3].name.as_encoded_bytes(), b"/tmp/\xff");
    }

    #[test]
    fn another_file() {
        assert_eq!(
            Fdinfo::parse(b"pos:\t0\nflags:\t0\n"),
            Err(FdinfoError::Missing("as_id"))
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for (good, bad) in [
            ("as_id:\t7", "as_id:\tseven"),
            ("0-7fffbffff000", "7fffbffff000-0"),
            ("1056768 B", "1056768"),
            ("rw-s 0 ", "rw-x 0 "),
            ("0-100000 rw-s", "0-10000g rw-s"),
        ] {
            let text = TEXT.replacen(good, bad, 1);
            let error = Fdinfo::parse(text.as_bytes()).unwrap_err();
            assert!(matches!(error, FdinfoError::Malformed(_)), "{bad}: {error}");
        }
    }
}
