// SPDX-License-Identifier: GPL-2.0

//! address_space_create, and what a fresh space says of itself.

use std::collections::HashSet;
use std::os::fd::AsRawFd;

use asfd::sys::*;
use nix::fcntl::{fcntl, FcntlArg, FdFlag, OFlag};
use nix::sys::resource::{getrlimit, setrlimit, Resource};

use crate::support::space::errno;
use crate::support::{Errno, Map, Space, PAGE};

crate::suite![
    unknown_flags_are_refused,
    cloexec_is_a_choice,
    ids_are_unique,
    info_of_a_fresh_space,
    info_checks_its_pointer,
    fdinfo_of_a_fresh_space,
    link_names_the_kind,
    descriptor_limit_holds,
    unknown_ioctls_are_refused,
];

const ALL_RIGHTS: u32 = 0x7f;

fn unknown_flags_are_refused() {
    for bit in 1..32 {
        let flags = [1 << bit, 1 << bit | ADDRESS_SPACE_CLOEXEC];
        for flags in flags {
            assert_eq!(
                Space::create(flags).err(),
                Some(Errno::EINVAL),
                "flags {flags:#x}"
            );
        }
    }
}

fn cloexec_is_a_choice() {
    for (flags, expected) in [
        (0, FdFlag::empty()),
        (ADDRESS_SPACE_CLOEXEC, FdFlag::FD_CLOEXEC),
    ] {
        let space = Space::create(flags).expect("address_space_create");
        let have = fcntl(&space, FcntlArg::F_GETFD).map(FdFlag::from_bits_retain);
        assert_eq!(have, Ok(expected), "flags {flags:#x}");
        let mode = fcntl(&space, FcntlArg::F_GETFL)
            .map(OFlag::from_bits_retain)
            .expect("F_GETFL");
        assert_eq!(mode & OFlag::O_ACCMODE, OFlag::O_RDWR);
    }
}

fn ids_are_unique() {
    let mut seen = HashSet::new();
    let mut open = Vec::new();
    for round in 0..100 {
        let space = Space::new();
        assert!(
            seen.insert(space.info().id),
            "id {} came twice",
            space.info().id
        );
        assert_eq!(space.dup().info().id, space.info().id);
        // Ids of spaces that are gone are not used again.
        if round % 2 == 0 {
            open.push(space);
        }
    }
}

fn info_of_a_fresh_space() {
    let info = Space::new().info();
    assert!(
        info.len >= 1 << 46 && info.len % PAGE == 0,
        "len {:#x}",
        info.len
    );
    let expected = address_space_info {
        id: info.id,
        len: info.len,
        rights: ALL_RIGHTS,
        prot: (libc::PROT_READ | libc::PROT_WRITE) as u32,
        ..Default::default()
    };
    assert_eq!(info, expected);
}

fn info_checks_its_pointer() {
    let space = Space::new();
    for pointer in [0usize, 8, 1 << 63, usize::MAX - 8] {
        // SAFETY: Nothing is mapped at these addresses.
        let answer = unsafe {
            ioctl(
                space.as_raw_fd(),
                ADDRESS_SPACE_IOC_INFO,
                pointer as *mut address_space_info,
            )
        };
        assert_eq!(answer.map_err(errno), Err(Errno::EFAULT), "{pointer:#x}");
    }
}

fn fdinfo_of_a_fresh_space() {
    let space = Space::new();
    let text = space.fdinfo();
    let expected = [
        format!("as_id:\t{}", space.info().id),
        format!("as_window:\t0-{:x}", space.end()),
        "as_rights:\tmap,unmap,change,seal,view,query,kvm".into(),
        "as_prot:\trw".into(),
        "as_seals:\t-".into(),
        "as_mappings:\t0".into(),
        "as_mapped:\t0 B".into(),
        "as_mirrors:\t0".into(),
        "as_windows:\t0".into(),
    ];
    let ours: Vec<&str> = text.lines().filter(|l| l.starts_with("as_")).collect();
    assert_eq!(ours, expected, "of {text}");
    assert!(text.starts_with("pos:\t0\nflags:\t"), "{text}");
}

fn link_names_the_kind() {
    let space = Space::new();
    let link = std::fs::read_link(format!("/proc/self/fd/{}", space.as_raw_fd())).expect("link");
    assert_eq!(link.to_str(), Some("anon_inode:[address_space]"));
}

fn descriptor_limit_holds() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    setrlimit(Resource::RLIMIT_NOFILE, 16, hard).expect("setrlimit");
    let mut open = Vec::new();
    let refused = loop {
        match Space::create(0) {
            Ok(space) => open.push(space),
            Err(e) => break e,
        }
        assert!(open.len() <= 16);
    };
    assert_eq!(refused, Errno::EMFILE);
    open.pop();
    open.push(Space::create(0).expect("there is room for one again"));
}

/// What is not an ioctl of an asfd is answered by nothing else either.
fn unknown_ioctls_are_refused() {
    let space = Space::new();
    space.must_map(Map::anon(0, PAGE));
    let magic = ADDRESS_SPACE_IOC_MAGIC << 8;
    let mut requests = vec![
        // The right number with a wrong size or direction is another request.
        ADDRESS_SPACE_IOC_INFO & !(0x3fff << 16) | 8 << 16,
        ADDRESS_SPACE_IOC_INFO ^ 3 << 30,
        libc::FIONREAD as u32,
    ];
    requests.extend((5..=0xff).map(|number| magic | number));
    for request in requests {
        let mut argument = [0u64; 512];
        // SAFETY: Longer than what any request could take.
        let answer = unsafe { ioctl(space.as_raw_fd(), request, argument.as_mut_ptr()) };
        assert_eq!(answer.map_err(errno), Err(Errno::ENOTTY), "{request:#x}");
        assert_eq!(argument, [0; 512], "{request:#x}");
    }
}
