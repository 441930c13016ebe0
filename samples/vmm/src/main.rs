// SPDX-License-Identifier: GPL-2.0

//! A VMM that boots Linux and has none of its memory.
//!
//! The guest's memory is an address space (an asfd). The VMM maps files into it and writes the
//! rest with pwrite; then it shows it to the guest, by one KVM window for what can be below 3G and
//! one from 4G on. Its own `/proc/PID/maps` has no guest memory, before or after.
//!
//! Addresses of the space are guest-physical ones:
//!
//! ```text
//!            0 +----------------------------------+ \
//!              | memfd: what a BIOS would leave   |  |
//!           1M +----------------------------------+  |
//!              | the bzImage, a private mapping   |  |
//!              +----------------------------------+  | --mem
//!              | memfd                            |  |
//!              +----------------------------------+  |
//!              | the initramfs, a private mapping |  |
//!              +----------------------------------+ /
//!              | hole                             |   what is mapped here while the guest
//!              |                                  |   runs, is memory that was plugged in
//!           3G +----------------------------------+
//!              | not in a window: APICs, devices  |
//!           4G +----------------------------------+
//!              | memfd for the rest, then hole    |   up to --max-mem
//!              +----------------------------------+
//! ```
//!
//! An access of the guest to a hole is an MMIO exit: reads give all ones, writes are lost, as on a
//! bus that nobody drives. KVM has the interrupt controllers and the timer. The rest of the
//! machine is a serial port and a keyboard controller, which is there to reset.
//!
//! | in | is |
//! |---|---|
//! | [`memory`] | the space, and the windows on it |
//! | [`boot`] | what is written into it |
//! | [`mptable`] | of that, the table of processors and interrupts |
//! | [`cpu`] | processors, and the loop that runs one |
//! | [`devices`], [`console`] | the serial port and what is typed there, the reset |
//! | [`cli`] | the command line |
//!
//! `vmm-demo`, in `src/demo/`, runs this program and changes its guest's memory from outside.

mod boot;
mod cli;
mod console;
mod cpu;
mod devices;
mod memory;
mod mptable;

use std::process::ExitCode;
use std::sync::mpsc;
use std::sync::Arc;
use std::thread;

use anyhow::{ensure, Context, Result};
use kvm_bindings::{kvm_pit_config, KVM_PIT_SPEAKER_DUMMY};
use kvm_ioctls::{Kvm, VmFd};

use cli::Cli;
use console::RawTerminal;
use devices::Devices;
use memory::GuestMemory;

fn main() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns when the guest has reset, or somebody had enough of it.
fn run(cli: &Cli) -> Result<()> {
    let image = boot::Image::open(&cli.kernel)?;
    let cmdline = image.cmdline(&cli.append)?;
    let memory = GuestMemory::new(cli.mem)?;
    let initramfs = cli.initramfs.as_deref();
    let entry = boot::load(&memory, &image, initramfs, &cmdline, cli.cpus)?;

    let kvm = Kvm::new().context("cannot open /dev/kvm")?;
    ensure!(
        asfd::vm_has_windows(&kvm),
        "KVM of this kernel has no windows on address spaces"
    );
    let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
    make_board(&vm)?;
    memory.show(&vm, cli.max_mem)?;

    let (ended, end) = mpsc::channel();
    let devices = Arc::new(Devices::new(&vm, ended.clone())?);
    let vcpus = (0..cli.cpus)
        .map(|id| cpu::create(&kvm, &vm, id).with_context(|| format!("vCPU {id}")))
        .collect::<Result<Vec<_>>>()?;
    cpu::start_at(&vcpus[0], entry)?;

    let name = memory.name();
    eprintln!("vmm: guest memory is {name}; see asctl maps {name}");
    let _terminal = RawTerminal::new()?;
    for (id, vcpu) in vcpus.into_iter().enumerate() {
        let (devices, ended) = (devices.clone(), ended.clone());
        spawn(&format!("vcpu{id}"), move || {
            let outcome = cpu::run(vcpu, &devices);
            let _ = ended.send(outcome.with_context(|| format!("vCPU {id}")));
        })?;
    }
    spawn("console", move || console::feed(&devices, &ended))?;
    // The threads end with the process.
    end.recv().context("all threads are gone")?
}

/// Interrupt controllers and the timer.
fn make_board(vm: &VmFd) -> Result<()> {
    // Intel's virtualisation needs three pages for itself, where nothing else is.
    vm.set_tss_address(0xfffb_d000)
        .context("KVM_SET_TSS_ADDR")?;
    vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(pit).context("KVM_CREATE_PIT2")
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    let builder = thread::Builder::new().name(name.to_owned());
    let spawned = builder.spawn(body);
    spawned.with_context(|| format!("cannot start thread {name}"))?;
    Ok(())
}
