// SPDX-License-Identifier: GPL-2.0

//! Single accesses to memory that may not be there. What a load or store meets comes back as a
//! value: the signal that it got, and where. It costs what the access costs; no process is made
//! for it, and any number of threads can do it.
//!
//! The routines keep everything in registers and leave the stack alone, so that the handler only
//! has to point the instruction pointer at a `ret` and the result registers at the fault.

use std::arch::global_asm;
use std::sync::Once;

/// The signal of an access that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub signal: i32,
    pub code: i32,
    pub addr: u64,
}

/// As of `siginfo.h`; libc has the first two of each only for some targets.
const BUS_ADRERR: i32 = 2;
const SEGV_MAPERR: i32 = 1;
const SEGV_ACCERR: i32 = 2;

impl Fault {
    /// What a hole, the end of a file, or a lack of memory gives.
    pub fn hole(addr: u64) -> Fault {
        Fault {
            signal: libc::SIGBUS,
            code: BUS_ADRERR,
            addr,
        }
    }

    /// What an access gives that the mapping does not permit.
    pub fn denied(addr: u64) -> Fault {
        Fault {
            signal: libc::SIGSEGV,
            code: SEGV_ACCERR,
            addr,
        }
    }

    /// What an address gives at which the process has nothing.
    pub fn unmapped(addr: u64) -> Fault {
        Fault {
            signal: libc::SIGSEGV,
            code: SEGV_MAPERR,
            addr,
        }
    }
}

/// What a routine returns in rax and rdx. The second is 0, or the signal and, above it, its code.
#[repr(C)]
struct Answer {
    value: u64,
    fault: u64,
}

global_asm!(
    ".globl selftests_probe_start, selftests_probe_end, selftests_probe_out",
    ".globl selftests_probe_load, selftests_probe_store, selftests_probe_add",
    ".globl selftests_probe_copy",
    "selftests_probe_start:",
    "selftests_probe_load:",
    "mov rax, [rdi]",
    "xor edx, edx",
    "ret",
    "selftests_probe_store:",
    "mov [rdi], rsi",
    "xor edx, edx",
    "ret",
    "selftests_probe_add:",
    "mov rax, rsi",
    "lock xadd [rdi], rax",
    "xor edx, edx",
    "ret",
    "selftests_probe_copy:",
    "mov rcx, rdx",
    "rep movsb",
    "xor edx, edx",
    "ret",
    "selftests_probe_end:",
    "selftests_probe_out:",
    "ret",
);

extern "C" {
    static selftests_probe_start: u8;
    static selftests_probe_end: u8;
    static selftests_probe_out: u8;
    fn selftests_probe_load(addr: u64) -> Answer;
    fn selftests_probe_store(addr: u64, value: u64) -> Answer;
    fn selftests_probe_add(addr: u64, value: u64) -> Answer;
    fn selftests_probe_copy(to: u64, from: u64, len: u64) -> Answer;
}

impl Answer {
    fn result(self) -> Result<u64, Fault> {
        match self.fault {
            0 => Ok(self.value),
            fault => Err(Fault {
                signal: fault as u32 as i32,
                code: (fault >> 32) as i32,
                addr: self.value,
            }),
        }
    }
}

/// Recovers from faults of the routines; any other is left to end the process.
extern "C" fn recover(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: The kernel passes both, for the time of the handler; the symbols are only compared.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let rip = &mut registers[libc::REG_RIP as usize];
        let start = &raw const selftests_probe_start as i64;
        let end = &raw const selftests_probe_end as i64;
        if !(start..end).contains(rip) {
            libc::signal(signal, libc::SIG_DFL);
            return;
        }
        *rip = &raw const selftests_probe_out as i64;
        registers[libc::REG_RAX as usize] = (*info).si_addr() as i64;
        registers[libc::REG_RDX as usize] = i64::from((*info).si_code) << 32 | i64::from(signal);
    }
}

/// The handler, in place from the first probe of the process on.
fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: An all-zero sigaction is valid; the handler is async-signal-safe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = recover as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            for signal in [libc::SIGSEGV, libc::SIGBUS] {
                assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
            }
        }
    });
}

/// Loads the 8 bytes at `addr`, which may be any number.
pub fn load(addr: u64) -> Result<u64, Fault> {
    prepare();
    // SAFETY: A load has no effect but its answer, and a fault is one.
    unsafe { selftests_probe_load(addr) }.result()
}

/// Stores 8 bytes at `addr`.
///
/// # Safety
///
/// Nothing that Rust knows of may lie there.
pub unsafe fn store(addr: u64, value: u64) -> Result<(), Fault> {
    prepare();
    // SAFETY: By the caller's promise.
    unsafe { selftests_probe_store(addr, value) }
        .result()
        .map(drop)
}

/// Adds to the 8 bytes at `addr` in one locked instruction; returns what was there.
///
/// # Safety
///
/// As for `store`.
pub unsafe fn add(addr: u64, value: u64) -> Result<u64, Fault> {
    prepare();
    // SAFETY: By the caller's promise.
    unsafe { selftests_probe_add(addr, value) }.result()
}

/// Copies from `addr`, byte by byte and upwards. After a fault the bytes before it have come.
pub fn copy_from(addr: u64, buffer: &mut [u8]) -> Result<(), Fault> {
    prepare();
    let to = buffer.as_mut_ptr() as u64;
    // SAFETY: The buffer is as long; loads have no effect.
    unsafe { selftests_probe_copy(to, addr, buffer.len() as u64) }
        .result()
        .map(drop)
}

/// Copies to `addr`, byte by byte and upwards. After a fault the bytes before it are written.
///
/// # Safety
///
/// As for `store`.
pub unsafe fn copy_to(addr: u64, bytes: &[u8]) -> Result<(), Fault> {
    prepare();
    // SAFETY: By the caller's promise.
    unsafe { selftests_probe_copy(addr, bytes.as_ptr() as u64, bytes.len() as u64) }
        .result()
        .map(drop)
}
