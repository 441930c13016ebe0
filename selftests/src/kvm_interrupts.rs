// SPDX-License-Identifier: GPL-2.0

//! Guests that KVM delivers interrupts to: ends of interrupts in memory, and page faults that do
//! not wait.

use std::time::Duration;

use kvm_bindings::kvm_msi;
use libc::PROT_READ;

use crate::support::areas::set_msr;
use crate::support::bench::{Bench, Gets, Shown, State, LEN, OFFSET, SHOWN, STATES};
use crate::support::fuse::{StallingFile, BYTE};
use crate::support::guest::{word, Args, Exit, Kicker};
use crate::support::{files, Map, HUGE, PAGE};

crate::suite![
    ends_of_interrupts(600),
    memory_that_cannot_be_had,
    waiting_for_a_page,
    faults_that_do_not_wait,
];

/// An interrupt for the vCPU.
fn interrupt(bench: &Bench, vector: u8) {
    let message = kvm_msi {
        address_lo: 0xfee0_0000,
        data: vector.into(),
        ..Default::default()
    };
    let sent = bench.vm.fd.signal_msi(message).expect("KVM_SIGNAL_MSI");
    assert_eq!(sent, 1, "delivered");
}

fn out(port: u16, word: u32) -> Exit {
    Exit::Out {
        port,
        data: word.to_le_bytes().into(),
    }
}

/// mov esp,0x101700; mov eax,[ebx]; sti; 1: jmp 1b
const IDLE: [u8; 10] = [0xbc, 0x00, 0x17, 0x10, 0x00, 0x8b, 0x03, 0xfb, 0xeb, 0xfe];

/// Whether the guest found the word set. KVM takes it back with each exit, be it for an interrupt
/// of the host just then.
#[track_caller]
fn is_told(exit: &Exit, what: &str) -> bool {
    assert!(
        [0, 1].map(|told| out(0x80, told)).contains(exit),
        "{what}: {exit:x?}"
    );
    *exit == out(0x80, 1)
}

/// KVM says in a word of the guest's memory that the end of the interrupt can be left there, and
/// finds it there: else there would be no other interrupt.
fn ends_of_interrupts() {
    for shown in &SHOWN[1..] {
        for state in &STATES {
            let what = format!("{}, {}", state.name, shown.name);
            let told = (0..10).any(|_| ends_are_left(shown, state, &what));
            assert!(told, "{what}: never told");
        }
    }
}

/// Whether the guest was told so each time.
fn ends_are_left(shown: &Shown, state: &State, what: &str) -> bool {
    const PV_EOI: u32 = 0x4b56_4d04;
    const HANDLER: u64 = 0x400;
    let mut bench = Bench::with_interrupts();
    bench.set_handlers(&[(0x40, HANDLER), (0x41, HANDLER)]);
    // mov eax,[ebx]; mov dword [ebx],0; out 0x80,eax; iret
    let handler = [0x8b, 0x03, 0xc7, 0x03, 0, 0, 0, 0, 0xe7, 0x80, 0xcf];
    bench.put_program(HANDLER, &handler);
    bench.fill(state, &[0; PAGE as usize]);
    let gpa = shown.gpa + state.page() + 0x340;
    let accepted = set_msr(&bench, PV_EOI, gpa | 1);
    let works = state.store == Gets::It && !shown.readonly;
    assert!(accepted || !works, "{what}: refused");
    let args = Args {
        ebx: gpa as u32,
        ..Default::default()
    };
    interrupt(&bench, 0x41);
    // The program looks at the word first: an exit for the page within the handler would
    // have KVM take back what it wrote.
    let exit = bench.run(&IDLE, args);
    match state.load {
        Gets::It if works => {
            if !is_told(&exit, what) {
                return false;
            }
        }
        Gets::It => {
            assert_eq!(exit, Exit::store_to_hole(gpa, 0), "{what}");
            assert_eq!(bench.vcpu.eax(), 0, "{what}");
        }
        Gets::Mmio => assert_eq!(exit, Exit::load_of_hole(gpa), "{what}"),
        Gets::Fault => assert!(exit.is_fault_at(gpa & !(PAGE - 1)), "{what}: {exit:x?}"),
    }
    if works {
        for vector in [0x40, 0x41, 0x40] {
            interrupt(&bench, vector);
            if !is_told(&bench.vcpu.resume(), what) {
                return false;
            }
        }
    }
    if works && state.area >= 2 * HUGE {
        let new = files::memfd(PAGE);
        let page = OFFSET + state.page();
        bench.space.must_map(Map::file(&new, page, PAGE).replace());
        for vector in [0x41, 0x40] {
            interrupt(&bench, vector);
            if !is_told(&bench.run(&IDLE, args), what) {
                return false;
            }
        }
    }
    bench.untouched();
    true
}

/// With interrupts allowed a vCPU might wait for memory, but only for what will be there.
fn memory_that_cannot_be_had() {
    const PORT: u16 = 0x80;
    for (n, register) in [0u64, 0b1011].into_iter().enumerate() {
        let mut bench = Bench::with_interrupts();
        // When it is asked for, there is an interrupt at once. iret
        bench.set_handlers(&[(0x40, 0x400)]);
        bench.put_program(0x400, &[0xcf]);
        let area = SHOWN[0].gpa + LEN - 8 * PAGE;
        bench
            .space
            .must_map(Map::anon(OFFSET + LEN - 8 * PAGE, PAGE));
        if register != 0 {
            assert!(set_msr(&bench, 0x4b56_4d06, 0x40), "interrupt");
            assert!(set_msr(&bench, 0x4b56_4d02, area | register), "enable");
        }
        for shown in &SHOWN {
            for state in &STATES {
                let what = format!("{}, {}, register {n}", state.name, shown.name);
                bench.fill(state, &[7; PAGE as usize]);
                let gpa = shown.gpa + state.page();
                let args = Args {
                    ebx: gpa as u32,
                    ..Default::default()
                };
                // mov esp,0x101700; sti; nop; mov eax,[ebx]; out 0x80,eax
                let load = [0xbc, 0, 0x17, 0x10, 0, 0xfb, 0x90, 0x8b, 0x03, 0xe7, 0x80];
                let exit = bench.run(&load, args);
                match state.load {
                    Gets::It => assert_eq!(exit, out(PORT, word(7)), "load, {what}"),
                    Gets::Mmio => assert_eq!(exit, Exit::load_of_hole(gpa), "load, {what}"),
                    Gets::Fault => assert!(exit.is_fault_at(gpa), "load, {what}: {exit:x?}"),
                }
                let args = Args {
                    eax: word(9),
                    ..args
                };
                // mov esp,0x101700; sti; nop; mov [ebx],eax; out 0x80,eax
                let store = [0xbc, 0, 0x17, 0x10, 0, 0xfb, 0x90, 0x89, 0x03, 0xe7, 0x80];
                let exit = bench.run(&store, args);
                match state.store {
                    _ if shown.readonly => {
                        assert_eq!(exit, Exit::store_to_hole(gpa, word(9)), "store, {what}")
                    }
                    Gets::It => assert_eq!(exit, out(PORT, word(9)), "store, {what}"),
                    Gets::Mmio => {
                        assert_eq!(exit, Exit::store_to_hole(gpa, word(9)), "store, {what}")
                    }
                    Gets::Fault => assert!(exit.is_fault_at(gpa), "store, {what}: {exit:x?}"),
                }
            }
        }
        bench.untouched();
    }
}

/// A file whose pages come late.
fn stalling() -> StallingFile {
    let file = StallingFile::new(4 * PAGE);
    file.stall();
    file
}

/// Shows it where there is nothing yet.
fn show(bench: &Bench, file: &StallingFile) -> u64 {
    let at = LEN - 16 * PAGE;
    let map = Map::file(&file.file, OFFSET + at, 4 * PAGE);
    bench.space.must_map(map.prot(PROT_READ).private());
    SHOWN[0].gpa + at
}

/// The guest does not know of such faults: its vCPU waits, and can be interrupted meanwhile.
fn waiting_for_a_page() {
    let file = stalling();
    let mut bench = Bench::with_interrupts();
    bench.set_handlers(&[]);
    let args = Args {
        ebx: show(&bench, &file) as u32,
        ..Default::default()
    };
    let load = [0xbc, 0, 0x17, 0x10, 0, 0xfb, 0x90, 0x8b, 0x03, 0xe7, 0x80];
    let exit = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            file.go_on();
        });
        let _kicker = Kicker::after(Duration::from_millis(50));
        let mut exit = bench.run(&load, args);
        assert_eq!(exit, Exit::Kicked, "it waits");
        while exit == Exit::Kicked {
            exit = bench.vcpu.resume();
        }
        exit
    });
    assert_eq!(exit, out(0x80, word(BYTE)));
    bench.untouched();
}

/// The guest is told that a page will come, by an exception, and when it is there, by an
/// interrupt, with a token in an area that lies in a window.
fn faults_that_do_not_wait() {
    const NOT_PRESENT: u64 = 0x400;
    const READY: u64 = 0x500;
    let file = stalling();
    let mut bench = Bench::with_interrupts();
    bench.set_handlers(&[(14, NOT_PRESENT), (0x40, READY)]);
    // mov eax,cr2; out 0x81,eax; mov eax,[esi]; out 0x82,eax; mov dword [esi],0; sti; 1: jmp 1b
    let not_present = [
        0x0f, 0x20, 0xd0, 0xe7, 0x81, 0x8b, 0x06, 0xe7, 0x82, 0xc7, 0x06, 0, 0, 0, 0, 0xfb, 0xeb,
        0xfe,
    ];
    bench.put_program(NOT_PRESENT, &not_present);
    // mov eax,[esi+4]; out 0x83,eax; mov dword [esi+4],0; mov dword [0xfee000b0],0;
    // mov ecx,0x4b564d07; mov eax,1; xor edx,edx; wrmsr; iret
    let ready = [
        0x8b, 0x46, 0x04, 0xe7, 0x83, 0xc7, 0x46, 0x04, 0, 0, 0, 0, 0xc7, 0x05, 0xb0, 0, 0xe0,
        0xfe, 0, 0, 0, 0, 0xb9, 0x07, 0x4d, 0x56, 0x4b, 0xb8, 1, 0, 0, 0, 0x31, 0xd2, 0x0f, 0x30,
        0xcf,
    ];
    bench.put_program(READY, &ready);
    let area = LEN - 8 * PAGE;
    bench.space.must_map(Map::anon(OFFSET + area, PAGE));
    let gpa = SHOWN[1].gpa + area;
    assert!(set_msr(&bench, 0x4b56_4d06, 0x40), "interrupt");
    // Enabled; always; by interrupts.
    assert!(set_msr(&bench, 0x4b56_4d02, gpa | 1 | 2 | 8), "enable");
    let args = Args {
        ebx: show(&bench, &file) as u32,
        esi: gpa as u32,
        ..Default::default()
    };
    let load = [0xbc, 0, 0x17, 0x10, 0, 0xfb, 0x90, 0x8b, 0x03, 0xe7, 0x80];
    // First all that may have waited are told.
    let idle = Args {
        ebx: gpa as u32,
        esi: gpa as u32,
        ..Default::default()
    };
    assert_eq!(bench.run(&IDLE, idle), out(0x83, !0));
    {
        let _kicker = Kicker::after(Duration::from_millis(50));
        assert_eq!(bench.vcpu.resume(), Exit::Kicked);
    }
    let exit = bench.run(&load, args);
    let Exit::Out { port: 0x81, data } = exit else {
        panic!("no exception: {exit:x?}");
    };
    let token = u32::from_le_bytes(data.try_into().expect("a word"));
    assert_eq!(bench.vcpu.resume(), out(0x82, 1), "page not present");
    {
        // The guest does something else meanwhile.
        let _kicker = Kicker::after(Duration::from_millis(100));
        assert_eq!(bench.vcpu.resume(), Exit::Kicked);
    }
    file.go_on();
    let exit = bench.vcpu.resume();
    assert_eq!(exit, out(0x83, token), "the page is there");
    let area = bench.space.get(OFFSET + area, PAGE);
    assert!(area[8..].iter().all(|byte| *byte == 0), "nothing else");
    let exit = bench.run(&load, args);
    assert_eq!(exit, out(0x80, word(BYTE)));
    bench.untouched();
}
