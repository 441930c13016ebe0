// SPDX-License-Identifier: GPL-2.0

//! SMM has a set of slots of its own (bits 16 to 31 of a slot's number are 1): windows there are
//! seen in SMM only, by the guest's code and by KVM, which saves the vCPU's state in them.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use asfd::sys::KVM_MEM_LOG_DIRTY_PAGES;
use kvm_bindings::{KVM_CAP_MULTI_ADDRESS_SPACE, KVM_CAP_X86_SMM};

use crate::harness::skip;
use crate::support::dirty::{Tracker, Way};
use crate::support::files;
use crate::support::guest::{window, word, Exit, Vcpu, Vm};
use crate::support::smp::Board;
use crate::support::{Map, Space, HUGE, PAGE};

crate::suite![
    seen_in_smm_only,
    edits_show_in_smm,
    what_smm_writes_is_dirty,
    one_space_in_both_sets,
];

/// SMRAM, where it is after a reset; execution begins at 0x8000 of it, and the last 512 bytes of
/// the first 64 KiB are for the state.
const SMRAM: u64 = 0x30000;
const LEN: u64 = 0x10000;
const ENTRY: u64 = 0x8000;
const STATE: u64 = 0xf000;
/// Memory that both sets show, and a word there that the code changes.
const COMMON: u64 = 8 * HUGE;
const SMM: u32 = 1 << 16;

/// Real mode with flat segments: copies the word at 0x34000 to 0x35000 and to `COMMON`, and
/// leaves SMM.
const CODE: &[u8] = &[
    // mov eax,[0x34000]
    0x67, 0x66, 0xa1, 0x00, 0x40, 0x03, 0x00, // mov [0x35000],eax
    0x67, 0x66, 0xa3, 0x00, 0x50, 0x03, 0x00, // mov [0x1000000],eax
    0x67, 0x66, 0xa3, 0x00, 0x00, 0x00, 0x01, // rsm
    0x0f, 0xaa,
];
const FROM: u64 = 0x4000;
const TO: u64 = 0x5000;

struct Machine {
    vm: Vm,
    vcpu: Vcpu,
    tracker: Tracker,
    /// What the guest has at the place of SMRAM else, and in both sets.
    ram: Space,
    smram: Space,
    _board: Board,
}

impl Machine {
    /// With such flags on all windows: 1 and 2 are the guest's, those in SMM show the same at 2.
    fn new(way: Way, flags: u32) -> Machine {
        let vm = Vm::new();
        let has = |cap| {
            // SAFETY: KVM_CHECK_EXTENSION takes no pointers.
            unsafe {
                let fd = std::os::fd::AsRawFd::as_raw_fd(&vm.fd);
                libc::ioctl(fd, 0xae03, cap as libc::c_ulong)
            }
        };
        if has(KVM_CAP_X86_SMM) < 1 || has(KVM_CAP_MULTI_ADDRESS_SPACE) < 2 {
            skip("no SMM");
        }
        let board = Board::on(&vm);
        let mut tracker = Tracker::new(&vm, way);
        let (ram, smram) = (Space::new(), Space::new());
        ram.must_map(Map::file(&files::numbered(16, b'A'), SMRAM, LEN));
        ram.must_map(Map::anon(COMMON, 4 * PAGE));
        smram.must_map(Map::file(&smram_file(b'a'), 0, LEN));
        let windows = [
            (1, SMRAM, LEN, &ram, SMRAM),
            (2, COMMON, 4 * PAGE, &ram, COMMON),
            (SMM | 1, SMRAM, LEN, &smram, 0),
            (SMM | 2, COMMON, 4 * PAGE, &ram, COMMON),
        ];
        for (slot, gpa, len, space, offset) in windows {
            let mut shown = window(slot, gpa, len, space, offset);
            shown.flags = flags;
            vm.must_map(shown);
        }
        let vcpu = vm.vcpu(0);
        tracker.add(&vcpu);
        Machine {
            vm,
            vcpu,
            tracker,
            ram,
            smram,
            _board: board,
        }
    }

    /// SMM interrupts the guest before its first instruction, which then loads the word at `at`.
    fn smi(&mut self, at: u64) -> Exit {
        self.vcpu.fd.smi().expect("KVM_SMI");
        self.vcpu.load(at)
    }

    fn common(&self) -> u32 {
        u32::from_le_bytes(self.ram.get(COMMON, 4).try_into().expect("4 bytes"))
    }
}

/// Page n of it is full of `first + n`, but for the code.
fn smram_file(first: u8) -> std::fs::File {
    let file = files::numbered(LEN / PAGE, first);
    file.write_all_at(CODE, ENTRY).expect("write");
    file
}

fn seen_in_smm_only() {
    let mut machine = Machine::new(Way::Log, 0);
    let before = machine.ram.get(SMRAM, LEN);
    for round in 0..5u8 {
        machine.smram.put(FROM, &[round + 1; 4]);
        // Outside of SMM there is the other memory, before and after.
        let seen = machine.vcpu.load(SMRAM + FROM);
        assert_eq!(seen, Exit::Done(word(b'A' + 4)));
        assert_eq!(machine.smi(SMRAM + FROM), Exit::Done(word(b'A' + 4)));
        assert_eq!(machine.common(), word(round + 1), "SMM has run");
        assert_eq!(machine.smram.get(TO, 4), [round + 1; 4]);
        let state = machine.smram.get(LEN - 512, 512);
        assert!(state.iter().any(|byte| *byte != b'a' + 15), "saved");
    }
    assert!(machine.ram.get(SMRAM, LEN) == before, "the other memory");
}

/// Holes, replacements and another space, one SMI after the other, and while the code runs.
fn edits_show_in_smm() {
    let mut machine = Machine::new(Way::Log, 0);
    assert_eq!(machine.smi(COMMON), Exit::Done(word(b'a' + 4)));
    machine.smram.unmap(FROM, PAGE).expect("unmap");
    machine.vcpu.answer = 77;
    let exit = machine.smi(COMMON);
    assert_eq!(exit, Exit::load_of_hole(SMRAM + FROM));
    assert_eq!(machine.vcpu.resume(), Exit::Done(77));
    let file = files::numbered(1, b'x');
    machine.smram.must_map(Map::file(&file, FROM, PAGE));
    assert_eq!(machine.smi(COMMON), Exit::Done(word(b'x')));
    // All of it, the code as well.
    let file = smram_file(b'g');
    machine.smram.must_map(Map::file(&file, 0, LEN).replace());
    assert_eq!(machine.smi(COMMON), Exit::Done(word(b'g' + 4)));
    // Another space.
    let next = Space::new();
    next.must_map(Map::file(&smram_file(b'n'), 0, LEN));
    machine.vm.unmap_slot(SMM | 1).expect("delete");
    machine.vm.must_map(window(SMM | 1, SMRAM, LEN, &next, 0));
    assert_eq!(machine.smi(COMMON), Exit::Done(word(b'n' + 4)));
    assert_eq!(machine.smram.info().windows, 0);
    // mov eax,[0x34000]; cmp eax,"nnnn" + 4; je back: until the page is another one.
    let mut code = vec![0x67, 0x66, 0xa1, 0x00, 0x40, 0x03, 0x00, 0x66, 0x3d];
    code.extend(word(b'n' + 4).to_le_bytes());
    code.extend([0x74, 0xf1]);
    code.extend(CODE);
    next.put(ENTRY, &code);
    let exit = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            let file = files::numbered(1, b'z');
            next.must_map(Map::file(&file, FROM, PAGE).replace());
        });
        machine.smi(COMMON)
    });
    assert_eq!(exit, Exit::Done(word(b'z')));
}

/// In the slots of SMM: by its code, and by KVM, which saves the state.
fn what_smm_writes_is_dirty() {
    const SLOTS: [(u32, u64); 4] = [(1, LEN / PAGE), (2, 4), (SMM | 1, LEN / PAGE), (SMM | 2, 4)];
    for way in Way::ALL {
        let mut machine = Machine::new(way, KVM_MEM_LOG_DIRTY_PAGES);
        machine.tracker.take(&machine.vm, &SLOTS);
        // What is loaded first may count as written.
        assert!(matches!(machine.smi(COMMON), Exit::Done(_)));
        machine.tracker.take(&machine.vm, &SLOTS);
        for round in 0..3 {
            assert!(matches!(machine.smi(COMMON), Exit::Done(_)));
            let dirty = machine.tracker.take(&machine.vm, &SLOTS);
            let expected = [(SMM | 1, TO / PAGE), (SMM | 1, STATE / PAGE), (SMM | 2, 0)];
            let dirty: Vec<_> = dirty.into_iter().collect();
            assert_eq!(dirty, expected, "{way:?}, round {round}");
            assert_eq!(machine.vcpu.store(COMMON + PAGE, 1), Exit::Done(1));
            let dirty = machine.tracker.take(&machine.vm, &SLOTS);
            let dirty: Vec<_> = dirty.into_iter().collect();
            assert_eq!(dirty, [(2, 1)], "{way:?}, round {round}");
        }
    }
}

/// Windows of both sets are windows on the space, and go with it.
fn one_space_in_both_sets() {
    let mut machine = Machine::new(Way::Log, 0);
    assert_eq!(machine.ram.info().windows, 3);
    machine.ram.unmap(COMMON, PAGE).expect("unmap");
    let exit = machine.smi(COMMON + 8);
    let word = word(b'a' + 4);
    assert_eq!(exit, Exit::store_to_hole(COMMON, word), "in SMM");
    let exit = machine.vcpu.resume();
    assert_eq!(exit, Exit::load_of_hole(COMMON + 8), "and afterwards");
    for (slot, left) in [(SMM | 2, 2), (2, 1), (1, 0)] {
        machine.vm.unmap_slot(slot).expect("delete");
        assert_eq!(machine.ram.info().windows, left);
    }
    assert_eq!(machine.smram.info().windows, 1);
}
