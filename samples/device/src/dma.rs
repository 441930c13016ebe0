// SPDX-License-Identifier: GPL-2.0

//! The accesses of a device through its mirror, which may fault at any byte and survive it.
//!
//! What the IOMMU did not map raises SIGBUS or SIGSEGV at the very instruction. So all accesses are
//! made by two small routines, and the handler has the one that was interrupted return early, with
//! what the signal said. It is what the kernel does when it copies from user memory.

use std::arch::global_asm;
use std::fmt;

use anyhow::{Context, Result};
use asfd::Mirror;
use libc::{siginfo_t, ucontext_t};
use nix::sys::signal::{sigaction, SaFlags, SigAction, SigHandler, SigSet, Signal};
use serde::{Deserialize, Serialize};

// Neither has anything on its stack, so that "ret" is right after every instruction. They return
// 0 in rax; the handler puts there what happened, and in rdx where.
global_asm!(
    ".pushsection .text.dma, \"ax\"",
    ".globl dma_copy, dma_checksum, dma_faulted",
    // Bytes, upwards: at a fault exactly those before it are copied.
    "dma_copy:",
    "    mov rcx, rdx",
    "    rep movsb",
    "    xor eax, eax",
    "    ret",
    // The sum in rdx.
    "dma_checksum:",
    "    xor edx, edx",
    "    lea rsi, [rdi + rsi]",
    "2:  cmp rdi, rsi",
    "    je 3f",
    "    movzx eax, byte ptr [rdi]",
    "    rol rdx, 1",
    "    add rdx, rax",
    "    inc rdi",
    "    jmp 2b",
    "3:  xor eax, eax",
    "dma_faulted:",
    "    ret",
    ".popsection",
);

#[repr(C)]
struct Outcome {
    /// 0, or what [`pack`] makes.
    signal: u64,
    /// The sum, or `si_addr`.
    value: u64,
}

/// What the handler was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interrupted {
    signal: u8,
    code: u8,
    store: bool,
    addr: usize,
}

impl Outcome {
    fn result(self) -> Result<u64, Interrupted> {
        if self.signal == 0 {
            return Ok(self.value);
        }
        let [signal, code, store, ..] = self.signal.to_le_bytes();
        Err(Interrupted {
            signal,
            code,
            store: store != 0,
            addr: self.value as usize,
        })
    }
}

extern "C" {
    fn dma_copy(to: *mut u8, from: *const u8, len: usize) -> Outcome;
    fn dma_checksum(from: *const u8, len: usize) -> Outcome;
    fn dma_faulted();
}

/// The same sum of bytes that can be read.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum: u64, &byte| {
        sum.rotate_left(1).wrapping_add(byte.into())
    })
}

/// What a device reports to the VMM, as the fault queue of a hardware IOMMU would.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Exactly the first byte that could not be accessed.
    pub iova: u64,
    pub access: Access,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    Load,
    Store,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// SIGBUS: nothing is mapped there.
    Hole,
    /// SIGSEGV: what is mapped there does not allow it.
    NotPermitted,
    /// No signal: it is outside of what the device has mirrored.
    Outside,
    /// A signal that no access should raise.
    Strange { signal: u8, code: u8 },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = match self.access {
            Access::Load => "load",
            Access::Store => "store",
        };
        match self.kind {
            Kind::Hole => f.write_str("SIGBUS: hole")?,
            Kind::NotPermitted => f.write_str("SIGSEGV: not permitted")?,
            Kind::Outside => f.write_str("outside")?,
            Kind::Strange { signal, code } => write!(f, "signal {signal}, code {code}")?,
        }
        write!(f, ", {access} at {:#x}", self.iova)
    }
}

/// Access to the memory behind a mirror, by IOVA.
#[derive(Clone, Copy)]
pub struct Dma<'a>(pub &'a Mirror);

impl Dma<'_> {
    /// From IOVA to IOVA: straight from guest memory to guest memory.
    pub fn copy(&self, to: u64, from: u64, len: usize) -> Result<(), Fault> {
        let from = self.find(from, len, Access::Load)?;
        let to = self.find(to, len, Access::Store)?;
        // SAFETY: Both ranges lie in the mirror; the routine survives what it meets there.
        self.outcome(unsafe { dma_copy(to, from, len) }).map(drop)
    }

    pub fn checksum(&self, from: u64, len: usize) -> Result<u64, Fault> {
        let from = self.find(from, len, Access::Load)?;
        // SAFETY: The range lies in the mirror; the routine survives what it meets there.
        self.outcome(unsafe { dma_checksum(from, len) })
    }

    pub fn load(&self, from: u64, buf: &mut [u8]) -> Result<(), Fault> {
        let start = self.find(from, buf.len(), Access::Load)?;
        // SAFETY: The range lies in the mirror; the routine survives what it meets there.
        self.outcome(unsafe { dma_copy(buf.as_mut_ptr(), start, buf.len()) })
            .map(drop)
    }

    pub fn store(&self, to: u64, buf: &[u8]) -> Result<(), Fault> {
        let start = self.find(to, buf.len(), Access::Store)?;
        // SAFETY: The range lies in the mirror; the routine survives what it meets there.
        self.outcome(unsafe { dma_copy(start, buf.as_ptr(), buf.len()) })
            .map(drop)
    }

    /// The IOVA comes from a descriptor: a device that believes it corrupts its own memory.
    fn find(&self, iova: u64, len: usize, access: Access) -> Result<*mut u8, Fault> {
        let (start, size) = (self.0.offset(), self.0.len() as u64);
        let at = iova.wrapping_sub(start);
        if at > size || len as u64 > size - at {
            let kind = Kind::Outside;
            return Err(Fault { iova, access, kind });
        }
        Ok(self.0.as_ptr().wrapping_add(at as usize))
    }

    fn outcome(&self, outcome: Outcome) -> Result<u64, Fault> {
        outcome.result().map_err(|interrupted| {
            let Interrupted { signal, code, .. } = interrupted;
            let kind = match (signal.into(), code.into()) {
                (libc::SIGBUS, libc::BUS_ADRERR) => Kind::Hole,
                (libc::SIGSEGV, SEGV_ACCERR) => Kind::NotPermitted,
                _ => Kind::Strange { signal, code },
            };
            let access = match interrupted.store {
                true => Access::Store,
                false => Access::Load,
            };
            // The rest of what the routines were given is memory of this program.
            let iova = self.0.locate(interrupted.addr).unwrap_or(u64::MAX);
            Fault { iova, access, kind }
        })
    }
}

const SEGV_ACCERR: libc::c_int = 2;

/// From here on, faults in the two routines are survived.
pub fn survive_faults() -> Result<()> {
    let handler = SigHandler::SigAction(on_fault);
    let action = SigAction::new(handler, SaFlags::SA_SIGINFO, SigSet::empty());
    for signal in [Signal::SIGBUS, Signal::SIGSEGV] {
        // SAFETY: The handler only touches what it is given.
        unsafe { sigaction(signal, &action) }.context("sigaction")?;
    }
    Ok(())
}

extern "C" fn on_fault(signal: libc::c_int, info: *mut siginfo_t, context: *mut libc::c_void) {
    /// In the error code of a page fault on x86.
    const WRITE: i64 = 1 << 1;

    // SAFETY: The kernel passes both to a handler with SA_SIGINFO, and both signals have an
    // address.
    let (code, addr, gregs) = unsafe {
        let gregs = &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs;
        ((*info).si_code, (*info).si_addr(), gregs)
    };
    let routines = dma_copy as *const () as i64..dma_faulted as *const () as i64;
    if !routines.contains(&gregs[libc::REG_RIP as usize]) {
        // Not one of ours: the access is made again, and ends the process.
        // SAFETY: It is async-signal-safe, and the default action is no code of this program.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    let store = gregs[libc::REG_ERR as usize] & WRITE != 0;
    gregs[libc::REG_RAX as usize] = pack(signal, code, store);
    gregs[libc::REG_RDX as usize] = addr as i64;
    gregs[libc::REG_RIP as usize] = routines.end;
}

fn pack(signal: libc::c_int, code: libc::c_int, store: bool) -> i64 {
    i64::from_le_bytes([signal as u8, code as u8, store.into(), 0, 0, 0, 0, 0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroUsize;

    use nix::sys::memfd::{memfd_create, MFdFlags};
    use nix::sys::mman::{mmap, MapFlags, ProtFlags};

    // A file of one page, mapped as two: the second is to an access what a hole is.
    fn page_and_hole(prot: ProtFlags) -> *mut u8 {
        let file = std::fs::File::from(memfd_create(c"dma", MFdFlags::MFD_CLOEXEC).unwrap());
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 4096], 0).unwrap();
        let len = NonZeroUsize::new(8192).unwrap();
        // SAFETY: A new mapping, where there is room.
        let start = unsafe { mmap(None, len, prot, MapFlags::MAP_SHARED, &file, 0) };
        start.unwrap().as_ptr().cast()
    }

    fn copy(to: *mut u8, from: *const u8, len: usize) -> Result<(), Interrupted> {
        // SAFETY: The tests pass memory of theirs, and mappings.
        unsafe { dma_copy(to, from, len) }.result().map(drop)
    }

    fn interrupted(signal: i32, code: i32, store: bool, addr: *mut u8) -> Interrupted {
        Interrupted {
            signal: signal as u8,
            code: code as u8,
            store,
            addr: addr as usize,
        }
    }

    #[test]
    fn accesses_end_at_the_first_byte_that_faults() {
        survive_faults().unwrap();
        let start = page_and_hole(ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
        let hole = start.wrapping_add(4096);
        let bus = |store, addr| interrupted(libc::SIGBUS, libc::BUS_ADRERR, store, addr);

        let mut buf = [0; 64];
        assert_eq!(copy(buf.as_mut_ptr(), hole.wrapping_sub(64), 64), Ok(()));
        assert_eq!(buf, [7; 64]);
        buf = [0; 64];
        let end = copy(buf.as_mut_ptr(), hole.wrapping_sub(5), 64);
        assert_eq!(end, Err(bus(false, hole)));
        assert_eq!((&buf[..5], &buf[5..]), (&[7; 5][..], &[0; 59][..]));
        let end = copy(hole.wrapping_sub(5), buf.as_ptr(), 64);
        assert_eq!(end, Err(bus(true, hole)));
        // Straight from the mapping to the mapping.
        let end = copy(hole.wrapping_sub(3), start, 10);
        assert_eq!(end, Err(bus(true, hole)));
        let at = hole.wrapping_add(0x123);
        assert_eq!(copy(buf.as_mut_ptr(), at, 1), Err(bus(false, at)));
        assert_eq!(copy(buf.as_mut_ptr(), at, 0), Ok(()));

        // SAFETY: It reads a mapping.
        let sum = |from, len| unsafe { dma_checksum(from, len) }.result();
        assert_eq!(sum(start, 100), Ok(checksum(&[7; 100])));
        assert_eq!(sum(start, 0), Ok(0));
        assert_eq!(sum(hole.wrapping_sub(9), 10), Err(bus(false, hole)));
    }

    #[test]
    fn what_is_not_permitted_is_another_signal() {
        survive_faults().unwrap();
        let start = page_and_hole(ProtFlags::PROT_READ);
        let at = start.wrapping_add(0x321);
        let denied = interrupted(libc::SIGSEGV, SEGV_ACCERR, true, at);
        assert_eq!(copy(at, [1].as_ptr(), 1), Err(denied));
    }

    #[test]
    fn a_sum_depends_on_the_order() {
        assert_ne!(checksum(&[1, 2]), checksum(&[2, 1]));
    }
}
