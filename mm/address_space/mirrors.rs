// SPDX-License-Identifier: GPL-2.0

//! The mirrors of a space as a whole: they are told when it changes.
//!
//! A mirror shows what the page tables of the space show. So before an entry of the space is taken
//! away or loses permissions, it is zapped in all mirrors ([`Mirrors::start`]), and until that is
//! over ([`Mirrors::end`]) no fault installs it again. A fault does so in three steps:
//!
//! 1. [`Mirrors::try_settled`]: no invalidation of the range is under way; remember the number of
//!    those that ever started;
//! 2. look up the pages in the space;
//! 3. [`Mirrors::install`]: under the lock, if none that started since is of the range, install.
//!
//! An invalidation that takes the lock before step 3 changes the number. One that takes it after
//! finds what was installed and zaps it: the mirror was in the file's tree of areas before it
//! could fault.
//!
//! Where a page is taken from the space without being installed (GUP), step 1 comes first as well:
//! see `gup_mirrored()`.

use core::ops::Range;
use kernel::{
    fs::mapping::FileMapping,
    mm::notifier::{Invalidation, Notifier},
    page::PAGE_SIZE,
    prelude::*,
    sync::{new_condvar, new_spinlock, CondVar, SpinLock},
};

use crate::space::MM_BASE;

/// How many invalidations are remembered by their range. With more under way, or more since a
/// fault has looked, all count as being of its range.
const REMEMBERED: usize = 16;

struct State {
    /// The ids and ranges of invalidations that have started and not ended.
    under_way: [(usize, Range<usize>); REMEMBERED],
    /// How many those are.
    slots: usize,
    /// Those for which there was no room.
    overflow: usize,
    /// The ranges of the last ones that have started: number n is at n modulo the length.
    last: [Range<usize>; REMEMBERED],
    /// Invalidations that have started, ever.
    started: u64,
}

const NOTHING: Range<usize> = 0..0;

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

impl State {
    fn new() -> Self {
        Self {
            under_way: [const { (0, NOTHING) }; REMEMBERED],
            slots: 0,
            overflow: 0,
            last: [const { NOTHING }; REMEMBERED],
            started: 0,
        }
    }

    fn start(&mut self, id: usize, range: Range<usize>) {
        self.last[self.started as usize % REMEMBERED] = range.clone();
        self.started += 1;
        match self.under_way.iter_mut().find(|slot| slot.0 == 0) {
            Some(slot) => {
                *slot = (id, range);
                self.slots += 1;
            }
            None => self.overflow += 1,
        }
    }

    fn end(&mut self, id: usize) {
        match self.under_way.iter_mut().find(|slot| slot.0 == id) {
            Some(slot) => {
                *slot = (0, NOTHING);
                self.slots -= 1;
            }
            None => self.overflow = self.overflow.saturating_sub(1),
        }
    }

    /// Is no invalidation of `range` under way?
    fn is_settled(&self, range: &Range<usize>) -> bool {
        self.overflow == 0
            && (self.slots == 0 || !self.under_way.iter().any(|slot| overlap(&slot.1, range)))
    }

    /// Has none of `range` started since there were `started`?
    fn is_untouched(&self, range: &Range<usize>, started: u64) -> bool {
        self.started - started <= REMEMBERED as u64
            && !(started..self.started).any(|n| overlap(&self.last[n as usize % REMEMBERED], range))
    }
}

/// The mirrors of a space.
///
/// # Invariants
///
/// `mapping` is that of the files of the space. It is valid: the last of the files is being
/// released, and holds it, when this is dropped; and nobody uses this after it was dropped.
#[pin_data]
pub(crate) struct Mirrors {
    mapping: *const FileMapping,
    #[pin]
    state: SpinLock<State>,
    #[pin]
    ended: CondVar,
}

// SAFETY: The mapping may be used on any thread.
unsafe impl Send for Mirrors {}
// SAFETY: As above, and the rest is locked.
unsafe impl Sync for Mirrors {}

/// That no invalidation of a range of the mm was under way, as of some moment.
pub(crate) struct Settled {
    range: Range<usize>,
    started: u64,
}

impl Settled {
    /// The range.
    pub(crate) fn range(&self) -> &Range<usize> {
        &self.range
    }
}

impl Mirrors {
    /// # Safety
    ///
    /// See the type's invariants.
    pub(crate) unsafe fn new(mapping: &FileMapping) -> impl PinInit<Self> {
        let mapping: *const FileMapping = mapping;
        // INVARIANT: As this function requires.
        pin_init!(Self {
            mapping,
            state <- new_spinlock!(State::new(), "asfd_mirrors"),
            ended <- new_condvar!("asfd_mirrors_ended"),
        })
    }

    fn mapping(&self) -> &FileMapping {
        // SAFETY: By the type invariants.
        unsafe { &*self.mapping }
    }

    /// In how many areas the space is mirrored.
    pub(crate) fn count(&self) -> usize {
        self.mapping().count()
    }

    /// Waits until no invalidation of `range` is under way, or a signal is pending. Invalidations
    /// wait for no lock that is held while pages are looked up.
    pub(crate) fn wait_until_settled(&self, range: Range<usize>) {
        let mut state = self.state.lock();
        while !state.is_settled(&range) {
            if self.ended.wait_interruptible(&mut state) {
                return;
            }
        }
    }

    /// Is no invalidation of `range` under way?
    pub(crate) fn try_settled(&self, range: Range<usize>) -> Option<Settled> {
        let state = self.state.lock();
        let started = state.started;
        state
            .is_settled(&range)
            .then_some(Settled { range, started })
    }

    /// Calls `install` if no invalidation of the range was started since it was settled, nor is
    /// before this returns. It must not sleep.
    pub(crate) fn install(&self, settled: &Settled, install: impl FnOnce() -> bool) -> bool {
        let state = self.state.lock();
        state.is_untouched(&settled.range, settled.started) && install()
    }
}

impl Notifier for Mirrors {
    fn start(&self, what: &Invalidation) {
        let range = what.range();
        self.state.lock().start(what.id(), range.clone());

        let first = range.start.saturating_sub(MM_BASE) / PAGE_SIZE;
        let end = range.end.saturating_sub(MM_BASE).div_ceil(PAGE_SIZE);
        if first < end {
            // This sleeps. Only the OOM reaper must not, and it does not know spaces.
            self.mapping().unmap_pages(first, end - first);
        }
        #[cfg(CONFIG_ADDRESS_SPACE_FD_DEBUG)]
        // SAFETY: We may sleep.
        unsafe {
            kernel::bindings::asfd_zap_delay()
        };
    }

    fn end(&self, what: &Invalidation) {
        self.state.lock().end(what.id());
        self.ended.notify_all();
    }
}

#[kernel::macros::kunit_tests(address_space_mirrors)]
mod tests {
    use super::*;

    const HERE: Range<usize> = 0x3000..0x5000;

    /// Ranges that touch, overlap, contain and miss `HERE`.
    const OTHERS: [(Range<usize>, bool); 7] = [
        (0x1000..0x3000, false),
        (0x5000..0x6000, false),
        (0x2000..0x3001, true),
        (0x4fff..0x9000, true),
        (0x3000..0x5000, true),
        (0x4000..0x4800, true),
        (0x0..usize::MAX, true),
    ];

    #[test]
    fn settled_means_nothing_of_it_under_way() {
        for (other, touches) in OTHERS {
            let mut state = State::new();
            state.start(1, other);
            assert_eq!(state.is_settled(&HERE), !touches);
            state.end(1);
            assert!(state.is_settled(&HERE));
        }
    }

    #[test]
    fn untouched_looks_at_all_since() {
        for (other, touches) in OTHERS {
            for before in 0..3 {
                for after in 0..3 {
                    let mut state = State::new();
                    (0..before).for_each(|_| state.start(1, HERE));
                    let started = state.started;
                    state.start(1, other.clone());
                    (0..after).for_each(|_| state.start(1, 0x8000..0x9000));
                    assert_eq!(state.is_untouched(&HERE, started), !touches);
                }
            }
        }
    }

    #[test]
    fn what_is_not_remembered_counts() {
        let mut state = State::new();
        let started = state.started;
        for n in 0..2 * REMEMBERED {
            state.start(n + 1, 0x8000..0x9000);
            assert_eq!(state.is_untouched(&HERE, started), n < REMEMBERED);
            assert_eq!(state.is_settled(&HERE), n < REMEMBERED);
        }
        for n in 0..2 * REMEMBERED {
            state.end(n + 1);
        }
        assert!(state.is_settled(&HERE));
    }
}
