// SPDX-License-Identifier: GPL-2.0

//! A Linux guest, looked at and changed from outside while it runs.
//!
//! Starts `vmm` with a small initramfs, and then does to the guest's memory what its holder can
//! do, with `asctl`, as anybody would. The VMM has no part in any of it. Each step is checked; ends
//! with status 1 if one of them was not as it should be.
//!
//! | in | is |
//! |---|---|
//! | [`guest`] | the VMM, and the guest by its console |
//! | [`initramfs`] | what runs in the guest |
//! | [`maps`] | what a process has mapped |
//! | [`search`] | finding things in guest memory |
//! | [`steps`] | what is printed |

mod guest;
mod initramfs;
mod maps;
mod search;
mod steps;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use asfd::{AddressSpace, Prot};
use clap::Parser;

use guest::Guest;
use steps::{asctl, heading, Steps};

const FOLDER: &str = "/tmp/vmm-demo";
const PAGE: u64 = 4096;
const MEMORY: u64 = 64 << 20;
/// Linux on x86 takes memory in blocks of this size: where the second one is, and nothing yet.
const BLOCK: u64 = 128 << 20;
const PLUGGED: u64 = BLOCK;

/// Show what can be done with the memory of a running Linux guest
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    /// The kernel of the guest, a bzImage
    #[arg(long, value_name = "FILE", default_value = "/boot/bzImage")]
    kernel: PathBuf,
    /// Processors of the guest
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: u8,
    /// More arguments for the kernel of the guest
    #[arg(
        long,
        value_name = "ARGS",
        allow_hyphen_values = true,
        default_value = ""
    )]
    append: String,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmm-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let started = Instant::now();
    let steps = Steps::default();
    fs::create_dir_all(FOLDER).context(FOLDER)?;
    let archive = PathBuf::from(format!("{FOLDER}/initramfs"));
    initramfs::write(&archive).with_context(|| format!("{}", archive.display()))?;

    heading("A VMM boots Linux. The guest's memory is an address space.");
    let config = guest::Config {
        kernel: &cli.kernel,
        initramfs: &archive,
        memory: MEMORY,
        cpus: cli.cpus,
        append: &cli.append,
    };
    let mut guest = Guest::start(&config)?;
    let outcome = show(&mut guest, cli.cpus, &steps);
    if outcome.is_err() {
        guest.show_last_words();
    }
    outcome?;
    drop(guest);

    heading("Another guest may not access its kernel's code any more, and that is its end.");
    is_forbidden(Guest::start(&config)?, &steps)?;

    let seconds = started.elapsed().as_secs_f32();
    heading(&format!("{steps}, {seconds:.1} s"));
    ensure!(steps.all_right(), "not everything was as it should be");
    Ok(())
}

fn show(guest: &mut Guest, cpus: u8, steps: &Steps) -> Result<()> {
    guest.boots()?;
    steps.check("Linux is up", true);
    let up = guest.shell("nproc")?;
    steps.check(
        &format!("it has {cpus} processors"),
        up == [cpus.to_string()],
    );

    heading("The process that runs it has no guest memory mapped.");
    let space = guest.space()?;
    has_not_mapped_it(guest, &space, steps)?;

    heading("It lies open to whoever holds the space.");
    asctl(&["ls"])?;
    asctl(&["maps", &guest.space])?;
    can_be_read(guest, &space, steps)?;

    heading("Another process writes into a page that a program in the guest reads.");
    let page = can_be_written(guest, &space, steps)?;

    heading("It puts a page of a file there, takes it away, and puts it back.");
    can_be_replaced(guest, page, steps)?;

    heading("It maps more memory. Linux finds it plugged in; KVM and the VMM know nothing of it.");
    can_grow(guest, &space, steps)?;
    asctl(&["maps", &guest.space])?;

    heading("The guest reboots, and that ends the VMM.");
    ends(guest, &space, steps)
}

fn has_not_mapped_it(guest: &Guest, space: &AddressSpace, steps: &Steps) -> Result<()> {
    const FEW: u64 = MEMORY / 4;
    let vmm = maps::of(guest.pid())?;
    for line in &vmm.guest_memory {
        println!("  {line}");
    }
    println!("  writable in its own memory: {} KiB", vmm.writable >> 10);
    steps.check(
        "/proc/PID/maps of the VMM has none",
        vmm.guest_memory.is_empty(),
    );
    steps.check("little memory of its own", vmm.writable < FEW);
    let info = space.info()?;
    steps.check(
        "the space has windows, and no mirror",
        info.windows > 0 && info.mirrors == 0,
    );

    let mirror = space.mirror(0, MEMORY as usize, Prot::READ | Prot::WRITE)?;
    let ours = maps::of(std::process::id())?;
    steps.check(
        "a process that has mapped it is found out",
        !ours.guest_memory.is_empty(),
    );
    steps.check("and has much memory", ours.writable > FEW);
    drop(mirror);
    let ours = maps::of(std::process::id())?;
    steps.check(
        "which it has no more when it unmaps it",
        ours.guest_memory.is_empty(),
    );
    Ok(())
}

fn can_be_read(guest: &Guest, space: &AddressSpace, steps: &Steps) -> Result<()> {
    let version = guest.version().context("Linux did not say its version")?;
    let found = search::text(space, version.as_bytes())?;
    steps.check(
        "what Linux said of itself is in its memory",
        found.is_some(),
    );
    if let Some(at) = found {
        asctl(&["read", &guest.space, &format!("{at:#x}"), "64", "--hex"])?;
    }
    Ok(())
}

/// Returns where the page is.
fn can_be_written(guest: &mut Guest, space: &AddressSpace, steps: &Steps) -> Result<u64> {
    guest.note_becomes(initramfs::NOTE)?;
    // As the start of a page it is the page cache's; elsewhere it is in some buffer.
    let found = search::pages(space, 0..MEMORY, |page| {
        page.starts_with(initramfs::NOTE.as_bytes())
    })?;
    steps.check("the file's page is found in its memory", found.len() == 1);
    let page = *found.first().context("there is no page to go on with")?;
    let text = "written from outside the guest";
    steps::asctl_write(&guest.space, page, &note(text))?;
    guest.note_becomes(text)?;
    steps.check("the guest reads what was written", true);
    Ok(page)
}

fn can_be_replaced(guest: &mut Guest, page: u64, steps: &Steps) -> Result<()> {
    let text = "this is a file of the host";
    let file = format!("{FOLDER}/note");
    fs::write(&file, note(text)).context(file.clone())?;
    let at = format!("{page:#x}");
    let space = guest.space.clone();
    let map = |place| {
        asctl(&[
            "map",
            &space,
            "--file",
            &file,
            "--private",
            "--prot",
            "rw",
            place,
            &at,
        ])
    };
    map("--replace")?;
    guest.note_becomes(text)?;
    steps.check("the guest reads the file", true);

    asctl(&["unmap", &space, &at, "4K"])?;
    guest.note_becomes(r"\xff\xff\xff\xff")?;
    steps.check("then all ones: nothing is there", true);

    map("--at")?;
    guest.note_becomes(text)?;
    steps.check("and the file again", true);
    guest.shell("echo changed by the guest > /note")?;
    guest.note_becomes("changed by the guest")?;
    let unharmed = fs::read(&file)? == note(text);
    steps.check("the guest writes: not into the file", unharmed);
    Ok(())
}

fn can_grow(guest: &mut Guest, space: &AddressSpace, steps: &Steps) -> Result<()> {
    const PIECE: u64 = 1 << 20;
    const PIECES: u64 = 80;
    const LINE: &str = "this file is larger than the memory that the guest had";

    let before = guest.memory_total()?;
    let (at, len) = (format!("{PLUGGED:#x}"), format!("{}M", BLOCK >> 20));
    asctl(&[
        "map",
        &guest.space,
        "--memfd",
        "more",
        "--len",
        &len,
        "--at",
        &at,
    ])?;
    guest.shell(&format!("cd /sys/devices/system/memory; echo {at} > probe"))?;
    let state = format!("memory{}/state", PLUGGED / BLOCK);
    guest.shell(&format!("grep -q online {state} || echo online > {state}"))?;
    let after = guest.memory_total()?;
    println!("  total memory in the guest: {before} KiB, then {after} KiB");
    steps.check("Linux has 128M more", after == before + (BLOCK >> 10));

    guest.shell("mount -t tmpfs -o size=100M more /mnt")?;
    guest.shell(&format!("yes '{LINE}' | head -c {PIECE} > /piece"))?;
    guest.shell(&format!(
        "for n in $(seq {PIECES}); do cat /piece; done > /mnt/file"
    ))?;
    let size = guest.shell("wc -c < /mnt/file")?;
    steps.check(
        "a file of 80M fits in",
        size == [(PIECE * PIECES).to_string()],
    );
    let good = guest.shell(&format!(
        "tail -c {PIECE} /mnt/file | cmp - /piece && echo good"
    ))?;
    steps.check("and is read back", good == ["good"]);
    let pages = search::pages(space, PLUGGED..PLUGGED + BLOCK, |page| {
        search::position(page, LINE.as_bytes()).is_some()
    })?;
    println!(
        "  pages of it in the memory that came later: {}",
        pages.len()
    );
    let least = (PIECE * PIECES - MEMORY) / PAGE;
    steps.check("in the new memory", pages.len() as u64 >= least);
    Ok(())
}

fn ends(guest: &mut Guest, space: &AddressSpace, steps: &Steps) -> Result<()> {
    guest.reboot()?;
    let status = guest.end()?;
    steps.check(&format!("the VMM ends: {status}"), status.success());
    // The kernel takes a VM down when its last file is closed, which may be a moment later.
    let deadline = Instant::now() + guest::PATIENCE;
    while space.info()?.windows > 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    steps.check("the windows went with the VM", space.info()?.windows == 0);
    let still = search::text(space, initramfs::NOTE.as_bytes())?;
    steps.check(
        "we hold the space: the memory is still there",
        still.is_some(),
    );
    Ok(())
}

fn is_forbidden(mut guest: Guest, steps: &Steps) -> Result<()> {
    guest.says_something()?;
    // Without nested paging KVM walks the guest's page tables itself; those it can have.
    asctl(&["protect", &guest.space, "16M", "4M", "none"])?;
    let status = guest.end()?;
    steps.check(&format!("the VMM ends: {status}"), status.code() == Some(1));
    let complaints = guest.complaints();
    let told = complaints.len() == 1 && complaints[0].contains("cannot be accessed");
    steps.check("and says why in one line", told);
    Ok(())
}

/// A text as the guest has it in its file, always of the same length.
fn note(text: &str) -> Vec<u8> {
    format!("{text:<width$}\n", width = initramfs::NOTE_LEN - 1).into_bytes()
}
