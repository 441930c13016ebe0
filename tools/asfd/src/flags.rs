// SPDX-License-Identifier: GPL-2.0

//! Sets of bits, with the names that people read and fdinfo writes.

use std::fmt;
use std::str::FromStr;

use bitflags::bitflags;

use crate::sys;

bitflags! {
    /// Flags of [`AddressSpace::create`](crate::AddressSpace::create).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct CreateFlags: u32 {
        /// The descriptor is closed when the process executes another program.
        const CLOEXEC = sys::ADDRESS_SPACE_CLOEXEC;
    }
}

bitflags! {
    /// What a mapping allows. Shown as `rw`, `r-`, `-w` or `--`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Prot: u32 {
        /// Reading.
        const READ = libc::PROT_READ as u32;
        /// Writing.
        const WRITE = libc::PROT_WRITE as u32;
    }
}

impl fmt::Display for Prot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read = if self.contains(Prot::READ) { 'r' } else { '-' };
        let write = if self.contains(Prot::WRITE) { 'w' } else { '-' };
        write!(f, "{read}{write}")
    }
}

bitflags! {
    /// What the holder of a descriptor may do to the space.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Rights: u32 {
        /// Map.
        const MAP = sys::ADDRESS_SPACE_RIGHT_MAP;
        /// Unmap, and map over a mapping.
        const UNMAP = sys::ADDRESS_SPACE_RIGHT_UNMAP;
        /// Protect and advise.
        const CHANGE = sys::ADDRESS_SPACE_RIGHT_CHANGE;
        /// Seal.
        const SEAL = sys::ADDRESS_SPACE_RIGHT_SEAL;
        /// Make views.
        const VIEW = sys::ADDRESS_SPACE_RIGHT_VIEW;
        /// Look at the mappings.
        const QUERY = sys::ADDRESS_SPACE_RIGHT_QUERY;
        /// Show the space to a KVM guest.
        const KVM = sys::ADDRESS_SPACE_RIGHT_KVM;
    }
}

bitflags! {
    /// What nobody can do to the space any more.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Seals: u32 {
        /// Map.
        const MAP = sys::ADDRESS_SPACE_SEAL_MAP;
        /// Unmap.
        const UNMAP = sys::ADDRESS_SPACE_SEAL_UNMAP;
        /// Protect and advise.
        const CHANGE = sys::ADDRESS_SPACE_SEAL_CHANGE;
        /// Add seals.
        const SEAL = sys::ADDRESS_SPACE_SEAL_SEAL;
    }
}

bitflags! {
    /// Flags of a [`Window`](crate::Window).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct WindowFlags: u32 {
        /// Log the pages that the guest writes.
        const LOG_DIRTY_PAGES = sys::KVM_MEM_LOG_DIRTY_PAGES;
        /// The guest cannot write; its writes are MMIO exits.
        const READONLY = sys::KVM_MEM_READONLY;
        /// A hole is `KVM_EXIT_MEMORY_FAULT`, not an MMIO exit.
        const HOLE_EXIT = sys::KVM_MEM_HOLE_EXIT;
    }
}

/// Writes a set as fdinfo does: lower-case names, comma between, `-` for none.
fn names<B: bitflags::Flags>(set: &B, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let names: Vec<_> = set
        .iter_names()
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect();
    f.write_str(if names.is_empty() { "-" } else { "" })?;
    f.write_str(&names.join(","))
}

/// Reads what [`names`] writes. Names that this crate does not know are left out: a newer kernel
/// may have more.
fn from_names<B: bitflags::Flags>(text: &str) -> B {
    text.split(',')
        .filter_map(|name| B::from_name(&name.to_ascii_uppercase()))
        .fold(B::empty(), B::union)
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        names(self, f)
    }
}

impl fmt::Display for Seals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        names(self, f)
    }
}

/// A word that is not the name of a bit or of an advice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownName {
    pub(crate) name: String,
    pub(crate) known: Vec<String>,
}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is none of {}", self.name, self.known.join(", "))
    }
}

impl std::error::Error for UnknownName {}

/// Reads a set from a person or a program, who is told of names that do not exist.
fn strictly_from_names<B: bitflags::Flags>(text: &str) -> Result<B, UnknownName> {
    if matches!(text, "-" | "none") {
        return Ok(B::empty());
    }
    text.split(',').try_fold(B::empty(), |set, name| {
        let one = B::FLAGS
            .iter()
            .find(|flag| flag.name().eq_ignore_ascii_case(name));
        let one = one.ok_or_else(|| UnknownName {
            name: name.to_owned(),
            known: B::FLAGS
                .iter()
                .map(|flag| flag.name().to_ascii_lowercase())
                .chain(["none".to_owned()])
                .collect(),
        })?;
        Ok(set.union(B::from_bits_retain(one.value().bits())))
    })
}

/// Names with a comma between, `none` or `-` for no right.
///
/// ```
/// use asfd::Rights;
///
/// assert_eq!("map,unmap".parse(), Ok(Rights::MAP | Rights::UNMAP));
/// assert_eq!("none".parse(), Ok(Rights::empty()));
/// let error = "fly".parse::<Rights>().unwrap_err().to_string();
/// assert_eq!(error, "\"fly\" is none of map, unmap, change, seal, view, query, kvm, none");
/// ```
impl FromStr for Rights {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        strictly_from_names(text)
    }
}

/// Names with a comma between, `none` or `-` for no seal.
impl FromStr for Seals {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        strictly_from_names(text)
    }
}

impl Prot {
    /// From the `r` and `w` of `rw-s`; other characters do not count.
    pub(crate) fn from_chars(text: &str) -> Self {
        text.chars().fold(Prot::empty(), |prot, c| match c {
            'r' => prot | Prot::READ,
            'w' => prot | Prot::WRITE,
            _ => prot,
        })
    }
}

impl Rights {
    pub(crate) fn from_text(text: &str) -> Self {
        from_names(text)
    }
}

impl Seals {
    pub(crate) fn from_text(text: &str) -> Self {
        from_names(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_written_as_they_are_read() {
        let rights = Rights::MAP | Rights::QUERY | Rights::KVM;
        assert_eq!(rights.to_string(), "map,query,kvm");
        assert_eq!(Rights::from_text("map,query,kvm"), rights);
        assert_eq!(Rights::empty().to_string(), "-");
        assert_eq!(Rights::from_text("-"), Rights::empty());
        assert_eq!(Seals::from_text("map,seal,later"), Seals::MAP | Seals::SEAL);
    }

    #[test]
    fn what_people_write_is_taken_strictly() {
        for text in ["map,query", "-", "seal"] {
            assert_eq!(text.parse::<Rights>().unwrap().to_string(), text);
        }
        assert_eq!("UNMAP".parse(), Ok(Seals::UNMAP));
        for text in ["", "map,", "map,later", "query", " map"] {
            assert!(text.parse::<Seals>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn prot() {
        assert_eq!((Prot::READ | Prot::WRITE).to_string(), "rw");
        assert_eq!(Prot::empty().to_string(), "--");
        assert_eq!(Prot::from_chars("r--p"), Prot::READ);
    }
}
