// SPDX-License-Identifier: GPL-2.0

//! `fsync(2)` of an asfd, and `msync(2)` of a mirror: the files that are mapped are written back.

use core::ops::{Range, RangeInclusive};
use kernel::{
    fs::{file::Offset, LocalFile},
    mm::virt,
    page::PAGE_SIZE,
    prelude::*,
    sync::aref::ARef,
};

use crate::{file::Asfd, query, space};

/// Writes back what is mapped shared in these bytes of the space, as far as they are in the window.
/// The end is inclusive.
///
/// They do not count from the window's start: it is `msync(2)` that asks for less than all, and the
/// pages of a mirror are those of the space.
pub(crate) fn sync(asfd: &Asfd, bytes: RangeInclusive<Offset>, datasync: bool) -> Result {
    let window = asfd.window.start()..asfd.window.start() + asfd.window.len();
    let start = (*bytes.start() as u64).max(window.start);
    let end = (*bytes.end() as u64).saturating_add(1).min(window.end);
    if start >= end {
        return Ok(());
    }
    let mut rest = space::mm_range(start..end);
    while let Some(shared) = next_shared(asfd, rest.clone())? {
        // It can take long, and nobody has to wait for it to change the space.
        shared.file.sync_range(shared.bytes, datasync)?;
        rest.start = shared.end;
    }
    Ok(())
}

/// Bytes of a file that are mapped shared.
struct Shared {
    file: ARef<LocalFile>,
    bytes: RangeInclusive<Offset>,
    /// Where they end in the mm.
    end: usize,
}

/// The first of them in `range`.
fn next_shared(asfd: &Asfd, range: Range<usize>) -> Result<Option<Shared>> {
    let guard = asfd.owner.mm().mmap_read_lock_killable()?;
    for (vma, part) in query::mappings(&guard, range) {
        let shared = vma.flags() & virt::flags::SHARED != 0;
        if let Some(file) = vma.file().filter(|_| shared) {
            let first = vma.pgoff() * PAGE_SIZE + (part.start - vma.start());
            let last = first + part.len() - 1;
            return Ok(Some(Shared {
                file: file.into(),
                bytes: first as Offset..=last as Offset,
                end: part.end,
            }));
        }
    }
    Ok(None)
}
