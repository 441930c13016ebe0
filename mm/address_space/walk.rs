// SPDX-License-Identifier: GPL-2.0

//! Walks that are made of C's macros: over the gaps between mappings, and over page tables.

use core::ops::Range;
use kernel::{
    bindings,
    mm::{edit::MmapWriteGuard, MmapReadGuard},
    prelude::*,
};

/// Finds the lowest free range of `len` bytes in `within` that is aligned to `align`, a power of
/// two. Returns its start.
pub(crate) fn free_range(
    guard: &MmapWriteGuard<'_>,
    within: Range<usize>,
    len: usize,
    align: usize,
) -> Result<usize> {
    // SAFETY: The guard holds the mmap lock.
    let start = unsafe {
        bindings::asfd_free_range(guard.mm().as_raw(), within.start, within.end, len, align)
    };
    match start {
        0 => Err(ENOMEM),
        start => Ok(start),
    }
}

/// How many bytes of `range` are present in the page tables.
pub(crate) fn resident_bytes(guard: &MmapReadGuard<'_>, range: Range<usize>) -> usize {
    // SAFETY: The guard holds the mmap lock.
    unsafe { bindings::asfd_resident_bytes(guard.mm().as_raw(), range.start, range.end) }
}
