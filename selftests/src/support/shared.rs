// SPDX-License-Identifier: GPL-2.0

//! A value that a process shares with the children it forks.

use std::ops::Deref;

use libc::{MAP_ANONYMOUS, MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE};

/// Of use for atomics and what is made of them: a pointer would be followed by others.
pub struct Shared<T: Sync + 'static>(&'static T);

impl<T: Sync + 'static> Shared<T> {
    pub fn new(value: T) -> Shared<T> {
        let (prot, flags) = (PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
        let len = size_of::<T>();
        // SAFETY: New memory, large enough, aligned to a page and never unmapped.
        unsafe {
            let at = libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0);
            assert_ne!(at, MAP_FAILED, "mmap");
            let at = at.cast::<T>();
            at.write(value);
            Shared(&*at)
        }
    }
}

impl<T: Sync + 'static> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0
    }
}
