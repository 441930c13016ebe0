// SPDX-License-Identifier: GPL-2.0

//! What is stored through a mirror is never lost: not when the file system has cleaned the page,
//! not when the page is taken away while it is dirty in the mirror.

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

use libc::{MADV_COLD, MADV_PAGEOUT, PROT_READ, PROT_WRITE};
use nix::sys::mman::{msync, MsFlags};

use crate::harness::skip;
use crate::note;
use crate::support::cgroup::Cgroup;
use crate::support::files::{self, drop_caches, Ext4, TempFile};
use crate::support::mirror::{mirror, Access, Area, Peer};
use crate::support::probe::Fault;
use crate::support::swap::Swap;
use crate::support::{Errno, Map, Result, Space, PAGE};

crate::suite![
    written_back_each_time,
    written_back_by_whoever_stored,
    written_back_after_the_mirror,
    msync_of_a_mirror,
    private_stays_private,
    random_stores_under_pressure,
];

/// The bytes that the disk has, whatever the page cache has.
fn on_disk(temp: &TempFile, offset: u64) -> u8 {
    #[repr(align(4096))]
    struct Block([u8; PAGE as usize]);
    let mut block = Box::new(Block([0; PAGE as usize]));
    let mut options = std::fs::OpenOptions::new();
    let direct = options.read(true).custom_flags(libc::O_DIRECT);
    let file = direct.open(&temp.path).expect("O_DIRECT");
    let start = offset / PAGE * PAGE;
    file.read_exact_at(&mut block.0, start).expect("read");
    block.0[(offset - start) as usize]
}

const PAGES: u64 = 16;

/// Each fsync write-protects the pages; the next store has to make them dirty again.
fn written_back_each_time() {
    let ext4 = Ext4::mount().unwrap_or_else(|why| skip(&why));
    let temp = TempFile::new(ext4.path(), PAGES * PAGE);
    let space = Space::new();
    space.must_map(Map::file(&temp.file, 0, PAGES * PAGE));
    let area = mirror(&space, 0, PAGES * PAGE);
    for round in 1..=60u8 {
        for page in 0..PAGES {
            let at = page * PAGE + 77;
            if page % 2 == 0 {
                assert_eq!(area.load(at), Ok(round - 1));
            }
            assert_eq!(area.store(at, round), Ok(()));
        }
        temp.file.sync_all().expect("fsync");
        if round % 4 == 0 {
            drop_caches();
        }
        for page in 0..PAGES {
            let at = page * PAGE + 77;
            assert_eq!(on_disk(&temp, at), round, "round {round}: page {page}");
        }
    }
}

/// Several mirrors and pwrite: each has its own entry for the page, and all become clean.
fn written_back_by_whoever_stored() {
    let ext4 = Ext4::mount().unwrap_or_else(|why| skip(&why));
    let temp = TempFile::new(ext4.path(), PAGES * PAGE);
    let space = Space::new();
    space.must_map(Map::file(&temp.file, 0, PAGES * PAGE));
    let areas = [
        mirror(&space, 0, PAGES * PAGE),
        mirror(&space, 0, PAGES * PAGE),
    ];
    let peer = Peer::new(|| mirror(&space, 0, PAGES * PAGE));
    let own = Area::of_file(&temp.file, PAGES * PAGE, PROT_READ | PROT_WRITE);
    let mut random = fastrand::Rng::with_seed(3);
    let mut model = [0u8; PAGES as usize];
    for round in 0..150 {
        for _ in 0..random.usize(1..6) {
            let page = random.u64(0..PAGES);
            let at = page * PAGE;
            let byte = random.u8(..);
            match random.u8(0..6) {
                0 => assert_eq!(areas[0].store(at, byte), Ok(())),
                1 => assert_eq!(areas[1].store(at, byte), Ok(())),
                2 => assert_eq!(peer.store(at, byte), Ok(())),
                3 => assert_eq!(own.store(at, byte), Ok(())),
                4 => temp.file.write_all_at(&[byte], at).expect("write"),
                _ => space.put(at, &[byte]),
            }
            model[page as usize] = byte;
        }
        let page = random.u64(0..PAGES);
        let expected = model[page as usize];
        assert_eq!(areas[0].load(page * PAGE), Ok(expected));
        assert_eq!(peer.load(page * PAGE), Ok(expected));
        match random.u8(0..3) {
            0 => temp.file.sync_all().expect("fsync"),
            1 => nix::unistd::sync(),
            _ => continue,
        }
        for (page, byte) in (0..).zip(model) {
            let found = on_disk(&temp, page * PAGE);
            assert_eq!(found, byte, "round {round}: page {page}");
        }
    }
}

/// What a mirror left dirty when it, the mapping, or the space went.
fn written_back_after_the_mirror() {
    let ext4 = Ext4::mount().unwrap_or_else(|why| skip(&why));
    let temp = TempFile::new(ext4.path(), PAGES * PAGE);
    for round in 1..=24u8 {
        let space = Space::new();
        space.must_map(Map::file(&temp.file, 0, PAGES * PAGE));
        let area = mirror(&space, 0, PAGES * PAGE);
        (0..PAGES).for_each(|page| assert_eq!(area.store(page * PAGE, round), Ok(())));
        match round % 4 {
            0 => drop((area, space)),
            1 => drop((space, area)),
            2 => {
                space.unmap(0, PAGES * PAGE).expect("unmap");
                drop(space);
                drop(area);
            }
            _ => {
                space.must_map(Map::anon(0, PAGES * PAGE).replace());
                drop(area);
            }
        }
        temp.file.sync_all().expect("fsync");
        drop_caches();
        for page in 0..PAGES {
            assert_eq!(on_disk(&temp, page * PAGE), round, "page {page}");
        }
    }
}

/// Sectors that were written to loop devices. What is read with O_DIRECT to see what is on the disk
/// has been written back for that, so it does not tell.
fn sectors_written() -> u64 {
    let devices = std::fs::read_dir("/sys/block").expect("/sys/block");
    let written = devices.flatten().filter_map(|device| {
        let name = device.file_name();
        let stat = std::fs::read_to_string(device.path().join("stat")).ok()?;
        let sectors = stat.split_whitespace().nth(6)?.parse::<u64>().ok()?;
        name.to_str()?.starts_with("loop").then_some(sectors)
    });
    written.sum()
}

/// msync(2) of a mirror, and fsync(2) of the descriptor, have written back what was stored.
fn msync_of_a_mirror() {
    let ext4 = Ext4::mount().unwrap_or_else(|why| skip(&why));
    let temp = TempFile::new(ext4.path(), PAGES * PAGE);
    let space = Space::new();
    space.must_map(Map::file(&temp.file, 0, PAGES * PAGE));
    let area = mirror(&space, 0, PAGES * PAGE);
    nix::unistd::sync();
    for round in 1..5 {
        (0..PAGES).for_each(|page| assert_eq!(area.store(page * PAGE, round), Ok(())));
        let before = sectors_written();
        if round % 2 == 0 {
            nix::unistd::fsync(&space).expect("fsync");
        } else {
            let start = std::ptr::NonNull::new(area.pointer(0)).expect("an address");
            // SAFETY: The area's own memory.
            unsafe { msync(start, area.len() as usize, MsFlags::MS_SYNC) }.expect("msync");
        }
        let written = sectors_written() - before;
        assert!(written >= PAGES * PAGE / 512, "{written} sectors");
        (0..PAGES).for_each(|page| assert_eq!(on_disk(&temp, page * PAGE), round));
        (0..PAGES).for_each(|page| assert_eq!(area.load(page * PAGE), Ok(round)));
    }
}

/// Copies of a file's pages are not written back to it.
fn private_stays_private() {
    let ext4 = Ext4::mount().unwrap_or_else(|why| skip(&why));
    let temp = TempFile::new(ext4.path(), PAGES * PAGE);
    files::number(&temp.file, PAGES, 1);
    temp.file.sync_all().expect("fsync");
    let space = Space::new();
    space.must_map(Map::file(&temp.file, 0, PAGES * PAGE).private());
    let area = mirror(&space, 0, PAGES * PAGE);
    for page in 0..PAGES {
        if page % 2 == 0 {
            assert_eq!(area.load(page * PAGE), Ok(page as u8 + 1));
        }
        assert_eq!(area.store(page * PAGE, 100), Ok(()));
    }
    nix::unistd::sync();
    drop_caches();
    for page in 0..PAGES {
        assert_eq!(on_disk(&temp, page * PAGE), page as u8 + 1, "the file");
        assert_eq!(area.load(page * PAGE), Ok(100), "the copy");
        assert_eq!(area.load(page * PAGE + 1), Ok(page as u8 + 1), "its rest");
    }
}

const MIB: u64 = 1 << 20;
/// Bytes of each kind of memory.
const EACH: u64 = MIB;

/// Where there is no memory for the moment, an access may be told so; it is tried again.
struct Patience(u32);

impl Patience {
    fn with<T>(&mut self, mut access: impl FnMut() -> Access<T>) -> Access<T> {
        for _ in 0..100 {
            match access() {
                Err(fault) if fault.signal == libc::SIGBUS => {
                    self.0 += 1;
                    std::thread::sleep(Duration::from_millis(20));
                }
                result => return result,
            }
        }
        access()
    }
}

/// A lack of memory as a mirror tells it.
fn by_space(call: Result<usize>) -> Access<()> {
    match call {
        Ok(_) => Ok(()),
        Err(Errno::ENOMEM) => Err(Fault::hole(0)),
        Err(e) => panic!("pread or pwrite: {e}"),
    }
}

/// Stores and loads by several mirrors, while the space's memory is cleaned, paged out, reclaimed
/// and read back, against a model.
fn random_stores_under_pressure() {
    let Some(_swap) = Swap::on(2) else {
        skip("no swap");
    };
    let ext4 = Ext4::mount().unwrap_or_else(|why| skip(&why));
    let cgroup = Cgroup::new("pressure");
    let space = cgroup.create_space();
    let temp = TempFile::new(ext4.path(), EACH);
    let memfd = files::memfd(EACH);
    let source = files::memfd(EACH);
    let maps = [
        Map::anon(0, EACH),
        Map::anon(EACH, EACH).shared(),
        Map::file(&memfd, 2 * EACH, EACH),
        Map::file(&source, 3 * EACH, EACH).private(),
        Map::file(&temp.file, 4 * EACH, EACH),
    ];
    let len = EACH * maps.len() as u64;
    for map in maps {
        space.must_map(map);
    }
    // Less than there is to keep.
    cgroup.set("memory.max", "3M");
    let (pages, seed) = (len / PAGE, 4);
    let areas = [mirror(&space, 0, len), mirror(&space, 0, len)];
    let peer = Peer::new(|| mirror(&space, 0, len));
    let mut random = fastrand::Rng::with_seed(seed);
    let mut model = vec![0u8; pages as usize];
    let mut patience = Patience(0);
    let mut reclaims = 0;
    for step in 0..8_000u32 {
        let page = random.u64(0..pages);
        // Not always the same byte of a page: which one follows from the page.
        let at = page * PAGE + page * 61 % PAGE;
        let expected = model[page as usize];
        let context = || format!("step {step}, page {page:#x} of seed {seed}");
        match random.u32(0..1000) {
            0..350 => {
                let byte = random.u8(..);
                let area = &areas[random.usize(0..2)];
                let done = patience.with(|| area.store(at, byte));
                assert_eq!(done, Ok(()), "{}", context());
                model[page as usize] = byte;
            }
            350..450 => {
                let byte = random.u8(..);
                let done = patience.with(|| peer.store(at, byte));
                assert_eq!(done, Ok(()), "{}", context());
                model[page as usize] = byte;
            }
            450..500 => {
                let byte = random.u8(..);
                let done = patience.with(|| by_space(space.write_at(at, &[byte])));
                assert_eq!(done, Ok(()), "{}", context());
                model[page as usize] = byte;
            }
            500..850 => {
                let area = &areas[random.usize(0..2)];
                let found = patience.with(|| area.load(at));
                assert_eq!(found, Ok(expected), "{}", context());
            }
            850..950 => {
                let found = patience.with(|| peer.load(at));
                assert_eq!(found, Ok(expected), "{}", context());
            }
            950..990 => {
                let mut found = [0];
                let done = patience.with(|| by_space(space.read_at(at, &mut found)));
                assert_eq!((done, found), (Ok(()), [expected]), "{}", context());
            }
            990..996 => {
                let (first, count) = (page, random.u64(1..200).min(pages - page));
                let advice = [MADV_PAGEOUT, MADV_COLD][random.usize(0..2)];
                let done = space.advise(first * PAGE, count * PAGE, advice);
                assert_eq!(done, Ok(()), "{}", context());
            }
            996 => temp.file.sync_data().expect("fdatasync"),
            // It takes long.
            997 if step % 8 == 0 => drop_caches(),
            998 => reclaims += cgroup.try_set("memory.reclaim", "2M") as u32,
            _ => {
                // A mirror that begins anew has what is there.
                let area = mirror(&space, page * PAGE, PAGE);
                let found = patience.with(|| area.load(at - page * PAGE));
                assert_eq!(found, Ok(expected), "{}", context());
            }
        }
    }
    note!("{reclaims} times 2 MiB were reclaimed");
    for page in 0..pages {
        let at = page * PAGE + page * 61 % PAGE;
        let expected = Ok(model[page as usize]);
        let found = patience.with(|| areas[0].load(at));
        assert_eq!(found, expected, "page {page:#x}");
        let found = patience.with(|| peer.load(at));
        assert_eq!(found, expected, "page {page:#x}");
    }
    note!("{} accesses were told that there is no memory", patience.0);
    // What is the file's is in the file.
    temp.file.sync_all().expect("fsync");
    drop_caches();
    for page in 4 * EACH / PAGE..pages {
        let at = page * PAGE + page * 61 % PAGE;
        let found = on_disk(&temp, at - 4 * EACH);
        assert_eq!(found, model[page as usize], "page {page:#x}");
    }
}
