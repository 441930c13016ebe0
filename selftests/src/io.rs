// SPDX-License-Identifier: GPL-2.0

//! The bytes of a space by pread, pwrite, their vectored forms, read, write and lseek.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use libc::{PROT_NONE, PROT_READ};
use nix::sys::uio::pwritev;
use nix::unistd::Whence;

use crate::support::files;
use crate::support::{Errno, Map, Result, Space, PAGE};

crate::suite![
    across_mappings,
    vectors,
    holes,
    protection,
    end_of_the_space,
    offsets_out_of_range,
    bad_buffers,
    past_the_end_of_a_file,
    position,
    seek_data_and_hole,
    seek_refusals,
    empty_space,
    large_transfers,
    length_zero,
];

/// Pages: 0 to 2 a file's, 3 anonymous, 4 a hole, 5 anonymous, 6 without access, 7 read-only,
/// 8 anonymous.
fn scenery() -> Space {
    let space = Space::new();
    space.must_map(Map::file(&files::numbered(3, b'0'), 0, 3 * PAGE));
    space.must_map(Map::anon(3 * PAGE, PAGE));
    space.must_map(Map::anon(5 * PAGE, PAGE));
    space.must_map(Map::anon(6 * PAGE, PAGE).prot(PROT_NONE));
    space.must_map(Map::file(&files::numbered(1, b'7'), 7 * PAGE, PAGE).prot(PROT_READ));
    space.must_map(Map::anon(8 * PAGE, PAGE).shared());
    space.put(3 * PAGE, &[b'3'; PAGE as usize]);
    space.put(5 * PAGE, &[b'5'; PAGE as usize]);
    space.put(8 * PAGE, &[b'8'; PAGE as usize]);
    space
}

const N: usize = PAGE as usize;

fn across_mappings() {
    let space = scenery();
    let all = space.get(0, 4 * PAGE);
    for (page, bytes) in all.chunks(N).enumerate() {
        assert!(
            bytes.iter().all(|byte| *byte == b'0' + page as u8),
            "page {page}"
        );
    }
    let pattern: Vec<u8> = (0..2 * N + 100).map(|i| i as u8 ^ (i >> 8) as u8).collect();
    space.put(PAGE + 33, &pattern);
    assert_eq!(space.get(PAGE + 33, pattern.len() as u64), pattern);
    assert_eq!(space.byte(PAGE + 32), b'1');
    assert_eq!(space.byte(PAGE + 33 + pattern.len() as u64), b'3');
    for len in [1, 2, 3, 7, 8, 9, 63, 64, 65] {
        // Every way to lie over a page's boundary.
        for before in 0..=len {
            let at = 2 * PAGE - before;
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + before) as u8).collect();
            space.put(at, &bytes);
            assert_eq!(space.get(at, len), bytes, "{len} bytes at {at:#x}");
        }
    }
}

fn vectors() {
    let space = scenery();
    let (mut a, mut b, mut c) = ([0; 10], [0; N], [0; 3]);
    let mut buffers = [&mut a[..], &mut [], &mut b, &mut c].map(IoSliceMut::new);
    assert_eq!(space.readv_at(PAGE - 5, &mut buffers), Ok(10 + N + 3));
    assert_eq!(&a, b"0000011111");
    assert_eq!((b[0], b[N - 6], b[N - 5], c), (b'1', b'1', b'2', *b"222"));
    let parts = [&b"ab"[..], b"", b"cdef"].map(IoSlice::new);
    assert_eq!(pwritev(&space, &parts, 3 * PAGE as i64 - 3), Ok(6));
    assert_eq!(space.get(3 * PAGE - 4, 8), b"2abcdef3");
    // Short at a hole in the middle of a vector.
    let (mut a, mut b) = ([0; 10], [b'?'; 10]);
    let mut buffers = [&mut a[..], &mut b].map(IoSliceMut::new);
    assert_eq!(space.readv_at(4 * PAGE - 13, &mut buffers), Ok(13));
    assert_eq!((&a, &b), (b"3333333333", b"333???????"));
    let parts = [&[b'x'; 10][..], &[b'y'; 10]].map(IoSlice::new);
    assert_eq!(pwritev(&space, &parts, 4 * PAGE as i64 - 13), Ok(13));
    assert_eq!(space.get(4 * PAGE - 14, 14), b"3xxxxxxxxxxyyy");
}

fn read(space: &Space, at: u64, len: usize) -> Result<usize> {
    let mut buffer = vec![0xee; len];
    let result = space.read_at(at, &mut buffer);
    // What was not read was not touched.
    assert!(buffer[result.unwrap_or(0)..]
        .iter()
        .all(|byte| *byte == 0xee));
    result
}

fn holes() {
    let space = scenery();
    for (at, len) in [
        (4 * PAGE, 1),
        (4 * PAGE + 9, N),
        (5 * PAGE - 1, 2),
        (9 * PAGE, 1),
        (1 << 40, 8),
    ] {
        assert_eq!(read(&space, at, len), Err(Errno::EIO), "read at {at:#x}");
        assert_eq!(
            space.write_at(at, &vec![1; len]),
            Err(Errno::EIO),
            "write at {at:#x}"
        );
    }
    for before in [1, 100, N, 2 * N + 1] {
        let at = 4 * PAGE - before as u64;
        assert_eq!(read(&space, at, before), Ok(before), "up to the hole");
        assert_eq!(read(&space, at, before + 1), Ok(before), "into the hole");
        assert_eq!(
            read(&space, at, before + 3 * N),
            Ok(before),
            "over the hole"
        );
        assert_eq!(space.write_at(at, &vec![b'w'; before + 3 * N]), Ok(before));
    }
    assert_eq!(
        space.byte(5 * PAGE),
        b'5',
        "behind the hole nothing was written"
    );
}

fn protection() {
    let space = scenery();
    assert_eq!(read(&space, 6 * PAGE, 1), Err(Errno::EACCES), "PROT_NONE");
    assert_eq!(
        space.write_at(6 * PAGE, b"x"),
        Err(Errno::EACCES),
        "PROT_NONE"
    );
    assert_eq!(
        space.write_at(7 * PAGE, b"x"),
        Err(Errno::EACCES),
        "PROT_READ"
    );
    assert_eq!(space.byte(7 * PAGE), b'7');
    assert_eq!(read(&space, 6 * PAGE - 10, 20), Ok(10), "up to it");
    assert_eq!(
        space.write_at(6 * PAGE - 10, &[b'w'; 20]),
        Ok(10),
        "up to it"
    );
    assert_eq!(read(&space, 7 * PAGE, 2 * N), Ok(2 * N), "reading on");
    // A read-only mapping of a file that may be written, and private ones.
    for map in [
        Map::file(&files::numbered(1, b'r'), 16 * PAGE, PAGE),
        Map::anon(16 * PAGE, PAGE),
    ] {
        space.must_map(map.prot(PROT_READ).replace());
        assert_eq!(
            space.write_at(16 * PAGE, b"x"),
            Err(Errno::EACCES),
            "{map:x?}"
        );
        space.must_map(map.prot(PROT_READ).private().replace());
        assert_eq!(
            space.write_at(16 * PAGE, b"x"),
            Err(Errno::EACCES),
            "{map:x?}"
        );
    }
}

fn end_of_the_space() {
    let space = scenery();
    let end = space.end();
    space.must_map(Map::anon(end - PAGE, PAGE));
    for beyond in [0, 1, PAGE, 1 << 30] {
        assert_eq!(read(&space, end + beyond, 8), Ok(0), "end + {beyond:#x}");
        assert_eq!(
            space.write_at(end + beyond, b"x"),
            Err(Errno::ENOSPC),
            "end + {beyond:#x}"
        );
    }
    assert_eq!(read(&space, end - 3, 8), Ok(3), "up to the end");
    assert_eq!(space.write_at(end - 3, b"12345"), Ok(3), "up to the end");
    assert_eq!(space.get(end - 4, 4), b"\x00123");
}

fn offsets_out_of_range() {
    let space = scenery();
    for at in [i64::MAX as u64 - 8, i64::MAX as u64 - PAGE] {
        assert_eq!(read(&space, at, 8), Ok(0), "{at:#x}");
        assert_eq!(space.write_at(at, b"x"), Err(Errno::ENOSPC), "{at:#x}");
    }
    // Beyond what a file offset can say, as for any file.
    assert_eq!(read(&space, i64::MAX as u64, 8), Err(Errno::EINVAL));
    for at in [-1i64, -(PAGE as i64), i64::MIN] {
        assert_eq!(read(&space, at as u64, 8), Err(Errno::EINVAL), "{at}");
        assert_eq!(space.write_at(at as u64, b"x"), Err(Errno::EINVAL), "{at}");
    }
}

/// Two pages, the second of which is not there.
fn half_a_buffer() -> *mut libc::c_void {
    let prot = PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: New memory, of which the second half goes away again.
    unsafe {
        let start = libc::mmap(std::ptr::null_mut(), 2 * N, prot, flags, -1, 0);
        assert_ne!(start, libc::MAP_FAILED);
        assert_eq!(libc::munmap(start.add(N), N), 0);
        start
    }
}

fn bad_buffers() {
    let space = scenery();
    let half = half_a_buffer();
    let pread = |buffer: *mut libc::c_void, len, at: u64| {
        // SAFETY: The kernel checks the buffer, which nothing else uses.
        Errno::result(unsafe { libc::pread(space.as_raw_fd(), buffer, len, at as i64) })
    };
    let pwrite = |buffer: *mut libc::c_void, len, at: u64| {
        // SAFETY: As above.
        Errno::result(unsafe { libc::pwrite(space.as_raw_fd(), buffer, len, at as i64) })
    };
    let gone = half.wrapping_byte_add(N);
    for buffer in [std::ptr::null_mut(), gone, usize::MAX as *mut libc::c_void] {
        assert_eq!(pread(buffer, 8, 0), Err(Errno::EFAULT), "{buffer:?}");
        assert_eq!(pwrite(buffer, 8, 0), Err(Errno::EFAULT), "{buffer:?}");
    }
    assert_eq!(space.byte(0), b'0');
    // Half of it is there: that half at most, or the error.
    let tail = half.wrapping_byte_add(N - 100);
    for answer in [pread(tail, 200, PAGE), pwrite(tail, 200, 3 * PAGE)] {
        assert!(
            matches!(answer, Ok(0..=100) | Err(Errno::EFAULT)),
            "{answer:?}"
        );
    }
    assert_eq!(
        space.get(3 * PAGE + 100, 100),
        [b'3'; 100],
        "what could not be read is not written"
    );
}

fn past_the_end_of_a_file() {
    let space = Space::new();
    let file = files::numbered(2, b'a');
    space.must_map(Map::file(&file, 0, 6 * PAGE));
    space.must_map(
        Map::file(&file, 8 * PAGE, PAGE)
            .offset(100 * PAGE)
            .private(),
    );
    for at in [2 * PAGE, 3 * PAGE + 5, 6 * PAGE - 1, 8 * PAGE] {
        assert_eq!(read(&space, at, 1), Err(Errno::EIO), "read at {at:#x}");
        assert_eq!(
            space.write_at(at, b"x"),
            Err(Errno::EIO),
            "write at {at:#x}"
        );
    }
    assert_eq!(read(&space, PAGE, 2 * N), Ok(N), "up to it");
    assert_eq!(space.write_at(2 * PAGE - 7, &[1; 20]), Ok(7), "up to it");
    assert_eq!(
        file.metadata().expect("fstat").len(),
        2 * PAGE,
        "the file did not grow"
    );
}

fn position() {
    let space = scenery();
    let mut file = File::from(OwnedFd::from(space.dup()));
    let mut bytes = [0; 6];
    assert_eq!(file.seek(SeekFrom::Start(PAGE - 3)).unwrap(), PAGE - 3);
    file.read_exact(&mut bytes).expect("read");
    assert_eq!(&bytes, b"000111");
    assert_eq!(file.stream_position().unwrap(), PAGE + 3);
    file.write_all(b"new").expect("write");
    assert_eq!(file.seek(SeekFrom::Current(-4)).unwrap(), PAGE + 2);
    file.read_exact(&mut bytes[..5]).expect("read");
    assert_eq!(&bytes[..5], b"1new1");
    assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), space.end());
    assert_eq!(file.read(&mut bytes).expect("read at the end"), 0);
    let full = file.write(b"x").unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    // A short transfer moves by what was transferred, a failed one not at all.
    file.seek(SeekFrom::Start(4 * PAGE - 2)).unwrap();
    assert_eq!(file.read(&mut bytes).expect("short"), 2);
    assert_eq!(
        file.read(&mut bytes).unwrap_err().raw_os_error(),
        Some(libc::EIO)
    );
    assert_eq!(file.stream_position().unwrap(), 4 * PAGE);
    // pread leaves the position alone; a duplicate shares it.
    space.get(0, 100);
    assert_eq!(space.seek(0, Whence::SeekCur), Ok(4 * PAGE));
}

fn seek_data_and_hole() {
    let space = scenery();
    let end = space.end();
    let seek = |at, whence| space.seek(at, whence);
    let data = [
        (0, Ok(0)),
        (1, Ok(1)),
        (4 * PAGE - 1, Ok(4 * PAGE - 1)),
        (4 * PAGE, Ok(5 * PAGE)),
        (5 * PAGE - 1, Ok(5 * PAGE)),
        // Without access it is a mapping all the same.
        (6 * PAGE, Ok(6 * PAGE)),
        (9 * PAGE, Err(Errno::ENXIO)),
        (end - 1, Err(Errno::ENXIO)),
        (end, Err(Errno::ENXIO)),
    ];
    for (at, expected) in data {
        assert_eq!(seek(at, Whence::SeekData), expected, "data at {at:#x}");
    }
    let hole = [
        (0, Ok(4 * PAGE)),
        (3 * PAGE + 1, Ok(4 * PAGE)),
        (4 * PAGE, Ok(4 * PAGE)),
        (4 * PAGE + 7, Ok(4 * PAGE + 7)),
        (5 * PAGE, Ok(9 * PAGE)),
        (9 * PAGE, Ok(9 * PAGE)),
        (end - 1, Ok(end - 1)),
        (end, Err(Errno::ENXIO)),
    ];
    for (at, expected) in hole {
        assert_eq!(seek(at, Whence::SeekHole), expected, "hole at {at:#x}");
    }
    // Behind a mapping that reaches the end, the end itself is the hole, as in a file.
    space.must_map(Map::anon(end - 2 * PAGE, 2 * PAGE));
    assert_eq!(seek(end - PAGE, Whence::SeekHole), Ok(end));
    assert_eq!(seek(9 * PAGE, Whence::SeekData), Ok(end - 2 * PAGE));
    assert_eq!(
        seek(0, Whence::SeekCur),
        Ok(end - 2 * PAGE),
        "the position follows"
    );
}

fn seek_refusals() {
    let space = scenery();
    assert_eq!(space.seek(PAGE, Whence::SeekSet), Ok(PAGE));
    for (at, whence) in [
        (-1i64, Whence::SeekSet),
        (-2 * PAGE as i64, Whence::SeekCur),
        (i64::MIN, Whence::SeekEnd),
    ] {
        assert_eq!(
            space.seek(at as u64, whence),
            Err(Errno::EINVAL),
            "{at} {whence:?}"
        );
    }
    for whence in [Whence::SeekData, Whence::SeekHole] {
        for at in [-1i64, i64::MIN, i64::MAX] {
            let refused = space.seek(at as u64, whence);
            assert!(
                matches!(refused, Err(Errno::ENXIO | Errno::EINVAL)),
                "{at}: {refused:?}"
            );
        }
    }
    // SAFETY: Takes no pointer.
    let unknown = Errno::result(unsafe { libc::lseek(space.as_raw_fd(), 0, 99) });
    assert_eq!(unknown, Err(Errno::EINVAL));
    assert_eq!(
        space.seek(0, Whence::SeekCur),
        Ok(PAGE),
        "the position stayed"
    );
}

fn empty_space() {
    let space = Space::new();
    assert_eq!(space.seek(0, Whence::SeekData), Err(Errno::ENXIO));
    assert_eq!(space.seek(0, Whence::SeekHole), Ok(0));
    assert_eq!(space.seek(5, Whence::SeekHole), Ok(5));
    assert_eq!(read(&space, 0, 10), Err(Errno::EIO));
    assert_eq!(space.write_at(0, b"x"), Err(Errno::EIO));
}

fn large_transfers() {
    const LEN: usize = 5 << 20;
    let space = Space::new();
    space.must_map(Map::anon(0, LEN as u64));
    let mut random = fastrand::Rng::with_seed(1);
    let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
        .take(LEN - 5)
        .collect();
    let mut done = 0;
    while done < bytes.len() {
        let wrote = space
            .write_at(done as u64 + 3, &bytes[done..])
            .expect("pwrite");
        assert_ne!(wrote, 0);
        done += wrote;
    }
    let mut back = vec![0; bytes.len()];
    let mut done = 0;
    while done < back.len() {
        let got = space
            .read_at(done as u64 + 3, &mut back[done..])
            .expect("pread");
        assert_ne!(got, 0);
        done += got;
    }
    assert!(bytes == back);
}

fn length_zero() {
    let space = scenery();
    for at in [0, 4 * PAGE, 6 * PAGE, space.end()] {
        assert_eq!(space.read_at(at, &mut []), Ok(0), "{at:#x}");
        assert_eq!(space.write_at(at, &[]), Ok(0), "{at:#x}");
    }
}
