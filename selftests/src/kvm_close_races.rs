// SPDX-License-Identifier: GPL-2.0

//! Spaces are closed under several vCPUs, of one VM and of two, while their files are cut. When
//! the close has returned, no vCPU reads or writes their pages (see `support::witness`).

use std::any::Any;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Mutex;
use std::time::Duration;

use asfd::sys::KVM_MEM_LOG_DIRTY_PAGES;
use nix::fcntl::{fallocate, FallocateFlags};

use crate::support::guest::Vm;
use crate::support::meeting::{add, repeat, run_out};
use crate::support::mirror::mirror;
use crate::support::pages::{Size, Source};
use crate::support::rights::View;
use crate::support::smp::{Board, Smp};
use crate::support::system::scaled;
use crate::support::witness::{jobs, len, show, Pages, AT, BASE, SLOT, VCPUS};
use crate::support::{Map, Space};

crate::suite![closed_under_two_vcpus(300), closed_under_two_vms(300)];

/// What keeps a space alive besides its first descriptor.
fn keeper(space: &Space, size: Size) -> Option<Box<dyn Any>> {
    match fastrand::u8(0..5) {
        0 => Some(Box::new(space.dup())),
        1 => Some(Box::new(space.must_view(View::of(AT, len(size))))),
        2 => Some(Box::new(mirror(space, AT, len(size)))),
        _ => None,
    }
}

#[derive(Default)]
struct Met {
    closed: AtomicU64,
    cuts: AtomicU64,
    turns: [AtomicU64; VCPUS as usize],
}

fn cut(current: &Mutex<Option<File>>, size: Size, met: &Met) {
    let file = current.lock().expect("no panic").take();
    if let Some(file) = file {
        let (len, unit) = (len(size), size.unit());
        let at = fastrand::u64(0..len / unit) * unit;
        if fastrand::bool() {
            file.set_len(at).expect("ftruncate");
            file.set_len(len).expect("ftruncate");
        } else {
            let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(file, mode, at as i64, unit as i64).expect("fallocate");
        }
        add(&met.cuts, true);
    }
    std::thread::sleep(Duration::from_micros(fastrand::u64(0..300)));
}

fn closes(size: Size, vms: &[&Vm]) {
    let (mut smp, met, current) = (Smp::default(), Met::default(), Mutex::new(None));
    smp.zeros_may_be = true;
    let board = Board::on(vms[0]);
    vms[1..].iter().for_each(|vm| board.plug(vm));
    let source = Source::new(size, 10);
    let vcpus = [vms[0].vcpu(0), vms[vms.len() - 1].vcpu(1)];
    let mut number = 0;
    let mut last: Option<Pages> = None;
    let round = || {
        number += 16;
        let pages = Pages::new(&source, len(size), number);
        let space = Space::new();
        space.must_map(Map::file(&pages.file, AT, len(size)));
        let flags = [0, KVM_MEM_LOG_DIRTY_PAGES][fastrand::usize(0..2)];
        vms.iter().for_each(|vm| show(vm, &space, size, flags));
        let tell = |number| (0..VCPUS).for_each(|vcpu| board.tell(vcpu, number));
        tell(number - 8);
        board.another_turn(0..VCPUS, &smp.stop);
        let keeper = keeper(&space, size);
        *current.lock().expect("no panic") = Some(pages.file.try_clone().expect("dup"));
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..600)));
        drop(space);
        drop(keeper);
        // From here on a page of it must not be met.
        tell(number + 1);
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..1500)));
        pages.written_at_most(number);
        if let Some(last) = last.replace(pages) {
            last.written_at_most(number - 16);
        }
        vms.iter()
            .for_each(|vm| vm.unmap_slot(SLOT).expect("delete"));
        add(&met.closed, true);
        for (vcpu, turns) in (0..).zip(&met.turns) {
            turns.store(board.turns(vcpu).into(), Relaxed);
        }
    };
    std::thread::scope(|scope| {
        for (vcpu, job) in vcpus.into_iter().zip(jobs(size, BASE)) {
            let smp = &smp;
            scope.spawn(move || smp.run(vcpu, &job));
        }
        scope.spawn(|| repeat(&smp.stop, round));
        scope.spawn(|| repeat(&smp.stop, || cut(&current, size, &met)));
        let least = [
            ("closed", &met.closed, 10),
            ("cuts", &met.cuts, 10),
            ("turns of all", &met.turns[0], 20),
            ("turns of the middle", &met.turns[1], 20),
            ("holes", &smp.holes, 20),
        ];
        run_out(Duration::from_millis(scaled(1500)), &smp.stop, &least);
    });
}

fn closed_under_two_vcpus() {
    for size in Size::ALL {
        closes(size, &[&Vm::new()]);
    }
}

fn closed_under_two_vms() {
    for size in Size::ALL {
        closes(size, &[&Vm::new(), &Vm::new()]);
    }
}
