// SPDX-License-Identifier: GPL-2.0

//! What can be taken away from an asfd and from a space, and the calls that change mappings in
//! place: VIEW, SEAL, PROTECT, ADVISE.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use asfd::sys::*;
use libc::{PROT_READ, PROT_WRITE};

use super::space::{errno, Mapping};
use super::{Result, Space};

pub const RW: i32 = PROT_READ | PROT_WRITE;

/// The rights as fdinfo spells them, from bit 0 up.
pub const RIGHTS: [&str; 7] = ["map", "unmap", "change", "seal", "view", "query", "kvm"];
pub const ALL_RIGHTS: u32 = (1 << RIGHTS.len()) - 1;

/// The seals, likewise.
pub const SEALS: [&str; 4] = ["map", "unmap", "change", "seal"];
pub const ALL_SEALS: u32 = (1 << SEALS.len()) - 1;

/// A set of bits as fdinfo has to show it.
pub fn spelled(names: &[&str], bits: u32) -> String {
    let set = (0..).zip(names).filter(|(bit, _)| bits >> bit & 1 == 1);
    let set: Vec<&str> = set.map(|(_, name)| *name).collect();
    if set.is_empty() {
        "-".into()
    } else {
        set.join(",")
    }
}

/// A ceiling as fdinfo has to show it.
pub fn spelled_prot(prot: i32) -> &'static str {
    match (prot & PROT_READ != 0, prot & PROT_WRITE != 0) {
        (true, true) => "rw",
        (true, false) => "r-",
        (false, true) => "-w",
        (false, false) => "--",
    }
}

/// The argument of VIEW: everything that the descriptor has, then what is taken away.
#[derive(Clone, Copy, Debug)]
pub struct View(pub address_space_view);

impl View {
    pub fn of(addr: u64, len: u64) -> View {
        View(address_space_view {
            addr,
            len,
            prot: RW as u32,
            rights: ALL_RIGHTS,
            flags: ADDRESS_SPACE_CLOEXEC,
            __reserved: 0,
        })
    }

    pub fn prot(mut self, prot: i32) -> View {
        self.0.prot = prot as u32;
        self
    }

    pub fn rights(mut self, rights: u32) -> View {
        self.0.rights = rights;
        self
    }

    pub fn flags(mut self, flags: u32) -> View {
        self.0.flags = flags;
        self
    }
}

/// A request that takes a struct and changes nothing in it, on whatever descriptor.
pub fn request<T: Copy>(fd: RawFd, number: u32, mut argument: T) -> Result<i32> {
    // SAFETY: The callers pass the struct that the number is made of.
    unsafe { ioctl(fd, number, &mut argument) }.map_err(errno)
}

impl Space {
    pub fn view(&self, view: View) -> Result<Space> {
        let fd = request(self.as_raw_fd(), ADDRESS_SPACE_IOC_VIEW, view.0)?;
        // SAFETY: The kernel just made it for us.
        Ok(Space::from(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    #[track_caller]
    pub fn must_view(&self, view: View) -> Space {
        match self.view(view) {
            Ok(space) => space,
            Err(e) => panic!("{view:x?}: {e}"),
        }
    }

    pub fn seal(&self, seals: u32) -> Result<()> {
        request(self.as_raw_fd(), ADDRESS_SPACE_IOC_SEAL, seals).map(drop)
    }

    pub fn protect(&self, addr: u64, len: u64, prot: i32) -> Result<()> {
        let argument = address_space_protect {
            addr,
            len,
            prot: prot as u32,
            __reserved: 0,
        };
        request(self.as_raw_fd(), ADDRESS_SPACE_IOC_PROTECT, argument).map(drop)
    }

    #[track_caller]
    pub fn must_protect(&self, addr: u64, len: u64, prot: i32) {
        if let Err(e) = self.protect(addr, len, prot) {
            panic!("PROTECT of {len:#x} at {addr:#x} to {prot}: {e}");
        }
    }

    pub fn advise(&self, addr: u64, len: u64, advice: i32) -> Result<()> {
        let argument = address_space_advise {
            addr,
            len,
            advice: advice as u32,
            __reserved: 0,
        };
        request(self.as_raw_fd(), ADDRESS_SPACE_IOC_ADVISE, argument).map(drop)
    }

    #[track_caller]
    pub fn must_advise(&self, addr: u64, len: u64, advice: i32) {
        if let Err(e) = self.advise(addr, len, advice) {
            panic!("advice {advice} for {len:#x} at {addr:#x}: {e}");
        }
    }

    /// A line of fdinfo.
    #[track_caller]
    pub fn field(&self, name: &str) -> String {
        let text = self.fdinfo();
        let found = lines_of(&text, name).next();
        found
            .unwrap_or_else(|| panic!("no {name} in {text}"))
            .into()
    }

    /// The mappings as fdinfo lists them.
    pub fn map_lines(&self) -> Vec<String> {
        let text = self.fdinfo();
        lines_of(&text, "as_map").map(Into::into).collect()
    }
}

/// What the lines of that name say in the text of fdinfo.
pub fn lines_of<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    let lines = text.lines();
    lines.filter_map(move |line| line.strip_prefix(name)?.strip_prefix(":\t"))
}

/// What of `mappings` a window of `len` bytes at `start` shows, and where.
pub fn seen_through(mappings: &[Mapping], start: u64, len: u64) -> Vec<Mapping> {
    let inside = mappings
        .iter()
        .filter(|m| m.end > start && m.start < start + len);
    let cut = inside.map(|m| {
        let from = m.start.max(start);
        Mapping {
            start: from - start,
            end: m.end.min(start + len) - start,
            offset: if m.inode == 0 {
                0
            } else {
                m.offset + from - m.start
            },
            ..m.clone()
        }
    });
    cut.collect()
}
