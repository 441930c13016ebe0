// SPDX-License-Identifier: GPL-2.0

//! MMU notifiers: being told before the page tables of an address space change.
//!
//! C header: [`include/linux/mmu_notifier.h`](srctree/include/linux/mmu_notifier.h)

use super::edit::MmapWriteGuard;
use crate::{bindings, container_of, error::to_result, ffi::c_int, prelude::*, types::Opaque};
use core::ops::Range;

/// What is about to be invalidated.
#[repr(transparent)]
pub struct Invalidation(Opaque<bindings::mmu_notifier_range>);

impl Invalidation {
    /// The addresses.
    pub fn range(&self) -> Range<usize> {
        // SAFETY: The range is valid and is not changed during the call that it was passed to.
        unsafe { (*self.0.get()).start..(*self.0.get()).end }
    }

    /// Tells it from all others that are under way; the same at its start and its end.
    pub fn id(&self) -> usize {
        self.0.get().addr()
    }

    /// May the notifier sleep?
    pub fn may_block(&self) -> bool {
        // SAFETY: As above.
        unsafe { (*self.0.get()).flags & bindings::MMU_NOTIFIER_RANGE_BLOCKABLE != 0 }
    }
}

/// One who is told before and after page table entries of an address space are taken away or lose
/// permissions.
pub trait Notifier: Send + Sync {
    /// From when this returns to [`Self::end`], what `what` covers must not be used. May sleep if
    /// [`Invalidation::may_block`].
    fn start(&self, what: &Invalidation);

    /// It is done. Called once for each [`Self::start`], but for those that are under way when the
    /// [`Registration`] ends.
    fn end(&self, what: &Invalidation);
}

/// A [`Notifier`] that is registered with an address space, until this is dropped.
///
/// Dropping it waits for calls that are under way. What the notifier's functions wait for must not
/// be held by whoever does so.
///
/// # Examples
///
/// ```
/// use kernel::mm::{edit::Mapping, notifier::{Invalidation, Notifier, Registration}, OwnedMm};
/// use kernel::page::PAGE_SIZE;
/// use kernel::sync::atomic::{Atomic, Relaxed};
///
/// struct Counter(Atomic<i32>);
///
/// impl Notifier for Counter {
///     fn start(&self, _what: &Invalidation) {
///         self.0.fetch_add(1, Relaxed);
///     }
///     fn end(&self, _what: &Invalidation) {}
/// }
///
/// let mm = OwnedMm::new()?;
/// let start = 1 << 30;
/// let anon = Mapping { file: None, prot: 3, flags: 0x21, pgoff: 0 };
/// let mut guard = mm.mmap_write_lock_killable()?;
/// let counter = Registration::new(&guard, Counter(Atomic::new(0)))?;
/// guard.map_fixed(&anon, start..start + PAGE_SIZE)?;
/// guard.unmap(start..start + PAGE_SIZE)?;
/// drop(guard);
/// assert!(counter.0.load(Relaxed) > 0);
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `subscription` is registered, with the operations of `T`, and the mm that it is registered with
/// is kept allocated by it.
#[pin_data(PinnedDrop)]
pub struct Registration<T: Notifier> {
    #[pin]
    subscription: Opaque<bindings::mmu_notifier>,
    #[pin]
    notifier: T,
}

// SAFETY: The subscription may be ended on any thread.
unsafe impl<T: Notifier> Send for Registration<T> {}
// SAFETY: The notifier is `Sync`, and nothing else can be reached by a reference.
unsafe impl<T: Notifier> Sync for Registration<T> {}

impl<T: Notifier> Registration<T> {
    const OPS: bindings::mmu_notifier_ops = bindings::mmu_notifier_ops {
        invalidate_range_start: Some(Self::start),
        invalidate_range_end: Some(Self::end),
        ..pin_init::zeroed()
    };

    /// Registers `notifier` with the address space that `guard` has locked.
    ///
    /// [`EINTR`] if a signal is pending.
    pub fn new<E>(
        guard: &MmapWriteGuard<'_>,
        notifier: impl PinInit<T, E>,
    ) -> Result<Pin<KBox<Self>>>
    where
        Error: From<E>,
    {
        let subscription = bindings::mmu_notifier {
            ops: &Self::OPS,
            ..pin_init::zeroed()
        };
        KBox::try_pin_init(
            try_pin_init!(Self {
                notifier <- notifier,
                // Last, so that what it may be called for is there. INVARIANT: It is registered here.
                subscription <- Opaque::try_ffi_init(|slot: *mut bindings::mmu_notifier| {
                    // SAFETY: The slot is valid, and pinned from now on; the lock is held.
                    to_result(unsafe {
                        slot.write(subscription);
                        bindings::__mmu_notifier_register(slot, guard.mm().as_raw())
                    })
                }),
            }? Error),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// # Safety
    ///
    /// `subscription` must be that of a [`Registration<T>`].
    unsafe fn notifier<'a>(subscription: *mut bindings::mmu_notifier) -> &'a T {
        let slot: *mut Opaque<bindings::mmu_notifier> = subscription.cast();
        // SAFETY: As this function requires. It is not dropped while a call is under way.
        unsafe { &(*container_of!(slot, Self, subscription)).notifier }
    }

    /// # Safety
    ///
    /// To be called by the core of MMU notifiers.
    unsafe extern "C" fn start(
        subscription: *mut bindings::mmu_notifier,
        range: *const bindings::mmu_notifier_range,
    ) -> c_int {
        // SAFETY: The subscription is one of ours, and the range valid for the call.
        let (notifier, what) =
            unsafe { (Self::notifier(subscription), &*range.cast::<Invalidation>()) };
        notifier.start(what);
        // Who has an end must not fail here.
        0
    }

    /// # Safety
    ///
    /// To be called by the core of MMU notifiers.
    unsafe extern "C" fn end(
        subscription: *mut bindings::mmu_notifier,
        range: *const bindings::mmu_notifier_range,
    ) {
        // SAFETY: The subscription is one of ours, and the range valid for the call.
        let (notifier, what) =
            unsafe { (Self::notifier(subscription), &*range.cast::<Invalidation>()) };
        notifier.end(what);
    }
}

impl<T: Notifier> core::ops::Deref for Registration<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.notifier
    }
}

#[pinned_drop]
impl<T: Notifier> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        let subscription = self.subscription.get();
        // SAFETY: By the type invariants it is registered, and the mm is there.
        unsafe { bindings::mmu_notifier_unregister(subscription, (*subscription).mm) };
    }
}
