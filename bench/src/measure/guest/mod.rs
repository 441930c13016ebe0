// SPDX-License-Identifier: GPL-2.0

//! A small KVM guest: 64-bit code at CPL 0 with identity paging, so that its addresses are
//! guest-physical.
//!
//! Its code, its page tables and what it tells the host lie in a slot of their own, an ordinary
//! one but where that is measured. Else the two sides of a comparison differ in the slot with the
//! memory that is measured.

mod code;
pub mod holes;
mod memory;
pub mod replace;
mod running;
pub mod tables;
pub mod take;
pub mod touch;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU64;

use anyhow::{bail, ensure, Context, Result};
use asfd::{AddressSpace, CreateFlags, Window};
use kvm_bindings::{kvm_dtable, kvm_enable_cap, kvm_regs, kvm_segment, kvm_sregs};
use kvm_bindings::{KVM_CAP_DISABLE_QUIRKS2, KVM_MAX_CPUID_ENTRIES, KVM_X86_QUIRK_SLOT_ZAP_ALL};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use self::code::Code;
use super::memory::{Area, Pages, HUGE, PAGE};

/// The guest's own slot.
const OWN_LEN: u64 = HUGE;
const OWN_SLOT: u32 = 0;
const TABLES: u64 = 0x1000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const CODE: u64 = 0x6000;
/// A page for each vCPU, and its stack.
const WORDS: u64 = 0x1_0000;
const STACKS: u64 = 0x2_0000;

/// Where the memory that is measured begins; its slots have numbers from 1 on.
const MEASURED: u64 = 256 << 20;
/// Identity mapped, and no further.
const REACH: u64 = 1 << 30;

struct Guest {
    kvm: Kvm,
    vm: VmFd,
    own: Area,
}

impl Guest {
    /// Sees to it that KVM maps `len` bytes of the measured memory in pages of their size, and the
    /// guest's own in small ones or not.
    fn ensure_mapped(&self, pages: Pages, len: u64) -> Result<()> {
        let huge = self.huge_pages()?;
        let good = match pages {
            Pages::Small => huge == 0,
            _ => huge >= len / HUGE,
        };
        ensure!(good, "KVM maps {huge} huge pages, of {}", pages.name());
        Ok(())
    }

    fn huge_pages(&self) -> Result<u64> {
        let vm = format!("{}-{}", std::process::id(), self.vm.as_raw_fd());
        let path = format!("/sys/kernel/debug/kvm/{vm}/pages_2m");
        let text = std::fs::read_to_string(&path).with_context(|| path)?;
        Ok(text.trim().parse()?)
    }

    fn new() -> Result<Guest> {
        let guest = Guest::without_slot(&Pages::Small.filled_memfd(OWN_LEN)?)?;
        memory::set_slot(&guest.vm, OWN_SLOT, 0, OWN_LEN, &guest.own)?;
        Ok(guest)
    }

    /// One whose own slot is a window, on this space.
    fn in_window() -> Result<(Guest, AddressSpace)> {
        let file = Pages::Small.filled_memfd(OWN_LEN)?;
        let guest = Guest::without_slot(&file)?;
        let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
        space.map(&memory::rw(&file, OWN_LEN).at(0))?;
        let window = Window {
            slot: OWN_SLOT,
            size: OWN_LEN,
            ..Window::default()
        };
        space.map_into_vm(&guest.vm, &window)?;
        Ok((guest, space))
    }

    /// One that has its code and tables in a file, but no slot that shows it.
    fn without_slot(own: &File) -> Result<Guest> {
        let kvm = Kvm::new()?;
        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        let own = Area::huge_aligned(own, 0, OWN_LEN)?;
        let guest = Guest { kvm, vm, own };

        // Present, writable and, so that the CPU need not write that, accessed.
        const TABLE: u64 = 0x23;
        const LARGE: u64 = 0xe3;
        guest.write(TABLES, &[TABLES + PAGE + TABLE]);
        guest.write(TABLES + PAGE, &[TABLES + 2 * PAGE + TABLE]);
        let pages: Vec<u64> = (0..REACH)
            .step_by(HUGE as usize)
            .map(|at| at + LARGE)
            .collect();
        guest.write(TABLES + 2 * PAGE, &pages);

        // Of code, and of data; and a gate for page faults.
        guest.write(GDT, &[0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
        const PAGE_FAULT: u64 = 14;
        let handler = CODE + code::PAGE_FAULT_AT;
        let gate = [
            handler & 0xffff | 8 << 16 | 0x8e00 << 32 | handler >> 16 << 48,
            0,
        ];
        guest.write(IDT + PAGE_FAULT * 16, &gate);
        Ok(guest)
    }

    /// Has KVM drop the page tables of a slot that is deleted only, not those of the whole VM.
    fn keep_other_slots(&self) -> Result<()> {
        let mut cap = kvm_enable_cap {
            cap: KVM_CAP_DISABLE_QUIRKS2,
            ..Default::default()
        };
        cap.args[0] = KVM_X86_QUIRK_SLOT_ZAP_ALL.into();
        self.vm.enable_cap(&cap).context("KVM_CAP_DISABLE_QUIRKS2")
    }

    fn write(&self, at: u64, words: &[u64]) {
        for (n, word) in words.iter().enumerate() {
            self.word(at + 8 * n as u64)
                .store(*word, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// A word of the guest's own memory.
    fn word(&self, at: u64) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at < OWN_LEN);
        // SAFETY: It is in the area and aligned, and everybody uses it as an atomic.
        unsafe { AtomicU64::from_ptr(self.own.start().add(at as usize).cast()) }
    }

    /// Puts code where the vCPUs run it.
    fn load(&self, code: Code) {
        let words: Vec<u64> = code
            .bytes()
            .chunks(8)
            .map(|bytes| {
                let mut word = [0; 8];
                word[..bytes.len()].copy_from_slice(bytes);
                u64::from_le_bytes(word)
            })
            .collect();
        assert!(words.len() as u64 * 8 <= WORDS - CODE);
        self.write(CODE, &words);
    }

    fn vcpu(&self, id: u64) -> Result<Vcpu> {
        let fd = self.vm.create_vcpu(id).context("KVM_CREATE_VCPU")?;
        let cpuid = self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        fd.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;
        let mut sregs = fd.get_sregs().context("KVM_GET_SREGS")?;
        let flat = |type_, selector, l| kvm_segment {
            limit: u32::MAX,
            selector,
            type_,
            present: 1,
            db: 1 - l,
            l,
            s: 1,
            g: 1,
            ..Default::default()
        };
        sregs.cs = flat(0xb, 8, 1);
        for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
            *segment = flat(0x3, 16, 0);
        }
        sregs.gdt = kvm_dtable {
            base: GDT,
            limit: 3 * 8 - 1,
            ..Default::default()
        };
        sregs.idt = kvm_dtable {
            base: IDT,
            limit: 15 * 16 - 1,
            ..Default::default()
        };
        const PE_WP_PG: u64 = 1 | 1 << 16 | 1 << 31;
        const PAE: u64 = 1 << 5;
        const LME_LMA: u64 = 1 << 8 | 1 << 10;
        sregs.cr0 |= PE_WP_PG;
        sregs.cr3 = TABLES;
        sregs.cr4 |= PAE;
        sregs.efer |= LME_LMA;
        Ok(Vcpu { fd, id, sregs })
    }
}

struct Vcpu {
    fd: VcpuFd,
    id: u64,
    sregs: kvm_sregs,
}

impl Vcpu {
    /// The next run begins at the start of the code.
    fn start(&self, args: kvm_regs) -> Result<()> {
        self.fd.set_sregs(&self.sregs).context("KVM_SET_SREGS")?;
        let regs = kvm_regs {
            rip: CODE,
            rflags: 2,
            rsp: STACKS + (self.id + 1) * PAGE,
            ..args
        };
        self.fd.set_regs(&regs).context("KVM_SET_REGS")
    }

    /// Runs the code to its end, a HLT, with no other exit to userspace on the way.
    fn run(&mut self) -> Result<()> {
        match self.fd.run().context("KVM_RUN")? {
            VcpuExit::Hlt => Ok(()),
            other => bail!("{other:x?}"),
        }
    }
}

/// Whether KVM has nested paging, as the pass promises.
fn ensure_nested_paging(expected: bool) -> Result<()> {
    let npt = std::fs::read_to_string("/sys/module/kvm_amd/parameters/npt")?;
    ensure!(
        (npt.trim() == "Y" || npt.trim() == "1") == expected,
        "nested paging: {}",
        npt.trim()
    );
    Ok(())
}
