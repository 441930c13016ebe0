// SPDX-License-Identifier: GPL-2.0

//! Who registers with the memory of a process takes all locks of all its mappings at once, those
//! of its mirrors among them, and of the files that the mirrors' spaces hold. A page that such a
//! file loses meanwhile needs two of these locks, one inside the other. Should the orders differ,
//! a test here does not end.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use libc::{MAP_FIXED_NOREPLACE, MAP_SHARED};
use nix::fcntl::{fallocate, FallocateFlags};

use crate::support::crew::time;
use crate::support::files;
use crate::support::guest::Vm;
use crate::support::meeting::{add, repeat, run_out};
use crate::support::mirror::Area;
use crate::support::rights::RW;
use crate::support::swap::Swap;
use crate::support::system::slow_zaps;
use crate::support::{Map, Space, PAGE};

crate::suite![
    mirror_below_the_file(240),
    mirror_above_the_file(240),
    several_of_each(240),
];

const LEN: u64 = 32 * PAGE;
/// Behind the file, the space has anonymous memory.
const ALL: u64 = 2 * LEN;
const LOW: u64 = 0x10_0000_0000;
const HIGH: u64 = 0x20_0000_0000;

fn at(addr: u64, fd: &impl AsRawFd, len: u64) -> Area {
    let flags = MAP_SHARED | MAP_FIXED_NOREPLACE;
    Area::mmap(addr, len, RW, flags, fd.as_raw_fd(), 0).expect("mmap")
}

/// Registers and zaps, while `mirrors` and `files`, which are addresses, are used.
fn met(mirrors: &[u64], direct: &[u64]) {
    let (_swap, _delay) = (Swap::on(1), slow_zaps(50));
    drop(Vm::new());
    let (space, file) = (Space::new(), files::memfd(LEN));
    space.must_map(Map::file(&file, 0, LEN));
    space.must_map(Map::anon(LEN, LEN));
    let mut areas: Vec<Area> = mirrors.iter().map(|addr| at(*addr, &space, ALL)).collect();
    areas.extend(direct.iter().map(|addr| at(*addr, &file, LEN)));
    let stop = AtomicBool::new(false);
    let [registered, punched, cut, paged, touched] = [const { AtomicU64::new(0) }; 5];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            repeat(&stop, || {
                drop(Vm::new());
                add(&registered, true);
            });
        });
        scope.spawn(|| {
            let mut random = fastrand::Rng::with_seed(1);
            let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            repeat(&stop, || {
                if random.u8(0..4) == 0 {
                    file.set_len(random.u64(0..LEN)).expect("ftruncate");
                    file.set_len(LEN).expect("ftruncate");
                    add(&cut, true);
                } else {
                    let start = random.u64(0..LEN / PAGE) * PAGE;
                    fallocate(&file, mode, start as i64, 4 * PAGE as i64).expect("fallocate");
                    add(&punched, true);
                }
                // Faults wait until no zap is under way: there has to be such a time.
                std::thread::sleep(Duration::from_micros(200));
            });
        });
        scope.spawn(|| {
            let mut random = fastrand::Rng::with_seed(2);
            repeat(&stop, || {
                let advice = [libc::MADV_PAGEOUT, libc::MADV_DONTNEED];
                space.must_advise(0, ALL, random.choice(advice).expect("two"));
                add(&paged, true);
                std::thread::sleep(Duration::from_micros(400));
            });
        });
        scope.spawn(|| {
            let mut random = fastrand::Rng::with_seed(3);
            repeat(&stop, || {
                let area = random.choice(&areas).expect("some");
                // What a cut file has not is no matter here.
                let there = area.store_word(random.u64(0..area.len() / PAGE) * PAGE, 1);
                add(&touched, there.is_ok());
            });
        });
        let least = [
            ("registrations", &registered, 20),
            ("punches", &punched, 50),
            ("truncations", &cut, 20),
            ("advice", &paged, 50),
            ("stores", &touched, 200),
        ];
        run_out(time(), &stop, &least);
    });
}

fn mirror_below_the_file() {
    met(&[LOW], &[HIGH]);
}

fn mirror_above_the_file() {
    met(&[HIGH], &[LOW]);
}

fn several_of_each() {
    met(
        &[LOW, LOW + 2 * ALL, HIGH + ALL],
        &[LOW + ALL, HIGH, HIGH + 2 * ALL],
    );
}
