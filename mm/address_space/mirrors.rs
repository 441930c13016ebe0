// SPDX-License-Identifier: GPL-2.0

//! The mirrors of a space as a whole: they are told when it changes.
//!
//! A mirror shows what the page tables of the space show. So before an entry of the space is taken
//! away or loses permissions, it is zapped in all mirrors ([`Mirrors::start`]), and until that is
//! over ([`Mirrors::end`]) no fault installs anything in them. A fault does so in three steps:
//!
//! 1. [`Mirrors::settled`]: remember the number of invalidations, with none under way;
//! 2. look up the page in the space;
//! 3. [`Mirrors::install`]: under the lock, if the number is still the same, install it.
//!
//! An invalidation that takes the lock before step 3 changes the number. One that takes it after
//! finds what was installed and zaps it: the mirror was in the file's tree of areas before it
//! could fault.
//!
//! Where a page is taken from the space without being installed (GUP), step 1 comes first as well:
//! see `gup_mirrored()`.

use kernel::{
    bindings,
    fs::mapping::FileMapping,
    mm::notifier::{Invalidation, Notifier},
    page::PAGE_SIZE,
    prelude::*,
    sync::{new_condvar, new_spinlock, CondVar, SpinLock},
};

use crate::space::MM_BASE;

struct State {
    /// Invalidations that have started and not ended.
    under_way: usize,
    /// Invalidations that have started, ever.
    started: u64,
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

/// That no invalidation was under way, as of some moment.
#[derive(Clone, Copy)]
pub(crate) struct Settled(u64);

impl Mirrors {
    /// # Safety
    ///
    /// See the type's invariants.
    pub(crate) unsafe fn new(mapping: &FileMapping) -> impl PinInit<Self> {
        let mapping: *const FileMapping = mapping;
        // INVARIANT: As this function requires.
        pin_init!(Self {
            mapping,
            state <- new_spinlock!(State { under_way: 0, started: 0 }, "asfd_mirrors"),
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

    /// Waits until no invalidation is under way. Those wait for no lock that is held while pages
    /// are looked up.
    pub(crate) fn settled(&self) -> Settled {
        let mut state = self.state.lock();
        while state.under_way > 0 {
            self.ended.wait(&mut state);
        }
        Settled(state.started)
    }

    /// As [`Self::settled`], but does not wait.
    pub(crate) fn try_settled(&self) -> Option<Settled> {
        let state = self.state.lock();
        (state.under_way == 0).then_some(Settled(state.started))
    }

    /// Calls `install` if nothing was invalidated since `settled`, nor is before it returns. It
    /// must not sleep.
    pub(crate) fn install(&self, settled: Settled, install: impl FnOnce() -> bool) -> bool {
        let state = self.state.lock();
        state.started == settled.0 && install()
    }
}

impl Notifier for Mirrors {
    fn start(&self, what: &Invalidation) -> Result {
        // Only the OOM reaper may not sleep, and it does not know spaces.
        if !what.may_block() {
            return Err(EAGAIN);
        }
        {
            let mut state = self.state.lock();
            state.under_way += 1;
            state.started += 1;
        }
        let range = what.range();
        let first = range.start.saturating_sub(MM_BASE) / PAGE_SIZE;
        let end = range.end.saturating_sub(MM_BASE).div_ceil(PAGE_SIZE);
        if first < end {
            self.mapping().unmap_pages(first, end - first);
        }
        #[cfg(CONFIG_ADDRESS_SPACE_FD_DEBUG)]
        // SAFETY: We may sleep.
        unsafe {
            bindings::asfd_zap_delay()
        };
        Ok(())
    }

    fn end(&self, _what: &Invalidation) {
        let mut state = self.state.lock();
        state.under_way -= 1;
        if state.under_way == 0 {
            self.ended.notify_all();
        }
    }
}
