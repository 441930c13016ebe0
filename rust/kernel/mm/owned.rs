// SPDX-License-Identifier: GPL-2.0

//! Address spaces that no task runs in.
//!
//! C header: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h)

use super::{Mm, MmWithUser};
use crate::{bindings, error::code::ENOMEM, error::Result, sync::aref::ARef};
use core::{ops::Deref, ptr::NonNull};

/// The owner of an address space that no task runs in.
///
/// It holds one `mm_users` reference. When it is dropped, and whoever uses [`Mm::mmget_not_zero`]
/// is done, all mappings are gone; an [`ARef<Mm>`] keeps no more than the `mm_struct` itself.
///
/// The address space is charged to the memory cgroup of the task that made it, for as long as it
/// exists. Dropping it may sleep.
///
/// # Examples
///
/// ```
/// use kernel::mm::OwnedMm;
///
/// let owner = OwnedMm::new()?;
/// let mm = owner.grab();
/// assert!(mm.mmget_not_zero().is_some());
/// assert!(mm.is_ownerless());
///
/// drop(owner);
/// assert!(mm.mmget_not_zero().is_none());
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// Owns an `mmget` refcount on an mm that is no task's.
pub struct OwnedMm(ARef<MmWithUser>);

impl OwnedMm {
    /// Allocates an empty address space.
    pub fn new() -> Result<Self> {
        // SAFETY: There are no requirements. The mm comes with one `mm_users`.
        let mm = NonNull::new(unsafe { bindings::mm_alloc_ownerless() }).ok_or(ENOMEM)?;
        // SAFETY: We own the `mmget` refcount that the mm came with.
        // INVARIANT: Nobody else has seen the mm.
        Ok(Self(unsafe { ARef::from_raw(mm.cast()) }))
    }

    /// Takes an `mmgrab` reference, which keeps the `mm_struct` but none of its mappings.
    pub fn grab(&self) -> ARef<Mm> {
        let mm: &Mm = &self.0;
        mm.into()
    }
}

impl Mm {
    /// Is this an [`OwnedMm`]?
    pub fn is_ownerless(&self) -> bool {
        // SAFETY: The mm is valid since self is a reference.
        unsafe { bindings::mm_is_ownerless(self.as_raw()) }
    }
}

impl Deref for OwnedMm {
    type Target = MmWithUser;

    #[inline]
    fn deref(&self) -> &MmWithUser {
        &self.0
    }
}
