// SPDX-License-Identifier: GPL-2.0

//! Files that hold the same byte everywhere, edits of a space that show nothing but such pages and
//! holes, and guests that walk there. What is written back by a walk changes nothing, unless it
//! is written to a page that is no longer there.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::guest::{Args, Exit, Kicker, Routine, Vcpu};
use super::meeting::{add, repeat};
use super::{files, Map, Space, PAGE};

pub const BYTE: u8 = 0x77;
pub const WORD: u32 = u32::from_le_bytes([BYTE; 4]);

/// Pages of the range that is edited and walked.
pub const PAGES: u64 = 16;
const LEN: usize = (PAGES * PAGE) as usize;

pub fn uniform() -> [File; 3] {
    [(); 3].map(|()| {
        let file = files::memfd(PAGES * PAGE);
        file.write_all_at(&[BYTE; LEN], 0).expect("write");
        file
    })
}

/// That they still are.
#[track_caller]
pub fn all_uniform(files: &[File; 3]) {
    for file in files {
        let mut bytes = vec![0; LEN];
        file.read_exact_at(&mut bytes, 0).expect("read");
        assert!(
            bytes.iter().all(|byte| *byte == BYTE),
            "a page was written that was not there"
        );
    }
}

/// One random edit of the first pages of the space.
pub fn edit_files(space: &Space, files: &[File; 3], random: &mut fastrand::Rng) {
    let start = random.u64(0..PAGES);
    let len = random.u64(1..=PAGES - start) * PAGE;
    let at = start * PAGE;
    let file = Map::file(&files[random.usize(0..3)], at, len)
        .offset(at)
        .replace();
    let result = match random.u8(0..4) {
        0 => space.unmap(at, len).map(|()| 0),
        1 => space.map(file.private()),
        _ => space.map(file),
    };
    assert!(result.is_ok(), "{result:?}");
}

/// What a walking guest met.
#[derive(Default, Debug)]
pub struct Walk {
    pub turns: AtomicU64,
    pub holes: AtomicU64,
}

/// Walks the pages at `base` until told to stop. `hole` says of an exit that it is a right answer to
/// a hole there.
pub fn walk(
    mut vcpu: Vcpu,
    base: u64,
    stop: &AtomicBool,
    met: &Walk,
    hole: impl Fn(&Exit) -> bool,
) {
    let _kicker = Kicker::after(Duration::from_millis(20));
    let args = Args {
        ebx: base as u32,
        ecx: LEN as u32,
        ..Default::default()
    };
    let mut exit = vcpu.call(Routine::Walk, args);
    let mut before = 0;
    repeat(stop, || {
        if exit != Exit::Kicked {
            assert!(hole(&exit), "{exit:x?}");
            add(&met.holes, true);
        }
        exit = vcpu.resume();
        let turn = vcpu.edx();
        met.turns
            .fetch_add(turn.wrapping_sub(before).into(), Relaxed);
        before = turn;
    });
}

/// An access to the range at `base` that KVM hands on, as it does for what is in no slot.
pub fn mmio(base: u64) -> impl Fn(&Exit) -> bool {
    let range = base..base + PAGES * PAGE;
    move |exit| match exit {
        Exit::MmioRead { addr, len: 4 } | Exit::MmioWrite { addr, .. } => range.contains(addr),
        _ => false,
    }
}
