// SPDX-License-Identifier: GPL-2.0

//! The descriptor of a space, a view, a mirror, the vCPU and the VM are closed in each of the 120
//! orders, with a guest_memfd of that VM in the space: nothing keeps anything alive that should
//! not, and what is left works.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::harness::skip;
use crate::support::files::{TempFile, Tmpfs};
use crate::support::guest::{window, Exit, Kicker, Vcpu, Vm};
use crate::support::mirror::{mirror, Area};
use crate::support::rights::View;
use crate::support::smp::{Board, Code, Job};
use crate::support::system::eventually;
use crate::support::{Map, Space, HUGE, PAGE};

crate::suite![orders_at_rest(400), orders_under_a_running_vcpu(400)];

const BASE: u64 = 8 * HUGE;
const AT: u64 = 64 * HUGE;
/// Pages of a guest_memfd, and behind them of a file.
const COUNT: u64 = 4;
const LEN: u64 = 2 * COUNT * PAGE;

/// All orders of 0 to 4.
fn orders() -> Vec<[usize; 5]> {
    let digits = |n: usize| [n % 5, n / 5 % 5, n / 25 % 5, n / 125 % 5, n / 625];
    let all: Vec<_> = (0..3125)
        .map(digits)
        .filter(|order| (0..5).all(|k| order.contains(&k)))
        .collect();
    assert_eq!(all.len(), 120);
    all
}

/// The vCPU, here or in a thread that runs it.
enum Cpu {
    Here(Box<Vcpu>),
    Running {
        fd: i32,
        end: Arc<AtomicBool>,
        thread: JoinHandle<()>,
    },
}

impl Cpu {
    fn running(vcpu: Vcpu) -> Cpu {
        let fd = vcpu.fd.as_raw_fd();
        let (end, begun) = [(); 2].map(|()| Arc::new(AtomicBool::new(false))).into();
        let (ended, begins) = (end.clone(), begun.clone());
        let thread = std::thread::spawn(move || run(vcpu, &ended, &begins));
        while !begun.load(SeqCst) {
            std::thread::yield_now();
        }
        // Time to get into the guest.
        std::thread::sleep(Duration::from_millis(1));
        Cpu::Running { fd, end, thread }
    }
}

fn run(mut vcpu: Vcpu, end: &AtomicBool, begun: &AtomicBool) {
    let _kicker = Kicker::after(Duration::from_millis(2));
    let job = Job {
        code: Code::Witness,
        vcpu: 0,
        at: BASE,
        len: LEN,
    };
    vcpu.answer = u32::MAX;
    begun.store(true, SeqCst);
    let mut exit = job.start(&mut vcpu);
    while !end.load(SeqCst) {
        match exit {
            Exit::Kicked | Exit::MmioRead { .. } | Exit::MmioWrite { .. } => exit = vcpu.resume(),
            // Its descriptor is another file by now.
            Exit::Other(_) if end.load(SeqCst) => {}
            other => panic!("{other:?}"),
        }
    }
}

struct Things {
    space: Option<Space>,
    view: Option<Space>,
    mirror: Option<Area>,
    cpu: Option<Cpu>,
    vm: Option<Vm>,
    threads: Vec<JoinHandle<()>>,
}

impl Things {
    fn new(board: &Board, tmpfs: &Tmpfs, run: bool) -> Things {
        let (space, vm) = (Space::new(), Vm::new());
        board.plug(&vm);
        let memory = vm.shared_guest_memfd(COUNT * PAGE);
        space.must_map(Map::file(&memory, AT, COUNT * PAGE));
        // Without a name and a descriptor it lives as long as the space.
        let file = TempFile::new(tmpfs.path(), COUNT * PAGE);
        space.must_map(Map::file(&file.file, AT + COUNT * PAGE, COUNT * PAGE));
        vm.must_map(window(1, BASE, LEN, &space, AT));
        let mut vcpu = vm.vcpu(0);
        for page in 0..2 * COUNT {
            assert_eq!(vcpu.store(BASE + page * PAGE, 1), Exit::Done(1));
        }
        Things {
            view: Some(space.must_view(View::of(AT, LEN))),
            mirror: Some(mirror(&space, AT, LEN)),
            cpu: Some(if run {
                Cpu::running(vcpu)
            } else {
                Cpu::Here(vcpu.into())
            }),
            space: Some(space),
            vm: Some(vm),
            threads: Vec::new(),
        }
    }

    fn close(&mut self, which: usize) {
        match which {
            0 => self.space = None,
            1 => self.view = None,
            2 => self.mirror = None,
            3 => match self.cpu.take() {
                Some(Cpu::Running { fd, end, thread }) => {
                    end.store(true, SeqCst);
                    let null = std::fs::File::open("/dev/null").expect("/dev/null");
                    // While KVM_RUN is under way. The number stays the vCPU's, so that nothing
                    // else gets it.
                    // SAFETY: Takes no pointers; the number is ours.
                    assert_eq!(unsafe { libc::dup2(null.as_raw_fd(), fd) }, fd);
                    self.threads.push(thread);
                }
                here => drop(here),
            },
            _ => self.vm = None,
        }
    }

    /// What is left works, and shows what is left.
    #[track_caller]
    fn check(&mut self) {
        let alive = self.space.is_some() || self.view.is_some() || self.mirror.is_some();
        let word = |page: u64| [page * PAGE, COUNT * PAGE + page * PAGE];
        for at in word(1) {
            if let Some(space) = &self.space {
                assert_eq!(space.get(AT + at, 4), [1, 0, 0, 0]);
            }
            if let Some(view) = &self.view {
                assert_eq!(view.get(at, 4), [1, 0, 0, 0]);
            }
            if let Some(area) = &self.mirror {
                assert_eq!(area.load(at), Ok(1));
            }
            if let Some(Cpu::Here(vcpu)) = &mut self.cpu {
                let expected = match alive {
                    true => Exit::Done(1),
                    false => Exit::load_of_hole(BASE + at),
                };
                assert_eq!(vcpu.load(BASE + at), expected);
            }
        }
        if let Some(space) = self.space.as_ref().or(self.view.as_ref()) {
            let info = space.info();
            assert_eq!(info.mirrors, u64::from(self.mirror.is_some()));
            // A guest_memfd that is mapped keeps its VM, and its windows with it.
            assert_eq!(info.windows, 1);
        }
    }
}

/// The VMs of this process that still exist, by KVM's folders in debugfs.
fn living_vms() -> usize {
    let prefix = format!("{}-", std::process::id());
    let folders = std::fs::read_dir("/sys/kernel/debug/kvm").unwrap_or_else(|_| skip("no debugfs"));
    let ours = |f: &std::fs::DirEntry| f.file_name().to_string_lossy().starts_with(&prefix);
    folders.flatten().filter(ours).count()
}

/// Files that the tmpfs still has, with names or without.
fn free_inodes(tmpfs: &Tmpfs) -> u64 {
    let stat = nix::sys::statvfs::statvfs(tmpfs.path()).expect("statvfs");
    stat.files_free()
}

fn in_all_orders(run: bool) {
    let board = Board::unplugged();
    let tmpfs = Tmpfs::mount("nr_inodes=100").unwrap_or_else(|why| skip(&why));
    let free = free_inodes(&tmpfs);
    for (order, pause) in orders().into_iter().zip([0, 0, 5].into_iter().cycle()) {
        let mut things = Things::new(&board, &tmpfs, run);
        assert_eq!(living_vms(), 1, "is it seen?");
        assert_eq!(free_inodes(&tmpfs), free - 1, "is it seen?");
        for which in order {
            things.close(which);
            std::thread::sleep(Duration::from_millis(pause));
            things.check();
        }
        for thread in things.threads {
            thread.join().expect("the vCPU's thread");
        }
        eventually("the VM is gone", || living_vms() == 0);
        eventually("the space is gone", || free_inodes(&tmpfs) == free);
    }
}

fn orders_at_rest() {
    in_all_orders(false);
}

fn orders_under_a_running_vcpu() {
    in_all_orders(true);
}
