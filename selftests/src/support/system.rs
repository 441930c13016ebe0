// SPDX-License-Identifier: GPL-2.0

//! Settings and counters of the machine.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{sched_getaffinity, sched_setaffinity, CpuSet};
use nix::unistd::Pid;

use crate::note;

/// A file under /proc/sys (or any such file) with a new value, and the old one back at the end.
pub struct Setting {
    path: PathBuf,
    old: String,
}

impl Setting {
    pub fn set(path: &str, value: &str) -> Setting {
        let path = PathBuf::from(path);
        let old = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        fs::write(&path, value).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        // Of a choice, what is chosen: a [b] c.
        let chosen = old
            .split_once('[')
            .and_then(|(_, rest)| rest.split_once(']'));
        let old = chosen.map_or(old.trim(), |(chosen, _)| chosen).to_string();
        Setting { path, old }
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(&self.path, &self.old);
    }
}

/// A number of a `name: number` file such as /proc/meminfo.
pub fn counter(file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{file}: {e}"));
    let line = text
        .lines()
        .find(|l| l.split([':', ' ']).next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {file}"));
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .expect("a number")
}

const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Free 2 MiB pages.
pub fn free_huge_pages() -> u64 {
    let text = fs::read_to_string(format!("{HUGE_PAGES}/free_hugepages")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Sees to it that there are `count` free 2 MiB pages, or skips the test.
pub fn need_huge_pages(count: u64) -> Setting {
    let path = format!("{HUGE_PAGES}/nr_hugepages");
    if !fs::exists(&path).unwrap_or(false) {
        crate::harness::skip("no 2 MiB pages on this machine");
    }
    let total: u64 = fs::read_to_string(&path).unwrap().trim().parse().unwrap();
    let setting = Setting::set(
        &path,
        &total.max(total - free_huge_pages() + count).to_string(),
    );
    if free_huge_pages() < count {
        drop(setting);
        crate::harness::skip("no memory for 2 MiB pages");
    }
    setting
}

/// Takes all 2 MiB pages away while it lives.
pub fn no_huge_pages() -> Setting {
    let path = format!("{HUGE_PAGES}/nr_hugepages");
    if !fs::exists(&path).unwrap_or(false) {
        crate::harness::skip("no 2 MiB pages on this machine");
    }
    let setting = Setting::set(&path, "0");
    assert_eq!(free_huge_pages(), 0, "huge pages are in use elsewhere");
    setting
}

/// Keeps khugepaged from small pages that are to become huge when the test says so: it wakes for
/// whoever asks for huge pages, MADV_COLLAPSE has them nevertheless.
pub fn no_khugepaged() -> Setting {
    Setting::set("/sys/kernel/mm/transparent_hugepage/enabled", "never")
}

/// Makes the time long between the zap of a space's mirrors and what follows it, where the kernel
/// has a way to: others then meet it that would not. That is for debug kernels only.
pub fn slow_zaps(micros: u32) -> Option<Setting> {
    const DELAY: &str = "/sys/module/asfd/parameters/zap_delay_us";
    let there = fs::exists(DELAY).unwrap_or(false);
    let delay = there.then(|| Setting::set(DELAY, &micros.to_string()));
    note!(
        "zaps are {}",
        if there { "slow" } else { "as fast as ever" }
    );
    delay
}

/// The CPUs that the calling thread may use.
pub fn cpus() -> Vec<usize> {
    let allowed = sched_getaffinity(Pid::this()).expect("sched_getaffinity");
    let is_allowed = |cpu: &usize| allowed.is_set(*cpu).unwrap_or(false);
    (0..CpuSet::count()).filter(is_allowed).collect()
}

/// Keeps the calling thread on one CPU.
pub fn stay_on(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).expect("a CPU's number");
    sched_setaffinity(Pid::from_raw(0), &cpus).expect("sched_setaffinity");
}

/// What SELFTESTS_ROUNDS says, which is 500 if it says nothing.
pub fn rounds() -> u64 {
    match std::env::var("SELFTESTS_ROUNDS") {
        Ok(text) => text.parse().expect("SELFTESTS_ROUNDS is a number"),
        Err(_) => 500,
    }
}

/// A number that is right for 500 rounds, in proportion.
pub fn scaled(number: u64) -> u64 {
    (number * rounds()).div_ceil(500)
}

/// Waits for what comes soon, but not at once: freeing is often deferred.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "never seen: {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Raises a flag at the end of its scope, also when that end is a panic: others then stop.
pub struct RaiseAtEnd<'a>(pub &'a AtomicBool);

impl Drop for RaiseAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
