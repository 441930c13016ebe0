// SPDX-License-Identifier: GPL-2.0

//! Which part of a space an asfd shows.

use core::ops::Range;
use kernel::{page::PAGE_SIZE, prelude::*};

/// A range of a space. What is done through an asfd counts its bytes from the window's start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Window {
    start: u64,
    len: u64,
}

impl Window {
    /// All of a space of that size.
    pub(crate) fn whole(size: u64) -> Self {
        Self {
            start: 0,
            len: size,
        }
    }

    /// Where it begins in the space.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Where `len` bytes at `offset` of the window lie in the space. [`ERANGE`] if it does not
    /// have all of them.
    pub(crate) fn resolve(&self, offset: u64, len: u64) -> Result<Range<u64>> {
        let end = offset.checked_add(len).ok_or(ERANGE)?;
        if end > self.len {
            return Err(ERANGE);
        }
        Ok(self.start + offset..self.start + end)
    }

    /// The window on `len` bytes at `offset` of this one. [`EINVAL`] unless they are whole pages,
    /// and at least one; [`ERANGE`] if they are not all in it.
    pub(crate) fn narrow(&self, offset: u64, len: u64) -> Result<Self> {
        if len == 0 || !(offset | len).is_multiple_of(PAGE_SIZE as u64) {
            return Err(EINVAL);
        }
        let range = self.resolve(offset, len)?;
        Ok(Self {
            start: range.start,
            len,
        })
    }
}

#[kernel::macros::kunit_tests(address_space_window)]
mod tests {
    use super::*;

    const PAGE: u64 = PAGE_SIZE as u64;

    /// Numbers at which ranges begin, end, touch and overflow.
    const EDGES: [u64; 9] = [
        0,
        1,
        PAGE - 1,
        PAGE,
        2 * PAGE,
        8 * PAGE,
        u64::MAX / 2,
        u64::MAX - PAGE + 1,
        u64::MAX,
    ];

    #[test]
    fn resolves_exactly_what_is_inside() {
        let window = Window {
            start: 4 * PAGE,
            len: 8 * PAGE,
        };
        for offset in EDGES {
            for len in EDGES {
                let inside = u128::from(offset) + u128::from(len) <= u128::from(window.len);
                match window.resolve(offset, len) {
                    Ok(range) => {
                        assert!(inside);
                        assert_eq!(range.start, window.start + offset);
                        assert_eq!(range.end - range.start, len);
                    }
                    Err(err) => {
                        assert!(!inside);
                        assert!(err == ERANGE);
                    }
                }
            }
        }
    }

    #[test]
    fn narrowing_never_widens() {
        let mut window = Window::whole(1 << 40);
        for step in 1..32 {
            let (offset, len) = (PAGE, window.len - 2 * PAGE);
            let narrow = window.narrow(offset, len).unwrap();
            assert_eq!(narrow.start, step * PAGE);
            // What the narrow one resolves, the wide one does, to the same place.
            for at in [0, PAGE, narrow.len - 1] {
                let inner = narrow.resolve(at, 1).unwrap();
                assert_eq!(inner, window.resolve(offset + at, 1).unwrap());
            }
            assert!(narrow.narrow(0, len + PAGE).is_err());
            assert!(narrow.narrow(len, PAGE).is_err());
            window = narrow;
        }
    }

    #[test]
    fn narrow_takes_whole_pages() {
        let window = Window::whole(16 * PAGE);
        for offset in EDGES {
            for len in EDGES {
                if let Ok(narrow) = window.narrow(offset, len) {
                    assert!(narrow.len > 0 && narrow.len.is_multiple_of(PAGE));
                    assert!(narrow.start.is_multiple_of(PAGE));
                    assert!(narrow.start + narrow.len <= window.len);
                }
            }
        }
        assert!(window.narrow(0, 0).is_err());
        assert!(window.narrow(1, PAGE).is_err());
        assert!(window.narrow(0, 16 * PAGE).is_ok());
    }
}
