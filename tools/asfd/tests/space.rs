// SPDX-License-Identifier: GPL-2.0

//! The library against a kernel that has address spaces. To run these in the test VM, take the
//! program that `cargo test -p asfd --test space --no-run` names along:
//!
//!     scripts/vm --with PROGRAM:/bin/asfd-test -- asfd-test --ignored

use std::fs::{self, File};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process;

use asfd::{AddressSpace, CreateFlags, Fdinfo, Mapping, Prot, Rights, Seals};
use rustix::fs::{memfd_create, MemfdFlags};

const PAGE: u64 = 4096;
const RW: Prot = Prot::READ.union(Prot::WRITE);

fn space() -> AddressSpace {
    AddressSpace::create(CreateFlags::CLOEXEC).unwrap()
}

/// Page n of it is filled with the byte n + 1.
fn memfd(pages: u64) -> File {
    use std::io::Write;

    let mut file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
    for n in 0..pages {
        file.write_all(&[n as u8 + 1; PAGE as usize]).unwrap();
    }
    file
}

fn byte(space: &AddressSpace, addr: u64) -> u8 {
    let mut buf = [0];
    space.read_exact_at(&mut buf, addr).unwrap();
    buf[0]
}

fn ranges(space: &AddressSpace) -> Vec<(u64, u64)> {
    let mappings = space.mappings().map(|m| m.unwrap());
    mappings.map(|m| (m.start / PAGE, m.end / PAGE)).collect()
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn a_new_space_is_empty() {
    let space = space();
    assert_eq!(ranges(&space), []);
    assert_eq!(space.seek_data(0).unwrap(), None);
    assert_eq!(space.seek_hole(0).unwrap(), Some(0));
    assert_eq!(space.mapping_at(0).unwrap(), None);

    let info = space.info().unwrap();
    assert_eq!(info.window.start, 0);
    assert!(info.window.end > 1 << 32);
    assert_eq!((info.mappings, info.mapped_bytes), (0, 0));
    assert_eq!((info.mirrors, info.windows), (0, 0));
    assert_eq!((info.rights, info.prot), (Rights::all(), RW));
    assert_eq!(info.seals, Seals::empty());
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn spaces_have_numbers_of_their_own() {
    let (a, b) = (space(), space());
    let id = |space: &AddressSpace| space.info().unwrap().id;
    assert_ne!(id(&a), id(&b));
    assert_eq!(id(&a), id(&a.try_clone().unwrap()));

    let fd = OwnedFd::from(a.try_clone().unwrap());
    assert_eq!(id(&AddressSpace::try_from(fd).unwrap()), id(&a));
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn bytes_of_a_file() {
    let (space, file) = (space(), memfd(3));
    let addr = space
        .map(&Mapping::file(&file, 2 * PAGE).offset(PAGE).prot(RW))
        .unwrap();
    assert_eq!(addr, 0);
    assert_eq!((byte(&space, 0), byte(&space, PAGE)), (2, 3));

    // Shared: the file has what is written.
    space.write_all_at(b"hello", PAGE - 2).unwrap();
    let mut buf = [0; 5];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut buf, 2 * PAGE - 2).unwrap();
    assert_eq!(&buf, b"hello");

    let m = space.mapping_at(PAGE).unwrap().unwrap();
    assert_eq!((m.start, m.end, m.offset), (0, 2 * PAGE, PAGE));
    assert!(m.shared);
    assert_eq!((m.prot, m.page_size), (RW, PAGE));
    assert_eq!(m.name.unwrap(), "/memfd:test (deleted)");
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn private_writes_stay_in_the_space() {
    let (space, file) = (space(), memfd(1));
    space
        .map(&Mapping::file(&file, PAGE).prot(RW).private())
        .unwrap();
    space.write_all_at(b"x", 0).unwrap();
    assert_eq!(byte(&space, 0), b'x');
    let mut buf = [0];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut buf, 0).unwrap();
    assert_eq!(buf, [1]);
    assert!(!space.mapping_at(0).unwrap().unwrap().shared);
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn places() {
    let (space, file) = (space(), memfd(2));
    let anonymous = Mapping::anonymous(PAGE);
    assert_eq!(space.map(&anonymous.at(PAGE)).unwrap(), PAGE);
    // The lowest free range, then the next above what is there.
    assert_eq!(space.map(&anonymous).unwrap(), 0);
    assert_eq!(space.map(&anonymous.hint(PAGE)).unwrap(), 2 * PAGE);

    let error = space.map(&anonymous.at(PAGE)).unwrap_err();
    assert_eq!(error.errno(), libc::EEXIST);
    assert_eq!(byte(&space, PAGE), 0);

    let replacement = Mapping::file(&file, PAGE).offset(PAGE).replacing(PAGE);
    assert_eq!(space.map(&replacement).unwrap(), PAGE);
    assert_eq!(byte(&space, PAGE), 2);
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn unmapping_splits() {
    let (space, file) = (space(), memfd(4));
    space.map(&Mapping::file(&file, 4 * PAGE).at(0)).unwrap();
    space.unmap(PAGE, 1).unwrap();
    assert_eq!(ranges(&space), [(0, 1), (2, 4)]);
    assert_eq!(space.mapping_at(PAGE).unwrap(), None);
    assert_eq!(space.seek_hole(0).unwrap(), Some(PAGE));
    assert_eq!(space.seek_data(PAGE).unwrap(), Some(2 * PAGE));
    // Over a hole.
    space.unmap(0, 3 * PAGE).unwrap();
    assert_eq!(ranges(&space), [(3, 4)]);
    assert_eq!(byte(&space, 3 * PAGE), 4);
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn bytes_end_at_holes() {
    let space = space();
    let m = Mapping::anonymous(PAGE).prot(RW);
    space.map(&m.at(PAGE)).unwrap();

    let mut buf = [1; 8];
    assert_eq!(space.read_at(&mut buf, 2 * PAGE - 3).unwrap(), 3);
    assert_eq!(buf, [0, 0, 0, 1, 1, 1, 1, 1]);
    assert_eq!(space.write_at(&buf, 2 * PAGE - 3).unwrap(), 3);
    for error in [
        space.read_at(&mut buf, 0).unwrap_err(),
        space.write_at(&buf, 2 * PAGE).unwrap_err(),
        space.read_exact_at(&mut buf, 2 * PAGE - 3).unwrap_err(),
        space.write_all_at(&buf, 2 * PAGE - 3).unwrap_err(),
    ] {
        assert_eq!(error.errno(), libc::EIO, "{error}");
    }

    let end = space.info().unwrap().window.end;
    assert_eq!(space.read_at(&mut buf, end).unwrap(), 0);
    assert_eq!(space.write_at(&buf, end).unwrap_err().errno(), libc::ENOSPC);
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn several_buffers() {
    let space = space();
    space.map(&Mapping::anonymous(2 * PAGE).prot(RW)).unwrap();
    let out = [IoSlice::new(b"one"), IoSlice::new(b"three")];
    assert_eq!(space.write_vectored_at(&out, PAGE - 4).unwrap(), 8);

    let (mut a, mut b) = ([0; 5], [0; 3]);
    let mut bufs = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)];
    assert_eq!(space.read_vectored_at(&mut bufs, PAGE - 4).unwrap(), 8);
    assert_eq!((&a, &b), (b"oneth", b"ree"));
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn what_may_not_be_is_refused_and_said() {
    let space = space();
    let file = memfd(1);
    let read_only = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    let null = File::open("/dev/null").unwrap();
    let folder = File::open("/").unwrap();
    let other = self::space();

    for (mapping, errno) in [
        (Mapping::file(&read_only, PAGE).prot(RW), libc::EACCES),
        (Mapping::file(&null, PAGE), libc::ENODEV),
        (Mapping::file(&folder, PAGE), libc::ENODEV),
        (Mapping::file(&other, PAGE), libc::ELOOP),
        (Mapping::file(&space, PAGE), libc::ELOOP),
        (Mapping::file(&file, PAGE).offset(1), libc::EINVAL),
        (Mapping::file(&file, 0), libc::EINVAL),
        (Mapping::anonymous(PAGE).at(1), libc::EINVAL),
        (Mapping::anonymous(PAGE).at(1 << 62), libc::ENOMEM),
    ] {
        let error = space.map(&mapping).unwrap_err();
        assert_eq!(error.errno(), errno, "{error}");
        assert!(error.to_string().starts_with("cannot map "), "{error}");
    }
    assert_eq!(ranges(&space), []);

    space.map(&Mapping::anonymous(PAGE)).unwrap();
    let error = space.write_at(b"x", 0).unwrap_err();
    assert_eq!(error.errno(), libc::EACCES, "{error}");
    assert_eq!(space.unmap(1, PAGE).unwrap_err().errno(), libc::EINVAL);
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn fdinfo_says_the_same() {
    let (space, file) = (space(), memfd(2));
    space
        .map(&Mapping::file(&file, PAGE).offset(PAGE).prot(RW).at(PAGE))
        .unwrap();
    space
        .map(&Mapping::anonymous(PAGE).prot(Prot::empty()).private().at(0))
        .unwrap();
    space.read_at(&mut [0], PAGE).unwrap();

    let pid = process::id();
    let fd = space.as_raw_fd();
    assert!(asfd::process::spaces(pid).unwrap().contains(&fd));
    let fdinfo = asfd::process::fdinfo(pid, fd).unwrap();
    let info = space.info().unwrap();
    assert_eq!(fdinfo.id, info.id);
    assert_eq!(fdinfo.window, info.window);
    assert_eq!((fdinfo.rights, fdinfo.prot), (info.rights, info.prot));
    assert_eq!(fdinfo.seals, info.seals);
    assert_eq!(fdinfo.mappings, info.mappings);
    assert_eq!(fdinfo.mapped_bytes, info.mapped_bytes);
    assert_eq!((fdinfo.mirrors, fdinfo.windows), (0, 0));
    assert_eq!((info.mappings, info.mapped_bytes), (2, 2 * PAGE));
    assert_eq!(info.resident_bytes, PAGE);

    let walked: Vec<_> = space.mappings().map(|m| m.unwrap()).collect();
    assert_eq!(walked.len(), fdinfo.maps.len());
    for (a, b) in walked.iter().zip(&fdinfo.maps) {
        assert_eq!((a.start, a.end, a.offset), (b.start, b.end, b.offset));
        assert_eq!((a.prot, a.shared), (b.prot, b.shared));
    }
    assert_eq!(fdinfo.maps[0].name, "[anon]");
    assert_eq!(fdinfo.maps[1].name, "/memfd:test (deleted)");
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn an_odd_name_does_not_break_fdinfo() {
    let path = "/tmp/a b\nas_id:\t0";
    fs::create_dir_all("/tmp").unwrap();
    fs::write(path, [1; PAGE as usize]).unwrap();
    let space = space();
    let mapped = space.map(&Mapping::file(&File::open(path).unwrap(), PAGE));
    fs::remove_file(path).unwrap();
    mapped.unwrap();

    let text = fs::read(format!("/proc/self/fdinfo/{}", space.as_raw_fd())).unwrap();
    let fdinfo = Fdinfo::parse(&text).unwrap();
    assert_eq!(fdinfo.id, space.info().unwrap().id);
    let name = fdinfo.maps[0].name.to_str().unwrap().to_owned();
    assert!(name.starts_with(path), "{name:?}");
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn a_space_is_taken_from_a_process() {
    let space = space();
    space.map(&Mapping::anonymous(PAGE).prot(RW)).unwrap();
    let taken = asfd::process::open(process::id(), space.as_raw_fd()).unwrap();
    let inherited = asfd::process::inherited(space.as_raw_fd()).unwrap();
    taken.write_all_at(b"x", 0).unwrap();
    assert_eq!(byte(&inherited, 0), b'x');
    drop(space);
    assert_eq!(byte(&taken, 0), b'x');
}
