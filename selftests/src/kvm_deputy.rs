// SPDX-License-Identifier: GPL-2.0

//! The confused deputy: the VMM's own memory at an address that is a number of the space is
//! neither read nor written for the guest.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use kvm_bindings::{kvm_msr_entry, Msrs};
use libc::{PROT_NONE, PROT_READ};

use crate::support::bench::Secrets;
use crate::support::files;
use crate::support::guest::{
    plain_code, window, word, Args, Exit, Guest, Kicker, Routine, Vcpu, Vm, SLOT,
};
use crate::support::{Map, Space, PAGE};

crate::suite![
    own_memory_is_not_reached,
    paravirtual_areas_fail_closed,
    code_in_a_hole,
];

/// The confused deputy: where the space has a hole, a page that cannot serve, or nothing any
/// more, the VMM's own memory at the same number is not shown.
fn own_memory_is_not_reached() {
    let at = 0x2000_0000;
    let secrets = Secrets::at(&[at], 32 * PAGE);
    let (vm, space) = (Vm::new(), Space::new());
    let _code = plain_code(&vm);
    space.must_map(Map::file(&files::numbered(1, b'a'), at, 4 * PAGE));
    space.must_map(Map::anon(at + 8 * PAGE, PAGE).prot(PROT_NONE));
    space.must_map(Map::anon(at + 9 * PAGE, PAGE).prot(PROT_READ));
    vm.must_map(window(1, at, 32 * PAGE, &space, at));
    let mut vcpu = vm.vcpu(0);
    let look = |vcpu: &mut Vcpu| {
        for page in 0..32 {
            let addr = at + page * PAGE;
            let exits = [
                vcpu.load(addr),
                vcpu.store(addr + 8, 0x4242_4242),
                vcpu.call(
                    Routine::Copy,
                    Args {
                        esi: addr as u32,
                        edi: addr as u32 + 64,
                        ecx: 4,
                        ..Default::default()
                    },
                ),
            ];
            for exit in exits {
                assert_ne!(exit, Exit::Done(word(b'S')), "page {page}");
            }
        }
        secrets.untouched();
    };
    look(&mut vcpu);
    assert_eq!(vcpu.load(at), Exit::Done(word(b'a')));
    vm.unmap_slot(1).expect("delete");
    look(&mut vcpu);
    vm.must_map(window(1, at, 32 * PAGE, &space, at));
    drop(space);
    look(&mut vcpu);
    assert_eq!(vcpu.load(at), Exit::load_of_hole(at));
}

/// KVM itself writes into the guest's memory, for clocks and the like: into the space or nowhere.
fn paravirtual_areas_fail_closed() {
    let at = 0x2000_0000;
    let secrets = Secrets::at(&[at], 32 * PAGE);
    let (vm, space) = (Vm::new(), Space::new());
    let _code = plain_code(&vm);
    space.must_map(Map::anon(at, 8 * PAGE));
    let before = space.get(at, 8 * PAGE);
    vm.must_map(window(1, at, 32 * PAGE, &space, at));
    let mut vcpu = vm.vcpu(0);
    let cpuid = vm
        .kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .expect("cpuid");
    vcpu.fd.set_cpuid2(&cpuid).expect("KVM_SET_CPUID2");
    // Wall clock, system time, async page faults, steal time; in a mapping and in a hole.
    let mut accepted = 0;
    for page in [at, at + 16 * PAGE] {
        for (index, enable) in [
            (0x4b56_4d00, 0),
            (0x4b56_4d01, 1),
            (0x4b56_4d02, 1),
            (0x4b56_4d03, 1),
        ] {
            let data = (page + u64::from(index & 3) * 256) | enable;
            let msrs = Msrs::from_entries(&[kvm_msr_entry {
                index,
                data,
                ..Default::default()
            }]);
            accepted += vcpu.fd.set_msrs(&msrs.expect("one")).unwrap_or(0);
            let _kicker = Kicker::after(Duration::from_millis(200));
            let exit = vcpu.load(at + 4 * PAGE);
            assert!(
                matches!(exit, Exit::Done(0) | Exit::Kicked | Exit::Other(_)),
                "{exit:?}"
            );
        }
    }
    assert_ne!(accepted, 0, "KVM takes none of these registers");
    secrets.untouched();
    let after = space.get(at, 8 * PAGE);
    assert!(
        before[PAGE as usize..] == after[PAGE as usize..],
        "only where it was told to"
    );
}

/// Fetching instructions from a hole runs nothing of the VMM's.
fn code_in_a_hole() {
    let at = 0x2000_0000;
    let secrets = Secrets::at(&[at], 4 * PAGE);
    // mov eax,0x53535353; hlt, should it ever run.
    let code = [0xb8, b'S', b'S', b'S', b'S', 0xf4];
    secrets.begin_with(&code);
    let Guest {
        space,
        vm,
        mut vcpu,
    } = Guest::new(16);
    vm.must_map(window(SLOT + 1, at, 4 * PAGE, &space, at));
    space.must_map(Map::anon(at + PAGE, PAGE).prot(PROT_NONE));
    for rip in [at, at + PAGE] {
        let _kicker = Kicker::after(Duration::from_millis(500));
        let exit = vcpu.jump(rip, Args::default());
        assert!(!matches!(exit, Exit::Done(_)), "at {rip:#x}: {exit:?}");
    }
    // Filled with code, it runs.
    let file = files::memfd(PAGE);
    file.write_all_at(&[0xb8, 1, 2, 3, 4, 0xf4], 0)
        .expect("write");
    space.must_map(Map::file(&file, at, PAGE));
    assert_eq!(vcpu.jump(at, Args::default()), Exit::Done(0x0403_0201));
}
