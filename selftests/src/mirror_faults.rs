// SPDX-License-Identifier: GPL-2.0

//! A walk over a mirror takes no more faults than one over an ordinary mapping of the same file,
//! and brings no more into memory.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use libc::{MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_RANDOM, PROT_READ, PROT_WRITE};

use crate::harness::skip;
use crate::note;
use crate::support::files::{self, drop_caches, Ext4, TempFile};
use crate::support::mirror::{faults, mirror, mirror_with, Area};
use crate::support::{Map, Space, PAGE};

crate::suite![
    as_few_faults_as_a_mapping,
    as_few_faults_of_memory,
    present_pages_are_mapped_nearby,
    populated_means_no_faults,
    touches_what_is_touched_only,
    neighbours_are_not_made_present,
    cached_files_are_not_read_further,
];

const MIB: u64 = 1 << 20;
const RW: i32 = PROT_READ | PROT_WRITE;
/// What our own code and stack may take meanwhile.
const SLACK: u64 = 8;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Pass {
    Load,
    Store,
    LoadAll,
    LoadThenStore,
    Backwards,
}

impl Pass {
    const ALL: [Pass; 5] = [
        Pass::Load,
        Pass::Store,
        Pass::LoadAll,
        Pass::LoadThenStore,
        Pass::Backwards,
    ];

    /// The faults that it takes. What is stored is what was there.
    fn over(self, area: &Area) -> u64 {
        let pages = area.len() / PAGE;
        let load = |page: u64| assert_eq!(area.load(page * PAGE + 1), Ok(byte_of(page)));
        let store =
            |page: u64| assert_eq!(area.store(page * PAGE + 1, byte_of(page)), Ok(()), "{page}");
        let before = faults();
        match self {
            Pass::Load => (0..pages).for_each(load),
            Pass::Store => (0..pages).for_each(store),
            Pass::LoadAll => {
                (0..pages).for_each(load);
                (0..pages).for_each(store);
            }
            Pass::LoadThenStore => (0..pages).for_each(|page| {
                load(page);
                store(page);
            }),
            Pass::Backwards => (0..pages).rev().for_each(load),
        }
        faults() - before
    }
}

fn byte_of(page: u64) -> u8 {
    (page % 249) as u8 + 3
}

fn fill(file: &File, len: u64) {
    use std::os::unix::fs::FileExt;
    for page in 0..len / PAGE {
        let bytes = [byte_of(page); PAGE as usize];
        file.write_all_at(&bytes, page * PAGE).expect("write");
    }
}

/// Of a mapping as it is, of one that was used before, and of one that was written before.
fn compare(map: Map, len: u64, plain: &dyn Fn() -> Area) {
    // Our own code and stack.
    for pass in Pass::ALL {
        pass.over(&plain());
    }
    let mut more = Vec::new();
    for pass in Pass::ALL {
        let expected = pass.over(&plain());
        for present in [None, Some(false), Some(true)] {
            let space = Space::new();
            space.must_map(map);
            match present {
                None => (),
                Some(false) => drop(space.get(0, len)),
                Some(true) => {
                    (0..len / PAGE).for_each(|page| space.put(page * PAGE + 1, &[byte_of(page)]))
                }
            }
            let area = mirror(&space, 0, len);
            let taken = pass.over(&area);
            if taken > expected + SLACK {
                more.push(format!(
                    "{pass:?}, present: {present:?}: {taken} and not {expected}"
                ));
            }
            // A second walk takes none.
            let again = Pass::Load.over(&area);
            assert!(again <= SLACK, "{pass:?}: {again} faults of what is there");
        }
    }
    assert!(more.is_empty(), "more faults: {more:#?}");
}

fn as_few_faults_as_a_mapping() {
    let len = 16 * MIB;
    let file = files::memfd(len);
    fill(&file, len);
    compare(Map::file(&file, 0, len), len, &|| {
        Area::of_file(&file, len, RW)
    });
}

/// A private mapping of a file that is only read.
fn as_few_faults_of_memory() {
    let len = 16 * MIB;
    let file = files::memfd(len);
    fill(&file, len);
    let space = Space::new();
    space.must_map(Map::file(&file, 0, len).private());
    let plain = || {
        let flags = libc::MAP_PRIVATE;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        Area::mmap(0, len, PROT_READ, flags, fd, 0).expect("mmap")
    };
    Pass::Load.over(&plain());
    let expected = Pass::Load.over(&plain());
    let taken = Pass::Load.over(&mirror_with(&space, 0, len, PROT_READ));
    assert!(taken <= expected + SLACK, "{taken} and not {expected}");
}

/// Anonymous memory that is present in the space: an ordinary process would take no fault at all,
/// a mirror takes one for several pages.
fn present_pages_are_mapped_nearby() {
    let len = 4 * MIB;
    for map in [Map::anon(0, len), Map::anon(0, len).shared()] {
        let space = Space::new();
        space.must_map(map);
        for page in 0..len / PAGE {
            space.put(page * PAGE + 1, &[byte_of(page)]);
        }
        for pass in Pass::ALL {
            let area = mirror(&space, 0, len);
            let taken = pass.over(&area);
            let pages = len / PAGE;
            assert!(taken <= pages / 8 + SLACK, "{pass:?}: {taken} faults");
        }
    }
}

fn populated_means_no_faults() {
    let len = 4 * MIB;
    let file = files::memfd(len);
    fill(&file, len);
    let space = Space::new();
    space.must_map(Map::file(&file, 0, len));
    Pass::LoadAll.over(&Area::of_file(&file, len, RW));
    let by_advice = |advice| {
        let area = mirror(&space, 0, len);
        area.advise(0, len, advice).expect("madvise");
        area
    };
    for (what, area, pass) in [
        ("POPULATE_READ", by_advice(MADV_POPULATE_READ), Pass::Load),
        (
            "POPULATE_WRITE",
            by_advice(MADV_POPULATE_WRITE),
            Pass::LoadAll,
        ),
    ] {
        let taken = pass.over(&area);
        assert!(taken <= SLACK, "{what}: {taken} faults");
    }
}

/// Pages of a sparse file that come into being are those that are accessed, as with a mapping.
fn touches_what_is_touched_only() {
    let len = 4 * MIB;
    for store in [false, true] {
        for stride in [1, 3, 16, 100] {
            let walk = |area: &Area| {
                for at in (0..len).step_by((stride * PAGE) as usize) {
                    if store {
                        assert_eq!(area.store(at, 0), Ok(()));
                    } else {
                        assert_eq!(area.load(at), Ok(0));
                    }
                }
            };
            let (file, other) = (files::memfd(len), files::memfd(len));
            walk(&Area::of_file(&file, len, RW));
            let space = Space::new();
            space.must_map(Map::file(&other, 0, len));
            walk(&mirror(&space, 0, len));
            let blocks = |file: &File| file.metadata().expect("stat").blocks();
            assert_eq!(
                blocks(&other),
                blocks(&file),
                "stride {stride}, store: {store}"
            );
            // Anonymous memory, as the space has it.
            let space = Space::new();
            space.must_map(Map::anon(0, len));
            walk(&mirror(&space, 0, len));
            let touched = (len / PAGE).div_ceil(stride) * PAGE;
            assert_eq!(space.info().resident_bytes, touched, "stride {stride}");
        }
    }
}

/// A mirror's fault finds what the space has: what it has not stays absent.
fn neighbours_are_not_made_present() {
    let len = 4 * MIB;
    let space = Space::new();
    space.must_map(Map::anon(0, len));
    // Every other page.
    for page in (0..len / PAGE).step_by(2) {
        space.put(page * PAGE, &[1]);
    }
    let resident = space.info().resident_bytes;
    assert_eq!(resident, len / 2);
    let area = mirror(&space, 0, len);
    for page in (0..len / PAGE).step_by(2) {
        assert_eq!(area.load(page * PAGE), Ok(1));
        assert_eq!(area.store(page * PAGE, 2), Ok(()));
    }
    assert_eq!(space.info().resident_bytes, resident);
    // A load of the others has its price, and no more than that.
    assert_eq!(area.load(PAGE), Ok(0));
    assert!(space.info().resident_bytes <= resident + PAGE);
    // Nor does the mirror need the whole: the space can be paged out, and is as big as it is.
    drop(area);
    assert!(space.info().resident_bytes <= resident + PAGE);
}

/// Of a file that is not in the page cache, a mirror reads as much as a mapping.
fn cached_files_are_not_read_further() {
    let ext4 = Ext4::mount().unwrap_or_else(|why| skip(&why));
    let len = 4 * MIB;
    let temp = TempFile::new(ext4.path(), len);
    fill(&temp.file, len);
    temp.file.sync_all().expect("fsync");
    let cached = |file: &File| {
        let area = Area::of_file(file, len, PROT_READ);
        let mut pages = vec![0u8; (len / PAGE) as usize];
        // SAFETY: A byte for each page of the area.
        let done = unsafe { libc::mincore(area.pointer(0), len as usize, pages.as_mut_ptr()) };
        assert_eq!(done, 0);
        pages.iter().filter(|page| **page & 1 == 1).count()
    };
    let access = |area: &Area| {
        for at in [0, MIB, 2 * MIB + 7 * PAGE] {
            assert_eq!(area.load(at), Ok(byte_of(at / PAGE)));
        }
    };
    for random in [false, true] {
        drop_caches();
        let area = Area::of_file(&temp.file, len, RW);
        if random {
            area.advise(0, len, MADV_RANDOM).expect("RANDOM");
        }
        access(&area);
        drop(area);
        let expected = cached(&temp.file);
        drop_caches();
        let before = cached(&temp.file);
        let space = Space::new();
        space.must_map(Map::file(&temp.file, 0, len));
        if random {
            space.advise(0, len, MADV_RANDOM).expect("RANDOM");
        }
        access(&mirror(&space, 0, len));
        let now = cached(&temp.file);
        note!("random: {random}: {now} pages cached, {expected} by a mapping, {before} before");
        assert!(now <= expected, "{now} pages, {expected} by a mapping");
    }
}
