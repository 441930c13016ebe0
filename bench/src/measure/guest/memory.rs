// SPDX-License-Identifier: GPL-2.0

//! The memory that is measured: part of a space, or of this process.

use std::fs::File;

use anyhow::{Context, Result};
use asfd::{AddressSpace, CreateFlags, Mapping, Prot, Window};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

use super::{Guest, MEASURED};
use crate::measure::memory::Area;

/// The slot that the measured memory is in, from [`MEASURED`] on.
pub const SLOT: u32 = 1;

/// An ordinary memslot on memory of this process.
pub fn set_slot(vm: &VmFd, slot: u32, guest_phys_addr: u64, len: u64, area: &Area) -> Result<()> {
    let region = kvm_userspace_memory_region {
        slot,
        guest_phys_addr,
        memory_size: len,
        userspace_addr: area.start() as u64,
        flags: 0,
    };
    // SAFETY: The guest may use this memory as it likes: here everybody takes it for numbers, that
    // change at any time. Where it is unmapped before the slot is gone, accesses fail.
    unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")
}

pub fn delete_slot(vm: &VmFd, slot: u32) -> Result<()> {
    let region = kvm_userspace_memory_region {
        slot,
        ..Default::default()
    };
    // SAFETY: No memory is given.
    unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")
}

/// A space that a file is mapped into from its start, and a window on that.
pub fn window(guest: &Guest, file: &File, len: u64) -> Result<AddressSpace> {
    let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    space.map(&rw(file, len).at(0))?;
    window_on(guest, &space, len)?;
    Ok(space)
}

/// A window on a space from its start on.
pub fn window_on(guest: &Guest, space: &AddressSpace, len: u64) -> Result<()> {
    let window = Window {
        slot: SLOT,
        guest_phys_addr: MEASURED,
        size: len,
        ..Window::default()
    };
    Ok(space.map_into_vm(&guest.vm, &window)?)
}

pub fn rw(file: &File, len: u64) -> Mapping<'_> {
    Mapping::file(file, len).prot(Prot::READ | Prot::WRITE)
}

/// The other side: the file mapped into this process, and an ordinary memslot on that.
pub fn memslot(guest: &Guest, file: &File, len: u64) -> Result<Area> {
    let area = Area::huge_aligned(file, 0, len)?;
    set_slot(&guest.vm, SLOT, MEASURED, len, &area)?;
    Ok(area)
}
