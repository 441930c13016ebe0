// SPDX-License-Identifier: GPL-2.0

//! The ways to learn which pages a guest has written.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::sync::atomic::{fence, Ordering};

use kvm_bindings::{kvm_clear_dirty_log, kvm_dirty_gfn, kvm_enable_cap};
use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_PAGE_OFFSET,
};
use libc::{MAP_SHARED, PROT_READ, PROT_WRITE};

use super::guest::{Vcpu, Vm};
use super::mirror::Area;
use super::PAGE;
use crate::harness::skip;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// KVM_GET_DIRTY_LOG, which also clears.
    Log,
    /// KVM_CLEAR_DIRTY_LOG clears.
    Clear,
    /// The same, and when logging begins all pages are dirty.
    InitiallySet,
    /// A ring for each vCPU.
    Ring,
}

impl Way {
    pub const ALL: [Way; 4] = [Way::Log, Way::Clear, Way::InitiallySet, Way::Ring];
}

/// Entries of a ring; KVM keeps some of them for itself.
const ENTRIES: u64 = 256;
const ENTRY: u64 = size_of::<kvm_dirty_gfn>() as u64;

struct Ring {
    area: Area,
    next: u64,
}

pub struct Tracker {
    pub way: Way,
    rings: Vec<Ring>,
}

/// A slot and a page in it.
pub type Page = (u32, u64);

impl Tracker {
    /// To be made before the VM has vCPUs.
    pub fn new(vm: &Vm, way: Way) -> Tracker {
        let (cap, value) = match way {
            Way::Log => (0, 0),
            Way::Clear => (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 1),
            Way::InitiallySet => (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 3),
            Way::Ring => (KVM_CAP_DIRTY_LOG_RING, ENTRIES * ENTRY),
        };
        let mut enable = kvm_enable_cap {
            cap,
            ..Default::default()
        };
        enable.args[0] = value;
        if cap != 0 {
            let done = vm.fd.enable_cap(&enable);
            done.unwrap_or_else(|e| skip(&format!("{way:?}: {e}")));
        }
        Tracker {
            way,
            rings: Vec::new(),
        }
    }

    /// To be told of every vCPU.
    pub fn add(&mut self, vcpu: &Vcpu) {
        if self.way == Way::Ring {
            let offset = u64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE;
            let (prot, fd) = (PROT_READ | PROT_WRITE, vcpu.fd.as_raw_fd());
            let area = Area::mmap(0, ENTRIES * ENTRY, prot, MAP_SHARED, fd, offset);
            self.rings.push(Ring {
                area: area.expect("mmap of the ring"),
                next: 0,
            });
        }
    }

    /// The pages of these slots (number and length in pages) that were written since the last
    /// call. Rings tell of all slots.
    pub fn take(&mut self, vm: &Vm, slots: &[(u32, u64)]) -> BTreeSet<Page> {
        let mut pages = BTreeSet::new();
        for ring in &mut self.rings {
            ring.harvest(&mut pages);
        }
        if self.way == Way::Ring {
            const KVM_RESET_DIRTY_RINGS: libc::Ioctl = 0xaec7;
            loop {
                // SAFETY: Takes no pointers.
                match unsafe { libc::ioctl(vm.fd.as_raw_fd(), KVM_RESET_DIRTY_RINGS, 0) } {
                    -1 => assert_eq!(super::Errno::last(), super::Errno::EINTR),
                    _ => return pages,
                }
            }
        }
        for &(slot, len) in slots {
            let log = vm.fd.get_dirty_log(slot, (len * PAGE) as usize);
            let mut log = log.expect("KVM_GET_DIRTY_LOG");
            let dirty = |page: &u64| log[*page as usize / 64] >> (page % 64) & 1 == 1;
            pages.extend((0..len).filter(dirty).map(|page| (slot, page)));
            if self.way != Way::Log {
                clear(vm, slot, len, &mut log);
            }
        }
        pages
    }
}

impl Ring {
    fn harvest(&mut self, pages: &mut BTreeSet<Page>) {
        const DIRTY: u64 = 1 << 0;
        const RESET: u64 = 1 << 1;
        loop {
            let at = self.next % ENTRIES * ENTRY;
            // The flags, and above them the slot.
            let first = self.area.load_word(at).expect("the ring");
            if first & (DIRTY | RESET) != DIRTY {
                return;
            }
            fence(Ordering::Acquire);
            let page = self.area.load_word(at + 8).expect("the ring");
            pages.insert(((first >> 32) as u32, page));
            fence(Ordering::Release);
            self.area.store_word(at, first | RESET).expect("the ring");
            self.next += 1;
        }
    }
}

fn clear(vm: &Vm, slot: u32, pages: u64, log: &mut [u64]) {
    const KVM_CLEAR_DIRTY_LOG: u32 = 0xc018_aec0;
    let mut request = kvm_clear_dirty_log {
        slot,
        num_pages: pages as u32,
        ..Default::default()
    };
    request.__bindgen_anon_1.dirty_bitmap = log.as_mut_ptr().cast();
    // SAFETY: The struct is what the request takes, and the bitmap has a bit for each page.
    let done = unsafe { asfd::sys::ioctl(vm.fd.as_raw_fd(), KVM_CLEAR_DIRTY_LOG, &mut request) };
    done.expect("KVM_CLEAR_DIRTY_LOG");
}
