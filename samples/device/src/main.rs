// SPDX-License-Identifier: GPL-2.0

//! Devices in processes of their own, behind an enforcing IOMMU.
//!
//! A VMM often wants its devices in other processes, and those not to reach all of the guest's
//! memory. Here each device has an address space, whose addresses are what the device knows: I/O
//! virtual addresses, IOVAs. The guest's driver says which of them stand for which guest memory,
//! and the VMM maps and unmaps accordingly. The device process is handed a view of that space,
//! mmaps it once, and then moves data by plain loads and stores, straight from and to guest
//! memory. What is not mapped for it raises a signal there, which it reports as a DMA fault.
//!
//! | in | is |
//! |---|---|
//! | [`vmm`] | the VMM: guest memory, the IOMMU, and the processes of its devices |
//! | [`ring`] | the guest's driver, and the ring of descriptors that it shares with a device |
//! | [`endpoint`] | a device process |
//! | [`dma`] | its accesses, and what becomes of those that fault |
//! | [`wire`] | the messages between the two processes |
//! | [`demo`] | what this program does without arguments |
//! | [`stress`], [`worker`], [`tag`] | `--stress`, on the VMM's and on the device's side |

mod demo;
mod dma;
mod endpoint;
mod ring;
mod stress;
mod tag;
mod vmm;
mod wire;
mod worker;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;

use wire::{Channel, Gone};

/// Devices in processes of their own, behind an IOMMU made of address spaces
///
/// Without arguments it shows, step by step, what a device can reach and what it cannot. Ends with
/// status 0 if everything was as it should be.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    /// Let devices access random addresses while their memory is mapped and unmapped
    #[arg(long, value_name = "SECONDS")]
    stress: Option<u64>,
    /// How many devices that is
    #[arg(long, value_name = "N", default_value_t = 4, requires = "stress")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=64))]
    devices: u8,
    /// Repeat the random choices of a run
    #[arg(long, requires = "stress")]
    seed: Option<u64>,
    /// Be a device; standard input is the socket to the VMM
    #[arg(long, hide = true)]
    serve: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let name = if cli.serve {
        "device process"
    } else {
        "device"
    };
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        // The VMM has ended, in the midst of something: it says why, and so ends the device.
        Err(error) if cli.serve && error.is::<Gone>() => ExitCode::SUCCESS,
        Err(error) => {
            let _ = std::io::stdout().flush();
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    if cli.serve {
        return endpoint::serve(&Channel::from_stdin()?);
    }
    match cli.stress {
        Some(seconds) => {
            let seed = cli.seed.unwrap_or_else(|| fastrand::u64(..));
            stress::run(Duration::from_secs(seconds), cli.devices, seed)
        }
        None => demo::run(),
    }
}
