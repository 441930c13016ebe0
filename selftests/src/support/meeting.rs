// SPDX-License-Identifier: GPL-2.0

//! Threads, or processes, that meet: each repeats what it does until they met often enough.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::system::RaiseAtEnd;
use crate::note;

/// Runs until the time is over and each counter has reached its minimum.
pub fn run_out(time: Duration, stop: &AtomicBool, meetings: &[(&str, &AtomicU64, u64)]) {
    let _end = RaiseAtEnd(stop);
    let started = Instant::now();
    let enough = || {
        meetings
            .iter()
            .all(|(_, count, least)| count.load(Relaxed) >= *least)
    };
    while started.elapsed() < time || !enough() {
        assert!(!stop.load(Relaxed), "a thread failed");
        assert!(
            started.elapsed() < 12 * time.max(Duration::from_secs(5)),
            "too few meetings: {meetings:?}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    note!("{meetings:?}");
}

/// Repeats `action` until told to stop, and stops all others when it fails.
pub fn repeat(stop: &AtomicBool, mut action: impl FnMut()) {
    struct Failed<'a>(&'a AtomicBool);
    impl Drop for Failed<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.store(true, Relaxed);
            }
        }
    }
    let _failed = Failed(stop);
    while !stop.load(Relaxed) {
        action();
    }
}

pub fn add(counter: &AtomicU64, condition: bool) {
    counter.fetch_add(condition.into(), Relaxed);
}
