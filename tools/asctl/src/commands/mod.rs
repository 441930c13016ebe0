// SPDX-License-Identifier: GPL-2.0

//! The subcommands, one file each.

pub mod advise;
pub mod exec;
pub mod info;
pub mod ls;
pub mod map;
pub mod maps;
pub mod protect;
pub mod read;
pub mod seal;
pub mod unmap;
pub mod view;
pub mod write;
