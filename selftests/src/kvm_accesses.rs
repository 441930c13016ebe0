// SPDX-License-Identifier: GPL-2.0

//! Every way in which an instruction gets at memory, by the CPU and emulated by KVM, on every
//! kind of memory through every kind of window.

use std::os::unix::fs::FileExt;

use crate::support::bench::{
    force_emulation, Bench, Gets, Shown, State, FORCED, OFFSET, SHOWN, STATES,
};
use crate::support::guest::{Args, Exit};
use crate::support::instructions::{args, low, program, Kind, Op, EAX, OPS};
use crate::support::{files, Map, HUGE, PAGE};
use libc::{PROT_NONE, PROT_READ};

crate::suite![
    every_access_by_the_cpu,
    every_access_emulated,
    accesses_that_cross_pages,
    instructions_are_fetched,
];

/// How the access ends, with what was there and what shall be there then.
fn expected(
    op: &Op,
    state: &State,
    shown: &Shown,
    forced: bool,
    at: u64,
    old: u64,
    new: u64,
) -> Exit {
    let load = Exit::MmioRead {
        addr: at,
        len: op.len,
    };
    let store = Exit::MmioWrite {
        addr: at,
        data: new.to_le_bytes()[..op.len].to_vec(),
    };
    let fault = Exit::MemoryFault {
        gpa: at & !(PAGE - 1),
        flags: 0,
        size: PAGE,
    };
    // What KVM itself cannot get at is MMIO, whyever; nor does it look at the mapping for what a
    // read-only window does not let through.
    let blind = |gets| match gets {
        Gets::Fault if forced || shown.readonly && op.kind != Kind::Load => Gets::Mmio,
        gets => gets,
    };
    let done = |eax: u64| Exit::Done(eax as u32);
    let to = if shown.readonly {
        Gets::Mmio
    } else {
        blind(state.store)
    };
    match (op.kind, blind(state.load), to) {
        (Kind::Load, Gets::It, _) => done(old & (!0 >> (64 - 8 * op.len))),
        (Kind::Load | Kind::Update, Gets::Mmio, _) => load,
        (Kind::Store | Kind::Update, Gets::It, Gets::It) => done(0),
        (Kind::Store | Kind::Update, _, Gets::Mmio) => store,
        _ => fault,
    }
}

fn every_access(forced: bool) {
    let mut bench = Bench::new();
    for shown in &SHOWN {
        for (n, state) in (0u64..).zip(&STATES) {
            for op in &OPS {
                let old = 0x0102_0304_0506_0708u64.rotate_left(8 * n as u32);
                let what = format!(
                    "{}: {}, {}, forced {forced}",
                    op.name, state.name, shown.name
                );
                let at = shown.gpa + state.page() + 8 * n;
                let there = OFFSET + state.page() + 8 * n;
                bench.fill(state, &old.to_le_bytes().repeat(64));
                let in_file = read(&bench);
                bench.set_scratch(0, old as u32);
                bench.set_scratch(4, (old >> 32) as u32);
                let new = match op.kind {
                    Kind::Load => old,
                    Kind::Store => low(old, op.len, |_| EAX as u64),
                    Kind::Update => (op.new)(old),
                };
                let expected = expected(op, state, shown, forced, at, old, new);
                let exit = bench.run(&program(op, forced), args(at));
                // The CPU may ask for an update's two rights one after the other.
                let asked = op.kind == Kind::Update && shown.readonly && !forced;
                let asked =
                    asked && state.load == Gets::Fault && exit.is_fault_at(at & !(PAGE - 1));
                match (&exit, &expected) {
                    _ if asked => {}
                    (Exit::Done(_), Exit::Done(_)) if op.kind != Kind::Load => {}
                    (Exit::MemoryFault { .. }, Exit::MemoryFault { gpa, .. }) => {
                        assert!(exit.is_fault_at(*gpa), "{what}: {exit:x?}")
                    }
                    _ => assert_eq!(exit, expected, "{what}"),
                }
                if state.load == Gets::It {
                    let now = if matches!(exit, Exit::Done(_)) {
                        new
                    } else {
                        old
                    };
                    let found = bench.space.get(there - 8, 24);
                    let around = [old, now, old].map(u64::to_le_bytes).concat();
                    // The file's pages begin with what was written first.
                    if n > 0 {
                        assert_eq!(found, around, "{what}");
                    } else {
                        assert_eq!(found[8..], around[8..], "{what}");
                    }
                }
                if state.name == "private file" {
                    assert!(
                        in_file == read(&bench),
                        "the file of a private mapping, {what}"
                    );
                }
            }
        }
        bench.untouched();
    }
}

/// The page of the bench's file that the states are on.
fn read(bench: &Bench) -> Vec<u8> {
    let mut bytes = vec![0; PAGE as usize];
    bench.file.read_exact_at(&mut bytes, PAGE).expect("read");
    bytes
}

fn every_access_by_the_cpu() {
    every_access(false);
}

fn every_access_emulated() {
    let _forced = force_emulation();
    every_access(true);
}

/// Half of the word in one page, half in the next, which can be of another kind: each half gets
/// what its page gives.
fn accesses_that_cross_pages() {
    let _forced = force_emulation();
    let mut bench = Bench::new();
    let base = OFFSET + 2 * HUGE;
    let file = files::numbered(2, b'a');
    // Pairs of pages, with what loads and stores of the halves get.
    let pair = |n: u64| base + (100 + 2 * n) * PAGE;
    let half =
        |n: u64, second: u64| Map::file(&file, pair(n) + second * PAGE, PAGE).offset(second * PAGE);
    for map in [
        half(0, 0),
        half(0, 1).private(),
        half(1, 0),
        half(2, 1),
        half(3, 0),
        half(3, 1).prot(PROT_READ),
        half(4, 0),
        half(4, 1).prot(PROT_NONE),
    ] {
        bench.space.must_map(map);
    }
    use Gets::*;
    let kinds = [
        [(It, It), (It, It)],
        [(It, It), (Mmio, Mmio)],
        [(Mmio, Mmio), (It, It)],
        [(It, It), (It, Mmio)],
        [(It, It), (Mmio, Mmio)],
    ];
    for (n, halves) in (0..).zip(kinds) {
        for shown in &SHOWN {
            let at = shown.gpa + pair(n) - OFFSET + PAGE - 2;
            let what = format!("pair {n}, {}", shown.name);
            // Only what KVM does is alike for all: the CPU would get KVM_EXIT_MEMORY_FAULT.
            let parts = [0, 1].map(|k| (at + 2 * k, halves[k as usize]));
            let load = parts.iter().find(|(_, gets)| gets.0 == Mmio);
            let expected = match load {
                None => Exit::Done(u32::from_le_bytes(*b"aabb")),
                Some((addr, _)) => Exit::MmioRead {
                    addr: *addr,
                    len: 2,
                },
            };
            let load = bench.run(&program(&OPS[0], true), args(at));
            assert_eq!(load, expected, "load, {what}");
            let store = parts
                .iter()
                .find(|(_, gets)| shown.readonly || gets.1 == Mmio);
            let eax = u32::from_le_bytes(*b"aabb");
            let expected = match store {
                None => Exit::Done(eax),
                Some((addr, _)) => Exit::MmioWrite {
                    addr: *addr,
                    data: eax.to_le_bytes()[(*addr - at) as usize..][..2].to_vec(),
                },
            };
            let exit = bench.run(&program(&OPS[6], true), Args { eax, ..args(at) });
            assert_eq!(exit, expected, "store, {what}");
        }
    }
    // What a store changes on both sides, and an exchange that KVM cannot make atomic.
    let at = pair(0) + PAGE - 2;
    let gpa = SHOWN[1].gpa + at - OFFSET;
    assert!(matches!(
        bench.run(&program(&OPS[6], true), args(gpa)),
        Exit::Done(_)
    ));
    assert_eq!(
        bench.space.get(at - 1, 6),
        [b'a', 0x44, 0x33, 0x22, 0x11, b'b']
    );
    let inc = OPS
        .iter()
        .find(|op| op.name == "lock inc dword [ebx]")
        .expect("there");
    assert!(matches!(
        bench.run(&program(inc, true), args(gpa)),
        Exit::Done(_)
    ));
    assert_eq!(
        bench.space.get(at - 1, 6),
        [b'a', 0x45, 0x33, 0x22, 0x11, b'b']
    );
    bench.untouched();
}

/// Code that lies in the state's page, and code of which KVM has to fetch the rest there.
fn instructions_are_fetched() {
    let _forced = force_emulation();
    let mut bench = Bench::new();
    let code = [0xb8, 0x0a, 0x0b, 0x0c, 0x0d, 0xf4];
    for shown in &SHOWN {
        for state in &STATES {
            let what = format!("{}, {}", state.name, shown.name);
            bench.fill(state, &code);
            let page = shown.gpa + state.page();
            let exit = bench.vcpu.jump(page, Args::default());
            match state.load {
                Gets::It => assert_eq!(exit, Exit::Done(0x0d0c_0b0a), "{what}"),
                Gets::Fault => assert!(exit.is_fault_at(page), "{what}: {exit:x?}"),
                // There is no such thing as MMIO for instructions.
                Gets::Mmio => assert!(matches!(exit, Exit::Other(_)), "{what}: {exit:x?}"),
            }
            bench.vcpu.reset();
        }
    }
    // The prefix at the end of a page, the instruction at the start of the next.
    let base = OFFSET + 2 * HUGE + 100 * PAGE;
    let first = files::memfd(PAGE);
    first
        .write_all_at(&FORCED, PAGE - FORCED.len() as u64)
        .expect("write");
    let map = |page: &std::fs::File, at| Map::file(page, at, PAGE).replace();
    bench.space.must_map(map(&first, base));
    for shown in &SHOWN {
        let rip = shown.gpa + base - OFFSET + PAGE - FORCED.len() as u64;
        for value in 0..4u8 {
            let second = files::memfd(PAGE);
            second
                .write_all_at(&[0xb8, value, 0, 0, 0, 0xf4], 0)
                .expect("write");
            bench.space.must_map(map(&second, base + PAGE));
            let exit = bench.vcpu.jump(rip, Args::default());
            assert_eq!(exit, Exit::Done(value.into()), "{}", shown.name);
        }
        bench.space.unmap(base + PAGE, PAGE).expect("unmap");
        let exit = bench.vcpu.jump(rip, Args::default());
        assert!(matches!(exit, Exit::Other(_)), "a hole: {exit:x?}");
        bench.vcpu.reset();
    }
    bench.untouched();
}
