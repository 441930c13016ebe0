// SPDX-License-Identifier: GPL-2.0

//! A mirror: a space, or part of it, mapped into a process with `mmap(2)`.
//!
//! It is an area of page table entries by PFN, which faults copy from the page tables of the space;
//! [`crate::mirrors`] says why they are never out of date.
//!
//! # Faults
//!
//! First the page is looked up under the space's mmap lock. If it is not there, it is faulted in in
//! the space, as far as that does not wait. If it would wait, the fault gives up the lock of the
//! process, waits without it, and is tried again: an `munmap(2)` of the process, a change of the
//! space and a fatal signal do not wait for a slow file. Only a fault that may not give up its lock,
//! or that has waited in vain once before, waits with it.
//!
//! With its lock given up, a fault can no longer tell of errors: it finds them again when it is
//! tried again.

use core::ops::Range;
use kernel::{
    bindings::{self, asfd_page},
    fs::{mmap::VmaDesc, LocalFile},
    mm::{
        fault::{Fault, FaultCounts, Outcome, Unlocked, VmOperations, VmOps},
        memcg::ChargeTo,
        virt::{self, VmaRef},
        MmWithUser, MmapReadGuard,
    },
    page::{PAGE_SHIFT, PAGE_SIZE},
    prelude::*,
    sync::aref::ARef,
};

use crate::{
    file::Asfd,
    mirrors::{Mirrors, Settled},
    rights::Access,
    space::MM_BASE,
};

/// The operations of a mirror's area.
pub(crate) struct Mirror;

static OPERATIONS: VmOps<Mirror> = VmOps::new();

const AROUND: usize = bindings::ASFD_AROUND as usize;
const PMD_SIZE: usize = 1 << bindings::PMD_SHIFT;

/// How often a fault tries for a page that is gone again each time.
const PATIENCE: usize = 4;

/// `mmap(2)` of an asfd.
pub(crate) fn mmap(asfd: &Asfd, file: &LocalFile, desc: &mut VmaDesc) -> Result {
    use virt::flags::*;

    let flags = desc.flags();
    if flags & MAYSHARE == 0 {
        return Err(EINVAL);
    }
    if flags & EXEC != 0 {
        return Err(EPERM);
    }
    // A space never holds a space, whoever asks.
    if desc.mm().is_ownerless() {
        return Err(ELOOP);
    }

    // What a CPU can write it can read as well.
    let readable = asfd.ceiling.require(Access::Read);
    let writable = readable.and(asfd.ceiling.require(Access::Write));
    if flags & READ != 0 {
        readable?;
    }
    if flags & WRITE != 0 {
        writable?;
    }
    let mut never = MAYEXEC;
    if readable.is_err() {
        never |= MAYREAD;
    }
    if writable.is_err() {
        never |= MAYWRITE;
    }

    let offset = (desc.pgoff() as u64) << PAGE_SHIFT;
    let range = asfd.mm_range(offset, desc.len() as u64)?;
    // The file's tree of areas goes by the space's pages, whatever the view.
    desc.set_pgoff((range.start - MM_BASE) >> PAGE_SHIFT)?;
    asfd.owner.prepare_mirrors(file)?;

    desc.change_flags(never, PFNMAP | DONTEXPAND | DONTDUMP);
    desc.set_operations(&OPERATIONS);
    Ok(())
}

/// Where a mirror of an asfd is best placed.
pub(crate) fn unmapped_area(
    asfd: &Asfd,
    file: &LocalFile,
    addr: usize,
    len: usize,
    pgoff: usize,
    flags: usize,
) -> Result<usize> {
    // Huge pages lie at multiples of their size in the space, not in the view.
    let first = asfd.window.start() as usize >> PAGE_SHIFT;
    let pgoff = pgoff.checked_add(first).ok_or(EOVERFLOW)?;
    file.huge_unmapped_area(addr, len, pgoff, flags)
}

/// Is `vma` a mirror?
pub(crate) fn is_mirror(vma: &VmaRef) -> bool {
    OPERATIONS.serves(vma)
}

/// The space's mm behind some pages of a mirror and the address there, unless they are being
/// invalidated; see [`Mirrors::try_settled`].
pub(crate) fn settled_mm(
    vma: &VmaRef,
    addr: usize,
    nr_pages: usize,
) -> Option<(&MmWithUser, usize)> {
    let (asfd, mirrors) = behind(vma)?;
    let pgoff = vma.pgoff() + ((addr - vma.start()) >> PAGE_SHIFT);
    let start = mm_address(pgoff);
    mirrors.try_settled(start..start + nr_pages * PAGE_SIZE)?;
    Some((asfd.owner.mm(), start))
}

/// What a mirror shows.
fn behind(vma: &VmaRef) -> Option<(&Asfd, &Mirrors)> {
    let asfd = Asfd::from_file(vma.file()?)?;
    Some((asfd, asfd.owner.mirrors()?))
}

/// Where a page of the space lies in its mm.
fn mm_address(pgoff: usize) -> usize {
    (pgoff << PAGE_SHIFT) + MM_BASE
}

/// Does the mapping in the space permit the access?
fn permits(vma: &VmaRef, write: bool) -> bool {
    let needed = if write {
        virt::flags::WRITE
    } else {
        virt::flags::READ
    };
    vma.flags() & needed != 0
}

/// In which size a fault is to be served.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Size {
    Pages,
    Huge,
}

impl Size {
    /// The range around `addr` of which nothing must be invalidated meanwhile.
    fn around(self, addr: usize) -> Range<usize> {
        let size = match self {
            Size::Pages => AROUND * PAGE_SIZE,
            Size::Huge => PMD_SIZE,
        };
        let start = addr - addr % size;
        start..start + size
    }
}

/// What came of a look at the page tables of the space.
enum Look {
    /// It was there, and is installed, or the access will fault once more.
    Served,
    /// It is there, but not in that size.
    Small,
    /// It is not there, or not for writing.
    Absent,
}

/// Looks up the page of `fault`, which is at `addr` of the space's mm, in `area`, and installs it.
fn look(
    fault: &Fault<'_>,
    mirrors: &Mirrors,
    settled: &Settled,
    area: &VmaRef,
    addr: usize,
    size: Size,
) -> Look {
    let vmf = fault.as_raw();
    if size == Size::Huge {
        let mut page = asfd_page::default();
        // SAFETY: The area is locked, and the address in it.
        if !unsafe { bindings::asfd_look_huge(area.as_ptr(), addr, &mut page) } {
            return Look::Absent;
        }
        if !page.present {
            return Look::Small;
        }
        if fault.is_write() && !page.writable {
            return Look::Absent;
        }
        // SAFETY: The fault is locked, and its huge page within its area; the lock of the mirrors
        // is held.
        mirrors.install(settled, || unsafe {
            bindings::asfd_install_huge(vmf, &page)
        });
        return Look::Served;
    }

    let around = around(fault, area, addr);
    let first = fault.address() - (addr - around.start);
    let mut pages = [asfd_page::default(); AROUND];
    let nr = around.len() / PAGE_SIZE;
    // SAFETY: The area is locked, and the range in it and in one page table; there is room.
    let present = unsafe {
        bindings::asfd_look_around(
            area.as_ptr(),
            addr,
            around.start,
            nr as u32,
            pages.as_mut_ptr(),
        )
    };
    let page = pages[(addr - around.start) / PAGE_SIZE];
    if !present || fault.is_write() && !page.writable {
        return Look::Absent;
    }
    // SAFETY: The fault is locked, and the range within its area and in one page table; the lock
    // of the mirrors is held.
    mirrors.install(settled, || unsafe {
        bindings::asfd_install_pages(vmf, first, nr as u32, pages.as_ptr())
    });
    Look::Served
}

/// What is served along with `addr`: so much around it as lies in one page table, in the mirror as
/// in the space, and in both areas.
fn around(fault: &Fault<'_>, area: &VmaRef, addr: usize) -> Range<usize> {
    let vma = fault.vma();
    let here = fault.address();
    let window = AROUND * PAGE_SIZE;

    // How far it reaches below and above the page.
    let in_space = addr % window;
    let below = in_space
        .min(addr - area.start())
        .min(here - vma.start())
        .min(here % PMD_SIZE);
    let above = (window - in_space)
        .min(area.end() - addr)
        .min(vma.end() - here)
        .min(PMD_SIZE - here % PMD_SIZE);
    addr - below..addr + above
}

/// Serves `fault` from what the space has, or can have without waiting. [`None`] if it would wait,
/// be it for the end of an invalidation or for the space's mmap lock, which `lock` takes.
fn attempt<'a>(
    fault: &'a Fault<'_>,
    size: Size,
    lock: impl Fn(&'a MmWithUser) -> Option<MmapReadGuard<'a>>,
) -> Option<Outcome> {
    let addr = mm_address(fault.pgoff());
    let write = fault.is_write();
    let Some((asfd, mirrors)) = behind(fault.vma()) else {
        return Some(Outcome::SIGBUS);
    };
    let mut major = Outcome::NOTHING;

    for _ in 0..PATIENCE {
        let settled = mirrors.try_settled(size.around(addr))?;
        let guard = lock(asfd.owner.mm())?;
        let Some(area) = guard.vma_lookup(addr) else {
            return Some(Outcome::SIGBUS);
        };
        if !permits(area, write) {
            return Some(Outcome::SIGSEGV);
        }
        match look(fault, mirrors, &settled, area, addr, size) {
            Look::Served => return Some(Outcome::NOPAGE | major),
            Look::Small => return Some(Outcome::FALLBACK),
            Look::Absent => {}
        }

        let _charge = ChargeTo::new(asfd.owner.mm());
        let counts = FaultCounts::now();
        let there = guard.fault_in_nowait(addr, write);
        if counts.restore() {
            major = Outcome::MAJOR;
        }
        match there {
            // It may have been mapped elsewhere, so it has to be looked up.
            Ok(true) => {}
            Ok(false) | Err(EINTR) => return None,
            // Under pressure, for the moment perhaps: once more.
            Err(ENOMEM) if !fault.tried() => return None,
            Err(EHWPOISON) => return Some(Outcome::HWPOISON),
            // Past the end of the file, or no memory for it: nobody is killed to get some.
            Err(_) => return Some(Outcome::SIGBUS),
        }
    }
    // Others keep taking it away. Let the task repeat the access.
    Some(Outcome::NOPAGE | major)
}

/// Waits for the page at `addr` in the space. What came of it the next [`attempt`] finds out.
fn wait_for_page(asfd: &Asfd, addr: usize, write: bool, size: Size) -> Result {
    let mm = asfd.owner.mm();
    if let Some(mirrors) = asfd.owner.mirrors() {
        mirrors.wait_until_settled(size.around(addr));
    }
    let _charge = ChargeTo::new(mm);
    let counts = FaultCounts::now();
    let waited = match mm.mmap_read_lock_killable() {
        Ok(guard) => guard.fault_in(addr, PAGE_SIZE, write).map(drop),
        Err(err) => Err(err),
    };
    counts.restore();
    waited
}

/// Waits for the page of `fault` without its lock. Gives it back if it may not give up that.
fn wait_unlocked<'a>(fault: Fault<'a>, size: Size) -> Result<Outcome, Fault<'a>> {
    let addr = mm_address(fault.pgoff());
    let write = fault.is_write();
    let Some(file) = fault.vma().file() else {
        return Ok(Outcome::SIGBUS);
    };
    // From now on this, not the area, keeps the space.
    let file: ARef<LocalFile> = file.into();

    let unlocked = fault.unlock()?;
    if let Some(asfd) = Asfd::from_file(&file) {
        let _ = wait_for_page(asfd, addr, write, size);
    }
    Ok(unlocked.retry())
}

/// Serves `fault`, and waits with its lock held.
fn serve_locked(fault: Fault<'_>, size: Size) -> Outcome {
    let addr = mm_address(fault.pgoff());
    let mut waited = Ok(());
    for _ in 0..PATIENCE {
        let outcome = attempt(&fault, size, |mm| mm.mmap_read_lock_killable().ok());
        if let Some(outcome) = outcome {
            return outcome;
        }
        waited = match behind(fault.vma()) {
            Some((asfd, _)) => wait_for_page(asfd, addr, fault.is_write(), size),
            None => Ok(()),
        };
        if waited == Err(EINTR) {
            // The task is being killed.
            return fault.unlock().map_or(Outcome::SIGBUS, Unlocked::retry);
        }
    }
    // If it is there each time and then gone, let the task repeat the access.
    match waited {
        Ok(()) => Outcome::NOPAGE,
        Err(_) => Outcome::SIGBUS,
    }
}

fn serve(fault: Fault<'_>, size: Size) -> Outcome {
    if let Some(outcome) = attempt(&fault, size, |mm| mm.mmap_read_trylock()) {
        return outcome;
    }
    if let Some(outcome) = Outcome::would_wait(&fault) {
        return outcome;
    }
    if fault.tried() {
        return serve_locked(fault, size);
    }
    wait_unlocked(fault, size).unwrap_or_else(|fault| serve_locked(fault, size))
}

#[vtable]
impl VmOperations for Mirror {
    fn fault(fault: Fault<'_>) -> Outcome {
        serve(fault, Size::Pages)
    }

    fn huge_fault(fault: Fault<'_>, order: u32) -> Outcome {
        let start = fault.address() - fault.address() % PMD_SIZE;
        let vma = fault.vma();
        let fits = order == bindings::PMD_SHIFT - bindings::PAGE_SHIFT
            && (vma.start()..=vma.end() - PMD_SIZE.min(vma.end())).contains(&start)
            && mm_address(fault.pgoff()) % PMD_SIZE == fault.address() % PMD_SIZE;
        if fits {
            serve(fault, Size::Huge)
        } else {
            Outcome::FALLBACK
        }
    }

    fn map_pages(fault: &Fault<'_>, _pages: Range<usize>) -> Outcome {
        let addr = mm_address(fault.pgoff());
        let served = || {
            let (asfd, mirrors) = behind(fault.vma())?;
            let settled = mirrors.try_settled(Size::Pages.around(addr))?;
            let guard = asfd.owner.mm().mmap_read_trylock()?;
            let area = guard.vma_lookup(addr)?;
            // The locks of hugetlb sleep.
            if !permits(area, false) || area.flags() & virt::flags::HUGETLB != 0 {
                return None;
            }
            match look(fault, mirrors, &settled, area, addr, Size::Pages) {
                Look::Served => Some(()),
                _ => None,
            }
        };
        match served() {
            Some(()) => Outcome::NOPAGE,
            None => Outcome::NOTHING,
        }
    }

    fn pfn_mkwrite(fault: Fault<'_>) -> Outcome {
        serve(fault, Size::Pages)
    }
}
