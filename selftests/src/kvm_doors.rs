// SPDX-License-Identifier: GPL-2.0

//! Changes of memslots and windows that KVM refuses, and those it makes: what is refused leaves
//! the window, its guest and its log as they were.

use std::os::fd::AsRawFd;

use asfd::sys::*;
use kvm_bindings::{kvm_userspace_memory_region2, KVM_MEM_GUEST_MEMFD, KVM_X86_SW_PROTECTED_VM};

use crate::harness::skip;
use crate::support::guest::{plain_code, window, word, Exit, OwnMemory, Vcpu, Vm};
use crate::support::rights::View;
use crate::support::space::errno;
use crate::support::{files, Errno, Map, Result, Space, PAGE};

crate::suite![
    refused_changes,
    other_ways_to_delete,
    protected_vms,
    private_guest_memfd,
];

const LEN: u64 = 16 * PAGE;
const GPA: u64 = 1 << 20;
const OFFSET: u64 = 0x2000_0000;
const WINDOW: u32 = 1;
const READONLY: u32 = 2;
const PLAIN: u32 = 3;
/// Where the windows and the plain slot are.
const fn gpa(slot: u32) -> u64 {
    GPA * slot as u64
}

struct Scene {
    vm: Vm,
    vcpu: Vcpu,
    space: Space,
    other: Space,
    gmem: Option<std::fs::File>,
    memory: OwnMemory,
    _code: OwnMemory,
}

impl Scene {
    fn new() -> Scene {
        let (vm, space, other) = (Vm::new(), Space::new(), Space::new());
        let code = plain_code(&vm);
        let memory = OwnMemory::at(OFFSET, LEN, b'S');
        for space in [&space, &other] {
            space.must_map(Map::file(&files::numbered(16, b'a'), OFFSET, LEN));
        }
        let mut shown = window(WINDOW, gpa(WINDOW), LEN, &space, OFFSET);
        shown.flags = KVM_MEM_LOG_DIRTY_PAGES;
        vm.must_map(shown);
        let mut shown = window(READONLY, gpa(READONLY), LEN, &space, OFFSET);
        shown.flags = KVM_MEM_READONLY;
        vm.must_map(shown);
        vm.set_plain_slot(PLAIN, 0, gpa(PLAIN), LEN, memory.0)
            .expect("plain slot");
        let gmem = vm.guest_memfd(LEN, 0).ok();
        let vcpu = vm.vcpu(0);
        Scene {
            vm,
            vcpu,
            space,
            other,
            gmem,
            memory,
            _code: code,
        }
    }

    /// The window of slot 1, to be changed.
    fn window(&self) -> kvm_map_address_space {
        let mut window = window(WINDOW, gpa(WINDOW), LEN, &self.space, OFFSET);
        window.flags = KVM_MEM_LOG_DIRTY_PAGES;
        window
    }

    fn readonly(&self) -> kvm_map_address_space {
        let mut window = window(READONLY, gpa(READONLY), LEN, &self.space, OFFSET);
        window.flags = KVM_MEM_READONLY;
        window
    }

    /// KVM_SET_USER_MEMORY_REGION.
    fn plain(&self, slot: u32, flags: u32, gpa: u64, len: u64, hva: u64) -> Result<()> {
        self.vm.set_plain_slot(slot, flags, gpa, len, hva)
    }

    /// KVM_SET_USER_MEMORY_REGION2 with a guest_memfd.
    fn plain2(&self, slot: u32, flags: u32, hva: u64) -> Result<()> {
        let region = kvm_userspace_memory_region2 {
            slot,
            flags,
            guest_phys_addr: gpa(slot),
            memory_size: LEN,
            userspace_addr: hva,
            guest_memfd: self.gmem.as_ref().map_or(0, |f| f.as_raw_fd() as u32),
            ..Default::default()
        };
        set_region2(&self.vm, region)
    }

    /// Both windows and the plain slot do what they did.
    #[track_caller]
    fn check(&mut self, what: &str) {
        let vcpu = &mut self.vcpu;
        self.vm.dirty_pages(WINDOW, LEN);
        for page in [0, 15] {
            let at = page * PAGE;
            let letter = word(b'a' + page as u8);
            assert_eq!(vcpu.load(gpa(WINDOW) + at), Exit::Done(letter), "{what}");
            assert_eq!(vcpu.load(gpa(READONLY) + at), Exit::Done(letter), "{what}");
            let store = gpa(READONLY) + at;
            assert_eq!(
                vcpu.store(store, 7),
                Exit::store_to_hole(store, 7),
                "{what}"
            );
            assert_eq!(vcpu.load(gpa(PLAIN) + at), Exit::Done(word(b'S')), "{what}");
        }
        // It is still logged; the first touch may have been as well.
        let at = gpa(WINDOW) + 5 * PAGE + 8;
        vcpu.load(at);
        self.vm.dirty_pages(WINDOW, LEN);
        assert_eq!(vcpu.store(at, 3), Exit::Done(3), "{what}");
        assert_eq!(self.vm.dirty_pages(WINDOW, LEN), [5], "{what}");
        assert_eq!(self.space.info().windows, 2, "{what}");
        assert_eq!(self.other.info().windows, 0, "{what}");
        let own = self.memory.bytes().iter().all(|byte| *byte == b'S');
        assert!(own, "{what}: the VMM's memory was written");
    }
}

fn set_region2(vm: &Vm, mut region: kvm_userspace_memory_region2) -> Result<()> {
    /// _IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)
    const NUMBER: u32 =
        1 << 30 | (size_of::<kvm_userspace_memory_region2>() as u32) << 16 | 0xae << 8 | 0x49;
    // SAFETY: The request takes this struct; the memory is mapped for good.
    let answer = unsafe { ioctl(vm.fd.as_raw_fd(), NUMBER, &mut region) };
    answer.map(drop).map_err(errno)
}

type Change = (&'static str, Errno, fn(&Scene) -> Result<()>);

const REFUSED: [Change; 24] = [
    ("a live window read-only", Errno::EINVAL, |s| {
        let flags = KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES;
        s.vm.map(kvm_map_address_space {
            flags,
            ..s.window()
        })
    }),
    ("a read-only one writable", Errno::EINVAL, |s| {
        s.vm.map(kvm_map_address_space {
            flags: 0,
            ..s.readonly()
        })
    }),
    ("moved", Errno::EINVAL, |s| {
        let guest_phys_addr = gpa(8);
        s.vm.map(kvm_map_address_space {
            guest_phys_addr,
            ..s.window()
        })
    }),
    ("moved over another", Errno::EINVAL, |s| {
        let guest_phys_addr = gpa(PLAIN);
        s.vm.map(kvm_map_address_space {
            guest_phys_addr,
            ..s.window()
        })
    }),
    ("moved by a page", Errno::EINVAL, |s| {
        let guest_phys_addr = gpa(WINDOW) + PAGE;
        s.vm.map(kvm_map_address_space {
            guest_phys_addr,
            ..s.window()
        })
    }),
    ("shorter", Errno::EINVAL, |s| {
        s.vm.map(kvm_map_address_space {
            memory_size: LEN - PAGE,
            ..s.window()
        })
    }),
    ("longer", Errno::EINVAL, |s| {
        s.vm.map(kvm_map_address_space {
            memory_size: LEN + PAGE,
            ..s.window()
        })
    }),
    ("longer, into another", Errno::EINVAL, |s| {
        s.vm.map(kvm_map_address_space {
            memory_size: 2 << 20,
            ..s.window()
        })
    }),
    ("another offset", Errno::EINVAL, |s| {
        s.vm.map(kvm_map_address_space {
            offset: OFFSET + PAGE,
            ..s.window()
        })
    }),
    ("the same offset of another space", Errno::EINVAL, |s| {
        s.vm.map(kvm_map_address_space {
            asfd: s.other.as_raw_fd(),
            ..s.window()
        })
    }),
    ("through a view, another part", Errno::EINVAL, |s| {
        let view = s.space.must_view(View::of(OFFSET + PAGE, LEN));
        s.vm.map(kvm_map_address_space {
            asfd: view.as_raw_fd(),
            offset: 0,
            ..s.window()
        })
    }),
    ("through a view that ends", Errno::ERANGE, |s| {
        let view = s.space.must_view(View::of(OFFSET, LEN - PAGE));
        s.vm.map(kvm_map_address_space {
            asfd: view.as_raw_fd(),
            offset: 0,
            ..s.window()
        })
    }),
    ("a descriptor of a file", Errno::EINVAL, |s| {
        let file = files::memfd(OFFSET + LEN);
        s.vm.map(kvm_map_address_space {
            asfd: file.as_raw_fd(),
            ..s.window()
        })
    }),
    ("with KVM_MEM_GUEST_MEMFD", Errno::EINVAL, |s| {
        let flags = KVM_MEM_GUEST_MEMFD | KVM_MEM_LOG_DIRTY_PAGES;
        s.vm.map(kvm_map_address_space {
            flags,
            ..s.window()
        })
    }),
    ("a new one with KVM_MEM_GUEST_MEMFD", Errno::EINVAL, |s| {
        let mut new = window(7, gpa(7), LEN, &s.space, OFFSET);
        new.flags = KVM_MEM_GUEST_MEMFD;
        s.vm.map(new)
    }),
    ("a window into a plain slot", Errno::EINVAL, |s| {
        s.plain(WINDOW, KVM_MEM_LOG_DIRTY_PAGES, gpa(WINDOW), LEN, OFFSET)
    }),
    ("a window's log off by the other call", Errno::EINVAL, |s| {
        s.plain(WINDOW, 0, gpa(WINDOW), LEN, OFFSET)
    }),
    ("a read-only window into a plain slot", Errno::EINVAL, |s| {
        s.plain(READONLY, KVM_MEM_READONLY, gpa(READONLY), LEN, OFFSET)
    }),
    ("a window moved by the other call", Errno::EINVAL, |s| {
        s.plain(WINDOW, KVM_MEM_LOG_DIRTY_PAGES, gpa(8), LEN, OFFSET)
    }),
    ("a window into a slot of guest_memfd", Errno::EINVAL, |s| {
        s.plain2(WINDOW, KVM_MEM_GUEST_MEMFD, OFFSET)
    }),
    ("a window by the second call", Errno::EINVAL, |s| {
        s.plain2(WINDOW, KVM_MEM_LOG_DIRTY_PAGES, OFFSET)
    }),
    ("a plain slot into a window", Errno::EINVAL, |s| {
        s.vm.map(window(PLAIN, gpa(PLAIN), LEN, &s.space, OFFSET))
    }),
    ("a plain slot with an unknown flag", Errno::EINVAL, |s| {
        s.plain(PLAIN, KVM_MEM_HOLE_EXIT, gpa(PLAIN), LEN, OFFSET)
    }),
    ("a plain slot over a window", Errno::EEXIST, |s| {
        s.plain(9, 0, gpa(WINDOW) + LEN - PAGE, LEN, OFFSET)
    }),
];

fn refused_changes() {
    let mut scene = Scene::new();
    scene.check("at first");
    for (what, expected, change) in REFUSED {
        assert_eq!(change(&scene), Err(expected), "{what}");
        scene.check(what);
    }
    // KVM may be asked with what is there already, through any descriptor that shows it.
    let view = scene.space.must_view(View::of(OFFSET, LEN));
    let same = kvm_map_address_space {
        asfd: view.as_raw_fd(),
        offset: 0,
        ..scene.window()
    };
    assert_eq!(scene.vm.map(same), Ok(()));
    scene.check("as it is");
}

/// Each of the calls deletes slots of either kind.
fn other_ways_to_delete() {
    let mut scene = Scene::new();
    let gone = |scene: &mut Scene, slot: u32| {
        let at = gpa(slot);
        assert_eq!(scene.vcpu.load(at), Exit::load_of_hole(at), "slot {slot}");
    };
    assert_eq!(scene.plain(WINDOW, 0, 0, 0, 0), Ok(()));
    gone(&mut scene, WINDOW);
    assert_eq!(scene.space.info().windows, 1);
    let nothing = kvm_userspace_memory_region2 {
        slot: READONLY,
        ..Default::default()
    };
    assert_eq!(set_region2(&scene.vm, nothing), Ok(()));
    gone(&mut scene, READONLY);
    assert_eq!(scene.space.info().windows, 0);
    assert_eq!(scene.vm.unmap_slot(PLAIN), Ok(()));
    gone(&mut scene, PLAIN);
    // And each slot is free for the other kind.
    let (plain, shown) = (WINDOW, PLAIN);
    assert_eq!(scene.plain(plain, 0, gpa(plain), LEN, OFFSET), Ok(()));
    let new = window(shown, gpa(shown), LEN, &scene.space, OFFSET);
    assert_eq!(scene.vm.map(new), Ok(()));
    assert_eq!(scene.vcpu.load(gpa(plain)), Exit::Done(word(b'S')));
    assert_eq!(scene.vcpu.load(gpa(shown)), Exit::Done(word(b'a')));
}

/// A VM whose memory may be private has no windows, and is not changed by asking.
fn protected_vms() {
    let kvm = Vm::new().kvm;
    let fd = kvm
        .create_vm_with_type(KVM_X86_SW_PROTECTED_VM.into())
        .unwrap_or_else(|e| skip(&format!("no protected VMs: {e}")));
    let vm = Vm { fd, kvm };
    let space = Space::new();
    space.must_map(Map::anon(OFFSET, LEN));
    for flags in [
        0,
        KVM_MEM_READONLY,
        KVM_MEM_LOG_DIRTY_PAGES,
        KVM_MEM_HOLE_EXIT,
    ] {
        let mut window = window(1, GPA, LEN, &space, OFFSET);
        window.flags = flags;
        assert_eq!(vm.map(window), Err(Errno::EINVAL), "flags {flags:#x}");
        assert_eq!(space.info().windows, 0);
    }
    let memory = OwnMemory::at(OFFSET, LEN, b'S');
    assert_eq!(vm.set_plain_slot(1, 0, GPA, LEN, memory.0), Ok(()));
    // The space ends at once: nothing of the VM holds it.
    drop(space);
}

/// A guest_memfd whose pages the guest alone may see is no file for a space.
fn private_guest_memfd() {
    const MMAP: u64 = 1 << 0;
    const INIT_SHARED: u64 = 1 << 1;
    let vm = Vm::new();
    let space = Space::new();
    space.must_map(Map::file(&files::numbered(4, b'a'), OFFSET, 4 * PAGE));
    let mut tried = 0;
    for (flags, expected) in [
        (0, Err(Errno::ENODEV)),
        (MMAP, Err(Errno::ENODEV)),
        (INIT_SHARED, Err(Errno::ENODEV)),
        (MMAP | INIT_SHARED, Ok(())),
    ] {
        let Ok(file) = vm.guest_memfd(4 * PAGE, flags) else {
            continue;
        };
        tried += 1;
        let free = Map::file(&file, OFFSET + 8 * PAGE, 4 * PAGE);
        assert_eq!(space.map(free).map(drop), expected, "flags {flags:#x}");
        let replace = Map::file(&file, OFFSET, 4 * PAGE).replace();
        assert_eq!(space.map(replace).map(drop), expected, "flags {flags:#x}");
        if expected.is_err() {
            assert_eq!(space.byte(OFFSET + PAGE), b'b', "nothing was replaced");
        }
    }
    if tried == 0 {
        skip("no guest_memfd");
    }
}
