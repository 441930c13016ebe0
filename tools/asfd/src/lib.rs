// SPDX-License-Identifier: GPL-2.0

//! Empty address spaces of Linux.
//!
//! A *space* is a set of mappings that no process runs in. It is made empty, files and anonymous
//! memory are mapped into it at offsets of one's choice, and then it is read and written like a
//! file, mirrored into processes, or shown to a KVM guest as its memory. It is held by a file descriptor, the *asfd*, which
//! is duplicated, passed over a socket and inherited like any other; with the last one the space
//! is gone.
//!
//! ```no_run
//! use asfd::{AddressSpace, CreateFlags, Mapping, Prot};
//!
//! let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
//!
//! // A page of a file, for reading, at offset 0 of the space.
//! let kernel = std::fs::File::open("bzImage")?;
//! space.map(&Mapping::file(&kernel, 4096).at(0))?;
//!
//! // Fresh memory where there is room.
//! let ram = space.map(&Mapping::anonymous(1 << 20).prot(Prot::READ | Prot::WRITE))?;
//! space.write_all_at(b"hello", ram)?;
//!
//! for mapping in space.mappings() {
//!     let mapping = mapping?;
//!     println!("{:#x}-{:#x} {}", mapping.start, mapping.end, mapping.prot);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | to | see |
//! |---|---|
//! | make a space | [`AddressSpace::create`] |
//! | edit it | [`AddressSpace::map`] with a [`Mapping`], [`AddressSpace::unmap`] |
//! | change what is mapped | [`AddressSpace::protect`], [`AddressSpace::advise`] |
//! | let nobody edit it any more | [`AddressSpace::seal`] |
//! | hand out a part of it | [`AddressSpace::view`] with a [`View`] |
//! | have it in one's own memory | [`AddressSpace::mirror`], a [`Mirror`] |
//! | read and write its bytes | [`AddressSpace::read_at`], [`AddressSpace::write_at`] |
//! | look at it | [`AddressSpace::mappings`], [`AddressSpace::info`], [`Fdinfo`] |
//! | show it to a guest | [`AddressSpace::map_into_vm`] with a [`Window`] |
//! | reach another process's | [`process`] |
//! | use the system calls raw | [`sys`] |
//!
//! Errors say what was refused and why; see [`Error`]. All of it needs a kernel that has
//! `address_space_create(2)`; others answer `ENOSYS`.

#![deny(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]
#![deny(clippy::undocumented_unsafe_blocks)]

mod advice;
mod bytes;
mod error;
mod fdinfo;
mod flags;
mod info;
mod mapping;
mod mirror;
pub mod process;
mod query;
mod space;
pub mod sys;
mod view;
mod window;

pub use advice::Advice;
pub use error::{Error, Operation, Result};
pub use fdinfo::{Fdinfo, FdinfoError, FdinfoMapping};
pub use flags::{CreateFlags, Prot, Rights, Seals, UnknownName, WindowFlags};
pub use info::Info;
pub use mapping::{HugePageSize, Mapping};
pub use mirror::Mirror;
pub use query::{MappedRange, Mappings};
pub use space::AddressSpace;
pub use view::View;
pub use window::{unmap_from_vm, vm_has_windows, Window};
