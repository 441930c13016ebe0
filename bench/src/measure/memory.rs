// SPDX-License-Identifier: GPL-2.0

//! The memory that is measured: memfds in each size of page, and where they are mapped.

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use anyhow::{ensure, Context, Result};
use nix::fcntl::{fallocate, FallocateFlags};
use nix::sys::memfd::{memfd_create, MFdFlags};
use nix::sys::mman::{mmap, mmap_anonymous, munmap, MapFlags, ProtFlags};

pub const PAGE: u64 = 4096;
pub const HUGE: u64 = 2 << 20;
pub const MIB: u64 = 1 << 20;

/// In which size of page a file has its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    Small,
    /// Transparent huge pages.
    Thp,
    Hugetlb,
}

impl Pages {
    pub const ALL: [Pages; 3] = [Pages::Small, Pages::Thp, Pages::Hugetlb];

    pub fn name(self) -> &'static str {
        match self {
            Pages::Small => "4K",
            Pages::Thp => "THP",
            Pages::Hugetlb => "hugetlb",
        }
    }

    /// A memfd without pages yet. Those that it gets later have this size.
    pub fn memfd(self, len: u64) -> Result<File> {
        const SHMEM: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
        // It is looked at when a page is allocated.
        let thp = if self == Pages::Thp {
            "always"
        } else {
            "never"
        };
        fs::write(SHMEM, thp).context(SHMEM)?;
        let flags = match self {
            Pages::Hugetlb => MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB,
            _ => MFdFlags::empty(),
        };
        let file = memfd_create(c"bench", flags | MFdFlags::MFD_CLOEXEC).context("memfd_create")?;
        let file = File::from(file);
        file.set_len(len).context("ftruncate")?;
        Ok(file)
    }

    /// A memfd with all of its pages, which have been written to.
    pub fn filled_memfd(self, len: u64) -> Result<File> {
        let file = self.memfd(len)?;
        fallocate(&file, FallocateFlags::empty(), 0, len as i64).context("fallocate")?;
        let area = Area::huge_aligned(&file, 0, len)?;
        area.write(PAGE);
        let huge = area.mapped_huge()?;
        let expected = if self == Pages::Thp { len } else { 0 };
        ensure!(
            huge == expected,
            "{huge} bytes of a memfd of {} are huge pages",
            self.name()
        );
        Ok(file)
    }
}

/// Has khugepaged leave the memory that is measured as it is.
pub fn stop_khugepaged() -> Result<()> {
    const SLEEP: &str = "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs";
    fs::write(SLEEP, u32::MAX.to_string()).context(SLEEP)
}

/// Addresses of this process, with something mapped there or kept free for it. They are given
/// back when dropped.
pub struct Area {
    start: NonNull<libc::c_void>,
    len: u64,
}

impl Area {
    /// Maps a file, or an asfd, from an offset on, shared, for reading and writing.
    pub fn of(file: impl AsFd, offset: u64, len: u64) -> Result<Area> {
        // SAFETY: A new mapping, where the kernel finds room.
        let start = unsafe {
            let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            mmap(
                None,
                size(len),
                prot,
                MapFlags::MAP_SHARED,
                file,
                offset as i64,
            )
        };
        let start = start.context("mmap")?;
        Ok(Area { start, len })
    }

    /// Addresses that nothing is mapped at, nor near them, for as long as nobody asks for these.
    pub fn free(len: u64) -> Result<Area> {
        const FAR_AWAY: NonZeroUsize = NonZeroUsize::new(1 << 44).expect("not 0");
        let (prot, flags) = (
            ProtFlags::PROT_NONE,
            MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE,
        );
        // SAFETY: A new mapping, where the kernel finds room.
        let start =
            unsafe { mmap_anonymous(Some(FAR_AWAY), size(len), prot, flags) }.context("mmap")?;
        // SAFETY: It was just made.
        unsafe { munmap(start, len as usize) }.context("munmap")?;
        Ok(Area { start, len })
    }

    /// Addresses, at a multiple of 2M, where nothing can be accessed and nobody else maps.
    pub fn reserve(len: u64) -> Result<Area> {
        let area = Area::free(len)?;
        area.replace_with_nothing(0, len)?;
        Ok(area)
    }

    /// Where part of it is, for a call that replaces what is mapped there.
    fn part(&self, at: u64, len: u64) -> Result<(Option<NonZeroUsize>, NonZeroUsize)> {
        ensure!(at + len <= self.len, "not in an area of {} bytes", self.len);
        let start = self.start() as usize + at as usize;
        Ok((NonZeroUsize::new(start), size(len)))
    }

    /// Maps a file, or an asfd, in place of part of it, shared, for reading and writing.
    pub fn replace(&self, at: u64, file: impl AsFd, offset: u64, len: u64) -> Result<()> {
        let (addr, len) = self.part(at, len)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        // SAFETY: What is replaced is ours, and nobody has references into it.
        unsafe { mmap(addr, len, prot, flags, file, offset as i64) }.context("mmap")?;
        Ok(())
    }

    /// Makes part of it inaccessible. The addresses stay ours.
    pub fn replace_with_nothing(&self, at: u64, len: u64) -> Result<()> {
        let (addr, len) = self.part(at, len)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED;
        // SAFETY: What is replaced is ours, and nobody has references into it.
        unsafe { mmap_anonymous(addr, len, ProtFlags::PROT_NONE, flags) }.context("mmap")?;
        Ok(())
    }

    /// Maps a file as [`Area::of`] does, at a multiple of 2M.
    pub fn huge_aligned(file: impl AsFd, offset: u64, len: u64) -> Result<Area> {
        let free = std::mem::ManuallyDrop::new(Area::free(len + HUGE)?);
        let aligned = (free.start() as usize).next_multiple_of(HUGE as usize);
        // SAFETY: A new mapping, where nothing is.
        let start = unsafe {
            let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED_NOREPLACE;
            let addr = NonZeroUsize::new(aligned);
            mmap(addr, size(len), prot, flags, file, offset as i64)
        };
        let start = start.context("mmap")?;
        Ok(Area { start, len })
    }

    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr().cast()
    }

    /// Writes bytes at its start.
    pub fn fill(&self, bytes: &[u8]) {
        assert!(bytes.len() as u64 <= self.len);
        // SAFETY: Within the mapping, which nobody has references into.
        unsafe { bytes.as_ptr().copy_to(self.start(), bytes.len()) }
    }

    /// How much of it is mapped by transparent huge pages.
    fn mapped_huge(&self) -> Result<u64> {
        let smaps = fs::read_to_string("/proc/self/smaps")?;
        let area = format!("{:08x}-", self.start.addr());
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&area));
        let line = lines.find_map(|line| line.strip_prefix("ShmemPmdMapped:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(number
            .context("no ShmemPmdMapped in /proc/self/smaps")?
            .parse::<u64>()?
            << 10)
    }

    /// Reads a word in each `step` bytes of it.
    pub fn read(&self, step: u64) {
        self.read_part(0, self.len, step);
    }

    /// Reads a word in each `step` bytes of `len` from `start` on.
    pub fn read_part(&self, start: u64, len: u64, step: u64) {
        assert!(start + len <= self.len);
        for at in (start..start + len).step_by(step as usize) {
            // SAFETY: Within the mapping; whatever is there is a number.
            unsafe { self.start().add(at as usize).cast::<u64>().read_volatile() };
        }
    }

    /// Writes a word in each `step` bytes of it.
    pub fn write(&self, step: u64) {
        for at in (0..self.len).step_by(step as usize) {
            // SAFETY: Within the mapping, which nobody has references into.
            unsafe {
                self.start()
                    .add(at as usize)
                    .cast::<u64>()
                    .write_volatile(at)
            };
        }
    }
}

// SAFETY: It is a range of addresses, which all threads have.
unsafe impl Send for Area {}
// SAFETY: As above; what is written there is read and written as numbers only.
unsafe impl Sync for Area {}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: It is ours, and nobody has references into it.
        let _ = unsafe { munmap(self.start, self.len as usize) };
    }
}

fn size(len: u64) -> NonZeroUsize {
    NonZeroUsize::new(len as usize).expect("a length")
}

/// "4K", "2M", "1G"
pub fn short(bytes: u64) -> String {
    let unit = (0..3)
        .rev()
        .find(|n| bytes >> (10 * (n + 1)) > 0 && bytes.is_multiple_of(1 << (10 * (n + 1))));
    match unit {
        Some(n) => format!("{}{}", bytes >> (10 * (n + 1)), ["K", "M", "G"][n]),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, expected) in [
            (PAGE, "4K"),
            (HUGE, "2M"),
            (1 << 30, "1G"),
            (3 << 29, "1536M"),
            (100, "100"),
        ] {
            assert_eq!(short(bytes), expected);
        }
    }
}
