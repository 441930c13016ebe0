// SPDX-License-Identifier: GPL-2.0

//! Several vCPUs that run at once. What they execute and what they are told lies in an ordinary
//! slot, which stays when spaces change or go.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use super::guest::{code_page, Args, Exit, Kicker, OwnMemory, Vcpu, Vm, CODE};
use super::meeting::{add, repeat};
use super::PAGE;
use crate::harness::skip;

/// Code of the guest; arguments are in registers.
#[derive(Clone, Copy)]
#[repr(u64)]
pub enum Code {
    /// Writes eax to the first word of every edx-th byte of [ebx, ebx+ecx).
    Fill,
    /// Reads there.
    Read,
    /// For ever, writes edx to the first word of each page in [ebx, ebx+ecx), and counts it up.
    Scribble,
    /// For ever, reads eax = [edi], writes it to the second word of each page in [ebx, ebx+ecx),
    /// and reads the first. Ends when that is less than eax. Counts rounds in [edi+4].
    Witness,
}

const CODES: [&[u8]; 4] = [
    // xor esi,esi; 2: mov [ebx+esi],eax; add esi,edx; cmp esi,ecx; jb 2b; hlt
    &[
        0x31, 0xf6, 0x89, 0x04, 0x33, 0x01, 0xd6, 0x39, 0xce, 0x72, 0xf7, 0xf4,
    ],
    // xor esi,esi; 2: mov eax,[ebx+esi]; add esi,edx; cmp esi,ecx; jb 2b; hlt
    &[
        0x31, 0xf6, 0x8b, 0x04, 0x33, 0x01, 0xd6, 0x39, 0xce, 0x72, 0xf7, 0xf4,
    ],
    // 1: xor esi,esi; 2: mov [ebx+esi],edx; add esi,4096; cmp esi,ecx; jb 2b; inc edx; jmp 1b
    &[
        0x31, 0xf6, 0x89, 0x14, 0x33, 0x81, 0xc6, 0x00, 0x10, 0x00, 0x00, 0x39, 0xce, 0x72, 0xf3,
        0x42, 0xeb, 0xee,
    ],
    // 1: xor esi,esi
    // 2: mov eax,[edi]; mov [ebx+esi+4],eax; mov edx,[ebx+esi]; cmp edx,eax; jb 3f
    //    add esi,4096; cmp esi,ecx; jb 2b; inc dword [edi+4]; jmp 1b
    // 3: hlt
    &[
        0x31, 0xf6, 0x8b, 0x07, 0x89, 0x44, 0x33, 0x04, 0x8b, 0x14, 0x33, 0x39, 0xc2, 0x72, 0x0f,
        0x81, 0xc6, 0x00, 0x10, 0x00, 0x00, 0x39, 0xce, 0x72, 0xe9, 0xff, 0x47, 0x04, 0xeb, 0xe2,
        0xf4,
    ],
];

const CODES_AT: u64 = CODE + PAGE;
const LINES_AT: u64 = CODE + 2 * PAGE;
/// Each vCPU has a cache line of its own, on the board and in each page.
pub const LINE: u64 = 64;

/// Slot 0: the page tables and routines of every guest here, the code above, and a line of two
/// words for each vCPU that the test shares with it.
pub struct Board(OwnMemory);

impl Board {
    pub fn on(vm: &Vm) -> Board {
        let board = Board::unplugged();
        board.plug(vm);
        board
    }

    pub fn unplugged() -> Board {
        let memory = OwnMemory::at(0x7000_0000, 3 * PAGE, 0);
        let put = |at: u64, bytes: &[u8]| {
            // SAFETY: Within the memory, which is ours and nothing borrows.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    bytes.as_ptr(),
                    (memory.0 + at) as *mut u8,
                    bytes.len(),
                )
            };
        };
        put(CODE, &code_page());
        for (number, code) in (0..).zip(CODES) {
            put(CODES_AT + 64 * number, code);
        }
        Board(memory)
    }

    /// Makes it slot 0 of a VM.
    pub fn plug(&self, vm: &Vm) {
        vm.set_plain_slot(0, 0, CODE, self.0 .1, self.0 .0)
            .expect("an ordinary slot");
    }

    fn word(&self, vcpu: u64, n: u64) -> &AtomicU32 {
        // SAFETY: In the last page of the memory, aligned; all of ours accesses are atomic.
        unsafe { &*((self.0 .0 + LINES_AT + LINE * vcpu + 4 * n) as *const AtomicU32) }
    }

    /// What a witness reads, and what its pages must not be less than.
    pub fn told(&self, vcpu: u64) -> &AtomicU32 {
        self.word(vcpu, 0)
    }

    pub fn tell(&self, vcpu: u64, number: u32) {
        self.told(vcpu).store(number, SeqCst);
    }

    /// Rounds of a witness.
    pub fn turns(&self, vcpu: u64) -> u32 {
        self.word(vcpu, 1).load(SeqCst)
    }

    /// Waits until each of these has begun and ended a round from now on.
    pub fn another_turn(&self, vcpus: std::ops::Range<u64>, stop: &AtomicBool) {
        let before: Vec<u32> = vcpus.clone().map(|vcpu| self.turns(vcpu)).collect();
        let done = |(vcpu, before): (u64, &u32)| self.turns(vcpu).wrapping_sub(*before) >= 2;
        while !vcpus.clone().zip(&before).all(done) && !stop.load(Relaxed) {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// A call of `Fill` or `Read`: one word in every `step` bytes.
pub fn each(vcpu: &mut Vcpu, code: Code, at: u64, len: u64, step: u64, value: u32) -> Exit {
    let args = Args {
        eax: value,
        ebx: at as u32,
        ecx: len as u32,
        edx: step as u32,
        ..Default::default()
    };
    vcpu.jump(CODES_AT + 64 * code as u64, args)
}

/// What runs for ever, on one vCPU.
pub struct Job {
    pub code: Code,
    pub vcpu: u64,
    pub at: u64,
    pub len: u64,
}

impl Job {
    pub fn start(&self, vcpu: &mut Vcpu) -> Exit {
        let args = Args {
            // Each vCPU has words of its own in each page.
            ebx: (self.at + LINE * self.vcpu) as u32,
            ecx: self.len as u32,
            edi: (LINES_AT + LINE * self.vcpu) as u32,
            ..Default::default()
        };
        vcpu.jump(CODES_AT + 64 * self.code as u64, args)
    }

    /// Lets a witness go on behind the page that it does not like.
    fn pass_over(&self, vcpu: &mut Vcpu) {
        const NEXT_PAGE: u64 = 15;
        let mut regs = vcpu.fd.get_regs().expect("KVM_GET_REGS");
        regs.rip = CODES_AT + 64 * Code::Witness as u64 + NEXT_PAGE;
        vcpu.fd.set_regs(&regs).expect("KVM_SET_REGS");
    }
}

/// What vCPUs met, and how they are told to rest or to end.
#[derive(Default)]
pub struct Smp {
    pub stop: AtomicBool,
    /// Pages may have lost what was in them: a witness that reads 0 goes on.
    pub zeros_may_be: bool,
    pause: AtomicBool,
    resting: AtomicU64,
    pub holes: AtomicU64,
    pub faults: AtomicU64,
    pub zeros: AtomicU64,
    pub full: AtomicU64,
}

impl Smp {
    /// Runs the job until told to stop. Holes and mappings that cannot serve are gone on from.
    pub fn run(&self, mut vcpu: Vcpu, job: &Job) {
        // More than any number that is told: what is not there is never too old.
        vcpu.answer = u32::MAX;
        let _kicker = Kicker::after(Duration::from_millis(5));
        let mut exit = job.start(&mut vcpu);
        repeat(&self.stop, || {
            let mut again = false;
            match &exit {
                Exit::Kicked => {}
                Exit::MmioRead { .. } | Exit::MmioWrite { .. } => add(&self.holes, true),
                Exit::MemoryFault { .. } => add(&self.faults, true),
                // KVM_EXIT_DIRTY_RING_FULL: until somebody has emptied it.
                Exit::Other(what) if what == "Unsupported(1f)" => {
                    add(&self.full, true);
                    std::thread::sleep(Duration::from_micros(100));
                }
                Exit::Done(told) => {
                    let (told, read) = (*told, vcpu.edx());
                    again = self.zeros_may_be && read == 0;
                    assert!(
                        again,
                        "vCPU {} was told {told:#x}, and read {read:#x} later",
                        job.vcpu
                    );
                    add(&self.zeros, true);
                }
                other => panic!("vCPU {}: {other:?}, {}", job.vcpu, state(&mut vcpu)),
            }
            self.rest();
            if again {
                job.pass_over(&mut vcpu);
            }
            exit = vcpu.resume();
        });
    }

    fn rest(&self) {
        if !self.pause.load(SeqCst) {
            return;
        }
        self.resting.fetch_add(1, SeqCst);
        while self.pause.load(SeqCst) {
            std::thread::sleep(Duration::from_micros(100));
        }
        self.resting.fetch_sub(1, SeqCst);
    }

    /// Does something while none of so many vCPUs is in the guest; or nothing, if they end.
    pub fn paused(&self, vcpus: u64, action: impl FnOnce()) {
        struct GoOn<'a>(&'a AtomicBool);
        impl Drop for GoOn<'_> {
            fn drop(&mut self) {
                self.0.store(false, SeqCst);
            }
        }
        let go_on = GoOn(&self.pause);
        self.pause.store(true, SeqCst);
        while self.resting.load(SeqCst) < vcpus {
            if self.stop.load(Relaxed) {
                return;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        action();
        drop(go_on);
        while self.resting.load(SeqCst) > 0 && !self.stop.load(Relaxed) {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// Where a vCPU is that has met something that it should not.
fn state(vcpu: &mut Vcpu) -> String {
    let (regs, sregs) = (vcpu.fd.get_regs(), vcpu.fd.get_sregs());
    let events = vcpu.fd.get_vcpu_events().expect("KVM_GET_VCPU_EVENTS");
    let (regs, sregs) = (regs.expect("KVM_GET_REGS"), sregs.expect("KVM_GET_SREGS"));
    // SAFETY: The numbers are all there, whatever they mean for this exit.
    let internal = unsafe { vcpu.fd.get_kvm_run().__bindgen_anon_1.internal };
    format!(
        "rip {:#x}, cr0 {:#x}, cr2 {:#x}, cr3 {:#x}, {:x?}, exception {:x?}, {internal:x?}",
        regs.rip, sregs.cr0, sregs.cr2, sregs.cr3, regs, events.exception
    )
}

/// How many leaves of each size the VM's page tables have: 4 KiB, 2 MiB, 1 GiB.
pub fn leaves(vm: &Vm) -> [u64; 3] {
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::os::unix::fs::FileExt;
    const KVM_GET_STATS_FD: libc::Ioctl = 0xaece;
    // SAFETY: Takes no pointers; the descriptor is made for us.
    let file = unsafe {
        let fd = libc::ioctl(vm.fd.as_raw_fd(), KVM_GET_STATS_FD, 0);
        if fd < 0 {
            skip("no KVM_GET_STATS_FD");
        }
        std::fs::File::from_raw_fd(fd)
    };
    let word = |at: u64| {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, at).expect("statistics");
        u64::from(u32::from_le_bytes(bytes))
    };
    // The header, then descriptors, each with its name behind 16 bytes.
    let [names, count, descs, data] = [4, 8, 16, 20].map(word);
    ["pages_4k", "pages_2m", "pages_1g"].map(|wanted| {
        let place = (0..count).map(|n| descs + n * (16 + names)).find(|at| {
            let mut name = vec![0; names as usize];
            file.read_exact_at(&mut name, at + 16).expect("a name");
            name.split(|byte| *byte == 0).next() == Some(wanted.as_bytes())
        });
        let place = place.unwrap_or_else(|| panic!("no {wanted}"));
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, data + word(place + 8))
            .expect("a value");
        u64::from_le_bytes(bytes)
    })
}
