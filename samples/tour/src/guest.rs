// SPDX-License-Identifier: GPL-2.0

//! The guest: 32-bit code without paging, so that its addresses are guest-physical, and the loop
//! that runs it.

use std::io::Write;
use std::sync::mpsc::Sender;
use std::time::Duration;

use anyhow::{Context, Result};
use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

/// Where things lie in the guest, and in the space.
pub const CODE: u64 = 0x1_0000;
pub const RAM: u64 = 0x10_0000;
pub const RAM_LEN: u64 = 1 << 20;
pub const KERNEL: u64 = 0x100_0000;
/// In RAM: two pages that the guest reads, and a number that it counts up.
pub const FIRST: u64 = RAM;
pub const SECOND: u64 = RAM + 0x1000;
pub const COUNTER: u64 = RAM + 0x2000;

const SERIAL: u16 = 0x3f8;
/// Written at the end of each turn, for the VMM to set the pace.
const TURN: u16 = 0x10;
const PACE: Duration = Duration::from_millis(400);

// Says which Linux the kernel image at KERNEL is (its setup header has the offset of the version
// at 0x20e), then, for ever, what the texts at FIRST and SECOND are.
std::arch::global_asm!(
    ".pushsection .rodata.tour_guest, \"a\"",
    ".code32",
    ".globl tour_guest, tour_guest_end",
    "tour_guest:",
    "    movl ${stack}, %esp",
    "    movl $({code} + image_is - tour_guest), %esi",
    "    call print",
    "    movzwl {kernel} + 0x20e, %esi",
    "    addl ${kernel} + 0x200, %esi",
    "    call print",
    "    call newline",
    "turn:",
    "    movl $({code} + first - tour_guest), %esi",
    "    movl ${first}, %edi",
    "    call show",
    "    movl $({code} + second - tour_guest), %esi",
    "    movl ${second}, %edi",
    "    call show",
    "    incl {counter}",
    "    movw ${turn_port}, %dx",
    "    outb %al, %dx",
    "    jmp turn",
    // Prints the text at esi, then the one at edi; a byte 0xff there is a bus that nobody drives.
    "show:",
    "    call print",
    "    movl %edi, %esi",
    "    cmpb $0xff, (%esi)",
    "    jne 1f",
    "    movl $({code} + nothing - tour_guest), %esi",
    "1:  call print",
    "newline:",
    "    movl $({code} + line_end - tour_guest), %esi",
    "print:",
    "    movw ${serial}, %dx",
    "1:  movb (%esi), %al",
    "    testb %al, %al",
    "    jz 2f",
    "    outb %al, %dx",
    "    incl %esi",
    "    jmp 1b",
    "2:  ret",
    "image_is: .asciz \"the kernel image is Linux \"",
    "first:    .asciz \"first page:  \"",
    "second:   .asciz \"second page: \"",
    "nothing:  .asciz \"nothing is there\"",
    "line_end: .asciz \"\\n\"",
    "tour_guest_end:",
    ".code64",
    ".popsection",
    stack = const RAM + RAM_LEN,
    code = const CODE,
    kernel = const KERNEL,
    first = const FIRST,
    second = const SECOND,
    counter = const COUNTER,
    turn_port = const TURN,
    serial = const SERIAL,
    options(att_syntax)
);

/// The guest's code as bytes, to be put into a file.
pub fn code() -> &'static [u8] {
    extern "C" {
        static tour_guest: u8;
        static tour_guest_end: u8;
    }
    // SAFETY: Both symbols are in one section of this program, in this order.
    unsafe {
        let (start, end) = (&raw const tour_guest, &raw const tour_guest_end);
        std::slice::from_raw_parts(start, end.offset_from(start) as usize)
    }
}

/// What the VMM learns of the guest.
pub enum Event {
    /// A line on the serial port.
    Line(String),
    /// A read where nothing is mapped.
    Hole(u64),
    Ended(String),
}

/// A vCPU at the start of the code, with flat 32-bit segments.
pub fn vcpu(vm: &VmFd) -> Result<VcpuFd> {
    let vcpu = vm.create_vcpu(0).context("cannot make a vCPU")?;
    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    let flat = |type_, selector| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = flat(0xb, 8);
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
        *segment = flat(0x3, 16);
    }
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let regs = kvm_regs {
        rip: CODE,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
    Ok(vcpu)
}

/// Runs the guest, printing its serial port and telling `events`, as long as somebody listens.
pub fn run(mut vcpu: VcpuFd, events: &Sender<Event>) {
    let mut line = Vec::new();
    loop {
        let event = match vcpu.run() {
            Ok(VcpuExit::IoOut(SERIAL, [b'\n'])) => {
                let text = String::from_utf8_lossy(&std::mem::take(&mut line)).into_owned();
                say("guest", &text);
                Some(Event::Line(text))
            }
            Ok(VcpuExit::IoOut(SERIAL, bytes)) => {
                line.extend_from_slice(bytes);
                None
            }
            Ok(VcpuExit::IoOut(TURN, _)) => {
                std::thread::sleep(PACE);
                None
            }
            Ok(VcpuExit::MmioRead(addr, bytes)) => {
                bytes.fill(0xff);
                say(
                    "vmm",
                    &format!("MMIO exit: the guest reads {addr:#x}, where nothing is mapped"),
                );
                Some(Event::Hole(addr))
            }
            Ok(other) => Some(Event::Ended(format!("{other:x?}"))),
            Err(e) => Some(Event::Ended(format!("KVM_RUN: {e}"))),
        };
        let ended = matches!(event, Some(Event::Ended(_)));
        let heard = event.is_none_or(|event| events.send(event).is_ok());
        if ended || !heard {
            return;
        }
    }
}

/// A whole line at once: others print as well.
fn say(who: &str, text: &str) {
    let line = format!("{who:>6} | {text}\n");
    let _ = std::io::stdout().write_all(line.as_bytes());
}
