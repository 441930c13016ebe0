// SPDX-License-Identifier: GPL-2.0

//! Mirrors in this process: every access through one gives what the model says, or the signal
//! that it says, at the byte that it says.

use std::os::fd::AsRawFd;

use libc::{MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE};

use super::state::{counted, same, SIZE};
use super::{Test, RW};
use crate::support::mirror::{Access, Area};
use crate::support::probe::Fault;
use crate::support::process::Child;
use crate::support::{Errno, Result, PAGE};

pub struct Mirror {
    area: Area,
    /// The page of the model that it begins with.
    first: usize,
    prot: i32,
    /// What mprotect can give it at most.
    ceiling: i32,
}

impl Mirror {
    fn pages(&self) -> usize {
        (self.area.len() / PAGE) as usize
    }
}

/// Areas of the kernel's view: each is one VMA.
const MIRRORS: usize = 10;

/// What stops an access before its end: at this byte, for this reason.
fn fault(offset: usize, why: Option<Errno>) -> Access<()> {
    match why {
        None => Ok(()),
        Some(Errno::EACCES) => Err(Fault::denied(offset as u64)),
        Some(_) => Err(Fault::hole(offset as u64)),
    }
}

/// The same for a system call.
fn call(done: usize, why: Option<Errno>) -> Result<usize> {
    counted(done, why.map(|_| Errno::EFAULT))
}

impl Test {
    pub fn change_mirrors(&mut self) {
        if self.mirrors.is_empty() || self.random.u8(0..3) == 0 {
            return self.make_mirror();
        }
        let number = self.random.usize(0..self.mirrors.len());
        let mirror = self.mirrors.swap_remove(number);
        match self.random.u8(0..5) {
            0 => drop(mirror),
            1 => self.unmap_part(mirror),
            2 => self.move_mirror(mirror),
            _ => self.protect_part(mirror),
        }
        while self.mirrors.len() > MIRRORS {
            let gone = self.random.usize(0..self.mirrors.len());
            self.mirrors.swap_remove(gone);
        }
    }

    fn make_mirror(&mut self) {
        let door = self.door();
        let range = self.range(door);
        let prot = [RW, RW, PROT_READ, PROT_NONE][self.random.usize(0..4)];
        // What a CPU can write it can also read.
        let ceiling = match self.doors[door].prot {
            PROT_WRITE => PROT_NONE,
            prot => prot,
        };
        let mut why = Vec::new();
        if range.0 + range.1 > self.shown(door).end {
            why.push(Errno::ERANGE);
        }
        if prot & !ceiling != 0 {
            why.push(Errno::EACCES);
        }
        let offset = self.offset(door, range.0);
        let fd = self.doors[door].space.as_raw_fd();
        let len = (range.1 * SIZE) as u64;
        let answer = Area::mmap(0, len, prot, MAP_SHARED, fd, offset);
        let made = answer.as_ref().map(drop).map_err(|e| *e);
        let what = format!("mirror of {range:?} with {prot} through door {door}");
        if self.settle(&what, made, &why, Ok(())) {
            self.mirrors.push(Mirror {
                area: answer.expect("just looked at"),
                first: range.0,
                prot,
                ceiling,
            });
        }
    }

    /// Part of a mirror.
    fn part(&mut self, mirror: &Mirror) -> (usize, usize) {
        let from = self.random.usize(0..mirror.pages());
        (from, self.random.usize(from + 1..=mirror.pages()))
    }

    /// Cuts a mirror in up to three; the middle one comes back.
    fn cut(&mut self, mut mirror: Mirror, (from, to): (usize, usize)) -> Mirror {
        let (prot, ceiling) = (mirror.prot, mirror.ceiling);
        let piece = |area: Area, first: usize| Mirror {
            area,
            first,
            prot,
            ceiling,
        };
        if to < mirror.pages() {
            let (head, tail) = mirror.area.split((to * SIZE) as u64);
            self.mirrors.push(piece(tail, mirror.first + to));
            mirror = piece(head, mirror.first);
        }
        if from > 0 {
            let (head, tail) = mirror.area.split((from * SIZE) as u64);
            self.mirrors.push(piece(head, mirror.first));
            mirror = piece(tail, mirror.first + from);
        }
        mirror
    }

    fn unmap_part(&mut self, mirror: Mirror) {
        let part = self.part(&mirror);
        drop(self.cut(mirror, part));
    }

    fn protect_part(&mut self, mirror: Mirror) {
        let part = self.part(&mirror);
        let prot = [RW, PROT_READ, PROT_NONE][self.random.usize(0..3)];
        let at = (part.0 * SIZE) as u64;
        let len = ((part.1 - part.0) * SIZE) as u64;
        let answer = mirror.area.protect(at, len, prot);
        self.checks += 1;
        if prot & !mirror.ceiling != 0 {
            assert_eq!(answer, Err(Errno::EACCES), "mprotect to {prot}");
            self.mirrors.push(mirror);
        } else if prot == mirror.prot {
            assert_eq!(answer, Ok(()), "mprotect to {prot}");
            self.mirrors.push(mirror);
        } else {
            assert_eq!(answer, Ok(()), "mprotect to {prot}");
            let mut middle = self.cut(mirror, part);
            middle.prot = prot;
            self.mirrors.push(middle);
        }
    }

    /// mremap: to another place, shorter, or, which is refused, longer.
    fn move_mirror(&mut self, mut mirror: Mirror) {
        let len = mirror.area.len();
        let (new, to) = match self.random.u8(0..3) {
            0 => (self.random.u64(1..=mirror.pages() as u64) * PAGE, None),
            1 => (len, Some(Area::reserve(len, PAGE).forget().0)),
            _ => (len + PAGE, None),
        };
        let answer = mirror.area.remap(new, to);
        let expected = if new > len {
            Err(Errno::EFAULT)
        } else {
            Ok(())
        };
        assert_eq!(answer, expected, "mremap of {len:#x} bytes to {new:#x}");
        self.checks += 1;
        self.mirrors.push(mirror);
    }

    /// One access, or some, through a random mirror.
    pub fn use_mirror(&mut self) {
        if self.mirrors.is_empty() {
            return self.make_mirror();
        }
        let number = self.random.usize(0..self.mirrors.len());
        let mirror = self.mirrors.swap_remove(number);
        match self.random.u8(0..12) {
            0..=2 => self.load_bytes(&mirror),
            3 | 4 => self.store_bytes(&mirror),
            5 => self.load_word(&mirror),
            6 => self.add_word(&mirror),
            7 => self.pinned(&mirror),
            8 => self.pinned_write(&mirror),
            9 => self.write_from(&mirror),
            10 => self.read_into(&mirror),
            // Advice on a mirror is not for the space.
            _ => drop(
                mirror
                    .area
                    .advise(0, mirror.area.len(), libc::MADV_DONTNEED),
            ),
        }
        self.checks += 1;
        self.mirrors.push(mirror);
    }

    /// A random range of the mirror: where it begins in it, and in the model, and how long it is.
    fn spot(&mut self, mirror: &Mirror) -> (u64, usize, usize) {
        let whole = mirror.area.len() as usize;
        let at = self.random.usize(0..whole);
        let most = [8, 100, 3 * SIZE][self.random.usize(0..3)];
        let len = self.random.usize(1..=most.min(whole - at));
        (at as u64, mirror.first * SIZE + at, len)
    }

    /// As `Model::read`, for what comes by the mirror.
    fn mirrored(&self, mirror: &Mirror, at: usize, len: usize) -> (Vec<u8>, Option<Errno>) {
        match mirror.prot & PROT_READ {
            0 => (Vec::new(), Some(Errno::EACCES)),
            _ => self.model.read(at, len),
        }
    }

    fn write_mirrored(
        &mut self,
        mirror: &Mirror,
        at: usize,
        bytes: &[u8],
    ) -> (usize, Option<Errno>) {
        match mirror.prot & PROT_WRITE {
            0 => (0, Some(Errno::EACCES)),
            _ => self.model.write(at, bytes),
        }
    }

    fn load_bytes(&mut self, mirror: &Mirror) {
        let (offset, at, len) = self.spot(mirror);
        let (bytes, end) = self.mirrored(mirror, at, len);
        let mut got = vec![0xee; len];
        let answer = mirror.area.load_bytes(offset, &mut got);
        let what = format!("load of {len} bytes at {at:#x}");
        assert_eq!(answer, fault(offset as usize + bytes.len(), end), "{what}");
        got.truncate(bytes.len());
        same(&what, &Ok(got), &Ok(bytes));
    }

    fn store_bytes(&mut self, mirror: &Mirror) {
        let (offset, at, len) = self.spot(mirror);
        let bytes = self.bytes(len);
        let (done, end) = self.write_mirrored(mirror, at, &bytes);
        let answer = mirror.area.store_bytes(offset, &bytes);
        let what = format!("store of {len} bytes at {at:#x}");
        assert_eq!(answer, fault(offset as usize + done, end), "{what}");
    }

    /// An aligned word, which lies in one page.
    fn word(&mut self, mirror: &Mirror) -> (u64, usize) {
        let offset = 8 * self.random.usize(0..mirror.area.len() as usize / 8);
        (offset as u64, mirror.first * SIZE + offset)
    }

    fn load_word(&mut self, mirror: &Mirror) {
        let (offset, at) = self.word(mirror);
        let (bytes, end) = self.mirrored(mirror, at, 8);
        let expected = fault(offset as usize, end)
            .map(|()| u64::from_le_bytes(bytes.try_into().expect("8 bytes")));
        let answer = mirror.area.load_word(offset);
        assert_eq!(answer, expected, "load at {at:#x}");
    }

    fn add_word(&mut self, mirror: &Mirror) {
        let (offset, at) = self.word(mirror);
        let number = self.random.u64(..);
        // It reads and writes, and is for the CPU a write.
        let writable = self.model.writable(at / SIZE).map(|page| {
            let bytes = &page[at % SIZE..][..8];
            u64::from_le_bytes(bytes.try_into().expect("8 bytes"))
        });
        let writable = match mirror.prot & PROT_WRITE {
            0 => Err(Errno::EACCES),
            _ => writable,
        };
        let answer = mirror.area.add_word(offset, number);
        let expected = match writable {
            Ok(old) => {
                let new = old.wrapping_add(number);
                self.model.write(at, &new.to_le_bytes());
                Ok(old)
            }
            Err(e) => fault(offset as usize, Some(e)).map(|()| 0),
        };
        assert_eq!(answer, expected, "addition at {at:#x}");
    }

    fn pinned(&mut self, mirror: &Mirror) {
        let (offset, at, len) = self.spot(mirror);
        let (bytes, end) = self.mirrored(mirror, at, len);
        let mut got = vec![0xee; len];
        let answer = mirror.area.pinned_read(offset, &mut got);
        let what = format!("process_vm_readv of {len} bytes at {at:#x}");
        assert_eq!(answer, call(bytes.len(), end), "{what}");
        got.truncate(bytes.len());
        same(&what, &Ok(got), &Ok(bytes));
    }

    fn pinned_write(&mut self, mirror: &Mirror) {
        let (offset, at, len) = self.spot(mirror);
        let bytes = self.bytes(len);
        let (done, end) = self.write_mirrored(mirror, at, &bytes);
        let answer = mirror.area.pinned_write(offset, &bytes);
        let what = format!("process_vm_writev of {len} bytes at {at:#x}");
        assert_eq!(answer, call(done, end), "{what}");
    }

    /// write(2) from the mirror into a file.
    fn write_from(&mut self, mirror: &Mirror) {
        let (offset, at, len) = self.spot(mirror);
        let (bytes, end) = self.mirrored(mirror, at, len);
        let answer = self.scratch.take_from(&mirror.area, offset, len);
        let what = format!("write(2) of {len} bytes at {at:#x}");
        let done = answer.as_ref().map(Vec::len).map_err(|e| *e);
        assert_eq!(done, call(bytes.len(), end), "{what}");
        same(&what, &answer, &call(bytes.len(), end).map(|_| bytes));
    }

    /// read(2) from a file into the mirror.
    fn read_into(&mut self, mirror: &Mirror) {
        let (offset, at, len) = self.spot(mirror);
        let bytes = self.bytes(len);
        let (done, end) = self.write_mirrored(mirror, at, &bytes);
        let answer = self.scratch.put_into(&mirror.area, offset, &bytes);
        let what = format!("read(2) of {len} bytes to {at:#x}");
        assert_eq!(answer, call(done, end), "{what}");
    }

    /// All that all mirrors show.
    pub fn check_mirrors(&mut self) {
        let mirrors = std::mem::take(&mut self.mirrors);
        for mirror in &mirrors {
            for page in 0..mirror.pages() {
                let at = (mirror.first + page) * SIZE;
                let (bytes, end) = self.mirrored(mirror, at, SIZE);
                let mut got = vec![0xee; SIZE];
                let answer = mirror.area.load_bytes((page * SIZE) as u64, &mut got);
                let what = format!("page {} in a mirror", mirror.first + page);
                assert_eq!(answer, fault(page * SIZE, end), "{what}");
                if end.is_none() {
                    same(&what, &Ok(got), &Ok(bytes));
                }
                self.checks += 1;
            }
        }
        self.mirrors = mirrors;
    }

    /// A child has the same mirrors, and its writes are seen here.
    pub fn fork(&mut self) {
        let number = self.random.usize(0..self.mirrors.len().max(1));
        let bytes = self.bytes(100);
        let Some(at) = self.mirrors.get(number).map(|m| m.first * SIZE) else {
            return;
        };
        let child = Child::spawn(|| {
            self.check_mirrors();
            let mirror = self.mirrors.swap_remove(number);
            let (done, end) = self.write_mirrored(&mirror, at, &bytes);
            let answer = mirror.area.store_bytes(0, &bytes);
            assert_eq!(answer, fault(done, end), "a child's store");
        });
        child.succeed();
        let mirror = self.mirrors.swap_remove(number);
        self.write_mirrored(&mirror, at, &bytes);
        self.mirrors.push(mirror);
    }
}
