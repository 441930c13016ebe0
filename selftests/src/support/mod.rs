// SPDX-License-Identifier: GPL-2.0

//! What the tests are made of.

pub mod areas;
pub mod bench;
pub mod cgroup;
pub mod composed;
pub mod crew;
pub mod dirty;
pub mod faults;
pub mod files;
pub mod fuse;
pub mod guest;
pub mod instructions;
pub mod mapped;
pub mod meeting;
pub mod mirror;
pub mod own_memory;
pub mod pages;
pub mod phases;
pub mod probe;
pub mod process;
pub mod remote;
pub mod rights;
pub mod shared;
pub mod smp;
pub mod snapshot;
pub mod space;
pub mod swap;
pub mod system;
pub mod transfer;
pub mod uniform;
pub mod uring;
pub mod userfault;
pub mod walker;
pub mod witness;

pub use nix::errno::Errno;
pub use space::{Map, Space, PAGE};

/// What a call that may be refused answers.
pub type Result<T> = std::result::Result<T, Errno>;

/// 2 MiB, the huge page of the test machine.
pub const HUGE: u64 = 2 << 20;
