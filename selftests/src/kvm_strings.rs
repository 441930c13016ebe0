// SPDX-License-Identifier: GPL-2.0

//! String instructions that KVM emulates, between windows on one side and ports or devices on the
//! other.

use crate::support::bench::{Bench, Gets, OFFSET, SHOWN, STATES};
use crate::support::guest::{Args, Exit};
use crate::support::PAGE;

crate::suite![port_strings, copies_to_and_from_a_device];

/// `rep outsd` and `rep insd` of more than a page, from and to each kind of memory.
fn port_strings() {
    const PORT: u16 = 0x510;
    let mut bench = Bench::new();
    // An area begins with a page of the same kind, but where the file ends.
    for shown in &SHOWN {
        for state in STATES.iter().filter(|state| state.name != "past the end") {
            let what = format!("{}, {}", state.name, shown.name);
            let start = state.page() + PAGE - 10;
            let gpa = shown.gpa + start;
            let pattern: Vec<u8> = (0..40).collect();
            if state.store == Gets::It {
                bench.space.put(OFFSET + start, &pattern);
            }
            let there = match state.load {
                Gets::It => bench.space.get(OFFSET + start, 40),
                _ => vec![],
            };
            let args = Args {
                ecx: 10,
                edx: PORT.into(),
                esi: gpa as u32,
                edi: gpa as u32,
                ..Default::default()
            };
            let mut said = Vec::new();
            let mut exit = bench.run(&[0xf3, 0x6f, 0xf4], args);
            while let Exit::Out { port: PORT, data } = &exit {
                said.extend_from_slice(data);
                exit = bench.vcpu.resume();
            }
            match state.load {
                Gets::It => assert!(matches!(exit, Exit::Done(_)), "{what}: {exit:x?}"),
                _ => assert_eq!(exit, Exit::load_of_hole(gpa), "{what}"),
            }
            assert_eq!(said, there, "outsd, {what}");
            bench.vcpu.answer = 0x0d0c_0b0a;
            let mut taken = 0;
            let mut exit = bench.run(&[0xf3, 0x6d, 0xf4], args);
            while let Exit::In { port: PORT, len } = exit {
                taken += len;
                exit = bench.vcpu.resume();
            }
            if state.store == Gets::It && !shown.readonly {
                assert!(matches!(exit, Exit::Done(_)), "{what}: {exit:x?}");
                assert_eq!(taken, 40, "{what}");
                let words = [0x0a, 0x0b, 0x0c, 0x0d].repeat(10);
                assert_eq!(bench.space.get(OFFSET + start, 40), words, "{what}");
            } else {
                let Exit::MmioWrite { addr, data } = &exit else {
                    panic!("{what}: {exit:x?}");
                };
                assert_eq!((*addr, data[0]), (gpa, 0x0a), "{what}");
                if state.load == Gets::It {
                    assert_eq!(bench.space.get(OFFSET + start, 40), there, "{what}");
                }
            }
        }
        bench.untouched();
    }
}

/// `rep movsd` between a window and addresses where no slot is, across pages of the window.
fn copies_to_and_from_a_device() {
    const DEVICE: u64 = 0x4000_0000;
    let mut bench = Bench::new();
    for shown in &SHOWN {
        for state in STATES.iter().filter(|state| state.store == Gets::It) {
            let what = format!("{}, {}", state.name, shown.name);
            let start = state.page() + PAGE - 10;
            let there = OFFSET + start;
            let pattern: Vec<u8> = (1..=20).collect();
            bench.space.put(there, &pattern);
            let mut args = Args {
                ecx: 5,
                esi: (shown.gpa + start) as u32,
                edi: DEVICE as u32,
                ..Default::default()
            };
            let mut written = Vec::new();
            let mut exit = bench.run(&[0xf3, 0xa5, 0xf4], args);
            while let Exit::MmioWrite { addr, data } = &exit {
                assert_eq!(*addr, DEVICE + written.len() as u64, "{what}");
                written.extend_from_slice(data);
                exit = bench.vcpu.resume();
            }
            assert!(matches!(exit, Exit::Done(_)), "{what}: {exit:x?}");
            assert_eq!(written, pattern, "{what}");
            (args.esi, args.edi) = (args.edi, args.esi);
            bench.vcpu.answer = 0x0d0c_0b0a;
            let mut taken = 0;
            let mut exit = bench.run(&[0xf3, 0xa5, 0xf4], args);
            while exit == Exit::load_of_hole(DEVICE + taken) {
                taken += 4;
                exit = bench.vcpu.resume();
            }
            if shown.readonly {
                // What is stored behind what was loaded, up to the end of the page.
                let addr = shown.gpa + start;
                let data = vec![0x0a, 0x0b, 0x0c, 0x0d];
                assert_eq!(exit, Exit::MmioWrite { addr, data }, "{what}");
                assert_eq!(bench.space.get(there, 20), pattern, "{what}");
            } else {
                assert!(matches!(exit, Exit::Done(_)), "{what}: {exit:x?}");
                let words = [0x0a, 0x0b, 0x0c, 0x0d].repeat(5);
                assert_eq!(bench.space.get(there, 20), words, "{what}");
            }
        }
        bench.untouched();
    }
}
