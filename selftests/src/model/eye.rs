// SPDX-License-Identifier: GPL-2.0

//! A guest that sees the model's pages: it copies pages to where they can be looked at, and writes.

use libc::PROT_READ;

use super::state::{same, PAGES, SIZE};
use super::Test;
use crate::support::guest::{plain_code, window, Args, Exit, OwnMemory, Routine, Vcpu, Vm};
use crate::support::{Errno, Space, PAGE};

pub struct Eye {
    vcpu: Vcpu,
    scratch: OwnMemory,
    _vm: Vm,
    _code: OwnMemory,
}

const WINDOW: u64 = 1 << 24;
const SCRATCH: u64 = 1 << 20;

impl Eye {
    /// Looks at the space from `offset` of the descriptor on.
    pub fn new(space: &Space, offset: u64) -> Eye {
        let vm = Vm::new();
        let code = plain_code(&vm);
        let scratch = OwnMemory::at(0x6000_0000, PAGE, 0);
        vm.set_plain_slot(1, 0, SCRATCH, PAGE, scratch.0)
            .expect("an ordinary slot");
        vm.must_map(window(2, WINDOW, (PAGES * SIZE) as u64, space, offset));
        Eye {
            vcpu: vm.vcpu(0),
            scratch,
            _vm: vm,
            _code: code,
        }
    }
}

impl Test {
    /// How the guest must fare at a page that it cannot read, or write.
    fn exit(&self, page: usize, refusal: Errno) -> fn(&Exit, u64) -> bool {
        let mapped = self.model.pages[page].as_ref();
        let mmio = |exit: &Exit, addr: u64| match exit {
            Exit::MmioRead { addr: at, .. } | Exit::MmioWrite { addr: at, .. } => *at == addr,
            _ => false,
        };
        match mapped {
            None => mmio,
            Some(mapped) if mapped.prot == PROT_READ && refusal == Errno::EACCES => mmio,
            Some(_) => |exit, addr| exit.is_fault_at(addr & !(PAGE - 1)),
        }
    }

    pub fn guest_store(&mut self) {
        let (page, value) = (self.random.usize(0..PAGES), self.random.u32(..));
        let at = page * SIZE + 4 * self.random.usize(0..SIZE / 4);
        let Some(mut eye) = self.eye.take() else {
            return;
        };
        let addr = WINDOW + at as u64;
        let exit = eye.vcpu.store(addr, value);
        match self.model.writable(page).err() {
            None => {
                assert_eq!(exit, Exit::Done(value), "store at {at:#x}");
                self.model.write(at, &value.to_le_bytes());
            }
            Some(refusal) => {
                let right = self.exit(page, refusal);
                assert!(
                    right(&exit, addr),
                    "store at {at:#x}: {exit:x?} for {refusal}"
                );
            }
        }
        self.checks += 1;
        self.eye = Some(eye);
    }

    /// The guest copies a page to where it can be looked at, or loads from one that it cannot read.
    pub fn check_guest(&mut self) {
        let page = self.random.usize(0..PAGES);
        let Some(mut eye) = self.eye.take() else {
            return self.check_read();
        };
        let addr = WINDOW + (page * SIZE) as u64;
        match self.model.readable(page) {
            Ok(bytes) => {
                let args = Args {
                    esi: addr as u32,
                    edi: SCRATCH as u32,
                    ecx: PAGE as u32 / 4,
                    ..Default::default()
                };
                let exit = eye.vcpu.call(Routine::Copy, args);
                assert!(
                    matches!(exit, Exit::Done(_)),
                    "copy of page {page}: {exit:x?}"
                );
                same(
                    &format!("copy of page {page}"),
                    &Ok(eye.scratch.bytes()),
                    &Ok(bytes.clone()),
                );
            }
            Err(refusal) => {
                let exit = eye.vcpu.load(addr);
                let right = self.exit(page, refusal);
                assert!(
                    right(&exit, addr),
                    "load of page {page}: {exit:x?} for {refusal}"
                );
            }
        }
        self.checks += 1;
        self.eye = Some(eye);
    }
}
