// SPDX-License-Identifier: GPL-2.0

//! Empty address spaces as file descriptors.
//!
//! A space is an mm that no task runs in. It belongs to a file, the asfd, through which files and
//! anonymous memory are mapped into it ([`map`], [`unmap`]), its bytes are read and written
//! ([`bytes`]), and it is looked at ([`query`]). Others of the kernel who use its mm, such as KVM,
//! register to be told of its end ([`clients`]).
//!
//! # Addresses
//!
//! Byte 0 of a space lies at [`space::MM_BASE`] of its mm. Only [`space`] translates.
//!
//! # Locks
//!
//! From the outside in: a client's own locks (KVM's `slots_lock`), the list of [`clients`]; and
//! apart from that list: the space's mmap lock, `i_mmap_rwsem`, page-table locks, what MMU
//! notifiers take. A client is released with none of them held.

use kernel::{module::ThisModule, prelude::*};

mod bytes;
mod clients;
pub mod exports;
mod file;
mod map;
mod query;
mod rights;
mod space;
mod unmap;
mod walk;

/// Built into the kernel, so `THIS_MODULE` is null.
struct LocalModule;

impl kernel::ModuleMetadata for LocalModule {
    const NAME: &'static CStr = c"address_space";

    // SAFETY: Null is `THIS_MODULE` of what is built in.
    const THIS_MODULE: ThisModule = unsafe { ThisModule::from_ptr(core::ptr::null_mut()) };
}
