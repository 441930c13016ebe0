// SPDX-License-Identifier: GPL-2.0

//! Closes spaces under a running guest while their files are truncated, punched and paged out.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use nix::fcntl::{fallocate, FallocateFlags};

use crate::note;
use crate::support::cgroup::Cgroup;
use crate::support::files::{self, drop_caches, Ext4, TempFile};
use crate::support::guest::{place_code, plain_code, window, Args, Exit, Kicker, Routine, Vm};
use crate::support::swap::Swap;
use crate::support::system::{rounds, RaiseAtEnd};
use crate::support::{Map, Space, PAGE};

crate::suite![closes_under_a_running_guest(1500)];

const ROUNDS_PER_VM: u32 = 10;
/// Pages of each file, and where in the guest and the space the walked range begins.
const PAGES: u64 = 16;
const BASE: u64 = 1 << 20;

/// A page of a file that is not disturbed, with two words: the guest copies the first to the
/// second each time it walks.
struct Beacon {
    file: File,
    words: *const [AtomicU32; 2],
}

// SAFETY: The words are atomic, and mapped for the life of the process.
unsafe impl Sync for Beacon {}

impl Beacon {
    fn new() -> Beacon {
        let file = files::memfd(PAGE);
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let len = PAGE as usize;
        // SAFETY: A new mapping at a free address, never unmapped.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Beacon {
            file,
            words: at.cast(),
        }
    }

    fn words(&self) -> &[AtomicU32; 2] {
        // SAFETY: Mapped for good, aligned, and all access is atomic.
        unsafe { &*self.words }
    }

    /// Whether the guest answers `number` within the given time.
    fn answers(&self, number: u32, wait: Duration) -> bool {
        let [asked, answered] = self.words();
        asked.store(number, Relaxed);
        let started = std::time::Instant::now();
        while answered.load(Relaxed) != number {
            if started.elapsed() >= wait {
                return false;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        true
    }
}

/// The files that get into trouble, of every kind that can be had here.
struct Victims {
    memfd: File,
    temp: TempFile,
    disk: Option<TempFile>,
}

impl Victims {
    fn all(&self) -> impl Iterator<Item = &File> {
        [&self.memfd, &self.temp.file]
            .into_iter()
            .chain(self.disk.as_ref().map(|t| &t.file))
    }
}

#[derive(Default, Debug)]
struct Meetings {
    walks: AtomicU64,
    holes: AtomicU64,
    faults: AtomicU64,
    /// Of the guest, as its code and page tables were gone.
    shutdowns: AtomicU64,
    truncations: AtomicU64,
    punches: AtomicU64,
    pageouts: AtomicU64,
    reclaimed: AtomicU64,
    closed_while_walking: AtomicU64,
}

fn closes_under_a_running_guest() {
    let rounds = rounds() as u32;
    let swap = Swap::on(1);
    let ext4 = Ext4::mount();
    note!("swap: {}, ext4: {:?}", swap.is_some(), ext4.as_ref().err());
    let cgroup = Cgroup::new("close-stress");
    cgroup.enter();
    let disk = ext4
        .as_ref()
        .ok()
        .map(|ext4| TempFile::new(ext4.path(), PAGES * PAGE));
    let temp = TempFile::new("/tmp", PAGES * PAGE);
    let victims = Victims {
        memfd: files::memfd(PAGES * PAGE),
        temp,
        disk,
    };
    let (beacon, met) = (Beacon::new(), Meetings::default());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = RaiseAtEnd(&stop);
        scope.spawn(|| cut(&victims, &stop, &met));
        scope.spawn(|| page_out(&victims, &cgroup, &stop, &met));
        for first in (0..rounds).step_by(ROUNDS_PER_VM as usize) {
            let numbers = first + 1..(first + ROUNDS_PER_VM).min(rounds) + 1;
            one_vm(numbers, &victims, &beacon, &met);
        }
    });
    Cgroup::leave();
    note!("{met:?}");
    // That what was to be tried did happen.
    let at_least = |what: &str, count: &AtomicU64, least: u32| {
        let count = count.load(Relaxed);
        assert!(count >= least.into(), "only {count} {what}");
    };
    at_least("truncations", &met.truncations, rounds);
    at_least("punches", &met.punches, rounds);
    at_least("page-outs", &met.pageouts, rounds / 2);
    at_least("memory faults", &met.faults, rounds / 10);
    at_least(
        "rounds that closed under a walk",
        &met.closed_while_walking,
        rounds * 9 / 10,
    );
}

/// Truncates and punches the files until told to stop.
fn cut(victims: &Victims, stop: &AtomicBool, met: &Meetings) {
    let mut random = fastrand::Rng::with_seed(2);
    while !stop.load(Relaxed) {
        for file in victims.all() {
            file.set_len(random.u64(0..PAGES) * PAGE)
                .expect("ftruncate");
            file.set_len(PAGES * PAGE).expect("ftruncate");
            met.truncations.fetch_add(1, Relaxed);
            let start = random.i64(0..PAGES as i64) * PAGE as i64;
            let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(file, mode, start, 4 * PAGE as i64).expect("fallocate");
            met.punches.fetch_add(1, Relaxed);
            // Most of the time the guest finds its pages.
            std::thread::sleep(Duration::from_millis(random.u64(0..10)));
        }
    }
}

/// Pages the files out by other mappings of them, and the space by its cgroup.
fn page_out(victims: &Victims, cgroup: &Cgroup, stop: &AtomicBool, met: &Meetings) {
    let len = (PAGES * PAGE) as usize;
    let map = |file: &File| {
        // SAFETY: A new mapping at a free address, which is never read or written here.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        at
    };
    let mappings: Vec<_> = victims.all().map(map).collect();
    let mut turn = 0;
    while !stop.load(Relaxed) {
        for at in &mappings {
            // SAFETY: Our own mapping; the advice takes nothing from it.
            unsafe { libc::madvise(*at, len, libc::MADV_PAGEOUT) };
            met.pageouts.fetch_add(1, Relaxed);
        }
        let reclaimed = cgroup.try_set("memory.reclaim", "256K");
        met.reclaimed.fetch_add(reclaimed.into(), Relaxed);
        turn += 1;
        if turn % 64 == 0 {
            drop_caches();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Some rounds with one VM: a space is made and shown, the guest walks it, the space is closed.
fn one_vm(numbers: std::ops::Range<u32>, victims: &Victims, beacon: &Beacon, met: &Meetings) {
    let vm = Vm::new();
    // The guest's code is outside the space, or, every other VM, in the space that goes.
    let code_inside = numbers.start / ROUNDS_PER_VM % 2 == 1;
    let _code = (!code_inside).then(|| plain_code(&vm));
    let vcpu = vm.vcpu(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = RaiseAtEnd(&stop);
        scope.spawn(|| walk(vcpu, &stop, met));
        for number in numbers {
            one_round(number, &vm, code_inside, victims, beacon, met);
        }
    });
}

/// Bytes of the range that the guest walks.
const LEN: u64 = (1 + 5 * PAGES) * PAGE;

/// Lets the guest walk the range, from the start again after whatever exit, until told to stop.
fn walk(mut vcpu: crate::support::guest::Vcpu, stop: &AtomicBool, met: &Meetings) {
    let _kicker = Kicker::after(Duration::from_millis(5));
    let args = Args {
        ebx: BASE as u32,
        ecx: LEN as u32,
        ..Default::default()
    };
    while !stop.load(Relaxed) {
        let mut exit = vcpu.call(Routine::Walk, args);
        for _ in 0..64 {
            match exit {
                Exit::Kicked if !stop.load(Relaxed) => exit = vcpu.resume(),
                Exit::MmioRead { .. } | Exit::MmioWrite { .. } => {
                    met.holes.fetch_add(1, Relaxed);
                    exit = vcpu.resume();
                }
                Exit::MemoryFault { .. } => {
                    met.faults.fetch_add(1, Relaxed);
                    break;
                }
                Exit::Other(_) => {
                    met.shutdowns.fetch_add(1, Relaxed);
                    vcpu.reset();
                    break;
                }
                _ => break,
            }
        }
        met.walks.fetch_add(vcpu.edx().into(), Relaxed);
    }
}

fn one_round(
    number: u32,
    vm: &Vm,
    code_inside: bool,
    victims: &Victims,
    beacon: &Beacon,
    met: &Meetings,
) {
    let mut random = fastrand::Rng::with_seed(number.into());
    let space = Space::new();
    if code_inside {
        place_code(&space, 0);
    }
    space.must_map(Map::file(&beacon.file, BASE, PAGE));
    let mut at = BASE + PAGE;
    let len = PAGES * PAGE;
    let kinds = [Map::anon(0, len), Map::anon(0, len).shared()];
    let shared = victims.all().map(|file| Map::file(file, 0, len));
    let private = victims.all().map(|file| Map::file(file, 0, len).private());
    let mut maps: Vec<Map> = kinds.into_iter().chain(shared).chain(private).collect();
    random.shuffle(&mut maps);
    for mut map in maps.into_iter().take(5) {
        map.0.addr = at;
        space.must_map(map);
        at += len;
    }
    let first = if code_inside { 0 } else { BASE };
    vm.must_map(window(1, first, at - first, &space, first));
    let walking = beacon.answers(2 * number, Duration::from_secs(5));
    met.closed_while_walking.fetch_add(walking.into(), Relaxed);
    std::thread::sleep(Duration::from_micros(random.u64(0..2000)));
    let copy = (number % 3 == 0).then(|| space.dup());
    drop(space);
    drop(copy);
    // No vCPU reaches the pages any more.
    let still = beacon.answers(2 * number + 1, Duration::from_millis(2));
    assert!(
        !still,
        "round {number}: the guest writes through a space that is closed"
    );
    vm.unmap_slot(1).expect("delete");
}
