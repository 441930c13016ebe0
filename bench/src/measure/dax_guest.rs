// SPDX-License-Identifier: GPL-2.0

//! A VM with a DAX window, and a guest that touches pages of it.

use std::collections::HashSet;
use std::fs::File;

use anyhow::{ensure, Context, Result};
use asfd::{AddressSpace, Window};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use super::memory::{Area, Pages, HUGE, PAGE};

/// What the guest has for a DAX window.
pub enum Dax {
    /// A window of a space.
    Window(AddressSpace),
    /// A memslot, as long as the window.
    Slot,
    /// A memslot for each file that is mapped.
    SlotEach,
}

impl Dax {
    pub const LEN: u64 = 1 << 30;
    const GPA: u64 = 1 << 30;
    const SLOT: u32 = 1;

    /// That of a file in [`Dax::SlotEach`].
    fn slot_at(at: u64) -> u32 {
        Dax::SLOT + (at / HUGE) as u32
    }
}

/// Where the code lies. It loads a word of each of ecx pages from esi on:
/// `1: mov eax,[esi]; add esi,4096; dec ecx; jnz 1b; hlt`
const CODE_GPA: u64 = 0;
const CODE: [u8; 12] = [
    0x8b, 0x06, 0x81, 0xc6, 0, 0x10, 0, 0, 0x49, 0x75, 0xf5, 0xf4,
];

pub struct Guest {
    dax: Dax,
    vcpu: VcpuFd,
    vm: VmFd,
    /// The VMM's mapping of the window, if it needs one.
    window: Area,
    /// Where there is one of [`Dax::SlotEach`].
    file_slots: HashSet<u64>,
    /// Guest memory: the code.
    _code: Area,
}

impl Guest {
    pub fn new(dax: Dax) -> Result<Guest> {
        let vm = Kvm::new()?.create_vm().context("KVM_CREATE_VM")?;
        let code = Area::of(Pages::Small.memfd(PAGE)?, 0, PAGE)?;
        code.fill(&CODE);
        let window = Area::reserve(Dax::LEN)?;
        let vcpu = vcpu(&vm)?;
        let guest = Guest {
            dax,
            vcpu,
            vm,
            window,
            file_slots: HashSet::new(),
            _code: code,
        };
        guest.set_slot(0, CODE_GPA, guest._code.start(), PAGE)?;
        match &guest.dax {
            Dax::Window(space) => space.map_into_vm(
                &guest.vm,
                &Window {
                    slot: Dax::SLOT,
                    guest_phys_addr: Dax::GPA,
                    size: Dax::LEN,
                    ..Window::default()
                },
            )?,
            Dax::Slot => guest.set_slot(Dax::SLOT, Dax::GPA, guest.window.start(), Dax::LEN)?,
            Dax::SlotEach => (),
        }
        Ok(guest)
    }

    /// A length of 0 deletes it.
    fn set_slot(&self, slot: u32, gpa: u64, at: *mut u8, len: u64) -> Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: gpa,
            memory_size: len,
            userspace_addr: at as u64,
        };
        // SAFETY: The areas stay as long as the VM, and nobody has references into them.
        unsafe { self.vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")
    }

    /// The VMM maps a file into the window, in place of what is there.
    pub fn map(&mut self, file: &File, offset: u64, at: u64, len: u64) -> Result<()> {
        self.delete_file_slot(at)?;
        self.window.replace(at, file, offset, len)?;
        if matches!(self.dax, Dax::SlotEach) {
            self.set_slot(Dax::slot_at(at), Dax::GPA + at, self.start(at), len)?;
            self.file_slots.insert(at);
        }
        Ok(())
    }

    /// The VMM unmaps it.
    pub fn unmap(&mut self, at: u64, len: u64) -> Result<()> {
        self.delete_file_slot(at)?;
        self.window.replace_with_nothing(at, len)
    }

    fn delete_file_slot(&mut self, at: u64) -> Result<()> {
        if self.file_slots.remove(&at) {
            self.set_slot(Dax::slot_at(at), Dax::GPA + at, self.start(at), 0)?;
        }
        Ok(())
    }

    fn start(&self, at: u64) -> *mut u8 {
        self.window.start().wrapping_add(at as usize)
    }

    /// The guest loads from each page of a range of the window.
    pub fn touch(&mut self, window_offset: u64, len: u64) -> Result<()> {
        let regs = kvm_regs {
            rip: CODE_GPA,
            rsi: Dax::GPA + window_offset,
            rcx: len / PAGE,
            rflags: 2,
            ..Default::default()
        };
        self.vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
        let exit = self.vcpu.run().context("KVM_RUN")?;
        ensure!(matches!(exit, VcpuExit::Hlt), "the guest ended: {exit:?}");
        Ok(())
    }
}

/// A vCPU with flat 32-bit segments and no paging: its addresses are guest-physical.
fn vcpu(vm: &VmFd) -> Result<VcpuFd> {
    let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    let flat = |type_, selector| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = flat(0xb, 8);
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
        *segment = flat(0x3, 16);
    }
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    Ok(vcpu)
}
