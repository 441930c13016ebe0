// SPDX-License-Identifier: GPL-2.0

//! The asfd: a file that owns a space, perhaps with others, and its operations.

use core::ops::{Range, RangeInclusive};
use kernel::{
    bindings,
    fs::{
        fdget::Fdget,
        file::{self, FileDescriptorReservation, Offset},
        mmap::VmaDesc,
        operations::{FileOperations, Operations},
        File, Kiocb, LocalFile,
    },
    iov::{IovIterDest, IovIterSource},
    prelude::*,
    seq_file::SeqFile,
    static_lock_class,
    sync::{aref::ARef, Arc},
    uaccess::UserPtr,
    uapi,
};

use crate::{
    advise, bytes, mirror, protect, query,
    rights::{Ceiling, Rights},
    seals,
    space::{self, SpaceOwner},
    sync, view,
    window::Window,
};

static OPERATIONS: Operations<Asfd> = Operations::new();

/// What an asfd holds. It does not change once there is a file.
pub(crate) struct Asfd {
    pub(crate) owner: Arc<SpaceOwner>,
    pub(crate) window: Window,
    pub(crate) rights: Rights,
    pub(crate) ceiling: Ceiling,
}

impl Asfd {
    /// Where `len` bytes at `offset` of the window lie in the mm. [`ERANGE`] outside the window of
    /// a view, [`ENOMEM`] past the end of the space.
    pub(crate) fn mm_range(&self, offset: u64, len: u64) -> Result<Range<usize>> {
        match self.window.resolve(offset, len) {
            Ok(range) => Ok(space::mm_range(range)),
            Err(_) if self.window == self.owner.window() => Err(ENOMEM),
            Err(err) => Err(err),
        }
    }

    /// Where the window lies in the mm.
    pub(crate) fn mm_window(&self) -> Range<usize> {
        let start = self.window.start();
        space::mm_range(start..start + self.window.len())
    }

    /// Where an address of the mm, not below the window, lies in the window.
    pub(crate) fn offset_of(&self, mm_addr: usize) -> u64 {
        (mm_addr - self.mm_window().start) as u64
    }

    /// A file for this asfd, which shares the inode of `other`, an asfd of the same space.
    pub(crate) fn into_file_beside(self, other: &LocalFile) -> Result<ARef<File>> {
        let asfd = KBox::new(self, GFP_KERNEL_ACCOUNT)?;
        OPERATIONS.file_beside(other, asfd, file::flags::O_RDWR)
    }

    /// The asfd that `file` is, if it is one.
    pub(crate) fn from_file(file: &LocalFile) -> Option<&Asfd> {
        OPERATIONS.data(file)
    }
}

/// A descriptor of an asfd that a system call was given.
pub(crate) struct AsfdFile(Fdget);

impl AsfdFile {
    /// Looks up a descriptor: [`EBADF`] if it is not open, [`EINVAL`] if it is not an asfd.
    pub(crate) fn from_fd(fd: i32) -> Result<Self> {
        let file = Fdget::new(fd as u32)?;
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

/// What flags for a new asfd say of its descriptor; [`EINVAL`] if there are unknown ones.
pub(crate) fn fd_flags(flags: u32) -> Result<u32> {
    match flags {
        0 => Ok(0),
        uapi::ADDRESS_SPACE_CLOEXEC => Ok(file::flags::O_CLOEXEC),
        _ => Err(EINVAL),
    }
}

/// `address_space_create(2)`: an empty space, and a descriptor that owns it.
pub(crate) fn create(flags: u32) -> Result<usize> {
    let fd_flags = fd_flags(flags)?;
    let owner = Arc::new(SpaceOwner::new()?, GFP_KERNEL_ACCOUNT)?;
    let asfd = KBox::new(
        Asfd {
            window: owner.window(),
            owner,
            rights: Rights::ALL,
            ceiling: Ceiling::ALL,
        },
        GFP_KERNEL_ACCOUNT,
    )?;
    let fd = FileDescriptorReservation::get_unused_fd_flags(fd_flags)?;
    let file = OPERATIONS.anon_file(c"[address_space]", asfd, file::flags::O_RDWR)?;
    // It nests inside that of the files which are mapped.
    file.mapping().set_lock_class(static_lock_class!());

    let number = fd.reserved_fd() as usize;
    fd.fd_install(file);
    Ok(number)
}

const MAGIC: u32 = uapi::ADDRESS_SPACE_IOC_MAGIC;
const IOC_INFO: u32 = kernel::ioctl::_IOR::<uapi::address_space_info>(MAGIC, 0x00);
const IOC_PROTECT: u32 = kernel::ioctl::_IOW::<uapi::address_space_protect>(MAGIC, 0x01);
const IOC_ADVISE: u32 = kernel::ioctl::_IOW::<uapi::address_space_advise>(MAGIC, 0x02);
const IOC_SEAL: u32 = kernel::ioctl::_IOW::<u32>(MAGIC, 0x03);
const IOC_VIEW: u32 = kernel::ioctl::_IOW::<uapi::address_space_view>(MAGIC, 0x04);
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

    fn ioctl(asfd: &Asfd, file: &LocalFile, cmd: u32, arg: usize) -> Result<isize> {
        let arg = UserPtr::from_addr(arg);
        match cmd {
            IOC_INFO => query::info(asfd, arg)?,
            IOC_PROTECT => protect::protect(asfd, arg)?,
            IOC_ADVISE => advise::advise(asfd, arg)?,
            IOC_SEAL => seals::seal(asfd, arg)?,
            IOC_VIEW => return view::view(asfd, file, arg),
            PROCMAP_QUERY => query::procmap(asfd, arg)?,
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }

    fn fsync(asfd: &Asfd, bytes: RangeInclusive<Offset>, datasync: bool) -> Result {
        sync::sync(asfd, bytes, datasync)
    }

    fn mmap_prepare(asfd: &Asfd, file: &LocalFile, desc: &mut VmaDesc) -> Result {
        mirror::mmap(asfd, file, desc)
    }

    fn unmapped_area(
        asfd: &Asfd,
        file: &LocalFile,
        addr: usize,
        len: usize,
        pgoff: usize,
        flags: usize,
    ) -> Result<usize> {
        mirror::unmapped_area(asfd, file, addr, len, pgoff, flags)
    }

    fn show_fdinfo(asfd: &Asfd, m: &SeqFile) {
        query::show_fdinfo(asfd, m);
    }
}
