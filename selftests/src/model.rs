// SPDX-License-Identifier: GPL-2.0

//! Random edits of a space against a page-by-page model of it, read back by every path there is.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::{FileExt, MetadataExt};

use libc::{MAP_POPULATE, PROT_NONE, PROT_READ, PROT_WRITE};
use nix::fcntl::{fallocate, FallocateFlags};
use nix::unistd::Whence;

use crate::note;
use crate::support::files;
use crate::support::guest::{plain_code, window, Args, Exit, OwnMemory, Routine, Vcpu, Vm};
use crate::support::space::Mapping;
use crate::support::{Errno, Map, Result, Space, PAGE};

crate::suite![
    without_a_guest(600),
    with_a_guest(600),
    at_the_end_of_the_space(600),
];

/// Pages of the space that are edited.
const PAGES: usize = 48;
const SIZE: usize = PAGE as usize;
const RW: i32 = PROT_READ | PROT_WRITE;

type Page = Vec<u8>;

/// A file, or the nameless one of a shared anonymous mapping.
struct Backing {
    file: Option<File>,
    inode: u64,
    /// What is in its pages; past them is past its end.
    pages: Vec<Page>,
}

#[derive(Clone)]
enum Source {
    Anonymous(Page),
    Shared {
        backing: usize,
        index: usize,
    },
    /// The backing's page until the space writes it.
    Private {
        backing: usize,
        index: usize,
        copy: Option<Page>,
    },
}

#[derive(Clone)]
struct Mapped {
    prot: i32,
    source: Source,
}

#[derive(Default)]
struct Model {
    backings: Vec<Backing>,
    pages: Vec<Option<Mapped>>,
}

impl Model {
    fn new() -> Model {
        let mut model = Model {
            backings: Vec::new(),
            pages: vec![None; PAGES],
        };
        for first in [1, 65, 129] {
            let file = files::numbered(24, first);
            let inode = file.metadata().expect("fstat").ino();
            let pages = (0..24).map(|n| vec![first + n; SIZE]).collect();
            model.backings.push(Backing {
                file: Some(file),
                inode,
                pages,
            });
        }
        model
    }

    fn shared_page(&self, backing: usize, index: usize) -> Result<&Page> {
        self.backings[backing].pages.get(index).ok_or(Errno::EIO)
    }

    /// What reading the page gives.
    fn readable(&self, page: usize) -> Result<&Page> {
        let mapped = self
            .pages
            .get(page)
            .and_then(Option::as_ref)
            .ok_or(Errno::EIO)?;
        if mapped.prot & PROT_READ == 0 {
            return Err(Errno::EACCES);
        }
        match &mapped.source {
            Source::Anonymous(bytes) => Ok(bytes),
            Source::Shared { backing, index } => self.shared_page(*backing, *index),
            // The end of the file ends private copies, too.
            Source::Private {
                backing,
                index,
                copy,
            } => {
                let shared = self.shared_page(*backing, *index)?;
                Ok(copy.as_ref().unwrap_or(shared))
            }
        }
    }

    /// The page to write to.
    fn writable(&mut self, page: usize) -> Result<&mut Page> {
        let mapped = self
            .pages
            .get_mut(page)
            .and_then(Option::as_mut)
            .ok_or(Errno::EIO)?;
        if mapped.prot & PROT_WRITE == 0 {
            return Err(Errno::EACCES);
        }
        match &mut mapped.source {
            Source::Anonymous(bytes) => Ok(bytes),
            Source::Shared { backing, index } => self.backings[*backing]
                .pages
                .get_mut(*index)
                .ok_or(Errno::EIO),
            Source::Private {
                backing,
                index,
                copy,
            } => {
                let shared = self.backings[*backing]
                    .pages
                    .get(*index)
                    .ok_or(Errno::EIO)?;
                Ok(copy.get_or_insert_with(|| shared.clone()))
            }
        }
    }

    /// What pread must answer.
    fn read(&self, at: usize, len: usize) -> Result<Page> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let here = at + bytes.len();
            match self.readable(here / SIZE) {
                Ok(page) => {
                    let part = (SIZE - here % SIZE).min(len - bytes.len());
                    bytes.extend_from_slice(&page[here % SIZE..][..part]);
                }
                Err(e) if bytes.is_empty() => return Err(e),
                Err(_) => break,
            }
        }
        Ok(bytes)
    }

    /// What pwrite must do and answer.
    fn write(&mut self, at: usize, bytes: &[u8]) -> Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            let here = at + done;
            match self.writable(here / SIZE) {
                Ok(page) => {
                    let part = (SIZE - here % SIZE).min(bytes.len() - done);
                    page[here % SIZE..][..part].copy_from_slice(&bytes[done..][..part]);
                    done += part;
                }
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn truncate(&mut self, backing: usize, pages: usize) {
        self.backings[backing].pages.resize(pages, vec![0; SIZE]);
        for mapped in self.pages.iter_mut().flatten() {
            if let Source::Private {
                backing: of,
                index,
                copy,
            } = &mut mapped.source
            {
                if *of == backing && *index >= pages {
                    *copy = None;
                }
            }
        }
    }

    /// The mapping that page would have, if no two were merged.
    fn mapping(&self, page: usize) -> Option<Mapping> {
        let mapped = self.pages[page].as_ref()?;
        let (shared, backing, index) = match mapped.source {
            Source::Anonymous(_) => (false, None, 0),
            Source::Shared { backing, index } => (true, Some(backing), index),
            Source::Private { backing, index, .. } => (false, Some(backing), index),
        };
        let named = backing.map(|n| {
            if self.backings[n].file.is_some() {
                "/memfd:ram"
            } else {
                "/dev/zero"
            }
        });
        Some(Mapping {
            start: page as u64 * PAGE,
            end: (page as u64 + 1) * PAGE,
            prot: mapped.prot,
            shared,
            offset: index as u64 * PAGE,
            inode: backing.map_or(0, |n| self.backings[n].inode),
            page_size: PAGE,
            name: named.map_or(String::new(), |name| format!("{name} (deleted)")),
        })
    }
}

/// One entry for what continues: whether the kernel merges two mappings is its own business.
fn merged(mappings: impl IntoIterator<Item = Mapping>) -> Vec<Mapping> {
    let mut all: Vec<Mapping> = Vec::new();
    for next in mappings {
        if let Some(last) = all.last_mut() {
            let len = last.end - last.start;
            let continues = last.end == next.start
                && (last.prot, last.shared, last.inode) == (next.prot, next.shared, next.inode)
                && (next.inode == 0 || last.offset + len == next.offset);
            if continues {
                last.end = next.end;
                continue;
            }
        }
        all.push(next);
    }
    all
}

/// A guest that sees the model's pages from `WINDOW` on.
struct Eye {
    vcpu: Vcpu,
    scratch: OwnMemory,
    _vm: Vm,
    _code: OwnMemory,
}

const WINDOW: u64 = 1 << 24;
const SCRATCH: u64 = 1 << 20;

impl Eye {
    fn new(space: &Space, base: u64) -> Eye {
        let vm = Vm::new();
        let code = plain_code(&vm);
        let scratch = OwnMemory::at(0x6000_0000, PAGE, 0);
        vm.set_plain_slot(1, 0, SCRATCH, PAGE, scratch.0)
            .expect("an ordinary slot");
        vm.must_map(window(2, WINDOW, (PAGES * SIZE) as u64, space, base));
        Eye {
            vcpu: vm.vcpu(0),
            scratch,
            _vm: vm,
            _code: code,
        }
    }
}

struct Test {
    model: Model,
    space: Space,
    /// Where the model's first page lies in the space.
    base: u64,
    eye: Option<Eye>,
    random: fastrand::Rng,
    checks: u64,
}

impl Test {
    fn new(seed: u64, from_end: bool, guest: bool) -> Test {
        let space = Space::new();
        let base = if from_end {
            space.end() - (PAGES * SIZE) as u64
        } else {
            0
        };
        let eye = guest.then(|| Eye::new(&space, base));
        let random = fastrand::Rng::with_seed(seed);
        Test {
            model: Model::new(),
            space,
            base,
            eye,
            random,
            checks: 0,
        }
    }

    /// Pages from a random one on: how many there may be.
    fn range(&mut self) -> (usize, usize) {
        let start = self.random.usize(0..PAGES);
        let longest = [3, 8, PAGES][self.random.usize(0..3)];
        (start, self.random.usize(1..=longest.min(PAGES - start)))
    }

    fn addr(&self, page: usize) -> u64 {
        self.base + (page * SIZE) as u64
    }

    fn prot(&mut self) -> i32 {
        [RW, RW, RW, PROT_READ, PROT_NONE][self.random.usize(0..5)]
    }

    fn step(&mut self) {
        match self.random.u8(0..16) {
            0..=4 => self.map(),
            5 | 6 => self.unmap(),
            7..=9 => self.write(),
            10 => self.write_file(),
            11 => self.cut_file(),
            12 => self.guest_store(),
            _ => {}
        }
        match self.random.u8(0..8) {
            0..=2 => self.check_read(),
            3 => self.check_vector(),
            4 => self.check_seek(),
            5 => self.check_mappings(),
            _ => self.check_guest(),
        }
    }

    fn map(&mut self) {
        let (start, mut pages) = self.range();
        let prot = self.prot();
        let addr = self.addr(start);
        let kind = self.random.u8(0..6);
        let backing = self.random.usize(0..3);
        let index = self.random.usize(0..28);
        let mut map = match kind {
            0 => Map::anon(addr, 0),
            1 => Map::anon(addr, 0).shared(),
            _ => {
                let file = self.model.backings[backing].file.as_ref().expect("a memfd");
                Map::file(file, addr, 0).offset((index * SIZE) as u64)
            }
        };
        let private = matches!(kind, 2 | 3);
        if private {
            map = map.private();
        }
        let populate = self.random.u8(0..4) == 0;
        if populate {
            map = map.with(MAP_POPULATE);
        }
        let place = self.random.u8(0..8);
        map = match place {
            0 => map,
            1 => map.hint(),
            _ => map.replace(),
        };
        if place == 1 {
            pages = pages.min(4);
        }
        map.0.len = (pages * SIZE) as u64;
        let free = |from: usize| {
            let pages = self.model.pages.get(from..from + pages);
            pages.is_some_and(|pages| pages.iter().all(Option::is_none))
        };
        let expected = match place {
            0 => free(start).then_some(start).ok_or(Errno::EEXIST),
            1 => match (start..PAGES).find(|from| free(*from)) {
                Some(from) => Ok(from),
                // Below the model's range nothing may be taken; behind it, it would be.
                None if self.base == 0 => return,
                None => Err(Errno::ENOMEM),
            },
            _ => Ok(start),
        };
        let map = map.prot(prot);
        let answer = self.space.map(map);
        assert_eq!(answer, expected.map(|page| self.addr(page)), "{map:x?}");
        self.checks += 1;
        let Ok(at) = expected else { return };
        let source = match kind {
            0 => None,
            1 => {
                let inode = self
                    .space
                    .query(self.addr(at), 0)
                    .expect("just mapped")
                    .inode;
                let pages = vec![vec![0; SIZE]; pages];
                self.model.backings.push(Backing {
                    file: None,
                    inode,
                    pages,
                });
                Some((self.model.backings.len() - 1, 0))
            }
            _ => Some((backing, index)),
        };
        for n in 0..pages {
            let source = match source {
                None => Source::Anonymous(vec![0; SIZE]),
                Some((backing, index)) if private => Source::Private {
                    backing,
                    index: index + n,
                    copy: None,
                },
                Some((backing, index)) => Source::Shared {
                    backing,
                    index: index + n,
                },
            };
            self.model.pages[at + n] = Some(Mapped { prot, source });
            // Populating a writable private mapping copies its pages.
            if private && populate {
                let _ = self.model.writable(at + n);
            }
        }
    }

    fn unmap(&mut self) {
        let (start, pages) = self.range();
        let slack = self.random.u64(0..PAGE);
        let addr = self.addr(start);
        assert_eq!(
            self.space.unmap(addr, (pages * SIZE) as u64 - slack),
            Ok(())
        );
        self.model.pages[start..start + pages].fill(None);
    }

    /// A random place and length; not past the model's pages.
    fn place(&mut self) -> (usize, usize) {
        let (start, pages) = self.range();
        let at = start * SIZE + self.random.usize(0..SIZE);
        let longest = (PAGES * SIZE - at).min(pages * SIZE);
        let short = longest.min([8, 100, usize::MAX][self.random.usize(0..3)]);
        (at, self.random.usize(1..=short))
    }

    fn bytes(&mut self, len: usize) -> Page {
        let first = self.random.u8(..);
        (0..len)
            .map(|n| first.wrapping_add((n / 7) as u8))
            .collect()
    }

    fn write(&mut self) {
        let (at, len) = self.place();
        let bytes = self.bytes(len);
        let answer = self.space.write_at(self.base + at as u64, &bytes);
        assert_eq!(
            answer,
            self.model.write(at, &bytes),
            "pwrite of {len} bytes at {at:#x}"
        );
        self.checks += 1;
    }

    /// A write by the file's own descriptor.
    fn write_file(&mut self) {
        let backing = self.random.usize(0..3);
        let backing = &mut self.model.backings[backing];
        if backing.pages.is_empty() {
            return;
        }
        let index = self.random.usize(0..backing.pages.len());
        let at = self.random.usize(0..SIZE - 16);
        let byte = self.random.u8(..);
        backing.pages[index][at..at + 16].fill(byte);
        let file = backing.file.as_ref().expect("a memfd");
        file.write_all_at(&[byte; 16], (index * SIZE + at) as u64)
            .expect("write");
    }

    /// Truncates, extends or punches.
    fn cut_file(&mut self) {
        let number = self.random.usize(0..3);
        let pages = self.random.usize(8..28);
        let file = self.model.backings[number].file.as_ref().expect("a memfd");
        if self.random.bool() {
            file.set_len((pages * SIZE) as u64).expect("ftruncate");
            self.model.truncate(number, pages);
            return;
        }
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(file, mode, (pages * SIZE) as i64, 2 * PAGE as i64).expect("fallocate");
        for page in self.model.backings[number]
            .pages
            .iter_mut()
            .skip(pages)
            .take(2)
        {
            page.fill(0);
        }
    }

    fn check_read(&mut self) {
        let (at, len) = self.place();
        let mut buffer = vec![0xee; len];
        let answer = self.space.read_at(self.base + at as u64, &mut buffer);
        let got = answer.map(|len| buffer[..len].to_vec());
        same(
            &format!("pread of {len} bytes at {at:#x}"),
            &got,
            &self.model.read(at, len),
        );
        self.checks += 1;
    }

    fn check_vector(&mut self) {
        let (at, len) = self.place();
        let mut buffer = vec![0xee; len];
        let cut = self.random.usize(0..=len);
        let (first, second) = buffer.split_at_mut(cut);
        let mut parts = [IoSliceMut::new(first), IoSliceMut::new(second)];
        let answer = self.space.readv_at(self.base + at as u64, &mut parts);
        let got = answer.map(|len| buffer[..len].to_vec());
        same(
            &format!("preadv of {len} bytes at {at:#x}"),
            &got,
            &self.model.read(at, len),
        );
        self.checks += 1;
    }

    fn check_seek(&mut self) {
        let at = self.random.usize(0..PAGES * SIZE);
        let from = |mapped: bool| {
            if self.model.pages[at / SIZE].is_some() == mapped {
                return Some(at);
            }
            let rest = &self.model.pages[at / SIZE..];
            rest.iter()
                .position(|p| p.is_some() == mapped)
                .map(|n| (at / SIZE + n) * SIZE)
        };
        let data = from(true)
            .map(|at| self.base + at as u64)
            .ok_or(Errno::ENXIO);
        let end = PAGES * SIZE;
        let hole = Ok(self.base + from(false).unwrap_or(end) as u64);
        let at = self.base + at as u64;
        assert_eq!(
            self.space.seek(at, Whence::SeekData),
            data,
            "SEEK_DATA at {at:#x}"
        );
        assert_eq!(
            self.space.seek(at, Whence::SeekHole),
            hole,
            "SEEK_HOLE at {at:#x}"
        );
        self.checks += 2;
    }

    fn check_mappings(&mut self) {
        let told = self.space.mappings();
        let info = self.space.info();
        assert_eq!(info.mappings, told.len() as u64);
        let mapped = self.model.pages.iter().flatten().count() * SIZE;
        assert_eq!(info.mapped_bytes, mapped as u64);
        assert!(info.resident_bytes <= info.mapped_bytes);
        let lines: Vec<String> = told.iter().map(Mapping::line).collect();
        let fdinfo = self.space.fdinfo();
        let shown: Vec<&str> = fdinfo
            .lines()
            .filter_map(|l| l.strip_prefix("as_map:\t"))
            .collect();
        assert_eq!(shown, lines, "fdinfo and PROCMAP_QUERY");
        let shifted = told.into_iter().map(|mut mapping| {
            mapping.start -= self.base;
            mapping.end -= self.base;
            mapping
        });
        let expected = (0..PAGES).filter_map(|page| self.model.mapping(page));
        assert_eq!(merged(shifted), merged(expected), "PROCMAP_QUERY");
        self.checks += 3;
    }

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

    fn guest_store(&mut self) {
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
                self.model
                    .write(at, &value.to_le_bytes())
                    .expect("writable");
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
    fn check_guest(&mut self) {
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

    fn check_all(&mut self) {
        for page in 0..PAGES {
            let mut buffer = vec![0; SIZE];
            let answer = self.space.read_at(self.addr(page), &mut buffer);
            same(
                &format!("page {page}"),
                &answer.map(|_| buffer),
                &self.model.readable(page).cloned(),
            );
        }
        self.check_mappings();
    }
}

/// Compares without printing pages of bytes.
#[track_caller]
fn same(what: &str, got: &Result<Page>, expected: &Result<Page>) {
    if got == expected {
        return;
    }
    match (got, expected) {
        (Ok(got), Ok(expected)) => {
            let at = got.iter().zip(expected).position(|(a, b)| a != b);
            let bytes = at.map(|n| (got[n], expected[n]));
            panic!(
                "{what}: {} bytes, not {}; at {at:?} {bytes:x?}",
                got.len(),
                expected.len()
            );
        }
        (got, expected) => {
            let len = |r: &Result<Page>| r.as_ref().map(Vec::len).map_err(|e| *e);
            panic!("{what}: {:?}, not {:?}", len(got), len(expected));
        }
    }
}

fn run(seeds: std::ops::Range<u64>, steps: u32, from_end: bool, guest: bool) {
    let mut checks = 0;
    for seed in seeds {
        let mut test = Test::new(seed, from_end, guest);
        for step in 0..steps {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test.step()));
            assert!(result.is_ok(), "seed {seed}, step {step}: see above");
        }
        test.check_all();
        checks += test.checks;
    }
    note!("{checks} checks");
}

fn without_a_guest() {
    run(0..8, 500, false, false);
}

fn with_a_guest() {
    run(100..108, 500, false, true);
}

/// The same in the last pages of the space.
fn at_the_end_of_the_space() {
    run(200..204, 500, true, true);
}
