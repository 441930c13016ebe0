// SPDX-License-Identifier: GPL-2.0

//! Serving page faults: what a kind of file does for the areas in which it is mapped.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use super::virt::VmaRef;
use crate::{bindings, error::VTABLE_DEFAULT_ERROR, prelude::*, types::Opaque};
use core::{
    marker::PhantomData,
    mem,
    ops::{BitOr, Range},
};

/// A page fault that is being served. The mmap lock or the lock of the VMA is held for reading.
///
/// # Invariants
///
/// `vmf` is valid for `'a`, and for as long as this exists its lock is held.
pub struct Fault<'a> {
    vmf: *mut bindings::vm_fault,
    _vmf: PhantomData<&'a mut bindings::vm_fault>,
}

impl<'a> Fault<'a> {
    /// # Safety
    ///
    /// `vmf` must be valid for `'a`, and its lock be held until this is consumed or gone.
    unsafe fn from_raw(vmf: *mut bindings::vm_fault) -> Self {
        // INVARIANT: As this function requires.
        Self {
            vmf,
            _vmf: PhantomData,
        }
    }

    /// For what has to be done in C.
    pub fn as_raw(&self) -> *mut bindings::vm_fault {
        self.vmf
    }

    /// The area in which it happened.
    pub fn vma(&self) -> &VmaRef {
        // SAFETY: By the type invariants the VMA is valid and locked.
        unsafe { VmaRef::from_raw((*self.vmf).__bindgen_anon_1.vma) }
    }

    /// The address of the page.
    pub fn address(&self) -> usize {
        // SAFETY: By the type invariants it is valid.
        unsafe { (*self.vmf).__bindgen_anon_1.address }
    }

    /// The page of the file.
    pub fn pgoff(&self) -> usize {
        // SAFETY: By the type invariants it is valid.
        unsafe { (*self.vmf).__bindgen_anon_1.pgoff }
    }

    fn has(&self, flag: bindings::fault_flag) -> bool {
        // SAFETY: By the type invariants it is valid.
        unsafe { (*self.vmf).flags & flag != 0 }
    }

    /// Is it for writing?
    pub fn is_write(&self) -> bool {
        self.has(bindings::fault_flag_FAULT_FLAG_WRITE)
    }

    /// Must it not wait for anything that takes long?
    pub fn nowait(&self) -> bool {
        self.has(bindings::fault_flag_FAULT_FLAG_RETRY_NOWAIT)
    }

    /// Has it been tried before, and given up its lock?
    pub fn tried(&self) -> bool {
        self.has(bindings::fault_flag_FAULT_FLAG_TRIED)
    }

    /// Gives up the lock in order to wait without it, if this fault may. The area is out of reach
    /// from then on: it can be gone.
    pub fn unlock(self) -> Result<Unlocked, Self> {
        if self.nowait() || !self.has(bindings::fault_flag_FAULT_FLAG_ALLOW_RETRY) {
            return Err(self);
        }
        // SAFETY: By the type invariants the lock is held. Having been consumed, this does not
        // vouch for it any longer.
        unsafe { bindings::release_fault_lock(self.vmf) };
        Ok(Unlocked(()))
    }
}

/// A fault that has given up its lock. All that can be said of it is that it has to be tried again.
#[must_use]
pub struct Unlocked(());

impl Unlocked {
    /// Has the access repeated.
    pub fn retry(self) -> Outcome {
        Outcome(bindings::vm_fault_reason_VM_FAULT_RETRY)
    }
}

/// What became of a fault, `vm_fault_t`.
///
/// That the lock is gone ([`Unlocked::retry`]) and an error exclude each other by construction.
///
/// # Examples
///
/// ```
/// use kernel::mm::fault::Outcome;
///
/// assert!(Outcome::SIGBUS.is_error());
/// assert!(!(Outcome::NOPAGE | Outcome::MAJOR).is_error());
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Outcome(bindings::vm_fault_reason);

impl Outcome {
    /// The handler has done nothing, and the generic code goes on.
    pub const NOTHING: Self = Self(0);
    /// The page table entry is there, or the access will fault again: nothing is left to do.
    pub const NOPAGE: Self = Self(bindings::vm_fault_reason_VM_FAULT_NOPAGE);
    /// It waited for a device. To be added to another.
    pub const MAJOR: Self = Self(bindings::vm_fault_reason_VM_FAULT_MAJOR);
    /// Not with a huge page; see [`VmOperations::huge_fault`].
    pub const FALLBACK: Self = Self(bindings::vm_fault_reason_VM_FAULT_FALLBACK);
    /// There is no memory behind the address.
    pub const SIGBUS: Self = Self(bindings::vm_fault_reason_VM_FAULT_SIGBUS);
    /// The access is not permitted.
    pub const SIGSEGV: Self = Self(bindings::vm_fault_reason_VM_FAULT_SIGSEGV);
    /// The memory is broken.
    pub const HWPOISON: Self = Self(bindings::vm_fault_reason_VM_FAULT_HWPOISON);

    /// A fault with [`Fault::nowait`] would have to wait: it keeps its lock, and may be tried again.
    pub fn would_wait(fault: &Fault<'_>) -> Option<Self> {
        fault
            .nowait()
            .then_some(Self(bindings::vm_fault_reason_VM_FAULT_RETRY))
    }

    /// Is it an error, or nothing that would end the fault?
    pub fn is_error(self) -> bool {
        let errors = Self::SIGBUS | Self::SIGSEGV | Self::HWPOISON | Self::FALLBACK;
        self.0 & errors.0 != 0
    }
}

impl BitOr for Outcome {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What is done for the areas in which a kind of file is mapped.
///
/// Page table entries are installed by the handlers themselves.
#[vtable]
pub trait VmOperations: Sized {
    /// Serves a fault on a page that is not there.
    fn fault(fault: Fault<'_>) -> Outcome;

    /// Serves a fault with a huge page of 2^`order` pages, or leaves it to the others with
    /// [`Outcome::FALLBACK`].
    fn huge_fault(_fault: Fault<'_>, _order: u32) -> Outcome {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Installs what is there of these pages of the file, without sleeping; a fault for reading
    /// is at one of them. [`Outcome::NOPAGE`] if that one was there, else [`Outcome::NOTHING`].
    fn map_pages(_fault: &Fault<'_>, _pages: Range<usize>) -> Outcome {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Serves a write to a page that is there for reading. Anything but an error ends the fault;
    /// what is not installed then is tried again.
    fn pfn_mkwrite(_fault: Fault<'_>) -> Outcome {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// The `struct vm_operations_struct` for a [`VmOperations`].
///
/// To be placed in a `static`, whose address tells these areas from all others.
#[repr(transparent)]
pub struct VmOps<T> {
    inner: Opaque<bindings::vm_operations_struct>,
    _t: PhantomData<T>,
}

// SAFETY: The table is never written to.
unsafe impl<T> Sync for VmOps<T> {}

impl<T: VmOperations> VmOps<T> {
    /// Makes the table.
    #[expect(clippy::new_without_default)]
    pub const fn new() -> Self {
        Self {
            inner: Opaque::new(bindings::vm_operations_struct {
                fault: Some(Self::fault),
                huge_fault: if T::HAS_HUGE_FAULT {
                    Some(Self::huge_fault)
                } else {
                    None
                },
                map_pages: if T::HAS_MAP_PAGES {
                    Some(Self::map_pages)
                } else {
                    None
                },
                pfn_mkwrite: if T::HAS_PFN_MKWRITE {
                    Some(Self::pfn_mkwrite)
                } else {
                    None
                },
                ..pin_init::zeroed()
            }),
            _t: PhantomData,
        }
    }

    /// Returns the table for C.
    pub const fn as_raw(&'static self) -> *const bindings::vm_operations_struct {
        self.inner.get()
    }

    /// Are these the operations of `vma`?
    pub fn serves(&'static self, vma: &VmaRef) -> bool {
        // SAFETY: The VMA is valid; its operations are not changed while it is locked.
        core::ptr::eq(unsafe { (*vma.as_ptr()).vm_ops }, self.as_raw())
    }

    /// # Safety
    ///
    /// To be called for an area with this table, as `struct vm_operations_struct` requires.
    unsafe extern "C" fn fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: The fault is valid during the call, and locked until it is given up.
        T::fault(unsafe { Fault::from_raw(vmf) }).0
    }

    /// # Safety
    ///
    /// To be called for an area with this table, as `struct vm_operations_struct` requires.
    unsafe extern "C" fn huge_fault(
        vmf: *mut bindings::vm_fault,
        order: u32,
    ) -> bindings::vm_fault_t {
        // SAFETY: The fault is valid during the call, and locked until it is given up.
        T::huge_fault(unsafe { Fault::from_raw(vmf) }, order).0
    }

    /// # Safety
    ///
    /// To be called for an area with this table, as `struct vm_operations_struct` requires.
    unsafe extern "C" fn map_pages(
        vmf: *mut bindings::vm_fault,
        first: usize,
        last: usize,
    ) -> bindings::vm_fault_t {
        // SAFETY: The fault is valid and locked during the call.
        let fault = unsafe { Fault::from_raw(vmf) };
        T::map_pages(&fault, first..last + 1).0
    }

    /// # Safety
    ///
    /// To be called for an area with this table, as `struct vm_operations_struct` requires.
    unsafe extern "C" fn pfn_mkwrite(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: The fault is valid during the call, and locked until it is given up.
        let outcome = T::pfn_mkwrite(unsafe { Fault::from_raw(vmf) });
        if outcome.is_error() {
            outcome.0
        } else {
            // The caller does not look for a retry, but leaves alone what has no page.
            (outcome | Outcome::NOPAGE).0
        }
    }
}

/// The faults that are counted for the current task (`ru_minflt`, `ru_majflt`).
///
/// One who serves a fault by another one, in another mm, has both counted where the task did one
/// access.
pub struct FaultCounts {
    minor: usize,
    major: usize,
}

impl FaultCounts {
    /// What is counted until now.
    pub fn now() -> Self {
        let (mut minor, mut major) = (0, 0);
        // SAFETY: Both are valid for writing.
        unsafe { bindings::current_fault_counts(&mut minor, &mut major) };
        Self { minor, major }
    }

    /// Goes back to these counts. Returns whether a major fault was counted since.
    pub fn restore(self) -> bool {
        let now = Self::now();
        // SAFETY: There are no requirements.
        unsafe { bindings::current_set_fault_counts(self.minor, self.major) };
        now.major != self.major
    }
}

// `Outcome` is what the C side expects.
const _: () = assert!(mem::size_of::<Outcome>() == mem::size_of::<bindings::vm_fault_t>());
