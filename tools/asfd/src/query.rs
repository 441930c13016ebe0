// SPDX-License-Identifier: GPL-2.0

//! Walking the mappings of a space.

use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;

use crate::{sys, AddressSpace, Error, Operation, Prot, Result};

/// A mapping that a space has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedRange {
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
    /// What it allows.
    pub prot: Prot,
    /// Whether writes go to the file; else they stay in the space.
    pub shared: bool,
    /// Size of the pages that back it.
    pub page_size: u64,
    /// Where `start` lies in the file.
    pub offset: u64,
    /// Device and inode number of the file; 0 for private anonymous memory.
    pub device: (u32, u32),
    /// Inode number of the file, 0 for private anonymous memory.
    pub inode: u64,
    /// Path of the file as `/proc/PID/maps` would show it, `/memfd:NAME (deleted)` of a memfd,
    /// `/dev/zero (deleted)` of shared anonymous memory. `None` for private anonymous memory and
    /// for paths too long for the kernel to tell.
    pub name: Option<OsString>,
}

impl MappedRange {
    /// Length in bytes.
    #[allow(clippy::len_without_is_empty)] // There are no empty mappings.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }
}

/// Iterator over the mappings of a space, lowest first; see [`AddressSpace::mappings`].
#[derive(Debug)]
pub struct Mappings<'a> {
    space: &'a AddressSpace,
    /// Where to look next, `None` after the last.
    next: Option<u64>,
}

impl AddressSpace {
    /// The mappings, lowest first.
    ///
    /// Each is as it was at one moment; edits by others between two of them are seen or not.
    ///
    /// ```no_run
    /// # use asfd::{AddressSpace, CreateFlags};
    /// # let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    /// let mapped: u64 = space
    ///     .mappings()
    ///     .map(|m| m.map(|m| m.len()))
    ///     .sum::<asfd::Result<u64>>()?;
    /// # Ok::<(), asfd::Error>(())
    /// ```
    pub fn mappings(&self) -> Mappings<'_> {
        Mappings {
            space: self,
            next: Some(0),
        }
    }

    /// The mapping that holds `addr`, `None` if that is a hole.
    pub fn mapping_at(&self, addr: u64) -> Result<Option<MappedRange>> {
        self.query(addr, 0)
    }

    fn query(&self, addr: u64, flags: u64) -> Result<Option<MappedRange>> {
        let mut name = vec![0; libc::PATH_MAX as usize];
        let answer = match self.query_raw(addr, flags, &mut name) {
            // The path does not fit in what the kernel takes: do without.
            Err(e) if [Some(libc::ENAMETOOLONG), Some(libc::E2BIG)].contains(&e.raw_os_error()) => {
                name.clear();
                self.query_raw(addr, flags, &mut name)
            }
            answer => answer,
        };
        match answer {
            Ok(q) => {
                // The size counts the final NUL.
                name.truncate((q.vma_name_size as usize).saturating_sub(1));
                Ok(Some(MappedRange {
                    start: q.vma_start,
                    end: q.vma_end,
                    prot: prot(q.vma_flags),
                    shared: q.vma_flags & sys::PROCMAP_QUERY_VMA_SHARED != 0,
                    page_size: q.vma_page_size,
                    offset: q.vma_offset,
                    device: (q.dev_major, q.dev_minor),
                    inode: q.inode,
                    name: (!name.is_empty()).then(|| OsString::from_vec(name)),
                }))
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => {
                let what = format!("look for a mapping at {addr:#x}");
                Err(Error::new(Operation::Query, what, e))
            }
        }
    }

    fn query_raw(
        &self,
        addr: u64,
        flags: u64,
        name: &mut [u8],
    ) -> std::io::Result<sys::procmap_query> {
        let mut query = sys::procmap_query {
            size: size_of::<sys::procmap_query>() as u64,
            query_flags: flags,
            query_addr: addr,
            vma_name_size: name.len() as u32,
            vma_name_addr: if name.is_empty() {
                0
            } else {
                name.as_mut_ptr() as u64
            },
            ..Default::default()
        };
        // SAFETY: `query` is what the request takes; the one address in it is that of `name`,
        // with its length.
        unsafe { sys::ioctl(self.as_raw_fd(), sys::PROCMAP_QUERY, &mut query) }?;
        Ok(query)
    }
}

impl Iterator for Mappings<'_> {
    type Item = Result<MappedRange>;

    fn next(&mut self) -> Option<Self::Item> {
        let addr = self.next.take()?;
        let found = self
            .space
            .query(addr, sys::PROCMAP_QUERY_COVERING_OR_NEXT_VMA)
            .transpose()?;
        // After an error there is no next one.
        self.next = found.as_ref().ok().map(|m| m.end);
        Some(found)
    }
}

fn prot(flags: u64) -> Prot {
    let mut prot = Prot::empty();
    prot.set(Prot::READ, flags & sys::PROCMAP_QUERY_VMA_READABLE != 0);
    prot.set(Prot::WRITE, flags & sys::PROCMAP_QUERY_VMA_WRITABLE != 0);
    prot
}
