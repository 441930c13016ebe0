// SPDX-License-Identifier: GPL-2.0

//! What a descriptor with fewer rights is to show and allow.

use std::fmt;
use std::ops::Range;

use crate::{sys, CreateFlags, Prot, Result, Rights};

/// A view to make: what of the space it shows, what can be read and written through it, and what
/// its holder may do to the space.
///
/// It gets what is named here and nothing else. Without further words that is reading.
///
/// ```no_run
/// use asfd::{AddressSpace, CreateFlags, Prot, Rights, View};
/// # let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
///
/// // Looks at all of the space, bytes and mappings, and changes nothing.
/// let watcher = space.view(&View::whole().rights(Rights::QUERY))?;
///
/// // Fills the second GiB with mappings, cannot read or write them, and cannot reach the rest.
/// let filler = View::of(1 << 30..2 << 30)
///     .prot(Prot::empty())
///     .rights(Rights::MAP | Rights::UNMAP);
/// let filler = space.view(&filler)?;
/// # Ok::<(), asfd::Error>(())
/// ```
///
/// Views are made of views as well. Each shrinks further: no view has a right, a protection or a
/// byte that the descriptor it was made from has not. But it is a descriptor of its own: closing
/// the other one does not take it back. What is unmapped is gone for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a View does nothing until it is passed to AddressSpace::view"]
pub struct View {
    /// `None`: all that the descriptor shows.
    window: Option<Range<u64>>,
    prot: Prot,
    rights: Rights,
    flags: CreateFlags,
}

impl View {
    /// A window, counted in bytes from the start of what the descriptor shows.
    pub fn of(window: Range<u64>) -> Self {
        View {
            window: Some(window),
            prot: Prot::READ,
            rights: Rights::empty(),
            flags: CreateFlags::CLOEXEC,
        }
    }

    /// All that the descriptor shows.
    pub fn whole() -> Self {
        View {
            window: None,
            ..View::of(0..0)
        }
    }

    /// What can be read and written through the view at most: by [`read_at`], in a [`Mirror`], by
    /// a guest. It does not limit the mappings that the holder may make.
    ///
    /// [`read_at`]: crate::AddressSpace::read_at
    /// [`Mirror`]: crate::Mirror
    pub fn prot(self, prot: Prot) -> Self {
        View { prot, ..self }
    }

    /// What the holder may do to the space.
    pub fn rights(self, rights: Rights) -> Self {
        View { rights, ..self }
    }

    /// The descriptor stays open when this process executes another program.
    pub fn inheritable(self) -> Self {
        View {
            flags: CreateFlags::empty(),
            ..self
        }
    }

    /// The argument of the request. `all` tells the length of what the descriptor shows.
    pub(crate) fn args(
        &self,
        all: impl FnOnce() -> Result<u64>,
    ) -> Result<sys::address_space_view> {
        let (addr, len) = match &self.window {
            // A range that ends before it starts is empty, and refused as such.
            Some(window) => (window.start, window.end.saturating_sub(window.start)),
            None => (0, all()?),
        };
        Ok(sys::address_space_view {
            addr,
            len,
            prot: self.prot.bits(),
            rights: self.rights.bits(),
            flags: self.flags.bits(),
            __reserved: 0,
        })
    }

    /// The rights that making it takes.
    pub(crate) fn needs(&self) -> Rights {
        self.rights | Rights::VIEW
    }
}

/// For error messages: "0x1000-0x2000 (rw, rights map,unmap)".
impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.window {
            Some(window) => write!(f, "{:#x}-{:#x}", window.start, window.end)?,
            None => f.write_str("the whole window")?,
        }
        write!(f, " ({}, rights {})", self.prot, self.rights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(view: &View) -> sys::address_space_view {
        view.args(|| Ok(1 << 47)).unwrap()
    }

    #[test]
    fn only_what_is_named() {
        let raw = args(&View::of(0x1000..0x3000));
        assert_eq!((raw.addr, raw.len), (0x1000, 0x2000));
        assert_eq!(raw.prot, libc::PROT_READ as u32);
        assert_eq!(raw.rights, 0);
        assert_eq!(raw.flags, sys::ADDRESS_SPACE_CLOEXEC);

        let view = View::whole()
            .prot(Prot::WRITE)
            .rights(Rights::KVM)
            .inheritable();
        let raw = args(&view);
        assert_eq!((raw.addr, raw.len), (0, 1 << 47));
        assert_eq!(raw.prot, libc::PROT_WRITE as u32);
        assert_eq!(raw.rights, sys::ADDRESS_SPACE_RIGHT_KVM);
        assert_eq!(raw.flags, 0);
    }

    #[test]
    #[allow(clippy::reversed_empty_ranges)]
    fn a_range_that_ends_before_it_starts_is_empty() {
        assert_eq!(args(&View::of(5..3)).len, 0);
    }

    #[test]
    fn in_messages() {
        let view = View::of(0..0x1000).rights(Rights::MAP | Rights::QUERY);
        assert_eq!(view.to_string(), "0x0-0x1000 (r-, rights map,query)");
        assert_eq!(View::whole().to_string(), "the whole window (r-, rights -)");
    }
}
