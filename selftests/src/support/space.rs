// SPDX-License-Identifier: GPL-2.0

//! A space, with the calls of the interface and nothing between: what is refused comes back as
//! the errno.

use std::io::IoSliceMut;
use std::mem::size_of_val;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use asfd::sys::*;
use libc::{MAP_ANONYMOUS, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_PRIVATE, MAP_SHARED};
use libc::{PROT_READ, PROT_WRITE};
use nix::unistd::Whence;

use super::{Errno, Result};

pub const PAGE: u64 = 4096;

pub fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().expect("an error of the kernel's"))
}

/// Arguments of `address_space_mmap`: a base, then what differs from it.
#[derive(Clone, Copy, Debug)]
pub struct Map(pub address_space_mmap_args);

impl Map {
    /// Private anonymous memory at `addr`, where nothing may be.
    pub fn anon(addr: u64, len: u64) -> Map {
        Map(address_space_mmap_args {
            addr,
            len,
            offset: 0,
            fd: -1,
            prot: (PROT_READ | PROT_WRITE) as u32,
            flags: (MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE) as u32,
            __reserved: 0,
        })
    }

    /// A file from its start, shared, at `addr`, where nothing may be.
    pub fn file(fd: &impl AsRawFd, addr: u64, len: u64) -> Map {
        let mut map = Map::anon(addr, len);
        map.0.fd = fd.as_raw_fd();
        map.0.flags = (MAP_SHARED | MAP_FIXED_NOREPLACE) as u32;
        map
    }

    pub fn offset(mut self, offset: u64) -> Map {
        self.0.offset = offset;
        self
    }

    pub fn prot(mut self, prot: i32) -> Map {
        self.0.prot = prot as u32;
        self
    }

    pub fn with(mut self, flags: i32) -> Map {
        self.0.flags |= flags as u32;
        self
    }

    pub fn without(mut self, flags: i32) -> Map {
        self.0.flags &= !(flags as u32);
        self
    }

    pub fn shared(self) -> Map {
        self.without(MAP_PRIVATE).with(MAP_SHARED)
    }

    pub fn private(self) -> Map {
        self.without(MAP_SHARED).with(MAP_PRIVATE)
    }

    /// With MAP_FIXED: what is there is replaced.
    pub fn replace(self) -> Map {
        self.without(MAP_FIXED_NOREPLACE).with(MAP_FIXED)
    }

    /// The address is a hint only.
    pub fn hint(self) -> Map {
        self.without(MAP_FIXED_NOREPLACE)
    }
}

/// One mapping of a space, as PROCMAP_QUERY tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    pub prot: i32,
    pub shared: bool,
    pub offset: u64,
    pub inode: u64,
    pub page_size: u64,
    pub name: String,
}

impl Mapping {
    /// As fdinfo has to show it.
    pub fn line(&self) -> String {
        let read = if self.prot & PROT_READ != 0 { 'r' } else { '-' };
        let write = if self.prot & PROT_WRITE != 0 {
            'w'
        } else {
            '-'
        };
        let shared = if self.shared { 's' } else { 'p' };
        let name = if self.name.is_empty() {
            "[anon]"
        } else {
            &self.name
        };
        let Mapping {
            start, end, offset, ..
        } = self;
        format!("{start:x}-{end:x} {read}{write}-{shared} {offset:x} {name}")
    }
}

#[derive(Debug)]
pub struct Space(OwnedFd);

impl AsRawFd for Space {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Space {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Space {
    fn from(fd: OwnedFd) -> Space {
        Space(fd)
    }
}

impl From<Space> for OwnedFd {
    fn from(space: Space) -> OwnedFd {
        space.0
    }
}

impl Space {
    pub fn new() -> Space {
        Space::create(ADDRESS_SPACE_CLOEXEC).expect("address_space_create")
    }

    pub fn create(flags: u32) -> Result<Space> {
        let fd = address_space_create(flags).map_err(errno)?;
        // SAFETY: The kernel just made it for us.
        Ok(Space(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub fn dup(&self) -> Space {
        Space(self.0.try_clone().expect("dup"))
    }

    pub fn map(&self, map: Map) -> Result<u64> {
        map_into(self.as_raw_fd(), map)
    }

    /// Maps where the caller says.
    #[track_caller]
    pub fn must_map(&self, map: Map) -> u64 {
        match self.map(map) {
            Ok(addr) => addr,
            Err(e) => panic!("{map:x?}: {e}"),
        }
    }

    pub fn unmap(&self, addr: u64, len: u64) -> Result<()> {
        address_space_munmap(self.as_raw_fd(), addr, len).map_err(errno)
    }

    pub fn read_at(&self, addr: u64, buffer: &mut [u8]) -> Result<usize> {
        nix::sys::uio::pread(self, buffer, addr as i64)
    }

    pub fn write_at(&self, addr: u64, bytes: &[u8]) -> Result<usize> {
        nix::sys::uio::pwrite(self, bytes, addr as i64)
    }

    pub fn readv_at(&self, addr: u64, buffers: &mut [IoSliceMut]) -> Result<usize> {
        nix::sys::uio::preadv(self, buffers, addr as i64)
    }

    /// Writes all of it.
    #[track_caller]
    pub fn put(&self, addr: u64, bytes: &[u8]) {
        assert_eq!(
            self.write_at(addr, bytes),
            Ok(bytes.len()),
            "pwrite at {addr:#x}"
        );
    }

    /// Reads all of it.
    #[track_caller]
    pub fn get(&self, addr: u64, len: u64) -> Vec<u8> {
        let mut buffer = vec![0; len as usize];
        assert_eq!(
            self.read_at(addr, &mut buffer),
            Ok(buffer.len()),
            "pread at {addr:#x}"
        );
        buffer
    }

    /// One byte.
    #[track_caller]
    pub fn byte(&self, addr: u64) -> u8 {
        self.get(addr, 1)[0]
    }

    pub fn seek(&self, offset: u64, whence: Whence) -> Result<u64> {
        nix::unistd::lseek(self, offset as i64, whence).map(|at| at as u64)
    }

    pub fn info(&self) -> address_space_info {
        let mut info = address_space_info::default();
        // SAFETY: The request fills in this struct.
        unsafe { ioctl(self.as_raw_fd(), ADDRESS_SPACE_IOC_INFO, &mut info) }.expect("INFO");
        info
    }

    /// Where the space ends.
    pub fn end(&self) -> u64 {
        self.info().len
    }

    pub fn fdinfo(&self) -> String {
        std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.as_raw_fd())).expect("fdinfo")
    }

    /// PROCMAP_QUERY with the given flags at `addr`.
    pub fn query(&self, addr: u64, flags: u64) -> Result<Mapping> {
        let mut name = [0u8; 512];
        let mut query = procmap_query {
            size: size_of::<procmap_query>() as u64,
            query_flags: flags,
            query_addr: addr,
            vma_name_size: size_of_val(&name) as u32,
            vma_name_addr: name.as_mut_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: The struct is what the request takes; the name's buffer is as long as it says.
        unsafe { ioctl(self.as_raw_fd(), PROCMAP_QUERY, &mut query) }.map_err(errno)?;
        let used = query.vma_name_size.saturating_sub(1) as usize;
        let has = |flag, prot| if query.vma_flags & flag != 0 { prot } else { 0 };
        Ok(Mapping {
            start: query.vma_start,
            end: query.vma_end,
            prot: has(PROCMAP_QUERY_VMA_READABLE, PROT_READ)
                | has(PROCMAP_QUERY_VMA_WRITABLE, PROT_WRITE)
                | has(PROCMAP_QUERY_VMA_EXECUTABLE, libc::PROT_EXEC),
            shared: query.vma_flags & PROCMAP_QUERY_VMA_SHARED != 0,
            offset: query.vma_offset,
            inode: query.inode,
            page_size: query.vma_page_size,
            name: String::from_utf8_lossy(&name[..used]).into_owned(),
        })
    }

    /// All mappings, in order. While others edit the space, neighbours that merge meanwhile may
    /// come twice.
    pub fn mappings(&self) -> Vec<Mapping> {
        let mut all: Vec<Mapping> = Vec::new();
        loop {
            let from = all.last().map_or(0, |m| m.end);
            match self.query(from, PROCMAP_QUERY_COVERING_OR_NEXT_VMA) {
                Ok(mapping) => {
                    assert!(mapping.end > from, "{mapping:x?} at {from:#x}");
                    all.push(mapping);
                }
                Err(Errno::ENOENT) => return all,
                Err(e) => panic!("PROCMAP_QUERY at {from:#x}: {e}"),
            }
        }
    }
}

/// `address_space_mmap` on whatever descriptor.
pub fn map_into(asfd: RawFd, mut map: Map) -> Result<u64> {
    // SAFETY: The size is that of the struct.
    unsafe { address_space_mmap(asfd, &mut map.0, size_of_val(&map.0)) }.map_err(errno)
}
