// SPDX-License-Identifier: GPL-2.0

//! Several ways to the same pages at once: a guest that has the space by a window and by a slot
//! over a mirror, and a process with mirrors of two spaces that share a file.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use nix::fcntl::{fallocate, FallocateFlags};

use crate::support::crew::{mapping, run_with, time, Crew, Generations, Job, AT, LEN};
use crate::support::files;
use crate::support::guest::{plain_code, window, Exit, Vm};
use crate::support::meeting::{add, repeat, run_out};
use crate::support::mirror::mirror;
use crate::support::phases::State;
use crate::support::uniform::{
    all_uniform, edit_files, mmio, uniform, walk, Walk, BYTE, PAGES, WORD,
};
use crate::support::{Errno, Map, Space, PAGE};

crate::suite![
    window_and_slot_over_a_mirror,
    two_vms,
    two_spaces_in_one_process,
];

/// Where a guest has the space by a slot over a mirror, and by a window.
const SLOT: u64 = 1 << 20;
const WINDOW: u64 = 2 << 20;

/// What a hole is for a guest: MMIO in a window, a fault in a slot. (A store to a slot can be MMIO
/// when KVM, having met a hole, finds a page that can be read there a moment later.)
fn hole(base: u64) -> impl Fn(&Exit) -> bool {
    let mmio = mmio(base);
    move |exit| match exit {
        Exit::MemoryFault { .. } => base == SLOT,
        Exit::Other(what) => base == SLOT && what.contains("Bad address"),
        Exit::MmioRead { .. } => base == WINDOW && mmio(exit),
        other => mmio(other),
    }
}

/// Two vCPUs walk the space, one by each way, in one VM or in two.
fn both_ways(vms: [&Vm; 2]) {
    let (space, files, stop) = (Space::new(), uniform(), AtomicBool::new(false));
    let area = mirror(&space, 0, PAGES * PAGE);
    vms[0]
        .set_plain_slot(1, 0, SLOT, PAGES * PAGE, area.addr())
        .expect("a slot over a mirror");
    vms[1].must_map(window(2, WINDOW, PAGES * PAGE, &space, 0));
    let mut vcpus = [vms[0].vcpu(0), vms[1].vcpu(1)];
    vcpus[1].answer = WORD;
    let (met, edits) = ([Walk::default(), Walk::default()], AtomicU64::new(0));
    let loads = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for ((vcpu, base), met) in vcpus.into_iter().zip([SLOT, WINDOW]).zip(&met) {
            let stop = &stop;
            scope.spawn(move || walk(vcpu, base, stop, met, hole(base)));
        }
        scope.spawn(|| {
            let mut random = fastrand::Rng::with_seed(1);
            repeat(&stop, || {
                edit_files(&space, &files, &mut random);
                add(&edits, true);
                std::thread::sleep(Duration::from_micros(random.u64(0..500)));
            });
        });
        scope.spawn(|| {
            let mut random = fastrand::Rng::with_seed(2);
            repeat(&stop, || {
                let offset = random.u64(0..PAGES) * PAGE;
                if let Ok(word) = area.load_word(offset) {
                    assert_eq!(word, u64::from_le_bytes([BYTE; 8]));
                    add(&loads, true);
                }
                // The same by the descriptor, which pins.
                match space.read_at(offset, &mut [0]) {
                    Ok(1) | Err(Errno::EIO) => {}
                    other => panic!("{other:?}"),
                }
            });
        });
        let least = [
            ("edits", &edits, 300),
            ("walks by the slot", &met[0].turns, 20),
            ("walks by the window", &met[1].turns, 20),
            ("holes in the slot", &met[0].holes, 5),
            ("holes in the window", &met[1].holes, 5),
            ("loads", &loads, 200),
        ];
        run_out(time(), &stop, &least);
    });
    all_uniform(&files);
}

fn window_and_slot_over_a_mirror() {
    let vm = Vm::new();
    let _code = plain_code(&vm);
    both_ways([&vm, &vm]);
}

fn two_vms() {
    let (one, two) = (Vm::new(), Vm::new());
    let code = plain_code(&one);
    two.set_plain_slot(0, 0, 0, PAGE, code.0)
        .expect("an ordinary slot");
    both_ways([&one, &two]);
}

/// Each space has its own crew and changes; a file that both show loses pages all the time.
fn two_spaces_in_one_process() {
    let (spaces, common) = ([Space::new(), Space::new()], files::memfd(2 * PAGE));
    std::thread::scope(|scope| {
        for space in &spaces {
            // Beside the watched pages, within the same mirrors.
            for (at, offset) in [(AT - PAGE, 0), (AT + LEN, PAGE)] {
                space.must_map(Map::file(&common, at, PAGE).offset(offset));
            }
            let common = &common;
            scope.spawn(move || {
                let (crew, mut generations) = (Crew::new(State::HOLE), Generations::new());
                let mut current = None;
                let edit: Job = Box::new(|| {
                    let (next, word) = generations.next();
                    let map = mapping(&next).replace();
                    let state = State::full_of(word);
                    crew.phases.change(state, || space.must_map(map));
                    if let Some(old) = current.replace(next) {
                        generations.retire(old);
                    }
                    add(&crew.changes, true);
                });
                let cut: Job = Box::new(|| {
                    common.write_all_at(b"some", 0).expect("write");
                    let area = mirror(space, AT - PAGE, LEN + 2 * PAGE);
                    let _ = area.load_word(0);
                    let mode =
                        FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                    fallocate(common, mode, 0, 2 * PAGE as i64).expect("fallocate");
                    add(&crew.others, true);
                });
                let least = [("loads", 500), ("changes", 50), ("others", 50)];
                run_with(space, &crew, &least, vec![edit, cut]);
            });
        }
    });
}
