// SPDX-License-Identifier: GPL-2.0

//! Memory cgroups.
//!
//! C header: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h)

use super::Mm;
use crate::{bindings, types::NotThreadSafe};
use core::marker::PhantomData;

/// While it lives, what the current task allocates with `__GFP_ACCOUNT` is charged to the memory
/// cgroup of an mm without an owner, where it would be charged to the task's.
///
/// Faults on such an mm charge its user pages there by themselves; this is for page tables, VMAs
/// and page cache. At the limit of the memory cgroup all of these fail, and nobody is killed for
/// it. Such scopes do not nest.
///
/// # Examples
///
/// ```
/// use kernel::mm::{memcg::ChargeTo, OwnedMm};
///
/// let mm = OwnedMm::new()?;
/// let charge = ChargeTo::new(&mm);
/// // What is allocated here on behalf of `mm` is its creator's.
/// drop(charge);
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `old` is what was active before; the mm, and so its memory cgroup, outlives self.
pub struct ChargeTo<'a> {
    old: *mut bindings::mem_cgroup,
    _mm: PhantomData<&'a Mm>,
    // What is active is a matter of the task.
    _nts: NotThreadSafe,
}

impl<'a> ChargeTo<'a> {
    /// Begins to charge the memory cgroup of `mm`, if it has one of its own.
    pub fn new(mm: &'a Mm) -> Self {
        Self {
            // INVARIANT: The mm is borrowed for `'a`.
            // SAFETY: The mm is valid, and pins its memory cgroup.
            old: unsafe { bindings::mm_charge_begin(mm.as_raw()) },
            _mm: PhantomData,
            _nts: NotThreadSafe,
        }
    }
}

impl Drop for ChargeTo<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, `old` was active before on this task.
        unsafe { bindings::mm_charge_end(self.old) };
    }
}
