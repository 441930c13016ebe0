// SPDX-License-Identifier: GPL-2.0

//! The devices that KVM does not have: a serial port, and a keyboard controller that resets.

use std::io::{self, Stdout};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use kvm_ioctls::VmFd;
use vm_superio::serial::NoEvents;
use vm_superio::{I8042Device, Serial, Trigger};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

const SERIAL: u16 = 0x3f8;
const SERIAL_LAST: u16 = SERIAL + 7;
const SERIAL_IRQ: u32 = 4;
const I8042: u16 = 0x60;
const I8042_COMMAND: u16 = I8042 + 4;

/// An interrupt that KVM takes from an eventfd.
struct Irq(EventFd);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells whoever waits for the end that it has come.
struct Reset(Sender<Result<()>>);

impl Trigger for Reset {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        // If nobody waits, it has come already.
        let _ = self.0.send(Ok(()));
        Ok(())
    }
}

pub struct Devices {
    serial: Mutex<Serial<Irq, NoEvents, Stdout>>,
    i8042: Mutex<I8042Device<Reset>>,
}

impl Devices {
    pub fn new(vm: &VmFd, ended: Sender<Result<()>>) -> Result<Self> {
        let irq = EventFd::new(EFD_NONBLOCK).context("eventfd")?;
        vm.register_irqfd(&irq, SERIAL_IRQ).context("KVM_IRQFD")?;
        Ok(Devices {
            serial: Mutex::new(Serial::new(Irq(irq), io::stdout())),
            i8042: Mutex::new(I8042Device::new(Reset(ended))),
        })
    }

    pub fn read(&self, port: u16, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = match port {
                SERIAL..=SERIAL_LAST => lock(&self.serial).read((port - SERIAL) as u8),
                I8042 | I8042_COMMAND => lock(&self.i8042).read((port - I8042) as u8),
                _ => 0xff,
            }
        }
    }

    pub fn write(&self, port: u16, bytes: &[u8]) -> Result<()> {
        for &byte in bytes {
            match port {
                SERIAL..=SERIAL_LAST => lock(&self.serial)
                    .write((port - SERIAL) as u8, byte)
                    .context("the guest's console")?,
                I8042 | I8042_COMMAND => lock(&self.i8042).write((port - I8042) as u8, byte)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Hands the guest input, as much as the serial port has room for; returns how much that is.
    pub fn input(&self, bytes: &[u8]) -> usize {
        // It fails if there is no room at all.
        lock(&self.serial).enqueue_raw_bytes(bytes).unwrap_or(0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
