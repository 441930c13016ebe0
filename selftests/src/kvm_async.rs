// SPDX-License-Identifier: GPL-2.0

//! Accesses of a guest that have to wait for I/O: KVM lets the vCPU do something else meanwhile,
//! if it has a local APIC and takes interrupts. What fails is not waited for again and again.

use std::os::unix::fs::FileExt;

use kvm_bindings::{kvm_msr_entry, kvm_regs, Msrs};
use libc::{MAP_NORESERVE, PROT_NONE};

use crate::harness::skip;
use crate::support::cgroup::Cgroup;
use crate::support::files::{self, drop_caches, Ext4, TempFile};
use crate::support::guest::{place_code, window, Exit, Vcpu, Vm};
use crate::support::mirror::{mirror, Area};
use crate::support::{Map, Space, PAGE};

crate::suite![
    failures_end,
    waits_for_a_disk,
    tells_the_guest,
    reads_copy_nothing,
];

const MIB: u64 = 1 << 20;
/// The code lies here, in the space.
const CODE: u64 = 8 * PAGE;
/// What KVM and the guest tell each other of asynchronous faults.
const AREA: u64 = 9 * PAGE;
/// A hole: a store there ends the code.
const END: u64 = 64 * MIB;

/// sti; nop; mov eax,[ebx]; mov [edi],eax
const LOAD: [u8; 6] = [0xfb, 0x90, 0x8b, 0x03, 0x89, 0x07];
/// sti; nop; mov [ebx],ecx; mov [edi],eax
const STORE: [u8; 6] = [0xfb, 0x90, 0x89, 0x0b, 0x89, 0x07];

struct Machine {
    space: Space,
    _vm: Vm,
    vcpu: Vcpu,
    _mirror: Option<Area>,
}

impl Machine {
    /// With a window, or an ordinary slot over a mirror.
    fn new(space: Space, mirrored: bool) -> Machine {
        place_code(&space, 0);
        space.must_map(Map::anon(CODE, 2 * PAGE));
        let vm = Vm::new();
        vm.fd
            .create_irq_chip()
            .unwrap_or_else(|e| skip(&format!("KVM_CREATE_IRQCHIP: {e}")));
        let mirror = mirrored.then(|| mirror(&space, 0, END));
        match &mirror {
            Some(mirror) => vm
                .set_plain_slot(0, 0, 0, END, mirror.addr())
                .expect("an ordinary slot"),
            None => vm.must_map(window(0, 0, 2 * END, &space, 0)),
        }
        let vcpu = vm.vcpu(0);
        let cpuid = vm
            .kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .expect("cpuid");
        vcpu.fd.set_cpuid2(&cpuid).expect("KVM_SET_CPUID2");
        Machine {
            space,
            _vm: vm,
            vcpu,
            _mirror: mirror,
        }
    }

    /// Runs code with interrupts enabled, until its first exit.
    fn run(&mut self, code: [u8; 6], at: u64) -> Exit {
        self.space.put(CODE, &code);
        let regs = kvm_regs {
            rip: CODE,
            rflags: 2,
            rbx: at,
            rdi: END,
            ..Default::default()
        };
        self.vcpu.reset();
        self.vcpu.fd.set_regs(&regs).expect("KVM_SET_REGS");
        self.vcpu.resume()
    }
}

/// An access that cannot be served is an exit each time, also where KVM could wait.
fn failures_end() {
    for mirrored in [false, true] {
        let cgroup = Cgroup::new("kvm-async");
        let mut machine = Machine::new(cgroup.create_space(), mirrored);
        let failed = |exit: &Exit, at: u64| match exit {
            Exit::Other(why) => mirrored && why.contains("Bad address"),
            exit => !mirrored && exit.is_fault_at(at),
        };
        let short = files::memfd(PAGE);
        let (hole, file, none, memory) = (16 * PAGE, MIB, 2 * MIB, 32 * MIB);
        machine.space.must_map(Map::file(&short, file, 4 * PAGE));
        machine
            .space
            .must_map(Map::anon(none, PAGE).prot(PROT_NONE));
        let much = Map::anon(memory, 16 * MIB).with(MAP_NORESERVE);
        machine.space.must_map(much);
        for code in [LOAD, STORE] {
            for at in [file + PAGE, file + 3 * PAGE, none] {
                let exit = machine.run(code, at);
                assert!(failed(&exit, at), "{mirrored}, {at:#x}: {exit:?}");
            }
        }
        cgroup.set("memory.max", "4M");
        let pages = (memory..memory + 16 * MIB).step_by(PAGE as usize);
        let mut served = |at| {
            let exit = machine.run(STORE, at);
            let served = matches!(exit, Exit::MmioWrite { .. });
            assert!(served || failed(&exit, at), "{mirrored}, {at:#x}: {exit:?}");
            served
        };
        // A page may be had a moment later: what CPUs keep in stock of the limit is given back.
        let mut refused = pages.filter(|at| !served(*at) && !served(*at));
        refused.next().expect("more than the limit");
        // Last: an exit for MMIO would have to be answered.
        let exit = machine.run(LOAD, hole);
        if mirrored {
            assert!(failed(&exit, hole), "in a hole: {exit:?}");
        } else {
            assert_eq!(exit, Exit::load_of_hole(hole));
        }
    }
}

const PAGES: u64 = 64;

/// A file on a disk, each page of which holds its number, mapped at 1M.
fn on_disk(machine: &Machine) -> (TempFile, Ext4) {
    let ext4 = Ext4::mount().unwrap_or_else(|why| skip(&why));
    let temp = TempFile::new(ext4.path(), PAGES * PAGE);
    for page in 0..PAGES {
        let number = u32::try_from(page + 1).expect("few").to_le_bytes();
        temp.file.write_all_at(&number, page * PAGE).expect("write");
    }
    temp.file.sync_all().expect("fsync");
    let map = Map::file(&temp.file, MIB, PAGES * PAGE);
    machine.space.must_map(map);
    (temp, ext4)
}

/// Not in the page cache, so that the first access to it waits.
fn forget(machine: &Machine, temp: &TempFile) {
    machine.space.unmap(MIB, PAGES * PAGE).expect("unmap");
    drop_caches();
    let map = Map::file(&temp.file, MIB, PAGES * PAGE);
    machine.space.must_map(map);
}

/// A guest that knows nothing of it gets its bytes; its vCPU is halted meanwhile.
fn waits_for_a_disk() {
    let mut machine = Machine::new(Space::new(), false);
    let (temp, _ext4) = on_disk(&machine);
    for page in (0..PAGES).step_by(7) {
        forget(&machine, &temp);
        let exit = machine.run(LOAD, MIB + page * PAGE);
        assert_eq!(exit, Exit::store_to_hole(END, page as u32 + 1));
        forget(&machine, &temp);
        let exit = machine.run(STORE, MIB + page * PAGE + 4);
        assert_eq!(exit, Exit::store_to_hole(END, 0));
    }
}

/// A guest that does gets a page fault instead, and the reason in its area, which is in a window.
fn tells_the_guest() {
    const ASYNC_PF_EN: u32 = 0x4b56_4d02;
    const ENABLED: u64 = 1 << 0;
    const SEND_ALWAYS: u64 = 1 << 1;
    const AS_INTERRUPT: u64 = 1 << 3;
    const NOT_PRESENT: u8 = 1;

    let mut machine = Machine::new(Space::new(), false);
    let (temp, _ext4) = on_disk(&machine);
    let mut told = 0;
    for page in 0..16 {
        forget(&machine, &temp);
        machine.space.put(AREA, &[0; 8]);
        // A guest that ends is reset, and this with it.
        let msrs = Msrs::from_entries(&[kvm_msr_entry {
            index: ASYNC_PF_EN,
            data: AREA | ENABLED | SEND_ALWAYS | AS_INTERRUPT,
            ..Default::default()
        }]);
        let accepted = machine.vcpu.fd.set_msrs(&msrs.expect("one"));
        assert_eq!(
            accepted.ok(),
            Some(1),
            "asynchronous faults are not offered"
        );
        // With no handler, the page fault is the end of the guest.
        match machine.run(LOAD, MIB + page * PAGE) {
            Exit::Other(why) if why.contains("Shutdown") => {
                assert_eq!(machine.space.byte(AREA), NOT_PRESENT);
                told += 1;
            }
            exit => assert_eq!(exit, Exit::store_to_hole(END, page as u32 + 1)),
        }
    }
    // The disk may be quick, but not always.
    assert_ne!(told, 0, "never told");
}

/// Waiting for a page of a private mapping to read it does not make a copy of it: what is written
/// to the file later still shows.
fn reads_copy_nothing() {
    let mut machine = Machine::new(Space::new(), false);
    let (temp, _ext4) = on_disk(&machine);
    for page in (0..PAGES).step_by(3) {
        forget(&machine, &temp);
        let map = Map::file(&temp.file, MIB, PAGES * PAGE).private();
        machine.space.must_map(map.replace());
        let at = MIB + page * PAGE;
        let exit = machine.run(LOAD, at);
        assert_eq!(exit, Exit::store_to_hole(END, page as u32 + 1));
        let number = 1000 + page as u32;
        let written = temp.file.write_all_at(&number.to_le_bytes(), page * PAGE);
        written.and_then(|()| temp.file.sync_all()).expect("write");
        assert_eq!(machine.run(LOAD, at), Exit::store_to_hole(END, number));
    }
}
