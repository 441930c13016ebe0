// SPDX-License-Identifier: GPL-2.0

//! A tour of address spaces: compose one, look at it, run a KVM guest from it, and change it from
//! another process while the guest runs. Ends with status 1 if anything is not as it should be.

mod guest;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use asfd::{AddressSpace, CreateFlags, Mapping, Prot, Window};
use guest::{Event, CODE, COUNTER, FIRST, KERNEL, RAM, RAM_LEN, SECOND};
use kvm_ioctls::Kvm;
use nix::sys::memfd::{memfd_create, MFdFlags};

const PAGE: u64 = 4096;
const GUEST_MEMORY: u64 = 64 << 20;
const FOLDER: &str = "/tmp/tour";

fn main() -> Result<()> {
    let started = Instant::now();
    let image = std::env::args_os().nth(1).unwrap_or("/boot/bzImage".into());
    let (space, ram) = compose(Path::new(&image))?;
    let name = format!("{}:{}", std::process::id(), space.as_raw_fd());

    asctl(&["ls"])?;
    asctl(&["maps", &name])?;

    heading("A KVM guest runs from it. This process has no mapping of its memory.");
    let kvm = Kvm::new().context("cannot open /dev/kvm")?;
    let vm = kvm.create_vm().context("cannot make a VM")?;
    let window = Window {
        size: GUEST_MEMORY,
        ..Window::default()
    };
    space.map_into_vm(&vm, &window)?;
    let vcpu = guest::vcpu(&vm)?;
    let (sender, events) = mpsc::channel();
    // The guest runs until the tour ends; nothing below makes another call to KVM.
    std::thread::spawn(move || guest::run(vcpu, &sender));
    line(&events, "the kernel image is Linux ")?;
    line(&events, "first page:  hello from a memfd")?;
    line(&events, "second page: it has another page here")?;
    asctl(&["ls"])?;

    heading("While it runs, another process puts a file in place of the first page.");
    let note = format!("{FOLDER}/note");
    fs::write(&note, "hello from a file, mapped from outside\0").context(note.clone())?;
    let first = format!("{FIRST:#x}");
    asctl(&["map", &name, "--file", &note, "--replace", &first])?;
    line(
        &events,
        "first page:  hello from a file, mapped from outside",
    )?;

    heading("It takes the second page away: the guest finds a hole, and the VMM is asked.");
    asctl(&["unmap", &name, &format!("{SECOND:#x}"), "4K"])?;
    hole(&events, SECOND)?;
    line(&events, "second page: nothing is there")?;

    heading("And fills it again, with the memfd's page of before.");
    let page = Mapping::file(&ram, PAGE).offset(SECOND - RAM);
    space.map(&page.prot(Prot::READ).at(SECOND))?;
    line(&events, "second page: it has another page here")?;

    asctl(&["maps", &name])?;
    let mut turns = [0; 4];
    space.read_exact_at(&mut turns, COUNTER)?;
    let turns = u32::from_le_bytes(turns);
    ensure!(turns > 0, "the guest counted no turns in its memfd");
    let seconds = started.elapsed().as_secs_f32();
    heading(&format!(
        "The guest counted {turns} turns in its memfd; the tour took {seconds:.1} s."
    ));
    Ok(())
}

/// A memfd as the guest's memory, its code in a file, and the kernel's image as it lies on disk.
fn compose(image: &Path) -> Result<(AddressSpace, File)> {
    heading("A space, composed of a memfd, a file and the kernel's own image.");
    let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    let rw = Prot::READ | Prot::WRITE;

    let ram = File::from(memfd_create(c"ram", MFdFlags::MFD_CLOEXEC).context("memfd_create")?);
    ram.set_len(RAM_LEN).context("ftruncate")?;
    space.map(&Mapping::file(&ram, RAM_LEN).prot(rw).at(RAM))?;
    space.write_all_at(b"hello from a memfd\0", FIRST)?;
    space.write_all_at(b"it has another page here\0", SECOND)?;

    fs::create_dir_all(FOLDER).context(FOLDER)?;
    let code = format!("{FOLDER}/guest");
    fs::write(&code, guest::code()).context(code.clone())?;
    space.map(&Mapping::file(&File::open(&code)?, PAGE).at(CODE))?;

    let kernel = File::open(image).with_context(|| {
        format!(
            "cannot open a kernel image at {}; name another one as argument",
            image.display()
        )
    })?;
    let len = kernel.metadata()?.len();
    space.map(&Mapping::file(&kernel, len).at(KERNEL))?;
    Ok((space, ram))
}

fn heading(text: &str) {
    println!("\n== {text}");
}

/// Runs asctl as anybody would, in a process of its own.
fn asctl(args: &[&str]) -> Result<()> {
    println!("\n$ asctl {}", args.join(" "));
    let status = Command::new("asctl")
        .args(args)
        .status()
        .context("cannot run asctl")?;
    ensure!(status.success(), "asctl {}: {status}", args[0]);
    println!();
    Ok(())
}

/// How long the guest has to show a change.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for what the guest says.
fn line(events: &Receiver<Event>, expected: &str) -> Result<()> {
    wait(
        events,
        expected,
        |event| matches!(event, Event::Line(line) if line.starts_with(expected)),
    )
}

/// Waits for an exit of the guest because nothing is mapped at `addr`.
fn hole(events: &Receiver<Event>, addr: u64) -> Result<()> {
    wait(
        events,
        "an exit for a hole",
        |event| matches!(event, Event::Hole(at) if *at == addr),
    )
}

fn wait(events: &Receiver<Event>, what: &str, is_it: impl Fn(&Event) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match events.recv_timeout(left) {
            Ok(Event::Ended(why)) => bail!("the guest ended: {why}"),
            Ok(event) if is_it(&event) => return Ok(()),
            Ok(_) => {}
            Err(_) => bail!("the guest did not show: {what}"),
        }
    }
}
