// SPDX-License-Identifier: GPL-2.0

//! Page tables in the guest that come, change and go as when a kernel is built there.
//!
//! A small kernel is built by about 1,000 processes (make, shell, compiler, assembler), each of
//! which takes one to two thousand page faults: an estimate, not a trace. Here a process has 1,024
//! faults, and what comes before and after: it is forked, copies some of its parent's pages, execs,
//! waits a few times while another runs, unmaps a little, exits. There are fewer processes; the
//! cost is that of a changed entry of a page table, all of the rest included.

use anyhow::Result;
use kvm_bindings::kvm_regs;

use super::code::{guest_code, PAGE_FAULT_AT};
use super::memory::{memslot, window};
use super::{ensure_nested_paging, Guest, MEASURED, TABLES};
use crate::clock::{compare, count};
use crate::measure::memory::{Pages, MIB};
use crate::measure::Output;
use crate::record::{Measured, Unit::Instructions};

const ROUNDS: usize = 7;
const LEN: u64 = 16 * MIB;
const PROCESSES: u64 = 8;

/// Pages of the parent that fork gives to the child, those that the child then copies, and those
/// that it maps after exec, one page fault each.
const FORKED: u64 = 256;
const COPIED: u64 = 32;
const FAULTS: u64 = 1024;
/// How often it waits; how many pages each process then reads.
const SWITCHES: u64 = 8;
const READ: u64 = 64;
/// Pages that it unmaps one by one before it exits.
const UNMAPPED: u64 = 32;

/// Entries written for a process: fork, copies, exec, faults, munmap, exit.
const CHANGES: u64 = 2 * FORKED + COPIED + FORKED + FAULTS + UNMAPPED + FAULTS;

/// Where processes have their pages, every other one: the second entry of the topmost table.
const USER: u64 = 1 << 39;

/// Entries as Linux makes them: present, writable, for users, accessed and dirty already.
const PRESENT: u64 = 0x67;

guest_code! {
    /// The life of rcx processes, with page tables and frames from r15 on, a multiple of 1M.
    ///
    /// Tables of the parent are at r15; those of children 64K and 128K above, in turn. r9: the
    /// tables in use. r14: the frames. rdi, r12, r13 in a fault: address, its entry, new value.
    fn processes, bench_guest_processes, bench_guest_processes_end, [
        "    jmp 2f",
        ".space {page_fault_at} - (. - bench_guest_processes)",
        "    pop rax",
        "    mov [r12], r13",
        "    test al, 1", // It was present, and the TLB may have it.
        "    jz 1f",
        "    invlpg [rdi]",
        "1:  iretq",

        "2:  mov r9, r15",
        "    lea r10, [r15 + 0x10000]",
        "    lea r14, [r15 + 0x100000]",
        "    call 20f",
        "    mov cr3, r9",
        "    mov ebp, {forked}",
        "    call 30f",

        "3:  mov r9, r10",
        "    xor r10, 0x30000",
        "    lea r14, [r15 + 0x800000]",
        // fork: new tables, with the parent's pages; both may only read them.
        "    call 20f",
        "    lea rsi, [r15 + 0x3000]",
        "    lea rdi, [r9 + 0x3000]",
        "    mov ebp, {forked}",
        "4:  mov rax, [rsi]",
        "    and rax, -3",
        "    mov [rsi], rax",
        "    mov [rdi], rax",
        "    add rsi, 16",
        "    add rdi, 16",
        "    dec ebp",
        "    jnz 4b",
        "    mov cr3, r15",
        // The child runs, and gets pages of its own where it writes.
        "    mov cr3, r9",
        "    mov ebp, {copied}",
        "    call 30f",
        // exec: all is unmapped, then mapped as it is touched.
        "    mov ebp, {forked}",
        "    call 50f",
        "    mov cr3, r9",
        "    mov ebp, {faults}",
        "    call 30f",
        // It waits while the parent runs.
        "    mov r11d, {switches}",
        "5:  mov cr3, r15",
        "    mov ebp, {read}",
        "    call 40f",
        "    mov cr3, r9",
        "    mov ebp, {read}",
        "    call 40f",
        "    dec r11d",
        "    jnz 5b",
        // munmap of some pages.
        "    mov rdi, {user}",
        "    lea r12, [r9 + 0x3000]",
        "    mov ebp, {unmapped}",
        "6:  mov qword ptr [r12], 0",
        "    invlpg [rdi]",
        "    add rdi, 0x2000",
        "    add r12, 16",
        "    dec ebp",
        "    jnz 6b",
        // exit; tables and frames go to the next process.
        "    mov ebp, {faults}",
        "    call 50f",
        "    mov cr3, r15",
        "    dec rcx",
        "    jnz 3b",
        "    mov eax, {kernel}",
        "    mov cr3, rax",
        "    hlt",

        // Makes tables at r9, with the kernel's half as everywhere and no page of a process; the
        // entries of 2048 pages from USER on are in one row from r9 + 0x3000 on.
        "20: mov rdx, rcx",
        "    mov rdi, r9",
        "    mov ecx, 7 * 512",
        "    xor eax, eax",
        "    rep stosq",
        "    mov rcx, rdx",
        "    mov rax, [{kernel}]",
        "    mov [r9], rax",
        "    lea rax, [r9 + 0x1000 + {present}]",
        "    mov [r9 + 8], rax",
        "    add rax, 0x1000",
        "    mov [r9 + 0x1000], rax",
        "    lea rdi, [r9 + 0x2000]",
        "    mov ebp, 4",
        "21: add rax, 0x1000",
        "    stosq",
        "    dec ebp",
        "    jnz 21b",
        "    ret",

        // Writes to ebp pages that fault.
        "30: mov rdi, {user}",
        "    lea r12, [r9 + 0x3000]",
        "    lea r13, [r14 + {present}]",
        "31: mov [rdi], rdi",
        "    add rdi, 0x2000",
        "    add r12, 16",
        "    add r13, 0x1000",
        "    dec ebp",
        "    jnz 31b",
        "    ret",

        // Reads ebp pages.
        "40: mov rdi, {user}",
        "41: mov rax, [rdi]",
        "    add rdi, 0x2000",
        "    dec ebp",
        "    jnz 41b",
        "    ret",

        // Clears the entries of ebp pages.
        "50: lea r12, [r9 + 0x3000]",
        "51: mov qword ptr [r12], 0",
        "    add r12, 16",
        "    dec ebp",
        "    jnz 51b",
        "    ret",
    ],
    present = const PRESENT,
    page_fault_at = const PAGE_FAULT_AT,
    forked = const FORKED,
    copied = const COPIED,
    faults = const FAULTS,
    switches = const SWITCHES,
    read = const READ,
    unmapped = const UNMAPPED,
    user = const USER,
    kernel = const TABLES,
}

/// A guest that has run some processes already.
struct Machine<T> {
    vcpu: super::Vcpu,
    _guest: Guest,
    _measured: T,
}

impl<T> Machine<T> {
    fn new(measured: impl Fn(&Guest, &std::fs::File, u64) -> Result<T>) -> Result<Self> {
        let guest = Guest::new()?;
        guest.load(processes());
        let mut machine = Machine {
            vcpu: guest.vcpu(0)?,
            _measured: measured(&guest, &Pages::Small.filled_memfd(LEN)?, LEN)?,
            _guest: guest,
        };
        machine.cost()?;
        Ok(machine)
    }

    fn cost(&mut self) -> Result<f64> {
        self.vcpu.start(kvm_regs {
            r15: MEASURED,
            rcx: PROCESSES,
            ..Default::default()
        })?;
        let cost = count(|| self.vcpu.run())?;
        Ok(cost / (PROCESSES * CHANGES) as f64)
    }
}

fn row(out: &mut Output, name: &str) -> Result<()> {
    let (mut ours, mut theirs) = (Machine::new(window)?, Machine::new(memslot)?);
    let costs = compare(ROUNDS, |_| ours.cost(), |_| theirs.cost())?;
    out.row(Measured::new(name, "memslot", Instructions, costs).at_most(1.0))
}

pub fn nested_paging(out: &mut Output) -> Result<()> {
    ensure_nested_paging(true)?;
    row(out, "guest page table churn, per entry")
}

pub fn shadow_paging(out: &mut Output) -> Result<()> {
    ensure_nested_paging(false)?;
    row(out, "guest page table churn, per entry, npt=0")
}
