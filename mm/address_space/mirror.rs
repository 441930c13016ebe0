// SPDX-License-Identifier: GPL-2.0

//! A mirror: a space, or part of it, mapped into a process with `mmap(2)`.
//!
//! It is an area of page table entries by PFN, which faults copy from the page tables of the space;
//! [`crate::mirrors`] says why they are never out of date.
//!
//! # Faults
//!
//! First the page is looked up under the space's mmap lock. If it is not there, but in the page
//! cache of its file, it is mapped in the space with what is there around it; else it is faulted in
//! in the space, as far as that does not wait. What follows is served along with it if the fault is
//! a step of a pass over the mirror.
//! If it would wait, the fault gives up the lock of the
//! process, waits without it, and is tried again: an `munmap(2)` of the process, a change of the
//! space and a fatal signal do not wait for a slow file. Only a fault that may not give up its lock,
//! or that has waited in vain once before, waits with it.
//!
//! With its lock given up, a fault can no longer tell of errors: it finds them again when it is
//! tried again.

use core::{mem::MaybeUninit, ops::Range, slice};
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
const AHEAD: usize = bindings::ASFD_AHEAD as usize;
const LOOK: usize = bindings::ASFD_LOOK as usize;
const WRITABLE: usize = bindings::ASFD_PAGE_WRITABLE as usize;
const AHEAD_HUGE: usize = bindings::ASFD_AHEAD_HUGE as usize;
const PMD_SIZE: usize = bindings::ASFD_PMD_SIZE;
const PUD_SIZE: usize = bindings::ASFD_PUD_SIZE;
const PMD_ORDER: u32 = (PMD_SIZE / PAGE_SIZE).ilog2();

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
    /// How many bytes are looked at together.
    fn unit(self) -> usize {
        match self {
            Size::Pages => AROUND * PAGE_SIZE,
            Size::Huge => PMD_SIZE,
        }
    }

    /// How many more a step of a pass over the mirror is served.
    fn ahead(self) -> usize {
        match self {
            Size::Pages => AHEAD * PAGE_SIZE,
            Size::Huge => AHEAD_HUGE * PMD_SIZE,
        }
    }

    /// How many bytes one table of entries of this size maps.
    fn table(self) -> usize {
        match self {
            Size::Pages => PMD_SIZE,
            Size::Huge => PUD_SIZE,
        }
    }

    /// The unit that `addr` is in.
    fn around(self, addr: usize) -> Range<usize> {
        let start = addr - addr % self.unit();
        start..start + self.unit()
    }
}

/// What came of a look at the page tables of the space.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// It was there, and is installed.
    Served,
    /// It is there, but not in that size.
    Small,
    /// It is not there, or not for writing.
    Absent,
    /// It was there, and was taken away meanwhile, as may be what else was seen.
    Stale,
}

impl Look {
    fn installed(installed: bool) -> Self {
        match installed {
            true => Look::Served,
            false => Look::Stale,
        }
    }
}

/// A fault, and what it is served from. The area is locked, and permits the access.
struct Service<'a> {
    fault: &'a Fault<'a>,
    mirrors: &'a Mirrors,
    area: &'a VmaRef,
    size: Size,
    /// The page in the space's mm.
    page: usize,
    /// Where the page, or the huge page that it is in, begins in the mirror and in the space's mm.
    here: usize,
    addr: usize,
}

impl Service<'_> {
    /// Serves the unit of the fault, if its page can be had without waiting. [`EAGAIN`] if not.
    fn serve(&self, guard: &MmapReadGuard<'_>, settled: &Settled) -> Result<Look> {
        let unit = self.size.around(self.addr);
        if self.size == Size::Huge && !self.has_all(&unit) {
            return Ok(Look::Small);
        }
        let unit = self.clip(unit);
        let mut found = self.look(settled, self.page, &unit);
        let mut mapped = false;
        if found == Look::Absent {
            mapped = self.map_cached(self.page, unit.clone());
            if mapped {
                found = self.look(settled, self.page, &unit);
            }
        }
        if found == Look::Served && self.is_pass() {
            self.serve_ahead(mapped);
        }
        if found != Look::Absent {
            return Ok(found);
        }
        if !guard.fault_in_nowait(self.area, self.page, self.fault.is_write())? {
            return Err(EAGAIN);
        }
        // What is not in the page cache is not there around the page either.
        let part = match self.size {
            Size::Pages => self.page..self.page + PAGE_SIZE,
            Size::Huge => unit,
        };
        Ok(self.look(settled, self.page, &part))
    }

    /// Has the area all of `range`?
    fn has_all(&self, range: &Range<usize>) -> bool {
        self.area.start() <= range.start && range.end <= self.area.end()
    }

    /// As much of `range` as lies in both areas and, here and there, in one table with the page.
    fn clip(&self, range: Range<usize>) -> Range<usize> {
        let (addr, here, table) = (self.addr, self.here, self.size.table());
        let vma = self.fault.vma();

        // How far it reaches below and above the page.
        let below = (addr - self.area.start())
            .min(here - vma.start())
            .min(addr % table)
            .min(here % table);
        let above = (self.area.end() - addr)
            .min(vma.end() - here)
            .min(table - addr % table)
            .min(table - here % table);
        range.start.max(addr - below)..range.end.min(addr + above)
    }

    /// Is the fault a step of a pass over the mirror? The unit before this one has then been
    /// served, and the next one has not.
    fn is_pass(&self) -> bool {
        let unit = self.size.around(self.addr);
        let clipped = self.clip(unit.start.saturating_sub(PAGE_SIZE)..unit.end + PAGE_SIZE);
        clipped.start < unit.start
            && unit.end < clipped.end
            && self.is_mapped(clipped.start)
            && !self.is_mapped(unit.end)
    }

    /// Is the page at `addr` there in the mirror? It is in one table with that of the fault.
    fn is_mapped(&self, addr: usize) -> bool {
        let (vmf, here) = (self.fault.as_raw(), self.here_of(addr));
        match self.size {
            // SAFETY: The fault is valid, and the address in the table of the one that faulted.
            Size::Pages => unsafe { bindings::asfd_is_mapped(vmf, here) },
            // SAFETY: As above.
            Size::Huge => unsafe { bindings::asfd_is_mapped_huge(vmf, here) },
        }
    }

    /// Serves what follows the unit of the fault, as far as it is there; or is in the page cache
    /// only, as the page of the fault was.
    fn serve_ahead(&self, map: bool) {
        let start = self.size.around(self.addr).end;
        let Some(settled) = self.mirrors.try_settled(start..start + self.size.ahead()) else {
            return;
        };
        let ahead = self.clip(settled.range().clone());
        let step = match self.size {
            Size::Pages => LOOK * PAGE_SIZE,
            Size::Huge => PMD_SIZE,
        };
        for start in ahead.clone().step_by(step) {
            let part = start..(start + step).min(ahead.end);
            if self.size == Size::Huge && part.len() < step {
                return;
            }
            if map {
                self.map_cached(start, part.clone());
            }
            if self.look(&settled, start, &part) != Look::Served {
                return;
            }
        }
    }

    fn look(&self, settled: &Settled, addr: usize, part: &Range<usize>) -> Look {
        match self.size {
            Size::Pages => self.look_around(settled, addr, part),
            Size::Huge => self.look_huge(settled, addr, part.start),
        }
    }

    /// Does the page at `addr` have to be writable?
    fn writes(&self, addr: usize) -> bool {
        self.fault.is_write() && addr == self.page
    }

    /// Where an address of the space's mm lies in the mirror.
    fn here_of(&self, addr: usize) -> usize {
        self.here + addr - self.addr
    }

    fn look_huge(&self, settled: &Settled, addr: usize, start: usize) -> Look {
        let mut page = asfd_page::default();
        // SAFETY: The area is locked, and the address in it.
        if !unsafe { bindings::asfd_look_huge(self.area.as_ptr(), addr, &mut page) } {
            return Look::Absent;
        }
        if page.entry == 0 {
            return Look::Small;
        }
        if self.writes(addr) && page.entry & WRITABLE == 0 {
            return Look::Absent;
        }
        let (vmf, here) = (self.fault.as_raw(), self.here_of(start));
        // SAFETY: The fault is locked, and the huge page within its area and in one table with it;
        // the lock of the mirrors is held.
        let installed = self.mirrors.install(settled, || unsafe {
            bindings::asfd_install_huge(vmf, here, &page)
        });
        Look::installed(installed)
    }

    fn look_around(&self, settled: &Settled, addr: usize, part: &Range<usize>) -> Look {
        let mut pages = [const { MaybeUninit::<asfd_page>::uninit() }; LOOK];
        let nr = (part.len() / PAGE_SIZE).min(LOOK);
        // SAFETY: The area is locked, and the range in it and in one page table; there is room.
        let present = unsafe {
            let pages = pages.as_mut_ptr().cast();
            bindings::asfd_look_around(self.area.as_ptr(), addr, part.start, nr as u32, pages)
        };
        if !present {
            return Look::Absent;
        }
        // SAFETY: The first `nr` of them were filled in.
        let pages = unsafe { slice::from_raw_parts(pages.as_ptr().cast::<asfd_page>(), nr) };
        let page = pages[(addr - part.start) / PAGE_SIZE];
        if page.entry == 0 || self.writes(addr) && page.entry & WRITABLE == 0 {
            return Look::Absent;
        }
        let (vmf, here) = (self.fault.as_raw(), self.here_of(part.start));
        // SAFETY: The fault is locked, and the range within its area and in one page table with
        // it; the lock of the mirrors is held.
        let installed = self.mirrors.install(settled, || unsafe {
            bindings::asfd_install_pages(vmf, here, nr as u32, pages.as_ptr())
        });
        Look::installed(installed)
    }

    /// Maps in the space what the file has in its page cache of `range`, or of the huge page at its
    /// start. Returns whether the page at `addr` is mapped now, and in that size.
    fn map_cached(&self, addr: usize, range: Range<usize>) -> bool {
        let (len, order) = match self.size {
            Size::Pages => (range.len(), 0),
            Size::Huge => (PMD_SIZE, PMD_ORDER),
        };
        // SAFETY: The area is locked, by a lock that may be held while sleeping, and the pages are
        // in it and in one page table.
        unsafe {
            bindings::asfd_map_cached(
                self.area.as_ptr(),
                addr,
                range.start,
                (len / PAGE_SIZE) as u32,
                self.fault.is_write(),
                order,
            )
        }
    }
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
        let within = match size {
            Size::Pages => 0,
            Size::Huge => addr % PMD_SIZE,
        };
        let service = Service {
            fault,
            mirrors,
            area,
            size,
            page: addr,
            here: fault.address() - within,
            addr: addr - within,
        };
        let _charge = ChargeTo::new(asfd.owner.mm());
        let counts = FaultCounts::now();
        let served = service.serve(&guard, &settled);
        if counts.restore() {
            major = Outcome::MAJOR;
        }
        match served {
            Ok(Look::Served) => return Some(Outcome::NOPAGE | major),
            Ok(Look::Small) => return Some(Outcome::FALLBACK),
            Ok(Look::Absent | Look::Stale) => {}
            Err(EAGAIN) | Err(EINTR) => return None,
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
        let fits = order == PMD_ORDER
            && (vma.start()..=vma.end() - PMD_SIZE.min(vma.end())).contains(&start)
            && mm_address(fault.pgoff()) % PMD_SIZE == fault.address() % PMD_SIZE;
        if fits {
            serve(fault, Size::Huge)
        } else {
            Outcome::FALLBACK
        }
    }

    /// `fault` does it. But an area without this would have each fault take the mmap lock.
    fn map_pages(_fault: &Fault<'_>, _pages: Range<usize>) -> Outcome {
        Outcome::NOTHING
    }

    fn pfn_mkwrite(fault: Fault<'_>) -> Outcome {
        serve(fault, Size::Pages)
    }
}
