// SPDX-License-Identifier: GPL-2.0

//! Every way in which address_space_mmap refuses, and that a refusal changes nothing.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use asfd::sys::{address_space_mmap, address_space_mmap_args};
use libc::{MAP_ANONYMOUS, MAP_FIXED_NOREPLACE, MAP_HUGETLB, MAP_HUGE_SHIFT, MAP_SHARED};
use libc::{MAP_SHARED_VALIDATE, PROT_NONE, PROT_READ, PROT_WRITE};
use nix::fcntl::{fcntl, FcntlArg, SealFlag};

use crate::note;
use crate::support::files::{self, TempFile};
use crate::support::guest::Vm;
use crate::support::snapshot::unchanged;
use crate::support::space::{errno, map_into};
use crate::support::system::{need_huge_pages, no_huge_pages, Setting};
use crate::support::{Errno, Map, Result, Space, HUGE, PAGE};

crate::suite![
    wrong_descriptors,
    wrong_values,
    unknown_flags,
    unknown_prot,
    struct_versions,
    bad_pointers,
    spaces_hold_no_space,
    kinds_that_cannot_be_mapped,
    not_opened_for_it,
    sealed_files,
    something_is_there,
    no_room,
    mapping_limit,
    kvm_descriptors,
    past_the_end_of_the_file,
    huge_page_arguments,
    rounding,
];

/// A space with some of everything, and a free range from `FREE` on.
fn scenery() -> Space {
    let space = Space::new();
    space.must_map(Map::file(&files::numbered(4, b'a'), 0, 4 * PAGE));
    space.must_map(Map::anon(6 * PAGE, 3 * PAGE));
    space.put(6 * PAGE, &[b'x'; 3 * PAGE as usize]);
    space.must_map(Map::anon(9 * PAGE, PAGE).prot(PROT_NONE));
    space.must_map(Map::anon(space.end() - PAGE, PAGE));
    space
}

const FREE: u64 = 1 << 20;

/// Collects what goes against expectation, so that a run shows all of it.
#[derive(Default)]
struct Verdict(Vec<String>);

impl Verdict {
    fn refused<T: std::fmt::Debug>(
        &mut self,
        what: &str,
        expected: Errno,
        space: &Space,
        call: impl FnOnce() -> Result<T>,
    ) {
        match unchanged(space, call) {
            Err(e) if e == expected => {}
            other => self.0.push(format!("{what}: {other:?}, not {expected:?}")),
        }
    }

    fn refuses(&mut self, what: &str, expected: Errno, space: &Space, map: Map) {
        self.refused(what, expected, space, || space.map(map));
    }
}

impl Drop for Verdict {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.0.iter().for_each(|line| note!("{line}"));
            assert!(self.0.is_empty(), "{}", self.0.join("; "));
        }
    }
}

fn wrong_descriptors() {
    let mut verdict = Verdict::default();
    let space = scenery();
    let memfd = files::memfd(PAGE);
    let path = File::options()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open("/bin")
        .expect("O_PATH");
    let (pipe, _writer) = nix::unistd::pipe().expect("pipe");
    let closed = nix::unistd::dup(&pipe).expect("dup").as_raw_fd();
    let bad = [
        ("-1", -1),
        ("closed", closed),
        ("9999", 9999),
        ("O_PATH", path.as_raw_fd()),
    ];
    for (name, fd) in bad {
        verdict.refused(&format!("asfd {name}"), Errno::EBADF, &space, || {
            map_into(fd, Map::anon(FREE, PAGE))
        });
        let map = Map::file(&fd, FREE, PAGE);
        verdict.refuses(&format!("fd {name}"), Errno::EBADF, &space, map);
    }
    let null = File::open("/dev/null").expect("/dev/null");
    let others = [memfd.as_raw_fd(), pipe.as_raw_fd(), null.as_raw_fd()];
    for fd in others {
        verdict.refused("asfd of another kind", Errno::EINVAL, &space, || {
            map_into(fd, Map::anon(FREE, PAGE))
        });
    }
}

fn wrong_values() {
    let mut verdict = Verdict::default();
    let space = scenery();
    let file = files::memfd(16 * PAGE);
    let on = |addr, len| Map::file(&file, addr, len);
    let cases = [
        ("zero length", on(FREE, 0)),
        ("zero length, anonymous", Map::anon(FREE, 0)),
        ("zero length over a mapping", on(0, 0).replace()),
        ("unaligned address", on(FREE + 1, PAGE)),
        (
            "unaligned address, replacing",
            on(FREE + 512, PAGE).replace(),
        ),
        ("unaligned address over a mapping", on(1, PAGE).replace()),
        ("unaligned offset", on(FREE, PAGE).offset(1)),
        ("unaligned offset, hint", on(FREE, PAGE).offset(2048).hint()),
        (
            "unaligned offset, anonymous",
            Map::anon(FREE, PAGE).offset(100),
        ),
        (
            "neither shared nor private",
            on(FREE, PAGE).without(MAP_SHARED),
        ),
        (
            "anonymous, neither shared nor private",
            Map::anon(FREE, PAGE).without(3),
        ),
        (
            "anonymous, SHARED_VALIDATE",
            Map::anon(FREE, PAGE).with(MAP_SHARED_VALIDATE),
        ),
        ("anonymous, with a file", on(FREE, PAGE).with(MAP_ANONYMOUS)),
    ];
    for (what, map) in cases {
        verdict.refuses(what, Errno::EINVAL, &space, map);
    }
    for bit in 0..32 {
        let mut map = on(FREE, PAGE);
        map.0.__reserved = 1 << bit;
        verdict.refuses(&format!("reserved bit {bit}"), Errno::EINVAL, &space, map);
    }
}

fn unknown_flags() {
    let mut verdict = Verdict::default();
    let space = scenery();
    let file = files::memfd(16 * PAGE);
    let known = libc::MAP_SHARED
        | libc::MAP_PRIVATE
        | libc::MAP_FIXED
        | MAP_ANONYMOUS
        | libc::MAP_NORESERVE
        | libc::MAP_POPULATE
        | MAP_HUGETLB
        | MAP_FIXED_NOREPLACE;
    let unknown = (0..32)
        .map(|bit| 1i32 << bit)
        .filter(|flag| flag & known == 0);
    for flag in unknown {
        let what = |base: &str| format!("flag {flag:#x} with {base}");
        let shared = Map::file(&file, FREE, PAGE);
        verdict.refuses(&what("a file"), Errno::EINVAL, &space, shared.with(flag));
        let validate = shared.with(MAP_SHARED_VALIDATE | flag);
        verdict.refuses(&what("SHARED_VALIDATE"), Errno::EINVAL, &space, validate);
        verdict.refuses(
            &what("anonymous"),
            Errno::EINVAL,
            &space,
            Map::anon(FREE, PAGE).with(flag),
        );
        let replacing = Map::file(&file, 0, PAGE).replace().with(flag);
        verdict.refuses(
            &what("a mapping to replace"),
            Errno::EINVAL,
            &space,
            replacing,
        );
    }
}

fn unknown_prot() {
    let mut verdict = Verdict::default();
    let space = scenery();
    for bit in 2..32 {
        for base in [PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE] {
            let map = Map::anon(FREE, PAGE).prot(base | 1 << bit);
            verdict.refuses(&format!("prot bit {bit}"), Errno::EINVAL, &space, map);
        }
    }
}

/// Calls with `bytes` as the struct, in a buffer that holds them and no more.
fn map_bytes(space: &Space, bytes: &[u8], size: usize) -> Result<u64> {
    let mut buffer = vec![0u64; bytes.len().div_ceil(8).max(size.div_ceil(8))];
    // SAFETY: The buffer has room for `bytes`, and u64 has no invalid values.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.as_mut_ptr().cast(), bytes.len());
        address_space_mmap(space.as_raw_fd(), buffer.as_mut_ptr().cast(), size).map_err(errno)
    }
}

fn args_bytes(map: Map) -> [u8; size_of::<address_space_mmap_args>()] {
    // SAFETY: Plain integers without padding.
    unsafe { std::mem::transmute(map.0) }
}

fn struct_versions() {
    let mut verdict = Verdict::default();
    let space = scenery();
    let known = size_of::<address_space_mmap_args>();
    assert_eq!(known, 40);
    let args = args_bytes(Map::anon(FREE, PAGE));
    for size in [0, 1, 8, known - 8, known - 1] {
        verdict.refused(&format!("size {size}"), Errno::EINVAL, &space, || {
            map_bytes(&space, &args, size)
        });
    }
    let longer = [known + 1, known + 7, known + 8, 64, 1000, PAGE as usize];
    for size in longer {
        let mut bytes = vec![0; size];
        bytes[..known].copy_from_slice(&args);
        for position in [known, (known + size) / 2, size - 1] {
            bytes[position] = 1;
            verdict.refused(
                &format!("size {size}, byte {position} set"),
                Errno::E2BIG,
                &space,
                || map_bytes(&space, &bytes, size),
            );
            bytes[position] = 0;
        }
        assert_eq!(
            map_bytes(&space, &bytes, size),
            Ok(FREE),
            "size {size}, the rest zero"
        );
        space.unmap(FREE, PAGE).expect("unmap");
    }
    for size in [PAGE as usize + 1, 2 * PAGE as usize, 1 << 20, usize::MAX] {
        let whole = vec![0; 1 << 20];
        verdict.refused(&format!("size {size}"), Errno::E2BIG, &space, || {
            let mut bytes = whole.clone();
            bytes[..known].copy_from_slice(&args);
            // SAFETY: For sizes beyond the buffer the kernel must not look; nothing is written.
            unsafe { address_space_mmap(space.as_raw_fd(), bytes.as_mut_ptr().cast(), size) }
                .map_err(errno)
        });
    }
}

/// Two pages, the second of which is not there.
fn page_and_nothing() -> *mut u8 {
    let len = 2 * PAGE as usize;
    let prot = PROT_READ | PROT_WRITE;
    let flags = libc::MAP_PRIVATE | MAP_ANONYMOUS;
    // SAFETY: New memory, of which the second half goes away again.
    unsafe {
        let start = libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0);
        assert_ne!(start, libc::MAP_FAILED);
        let start = start.cast::<u8>();
        assert_eq!(
            libc::munmap(start.add(PAGE as usize).cast(), PAGE as usize),
            0
        );
        start
    }
}

fn bad_pointers() {
    let mut verdict = Verdict::default();
    let space = scenery();
    let known = size_of::<address_space_mmap_args>();
    let edge = page_and_nothing();
    let call = |pointer: *mut u8, size: usize| {
        // SAFETY: Where the memory is not there, the kernel says so; it writes nothing.
        unsafe { address_space_mmap(space.as_raw_fd(), pointer.cast(), size) }.map_err(errno)
    };
    let pointers = [
        ("null", std::ptr::null_mut()),
        ("in the first page", 64 as *mut u8),
        ("of the kernel", 0xffff_8880_0000_0000u64 as *mut u8),
        ("the last", usize::MAX as *mut u8),
        ("half there", edge.wrapping_add(PAGE as usize - known / 2)),
    ];
    for (what, pointer) in pointers {
        verdict.refused(what, Errno::EFAULT, &space, || call(pointer, known));
    }
    let args = args_bytes(Map::anon(FREE, PAGE));
    let last = edge.wrapping_add(PAGE as usize - known);
    // SAFETY: The last bytes of the page that is there.
    unsafe { std::ptr::copy_nonoverlapping(args.as_ptr(), last, known) };
    verdict.refused("the rest not there", Errno::EFAULT, &space, || {
        call(last, known + 8)
    });
    assert_eq!(call(last, known), Ok(FREE), "the same without a rest");
}

fn spaces_hold_no_space() {
    let mut verdict = Verdict::default();
    let (space, other) = (scenery(), scenery());
    let copy = space.dup();
    for (what, fd) in [("itself", &space), ("its copy", &copy), ("another", &other)] {
        for addr in [FREE, 0] {
            for prot in [PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE] {
                let map = Map::file(fd, addr, PAGE).replace().prot(prot);
                verdict.refuses(what, Errno::ELOOP, &space, map);
                verdict.refuses(what, Errno::ELOOP, &space, map.private());
            }
        }
    }
}

/// One open descriptor of each kind that has no business in a space.
fn strangers() -> Vec<(&'static str, OwnedFd)> {
    let mut all: Vec<(&str, OwnedFd)> = Vec::new();
    for path in [
        "/dev/null",
        "/dev/zero",
        "/dev/full",
        "/dev/mem",
        "/dev/kmsg",
        "/dev/ptmx",
    ] {
        let file = File::options().read(true).write(true).open(path);
        file.into_iter()
            .for_each(|file| all.push((path, file.into())));
    }
    for path in [
        "/",
        "/proc/self/status",
        "/proc/self/maps",
        "/proc/self/mem",
        "/proc/sys/vm/max_map_count",
        "/proc/self/pagemap",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/fs/cgroup/cgroup.procs",
        "/sys/kernel/debug/kmemleak",
        "/proc/self/ns/mnt",
    ] {
        File::open(path)
            .into_iter()
            .for_each(|file| all.push((path, file.into())));
    }
    for path in std::fs::read_dir("/sys/bus/pci/devices")
        .into_iter()
        .flatten()
        .flatten()
    {
        let files = ["config", "resource0"].map(|name| path.path().join(name));
        let open = files
            .iter()
            .filter_map(|path| File::options().read(true).write(true).open(path).ok());
        open.for_each(|file| all.push(("a PCI device's file in sysfs", file.into())));
    }
    let (reader, writer) = nix::unistd::pipe().expect("pipe");
    all.extend([
        ("a pipe's reading end", reader),
        ("a pipe's writing end", writer),
    ]);
    let (left, _) = crate::support::process::sockets();
    all.push(("a socket", left));
    // SAFETY: None of these takes a pointer that matters; the results are new descriptors.
    let made = unsafe {
        let mut params = [0u8; 256];
        [
            ("an eventfd", libc::eventfd(0, 0)),
            ("an epoll", libc::epoll_create1(0)),
            ("a timerfd", libc::timerfd_create(libc::CLOCK_MONOTONIC, 0)),
            ("an inotify", libc::inotify_init1(0)),
            (
                "a pidfd",
                libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) as i32,
            ),
            (
                "a userfaultfd",
                libc::syscall(libc::SYS_userfaultfd, 0) as i32,
            ),
            (
                "an io_uring",
                libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) as i32,
            ),
        ]
    };
    for (name, fd) in made.into_iter().filter(|(_, fd)| *fd >= 0) {
        // SAFETY: Just made for us.
        all.push((name, unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) }));
    }
    if let Ok(file) = files::secret_memfd(PAGE) {
        all.push(("a memfd_secret", file.into()));
    }
    all
}

fn kinds_that_cannot_be_mapped() {
    let mut verdict = Verdict::default();
    let space = scenery();
    let strangers = strangers();
    let names: Vec<&str> = strangers.iter().map(|(name, _)| *name).collect();
    note!("{}", names.join(", "));
    assert!(
        strangers.len() >= 12,
        "too few kinds on this machine: {names:?}"
    );
    for (name, fd) in &strangers {
        refuse_kind(&mut verdict, &space, name, fd.as_raw_fd());
    }
}

/// As shared and as private memory, in a free range and in place of a mapping. The kind counts
/// before what the descriptor was opened for.
fn refuse_kind(verdict: &mut Verdict, space: &Space, name: &str, fd: RawFd) {
    for addr in [FREE, 0] {
        let map = Map::file(&fd, addr, PAGE).replace().prot(PROT_READ);
        verdict.refuses(name, Errno::ENODEV, space, map);
        verdict.refuses(name, Errno::ENODEV, space, map.private());
    }
}

/// A VM, its vCPU (which can be mmapped) and a guest_memfd that nobody may mmap.
fn kvm_descriptors() {
    let mut verdict = Verdict::default();
    let space = scenery();
    let vm = Vm::new();
    let vcpu = vm.vcpu(0);
    refuse_kind(&mut verdict, &space, "/dev/kvm", vm.kvm.as_raw_fd());
    refuse_kind(&mut verdict, &space, "a VM", vm.fd.as_raw_fd());
    refuse_kind(&mut verdict, &space, "a vCPU", vcpu.fd.as_raw_fd());
    match vm.guest_memfd(4 * PAGE, 0) {
        Ok(file) => refuse_kind(&mut verdict, &space, "a guest_memfd", file.as_raw_fd()),
        Err(e) => note!("no plain guest_memfd here: {e}"),
    }
}

fn not_opened_for_it() {
    let mut verdict = Verdict::default();
    let space = scenery();
    let file = TempFile::new("/tmp", 4 * PAGE);
    let (reader, writer) = (file.open(true, false), file.open(false, true));
    for addr in [FREE, 0] {
        let read = Map::file(&reader, addr, PAGE).replace();
        verdict.refuses("O_RDONLY, shared, writable", Errno::EACCES, &space, read);
        let only = read.prot(PROT_WRITE);
        verdict.refuses("O_RDONLY, shared, write only", Errno::EACCES, &space, only);
        let validate = read.with(MAP_SHARED_VALIDATE);
        verdict.refuses("O_RDONLY, SHARED_VALIDATE", Errno::EACCES, &space, validate);
        for prot in [PROT_READ, PROT_WRITE, PROT_READ | PROT_WRITE] {
            let write = Map::file(&writer, addr, PAGE).replace().prot(prot);
            verdict.refuses("O_WRONLY, shared", Errno::EACCES, &space, write);
            verdict.refuses("O_WRONLY, private", Errno::EACCES, &space, write.private());
        }
    }
    // What such a file does allow.
    space.must_map(Map::file(&reader, FREE, PAGE).prot(PROT_READ));
    space.must_map(Map::file(&reader, FREE + PAGE, PAGE).private());
}

fn sealed_files() {
    let mut verdict = Verdict::default();
    let space = scenery();
    for seal in [SealFlag::F_SEAL_WRITE, SealFlag::F_SEAL_FUTURE_WRITE] {
        let file = files::numbered(4, b's');
        fcntl(&file, FcntlArg::F_ADD_SEALS(seal)).expect("F_ADD_SEALS");
        for addr in [FREE, 0] {
            let map = Map::file(&file, addr, PAGE).replace();
            verdict.refuses(&format!("{seal:?}"), Errno::EPERM, &space, map);
        }
        space.must_map(Map::file(&file, FREE, PAGE).replace().prot(PROT_READ));
        assert_eq!(space.byte(FREE), b's');
        space.must_map(Map::file(&file, FREE, PAGE).replace().private());
        space.put(FREE, b"mine");
        space.unmap(FREE, PAGE).expect("unmap");
    }
}

fn something_is_there() {
    let mut verdict = Verdict::default();
    let space = scenery();
    let file = files::memfd(64 * PAGE);
    let last = space.end() - PAGE;
    let ranges = [
        ("the same", 0, 4),
        ("inside", PAGE, 1),
        ("its head", 0, 1),
        ("its tail", 3 * PAGE, 1),
        ("over its end", 3 * PAGE, 3),
        ("over a beginning", 4 * PAGE, 3),
        ("around it", 5 * PAGE, 6),
        ("over all", 0, 32),
        ("a page without access", 9 * PAGE, 1),
        ("the last page", last, 1),
    ];
    for (what, addr, pages) in ranges {
        let len = pages * PAGE;
        verdict.refuses(what, Errno::EEXIST, &space, Map::file(&file, addr, len));
        verdict.refuses(what, Errno::EEXIST, &space, Map::anon(addr, len));
        // With both flags it is NOREPLACE that counts, as in mmap(2).
        let both = Map::anon(addr, len).with(libc::MAP_FIXED);
        verdict.refuses(what, Errno::EEXIST, &space, both);
    }
    space.must_map(Map::file(&file, 4 * PAGE, 2 * PAGE));
}

fn no_room() {
    let mut verdict = Verdict::default();
    let space = scenery();
    let file = files::memfd(16 * PAGE);
    let end = space.end();
    let fixed = [
        ("at the end", end, PAGE),
        ("over the end", end - PAGE, 2 * PAGE),
        ("beyond the end", end + (1 << 30), PAGE),
        ("the last page of all", u64::MAX - PAGE + 1, PAGE),
        ("past 2^64", u64::MAX - PAGE + 1, 2 * PAGE),
        ("longer than the space", PAGE, end),
        ("all but 2^64", 0, u64::MAX - PAGE + 1),
        ("a length that rounds to nothing", 0, u64::MAX),
    ];
    for (what, addr, len) in fixed {
        let map = Map::anon(addr, len).with(libc::MAP_NORESERVE);
        verdict.refuses(what, Errno::ENOMEM, &space, map);
        verdict.refuses(what, Errno::ENOMEM, &space, map.replace());
    }
    let file_past = Map::file(&file, end - PAGE, 2 * PAGE);
    verdict.refuses("a file over the end", Errno::ENOMEM, &space, file_past);
    let hints = [
        ("hint: nothing free above", end - PAGE, PAGE),
        ("hint: too little free above", end - 4 * PAGE, 4 * PAGE),
        ("hint: at the end", end, PAGE),
        ("hint: beyond the end", u64::MAX - PAGE, PAGE),
        ("hint: as long as the space", 0, end),
        ("hint: longer than the space", 0, end + PAGE),
        ("hint: a length that rounds to nothing", 0, u64::MAX),
    ];
    for (what, addr, len) in hints {
        let map = Map::anon(addr, len).with(libc::MAP_NORESERVE).hint();
        verdict.refuses(what, Errno::ENOMEM, &space, map);
    }
    let fits = Map::anon(end - 4 * PAGE, 3 * PAGE).hint();
    assert_eq!(space.map(fits), Ok(end - 4 * PAGE), "just fits");
}

fn mapping_limit() {
    const LIMIT: u64 = 200;
    let space = Space::new();
    let limit = Setting::set("/proc/sys/vm/max_map_count", &LIMIT.to_string());
    let mut verdict = Verdict::default();
    // A mapping of three pages, so that there is something to split; neighbours do not merge.
    space.must_map(Map::anon(0, 3 * PAGE));
    space.put(0, &[7; 3 * PAGE as usize]);
    let single = |n: u64| Map::anon((4 + 2 * n) * PAGE, PAGE);
    let made = (0..2 * LIMIT)
        .take_while(|n| space.map(single(*n)).is_ok())
        .count() as u64;
    assert!(
        made.abs_diff(LIMIT) <= 3,
        "{made} mappings under a limit of {LIMIT}"
    );
    verdict.refuses("one more", Errno::ENOMEM, &space, single(made));
    verdict.refused("a split", Errno::ENOMEM, &space, || space.unmap(PAGE, PAGE));
    let file = files::memfd(PAGE);
    let replaced = Map::file(&file, PAGE, PAGE).replace();
    verdict.refuses("a split by replacement", Errno::ENOMEM, &space, replaced);
    space.unmap(4 * PAGE, PAGE).expect("giving one back");
    space.unmap(6 * PAGE, PAGE).expect("giving one back");
    space.unmap(PAGE, PAGE).expect("now it can be split");
    drop(limit);
    space.must_map(single(made));
}

fn past_the_end_of_the_file() {
    let mut verdict = Verdict::default();
    let space = scenery();
    let memfd = files::memfd(4 * PAGE);
    let temp = TempFile::new("/tmp", 4 * PAGE);
    let top = (i64::MAX as u64 + 1) - PAGE;
    for file in [&memfd, &temp.file] {
        for (offset, pages) in [
            (top, 2),
            (top - PAGE, 16),
            (u64::MAX - PAGE + 1, 1),
            (1 << 63, 1),
        ] {
            let map = Map::file(file, FREE, pages * PAGE).offset(offset);
            let what = format!("{pages} pages at {offset:#x}");
            verdict.refuses(&what, Errno::EOVERFLOW, &space, map);
            verdict.refuses(&what, Errno::EOVERFLOW, &space, map.private());
            let replacing = Map::file(file, 0, pages * PAGE).offset(offset).replace();
            verdict.refuses(&what, Errno::EOVERFLOW, &space, replacing);
        }
        // Past what it holds, but not past what it can hold.
        space.must_map(Map::file(file, FREE, PAGE).offset(1 << 40));
        space.unmap(FREE, PAGE).expect("unmap");
    }
}

fn huge_page_arguments() {
    let mut verdict = Verdict::default();
    let space = scenery();
    let pages = need_huge_pages(2);
    let file = files::huge_memfd(2 * HUGE);
    let at = |addr| Map::file(&file, addr, HUGE);
    verdict.refuses(
        "address not of a huge page",
        Errno::EINVAL,
        &space,
        at(HUGE + PAGE),
    );
    verdict.refuses(
        "offset not of a huge page",
        Errno::EINVAL,
        &space,
        at(HUGE).offset(PAGE),
    );
    let small = files::memfd(HUGE);
    let asked = Map::file(&small, HUGE, HUGE).with(MAP_HUGETLB);
    verdict.refuses("MAP_HUGETLB of other files", Errno::EINVAL, &space, asked);
    let sized = |log: i32| Map::anon(HUGE, HUGE).with(MAP_HUGETLB | log << MAP_HUGE_SHIFT);
    verdict.refuses("a size there is not", Errno::EINVAL, &space, sized(13));
    assert_eq!(space.map(sized(21)), Ok(HUGE));
    space.unmap(HUGE, HUGE).expect("unmap");
    drop(pages);
    let _none = no_huge_pages();
    verdict.refuses("no huge pages", Errno::ENOMEM, &space, sized(21));
}

fn rounding() {
    let space = Space::new();
    let file = files::numbered(4, b'0');
    for len in [1, PAGE - 1, PAGE] {
        space.must_map(Map::file(&file, 0, len).replace());
        assert_eq!(space.info().mapped_bytes, PAGE, "len {len}");
    }
    space.must_map(Map::file(&file, PAGE, PAGE + 1).offset(2 * PAGE));
    assert_eq!(space.info().mapped_bytes, 3 * PAGE);
    assert_eq!(
        (space.byte(0), space.byte(PAGE), space.byte(3 * PAGE - 1)),
        (b'0', b'2', b'3')
    );
}
