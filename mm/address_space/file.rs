// SPDX-License-Identifier: GPL-2.0

//! The asfd: the file that owns a space, and its operations.

use kernel::{
    bindings,
    fs::{
        file::{self, FileDescriptorReservation, Offset},
        operations::{FileOperations, Operations},
        Kiocb, LocalFile,
    },
    iov::{IovIterDest, IovIterSource},
    prelude::*,
    seq_file::SeqFile,
    sync::aref::ARef,
    uaccess::UserPtr,
    uapi,
};

use crate::{
    bytes, query,
    rights::{Ceiling, Rights},
    space::SpaceOwner,
};

static OPERATIONS: Operations<Asfd> = Operations::new();

/// What an asfd holds.
pub(crate) struct Asfd {
    pub(crate) owner: SpaceOwner,
    pub(crate) rights: Rights,
    pub(crate) ceiling: Ceiling,
}

impl Asfd {
    /// The asfd that `file` is, if it is one.
    pub(crate) fn from_file(file: &LocalFile) -> Option<&Asfd> {
        OPERATIONS.data(file)
    }
}

/// A file that is known to be an asfd.
pub(crate) struct AsfdFile(ARef<LocalFile>);

impl AsfdFile {
    /// Looks up a descriptor: [`EBADF`] if it is not open, [`EINVAL`] if it is not an asfd.
    pub(crate) fn from_fd(fd: i32) -> Result<Self> {
        let file = LocalFile::fget(fd as u32)?;
        match Asfd::from_file(&file) {
            Some(_) => Ok(Self(file)),
            None => Err(EINVAL),
        }
    }

    /// The asfd that it is.
    pub(crate) fn asfd(&self) -> Result<&Asfd> {
        Asfd::from_file(&self.0).ok_or(EINVAL)
    }
}

/// `address_space_create(2)`: an empty space, and a descriptor that owns it.
pub(crate) fn create(flags: u32) -> Result<usize> {
    let fd_flags = match flags {
        0 => 0,
        uapi::ADDRESS_SPACE_CLOEXEC => file::flags::O_CLOEXEC,
        _ => return Err(EINVAL),
    };
    let asfd = KBox::new(
        Asfd {
            owner: SpaceOwner::new()?,
            rights: Rights::ALL,
            ceiling: Ceiling::ALL,
        },
        GFP_KERNEL_ACCOUNT,
    )?;
    let fd = FileDescriptorReservation::get_unused_fd_flags(fd_flags)?;
    let file = OPERATIONS.anon_file(c"[address_space]", asfd, file::flags::O_RDWR)?;

    let number = fd.reserved_fd() as usize;
    fd.fd_install(file);
    Ok(number)
}

const IOC_INFO: u32 =
    kernel::ioctl::_IOR::<uapi::address_space_info>(uapi::ADDRESS_SPACE_IOC_MAGIC, 0x00);
const PROCMAP_QUERY: u32 =
    kernel::ioctl::_IOWR::<bindings::procmap_query>(bindings::PROCFS_IOCTL_MAGIC as u32, 17);

#[vtable]
impl FileOperations for Asfd {
    type Ptr = KBox<Self>;

    fn llseek(asfd: &Asfd, file: &LocalFile, offset: Offset, whence: i32) -> Result<Offset> {
        let position = query::seek(asfd, Operations::<Self>::position(file), offset, whence)?;
        Ok(Operations::<Self>::set_position(file, position))
    }

    fn read_iter(mut iocb: Kiocb<'_, KBox<Self>>, iov: &mut IovIterDest<'_>) -> Result<usize> {
        let done = bytes::read(iocb.file(), iocb.ki_pos(), iov)?;
        *iocb.ki_pos_mut() += done as i64;
        Ok(done)
    }

    fn write_iter(mut iocb: Kiocb<'_, KBox<Self>>, iov: &mut IovIterSource<'_>) -> Result<usize> {
        let done = bytes::write(iocb.file(), iocb.ki_pos(), iov)?;
        *iocb.ki_pos_mut() += done as i64;
        Ok(done)
    }

    fn ioctl(asfd: &Asfd, cmd: u32, arg: usize) -> Result<isize> {
        let arg = UserPtr::from_addr(arg);
        match cmd {
            IOC_INFO => query::info(asfd, arg)?,
            PROCMAP_QUERY => query::procmap(asfd, arg)?,
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }

    fn show_fdinfo(asfd: &Asfd, m: &SeqFile) {
        query::show_fdinfo(asfd, m);
    }
}
