// SPDX-License-Identifier: GPL-2.0

//! A guest whose code and page tables are ordinary memory, so that a test may do to the windows
//! what it likes, and secrets of the VMM at every number by which KVM could take its memory for
//! the space's. The secrets are looked at when the bench is put away.

use std::fs::File;
use std::os::unix::fs::FileExt;

use asfd::sys::{ADDRESS_SPACE_RIGHT_KVM, KVM_MEM_READONLY};
use kvm_bindings::{kvm_enable_cap, KVM_CAP_SPLIT_IRQCHIP};
use libc::{MADV_HUGEPAGE, MAP_HUGETLB, PROT_NONE, PROT_READ};

use super::guest::{plain_code, window, Args, Exit, OwnMemory, Vcpu, Vm};
use super::rights::View;
use super::system::{need_huge_pages, Setting};
use super::{files, Map, Space, HUGE, PAGE};
use crate::harness::skip;

/// Where the part of the space that windows show begins.
pub const OFFSET: u64 = 0x2000_0000;
pub const LEN: u64 = 2 * HUGE + 128 * PAGE;

/// Secrets are full of this byte.
pub const SECRET: u8 = b'S';

/// Memory of the VMM that no guest may see or change.
pub struct Secrets(Vec<OwnMemory>);

impl Secrets {
    /// Of `len` bytes at each of `numbers`, and where they would be if a space lay shifted in the
    /// kernel.
    pub fn at(numbers: &[u64], len: u64) -> Secrets {
        let shifted = numbers
            .iter()
            .flat_map(|number| [*number, number + (1 << 30)]);
        let mut places: Vec<u64> = shifted.collect();
        places.sort();
        places.dedup();
        Secrets(
            places
                .into_iter()
                .map(|place| OwnMemory::at(place, len, SECRET))
                .collect(),
        )
    }

    /// Other bytes at the start of each, should they be code or page tables to KVM.
    pub fn begin_with(&self, bytes: &[u8]) {
        self.0.iter().for_each(|memory| memory.set(0, bytes));
    }

    /// They are as they were made.
    #[track_caller]
    pub fn untouched(&self) {
        for memory in &self.0 {
            let whole = memory.bytes().iter().all(|byte| *byte == SECRET);
            assert!(whole, "the VMM's memory at {:#x} was written", memory.0);
        }
    }

    /// Each begins with these bytes.
    #[track_caller]
    pub fn hold(&self, bytes: &[u8]) {
        for memory in &self.0 {
            let whole = memory.get(0, bytes.len() as u64) == bytes;
            assert!(whole, "the VMM's memory at {:#x} was written", memory.0);
        }
    }
}

/// What an access gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gets {
    /// The memory.
    It,
    Mmio,
    Fault,
}

/// Memory of a kind, with an area of the space for it.
#[derive(Clone, Copy, Debug)]
pub struct State {
    pub name: &'static str,
    /// Where the area of four pages begins, from `OFFSET`. What is in the table's state is the
    /// second page of it.
    pub area: u64,
    pub load: Gets,
    pub store: Gets,
}

impl State {
    /// The page of the state, from `OFFSET`.
    pub fn page(&self) -> u64 {
        self.area + PAGE
    }
}

const fn state(name: &'static str, number: u64, load: Gets, store: Gets) -> State {
    let area = match number {
        0 | 1 => number * HUGE,
        _ => 2 * HUGE + number * 8 * PAGE,
    };
    State {
        name,
        area,
        load,
        store,
    }
}

pub const STATES: [State; 12] = [
    state("hugetlb", 0, Gets::It, Gets::It),
    state("huge anonymous", 1, Gets::It, Gets::It),
    state("file", 2, Gets::It, Gets::It),
    state("private file", 3, Gets::It, Gets::It),
    state("anonymous", 4, Gets::It, Gets::It),
    state("shared anonymous", 5, Gets::It, Gets::It),
    state("read-only file", 6, Gets::It, Gets::Mmio),
    state("read-only private file", 7, Gets::It, Gets::Mmio),
    state("read-only anonymous", 8, Gets::It, Gets::Mmio),
    state("no access", 9, Gets::Fault, Gets::Fault),
    state("past the end", 10, Gets::Fault, Gets::Fault),
    state("hole", 11, Gets::Mmio, Gets::Mmio),
];

/// A window on the states.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    pub name: &'static str,
    pub gpa: u64,
    pub readonly: bool,
}

pub const SHOWN: [Shown; 3] = [
    Shown {
        name: "congruent",
        gpa: 0x1000_0000,
        readonly: false,
    },
    Shown {
        name: "shifted",
        gpa: 0x1800_1000,
        readonly: false,
    },
    Shown {
        name: "read-only",
        gpa: 0x2800_0000,
        readonly: true,
    },
];

/// Where a program of the bench lies, and behind it a page for it to use, in ordinary memory.
const PROGRAM: u64 = 0x10_0000;

pub struct Bench {
    pub vcpu: Vcpu,
    pub vm: Vm,
    pub space: Space,
    /// Under "file", "private file" and the like.
    pub file: File,
    program: OwnMemory,
    _code: OwnMemory,
    view: Space,
    _huge: Setting,
    secrets: Vec<Secrets>,
}

impl Bench {
    /// With all states, and all windows on them.
    pub fn new() -> Bench {
        Bench::on(Vm::new())
    }

    /// With interrupts, which KVM delivers; HLT does not come back then.
    pub fn with_interrupts() -> Bench {
        let vm = Vm::new();
        let mut split = kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            ..Default::default()
        };
        split.args[0] = 24;
        vm.fd.enable_cap(&split).expect("KVM_CAP_SPLIT_IRQCHIP");
        let bench = Bench::on(vm);
        let mut apic = bench.vcpu.fd.get_lapic().expect("KVM_GET_LAPIC");
        // The spurious interrupt vector register: enabled, 0xff.
        apic.regs[0xf0] = 0xff_u8 as _;
        apic.regs[0xf1] = 1;
        bench.vcpu.fd.set_lapic(&apic).expect("KVM_SET_LAPIC");
        bench
    }

    fn on(vm: Vm) -> Bench {
        let huge = need_huge_pages(1);
        let numbers = SHOWN.map(|shown| shown.gpa);
        let secrets = STATES.map(|state| {
            let numbers = numbers.map(|gpa| gpa + state.area);
            Secrets::at(&[&numbers[..], &[OFFSET + state.area]].concat(), 4 * PAGE)
        });
        let space = Space::new();
        let code = plain_code(&vm);
        let program = OwnMemory::at(0x7800_0000, 2 * PAGE, 0xf4);
        vm.set_plain_slot(1, 0, PROGRAM, 2 * PAGE, program.0)
            .expect("plain slot");
        let file = files::memfd(4 * PAGE);
        for state in &STATES {
            Bench::place(&space, &file, state);
        }
        let view = View::of(OFFSET, LEN)
            .prot(PROT_READ)
            .rights(ADDRESS_SPACE_RIGHT_KVM);
        let view = space.must_view(view);
        for (slot, shown) in (2..).zip(SHOWN) {
            vm.must_map(match shown.readonly {
                false => window(slot, shown.gpa, LEN, &space, OFFSET),
                true => {
                    let mut window = window(slot, shown.gpa, LEN, &view, 0);
                    window.flags = KVM_MEM_READONLY;
                    window
                }
            });
        }
        let vcpu = vm.vcpu(0);
        set_cpuid(&vm, &vcpu);
        Bench {
            vcpu,
            vm,
            space,
            file,
            program,
            _code: code,
            view,
            _huge: huge,
            secrets: secrets.into(),
        }
    }

    fn place(space: &Space, file: &File, state: &State) {
        let at = OFFSET + state.area;
        let short = files::memfd(PAGE);
        let file = Map::file(file, at, 4 * PAGE);
        let anon = Map::anon(at, 4 * PAGE);
        let map = match state.name {
            "hugetlb" => Map::anon(at, HUGE).with(MAP_HUGETLB),
            "huge anonymous" => Map::anon(at, HUGE),
            "file" => file,
            "private file" => file.private(),
            "read-only file" => file.prot(PROT_READ),
            "read-only private file" => file.private().prot(PROT_READ),
            "anonymous" | "read-only anonymous" => anon,
            "shared anonymous" => anon.shared(),
            "no access" => anon.prot(PROT_NONE),
            "past the end" => Map::file(&short, at, 4 * PAGE),
            "hole" => return,
            name => panic!("what is {name}?"),
        };
        space.must_map(map);
        if state.name == "huge anonymous" {
            space.must_advise(at, HUGE, MADV_HUGEPAGE);
        }
        if state.name == "read-only anonymous" {
            space.put(at, &[0; 4 * PAGE as usize]);
            space.must_protect(at, 4 * PAGE, PROT_READ);
        }
    }

    /// Gives the state's second page this content, if it can be read.
    pub fn fill(&self, state: &State, bytes: &[u8]) {
        let at = OFFSET + state.page();
        match (state.load, state.store) {
            (Gets::It, Gets::It) => self.space.put(at, bytes),
            (Gets::It, _) if state.name == "read-only anonymous" => {
                self.space
                    .must_protect(OFFSET + state.area, 4 * PAGE, super::rights::RW);
                self.space.put(at, bytes);
                self.space
                    .must_protect(OFFSET + state.area, 4 * PAGE, PROT_READ);
            }
            (Gets::It, _) => self.file.write_all_at(bytes, PAGE).expect("write"),
            _ => {}
        }
    }

    /// Runs a program, which ends in HLT, until its first exit.
    pub fn run(&mut self, program: &[u8], args: Args) -> Exit {
        let rip = self.put_program(0, program);
        self.vcpu.jump(rip, args)
    }

    /// Where the guest finds the program.
    pub fn put_program(&self, at: u64, program: &[u8]) -> u64 {
        assert!(at as usize + program.len() <= PAGE as usize);
        self.program.set(at, program);
        PROGRAM + at
    }

    /// Has exceptions and interrupts run what is at these places of the program's page. Their
    /// stack, and the tables, are in the page that programs may use.
    pub fn set_handlers(&mut self, handlers: &[(u8, u64)]) {
        let scratch = PROGRAM + PAGE;
        let (gdt, idt) = (scratch + 0x700, scratch + 0x780);
        // Nothing, code and data, flat.
        let segments = [0u64, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
        let segments = segments.map(u64::to_le_bytes).concat();
        self.program.set(gdt - PROGRAM, &segments);
        for (vector, at) in handlers {
            let handler = PROGRAM + at;
            // An interrupt gate, present, to the code segment.
            let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16) << 48;
            let entry = idt + 8 * u64::from(*vector);
            self.program.set(entry - PROGRAM, &gate.to_le_bytes());
        }
        let mut sregs = self.vcpu.fd.get_sregs().expect("KVM_GET_SREGS");
        (sregs.gdt.base, sregs.gdt.limit) = (gdt, 23);
        (sregs.idt.base, sregs.idt.limit) = (idt, 0x100 * 8 - 1);
        self.vcpu.fd.set_sregs(&sregs).expect("KVM_SET_SREGS");
    }

    /// A word in the page that programs may use.
    pub fn set_scratch(&self, at: u64, word: u32) {
        self.program.set(PAGE + at, &word.to_le_bytes());
    }

    /// Its windows are holes then.
    pub fn close_space(&mut self) {
        self.space = Space::new();
        self.view = Space::new();
    }

    #[track_caller]
    pub fn untouched(&self) {
        self.secrets.iter().for_each(Secrets::untouched);
    }
}

/// All that KVM can offer: some instructions and registers are there for those who ask only.
pub fn set_cpuid(vm: &Vm, vcpu: &Vcpu) {
    let cpuid = vm
        .kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .expect("KVM_GET_SUPPORTED_CPUID");
    vcpu.fd.set_cpuid2(&cpuid).expect("KVM_SET_CPUID2");
}

/// Has KVM emulate whatever follows this prefix, while the setting lives.
pub const FORCED: [u8; 5] = [0x0f, 0x0b, b'k', b'v', b'm'];

pub fn force_emulation() -> Setting {
    const PARAMETER: &str = "/sys/module/kvm/parameters/force_emulation_prefix";
    if !std::fs::exists(PARAMETER).unwrap_or(false) {
        skip("KVM cannot be made to emulate");
    }
    Setting::set(PARAMETER, "1")
}
