// SPDX-License-Identifier: GPL-2.0

//! Areas of its memory that a guest asks KVM to write: clocks, pages shared with a hypervisor.
//! What is promised is the same for each: KVM writes the memory that the space has there now, or
//! nothing at all.

use std::fs::File;
use std::os::unix::fs::FileExt;

use kvm_bindings::{kvm_msr_entry, Msrs};
use libc::PROT_READ;

use super::bench::{Bench, Gets, Shown, LEN, OFFSET, SHOWN, STATES};
use super::guest::{window, Args, Exit, OwnMemory};
use super::rights::RW;
use super::{files, Map, PAGE};

pub struct Area {
    /// Where in a page it lies, and how far KVM writes.
    pub at: u64,
    pub len: u64,
    /// What the page is full of, so that a write can be seen.
    pub seed: u8,
    /// Tells KVM where it is, which KVM may refuse where there is no memory.
    pub start: fn(&mut Bench, gpa: u64) -> bool,
    /// Has KVM write it, as far as it can.
    pub poke: fn(&mut Bench, gpa: u64),
    pub stop: fn(&mut Bench),
}

/// Sets a register for the guest, with the kernel's answer.
pub fn set_msr(bench: &Bench, index: u32, data: u64) -> bool {
    let entry = kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let msrs = Msrs::from_entries(&[entry]).expect("one");
    bench.vcpu.fd.set_msrs(&msrs).expect("KVM_SET_MSRS") == 1
}

/// Lets the vCPU into the guest and out again: KVM does then what was asked of it.
pub fn enter(bench: &mut Bench) {
    let exit = bench.run(&[0xf4], Args::default());
    assert!(matches!(exit, Exit::Done(_)), "{exit:x?}");
}

/// Has all clocks written when their vCPU runs next.
pub fn set_clock(bench: &Bench) {
    let clock = bench.vm.fd.get_clock().expect("KVM_GET_CLOCK");
    let clock = kvm_bindings::kvm_clock_data {
        clock: clock.clock + 1_000_000,
        ..Default::default()
    };
    bench.vm.fd.set_clock(&clock).expect("KVM_SET_CLOCK");
}

impl Area {
    /// All that is promised.
    pub fn keeps_the_promises(&self) {
        let mut bench = Bench::new();
        for shown in &SHOWN {
            self.on_every_state(&mut bench, shown);
            bench.untouched();
        }
        self.follows_the_space(&mut bench);
        bench.untouched();
    }

    fn page(&self) -> Vec<u8> {
        vec![self.seed; PAGE as usize]
    }

    /// What KVM wrote in a page; nothing else may be written.
    #[track_caller]
    fn written(&self, page: &[u8], what: &str) -> bool {
        let inside = self.at as usize..(self.at + self.len) as usize;
        for (n, byte) in page.iter().enumerate() {
            let stray = *byte != self.seed && !inside.contains(&n);
            assert!(!stray, "{what}: byte {n:#x} is {byte:#x}");
        }
        page != self.page()
    }

    fn on_every_state(&self, bench: &mut Bench, shown: &Shown) {
        for state in &STATES {
            let what = format!("{}, {}", state.name, shown.name);
            bench.fill(state, &self.page());
            let gpa = shown.gpa + state.page() + self.at;
            let accepted = (self.start)(bench, gpa);
            if accepted {
                (self.poke)(bench, gpa);
            }
            let writable = state.store == Gets::It && !shown.readonly;
            assert!(accepted || !writable, "{what}: refused");
            if state.load == Gets::It {
                let page = bench.space.get(OFFSET + state.page(), PAGE);
                assert_eq!(self.written(&page, &what), writable, "{what}");
            }
            (self.stop)(bench);
        }
    }

    /// Mappings, slots and memory change under it.
    fn follows_the_space(&self, bench: &mut Bench) {
        let there = OFFSET + LEN - 8 * PAGE;
        let shown = SHOWN[0];
        let gpa = shown.gpa + (there - OFFSET) + self.at;
        let files: Vec<File> = (0..3).map(|_| files::memfd(PAGE)).collect();
        let put = |bench: &Bench, n: usize| {
            files[n].write_all_at(&self.page(), 0).expect("write");
            bench
                .space
                .must_map(Map::file(&files[n], there, PAGE).replace());
        };
        // Of the files and other memory, KVM writes this one, or none.
        let plain = OwnMemory::at(0x4000_0000, LEN, self.seed);
        let expect = |bench: &mut Bench, expected: Option<usize>, what: &str| {
            for file in &files {
                file.write_all_at(&self.page(), 0).expect("write");
            }
            plain.set(there - OFFSET, &self.page());
            (self.poke)(bench, gpa);
            for (n, file) in files.iter().enumerate() {
                let mut page = self.page();
                file.read_exact_at(&mut page, 0).expect("read");
                let written = self.written(&page, what);
                assert_eq!(written, expected == Some(n), "{what}, file {n}");
            }
            let page = plain.get(there - OFFSET, PAGE);
            assert_eq!(self.written(&page, what), expected == Some(9), "{what}");
        };
        put(bench, 0);
        assert!((self.start)(bench, gpa), "refused");
        expect(bench, Some(0), "at first");
        put(bench, 1);
        expect(bench, Some(1), "replaced");
        bench.space.unmap(there, PAGE).expect("unmap");
        expect(bench, None, "unmapped");
        expect(bench, None, "unmapped, again");
        put(bench, 2);
        expect(bench, Some(2), "filled");
        bench.space.must_protect(there, PAGE, PROT_READ);
        expect(bench, None, "protected");
        bench.space.must_protect(there, PAGE, RW);
        expect(bench, Some(2), "no longer protected");
        bench.vm.unmap_slot(2).expect("delete");
        expect(bench, None, "no window");
        bench
            .vm
            .set_plain_slot(2, 0, shown.gpa, LEN, plain.0)
            .expect("plain slot");
        expect(bench, Some(9), "a plain slot in place of the window");
        bench.vm.set_plain_slot(2, 0, 0, 0, 0).expect("delete");
        let again = window(2, shown.gpa, LEN, &bench.space, OFFSET);
        bench.vm.must_map(again);
        expect(bench, Some(2), "the window again");
        bench.close_space();
        expect(bench, None, "the space is closed");
        (self.stop)(bench);
    }
}
