// SPDX-License-Identifier: GPL-2.0

//! Finding things in a space, by reading it like a file.

use std::ops::Range;

use anyhow::Result;
use asfd::AddressSpace;

use crate::PAGE;

const CHUNK: u64 = 1 << 20;

/// The pages in a range for which `is_it` holds.
pub fn pages(
    space: &AddressSpace,
    range: Range<u64>,
    is_it: impl Fn(&[u8]) -> bool,
) -> Result<Vec<u64>> {
    let mut found = Vec::new();
    for chunk in chunks(space)? {
        let chunk = chunk.start.max(range.start)..chunk.end.min(range.end);
        if chunk.is_empty() {
            continue;
        }
        let bytes = read(space, &chunk)?;
        let pages = (chunk.start..).step_by(PAGE as usize);
        let fitting = pages.zip(bytes.chunks(PAGE as usize));
        found.extend(fitting.filter(|(_, page)| is_it(page)).map(|(at, _)| at));
    }
    Ok(found)
}

/// Where a text is first.
pub fn text(space: &AddressSpace, text: &[u8]) -> Result<Option<u64>> {
    for chunk in chunks(space)? {
        let bytes = read(space, &chunk)?;
        if let Some(offset) = position(&bytes, text) {
            return Ok(Some(chunk.start + offset as u64));
        }
    }
    Ok(None)
}

pub fn position(bytes: &[u8], text: &[u8]) -> Option<usize> {
    // The first byte sorts most places out.
    let starts = bytes
        .iter()
        .enumerate()
        .filter(|(_, &byte)| byte == text[0]);
    let mut places = starts.map(|(at, _)| at);
    places.find(|&at| bytes[at..].starts_with(text))
}

/// All that is mapped, in pieces.
fn chunks(space: &AddressSpace) -> Result<Vec<Range<u64>>> {
    let mut chunks = Vec::new();
    for mapping in space.mappings() {
        let mapping = mapping?;
        let mut start = mapping.start;
        while start < mapping.end {
            let end = mapping.end.min(start + CHUNK);
            chunks.push(start..end);
            start = end;
        }
    }
    Ok(chunks)
}

fn read(space: &AddressSpace, range: &Range<u64>) -> Result<Vec<u8>> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    space.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_of_a_text() {
        assert_eq!(position(b"aab-aac", b"aac"), Some(4));
        assert_eq!(position(b"aac", b"aac"), Some(0));
        assert_eq!(position(b"aa", b"aac"), None);
        assert_eq!(position(b"", b"a"), None);
    }
}
