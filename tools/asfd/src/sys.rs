// SPDX-License-Identifier: GPL-2.0

//! The kernel's interface to the letter: system calls, structs, flags and ioctl numbers.
//!
//! Names and spelling are those of `linux/address_space.h`, `linux/kvm.h` and `linux/fs.h`.
//! The numbers of the system calls are the next free ones after Linux 7.3.4's.
//!
//! Everything is declared here, also what the running kernel may not do yet: it answers an
//! unknown ioctl with `ENOTTY` and a missing system call with `ENOSYS`. Programs want the safe
//! types at the root of this crate; this module is for tests and for trying the kernel's checks.
//!
//! ```no_run
//! use asfd::sys::*;
//!
//! let asfd = address_space_create(ADDRESS_SPACE_CLOEXEC)?;
//! let mut args = address_space_mmap_args {
//!     len: 4096,
//!     fd: -1,
//!     prot: libc::PROT_READ as u32,
//!     flags: (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u32,
//!     ..Default::default()
//! };
//! // SAFETY: `args` is as long as the size that is passed.
//! let addr = unsafe { address_space_mmap(asfd, &mut args, size_of_val(&args)) }?;
//! address_space_munmap(asfd, addr, 4096)?;
//! # Ok::<(), std::io::Error>(())
//! ```

#![allow(non_camel_case_types)]

use std::io;
use std::os::fd::RawFd;

/// Number of `address_space_create(2)`.
pub const SYS_ADDRESS_SPACE_CREATE: libc::c_long = 473;
/// Number of `address_space_mmap(2)`.
pub const SYS_ADDRESS_SPACE_MMAP: libc::c_long = 474;
/// Number of `address_space_munmap(2)`.
pub const SYS_ADDRESS_SPACE_MUNMAP: libc::c_long = 475;

/// For `address_space_create` and views: set close-on-exec on the new descriptor.
pub const ADDRESS_SPACE_CLOEXEC: u32 = 1 << 0;

/// May call `address_space_mmap`.
pub const ADDRESS_SPACE_RIGHT_MAP: u32 = 1 << 0;
/// May call `address_space_munmap`, and map with `MAP_FIXED` over a mapping.
pub const ADDRESS_SPACE_RIGHT_UNMAP: u32 = 1 << 1;
/// May protect and advise.
pub const ADDRESS_SPACE_RIGHT_CHANGE: u32 = 1 << 2;
/// May seal.
pub const ADDRESS_SPACE_RIGHT_SEAL: u32 = 1 << 3;
/// May make further views.
pub const ADDRESS_SPACE_RIGHT_VIEW: u32 = 1 << 4;
/// May use [`PROCMAP_QUERY`], `SEEK_DATA` and `SEEK_HOLE`, and see the mappings in fdinfo.
pub const ADDRESS_SPACE_RIGHT_QUERY: u32 = 1 << 5;
/// May be passed to [`KVM_MAP_ADDRESS_SPACE`].
pub const ADDRESS_SPACE_RIGHT_KVM: u32 = 1 << 6;

/// Nothing more is mapped into the space.
pub const ADDRESS_SPACE_SEAL_MAP: u32 = 1 << 0;
/// Nothing more is unmapped from the space.
pub const ADDRESS_SPACE_SEAL_UNMAP: u32 = 1 << 1;
/// Mappings are no longer protected or advised.
pub const ADDRESS_SPACE_SEAL_CHANGE: u32 = 1 << 2;
/// No more seals are added.
pub const ADDRESS_SPACE_SEAL_SEAL: u32 = 1 << 3;

/// What `address_space_mmap` maps and where.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct address_space_mmap_args {
    /// Byte offset in the space; a hint unless `MAP_FIXED*`.
    pub addr: u64,
    /// Bytes, rounded up to whole pages.
    pub len: u64,
    /// Byte offset in `fd`, page aligned.
    pub offset: u64,
    /// -1 with `MAP_ANONYMOUS`.
    pub fd: i32,
    /// `PROT_*`.
    pub prot: u32,
    /// `MAP_*`.
    pub flags: u32,
    /// Must be 0.
    pub __reserved: u32,
}

/// Answer of [`ADDRESS_SPACE_IOC_INFO`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct address_space_info {
    /// Unique while the machine is up.
    pub id: u64,
    /// Start of this descriptor's window.
    pub addr: u64,
    /// Length of this descriptor's window.
    pub len: u64,
    /// Mappings in the window.
    pub mappings: u64,
    /// Bytes mapped in the window.
    pub mapped_bytes: u64,
    /// Bytes of the window present in the space's page tables.
    pub resident_bytes: u64,
    /// Mirrors of the whole space.
    pub mirrors: u64,
    /// KVM windows on the whole space.
    pub windows: u64,
    /// `ADDRESS_SPACE_RIGHT_*` of this descriptor.
    pub rights: u32,
    /// `PROT_*` ceiling of this descriptor.
    pub prot: u32,
    /// `ADDRESS_SPACE_SEAL_*` of the space.
    pub seals: u32,
    /// 0.
    pub __reserved: u32,
}

/// Argument of [`ADDRESS_SPACE_IOC_PROTECT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct address_space_protect {
    /// Start of the range.
    pub addr: u64,
    /// Length of the range.
    pub len: u64,
    /// `PROT_*`.
    pub prot: u32,
    /// Must be 0.
    pub __reserved: u32,
}

/// Argument of [`ADDRESS_SPACE_IOC_ADVISE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct address_space_advise {
    /// Start of the range.
    pub addr: u64,
    /// Length of the range.
    pub len: u64,
    /// `MADV_*`.
    pub advice: u32,
    /// Must be 0.
    pub __reserved: u32,
}

/// Argument of [`ADDRESS_SPACE_IOC_VIEW`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct address_space_view {
    /// Start of the view's window.
    pub addr: u64,
    /// Length of the view's window.
    pub len: u64,
    /// `PROT_*` ceiling.
    pub prot: u32,
    /// `ADDRESS_SPACE_RIGHT_*`.
    pub rights: u32,
    /// [`ADDRESS_SPACE_CLOEXEC`].
    pub flags: u32,
    /// Must be 0.
    pub __reserved: u32,
}

/// Argument of [`KVM_MAP_ADDRESS_SPACE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct kvm_map_address_space {
    /// As in `KVM_SET_USER_MEMORY_REGION`.
    pub slot: u32,
    /// `KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY | KVM_MEM_HOLE_EXIT`.
    pub flags: u32,
    /// Where the window lies in the guest.
    pub guest_phys_addr: u64,
    /// Length of the window; 0 deletes the slot.
    pub memory_size: u64,
    /// Where `guest_phys_addr` lies in the space.
    pub offset: u64,
    /// The space; not looked at when the slot is deleted.
    pub asfd: i32,
    /// Must be 0.
    pub pad1: u32,
    /// Must be 0.
    pub pad2: [u64; 11],
}

/// Argument and answer of [`PROCMAP_QUERY`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct procmap_query {
    /// Size of this struct.
    pub size: u64,
    /// In: `PROCMAP_QUERY_*`.
    pub query_flags: u64,
    /// In: where to look.
    pub query_addr: u64,
    /// Out: start of the mapping.
    pub vma_start: u64,
    /// Out: end of the mapping, exclusive.
    pub vma_end: u64,
    /// Out: `PROCMAP_QUERY_VMA_*`.
    pub vma_flags: u64,
    /// Out: size of the pages that back the mapping.
    pub vma_page_size: u64,
    /// Out: offset of `vma_start` in the file, 0 without a file.
    pub vma_offset: u64,
    /// Out: inode number of the file, 0 without a file.
    pub inode: u64,
    /// Out: device of the file.
    pub dev_major: u32,
    /// Out: device of the file.
    pub dev_minor: u32,
    /// In: room at `vma_name_addr`; out: bytes used, the final NUL included.
    pub vma_name_size: u32,
    /// In: room at `build_id_addr`; out: bytes used.
    pub build_id_size: u32,
    /// In: where the name goes, 0 for none.
    pub vma_name_addr: u64,
    /// In: where the build ID goes, 0 for none.
    pub build_id_addr: u64,
}

/// Select, or answer: the mapping can be read.
pub const PROCMAP_QUERY_VMA_READABLE: u64 = 0x01;
/// Select, or answer: the mapping can be written.
pub const PROCMAP_QUERY_VMA_WRITABLE: u64 = 0x02;
/// Select, or answer: the mapping can be executed.
pub const PROCMAP_QUERY_VMA_EXECUTABLE: u64 = 0x04;
/// Select, or answer: the mapping is shared.
pub const PROCMAP_QUERY_VMA_SHARED: u64 = 0x08;
/// Without a mapping at the address, the next one answers.
pub const PROCMAP_QUERY_COVERING_OR_NEXT_VMA: u64 = 0x10;
/// Only mappings of files.
pub const PROCMAP_QUERY_FILE_BACKED_VMA: u64 = 0x20;

/// `KVM_CHECK_EXTENSION` answers 1 where [`KVM_MAP_ADDRESS_SPACE`] exists.
pub const KVM_CAP_ADDRESS_SPACE: u32 = 252;
/// Log the guest's writes.
pub const KVM_MEM_LOG_DIRTY_PAGES: u32 = 1 << 0;
/// The guest cannot write; writes are MMIO exits.
pub const KVM_MEM_READONLY: u32 = 1 << 1;
/// Windows only: holes are `KVM_EXIT_MEMORY_FAULT`, not MMIO exits.
pub const KVM_MEM_HOLE_EXIT: u32 = 1 << 3;

/// Type byte of the ioctls of an asfd.
pub const ADDRESS_SPACE_IOC_MAGIC: u32 = 0xB9;
const PROCFS_IOCTL_MAGIC: u32 = b'f' as u32;
const KVMIO: u32 = 0xAE;

const WRITE: u32 = 1;
const READ: u32 = 2;

/// `_IOC` of `asm-generic/ioctl.h`.
const fn ioc<T>(dir: u32, ty: u32, nr: u32) -> u32 {
    (dir << 30) | ((size_of::<T>() as u32) << 16) | (ty << 8) | nr
}

/// Fill in [`address_space_info`].
pub const ADDRESS_SPACE_IOC_INFO: u32 =
    ioc::<address_space_info>(READ, ADDRESS_SPACE_IOC_MAGIC, 0x00);
/// Change the protection of a range, [`address_space_protect`].
pub const ADDRESS_SPACE_IOC_PROTECT: u32 =
    ioc::<address_space_protect>(WRITE, ADDRESS_SPACE_IOC_MAGIC, 0x01);
/// Give advice on a range, [`address_space_advise`].
pub const ADDRESS_SPACE_IOC_ADVISE: u32 =
    ioc::<address_space_advise>(WRITE, ADDRESS_SPACE_IOC_MAGIC, 0x02);
/// Add seals, a `u32` of `ADDRESS_SPACE_SEAL_*`.
pub const ADDRESS_SPACE_IOC_SEAL: u32 = ioc::<u32>(WRITE, ADDRESS_SPACE_IOC_MAGIC, 0x03);
/// Make a view, [`address_space_view`]; the result is a new descriptor.
pub const ADDRESS_SPACE_IOC_VIEW: u32 =
    ioc::<address_space_view>(WRITE, ADDRESS_SPACE_IOC_MAGIC, 0x04);
/// Find a mapping, [`procmap_query`].
pub const PROCMAP_QUERY: u32 = ioc::<procmap_query>(READ | WRITE, PROCFS_IOCTL_MAGIC, 17);
/// On a KVM VM: make, move or delete a window, [`kvm_map_address_space`].
pub const KVM_MAP_ADDRESS_SPACE: u32 = ioc::<kvm_map_address_space>(WRITE, KVMIO, 0xd7);

fn result(ret: libc::c_long) -> io::Result<libc::c_long> {
    if ret == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

/// `int address_space_create(unsigned int flags)`.
pub fn address_space_create(flags: u32) -> io::Result<RawFd> {
    // SAFETY: The call takes no pointer; a kernel without it answers ENOSYS.
    let ret = unsafe { libc::syscall(SYS_ADDRESS_SPACE_CREATE, flags) };
    result(ret).map(|fd| fd as RawFd)
}

/// `long address_space_mmap(int asfd, struct address_space_mmap_args *args, size_t size)`.
///
/// # Safety
///
/// `args` must be null, or an address where nothing is mapped, or valid for reads and writes of
/// `size` bytes. (The kernel checks user addresses itself: the first two are `EFAULT`.)
pub unsafe fn address_space_mmap(
    asfd: RawFd,
    args: *mut address_space_mmap_args,
    size: usize,
) -> io::Result<u64> {
    // SAFETY: By the caller's promise the kernel touches only what it may.
    let ret = unsafe { libc::syscall(SYS_ADDRESS_SPACE_MMAP, asfd, args, size) };
    result(ret).map(|addr| addr as u64)
}

/// `int address_space_munmap(int asfd, unsigned long addr, size_t len)`.
pub fn address_space_munmap(asfd: RawFd, addr: u64, len: u64) -> io::Result<()> {
    // SAFETY: The call takes no pointer: the range lies in the space, not in this process.
    let ret = unsafe { libc::syscall(SYS_ADDRESS_SPACE_MUNMAP, asfd, addr, len) };
    result(ret).map(drop)
}

/// `ioctl(fd, request, arg)`, for the requests of this module.
///
/// # Safety
///
/// `arg` must be what `request` takes, valid for reads and writes, or an address where nothing
/// is mapped (`EFAULT`). Addresses inside the struct must be valid as well.
pub unsafe fn ioctl<T>(fd: RawFd, request: u32, arg: *mut T) -> io::Result<libc::c_int> {
    // SAFETY: By the caller's promise.
    let ret = unsafe { libc::ioctl(fd, request as libc::Ioctl, arg) };
    result(ret.into()).map(|ret| ret as libc::c_int)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{align_of, offset_of};

    #[test]
    fn sizes() {
        assert_eq!(size_of::<address_space_mmap_args>(), 40);
        assert_eq!(size_of::<address_space_info>(), 80);
        assert_eq!(size_of::<address_space_protect>(), 24);
        assert_eq!(size_of::<address_space_advise>(), 24);
        assert_eq!(size_of::<address_space_view>(), 32);
        assert_eq!(size_of::<kvm_map_address_space>(), 128);
        assert_eq!(size_of::<procmap_query>(), 104);
        assert_eq!(align_of::<address_space_mmap_args>(), 8);
    }

    #[test]
    fn offsets() {
        assert_eq!(offset_of!(address_space_mmap_args, offset), 16);
        assert_eq!(offset_of!(address_space_mmap_args, fd), 24);
        assert_eq!(offset_of!(address_space_mmap_args, flags), 32);
        assert_eq!(offset_of!(address_space_mmap_args, __reserved), 36);
        assert_eq!(offset_of!(address_space_info, resident_bytes), 40);
        assert_eq!(offset_of!(address_space_info, rights), 64);
        assert_eq!(offset_of!(address_space_info, seals), 72);
        assert_eq!(offset_of!(address_space_view, rights), 20);
        assert_eq!(offset_of!(kvm_map_address_space, offset), 24);
        assert_eq!(offset_of!(kvm_map_address_space, asfd), 32);
        assert_eq!(offset_of!(kvm_map_address_space, pad2), 40);
        assert_eq!(offset_of!(procmap_query, vma_flags), 40);
        assert_eq!(offset_of!(procmap_query, dev_major), 72);
        assert_eq!(offset_of!(procmap_query, vma_name_size), 80);
        assert_eq!(offset_of!(procmap_query, build_id_addr), 96);
    }

    // The values the C headers give.
    #[test]
    fn ioctl_numbers() {
        assert_eq!(ADDRESS_SPACE_IOC_INFO, 0x8050_b900);
        assert_eq!(ADDRESS_SPACE_IOC_PROTECT, 0x4018_b901);
        assert_eq!(ADDRESS_SPACE_IOC_ADVISE, 0x4018_b902);
        assert_eq!(ADDRESS_SPACE_IOC_SEAL, 0x4004_b903);
        assert_eq!(ADDRESS_SPACE_IOC_VIEW, 0x4020_b904);
        assert_eq!(PROCMAP_QUERY, 0xc068_6611);
        assert_eq!(KVM_MAP_ADDRESS_SPACE, 0x4080_aed7);
    }

    // PROCMAP_QUERY is the one request that kernels without spaces answer, too.
    #[test]
    fn procmap_query_of_this_process() {
        use std::os::fd::AsRawFd;

        let maps = std::fs::File::open("/proc/self/maps").unwrap();
        let here = &maps as *const _ as u64;
        let mut query = procmap_query {
            size: size_of::<procmap_query>() as u64,
            query_addr: here,
            ..Default::default()
        };
        // SAFETY: `query` is what the request takes and holds no addresses.
        match unsafe { ioctl(maps.as_raw_fd(), PROCMAP_QUERY, &mut query) } {
            Ok(_) => assert!((query.vma_start..query.vma_end).contains(&here)),
            // Older kernels, and sandboxes.
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ENOTTY)),
        }
    }

    #[test]
    fn a_wrong_descriptor_is_refused() {
        let refused = |e: io::Error| {
            let errno = e.raw_os_error();
            assert!(
                matches!(errno, Some(libc::ENOSYS | libc::EBADF)),
                "{errno:?}"
            );
        };
        let mut args = address_space_mmap_args::default();
        // SAFETY: `args` is as long as the size that is passed.
        refused(unsafe { address_space_mmap(-1, &mut args, size_of_val(&args)) }.unwrap_err());
        refused(address_space_munmap(-1, 0, 4096).unwrap_err());
    }
}
