// SPDX-License-Identifier: GPL-2.0

//! Edits of a space, and of slots, show in the running guest without a call to KVM.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use asfd::sys::{KVM_MEM_HOLE_EXIT, KVM_MEM_LOG_DIRTY_PAGES};
use libc::PROT_READ;

use crate::support::files;
use crate::support::guest::{sees, window, word, Args, Exit, Guest, Kicker, Routine, SLOT};
use crate::support::process::Child;
use crate::support::system::eventually;
use crate::support::{Map, Space, PAGE};

crate::suite![
    running_guest_sees_replacement,
    running_guest_sees_another_process,
    unmapping_stops_a_running_guest,
    slot_deletion,
    flags_change,
];

fn running_guest_sees_replacement() {
    let Guest {
        space,
        vm: _vm,
        mut vcpu,
    } = Guest::new(64);
    let at = 16 * PAGE;
    let files = [b'a', b'b'].map(|byte| files::numbered(1, byte));
    space.must_map(Map::file(&files[0], at, PAGE));
    for round in 0..20 {
        let (old, new) = (word(b'a' + round % 2), word(b'a' + (round + 1) % 2));
        let file = &files[(round as usize + 1) % 2];
        let exit = sees(&mut vcpu, at, old, || {
            space.must_map(Map::file(file, at, PAGE).replace());
        });
        assert_eq!(exit, Exit::Done(new), "round {round}");
    }
    let exit = sees(&mut vcpu, at, word(b'a'), || {
        space.must_map(Map::anon(at, PAGE).replace());
    });
    assert_eq!(exit, Exit::Done(0), "anonymous memory in its place");
    let exit = sees(&mut vcpu, at, 0, || space.put(at, b"pwrt"));
    assert_eq!(
        exit,
        Exit::Done(u32::from_le_bytes(*b"pwrt")),
        "a write by the space"
    );
}

fn running_guest_sees_another_process() {
    let Guest {
        space,
        vm: _vm,
        mut vcpu,
    } = Guest::new(64);
    let at = 16 * PAGE;
    space.must_map(Map::file(&files::numbered(1, b'a'), at, PAGE));
    type Edit<'a> = &'a dyn Fn(&Space);
    let edits: [(Edit, Exit); 3] = [
        (
            &|space| {
                space.must_map(Map::file(&files::numbered(1, b'x'), at, PAGE).replace());
            },
            Exit::Done(word(b'x')),
        ),
        (
            &|space| {
                space.must_map(Map::anon(at, PAGE).shared().replace());
            },
            Exit::Done(0),
        ),
        (
            &|space| space.unmap(at, PAGE).expect("unmap"),
            Exit::load_of_hole(at),
        ),
    ];
    let mut old = word(b'a');
    for (edit, expected) in edits {
        let child = Child::spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            edit(&space);
        });
        let args = Args {
            ebx: at as u32,
            ecx: old,
            ..Default::default()
        };
        let exit = vcpu.call(Routine::Await, args);
        child.succeed();
        assert_eq!(exit, expected);
        if let Exit::Done(now) = exit {
            old = now;
        }
    }
}

/// When munmap returns, the guest cannot write the old page any more.
fn unmapping_stops_a_running_guest() {
    let Guest {
        space,
        vm: _vm,
        mut vcpu,
    } = Guest::new(64);
    let at = 16 * PAGE;
    for round in 0..20 {
        let file = files::memfd(PAGE);
        space.must_map(Map::file(&file, at, PAGE).replace());
        let count = || {
            let mut bytes = [0; 4];
            file.read_exact_at(&mut bytes, 0).expect("read");
            u32::from_le_bytes(bytes)
        };
        let exit = std::thread::scope(|scope| {
            scope.spawn(|| {
                eventually("the guest counts", || count() > 0);
                if round % 2 == 0 {
                    space.unmap(at, PAGE).expect("unmap");
                } else {
                    space.must_map(Map::anon(at, PAGE).prot(PROT_READ).replace());
                }
                let after = count();
                for _ in 0..20 {
                    std::thread::sleep(Duration::from_millis(2));
                    assert_eq!(count(), after, "the old page is still written");
                }
            });
            vcpu.call(
                Routine::Count,
                Args {
                    ebx: at as u32,
                    ..Default::default()
                },
            )
        });
        // "inc [ebx]" reads first: a hole answers the load, a read-only page the store.
        match (round % 2, &exit) {
            (0, Exit::MmioRead { addr, .. }) | (1, Exit::MmioWrite { addr, .. }) => {
                assert_eq!(*addr, at)
            }
            _ => panic!("round {round}: {exit:?}"),
        }
    }
}

fn slot_deletion() {
    let Guest {
        space,
        vm,
        mut vcpu,
    } = Guest::new(16);
    let at = 32 * PAGE;
    space.must_map(Map::file(&files::numbered(4, b'a'), at, 4 * PAGE));
    for round in 0..10 {
        vm.must_map(window(SLOT + 1, at, 4 * PAGE, &space, at));
        assert_eq!(vcpu.load(at), Exit::Done(word(b'a')), "round {round}");
        // While the guest reads it.
        let exit = {
            let _kicker = Kicker::after(Duration::from_millis(300));
            sees(&mut vcpu, at, word(b'a'), || {
                vm.unmap_slot(SLOT + 1).expect("delete")
            })
        };
        // It may loop without an exit until it is kicked, but it does not read the page.
        assert!(
            matches!(exit, Exit::MmioRead { .. } | Exit::Kicked),
            "{exit:?}"
        );
        assert_eq!(vcpu.load(at), Exit::load_of_hole(at));
    }
    assert_eq!(space.byte(at), b'a', "the space is as it was");
}

/// The log and the kind of exit can be switched while the guest runs, and are at once what they
/// were switched to.
fn flags_change() {
    const LEN: u64 = 64 * PAGE;
    let Guest {
        space,
        vm,
        mut vcpu,
    } = Guest::new(64);
    let (at, counted, hole) = (16 * PAGE, 19 * PAGE, 24 * PAGE);
    space.must_map(Map::file(&files::memfd(8 * PAGE), at, 8 * PAGE));
    for round in 0..20u32 {
        let exits = round % 2 == 0;
        let logs = round % 4 < 2;
        let mut shown = window(SLOT, 0, LEN, &space, 0);
        shown.flags |= if exits { KVM_MEM_HOLE_EXIT } else { 0 };
        shown.flags |= if logs { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        space.put(at, &round.to_le_bytes());
        let exit = sees(&mut vcpu, at, round, || {
            vm.must_map(shown);
            space.put(at, &(round + 1).to_le_bytes());
        });
        assert_eq!(exit, Exit::Done(round + 1), "the guest goes on");
        let exit = vcpu.load(hole);
        match exits {
            true => assert!(exit.is_fault_at(hole), "round {round}: {exit:x?}"),
            false => assert_eq!(exit, Exit::load_of_hole(hole), "round {round}"),
        }
        // It was written before the log was switched on, and is after it.
        let counter = Args {
            ebx: counted as u32,
            ..Default::default()
        };
        {
            let _kicker = Kicker::after(Duration::from_millis(5));
            assert_eq!(vcpu.call(Routine::Count, counter), Exit::Kicked);
        }
        let log = vm.fd.get_dirty_log(SLOT, LEN as usize);
        assert_eq!(log.is_ok(), logs, "round {round}");
        if let Ok(log) = log {
            assert_ne!(log[0] >> (counted / PAGE) & 1, 0, "round {round}");
            // What was logged is logged again when it is written again.
            assert_eq!(vcpu.store(counted, 1), Exit::Done(1));
            let dirty = vm.dirty_pages(SLOT, LEN);
            assert!(
                dirty.contains(&(counted / PAGE)),
                "round {round}: {dirty:?}"
            );
        }
    }
}
