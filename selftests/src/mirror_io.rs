// SPDX-License-Identifier: GPL-2.0

//! Input and output that uses a mirror's pages, not only its addresses: O_DIRECT, io_uring,
//! vmsplice, and futexes.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use nix::unistd::pipe;

use crate::harness::skip;
use crate::support::files::{self, Ext4, TempFile};
use crate::support::mirror::{mirror, mirror_with, Area};
use crate::support::process::{sockets, Child};
use crate::support::system::{need_huge_pages, Setting};
use crate::support::uring::Ring;
use crate::support::{Errno, Map, Result, Space, HUGE, PAGE};

crate::suite![
    direct_io,
    direct_io_with_holes,
    direct_io_into_a_mapped_file,
    io_uring,
    io_uring_fixed_buffers,
    fixed_buffers_outlive_the_mapping,
    fixed_buffers_with_holes,
    fixed_buffers_of_files,
    vmsplice_from_a_mirror,
    futex_between_processes,
    futex_operations,
];

const LEN: u64 = 16 * PAGE;

fn direct(temp: &TempFile) -> File {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&temp.path)
        .expect("O_DIRECT")
}

fn pattern(seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..))
        .take(LEN as usize)
        .collect()
}

fn contents(temp: &TempFile) -> Vec<u8> {
    let mut bytes = vec![0; LEN as usize];
    temp.file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

/// Spaces with `LEN` bytes of each kind of memory at 0, none of it present.
fn each_kind() -> Vec<(&'static str, Space, Option<Setting>)> {
    let maps = [
        ("private memory", Map::anon(0, LEN)),
        ("shared memory", Map::anon(0, LEN).shared()),
    ];
    let mut kinds: Vec<_> = maps
        .into_iter()
        .map(|(name, map)| {
            let space = Space::new();
            space.must_map(map);
            (name, space, None)
        })
        .collect();
    let files = [("memfd", false), ("private memfd", true)];
    kinds.extend(files.map(|(name, private)| {
        let space = Space::new();
        let file = files::memfd(LEN);
        let map = Map::file(&file, 0, LEN);
        let map = if private { map.private() } else { map };
        space.must_map(map);
        (name, space, None)
    }));
    let pages = need_huge_pages(1);
    let space = Space::new();
    space.must_map(Map::file(&files::huge_memfd(HUGE), 0, HUGE));
    kinds.push(("hugetlb", space, Some(pages)));
    kinds
}

fn direct_io() {
    let ext4 = Ext4::mount().unwrap_or_else(|why| skip(&why));
    let temp = TempFile::new(ext4.path(), LEN);
    for (name, space, _pages) in each_kind() {
        let file = direct(&temp);
        let area = mirror(&space, 0, LEN);
        for round in 0..4 {
            temp.file.write_all_at(&pattern(round), 0).expect("write");
            assert_eq!(area.read_from(0, &file, LEN), Ok(LEN), "{name}");
            assert_eq!(space.get(0, LEN), pattern(round), "{name}: what came");
            assert_eq!(area.get(0, LEN), pattern(round), "{name}: in the mirror");
            area.put(0, &pattern(round + 100));
            nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekSet).expect("lseek");
            assert_eq!(area.write_to(0, &file, LEN), Ok(LEN), "{name}");
            assert_eq!(contents(&temp), pattern(round + 100), "{name}: what went");
            nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekSet).expect("lseek");
        }
    }
}

/// As with ordinary memory of which a part is not there.
fn direct_io_with_holes() {
    let ext4 = Ext4::mount().unwrap_or_else(|why| skip(&why));
    let temp = TempFile::new(ext4.path(), LEN);
    for hole in [0, 1, 8, 15] {
        for write in [false, true] {
            let go = |area: &Area| {
                temp.file.write_all_at(&pattern(1), 0).expect("write");
                if write {
                    area.write_to(0, &direct(&temp), LEN)
                } else {
                    area.read_from(0, &direct(&temp), LEN)
                }
            };
            let expected = {
                let area = Area::anonymous(LEN);
                area.put(0, &pattern(2));
                area.unmap(hole * PAGE, PAGE).expect("munmap");
                go(&area)
            };
            let space = Space::new();
            space.must_map(Map::anon(0, LEN));
            space.put(0, &pattern(2));
            space.unmap(hole * PAGE, PAGE).expect("unmap");
            let got = go(&mirror(&space, 0, LEN));
            assert_eq!(got, expected, "hole at {hole}, write: {write}");
        }
    }
}

/// What a device writes into a page of a mapped file makes it dirty.
fn direct_io_into_a_mapped_file() {
    let ext4 = Ext4::mount().unwrap_or_else(|why| skip(&why));
    let source = TempFile::new(ext4.path(), LEN);
    let target = TempFile::new(ext4.path(), LEN);
    let space = Space::new();
    space.must_map(Map::file(&target.file, 0, LEN));
    let area = mirror(&space, 0, LEN);
    for round in 0..8 {
        source.file.write_all_at(&pattern(round), 0).expect("write");
        assert_eq!(area.read_from(0, &direct(&source), LEN), Ok(LEN));
        target.file.sync_all().expect("fsync");
        files::drop_caches();
        let on_disk = Area::anonymous(LEN);
        assert_eq!(on_disk.read_from(0, &direct(&target), LEN), Ok(LEN));
        assert_eq!(on_disk.get(0, LEN), pattern(round), "round {round}");
    }
}

fn io_uring() {
    let mut ring = Ring::new();
    let file = files::memfd(LEN);
    for (name, space, _pages) in each_kind() {
        let area = mirror(&space, 0, LEN);
        file.write_all_at(&pattern(1), 0).expect("write");
        assert_eq!(ring.read(&file, &area, 0, LEN), Ok(LEN), "{name}");
        assert_eq!(space.get(0, LEN), pattern(1), "{name}");
        area.put(0, &pattern(2));
        assert_eq!(ring.write(&file, &area, 0, LEN), Ok(LEN), "{name}");
        let mut bytes = vec![0; LEN as usize];
        file.read_exact_at(&mut bytes, 0).expect("read");
        assert_eq!(bytes, pattern(2), "{name}");
        space.unmap(0, HUGE).expect("unmap");
        assert_eq!(
            ring.read(&file, &area, 0, LEN),
            Err(Errno::EFAULT),
            "{name}"
        );
        assert_eq!(
            ring.write(&file, &area, 0, LEN),
            Err(Errno::EFAULT),
            "{name}"
        );
    }
}

fn io_uring_fixed_buffers() {
    let file = files::memfd(LEN);
    for (name, space, _pages) in each_kind() {
        // Present before, or not.
        for touch in [false, true] {
            let mut ring = Ring::new();
            let area = mirror(&space, 0, LEN);
            if touch {
                area.put(0, &pattern(3));
            }
            ring.register(&area, 0, LEN).expect("register");
            for round in 0..4 {
                file.write_all_at(&pattern(round), 0).expect("write");
                assert_eq!(ring.read_fixed(&file, &area, 0, LEN), Ok(LEN), "{name}");
                assert_eq!(area.get(0, LEN), pattern(round), "{name}");
                assert_eq!(space.get(0, LEN), pattern(round), "{name}");
                area.put(0, &pattern(round + 50));
                assert_eq!(ring.write_fixed(&file, &area, 0, LEN), Ok(LEN), "{name}");
                let mut bytes = vec![0; LEN as usize];
                file.read_exact_at(&mut bytes, 0).expect("read");
                assert_eq!(bytes, pattern(round + 50), "{name}");
            }
            ring.unregister().expect("unregister");
        }
    }
}

/// The pages stay the buffer's, as with munmap(2); what is mapped afterwards is not touched.
fn fixed_buffers_outlive_the_mapping() {
    let file = files::memfd(LEN);
    for (name, space, pages) in each_kind() {
        let mut ring = Ring::new();
        let area = mirror(&space, 0, LEN);
        area.put(0, &pattern(1));
        ring.register(&area, 0, LEN).expect("register");
        let whole = if pages.is_some() { HUGE } else { LEN };
        space.unmap(0, whole).expect("unmap");
        assert_eq!(area.load(0).map_err(|f| f.signal), Err(libc::SIGBUS));
        assert_eq!(ring.write_fixed(&file, &area, 0, LEN), Ok(LEN), "{name}");
        let mut bytes = vec![0; LEN as usize];
        file.read_exact_at(&mut bytes, 0).expect("read");
        assert_eq!(bytes, pattern(1), "{name}: the old pages");
        space.must_map(Map::anon(0, LEN));
        area.put(0, &pattern(2));
        file.write_all_at(&pattern(3), 0).expect("write");
        assert_eq!(ring.read_fixed(&file, &area, 0, LEN), Ok(LEN), "{name}");
        assert_eq!(area.get(0, LEN), pattern(2), "{name}: the new pages");
        drop((space, area));
        ring.unregister().expect("unregister");
    }
}

fn fixed_buffers_with_holes() {
    let space = Space::new();
    space.must_map(Map::anon(0, LEN));
    for hole in [0, 8, 15] {
        space.must_map(Map::anon(0, LEN).replace());
        space.unmap(hole * PAGE, PAGE).expect("unmap");
        let area = mirror(&space, 0, LEN);
        let refused = Ring::new().register(&area, 0, LEN);
        assert_eq!(refused, Err(Errno::EFAULT), "hole at {hole}");
        // Nothing is pinned: all can be given back.
        space.unmap(0, LEN).expect("unmap");
        space.must_map(Map::anon(0, LEN));
        assert_eq!(area.load(5), Ok(0));
    }
}

/// Pages of a file on a disk are not pinned for long, in a mirror no more than in a mapping.
fn fixed_buffers_of_files() {
    let ext4 = Ext4::mount().unwrap_or_else(|why| skip(&why));
    let temp = TempFile::new(ext4.path(), LEN);
    let plain = Area::of_file(&temp.file, LEN, RW);
    let expected = Ring::new().register(&plain, 0, LEN);
    let space = Space::new();
    space.must_map(Map::file(&temp.file, 0, LEN));
    for touch in [false, true] {
        let area = mirror(&space, 0, LEN);
        if touch {
            area.put(0, &pattern(1));
        }
        assert_eq!(Ring::new().register(&area, 0, LEN), expected, "{touch}");
    }
}

fn vmsplice_from_a_mirror() {
    for (name, space, _pages) in each_kind() {
        for gift in [0, libc::SPLICE_F_GIFT] {
            let area = mirror(&space, 0, LEN);
            area.put(0, &pattern(7));
            let (reader, writer) = pipe().expect("pipe");
            let vector = libc::iovec {
                iov_base: area.pointer(0),
                iov_len: LEN as usize,
            };
            // SAFETY: The kernel reads the area.
            let done = unsafe { libc::vmsplice(writer.as_raw_fd(), &vector, 1, gift) };
            assert_eq!(Errno::result(done), Ok(LEN as isize), "{name}");
            let mut bytes = vec![0; LEN as usize];
            let mut got = 0;
            while got < bytes.len() {
                got += nix::unistd::read(&reader, &mut bytes[got..]).expect("read");
            }
            assert_eq!(bytes, pattern(7), "{name}");
            assert_eq!(space.get(0, LEN), pattern(7), "{name}");
        }
    }
}

fn futex(area: &Area, at: u64, operation: i32, value: u32, timeout: Duration) -> Result<i64> {
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs() as i64,
        tv_nsec: timeout.subsec_nanos().into(),
    };
    let address = area.pointer(at);
    // SAFETY: The address is an area's, and is used by the kernel only.
    Errno::result(unsafe { libc::syscall(libc::SYS_futex, address, operation, value, &timeout) })
}

const PATIENCE: Duration = Duration::from_secs(15);

/// Waits in one process, wakes in another, at other addresses.
fn wakes(map: Map, prots: &[i32]) {
    let space = Space::new();
    space.must_map(map);
    for &prot in prots {
        let at = PAGE + 8;
        space.put(at, &5u64.to_le_bytes());
        let (ready, told) = sockets();
        let waiter = Child::spawn(|| {
            let other = Area::anonymous(PAGE);
            let area = mirror_with(&space, PAGE, PAGE, prot);
            assert_eq!(area.load(8), Ok(5));
            nix::unistd::write(&told, b"r").expect("write");
            let woken = futex(&area, 8, libc::FUTEX_WAIT, 5, PATIENCE);
            assert_eq!(woken, Ok(0), "FUTEX_WAIT");
            drop(other);
        });
        let area = mirror(&space, 0, 4 * PAGE);
        nix::unistd::read(&ready, &mut [0]).expect("read");
        let (started, none) = (Instant::now(), Duration::ZERO);
        while futex(&area, at, libc::FUTEX_WAKE, 9, none) != Ok(1) {
            assert!(started.elapsed() < PATIENCE, "nobody is found to be woken");
            std::thread::sleep(Duration::from_millis(5));
        }
        waiter.succeed();
        let value = futex(&area, at, libc::FUTEX_WAIT, 6, Duration::from_secs(9));
        assert_eq!(value, Err(Errno::EAGAIN), "the value is looked at");
    }
}

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Who can only read waits, too, as in an ordinary mapping of a file.
fn futex_between_processes() {
    let prots = &[RW, libc::PROT_READ];
    wakes(Map::file(&files::memfd(4 * PAGE), 0, 4 * PAGE), prots);
    wakes(Map::anon(0, 4 * PAGE).shared(), prots);
}

/// The kernel changes the word itself, also where no page is present yet.
fn futex_operations() {
    let space = Space::new();
    space.must_map(Map::anon(0, 4 * PAGE).shared());
    let area = mirror(&space, 0, 8 * PAGE);
    // Sets the second word to 7, and wakes nobody.
    const SET_7: u32 = 7 << 12;
    let set = |second: u64| {
        let (first, second) = (area.pointer(0), area.pointer(second));
        let operation = libc::FUTEX_WAKE_OP;
        // SAFETY: The addresses are an area's, and are used by the kernel only.
        let done = unsafe { libc::syscall(libc::SYS_futex, first, operation, 1, 1, second, SET_7) };
        Errno::result(done)
    };
    assert_eq!(set(2 * PAGE + 4), Ok(0));
    assert_eq!(area.get(2 * PAGE, 8), [0, 0, 0, 0, 7, 0, 0, 0]);
    assert_eq!(set(5 * PAGE), Err(Errno::EFAULT), "a hole");
    let wait = futex(&area, 5 * PAGE, libc::FUTEX_WAIT, 0, Duration::from_secs(9));
    assert_eq!(wait, Err(Errno::EFAULT), "a hole");
    space.protect(PAGE, PAGE, libc::PROT_READ).expect("PROTECT");
    assert_eq!(set(PAGE), Err(Errno::EFAULT), "read-only");
    assert_eq!(area.load(PAGE), Ok(0));
    assert_eq!(set(3 * PAGE), Ok(0));
    assert_eq!(space.byte(3 * PAGE), 7);
}
