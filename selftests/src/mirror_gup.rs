// SPDX-License-Identifier: GPL-2.0

//! A guest whose memory is an ordinary slot over a mirror: KVM takes its pages by get_user_pages on
//! the process, and has to give them back when the space loses them. Between the moment when the
//! space's page tables are cleared and the one when the mirror's are, it must not take the old page
//! again.

use std::cell::Cell;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::time::{Duration, Instant};

use nix::fcntl::{fallocate, FallocateFlags};

use crate::note;
use crate::support::crew::POISON;
use crate::support::files;
use crate::support::guest::{plain_code, Args, Exit, Kicker, OwnMemory, Routine, Vcpu, Vm};
use crate::support::meeting::{add, repeat, run_out};
use crate::support::mirror::{mirror, Area};
use crate::support::rights::RW;
use crate::support::swap::Swap;
use crate::support::system::{counter, cpus, scaled, slow_zaps, stay_on};
use crate::support::{Map, Space, PAGE};

crate::suite![
    hole_punching(600),
    truncation(600),
    replacement(600),
    guest_stores(600),
    paging_out(600),
];

/// How long the kernel waits between its two invalidations, in microseconds.
const DELAY: u32 = 3000;

/// Where the guest has the mirror, and a page of the process to count in.
const BASE: u64 = 1 << 20;
const BEAT: u64 = 2 << 20;

/// A VM with a slot over a mirror of the first page of a space.
struct Room {
    space: Space,
    area: Area,
    beat: OwnMemory,
    vm: Vm,
    _code: OwnMemory,
}

impl Room {
    fn new() -> Room {
        let space = Space::new();
        let area = mirror(&space, 0, PAGE);
        let vm = Vm::new();
        let code = plain_code(&vm);
        let beat = OwnMemory::at(0x6000_0000, PAGE, 0);
        vm.set_plain_slot(1, 0, BASE, PAGE, area.addr())
            .expect("a slot over a mirror");
        vm.set_plain_slot(2, 0, BEAT, PAGE, beat.0)
            .expect("an ordinary slot");
        Room {
            space,
            area,
            beat,
            vm,
            _code: code,
        }
    }

    /// How often the guest has looked so far.
    fn looks(&self) -> u32 {
        // SAFETY: Inside the mapping; the guest writes it at any time.
        unsafe { std::ptr::read_volatile(self.beat.0 as *const u32) }
    }

    /// Runs the guest on a thread of its own: it gets a word, and answers with the first other one
    /// that it sees in the page.
    fn with_guest(&self, test: impl FnOnce(&Watcher)) {
        let (ask, asked) = channel::<u32>();
        let (answer, answers) = channel();
        let mut vcpu = self.vm.vcpu(0);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while let Ok(old) = asked.recv() {
                    if answer.send(watch(&mut vcpu, old)).is_err() {
                        break;
                    }
                }
            });
            test(&Watcher {
                room: self,
                ask,
                answers,
            });
        });
    }
}

fn watch(vcpu: &mut Vcpu, old: u32) -> Exit {
    let args = Args {
        ebx: BASE as u32,
        ecx: old,
        edi: BEAT as u32,
        ..Default::default()
    };
    vcpu.call(Routine::Watch, args)
}

struct Watcher<'a> {
    room: &'a Room,
    ask: Sender<u32>,
    answers: Receiver<Exit>,
}

impl Watcher<'_> {
    /// Has the guest look at the page, which holds `old`, makes a change while it does, and holds
    /// what it then sees to `new`.
    #[track_caller]
    fn sees(&self, what: &str, old: u32, new: u32, change: impl FnOnce()) {
        let before = self.room.looks();
        self.ask.send(old).expect("the guest's thread");
        let started = Instant::now();
        while self.room.looks().wrapping_sub(before) < 20 {
            let waited = started.elapsed();
            assert!(
                waited < Duration::from_secs(10),
                "{what}: the guest is not there"
            );
            std::hint::spin_loop();
        }
        change();
        match self.answers.recv_timeout(Duration::from_secs(5)) {
            Ok(exit) => assert_eq!(exit, Exit::Done(new), "{what}: it saw {old:#x}"),
            Err(_) => panic!("{what}: the guest still sees {old:#x}"),
        }
    }
}

/// What the page is full of in a round.
fn marker(round: u64) -> u32 {
    0x4d00_0000 | round as u32
}

/// Freed pages are soon those of others.
fn reuse_freed_pages() {
    let file = files::memfd(32 * PAGE);
    let poison = POISON.to_le_bytes().repeat(PAGE as usize / 8);
    for page in 0..32 {
        file.write_all_at(&poison, page * PAGE).expect("write");
    }
}

/// The file loses its page by `lose`, after which there are zeros in it.
fn lost(lose: impl Fn(&Room, &std::fs::File)) {
    let _delay = slow_zaps(DELAY);
    let room = Room::new();
    let file = files::memfd(PAGE);
    room.space.must_map(Map::file(&file, 0, PAGE));
    let ordinary = Area::of_file(&file, PAGE, RW);
    room.with_guest(|guest| {
        for round in 1..=scaled(300) {
            let word = marker(round);
            guest.sees(&format!("round {round}, filled"), 0, word, || {
                let both = u64::from(word) << 32 | u64::from(word);
                for offset in (0..PAGE).step_by(8) {
                    ordinary.store_word(offset, both).expect("a store");
                }
            });
            guest.sees(&format!("round {round}, lost"), word, 0, || {
                lose(&room, &file);
                reuse_freed_pages();
            });
            // By the mirror, too.
            assert_eq!(room.area.load_word(0), Ok(0), "round {round}");
        }
    });
}

fn hole_punching() {
    let turn = Cell::new(0);
    lost(|room, file| {
        turn.set(turn.get() + 1);
        if turn.get() % 4 == 0 {
            return room.space.must_advise(0, PAGE, libc::MADV_REMOVE);
        }
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(file, mode, 0, PAGE as i64).expect("fallocate");
    });
}

/// In between the guest may find no page, and loop or stop: it is only looked at what it sees.
fn truncation() {
    let _delay = slow_zaps(DELAY);
    let room = Room::new();
    let file = files::memfd(PAGE);
    room.space.must_map(Map::file(&file, 0, PAGE));
    let mut vcpu = room.vm.vcpu(0);
    let stop = AtomicBool::new(false);
    let [rounds, looks, refused] = [const { AtomicU64::new(0) }; 3];
    // What may be seen: the marker of this round, of the next, and zeros.
    let current = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _kicker = Kicker::after(Duration::from_millis(5));
            repeat(&stop, || {
                use std::sync::atomic::Ordering::SeqCst;
                let before = current.load(SeqCst);
                let exit = vcpu.load(BASE);
                let after = current.load(SeqCst);
                match exit {
                    Exit::Done(word) => {
                        let allowed = word == 0 || (before..=after).any(|n| word == marker(n));
                        assert!(allowed, "{word:#x} in round {before} to {after}");
                        add(&looks, true);
                    }
                    Exit::Kicked => {}
                    Exit::MemoryFault { .. } | Exit::Other(_) => {
                        vcpu.reset();
                        add(&refused, true);
                    }
                    other => panic!("{other:x?}"),
                }
            });
        });
        scope.spawn(|| {
            repeat(&stop, || {
                use std::sync::atomic::Ordering::SeqCst;
                let round = current.load(SeqCst) + 1;
                file.set_len(0).expect("ftruncate");
                // From here on nobody sees the last round's.
                current.store(round, SeqCst);
                reuse_freed_pages();
                file.set_len(PAGE).expect("ftruncate");
                let bytes = marker(round).to_le_bytes().repeat(PAGE as usize / 4);
                file.write_all_at(&bytes, 0).expect("write");
                std::thread::sleep(Duration::from_millis(1));
                add(&rounds, true);
            });
        });
        let least = [("rounds", &rounds, 50), ("looks", &looks, 100)];
        run_out(crate::support::crew::time(), &stop, &least);
    });
    note!("refused: {refused:?}");
}

/// Another file takes the place, and the old one is poisoned as soon as it has.
fn replacement() {
    let _delay = slow_zaps(DELAY);
    let room = Room::new();
    let file_of = |round: u64| {
        let file = files::memfd(PAGE);
        let bytes = marker(round).to_le_bytes().repeat(PAGE as usize / 4);
        file.write_all_at(&bytes, 0).expect("write");
        file
    };
    let mut current = file_of(0);
    room.space.must_map(Map::file(&current, 0, PAGE));
    room.with_guest(|guest| {
        for round in 1..=scaled(300) {
            let next = file_of(round);
            let what = format!("round {round}, replaced");
            guest.sees(&what, marker(round - 1), marker(round), || {
                room.space.must_map(Map::file(&next, 0, PAGE).replace());
                let poison = POISON.to_le_bytes().repeat(PAGE as usize / 8);
                current.write_all_at(&poison, 0).expect("write");
            });
            current = next;
        }
    });
}

/// Lets the guest count the word at `BASE` up until told to stop.
fn count_up(vcpu: &mut Vcpu, stop: &AtomicBool) {
    let _kicker = Kicker::after(Duration::from_millis(20));
    let args = Args {
        ebx: BASE as u32,
        ..Default::default()
    };
    let mut exit = vcpu.call(Routine::Count, args);
    repeat(stop, || {
        assert_eq!(exit, Exit::Kicked);
        exit = vcpu.resume();
    });
}

/// What the guest wrote is what comes back from swap, wherever the page was.
fn paging_out() {
    let swap = Swap::on(1);
    let (cpus, before) = (cpus(), counter("/proc/vmstat", "pswpout"));
    let file = files::memfd(PAGE);
    for map in [Map::anon(0, PAGE), Map::file(&file, 0, PAGE)] {
        let room = Room::new();
        room.space.must_map(map);
        let mut vcpu = room.vm.vcpu(0);
        let stop = AtomicBool::new(false);
        let [advice, advances] = [const { AtomicU64::new(0) }; 2];
        std::thread::scope(|scope| {
            scope.spawn(|| count_up(&mut vcpu, &stop));
            scope.spawn(|| {
                let mut before = 0;
                repeat(&stop, || {
                    // A page that was just brought in can only be paged out from the CPU that did so.
                    for cpu in &cpus {
                        stay_on(*cpu);
                        room.space.must_advise(0, PAGE, libc::MADV_PAGEOUT);
                    }
                    add(&advice, true);
                    let now = room.area.load_word(0).expect("a load") as u32;
                    assert!(now >= before, "{before} became {now}");
                    add(&advances, now > before);
                    before = now;
                });
            });
            let least = [("advice", &advice, 50), ("advances", &advances, 20)];
            run_out(crate::support::crew::time(), &stop, &least);
        });
    }
    let swapped = counter("/proc/vmstat", "pswpout") - before;
    note!("swap: {}, {swapped} pages went there", swap.is_some());
    assert!(swap.is_none() || swapped > 0, "nothing was swapped");
}

/// A guest that writes all the time writes nothing that was taken out.
fn guest_stores() {
    let _delay = slow_zaps(DELAY);
    let room = Room::new();
    let mut current = files::memfd(PAGE);
    room.space.must_map(Map::file(&current, 0, PAGE));
    let mut vcpu = room.vm.vcpu(0);
    let stop = AtomicBool::new(false);
    let count = |file: &std::fs::File| {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 0).expect("read");
        u32::from_le_bytes(bytes)
    };
    let rounds = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| count_up(&mut vcpu, &stop));
        scope.spawn(|| {
            repeat(&stop, || {
                let started = Instant::now();
                while count(&current) == 0 {
                    let waited = started.elapsed();
                    assert!(waited < Duration::from_secs(5), "the guest does not count");
                    std::thread::yield_now();
                }
                let next = files::memfd(PAGE);
                room.space.must_map(Map::file(&next, 0, PAGE).replace());
                current.write_all_at(b"dead", 0).expect("write");
                std::thread::sleep(Duration::from_millis(2));
                let now = count(&current).to_le_bytes();
                assert_eq!(now, *b"dead", "the guest writes what was replaced");
                current = next;
                add(&rounds, true);
            });
        });
        run_out(
            crate::support::crew::time(),
            &stop,
            &[("rounds", &rounds, 50)],
        );
    });
}
