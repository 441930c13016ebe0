// SPDX-License-Identifier: GPL-2.0

//! A file system daemon maps a file into a guest's DAX window, against asking the VMM to do it.
//!
//! The daemon is this process, the VMM another, with a VM that has the window. Through a space the
//! daemon does it itself, with a view that lets it do that and no more. Otherwise it sends the VMM
//! a message over a UNIX stream socket, and waits for the answer.
//!
//! Counted is what all of the machine does from the daemon's start to the moment when it knows that
//! the guest finds the file there.

use std::fs::File;
use std::os::unix::net::UnixStream;

use anyhow::Result;
use asfd::{AddressSpace, CreateFlags, Mapping, Prot, Rights, View};

use super::dax_guest::{Dax, Guest};
use super::dax_messages::{control, Link, Message, Request};
use super::memory::{short, Pages, HUGE, PAGE};
use super::process::Process;
use super::Output;
use crate::clock::{compare, count};
use crate::record::{Measured, Unit::Instructions};

/// Many, because who runs when differs from one to the next where two processes talk.
const ROUNDS: usize = 61;
const CHEAPER: f64 = 5.0;

/// Where in the window other files are, with free ranges between them.
const OTHERS: u64 = 4 * HUGE;

/// Where the file goes that is measured.
fn place(round: usize) -> u64 {
    2 * HUGE + 2 * OTHERS * round as u64
}

/// How the file gets into the window.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Space,
    /// As vhost-user does it. The VMM maps within its mapping of the window, which is one memslot.
    Mmap,
    /// The same, with less of a protocol: the VMM has the descriptor already, and all messages have
    /// one length.
    Least,
    /// As vhost-user does it, where each file in the window is a memslot of its own.
    Memslot,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Space => "address_space_mmap",
            Way::Mmap => "message with fd, mmap",
            Way::Least => "message, mmap (has the fd)",
            Way::Memslot => "message with fd, mmap, memslot",
        }
    }

    fn link(self, socket: &UnixStream) -> Link<'_> {
        Link {
            socket,
            vhost_user: self != Way::Least,
        }
    }
}

/// What is at a place of the window before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    /// Another part of the file, which the guest has not touched.
    Untouched,
    /// Another part of the file, of which the guest has touched each page.
    Touched,
}

impl Before {
    fn name(self) -> &'static str {
        match self {
            Before::Nothing => "where nothing is",
            Before::Untouched => "over an untouched one",
            Before::Touched => "over one the guest uses",
        }
    }
}

/// The daemon, and all that it needs for one of the ways.
struct Daemon {
    way: Way,
    file: File,
    window: AddressSpace,
    vmm: Process,
    len: u64,
    before: Before,
}

impl Daemon {
    fn new(way: Way, len: u64, before: Before) -> Result<Self> {
        let file = Pages::Small.filled_memfd(2 * len)?;
        let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
        let view = View::of(0..Dax::LEN).rights(Rights::MAP | Rights::UNMAP);
        let window = space.view(&view.prot(Prot::empty()))?;
        let vmm = Process::spawn(|socket| {
            let dax = match way {
                Way::Space => Dax::Window(space),
                Way::Mmap | Way::Least => Dax::Slot,
                Way::Memslot => Dax::SlotEach,
            };
            vmm(way.link(socket), Guest::new(dax)?, &file)
        })?;
        let daemon = Daemon {
            way,
            file,
            window,
            vmm,
            len,
            before,
        };
        for at in (0..Dax::LEN).step_by(OTHERS as usize) {
            daemon.map(at, 0)?;
        }
        // The tree of mappings grows where they come one after the other. It has room for those
        // that are measured when it had them once.
        for round in 0..ROUNDS {
            daemon.cost(round)?;
        }
        Ok(daemon)
    }

    /// Asks the VMM, and waits for the answer.
    fn ask(&self, request: Request, at: u64, offset: u64, file: Option<&File>) -> Result<()> {
        let message = Message {
            request,
            file_offset: offset,
            window_offset: at,
            len: self.len,
        };
        self.way.link(&self.vmm.socket).ask(&message, file)
    }

    fn map(&self, at: u64, offset: u64) -> Result<()> {
        match self.way {
            Way::Space => {
                let mapping = Mapping::file(&self.file, self.len).offset(offset);
                let rw = Prot::READ | Prot::WRITE;
                self.window.map(&mapping.prot(rw).replacing(at))?;
                Ok(())
            }
            Way::Least => self.ask(Request::Map, at, offset, None),
            Way::Mmap | Way::Memslot => self.ask(Request::Map, at, offset, Some(&self.file)),
        }
    }

    fn unmap(&self, at: u64) -> Result<()> {
        match self.way {
            Way::Space => Ok(self.window.unmap(at, self.len)?),
            _ => self.ask(Request::Unmap, at, 0, None),
        }
    }

    fn cost(&self, round: usize) -> Result<f64> {
        let at = place(round);
        if self.before != Before::Nothing {
            self.map(at, 0)?;
        }
        if self.before == Before::Touched {
            self.ask(Request::Touch, at, 0, None)?;
        }
        let cost = count(|| self.map(at, self.len))?;
        self.unmap(at)?;
        Ok(cost)
    }
}

fn vmm(link: Link, mut guest: Guest, known: &File) -> Result<()> {
    let mut control = control();
    loop {
        let (message, file) = link.receive(&mut control)?;
        let (at, len) = (message.window_offset, message.len);
        match message.request {
            Request::Map => {
                guest.map(file.as_ref().unwrap_or(known), message.file_offset, at, len)?
            }
            Request::Unmap => guest.unmap(at, len)?,
            Request::Touch => guest.touch(at, len)?,
        }
        link.answer()?;
    }
}

pub fn map(out: &mut Output) -> Result<()> {
    let vhost_user = [Way::Mmap, Way::Memslot];
    let all = [
        (PAGE, Before::Nothing, &vhost_user[..]),
        (HUGE, Before::Nothing, &vhost_user),
        (HUGE, Before::Nothing, &[Way::Least]),
        (HUGE, Before::Untouched, &vhost_user),
        (HUGE, Before::Touched, &vhost_user),
    ];
    for (len, before, ways) in all {
        for &way in ways {
            let ours = Daemon::new(Way::Space, len, before)?;
            let theirs = Daemon::new(way, len, before)?;
            let costs = compare(ROUNDS, |n| ours.cost(n), |n| theirs.cost(n))?;
            let name = format!("DAX map of {} {}", short(len), before.name());
            let row = Measured::new(name, way.name(), Instructions, costs);
            // No protocol in use is that lean; and where both sides take the same pages from the
            // guest, that is nearly all of the cost.
            let reported = way == Way::Least || before == Before::Touched;
            out.row(if reported { row } else { row.cheaper(CHEAPER) })?;
        }
    }
    Ok(())
}
