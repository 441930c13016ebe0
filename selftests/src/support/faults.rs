// SPDX-License-Identifier: GPL-2.0

//! Makes each allocation of a call fail once (fail-nth of the kernel's fault injection).

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use super::system::Setting;
use crate::harness::skip;

pub struct Faults {
    nth: File,
    _settings: Vec<Setting>,
}

impl Faults {
    /// Skips the test where the kernel was built without fault injection.
    pub fn new() -> Faults {
        let debug = "/sys/kernel/debug";
        let path = "/proc/thread-self/fail-nth";
        let Ok(nth) = OpenOptions::new().read(true).write(true).open(path) else {
            skip("no fault injection in this kernel");
        };
        let mut settings = Vec::new();
        for (file, value) in [
            // Allocations that may sleep are not failed otherwise.
            ("failslab/ignore-gfp-wait", "N"),
            ("failslab/verbose", "0"),
            ("fail_page_alloc/ignore-gfp-wait", "N"),
            ("fail_page_alloc/min-order", "0"),
            ("fail_page_alloc/verbose", "0"),
        ] {
            let path = format!("{debug}/{file}");
            if fs::exists(&path).unwrap_or(false) {
                settings.push(Setting::set(&path, value));
            }
        }
        if settings.is_empty() {
            skip("no failslab in debugfs");
        }
        Faults {
            nth,
            _settings: settings,
        }
    }

    /// Runs `call` with its `n`-th allocation failing; false when it made fewer.
    pub fn inject<T>(&self, n: u32, call: impl FnOnce() -> T) -> (T, bool) {
        self.set(n);
        let result = call();
        let mut left = [0; 16];
        let len = self.nth.read_at(&mut left, 0).expect("read of fail-nth");
        self.set(0);
        (result, left[..len].trim_ascii() == b"0")
    }

    fn set(&self, n: u32) {
        self.nth
            .write_all_at(n.to_string().as_bytes(), 0)
            .expect("write of fail-nth");
    }
}
