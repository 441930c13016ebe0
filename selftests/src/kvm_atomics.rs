// SPDX-License-Identifier: GPL-2.0

//! Instructions that KVM emulates while others use the same memory: exchanges are atomic, and
//! what is replaced is not touched any more.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, AtomicU8, Ordering};
use std::time::Duration;

use libc::PROT_READ;

use crate::support::bench::{force_emulation, Bench, FORCED, LEN, OFFSET, SHOWN};
use crate::support::guest::{window, Args, Exit, Kicker, Vcpu, Vm};
use crate::support::mapped::Mapped;
use crate::support::rights::RW;
use crate::support::system::{eventually, scaled, RaiseAtEnd};
use crate::support::{files, Map, Space, PAGE};

crate::suite![exchanges_are_atomic, replaced_memory_is_left_alone];

/// A page of the windows that no state is on.
const FREE: u64 = LEN - 8 * PAGE;

/// Adds one in the host, and says what is there.
fn add_one(at: u64, width: u64) -> u64 {
    // SAFETY: Aligned, and the callers have it mapped.
    unsafe {
        match width {
            1 => (*(at as *const AtomicU8))
                .fetch_add(1, Ordering::SeqCst)
                .into(),
            2 => (*(at as *const AtomicU16))
                .fetch_add(1, Ordering::SeqCst)
                .into(),
            4 => (*(at as *const AtomicU32))
                .fetch_add(1, Ordering::SeqCst)
                .into(),
            _ => (*(at as *const AtomicU64)).fetch_add(1, Ordering::SeqCst),
        }
    }
}

/// The guest adds by each instruction that exchanges, the host by its own.
fn exchanges_are_atomic() {
    let _forced = force_emulation();
    let mut bench = Bench::new();
    let file = files::memfd(PAGE);
    let mapped = Mapped::new(&file, 0, PAGE, RW).expect("mmap");
    bench.space.must_map(Map::file(&file, OFFSET + FREE, PAGE));
    // The end of the loops: dec esi; jnz to the start
    let counted = |code: &[u8]| {
        let body = [&FORCED[..], code, &[0x4e]].concat();
        let back = -(body.len() as i8 + 2);
        [&body[..], &[0x75, back as u8, 0xf4]].concat()
    };
    // mov eax,[edi]; mov edx,[edi+4]; 1: mov ebx,eax; mov ecx,edx; add ebx,1; adc ecx,0;
    // lock cmpxchg8b [edi] (emulated); jnz 1b; dec esi; jnz to the start
    let eight = [
        &[
            0x8b, 0x07, 0x8b, 0x57, 0x04, 0x89, 0xc3, 0x89, 0xd1, 0x83, 0xc3, 0x01, 0x83, 0xd1,
            0x00,
        ][..],
        &FORCED,
        &[0xf0, 0x0f, 0xc7, 0x0f, 0x75, 0xeb, 0x4e, 0x75, 0xe3, 0xf4],
    ]
    .concat();
    // mov eax,1 before the instruction that adds eax
    let xadd = [
        &[0xb8, 1, 0, 0, 0][..],
        &FORCED,
        &[0xf0, 0x0f, 0xc1, 0x07, 0x4e, 0x75, 0xef, 0xf4],
    ]
    .concat();
    let programs = [
        ("lock inc byte [edi]", 1, counted(&[0xf0, 0xfe, 0x07])),
        ("lock inc word [edi]", 2, counted(&[0x66, 0xf0, 0xff, 0x07])),
        ("lock inc dword [edi]", 4, counted(&[0xf0, 0xff, 0x07])),
        ("lock xadd [edi],eax", 4, xadd),
        ("lock cmpxchg8b [edi]", 8, eight),
    ];
    for (name, width, program) in programs {
        for shown in &SHOWN[..2] {
            let turns = scaled(3000);
            let start = u64::MAX - turns / 2;
            file.write_all_at(&start.to_le_bytes(), 0).expect("write");
            let stop = AtomicBool::new(false);
            let (exit, added) = std::thread::scope(|scope| {
                let host = scope.spawn(|| {
                    let mut added = 0u64;
                    while !stop.load(Ordering::Acquire) {
                        add_one(mapped.address(), width);
                        added += 1;
                        // An exchange by KVM takes long: it has to succeed now and then.
                        if added % 8 == 0 {
                            std::thread::sleep(Duration::from_micros(100));
                        }
                    }
                    added
                });
                let args = Args {
                    edi: (shown.gpa + FREE) as u32,
                    esi: turns as u32,
                    ..Default::default()
                };
                let raise = RaiseAtEnd(&stop);
                let exit = bench.run(&program, args);
                drop(raise);
                (exit, host.join().expect("the host"))
            });
            assert!(matches!(exit, Exit::Done(_)), "{name}: {exit:x?}");
            assert_ne!(added, 0, "the host did nothing meanwhile");
            let mut found = [0; 8];
            file.read_exact_at(&mut found, 0).expect("read");
            let mask = u64::MAX >> (64 - 8 * width);
            let sum = start.wrapping_add(turns).wrapping_add(added);
            let expected = start & !mask | sum & mask;
            assert_eq!(
                u64::from_le_bytes(found),
                expected,
                "{name}, {}",
                shown.name
            );
        }
    }
    bench.untouched();
}

/// Loops of instructions that write. When the call that takes the page away returns, it is not
/// written any more, whichever call that is.
fn replaced_memory_is_left_alone() {
    let _forced = force_emulation();
    let mut bench = Bench::new();
    // With eax counted up, and back to the start.
    let around = |code: &[u8]| {
        let body = [&[0x40], &FORCED[..], code].concat();
        let back = -(body.len() as i8 + 2);
        [&body[..], &[0xeb, back as u8]].concat()
    };
    let programs = [
        ("mov [ebx],eax", around(&[0x89, 0x03])),
        ("inc dword [ebx]", around(&[0xff, 0x03])),
        ("lock inc dword [ebx]", around(&[0xf0, 0xff, 0x03])),
        // KVM writes this one as it does for itself.
        ("sgdt [ebx]", around(&[0x0f, 0x01, 0x03])),
    ];
    let at = OFFSET + FREE;
    let other = files::memfd(PAGE);
    type Edit<'a> = (&'static str, &'a (dyn Fn(&Space, &Vm) + Sync));
    let edits: [Edit; 4] = [
        ("replace", &|space, _| {
            space.must_map(Map::file(&other, at, PAGE).replace());
        }),
        ("protect", &|space, _| {
            space.must_protect(at, PAGE, PROT_READ)
        }),
        ("unmap", &|space, _| space.unmap(at, PAGE).expect("unmap")),
        ("delete the slot", &|_, vm| {
            vm.unmap_slot(2).expect("delete")
        }),
    ];
    for (name, program) in &programs {
        for (what, edit) in &edits {
            let file = files::memfd(PAGE);
            bench.space.must_map(Map::file(&file, at, PAGE).replace());
            let rip = bench.put_program(0, program);
            let Bench {
                vcpu, space, vm, ..
            } = &mut bench;
            is_left_alone(
                vcpu,
                rip,
                &file,
                || edit(space, vm),
                &format!("{name}, {what}"),
            );
            if *what == "delete the slot" {
                vm.must_map(window(2, SHOWN[0].gpa, LEN, space, OFFSET));
            }
        }
    }
    bench.untouched();
}

fn is_left_alone(vcpu: &mut Vcpu, rip: u64, file: &File, edit: impl FnOnce() + Send, what: &str) {
    const MARK: [u8; 16] = [0xee; 16];
    let read = || {
        let mut bytes = [0; 16];
        file.read_exact_at(&mut bytes, 0).expect("read");
        bytes
    };
    let mark = || file.write_all_at(&MARK, 0).expect("write");
    let done = AtomicBool::new(false);
    mark();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _raise = RaiseAtEnd(&done);
            eventually("the guest writes", || read() != MARK);
            edit();
            mark();
            for _ in 0..5 {
                std::thread::sleep(Duration::from_millis(2));
                assert_eq!(read(), MARK, "the old page is still written: {what}");
            }
        });
        let _kicker = Kicker::after(Duration::from_millis(20));
        let args = Args {
            ebx: (SHOWN[0].gpa + FREE) as u32,
            ..Default::default()
        };
        let mut exit = vcpu.jump(rip, args);
        while exit == Exit::Kicked && !done.load(Ordering::Acquire) {
            exit = vcpu.resume();
        }
    });
    vcpu.reset();
}
