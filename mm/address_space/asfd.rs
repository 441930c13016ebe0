// SPDX-License-Identifier: GPL-2.0

//! Empty address spaces as file descriptors.
//!
//! A space is an mm that no task runs in. It belongs to a file, the asfd, through which files and
//! anonymous memory are mapped into it ([`map`], [`unmap`]), changed ([`protect`], [`advise`]) and
//! sealed ([`seals`]); its bytes are read and written ([`bytes`]) and written back ([`sync`]), and it
//! is looked at ([`query`]).
//! An asfd may show a [`window`] of the space only and grant some [`rights`] only: a [`view`].
//! It is shown to processes by [`mirror`]s, which follow what it shows ([`mirrors`]).
//! Others of the kernel who use its mm, such as KVM, register to be told of its end ([`clients`]).
//!
//! # Addresses
//!
//! Byte 0 of a space lies at [`space::MM_BASE`] of its mm, and byte 0 of what an asfd shows at the
//! start of its window. Page offsets of mirrors are those of the space.
//!
//! # Locks
//!
//! From the outside in: a client's own locks (KVM's `slots_lock`), the list of [`clients`]; and
//! apart from that list:
//!
//! - the mmap lock or a VMA lock of a process that has a mirror,
//! - the space's mmap lock,
//! - `i_mmap_rwsem` of the files that are mapped in the space, and anon_vma locks,
//! - `i_mmap_rwsem` of the space's own files, taken by [`mirrors`] in the space's MMU notifier,
//! - what MMU notifiers of processes take,
//! - the lock of [`mirrors`], page-table locks of processes.
//!
//! The page-table locks of the space are not held while any of the others is taken. The first three
//! kinds have lock classes of their own for spaces. A client is released with none of these held.

use kernel::{module::ThisModule, prelude::*};

mod advise;
mod bytes;
mod clients;
pub mod exports;
mod file;
mod map;
mod mirror;
mod mirrors;
mod protect;
mod query;
mod rights;
mod seals;
mod space;
mod sync;
mod unmap;
mod view;
mod walk;
mod window;

/// Built into the kernel, so `THIS_MODULE` is null.
struct LocalModule;

impl kernel::ModuleMetadata for LocalModule {
    const NAME: &'static CStr = c"address_space";

    // SAFETY: Null is `THIS_MODULE` of what is built in.
    const THIS_MODULE: ThisModule = unsafe { ThisModule::from_ptr(core::ptr::null_mut()) };
}
