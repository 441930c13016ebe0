// SPDX-License-Identifier: GPL-2.0

//! The kinds of file a space can hold, and those it cannot.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::memfd::{memfd_create, MFdFlags};

use super::{Errno, Result, PAGE};

pub fn memfd(len: u64) -> File {
    memfd_named("ram", len)
}

pub fn memfd_named(name: &str, len: u64) -> File {
    let name = CString::new(name).expect("no NUL");
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    sized(
        memfd_create(name.as_c_str(), flags)
            .expect("memfd_create")
            .into(),
        len,
    )
}

/// A memfd whose page `n` is full of the byte `first + n`.
pub fn numbered(pages: u64, first: u8) -> File {
    let file = memfd(pages * PAGE);
    number(&file, pages, first);
    file
}

pub fn number(file: &File, pages: u64, first: u8) {
    for page in 0..pages {
        let bytes = [first.wrapping_add(page as u8); PAGE as usize];
        file.write_all_at(&bytes, page * PAGE).expect("write");
    }
}

pub fn huge_memfd(len: u64) -> File {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    sized(
        memfd_create(c"huge", flags).expect("memfd_create").into(),
        len,
    )
}

/// `memfd_secret`, or an errno where the kernel does not offer it.
pub fn secret_memfd(len: u64) -> Result<File> {
    // SAFETY: Takes no pointers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_memfd_secret, 0) })?;
    // SAFETY: Just made for us.
    Ok(sized(
        unsafe { OwnedFd::from_raw_fd(fd as i32) }.into(),
        len,
    ))
}

fn sized(file: File, len: u64) -> File {
    file.set_len(len).expect("ftruncate");
    file
}

/// A file that is removed at the end.
pub struct TempFile {
    pub file: File,
    pub path: PathBuf,
}

impl TempFile {
    /// In `folder`, open for reading and writing.
    pub fn new(folder: &str, len: u64) -> TempFile {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("{folder}/selftest-{}-{number}", std::process::id()));
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .expect("new file");
        TempFile {
            file: sized(file, len),
            path,
        }
    }

    pub fn open(&self, read: bool, write: bool) -> File {
        OpenOptions::new()
            .read(read)
            .write(write)
            .open(&self.path)
            .expect("open")
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// An ext4 file system on a loop device, unmounted at the end.
pub struct Ext4 {
    folder: PathBuf,
    image: PathBuf,
    device: String,
}

/// An image that the host may have put there: with a journal and extents, which busybox's mke2fs
/// does not make.
const READY_IMAGE: &str = "/ext4.img";

impl Ext4 {
    /// What is missing, if it cannot be had.
    pub fn mount() -> std::result::Result<Ext4, String> {
        let base = format!("/tmp/ext4-{}", std::process::id());
        let device = run(Command::new("losetup").arg("-f"))?.trim().to_string();
        let ext4 = Ext4 {
            folder: base.clone().into(),
            image: format!("{base}.img").into(),
            device,
        };
        if std::fs::copy(READY_IMAGE, &ext4.image).is_err() {
            File::create(&ext4.image)
                .and_then(|f| f.set_len(16 << 20))
                .expect("image");
            let make = |program| run(Command::new(program).arg("-F").arg(&ext4.image));
            make("mkfs.ext4").or_else(|_| make("mke2fs"))?;
        }
        std::fs::create_dir(&ext4.folder).expect("mkdir");
        // Not "mount -o loop": busybox's keeps the device open for writing, which ext4 refuses.
        run(Command::new("losetup").arg(&ext4.device).arg(&ext4.image))?;
        run(Command::new("mount").args(["-t", "ext4", &ext4.device, &base]))?;
        Ok(ext4)
    }

    pub fn path(&self) -> &str {
        self.folder.to_str().expect("ASCII")
    }
}

/// A tmpfs of its own, unmounted at the end.
pub struct Tmpfs(String);

impl Tmpfs {
    /// What is wrong, if it cannot be had with such options.
    pub fn mount(options: &str) -> std::result::Result<Tmpfs, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let base = format!("/tmp/tmpfs-{}-{number}", std::process::id());
        std::fs::create_dir(&base).expect("mkdir");
        let tmpfs = Tmpfs(base);
        run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs", tmpfs.path()]))?;
        Ok(tmpfs)
    }

    pub fn path(&self) -> &str {
        &self.0
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg(&self.0));
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// What the command printed, or what it complained about.
fn run(command: &mut Command) -> std::result::Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(output) => Err(format!(
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(e) => Err(format!("{name}: {e}")),
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg(&self.folder));
        let _ = run(Command::new("losetup").arg("-d").arg(&self.device));
        let _ = std::fs::remove_dir(&self.folder);
        let _ = std::fs::remove_file(&self.image);
    }
}

/// Drops clean page cache, so that what is read next comes from the disk.
pub fn drop_caches() {
    std::fs::write("/proc/sys/vm/drop_caches", "3").expect("drop_caches");
}
