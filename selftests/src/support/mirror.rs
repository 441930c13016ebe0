// SPDX-License-Identifier: GPL-2.0

//! Mirrors, and other memory of this process to compare them with.

use std::os::fd::{AsRawFd, OwnedFd};

use libc::{c_void, MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use super::probe::{self, Fault};
use super::process::{sockets, Child};
use super::{Errno, Result, Space};

/// What a load or store gives. The address of a fault counts from the start of its area.
pub type Access<T> = std::result::Result<T, Fault>;

/// A range of this process's memory. All access is by address: others may change it at any time.
/// Offsets count from its start.
#[derive(Debug)]
pub struct Area {
    addr: u64,
    len: u64,
}

/// A mirror of `[offset, offset + len)` that can be read and written.
#[track_caller]
pub fn mirror(space: &Space, offset: u64, len: u64) -> Area {
    mirror_with(space, offset, len, PROT_READ | PROT_WRITE)
}

#[track_caller]
pub fn mirror_with(space: &Space, offset: u64, len: u64, prot: i32) -> Area {
    match Area::mmap(0, len, prot, MAP_SHARED, space.as_raw_fd(), offset) {
        Ok(area) => area,
        Err(e) => panic!("mirror of {len:#x} bytes at {offset:#x}: {e}"),
    }
}

impl Area {
    /// mmap(2). With MAP_FIXED `addr` has to be in an area that is forgotten.
    pub fn mmap(addr: u64, len: u64, prot: i32, flags: i32, fd: i32, offset: u64) -> Result<Area> {
        // SAFETY: Takes nothing from the rest of the process, as addresses to be replaced are those
        // of areas.
        let got = unsafe {
            let hint = addr as *mut c_void;
            libc::mmap(hint, len as usize, prot, flags, fd, offset as i64)
        };
        if got == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let addr = got as u64;
        Ok(Area { addr, len })
    }

    /// An ordinary shared mapping of a file from its start.
    #[track_caller]
    pub fn of_file(file: &impl AsRawFd, len: u64, prot: i32) -> Area {
        Area::mmap(0, len, prot, MAP_SHARED, file.as_raw_fd(), 0).expect("mmap of the file")
    }

    /// Ordinary private memory.
    #[track_caller]
    pub fn anonymous(len: u64) -> Area {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS;
        Area::mmap(0, len, PROT_READ | PROT_WRITE, flags, -1, 0).expect("mmap")
    }

    /// Addresses that are aligned to `align` and not used: something may be mapped there by
    /// MAP_FIXED.
    #[track_caller]
    pub fn reserve(len: u64, align: u64) -> Area {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let mut area = Area::mmap(0, len + align, libc::PROT_NONE, flags, -1, 0).expect("mmap");
        let start = area.addr.next_multiple_of(align);
        let head = start - area.addr;
        if head > 0 {
            area.unmap(0, head).expect("munmap");
        }
        if head < align {
            area.unmap(head + len, align - head).expect("munmap");
        }
        (area.addr, area.len) = (start, len);
        area
    }

    /// A mirror where this area was.
    #[track_caller]
    pub fn replace_by_mirror(self, space: &Space, offset: u64, prot: i32) -> Area {
        let (addr, len) = self.forget();
        let flags = MAP_SHARED | libc::MAP_FIXED;
        Area::mmap(addr, len, prot, flags, space.as_raw_fd(), offset).expect("mmap of the space")
    }

    pub fn addr(&self) -> u64 {
        self.addr
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn pointer(&self, offset: u64) -> *mut c_void {
        (self.addr + offset) as *mut c_void
    }

    /// It stays mapped; the address and length are the caller's.
    pub fn forget(self) -> (u64, u64) {
        let whole = (self.addr, self.len);
        std::mem::forget(self);
        whole
    }

    /// Takes over what mremap(2) made of a forgotten one.
    pub fn adopt(addr: u64, len: u64) -> Area {
        Area { addr, len }
    }

    fn relative(&self, fault: Fault) -> Fault {
        Fault {
            addr: fault.addr.wrapping_sub(self.addr),
            ..fault
        }
    }

    pub fn load(&self, offset: u64) -> Access<u8> {
        let mut byte = [0];
        let done = probe::copy_from(self.addr + offset, &mut byte);
        done.map(|()| byte[0]).map_err(|f| self.relative(f))
    }

    pub fn store(&self, offset: u64, byte: u8) -> Access<()> {
        // SAFETY: No reference into an area exists.
        let done = unsafe { probe::copy_to(self.addr + offset, &[byte]) };
        done.map_err(|f| self.relative(f))
    }

    pub fn load_word(&self, offset: u64) -> Access<u64> {
        probe::load(self.addr + offset).map_err(|f| self.relative(f))
    }

    pub fn store_word(&self, offset: u64, word: u64) -> Access<()> {
        // SAFETY: As above.
        let done = unsafe { probe::store(self.addr + offset, word) };
        done.map_err(|f| self.relative(f))
    }

    /// One locked instruction that loads, adds and stores.
    pub fn add_word(&self, offset: u64, word: u64) -> Access<u64> {
        // SAFETY: As above.
        let done = unsafe { probe::add(self.addr + offset, word) };
        done.map_err(|f| self.relative(f))
    }

    /// Loads all of the bytes.
    #[track_caller]
    pub fn get(&self, offset: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        if let Err(fault) = probe::copy_from(self.addr + offset, &mut bytes) {
            panic!("load: {:x?}", self.relative(fault));
        }
        bytes
    }

    /// Stores all of the bytes.
    #[track_caller]
    pub fn put(&self, offset: u64, bytes: &[u8]) {
        // SAFETY: As above.
        if let Err(fault) = unsafe { probe::copy_to(self.addr + offset, bytes) } {
            panic!("store: {:x?}", self.relative(fault));
        }
    }

    pub fn protect(&self, offset: u64, len: u64, prot: i32) -> Result<()> {
        // SAFETY: Only this area is changed.
        Errno::result(unsafe { libc::mprotect(self.pointer(offset), len as usize, prot) }).map(drop)
    }

    pub fn advise(&self, offset: u64, len: u64, advice: i32) -> Result<()> {
        // SAFETY: As above.
        Errno::result(unsafe { libc::madvise(self.pointer(offset), len as usize, advice) })
            .map(drop)
    }

    /// Leaves a gap of unmapped addresses in this area.
    pub fn unmap(&self, offset: u64, len: u64) -> Result<()> {
        // SAFETY: As above.
        Errno::result(unsafe { libc::munmap(self.pointer(offset), len as usize) }).map(drop)
    }

    /// read(2) into it.
    pub fn read_from(&self, offset: u64, fd: &impl AsRawFd, len: u64) -> Result<u64> {
        let (fd, to) = (fd.as_raw_fd(), self.pointer(offset));
        // SAFETY: The kernel writes to the area, or refuses to.
        Errno::result(unsafe { libc::read(fd, to, len as usize) }).map(|n| n as u64)
    }

    /// write(2) from it.
    pub fn write_to(&self, offset: u64, fd: &impl AsRawFd, len: u64) -> Result<u64> {
        let (fd, from) = (fd.as_raw_fd(), self.pointer(offset));
        // SAFETY: The kernel reads the area, or refuses to.
        Errno::result(unsafe { libc::write(fd, from, len as usize) }).map(|n| n as u64)
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: The area's own addresses.
        unsafe { libc::munmap(self.addr as *mut c_void, self.len as usize) };
    }
}

/// Another process with a mirror of its own, or other memory: it loads and stores on request. It
/// ends with this value.
pub struct Peer {
    child: Child,
    socket: OwnedFd,
    ended: bool,
}

/// Instead of a byte to store.
const LOAD: u64 = 1 << 8;
const END: u64 = 1 << 9;

impl Peer {
    /// `make` runs in the other process.
    pub fn new(make: impl FnOnce() -> Area) -> Peer {
        let (ours, theirs) = sockets();
        let child = Child::spawn(|| {
            let area = make();
            loop {
                let [offset, what] = receive(&theirs);
                let result = match what {
                    END => return,
                    LOAD => area.load(offset),
                    byte => area.store(offset, byte as u8).map(|()| 0),
                };
                send(
                    &theirs,
                    &match result {
                        Ok(byte) => [0, 0, byte.into()],
                        Err(f) => [f.signal as u64, f.code as u64, f.addr],
                    },
                );
            }
        });
        Peer {
            child,
            socket: ours,
            ended: false,
        }
    }

    #[track_caller]
    fn ask(&self, offset: u64, what: u64) -> Access<u8> {
        send(&self.socket, &[offset, what]);
        let [signal, code, answer] = receive(&self.socket);
        match signal {
            0 => Ok(answer as u8),
            _ => Err(Fault {
                signal: signal as i32,
                code: code as i32,
                addr: answer,
            }),
        }
    }

    #[track_caller]
    pub fn load(&self, offset: u64) -> Access<u8> {
        self.ask(offset, LOAD)
    }

    #[track_caller]
    pub fn store(&self, offset: u64, byte: u8) -> Access<()> {
        self.ask(offset, byte.into()).map(drop)
    }

    pub fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Lets the process exit, and waits until it has.
    #[track_caller]
    pub fn end(mut self) {
        send(&self.socket, &[0, END]);
        self.child.succeed();
        self.ended = true;
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if !self.ended {
            let _ = kill(Pid::from_raw(self.pid()), Signal::SIGKILL);
            self.child.wait();
        }
    }
}

#[track_caller]
fn send<const N: usize>(socket: &OwnedFd, numbers: &[u64; N]) {
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    let sent = nix::unistd::write(socket, &bytes);
    assert_eq!(sent, Ok(bytes.len()), "to the other process");
}

#[track_caller]
fn receive<const N: usize>(socket: &OwnedFd) -> [u64; N] {
    let mut numbers = [0; N];
    for number in &mut numbers {
        let mut bytes = [0; 8];
        let received = nix::unistd::read(socket, &mut bytes);
        assert_eq!(received, Ok(8), "from the other process");
        *number = u64::from_le_bytes(bytes);
    }
    numbers
}

/// Page faults of the calling thread, so far.
pub fn faults() -> u64 {
    use nix::sys::resource::{getrusage, UsageWho};
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("getrusage");
    (usage.minor_page_faults() + usage.major_page_faults()) as u64
}
