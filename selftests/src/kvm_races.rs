// SPDX-License-Identifier: GPL-2.0

//! Several vCPUs use pages that are replaced, unmapped and protected all the time, while something
//! else happens to the pages or to the slots. When an edit has returned, no vCPU reads or writes
//! the old pages (see `support::witness`).

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Mutex;
use std::time::Duration;

use asfd::sys::KVM_MEM_LOG_DIRTY_PAGES;
use kvm_bindings::kvm_pre_fault_memory;
use libc::MADV_PAGEOUT;
use nix::fcntl::{fallocate, FallocateFlags};

use crate::harness::skip;
use crate::note;
use crate::support::guest::{window, Vm};
use crate::support::meeting::{add, repeat, run_out};
use crate::support::pages::{Size, Source};
use crate::support::smp::{Board, Smp};
use crate::support::swap::Swap;
use crate::support::system::{counter, scaled};
use crate::support::witness::{jobs, len, show, Counts, Editor, AT, BASE, SLOT};
use crate::support::{Errno, Space, HUGE, PAGE};

crate::suite![
    edits(300),
    edits_and_dirty_logging(300),
    edits_and_slots(300),
    edits_and_migration(300),
    edits_and_truncation(300),
    edits_and_prefaults(300),
    edits_and_aliases(300),
    edits_and_two_vms(300),
];

/// What the vCPUs and those who disturb them share.
struct Scene {
    vm: Vm,
    space: Space,
    size: Size,
    board: Board,
    smp: Smp,
    counts: Counts,
    current: Mutex<Option<File>>,
    /// Where the second vCPU finds the pages, if not at the same address.
    base: u64,
    /// Whose the second vCPU is, if not the first VM's.
    second: Option<Vm>,
}

impl Scene {
    fn new(size: Size) -> Scene {
        let (vm, space) = (Vm::new(), Space::new());
        let board = Board::on(&vm);
        show(&vm, &space, size, 0);
        Scene {
            vm,
            space,
            size,
            board,
            smp: Smp::default(),
            counts: Counts::default(),
            current: Mutex::new(None),
            base: BASE,
            second: None,
        }
    }

    /// The vCPUs, the editor and `disturb`, repeated in a thread, until they have met.
    fn play(&self, least: &[(&str, &AtomicU64, u64)], disturb: impl FnMut() + Send) {
        let source = Source::new(self.size, 14);
        let second = self.second.as_ref().unwrap_or(&self.vm);
        let vcpus = [self.vm.vcpu(0), second.vcpu(1)];
        let (smp, counts) = (&self.smp, &self.counts);
        let (space, board) = (&self.space, &self.board);
        let mut editor = Editor::new(space, &source, board, smp, counts, &self.current);
        editor.replace_all();
        std::thread::scope(|scope| {
            for (vcpu, job) in vcpus.into_iter().zip(jobs(self.size, self.base)) {
                scope.spawn(move || smp.run(vcpu, &job));
            }
            scope.spawn(|| repeat(&smp.stop, disturb));
            scope.spawn(move || {
                repeat(&smp.stop, || editor.edit());
                editor.finish();
            });
            let mut all = vec![
                ("edits", &counts.edits, 10),
                ("turns of all", &counts.turns[0], 20),
                ("turns of the middle", &counts.turns[1], 100),
                ("holes", &smp.holes, 20),
                ("faults", &smp.faults, 1),
            ];
            all.extend(least);
            note!("{:?}", self.size);
            run_out(Duration::from_millis(scaled(1500)), &smp.stop, &all);
        });
    }
}

fn idle() {
    std::thread::sleep(Duration::from_millis(10));
}

fn edits() {
    for size in Size::ALL {
        Scene::new(size).play(&[], idle);
    }
}

/// Logging splits what is huge, and what was split becomes huge again.
fn edits_and_dirty_logging() {
    for size in Size::ALL {
        let scene = Scene::new(size);
        let [toggles, dirty] = [const { AtomicU64::new(0) }; 2];
        let least = [("toggles", &toggles, 10), ("dirty", &dirty, 10)];
        scene.play(&least, || {
            let pause = || std::thread::sleep(Duration::from_micros(fastrand::u64(0..3000)));
            show(&scene.vm, &scene.space, size, KVM_MEM_LOG_DIRTY_PAGES);
            for _ in 0..3 {
                pause();
                let pages = scene.vm.dirty_pages(SLOT, len(size));
                add(&dirty, !pages.is_empty());
            }
            show(&scene.vm, &scene.space, size, 0);
            pause();
            add(&toggles, true);
        });
    }
}

/// Where there is no slot there is a hole.
fn edits_and_slots() {
    for size in Size::ALL {
        let (scene, changes) = (Scene::new(size), AtomicU64::new(0));
        scene.play(&[("changes", &changes, 20)], || {
            scene.vm.unmap_slot(SLOT).expect("delete");
            std::thread::sleep(Duration::from_micros(fastrand::u64(0..1000)));
            show(&scene.vm, &scene.space, size, 0);
            std::thread::sleep(Duration::from_micros(fastrand::u64(0..4000)));
            add(&changes, true);
        });
    }
}

/// The kernel moves pages about, and writes them to swap.
fn edits_and_migration() {
    let Some(_swap) = Swap::on(1) else {
        skip("no swap");
    };
    for size in [Size::Small, Size::Transparent] {
        let scene = Scene::new(size);
        let [compacted, paged_out, moved] = [const { AtomicU64::new(0) }; 3];
        let events = || ["pgmigrate_success", "pswpout"].map(|name| counter("/proc/vmstat", name));
        let before = events();
        let least = [
            ("compacted", &compacted, 2),
            ("swapped out", &paged_out, 50),
        ];
        scene.play(&least, || {
            std::fs::write("/proc/sys/vm/compact_memory", "1").expect("compact_memory");
            add(&compacted, true);
            for _ in 0..8 {
                let _ = scene.space.advise(AT, len(size), MADV_PAGEOUT);
                std::thread::sleep(Duration::from_micros(500));
            }
            let [migrated, out] = events();
            paged_out.store(out - before[1], Relaxed);
            moved.store(migrated - before[0], Relaxed);
        });
        note!("{moved:?} pages migrated");
    }
}

/// What is cut off a file, or punched out of it, is zeros afterwards.
fn edits_and_truncation() {
    for size in Size::ALL {
        let mut scene = Scene::new(size);
        scene.smp.zeros_may_be = true;
        let [cuts, punches] = [const { AtomicU64::new(0) }; 2];
        let least = [
            ("cuts", &cuts, 5),
            ("punches", &punches, 5),
            ("zeros", &scene.smp.zeros, 5),
        ];
        let (len, unit) = (len(size), size.unit());
        scene.play(&least, || {
            // Taken out: who holds the lock holds up the editor.
            let file = scene.current.lock().expect("no panic").take();
            if let Some(file) = file {
                let at = fastrand::u64(0..len / unit) * unit;
                if fastrand::bool() {
                    file.set_len(at).expect("ftruncate");
                    file.set_len(len).expect("ftruncate");
                    add(&cuts, true);
                } else {
                    let mode =
                        FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                    fallocate(file, mode, at as i64, unit as i64).expect("fallocate");
                    add(&punches, true);
                }
            }
            std::thread::sleep(Duration::from_micros(fastrand::u64(0..4000)));
        });
    }
}

/// Another vCPU, which never runs, has the pages mapped ahead of use.
fn edits_and_prefaults() {
    const KVM_PRE_FAULT_MEMORY: u32 = 0xc040_aed5;
    for size in Size::ALL {
        let scene = Scene::new(size);
        let vcpu = scene.vm.vcpu(7);
        let [done, refused] = [const { AtomicU64::new(0) }; 2];
        let least = [("prefaulted", &done, 50), ("refused", &refused, 1)];
        scene.play(&least, || {
            let mut range = kvm_pre_fault_memory {
                gpa: BASE,
                size: len(size),
                ..Default::default()
            };
            // SAFETY: The struct is what the request takes.
            let answer =
                unsafe { asfd::sys::ioctl(vcpu.fd.as_raw_fd(), KVM_PRE_FAULT_MEMORY, &mut range) };
            match answer.map_err(crate::support::space::errno) {
                Ok(_) => add(&done, true),
                Err(Errno::EOPNOTSUPP) => skip("KVM_PRE_FAULT_MEMORY needs nested paging"),
                Err(_) => add(&refused, true),
            }
        });
    }
}

/// The second vCPU has the pages at another address, by a window whose pages are never huge.
fn edits_and_aliases() {
    for size in Size::ALL {
        let mut scene = Scene::new(size);
        scene.base = BASE + 8 * HUGE + PAGE;
        let alias = window(SLOT + 1, scene.base, len(size), &scene.space, AT);
        scene.vm.must_map(alias);
        scene.play(&[], idle);
    }
}

/// The second vCPU is another VM's.
fn edits_and_two_vms() {
    for size in Size::ALL {
        let mut scene = Scene::new(size);
        let vm = Vm::new();
        scene.board.plug(&vm);
        show(&vm, &scene.space, size, 0);
        scene.second = Some(vm);
        scene.play(&[], idle);
    }
}
