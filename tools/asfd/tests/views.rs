// SPDX-License-Identifier: GPL-2.0

//! Views, seals, protection, advice and mirrors by way of the library, on a kernel that has them;
//! run as `space.rs` is.

use std::fs;
use std::os::fd::AsRawFd;
use std::process;

use asfd::{
    process as other, AddressSpace, Advice, CreateFlags, Error, Mapping, Prot, Rights, Seals, View,
};

const PAGE: u64 = 4096;
const RW: Prot = Prot::READ.union(Prot::WRITE);

/// Four pages at 4 pages, page n filled with the byte n.
fn space() -> AddressSpace {
    let space = AddressSpace::create(CreateFlags::CLOEXEC).unwrap();
    space
        .map(&Mapping::anonymous(4 * PAGE).prot(RW).at(4 * PAGE))
        .unwrap();
    for n in 4..8 {
        let page = [n as u8; PAGE as usize];
        space.write_all_at(&page, n * PAGE).unwrap();
    }
    space
}

fn byte(space: &AddressSpace, addr: u64) -> u8 {
    let mut buf = [0];
    space.read_exact_at(&mut buf, addr).unwrap();
    buf[0]
}

fn refused<T: std::fmt::Debug>(result: Result<T, Error>, errno: i32, words: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.errno(), errno, "{error}");
    assert!(error.to_string().contains(words), "{error}");
    assert!(!error.to_string().contains('\n'), "{error}");
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn a_view_is_a_window_that_counts_from_its_start() {
    let space = space();
    let view = space
        .view(&View::of(6 * PAGE..16 * PAGE).rights(Rights::QUERY))
        .unwrap();
    assert_eq!(byte(&view, 0), 6);
    let mappings: Vec<_> = view.mappings().map(|m| m.unwrap()).collect();
    assert_eq!(mappings.len(), 1);
    assert_eq!((mappings[0].start, mappings[0].end), (0, 2 * PAGE));
    assert_eq!(view.seek_hole(0).unwrap(), Some(2 * PAGE));

    let info = view.info().unwrap();
    assert_eq!(info.id, space.info().unwrap().id);
    assert_eq!(info.window, 6 * PAGE..16 * PAGE);
    assert_eq!((info.mappings, info.mapped_bytes), (1, 2 * PAGE));
    assert_eq!(info.resident_bytes, 2 * PAGE);
    assert_eq!((info.rights, info.prot), (Rights::QUERY, Prot::READ));

    let fdinfo = other::fdinfo(process::id(), view.as_raw_fd()).unwrap();
    assert_eq!((fdinfo.id, fdinfo.window), (info.id, info.window));
    assert_eq!((fdinfo.rights, fdinfo.prot), (info.rights, info.prot));
    assert_eq!((fdinfo.maps[0].start, fdinfo.maps[0].end), (0, 2 * PAGE));

    // It is an asfd as others are, and outlives the one it was made from.
    let pid = process::id();
    assert!(other::spaces(pid).unwrap().contains(&view.as_raw_fd()));
    drop(space);
    assert_eq!(byte(&view, PAGE), 7);
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn without_words_a_view_is_for_reading() {
    let view = space().view(&View::whole()).unwrap();
    assert_eq!(byte(&view, 4 * PAGE), 4);
    let page = Mapping::anonymous(PAGE);
    refused(view.write_at(b"x", 4 * PAGE), libc::EACCES, "descriptor");
    refused(view.map(&page), libc::EPERM, "lacks the right to map");
    refused(view.unmap(0, PAGE), libc::EPERM, "lacks the right to unmap");
    let protect = view.protect(4 * PAGE, PAGE, RW);
    refused(protect, libc::EPERM, "lacks the right to change");
    let advise = view.advise(4 * PAGE, PAGE, Advice::DontNeed);
    refused(advise, libc::EPERM, "lacks the right to change");
    refused(
        view.seal(Seals::MAP),
        libc::EPERM,
        "lacks the right to seal",
    );
    refused(
        view.view(&View::whole()),
        libc::EPERM,
        "lacks the right to view",
    );
    refused(
        view.mapping_at(0),
        libc::EPERM,
        "may not look at the mappings",
    );
    refused(
        view.seek_data(0),
        libc::EPERM,
        "may not look at the mappings",
    );
    refused(view.mirror(0, 4096, RW), libc::EACCES, "that much access");
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn views_of_views_only_shrink() {
    let space = space();
    let view = View::of(4 * PAGE..8 * PAGE).rights(Rights::VIEW | Rights::MAP);
    let view = space.view(&view).unwrap();

    let inner = view.view(&View::of(PAGE..2 * PAGE)).unwrap();
    assert_eq!(inner.info().unwrap().window, 5 * PAGE..6 * PAGE);
    assert_eq!(byte(&inner, 0), 5);
    let all = view.view(&View::whole()).unwrap();
    assert_eq!(all.info().unwrap().window, 4 * PAGE..8 * PAGE);

    let make = |wider: View| view.view(&wider);
    refused(
        make(View::of(0..5 * PAGE)),
        libc::ERANGE,
        "outside the window",
    );
    refused(
        make(View::whole().prot(RW)),
        libc::EACCES,
        "read or write more",
    );
    let rights = View::whole().rights(Rights::MAP | Rights::QUERY);
    refused(make(rights), libc::EPERM, "lacks the right to query");
    refused(make(View::of(1..PAGE)), libc::EINVAL, "page boundaries");
    refused(make(View::of(0..0)), libc::EINVAL, "empty");
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn a_view_is_inherited_when_it_is_to_be() {
    let space = space();
    for (view, expected) in [(View::whole(), false), (View::whole().inheritable(), true)] {
        let view = space.view(&view).unwrap();
        let flags = rustix::io::fcntl_getfd(&view).unwrap();
        assert_eq!(!flags.contains(rustix::io::FdFlags::CLOEXEC), expected);
    }
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn a_holder_of_map_fills_its_window() {
    let space = space();
    let view = View::of(8 * PAGE..10 * PAGE)
        .prot(Prot::empty())
        .rights(Rights::MAP);
    let view = space.view(&view).unwrap();
    let page = Mapping::anonymous(PAGE).prot(RW);
    assert_eq!(view.map(&page.at(PAGE)).unwrap(), PAGE);
    assert_eq!(byte(&space, 9 * PAGE), 0);
    refused(
        view.read_at(&mut [0], PAGE),
        libc::EACCES,
        "this descriptor",
    );
    refused(
        view.map(&page.at(2 * PAGE)),
        libc::ERANGE,
        "outside the window",
    );
    let over = view.map(&page.replacing(PAGE));
    refused(over, libc::EPERM, "lacks the right to unmap");
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn seals_hold_for_every_descriptor() {
    let space = space();
    let view = View::whole().prot(RW).rights(Rights::all());
    let view = space.view(&view).unwrap();
    view.seal(Seals::UNMAP).unwrap();
    view.seal(Seals::CHANGE).unwrap();
    let info = space.info().unwrap();
    assert_eq!(info.seals, Seals::UNMAP | Seals::CHANGE);
    let fdinfo = other::fdinfo(process::id(), space.as_raw_fd()).unwrap();
    assert_eq!(fdinfo.seals, info.seals);

    let page = Mapping::anonymous(PAGE).prot(RW);
    refused(
        space.unmap(4 * PAGE, PAGE),
        libc::EPERM,
        "sealed against unmap",
    );
    let over = space.map(&page.replacing(4 * PAGE));
    refused(over, libc::EPERM, "sealed against unmap");
    let protect = space.protect(4 * PAGE, PAGE, Prot::READ);
    refused(protect, libc::EPERM, "sealed against change");
    let advise = space.advise(4 * PAGE, PAGE, Advice::Cold);
    refused(advise, libc::EPERM, "sealed against change");
    space.map(&page.at(0)).unwrap();

    space.seal(Seals::all()).unwrap();
    refused(space.map(&page), libc::EPERM, "sealed against map");
    refused(space.seal(Seals::MAP), libc::EPERM, "sealed against seal");
    assert_eq!(byte(&space, 4 * PAGE), 4);
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn protection_changes_all_or_nothing() {
    let space = space();
    space.protect(5 * PAGE, PAGE, Prot::READ).unwrap();
    refused(space.write_at(b"x", 5 * PAGE), libc::EACCES, "not writable");
    space.write_all_at(b"x", 6 * PAGE).unwrap();
    space.protect(5 * PAGE, 1, Prot::empty()).unwrap();
    refused(
        space.read_at(&mut [0], 5 * PAGE),
        libc::EACCES,
        "not readable",
    );
    space.protect(5 * PAGE, PAGE, RW).unwrap();
    assert_eq!(byte(&space, 5 * PAGE), 5);

    let protect = space.protect(7 * PAGE, 2 * PAGE, Prot::READ);
    refused(protect, libc::ENOMEM, "not all of the range is mapped");
    space.write_all_at(b"x", 7 * PAGE).unwrap();
    refused(space.protect(0, 0, RW), libc::EINVAL, "length is zero");

    let path = format!("/tmp/asfd-protect-{}", process::id());
    fs::write(&path, [0; PAGE as usize]).unwrap();
    let file = fs::File::open(&path).unwrap();
    let addr = space.map(&Mapping::file(&file, PAGE)).unwrap();
    fs::remove_file(&path).unwrap();
    refused(
        space.protect(addr, PAGE, RW),
        libc::EACCES,
        "may not have this",
    );
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn advice_is_taken() {
    let space = AddressSpace::create(CreateFlags::CLOEXEC).unwrap();
    let memory = Mapping::anonymous(2 * PAGE).prot(RW).private().at(0);
    space.map(&memory).unwrap();
    space.advise(0, 2 * PAGE, Advice::PopulateWrite).unwrap();
    assert_eq!(space.info().unwrap().resident_bytes, 2 * PAGE);
    space.write_all_at(b"x", 0).unwrap();
    space.advise(0, PAGE, Advice::DontNeed).unwrap();
    assert_eq!(space.info().unwrap().resident_bytes, PAGE);
    assert_eq!(byte(&space, 0), 0);

    for advice in [Advice::Normal, Advice::Random, Advice::Cold, Advice::Free] {
        space.advise(0, 2 * PAGE, advice).unwrap();
    }
    let hole = space.advise(0, 3 * PAGE, Advice::DontNeed);
    refused(hole, libc::ENOMEM, "not all of the range is mapped");
    refused(
        space.advise(1, PAGE, Advice::Cold),
        libc::EINVAL,
        "page boundary",
    );
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn a_mirror_shows_the_space_as_it_is() {
    let space = space();
    let mut mirror = space.mirror(4 * PAGE, 8 * PAGE as usize, RW).unwrap();
    assert_eq!(space.info().unwrap().mirrors, 1);
    let byte = |mirror: &asfd::Mirror, page: u64| {
        let mut buf = [0];
        mirror.read((page * PAGE) as usize, &mut buf);
        buf[0]
    };
    assert_eq!((byte(&mirror, 0), byte(&mirror, 3)), (4, 7));

    // Both ways, and what comes later.
    mirror.write(0, b"hello");
    let mut buf = [0; 5];
    space.read_exact_at(&mut buf, 4 * PAGE).unwrap();
    assert_eq!(&buf, b"hello");
    let page = Mapping::anonymous(PAGE).prot(RW);
    space.map(&page.at(8 * PAGE)).unwrap();
    mirror.write(4 * PAGE as usize, b"x");
    space.map(&page.replacing(8 * PAGE)).unwrap();
    assert_eq!(byte(&mirror, 4), 0);

    mirror.protect(Prot::READ).unwrap();
    assert_eq!(mirror.prot(), Prot::READ);
    mirror.protect(RW).unwrap();

    // It keeps the space alive, alone.
    let at = mirror.as_ptr() as usize + PAGE as usize;
    assert_eq!(mirror.locate(at), Some(5 * PAGE));
    drop(space);
    assert_eq!(byte(&mirror, 2), 6);
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn a_mirror_of_a_view_ends_with_its_window() {
    let space = space();
    let view = space.view(&View::of(5 * PAGE..7 * PAGE)).unwrap();
    let page = PAGE as usize;
    let mut mirror = view.mirror(PAGE, page, Prot::READ).unwrap();
    let mut buf = [0];
    mirror.read(page - 1, &mut buf);
    assert_eq!(buf, [6]);
    assert_eq!(mirror.locate(mirror.as_ptr() as usize), Some(PAGE));

    refused(mirror.protect(RW), libc::EACCES, "that much access");
    refused(
        view.mirror(PAGE, 2 * page, Prot::READ),
        libc::ERANGE,
        "outside",
    );
    refused(view.mirror(0, page, RW), libc::EACCES, "that much access");
    refused(
        view.mirror(1, page, Prot::READ),
        libc::EINVAL,
        "page boundary",
    );
    refused(
        view.mirror(0, 0, Prot::READ),
        libc::EINVAL,
        "length is zero",
    );
    let end = space.info().unwrap().window.end;
    let past = space.mirror(end, page, Prot::READ);
    refused(past, libc::ENOMEM, "past the end of the space");
}
