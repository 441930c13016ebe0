// SPDX-License-Identifier: GPL-2.0

//! Page tables of the guest that lie in a window, walked by KVM: what it reads and writes there
//! is the space's.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use asfd::sys::KVM_MEM_READONLY;
use libc::{PROT_NONE, PROT_READ};

use crate::support::bench::{force_emulation, FORCED};
use crate::support::guest::{code_page, window, word, Args, Exit, Kicker};
use crate::support::mapped::Mapped;
use crate::support::rights::RW;
use crate::support::system::{scaled, RaiseAtEnd};
use crate::support::walker::*;
use crate::support::{files, Map, Space, PAGE};

crate::suite![
    tables_of_every_kind(600),
    replaced_while_walked,
    windows_replaced,
    no_update_is_lost,
    directory_pointers,
];

/// What is done at an address that the table maps.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Use {
    Load,
    Store,
    Update,
    /// KVM_TRANSLATE.
    Translate,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Table {
    File,
    Private,
    Anonymous,
    /// In a read-only window: KVM leaves the bits as they are.
    Rom,
    /// Mapped read-only: KVM can walk it where it has no bit to set.
    Protected,
    NoAccess,
    PastTheEnd,
    Hole,
}

use Table::*;
const TABLES: [Table; 8] = [
    File, Private, Anonymous, Rom, Protected, NoAccess, PastTheEnd, Hole,
];

fn place(walker: &Walker, table: Table, content: &[u8]) {
    let file = files::memfd(PAGE);
    let short = files::memfd(0);
    file.write_all_at(content, 0).expect("write");
    let map = match table {
        File | Rom => Map::file(&file, TABLE_OFFSET, PAGE),
        Private => Map::file(&file, TABLE_OFFSET, PAGE).private(),
        Protected => Map::file(&file, TABLE_OFFSET, PAGE).prot(PROT_READ),
        NoAccess => Map::file(&file, TABLE_OFFSET, PAGE).prot(PROT_NONE),
        Anonymous => Map::anon(TABLE_OFFSET, PAGE),
        PastTheEnd => Map::file(&short, TABLE_OFFSET, PAGE),
        Hole => return,
    };
    walker.space.must_map(map);
    if table == Anonymous {
        walker.space.put(TABLE_OFFSET, content);
    }
}

fn tables_of_every_kind() {
    let _forced = force_emulation();
    let flags = |table| if table == Rom { KVM_MEM_READONLY } else { 0 };
    for format in [Format::Legacy, Format::Extended] {
        for table in TABLES {
            for use_ in [Use::Load, Use::Store, Use::Update, Use::Translate] {
                let ways = [(false, false), (false, true), (true, false), (true, true)];
                // Nothing is run for a translation.
                let ways = ways
                    .iter()
                    .filter(|(forced, _)| *forced || use_ != Use::Translate);
                for &(forced, set) in ways {
                    let mut walker = Walker::new(format, flags(table));
                    let bits = if set { ACCESSED | DIRTY } else { 0 };
                    place(&walker, table, &format.table(ENTRY | bits));
                    check(&mut walker, table, use_, forced, bits);
                }
            }
        }
    }
}

fn check(walker: &mut Walker, table: Table, use_: Use, forced: bool, bits: u64) {
    let what = format!(
        "{:?}, {table:?}, {use_:?}, forced {forced}, {bits:#x}",
        walker.format
    );
    let page = 2u64;
    let at = VIRTUAL + page * PAGE;
    let program = |code: [u8; 2]| match forced {
        true => [&FORCED[..], &code, &[0xf4]].concat(),
        false => [&code[..], &[0xf4]].concat(),
    };
    let args = Args {
        ebx: at as u32,
        eax: 0x1122_3344,
        ..Default::default()
    };
    let exit = match use_ {
        Use::Load => walker.run(&program([0x8b, 0x03]), args),
        Use::Store => walker.run(&program([0x89, 0x03]), args),
        Use::Update => walker.run(&program([0xff, 0x03]), args),
        Use::Translate => {
            let found = walker.vcpu.fd.translate_gva(at).expect("KVM_TRANSLATE");
            match found.valid {
                0 => Exit::Other("not mapped".into()),
                _ => Exit::Done(found.physical_address as u32),
            }
        }
    };
    walker.untouched();
    let works = match table {
        File | Private | Anonymous | Rom => true,
        Protected => bits != 0,
        NoAccess | PastTheEnd | Hole => false,
    };
    if !works {
        // A page fault for which the guest has no handler; or the CPU itself cannot walk on.
        let fault = exit.is_fault_at(TABLE) && !forced && matches!(table, NoAccess | PastTheEnd);
        assert!(fault || matches!(exit, Exit::Other(_)), "{what}: {exit:x?}");
        if table == Protected {
            let entry = walker.entry_at(TABLE_OFFSET + page * walker.format.width() as u64);
            assert_eq!(entry, (DATA + page * PAGE) | ENTRY | bits, "{what}");
        }
        return;
    }
    let old = word(b'2');
    let expected = match use_ {
        Use::Load => Exit::Done(old),
        Use::Store | Use::Update => Exit::Done(0x1122_3344),
        Use::Translate => Exit::Done((DATA + page * PAGE) as u32),
    };
    assert_eq!(exit, expected, "{what}");
    let new = match use_ {
        Use::Load | Use::Translate => old,
        Use::Store => 0x1122_3344,
        Use::Update => old + 1,
    };
    let data = walker.space.get(DATA_OFFSET + page * PAGE, 4);
    assert_eq!(data, new.to_le_bytes(), "{what}");
    let entry = walker.entry_at(TABLE_OFFSET + page * walker.format.width() as u64);
    let set = match use_ {
        _ if table == Rom => 0,
        Use::Load | Use::Translate => ACCESSED,
        Use::Store | Use::Update => ACCESSED | DIRTY,
    };
    assert_eq!(entry, (DATA + page * PAGE) | ENTRY | bits | set, "{what}");
    let directory = walker.entry_at(DIRECTORIES + walker.format.directory_entry());
    assert_eq!(directory & ACCESSED, ACCESSED, "the directory's, {what}");
}

/// Tables replaced under a guest that KVM emulates, again and again: the next access is by the new
/// one, and the old one is not written any more.
fn replaced_while_walked() {
    let _forced = force_emulation();
    for format in [Format::Legacy, Format::Extended] {
        let mut walker = Walker::new(format, 0);
        let entry = |n: u64| format.bytes((DATA + n * PAGE) | ENTRY);
        let table = |n: u64| {
            let file = files::memfd(PAGE);
            file.write_all_at(&entry(n), 0).expect("write");
            file
        };
        let read = |file: &File| {
            let mut found = vec![0; format.width()];
            file.read_exact_at(&mut found, 0).expect("read");
            found
        };
        let mut old = table(0);
        walker.space.must_map(Map::file(&old, TABLE_OFFSET, PAGE));
        let space = walker.space.dup();
        // 1: mov eax,[ebx]; mov [ebx+4],ecx (both emulated); cmp eax,edx; je 1b; hlt
        let program = [
            &FORCED[..],
            &[0x8b, 0x03],
            &FORCED,
            &[0x89, 0x4b, 0x04, 0x39, 0xd0, 0x74, 0xed, 0xf4],
        ]
        .concat();
        for round in 0..100u64 {
            let (before, after) = (round % 4, (round + 1) % 4);
            let new = table(after);
            let wrong = (round + 2) % 4;
            // What the old table says from then on is for nobody to read: an entry that asks for no
            // update, or to update: the one that was there.
            let stale = match round % 2 {
                0 => format.bytes((DATA + wrong * PAGE) | ENTRY | ACCESSED | DIRTY),
                _ => entry(before),
            };
            let exit = std::thread::scope(|scope| {
                scope.spawn(|| {
                    for _ in 0..2 {
                        std::thread::sleep(Duration::from_micros(fastrand::u64(0..2_000)));
                        for _ in 0..fastrand::u32(0..2_000) {
                            std::hint::spin_loop();
                        }
                        old.write_all_at(&entry(before), 0).expect("write");
                    }
                    space.must_map(Map::file(&new, TABLE_OFFSET, PAGE).replace());
                    old.write_all_at(&stale, 0).expect("write");
                    std::thread::sleep(Duration::from_millis(2));
                    assert_eq!(read(&old), stale, "the old table was written");
                });
                let args = Args {
                    ebx: VIRTUAL as u32,
                    ecx: round as u32,
                    edx: word(b'0' + before as u8),
                    ..Default::default()
                };
                walker.run(&program, args)
            });
            assert_eq!(exit, Exit::Done(word(b'0' + after as u8)), "round {round}");
            let mut set = (DATA + after * PAGE) | ENTRY | ACCESSED;
            if walker.entry_at(TABLE_OFFSET) & DIRTY != 0 {
                set |= DIRTY;
            }
            assert_eq!(walker.entry_at(TABLE_OFFSET), set, "round {round}");
            let stored = walker.space.get(DATA_OFFSET + wrong * PAGE + 4, 4);
            assert_ne!(stored, (round as u32).to_le_bytes(), "round {round}");
            old = new;
        }
        walker.untouched();
    }
}

/// What KVM reads is what the window there shows now. Nothing is taken from a space meanwhile, and a
/// window may be where one was that is gone, in memory too.
fn windows_replaced() {
    let _forced = force_emulation();
    for format in [Format::Legacy, Format::Extended] {
        let mut walker = Walker::new(format, 0);
        let other = Space::new();
        let tables = [
            (&walker.space, TABLE_OFFSET),
            (&walker.space, TABLE_OFFSET + PAGE),
            (&other, TABLE_OFFSET),
            (&other, TABLE_OFFSET + PAGE),
        ];
        for (n, (space, offset)) in tables.into_iter().enumerate() {
            let entry = (DATA + n as u64 * PAGE) | ENTRY | ACCESSED | DIRTY;
            let file = files::memfd(PAGE);
            file.write_all_at(&format.bytes(entry), 0).expect("write");
            space.must_map(Map::file(&file, offset, PAGE));
        }
        let vm = &walker.vm;
        let vcpu = &mut walker.vcpu;
        // mov eax,[ebx], emulated; hlt
        let program = [&FORCED[..], &[0x8b, 0x03, 0xf4]].concat();
        walker.space.put(DIRECTORIES + 5 * PAGE, &program);
        let args = Args {
            ebx: VIRTUAL as u32,
            ..Default::default()
        };
        for round in 0..64 {
            let n = fastrand::usize(0..tables.len());
            let (space, offset) = tables[n];
            vm.unmap_slot(2).expect("KVM_SET_USER_MEMORY_REGION");
            vm.must_map(window(2, TABLE, PAGE, space, offset));
            for _ in 0..2 {
                let exit = vcpu.jump(5 * PAGE, args);
                assert_eq!(exit, Exit::Done(word(b'0' + n as u8)), "round {round}");
            }
        }
        walker.untouched();
    }
}

/// Others write an entry while KVM sets its bits: what they wrote stays.
fn no_update_is_lost() {
    let _forced = force_emulation();
    let mut walker = Walker::new(Format::Extended, 0);
    let file = files::memfd(PAGE);
    walker.space.must_map(Map::file(&file, TABLE_OFFSET, PAGE));
    let mapped = Mapped::new(&file, 0, PAGE, RW).expect("mmap");
    // SAFETY: Aligned, and mapped for as long as it is used.
    let entry = unsafe { &*(mapped.address() as *const AtomicU64) };
    let value = |n: u64| (DATA + n % 4 * PAGE) | ENTRY;
    entry.store(value(0), Ordering::SeqCst);
    // 1: mov [ebx],eax, emulated; jmp 1b
    let program = [&FORCED[..], &[0x89, 0x03, 0xeb, 0xf7]].concat();
    let stop = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let host = scope.spawn(|| {
            let _raise = RaiseAtEnd(&stop);
            let mut seen = 0;
            for round in 1..scaled(20_000) {
                entry.store(value(round), Ordering::SeqCst);
                for _ in 0..fastrand::u32(0..400) {
                    std::hint::spin_loop();
                }
                let found = entry.load(Ordering::SeqCst);
                assert_eq!(found & !(ACCESSED | DIRTY), value(round), "round {round}");
                seen += u64::from(found != value(round));
            }
            seen
        });
        let _kicker = Kicker::after(Duration::from_millis(20));
        let args = Args {
            ebx: VIRTUAL as u32,
            ..Default::default()
        };
        let mut exit = walker.run(&program, args);
        while exit == Exit::Kicked && !stop.load(Ordering::Acquire) {
            exit = walker.vcpu.resume();
        }
        assert_eq!(exit, Exit::Kicked);
        host.join().expect("no update is lost")
    });
    crate::note!("KVM set the bits in {seen} rounds");
    assert_ne!(seen, 0, "KVM has set no bit");
    walker.untouched();
}

/// KVM reads the directory pointers, four entries of a page in a window, when CR3 is written. They
/// are not those that the CPU uses: not every CPU leaves their accessed bits clear.
fn directory_pointers() {
    let _forced = force_emulation();
    let mut walker = Walker::new(Format::Extended, 0);
    // mov cr3,eax; mov eax,[ebx], both emulated.
    let program = [
        &FORCED[..],
        &[0x0f, 0x22, 0xd8],
        &FORCED,
        &[0x8b, 0x03, 0xf4],
    ]
    .concat();
    let args = Args {
        ebx: VIRTUAL as u32,
        eax: PAGE as u32,
        ..Default::default()
    };
    place(&walker, File, &Format::Extended.table(ENTRY));
    let pointers = |second: u64| {
        let file = files::memfd(PAGE);
        let both = [3, second].map(|page| (page * PAGE + 1).to_le_bytes());
        file.write_all_at(&both.concat(), 0).expect("write");
        (Map::file(&file, DIRECTORIES + PAGE, PAGE).replace(), file)
    };
    let code = u32::from_le_bytes(code_page()[..4].try_into().expect("4"));
    // The second gigabyte by the table; then it is the first once more, where the code is.
    for (second, expected) in [(4, word(b'0')), (3, code), (4, word(b'0'))] {
        let (map, _file) = pointers(second);
        walker.space.must_map(map);
        assert_eq!(walker.run(&program, args), Exit::Done(expected));
        back(&walker);
    }
    // Where there are none, they cannot be loaded, and the guest gets an exception.
    let place = DIRECTORIES + PAGE;
    walker.space.must_protect(place, PAGE, PROT_NONE);
    let exit = walker.run(&program, args);
    assert!(matches!(exit, Exit::Other(_)), "{exit:x?}");
    walker.untouched();
}

/// To the first set of pointers.
fn back(walker: &Walker) {
    let mut sregs = walker.vcpu.fd.get_sregs().expect("KVM_GET_SREGS");
    sregs.cr3 = 2 * PAGE;
    walker.vcpu.fd.set_sregs(&sregs).expect("KVM_SET_SREGS");
}
