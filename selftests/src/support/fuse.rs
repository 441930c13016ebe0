// SPDX-License-Identifier: GPL-2.0

//! A file whose bytes come when the test says so: a FUSE file system of one regular file, its root,
//! served by a process of its own. While it stalls, reads of it are not answered.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use super::mirror::Area;
use super::process::Child;
use super::system::eventually;
use super::PAGE;
use crate::harness::skip;

/// All bytes of the file are this.
pub const BYTE: u8 = b'F';

pub struct StallingFile {
    pub file: File,
    path: String,
    server: Child,
    shared: Shared,
}

/// What the server and the test tell each other.
struct Shared(Area);

impl Shared {
    fn new() -> Shared {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        Shared(Area::mmap(0, PAGE, prot, flags, -1, 0).expect("mmap"))
    }

    fn word(&self, index: u64) -> &AtomicU32 {
        // SAFETY: Mapped for as long as `self` is, aligned, and all access is atomic.
        unsafe { AtomicU32::from_ptr(self.0.pointer(index * 4).cast()) }
    }

    /// Not 0 while reads are not answered.
    fn stalls(&self) -> &AtomicU32 {
        self.word(0)
    }

    /// Reads that wait for an answer.
    fn waiting(&self) -> &AtomicU32 {
        self.word(1)
    }
}

impl StallingFile {
    /// Skips the test where there is no FUSE.
    pub fn new(len: u64) -> StallingFile {
        let mut options = OpenOptions::new();
        let Ok(device) = options.read(true).write(true).open("/dev/fuse") else {
            skip("no /dev/fuse");
        };
        let path = format!("/tmp/fuse-{}", std::process::id());
        File::create(&path).expect("a mount point");
        let shared = Shared::new();
        let server = Child::spawn(|| Server::new(&device, &shared, len).run());
        let options = format!(
            "fd={},rootmode=100000,user_id=0,group_id=0",
            device.as_raw_fd()
        );
        let (kind, data) = (c"fuse", CString::new(options).expect("no NUL"));
        let mounted = mount(
            Some(kind),
            path.as_str(),
            Some(kind),
            MsFlags::empty(),
            Some(data.as_c_str()),
        );
        mounted.unwrap_or_else(|e| skip(&format!("mount of FUSE: {e}")));
        // The server's is the only one: with it the connection ends.
        let file = OpenOptions::new().read(true).write(true).open(&path);
        drop(device);
        let file = file.expect("the file");
        // The kernel learns it only now.
        assert_eq!(file.metadata().expect("fstat").len(), len);
        StallingFile {
            file,
            path,
            server,
            shared,
        }
    }

    /// From here on reads wait.
    pub fn stall(&self) {
        self.shared.stalls().store(1, SeqCst);
    }

    /// Answers them all.
    pub fn go_on(&self) {
        self.shared.stalls().store(0, SeqCst);
        eventually("all reads are answered", || self.waiting() == 0);
    }

    /// Ends the server while reads wait: they fail, and so do all later ones.
    pub fn abort(&self) {
        let _ = kill(Pid::from_raw(self.server.pid()), Signal::SIGKILL);
    }

    /// How many reads wait now.
    pub fn waiting(&self) -> u32 {
        self.shared.waiting().load(SeqCst)
    }
}

impl Drop for StallingFile {
    fn drop(&mut self) {
        self.shared.stalls().store(0, SeqCst);
        let _ = umount2(self.path.as_str(), MntFlags::MNT_DETACH);
        let _ = kill(Pid::from_raw(self.server.pid()), Signal::SIGKILL);
        self.server.wait();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Opcodes of `linux/fuse.h`.
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

const IN_HEADER: usize = 40;

struct Server<'a> {
    device: &'a File,
    shared: &'a Shared,
    len: u64,
    /// Of the reads that wait: their unique number, and how many bytes they ask for.
    waiting: Vec<(u64, u64)>,
}

impl Server<'_> {
    fn new<'a>(device: &'a File, shared: &'a Shared, len: u64) -> Server<'a> {
        Server {
            device,
            shared,
            len,
            waiting: Vec::new(),
        }
    }

    /// Until the file system is unmounted, or the process is killed.
    fn run(mut self) {
        let mut request = vec![0; 1 << 20];
        loop {
            let fd = PollFd::new(self.device.as_fd(), PollFlags::POLLIN);
            let ready = poll(&mut [fd], PollTimeout::from(10u8));
            if ready == Ok(1) {
                match nix::unistd::read(self.device, &mut request) {
                    Ok(len) => self.serve(&request[..len]),
                    Err(nix::errno::Errno::ENODEV) => return,
                    Err(_) => continue,
                }
            }
            if self.shared.stalls().load(SeqCst) == 0 {
                for (unique, len) in std::mem::take(&mut self.waiting) {
                    self.answer(unique, 0, &vec![BYTE; len as usize]);
                    self.shared.waiting().fetch_sub(1, SeqCst);
                }
            }
        }
    }

    fn serve(&mut self, request: &[u8]) {
        let u32_at = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().expect("4"));
        let u64_at = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().expect("8"));
        let unique = u64_at(8);
        match u32_at(4) {
            INIT => {
                // Reads are asynchronous: who waits for one waits for the page, and can be killed.
                const ASYNC_READ: u32 = 1;
                const MAX_READAHEAD: u32 = 64 << 10;
                let mut reply = words(&[7, 31, MAX_READAHEAD, ASYNC_READ, 0, 64 << 10, 1]);
                reply.resize(64, 0);
                self.answer(unique, 0, &reply);
            }
            GETATTR => {
                let mut reply = vec![0; 16];
                // Valid for an hour.
                reply[..8].copy_from_slice(&3600u64.to_le_bytes());
                for number in [1, self.len, self.len / 512, 0, 0, 0] {
                    reply.extend(number.to_le_bytes());
                }
                let mode = libc::S_IFREG | 0o666;
                reply.extend(words(&[0, 0, 0, mode, 1, 0, 0, 0, PAGE as u32, 0]));
                self.answer(unique, 0, &reply);
            }
            OPEN => self.answer(unique, 0, &[0; 16]),
            READ => {
                let (offset, size) = (u64_at(IN_HEADER + 8), u32_at(IN_HEADER + 16));
                let len = u64::from(size).min(self.len.saturating_sub(offset));
                self.shared.waiting().fetch_add(1, SeqCst);
                self.waiting.push((unique, len));
            }
            WRITE => {
                let size = u32_at(IN_HEADER + 16);
                self.answer(unique, 0, &words(&[size, 0]));
            }
            RELEASE => self.answer(unique, 0, &[]),
            FORGET | BATCH_FORGET | INTERRUPT => (),
            _ => self.answer(unique, -libc::ENOSYS, &[]),
        }
    }

    /// May fail: who asked may be gone.
    fn answer(&self, unique: u64, error: i32, payload: &[u8]) {
        let mut reply = words(&[16 + payload.len() as u32, error as u32]);
        reply.extend(unique.to_le_bytes());
        reply.extend(payload);
        let _ = nix::unistd::write(self.device, &reply);
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
