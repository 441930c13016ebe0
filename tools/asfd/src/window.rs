// SPDX-License-Identifier: GPL-2.0

//! Showing a space to a KVM guest.

use std::os::fd::AsRawFd;

use crate::{sys, AddressSpace, Error, Operation, Result, WindowFlags};

/// A range of guest-physical addresses that shows a range of a space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Slot number, as in `KVM_SET_USER_MEMORY_REGION`.
    pub slot: u32,
    /// How the guest may use it.
    pub flags: WindowFlags,
    /// First guest-physical address.
    pub guest_phys_addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// Where `guest_phys_addr` lies in the space.
    pub offset: u64,
}

impl AddressSpace {
    /// Makes a window in a VM, or changes the flags of the one that the slot has.
    ///
    /// The guest sees the space as it is at every moment: what is mapped and unmapped later shows
    /// without another call, and holes are MMIO exits. `vm` is a VM descriptor of KVM, the
    /// `VmFd` of the kvm-ioctls crate for one. A window does not keep the space alive.
    ///
    /// ```no_run
    /// use asfd::{AddressSpace, CreateFlags, Window};
    /// # let vm = std::fs::File::open("stands for a VmFd")?;
    /// # let space = AddressSpace::create(CreateFlags::CLOEXEC)?;
    ///
    /// space.map_into_vm(&vm, &Window { size: 64 << 20, ..Window::default() })?;
    /// // ... run the guest ...
    /// asfd::unmap_from_vm(&vm, 0)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `EEXIST` where another slot covers the guest addresses, `ENOTTY` where KVM knows no
    /// spaces, `EINVAL` for a zero size too: deleting is [`unmap_from_vm`].
    pub fn map_into_vm<F: AsRawFd + ?Sized>(&self, vm: &F, window: &Window) -> Result<()> {
        let what = || {
            format!(
                "show {} bytes of the space from {:#x} at guest address {:#x} in slot {}",
                window.size, window.offset, window.guest_phys_addr, window.slot
            )
        };
        // For the kernel a size of 0 is to delete: nobody who says map means that.
        if window.size == 0 {
            let errno = rustix::io::Errno::INVAL;
            return Err(Error::new(Operation::Window, what(), errno));
        }
        let mut args = sys::kvm_map_address_space {
            slot: window.slot,
            flags: window.flags.bits(),
            guest_phys_addr: window.guest_phys_addr,
            memory_size: window.size,
            offset: window.offset,
            asfd: self.as_raw_fd(),
            ..Default::default()
        };
        set(vm, &mut args, what)
    }
}

/// Deletes the window in a slot of a VM.
pub fn unmap_from_vm<F: AsRawFd + ?Sized>(vm: &F, slot: u32) -> Result<()> {
    let mut args = sys::kvm_map_address_space {
        slot,
        asfd: -1,
        ..Default::default()
    };
    set(vm, &mut args, || {
        format!("delete the window in slot {slot}")
    })
}

/// Whether KVM can show spaces to guests. `kvm` is `/dev/kvm` or a VM.
pub fn vm_has_windows<F: AsRawFd + ?Sized>(kvm: &F) -> bool {
    const KVM_CHECK_EXTENSION: libc::Ioctl = 0xae03;
    let fd = kvm.as_raw_fd();
    // SAFETY: The argument is a number.
    unsafe { libc::ioctl(fd, KVM_CHECK_EXTENSION, sys::KVM_CAP_ADDRESS_SPACE) == 1 }
}

fn set<F: AsRawFd + ?Sized>(
    vm: &F,
    args: &mut sys::kvm_map_address_space,
    what: impl Fn() -> String,
) -> Result<()> {
    let fd = vm.as_raw_fd();
    // SAFETY: `args` is what the request takes and holds no addresses of this process.
    unsafe { sys::ioctl(fd, sys::KVM_MAP_ADDRESS_SPACE, args) }
        .map(drop)
        .map_err(|e| Error::new(Operation::Window, what(), e))
}
