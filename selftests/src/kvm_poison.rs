// SPDX-License-Identifier: GPL-2.0

//! Memory that has gone bad, shown to a guest.

use std::os::fd::AsRawFd;

use libc::MADV_HWPOISON;

use crate::harness::skip;
use crate::support::bench::{force_emulation, FORCED};
use crate::support::guest::{Args, Exit, Guest, Vcpu};
use crate::support::mapped::Mapped;
use crate::support::rights::RW;
use crate::support::{files, Errno, Map, PAGE};

crate::suite![guest_meets_poison, poison_under_a_running_guest];

/// As the machine would find it, the page of the mapping is bad.
fn poison(mapped: &Mapped, page: u64) {
    let at = mapped.address() + page * PAGE;
    // SAFETY: Our own mapping, whose page nobody reads any more.
    let done = unsafe { libc::madvise(at as *mut _, PAGE as usize, MADV_HWPOISON) };
    if done != 0 {
        skip(&format!("MADV_HWPOISON: {}", Errno::last()));
    }
}

/// The errno of KVM_RUN, which the exit does not tell.
fn errno_of_run(vcpu: &Vcpu) -> Errno {
    const KVM_RUN: u32 = 0xae80;
    // SAFETY: Takes no argument.
    match unsafe { libc::ioctl(vcpu.fd.as_raw_fd(), KVM_RUN.into(), 0) } {
        -1 => Errno::last(),
        answer => panic!("KVM_RUN: {answer}"),
    }
}

fn guest_meets_poison() {
    let mut guest = Guest::new(64);
    let file = files::numbered(4, b'a');
    let mapped = Mapped::new(&file, 0, 4 * PAGE, RW).expect("mmap");
    let at = 16 * PAGE;
    guest.space.must_map(Map::file(&file, at, 4 * PAGE));
    let bad = at + PAGE;
    // Once when the guest has used it, so that it has to be taken from it.
    assert_eq!(guest.vcpu.store(bad, 5), Exit::Done(5));
    assert_eq!(guest.vcpu.load(at), Exit::Done(0x6161_6161));
    poison(&mapped, 1);
    for _ in 0..2 {
        for exit in [guest.vcpu.load(bad), guest.vcpu.store(bad + 8, 1)] {
            assert!(exit.is_fault_at(bad), "{exit:x?}");
        }
        assert_eq!(errno_of_run(&guest.vcpu), Errno::EHWPOISON);
    }
    // The others go on.
    for (page, byte) in [(0, b'a'), (2, b'c'), (3, b'd')] {
        let expected = u32::from_le_bytes([byte; 4]);
        assert_eq!(guest.vcpu.load(at + page * PAGE), Exit::Done(expected));
    }
    assert_eq!(guest.vcpu.store(at, 7), Exit::Done(7));
    // What KVM cannot read for an instruction that it emulates is MMIO.
    {
        let _forced = force_emulation();
        let args = Args {
            ebx: bad as u32,
            ..Default::default()
        };
        let program = [&FORCED[..], &[0x8b, 0x03, 0xf4]].concat();
        guest.space.must_map(Map::anon(32 * PAGE, PAGE));
        guest.space.put(32 * PAGE, &program);
        let exit = guest.vcpu.jump(32 * PAGE, args);
        assert_eq!(exit, Exit::load_of_hole(bad));
    }
    // The VMM gives the guest other memory, and it is well again.
    guest.space.must_map(Map::anon(bad, PAGE).replace());
    assert_eq!(guest.vcpu.load(bad), Exit::Done(0));
    assert_eq!(guest.vcpu.store(bad, 9), Exit::Done(9));
}

fn poison_under_a_running_guest() {
    let mut guest = Guest::new(64);
    let file = files::numbered(2, b'a');
    let mapped = Mapped::new(&file, 0, 2 * PAGE, RW).expect("mmap");
    let at = 16 * PAGE;
    guest.space.must_map(Map::file(&file, at, 2 * PAGE));
    let exit = crate::support::guest::sees(&mut guest.vcpu, at, 0x6161_6161, || poison(&mapped, 0));
    assert!(exit.is_fault_at(at), "{exit:x?}");
    assert_eq!(guest.vcpu.load(at + PAGE), Exit::Done(0x6262_6262));
}
