// SPDX-License-Identifier: GPL-2.0

//! Processors: what they are, how they start, and the loop that runs one.

use anyhow::{bail, ensure, Context, Result};
use kvm_bindings::{
    kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, CpuId, Msrs,
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_MAX_CPUID_ENTRIES,
};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use nix::errno::Errno;

use crate::boot;
use crate::devices::Devices;

/// Makes processor `id`, which is also its APIC ID. All but the first wait to be woken up.
pub fn create(kvm: &Kvm, vm: &VmFd, id: u8) -> Result<VcpuFd> {
    let vcpu = vm.create_vcpu(id.into()).context("KVM_CREATE_VCPU")?;
    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .context("KVM_GET_SUPPORTED_CPUID")?;
    let tsc_deadline = vm.check_extension(Cap::TscDeadlineTimer);
    identify(&mut cpuid, id, tsc_deadline);
    vcpu.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;
    set_msrs(&vcpu).context("KVM_SET_MSRS")?;
    let mut lapic = vcpu.get_lapic().context("KVM_GET_LAPIC")?;
    set_local_inputs(&mut lapic);
    vcpu.set_lapic(&lapic).context("KVM_SET_LAPIC")?;
    Ok(vcpu)
}

/// What KVM supports, for one processor of several: each is a socket with one core.
fn identify(cpuid: &mut CpuId, id: u8, tsc_deadline: bool) {
    const TSC_DEADLINE_TIMER: u32 = 1 << 24;
    const HYPERVISOR: u32 = 1 << 31;
    const HYPER_THREADING: u32 = 1 << 28;
    let id = u32::from(id);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => {
                // Bits 16-23: how many IDs there are in a socket.
                entry.ebx = entry.ebx & 0xffff | 1 << 16 | id << 24;
                entry.ecx |= HYPERVISOR;
                if tsc_deadline {
                    entry.ecx |= TSC_DEADLINE_TIMER;
                }
                entry.edx &= !HYPER_THREADING;
            }
            // Caches, Intel's: nobody shares them.
            0x4 => entry.eax &= 0x3fff,
            // Topology: nothing but the ID.
            0xb | 0x1f => (entry.eax, entry.ebx, entry.edx) = (0, 0, id),
            // The same of AMD's: numbers of cores, and the ID with that of core and node.
            0x8000_0008 => entry.ecx = 0,
            0x8000_001d => entry.eax &= 0x3fff,
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, 0),
            _ => {}
        }
    }
}

fn set_msrs(vcpu: &VcpuFd) -> Result<()> {
    const MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRINGS: u64 = 1;
    const MTRR_DEF_TYPE: u32 = 0x2ff;
    const ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
    let entries = [
        (MISC_ENABLE, FAST_STRINGS),
        (MTRR_DEF_TYPE, ENABLED_WRITE_BACK),
    ];
    let entries = entries.map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let set = vcpu.set_msrs(&Msrs::from_entries(&entries)?)?;
    ensure!(set == entries.len(), "register {:#x}", entries[set].index);
    Ok(())
}

/// Of a local APIC: interrupts of the old controller come in at LINT0, NMIs at LINT1.
fn set_local_inputs(lapic: &mut kvm_lapic_state) {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const MODE_NMI: u32 = 4 << 8;
    const MODE_EXT_INT: u32 = 7 << 8;
    for (register, mode) in [(LVT_LINT0, MODE_EXT_INT), (LVT_LINT1, MODE_NMI)] {
        for (to, byte) in lapic.regs[register..].iter_mut().zip(mode.to_le_bytes()) {
            *to = byte as _;
        }
    }
}

/// The state of the first processor that the boot protocol asks for.
pub fn start_at(vcpu: &VcpuFd, entry: u64) -> Result<()> {
    const CODE: u16 = 0x10;
    const DATA: u16 = 0x18;
    /// Protected mode and paging, write protection, FPU errors as exceptions.
    const CR0: u64 = 0x8005_0033;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;

    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    let flat = |selector, type_, long: bool| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        l: long.into(),
        db: (!long).into(),
        ..Default::default()
    };
    sregs.cs = flat(CODE, 0xb, true);
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = flat(DATA, 0x3, false);
    }
    sregs.gdt.base = boot::GDT;
    sregs.gdt.limit = size_of_val(&boot::SEGMENTS) as u16 - 1;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0;
    sregs.cr3 = boot::PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LONG_MODE;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let regs = kvm_regs {
        rip: entry,
        rsi: boot::ZERO_PAGE,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).context("KVM_SET_REGS")
}

/// Whether the guest goes on as usual, or KVM gave up and is to try again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    On,
    Again,
}

/// Runs a processor. It ends only with an error.
pub fn run(mut vcpu: VcpuFd, devices: &Devices) -> Result<()> {
    let mut next = Next::On;
    loop {
        next = match step(&mut vcpu, devices, next == Next::Again) {
            Ok(next) => next,
            Err(error) => {
                let at = vcpu.get_regs().map_or(0, |regs| regs.rip);
                return Err(error.context(format!("at {at:#x}")));
            }
        }
    }
}

fn step(vcpu: &mut VcpuFd, devices: &Devices, again: bool) -> Result<Next> {
    match vcpu.run() {
        Ok(VcpuExit::IoOut(port, bytes)) => devices.write(port, bytes)?,
        Ok(VcpuExit::IoIn(port, bytes)) => devices.read(port, bytes),
        // Where nothing is mapped is a bus that nobody drives.
        Ok(VcpuExit::MmioRead(_, bytes)) => bytes.fill(0xff),
        Ok(VcpuExit::MmioWrite(..) | VcpuExit::Intr) => {}
        Ok(VcpuExit::MemoryFault { gpa, .. }) => {
            bail!("the guest's memory at {gpa:#x} cannot be accessed: its mapping does not allow it, or has no page there")
        }
        Ok(VcpuExit::Shutdown) => bail!("the guest shut down: a triple fault"),
        Ok(VcpuExit::InternalError) => return internal_error(vcpu, again),
        Ok(exit) => bail!("an exit that is not handled: {exit:x?}"),
        Err(e) if [Errno::EINTR, Errno::EAGAIN].contains(&Errno::from_raw(e.errno())) => {}
        Err(e) => return Err(e).context("KVM_RUN"),
    }
    Ok(Next::On)
}

/// KVM emulates no access to a hole that the processor made while delivering an interrupt. An
/// emulated processor may show the mark of one delivered long ago, which is gone the second time.
fn internal_error(vcpu: &mut VcpuFd, again: bool) -> Result<Next> {
    // SAFETY: This is the field that goes with the exit reason.
    let error = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
    match error {
        KVM_INTERNAL_ERROR_DELIVERY_EV if !again => Ok(Next::Again),
        KVM_INTERNAL_ERROR_DELIVERY_EV => bail!("an interrupt meets a hole"),
        KVM_INTERNAL_ERROR_EMULATION => bail!("KVM cannot emulate an instruction"),
        other => bail!("KVM_EXIT_INTERNAL_ERROR {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;

    fn identified(id: u8) -> CpuId {
        let leaves = [0x1, 0x4, 0xb, 0x8000_0008, 0x8000_001e];
        let entries = leaves.map(|function| kvm_cpuid_entry2 {
            function,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: 0x7ff,
            edx: u32::MAX,
            ..Default::default()
        });
        let mut cpuid = CpuId::from_entries(&entries).unwrap();
        identify(&mut cpuid, id, false);
        cpuid
    }

    #[test]
    fn a_processor_knows_its_id_and_is_alone_in_its_socket() {
        for id in [0u8, 1, 7] {
            let cpuid = identified(id);
            let leaf = |function| {
                let mut entries = cpuid.as_slice().iter();
                *entries.find(|e| e.function == function).unwrap()
            };
            let number = u32::from(id);
            assert_eq!(leaf(1).ebx >> 24, number);
            assert_eq!(leaf(1).ebx >> 16 & 0xff, 1);
            assert_eq!(leaf(1).ecx, 0x8000_07ff);
            assert_eq!(leaf(1).edx >> 28 & 1, 0);
            assert_eq!(leaf(0xb).edx, number);
            assert_eq!(leaf(0x8000_001e).eax, number);
            assert_eq!(leaf(0x8000_0008).ecx & 0xff, 0);
        }
    }

    #[test]
    fn local_inputs() {
        let mut lapic = kvm_lapic_state { regs: [0x55; 1024] };
        set_local_inputs(&mut lapic);
        let register = |at: usize| lapic.regs[at..at + 4].to_vec();
        assert_eq!(register(0x350), [0, 7, 0, 0]);
        assert_eq!(register(0x360), [0, 4, 0, 0]);
        assert_eq!(register(0x370), [0x55; 4]);
    }
}
