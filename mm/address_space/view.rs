// SPDX-License-Identifier: GPL-2.0

//! `ADDRESS_SPACE_IOC_VIEW`: an asfd with fewer rights over less of a space.

use kernel::{
    fs::{file::FileDescriptorReservation, LocalFile},
    prelude::*,
    uaccess::{UserPtr, UserSlice},
    uapi,
};

use crate::{
    file::{self, Asfd},
    rights::{Ceiling, Rights},
};

/// `struct address_space_view`.
#[repr(transparent)]
struct Args(uapi::address_space_view);

// SAFETY: All its fields are integers, so any bytes will do.
unsafe impl kernel::transmute::FromBytes for Args {}

/// `ADDRESS_SPACE_IOC_VIEW` on `asfd`, which is `file`. Returns a descriptor of the view.
///
/// The view holds the space as any asfd does, and nothing of the one that it was made from.
pub(crate) fn view(asfd: &Asfd, file: &LocalFile, arg: UserPtr) -> Result<isize> {
    asfd.rights.require(Rights::VIEW)?;
    let Args(args) = UserSlice::new(arg, size_of::<Args>()).reader().read()?;
    if args.__reserved != 0 {
        return Err(EINVAL);
    }
    let fd_flags = file::fd_flags(args.flags)?;
    let rights = Rights::from_bits(args.rights)?;
    let ceiling = Ceiling::from_prot(args.prot)?;
    let window = asfd.window.narrow(args.addr, args.len)?;
    asfd.rights.require(rights)?;
    asfd.ceiling.require_all(ceiling)?;

    let view = Asfd {
        owner: asfd.owner.clone(),
        window,
        rights,
        ceiling,
    };
    let fd = FileDescriptorReservation::get_unused_fd_flags(fd_flags)?;
    let file = view.into_file_beside(file)?;
    let number = fd.reserved_fd() as isize;
    fd.fd_install(file);
    Ok(number)
}
