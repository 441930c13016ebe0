// SPDX-License-Identifier: GPL-2.0

//! Edits of a space against its use: by other editors, by reads and writes, by a running guest,
//! and the close against all of them. What was to meet is counted, and has to have met.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::support::files;
use crate::support::guest::{plain_code, window, Exit, OwnMemory, Vm};
use crate::support::meeting::{add, repeat, run_out};
use crate::support::space::map_into;
use crate::support::uniform::{all_uniform, edit_files, mmio, uniform, walk, Walk, PAGES, WORD};
use crate::support::userfault::MissingPage;
use crate::support::{Errno, Map, Space, PAGE};

crate::suite![
    edits_against_bytes,
    edits_against_writes,
    unmapping_stops_writers,
    unmapping_does_not_wait_for_a_buffer,
    edits_against_edits,
    edits_against_a_guest,
    slots_against_a_guest,
    close_against_calls,
    close_against_slots,
    vm_teardown_against_close,
];

/// How long threads meet each other; with a minimum of meetings besides.
const TIME: Duration = Duration::from_secs(8);

/// Files whose page `n` holds only the byte `first + n`.
fn tagged() -> [File; 3] {
    [0x20, 0x60, 0xa0].map(|first| files::numbered(PAGES, first))
}

/// That no page of the files holds anything but its byte.
#[track_caller]
fn intact(files: &[File; 3]) {
    for (file, first) in files.iter().zip([0x20, 0x60, 0xa0]) {
        for page in 0..PAGES {
            let mut bytes = [0; PAGE as usize];
            file.read_exact_at(&mut bytes, page * PAGE).expect("read");
            let byte = first + page as u8;
            assert!(
                bytes.iter().all(|b| *b == byte),
                "page {page} of the file of {first:#x}"
            );
        }
    }
}

/// One random edit within the first `PAGES` pages. Page `n` of a space only ever shows page `n`
/// of a file, or zeros.
fn edit(space: &Space, files: &[File; 3], random: &mut fastrand::Rng) {
    let start = random.u64(0..PAGES);
    let len = random.u64(1..=PAGES - start) * PAGE;
    let at = start * PAGE;
    let file = |n: usize| Map::file(&files[n], at, len).offset(at);
    let result = match random.u8(0..8) {
        0 | 1 => space.unmap(at, len).map(|()| 0),
        2 => space.map(file(0)),
        3 => space.map(file(1).replace().private()),
        4 => space.map(Map::anon(at, len).replace()),
        5 => space.map(file(2).replace().with(libc::MAP_POPULATE)),
        _ => space.map(file(random.usize(0..3)).replace()),
    };
    assert!(matches!(result, Ok(_) | Err(Errno::EEXIST)), "{result:?}");
}

fn edits_against_bytes() {
    let (space, files, stop) = (Space::new(), tagged(), AtomicBool::new(false));
    let [edits, whole, short, refused] = [const { AtomicU64::new(0) }; 4];
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (space, files, stop, edits) = (&space, &files, &stop, &edits);
            let mut random = fastrand::Rng::with_seed(seed);
            scope.spawn(move || {
                repeat(stop, || {
                    edit(space, files, &mut random);
                    add(edits, true);
                });
            });
        }
        scope.spawn(|| {
            let mut random = fastrand::Rng::with_seed(9);
            let mut bytes = [0; 3 * PAGE as usize];
            repeat(&stop, || {
                let page = random.u64(0..PAGES);
                match space.read_at(page * PAGE, &mut bytes) {
                    Ok(len) => {
                        for (n, part) in bytes[..len].chunks(PAGE as usize).enumerate() {
                            check_page(page + n as u64, part);
                        }
                        add(&whole, len == bytes.len());
                        add(&short, len < bytes.len());
                    }
                    Err(e) => {
                        assert_eq!(e, Errno::EIO);
                        add(&refused, true);
                    }
                }
            });
        });
        let least = [
            ("edits", &edits, 1000),
            ("whole reads", &whole, 100),
            ("short reads", &short, 20),
            ("refused reads", &refused, 100),
        ];
        run_out(TIME, &stop, &least);
    });
    intact(&files);
}

/// Writers against editors: each page that can be met holds the byte that is written, so that
/// a write changes nothing but what it should not have met.
fn edits_against_writes() {
    let (space, files, stop) = (Space::new(), uniform(), AtomicBool::new(false));
    let [edits, whole, short, refused] = [const { AtomicU64::new(0) }; 4];
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (whole, short, refused) = (&whole, &short, &refused);
            let (space, stop) = (&space, &stop);
            let mut random = fastrand::Rng::with_seed(seed);
            scope.spawn(move || {
                repeat(stop, || {
                    let at = random.u64(0..(PAGES - 3) * PAGE);
                    match space.write_at(at, &[0x77; 3 * PAGE as usize]) {
                        Ok(len) => {
                            add(whole, len as u64 == 3 * PAGE);
                            add(short, (len as u64) < 3 * PAGE);
                        }
                        Err(e) => {
                            assert_eq!(e, Errno::EIO);
                            add(refused, true);
                        }
                    }
                });
            });
        }
        scope.spawn(|| {
            let mut random = fastrand::Rng::with_seed(3);
            repeat(&stop, || {
                edit_files(&space, &files, &mut random);
                add(&edits, true);
            });
        });
        let least = [
            ("edits", &edits, 1000),
            ("whole writes", &whole, 50),
            ("short writes", &short, 20),
            ("refused writes", &refused, 20),
        ];
        run_out(TIME, &stop, &least);
    });
    all_uniform(&files);
}

/// When munmap, or a replacement, has returned, no write under way reaches the old page.
fn unmapping_stops_writers() {
    let (space, stop) = (Space::new(), AtomicBool::new(false));
    let [writes, rounds] = [const { AtomicU64::new(0) }; 2];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0u32;
            repeat(&stop, || {
                number += 1;
                let bytes: Vec<u8> = number.to_le_bytes().repeat(2 * PAGE as usize / 4);
                add(&writes, space.write_at(0, &bytes).is_ok());
            });
        });
        scope.spawn(|| {
            repeat(&stop, || {
                let file = files::memfd(2 * PAGE);
                let content = || {
                    let mut bytes = [0; 2 * PAGE as usize];
                    file.read_exact_at(&mut bytes, 0).expect("read");
                    bytes
                };
                space.must_map(Map::file(&file, 0, 2 * PAGE));
                let before = writes.load(Relaxed);
                while writes.load(Relaxed) < before + 2 && !stop.load(Relaxed) {
                    std::thread::yield_now();
                }
                space.unmap(0, 2 * PAGE).expect("unmap");
                let after = content();
                std::thread::sleep(Duration::from_millis(2));
                assert!(
                    after == content(),
                    "the page was written after munmap returned"
                );
                add(&rounds, true);
            });
        });
        run_out(
            TIME,
            &stop,
            &[("writes", &writes, 1000), ("rounds", &rounds, 200)],
        );
    });
}

/// A pwrite whose source is not in memory holds nobody up, and does not write what was unmapped
/// while it waited.
fn unmapping_does_not_wait_for_a_buffer() {
    for replace in [false, true] {
        let (space, file, source) = (Space::new(), files::memfd(PAGE), MissingPage::new());
        space.must_map(Map::file(&file, 0, PAGE));
        let wrote = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                // SAFETY: The page is mapped for good; the kernel waits until it is there.
                let bytes =
                    unsafe { libc::pwrite(space.as_raw_fd(), source.as_ptr().cast(), 4096, 0) };
                Errno::result(bytes)
            });
            source.wait();
            if replace {
                space.must_map(Map::anon(0, PAGE).replace());
            } else {
                space.unmap(0, PAGE).expect("unmap");
            }
            source.provide(7);
            writer.join().expect("the writer")
        });
        // It finds what there is by then.
        let expected = if replace { Ok(4096) } else { Err(Errno::EIO) };
        assert_eq!(wrote, expected);
        let mut bytes = [0; PAGE as usize];
        file.read_exact_at(&mut bytes, 0).expect("read");
        assert!(
            bytes.iter().all(|byte| *byte == 0),
            "written after munmap returned"
        );
    }
}

/// A page that was read in one go is zeros or one page of one file.
#[track_caller]
fn check_page(page: u64, bytes: &[u8]) {
    let byte = bytes[0];
    let possible = [0x20, 0x60, 0xa0].map(|first| first + page as u8);
    assert!(
        byte == 0 || possible.contains(&byte),
        "page {page} shows {byte:#x}"
    );
    assert!(bytes.iter().all(|b| *b == byte), "page {page} is a mixture");
}

/// Editors in each other's ranges, with queries of all kinds; in the end the space is in order.
fn edits_against_edits() {
    let (space, files, stop) = (Space::new(), tagged(), AtomicBool::new(false));
    let [edits, queries] = [const { AtomicU64::new(0) }; 2];
    std::thread::scope(|scope| {
        for seed in 10..13 {
            let (space, files, stop, edits) = (&space, &files, &stop, &edits);
            let mut random = fastrand::Rng::with_seed(seed);
            scope.spawn(move || {
                repeat(stop, || {
                    edit(space, files, &mut random);
                    add(edits, true);
                });
            });
        }
        scope.spawn(|| {
            repeat(&stop, || {
                // Each answer is right for its moment: ordered, and within the range.
                let mappings = space.mappings();
                assert!(
                    mappings.iter().all(|m| m.end <= PAGES * PAGE),
                    "{mappings:x?}"
                );
                let info = space.info();
                assert!(info.mapped_bytes <= PAGES * PAGE && info.mappings <= PAGES);
                let fdinfo = space.fdinfo();
                assert!(fdinfo.contains("as_mapped:"), "{fdinfo}");
                add(&queries, true);
            });
        });
        run_out(
            TIME,
            &stop,
            &[("edits", &edits, 1000), ("queries", &queries, 50)],
        );
    });
    let mapped: u64 = space.mappings().iter().map(|m| m.end - m.start).sum();
    assert_eq!(space.info().mapped_bytes, mapped);
    for page in 0..PAGES {
        match space.read_at(page * PAGE, &mut [0]) {
            Ok(1) => check_page(page, &space.get(page * PAGE, PAGE)),
            other => assert_eq!(other, Err(Errno::EIO)),
        }
    }
    intact(&files);
}

const BASE: u64 = 1 << 20;

/// A load that met a hole may be followed by a store that meets memory: the guest is given the
/// word that every page there may hold.
fn edits_against_a_guest() {
    let (space, stop) = (Space::new(), AtomicBool::new(false));
    let vm = Vm::new();
    let _code = plain_code(&vm);
    vm.must_map(window(1, BASE, PAGES * PAGE, &space, 0));
    let files = uniform();
    let mut vcpu = vm.vcpu(0);
    vcpu.answer = WORD;
    let (edits, met) = (AtomicU64::new(0), Walk::default());
    std::thread::scope(|scope| {
        scope.spawn(|| walk(vcpu, BASE, &stop, &met, mmio(BASE)));
        for seed in 20..22 {
            let (space, files, stop, edits) = (&space, &files, &stop, &edits);
            let mut random = fastrand::Rng::with_seed(seed);
            scope.spawn(move || {
                repeat(stop, || {
                    edit_files(space, files, &mut random);
                    add(edits, true);
                });
            });
        }
        let least = [
            ("edits", &edits, 1000),
            ("walks", &met.turns, 20),
            ("holes met", &met.holes, 100),
        ];
        run_out(TIME, &stop, &least);
    });
    all_uniform(&files);
}

/// Windows and ordinary slots come and go under a walking guest.
fn slots_against_a_guest() {
    let (spaces, stop) = ([Space::new(), Space::new()], AtomicBool::new(false));
    for space in &spaces {
        let file = files::memfd(PAGES * PAGE);
        file.write_all_at(&[0x77; (PAGES * PAGE) as usize], 0)
            .expect("write");
        space.must_map(Map::file(&file, 0, PAGES * PAGE));
    }
    let memory = OwnMemory::at(0x6000_0000, PAGES * PAGE, 0x77);
    let vm = Vm::new();
    let _code = plain_code(&vm);
    let mut vcpu = vm.vcpu(0);
    vcpu.answer = WORD;
    let (changes, met) = (AtomicU64::new(0), Walk::default());
    std::thread::scope(|scope| {
        scope.spawn(|| walk(vcpu, BASE, &stop, &met, mmio(BASE)));
        scope.spawn(|| {
            let mut turn = 0;
            repeat(&stop, || {
                let space = &spaces[turn % 2];
                match turn % 3 {
                    0 => vm.must_map(window(1, BASE, PAGES * PAGE, space, 0)),
                    1 => vm.must_map(window(1, BASE + PAGE, 8 * PAGE, space, 2 * PAGE)),
                    _ => vm
                        .set_plain_slot(1, 0, BASE, PAGES * PAGE, memory.0)
                        .expect("plain"),
                }
                std::thread::sleep(Duration::from_micros(500));
                if turn % 3 == 2 {
                    vm.set_plain_slot(1, 0, BASE, 0, memory.0).expect("delete");
                } else {
                    vm.unmap_slot(1).expect("delete");
                }
                turn += 1;
                add(&changes, true);
            });
        });
        let least = [
            ("changes", &changes, 50),
            ("walks", &met.turns, 20),
            ("holes", &met.holes, 100),
        ];
        run_out(TIME, &stop, &least);
    });
    for space in &spaces {
        let bytes = space.get(0, PAGES * PAGE);
        assert!(bytes.iter().all(|byte| *byte == 0x77));
    }
    assert!(memory.bytes().iter().all(|byte| *byte == 0x77));
}

/// Calls of every kind on one descriptor number, which is closed and used again all the time.
fn close_against_calls() {
    let (files, stop) = (tagged(), AtomicBool::new(false));
    // A number that nothing else gets.
    const NUMBER: RawFd = 700;
    let [closed, calls, met] = [const { AtomicU64::new(0) }; 3];
    let known = |result: Result<(), Errno>| match result {
        Ok(()) | Err(Errno::EIO | Errno::EEXIST | Errno::ENXIO | Errno::ENOENT) => {}
        Err(Errno::EBADF) => add(&met, true),
        Err(e) => panic!("{e}"),
    };
    // SAFETY: Only used for calls that may meet a closed number; never closed through this.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(NUMBER) };
    let (files, known, calls, stop) = (&files, &known, &calls, &stop);
    std::thread::scope(|scope| {
        for seed in 30..33 {
            let mut random = fastrand::Rng::with_seed(seed);
            scope.spawn(move || {
                repeat(stop, || {
                    let at = random.u64(0..PAGES) * PAGE;
                    let map = Map::file(&files[0], at, PAGE).offset(at);
                    let mut bytes = [0; 5000];
                    known(match random.u8(0..6) {
                        0 => map_into(NUMBER, map).map(drop),
                        1 => map_into(NUMBER, Map::anon(at, 3 * PAGE).replace()).map(drop),
                        2 => asfd::sys::address_space_munmap(NUMBER, at, PAGE)
                            .map_err(crate::support::space::errno),
                        3 => nix::sys::uio::pread(borrowed, &mut bytes, at as i64).map(drop),
                        4 => nix::sys::uio::pwrite(borrowed, &[], at as i64).map(drop),
                        _ => {
                            nix::unistd::lseek(borrowed, 0, nix::unistd::Whence::SeekHole).map(drop)
                        }
                    });
                    add(calls, true);
                });
            });
        }
        scope.spawn(|| {
            repeat(stop, || {
                let space = Space::new();
                // SAFETY: Puts the space at the number, which is then this thread's.
                unsafe {
                    assert_eq!(libc::dup2(space.as_raw_fd(), NUMBER), NUMBER);
                    drop(space);
                    std::thread::sleep(Duration::from_micros(200));
                    assert_eq!(libc::close(NUMBER), 0);
                }
                add(&closed, true);
            });
        });
        run_out(
            TIME,
            stop,
            &[
                ("closed", &closed, 100),
                ("calls", calls, 1000),
                ("met", &met, 10),
            ],
        );
    });
    intact(files);
}

/// Spaces are closed while they are being made windows of, under a walking guest.
fn close_against_slots() {
    let stop = AtomicBool::new(false);
    let vm = Vm::new();
    let _code = plain_code(&vm);
    let vcpu = vm.vcpu(0);
    let file = files::memfd(PAGES * PAGE);
    const NUMBER: RawFd = 701;
    let [closed, mapped, late] = [const { AtomicU64::new(0) }; 3];
    let met = Walk::default();
    std::thread::scope(|scope| {
        scope.spawn(|| walk(vcpu, BASE, &stop, &met, mmio(BASE)));
        scope.spawn(|| {
            repeat(&stop, || {
                match vm.map(window(1, BASE, PAGES * PAGE, &NUMBER, 0)) {
                    Ok(()) => {
                        add(&mapped, true);
                        vm.unmap_slot(1).expect("delete");
                    }
                    Err(e) => {
                        assert_eq!(e, Errno::EBADF);
                        add(&late, true);
                    }
                }
            });
        });
        scope.spawn(|| {
            repeat(&stop, || {
                let space = Space::new();
                space.must_map(Map::file(&file, 0, PAGES * PAGE));
                // SAFETY: Puts the space at the number, which is then this thread's.
                unsafe {
                    assert_eq!(libc::dup2(space.as_raw_fd(), NUMBER), NUMBER);
                    drop(space);
                    std::thread::sleep(Duration::from_micros(500));
                    assert_eq!(libc::close(NUMBER), 0);
                }
                add(&closed, true);
            });
        });
        let least = [
            ("closed", &closed, 100),
            ("mapped", &mapped, 50),
            ("late", &late, 5),
        ];
        run_out(TIME, &stop, &least);
    });
}

/// A VM and the space it shows end at the same moment, in two threads.
fn vm_teardown_against_close() {
    const ROUNDS: u64 = 60;
    let file = files::memfd(PAGES * PAGE);
    for round in 0..ROUNDS {
        let space = Space::new();
        space.must_map(Map::file(&file, 0, PAGES * PAGE));
        let vm = Vm::new();
        let code = plain_code(&vm);
        vm.must_map(window(1, BASE, PAGES * PAGE, &space, 0));
        let mut vcpu = vm.vcpu(0);
        assert_eq!(vcpu.store(BASE, round as u32), Exit::Done(round as u32));
        let start = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                drop(space);
            });
            scope.spawn(|| {
                start.wait();
                drop((vcpu, vm));
            });
            start.wait();
            // The file's pages go from all page tables meanwhile.
            file.set_len(0).expect("ftruncate");
            file.set_len(PAGES * PAGE).expect("ftruncate");
        });
        drop(code);
    }
}
