// SPDX-License-Identifier: GPL-2.0

//! A small KVM guest: 32-bit code with flat segments and identity paging, so that its addresses
//! are guest-physical. The host calls one of a few routines, which ends in HLT or in another exit.
//!
//! The page directory lies in the memory that is tested: KVM walks it when it emulates an access
//! to a hole, and so does the CPU all the time.

use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use asfd::sys::{kvm_map_address_space, KVM_MAP_ADDRESS_SPACE};
use kvm_bindings::{
    kvm_create_guest_memfd, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

pub use super::own_memory::OwnMemory;
use super::{files, space::errno, Errno, Map, Result, Space, PAGE};
use crate::harness::skip;

/// The page of the guest that it needs: a page directory, with the routines in that part of it
/// which maps addresses that no test uses.
pub const CODE: u64 = 0;
const ROUTINES_AT: u64 = CODE + 0x800;

/// Code of the guest at `ROUTINES_AT + 64 * n`; arguments and results are in registers.
#[derive(Clone, Copy)]
#[repr(u64)]
pub enum Routine {
    /// eax = [ebx]
    Load,
    /// [ebx] = eax
    Store,
    /// Spins, without an exit, until [ebx] != ecx; eax is what it then holds.
    Await,
    /// Copies ecx words of 4 bytes from [esi] to [edi].
    Copy,
    /// Counts [ebx] up for ever.
    Count,
    /// Copies the first word of each page in [ebx, ebx+ecx) to its second, for ever; edx counts.
    Walk,
    /// As `Await`, and counts [edi] up all the while.
    Watch,
}

const ROUTINES: [&[u8]; 7] = [
    // mov eax,[ebx]; hlt
    &[0x8b, 0x03, 0xf4],
    // mov [ebx],eax; hlt
    &[0x89, 0x03, 0xf4],
    // 1: mov eax,[ebx]; cmp eax,ecx; je 1b; hlt
    &[0x8b, 0x03, 0x39, 0xc8, 0x74, 0xfa, 0xf4],
    // rep movsd; hlt
    &[0xf3, 0xa5, 0xf4],
    // 1: inc dword [ebx]; jmp 1b
    &[0xff, 0x03, 0xeb, 0xfc],
    // 1: xor esi,esi
    // 2: mov eax,[ebx+esi]; mov [ebx+esi+4],eax; add esi,4096; cmp esi,ecx; jb 2b; inc edx; jmp 1b
    &[
        0x31, 0xf6, 0x8b, 0x04, 0x33, 0x89, 0x44, 0x33, 0x04, 0x81, 0xc6, 0x00, 0x10, 0x00, 0x00,
        0x39, 0xce, 0x72, 0xef, 0x42, 0xeb, 0xea,
    ],
    // 1: inc dword [edi]; mov eax,[ebx]; cmp eax,ecx; je 1b; hlt
    &[0xff, 0x07, 0x8b, 0x03, 0x39, 0xc8, 0x74, 0xf8, 0xf4],
];

/// The page that has to lie at `CODE`.
pub fn code_page() -> Vec<u8> {
    // Pages of 4 MiB: present, writable, for users, and already accessed and dirty.
    const ENTRY: u32 = 0xe7;
    let mut page: Vec<u8> = (0..1024u32)
        .flat_map(|n| (n << 22 | ENTRY).to_le_bytes())
        .collect();
    for (number, code) in ROUTINES.iter().enumerate() {
        page[ROUTINES_AT as usize + number * 64..][..code.len()].copy_from_slice(code);
    }
    page
}

/// Registers that a routine is called with.
#[derive(Clone, Copy, Default)]
pub struct Args {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
    pub esi: u32,
    pub edi: u32,
}

/// Why the vCPU came back.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit {
    /// The routine is done; this is its eax.
    Done(u32),
    MmioRead {
        addr: u64,
        len: usize,
    },
    MmioWrite {
        addr: u64,
        data: Vec<u8>,
    },
    MemoryFault {
        gpa: u64,
        flags: u64,
        size: u64,
    },
    /// From a port, so many bytes; they are those of `answer`, again and again.
    In {
        port: u16,
        len: usize,
    },
    Out {
        port: u16,
        data: Vec<u8>,
    },
    /// A signal.
    Kicked,
    Other(String),
}

impl Exit {
    pub fn load_of_hole(addr: u64) -> Exit {
        Exit::MmioRead { addr, len: 4 }
    }

    pub fn store_to_hole(addr: u64, value: u32) -> Exit {
        Exit::MmioWrite {
            addr,
            data: value.to_le_bytes().to_vec(),
        }
    }

    pub fn is_fault_at(&self, page: u64) -> bool {
        matches!(self, Exit::MemoryFault { gpa, .. } if *gpa & !(PAGE - 1) == page)
    }
}

/// A word of four such bytes.
pub fn word(byte: u8) -> u32 {
    u32::from_le_bytes([byte; 4])
}

pub struct Vm {
    pub fd: VmFd,
    pub kvm: Kvm,
}

/// A window, as `KVM_MAP_ADDRESS_SPACE` takes it.
pub fn window(
    slot: u32,
    gpa: u64,
    len: u64,
    space: &impl AsRawFd,
    offset: u64,
) -> kvm_map_address_space {
    kvm_map_address_space {
        slot,
        guest_phys_addr: gpa,
        memory_size: len,
        offset,
        asfd: space.as_raw_fd(),
        ..Default::default()
    }
}

impl Vm {
    pub fn new() -> Vm {
        let kvm = Kvm::new().unwrap_or_else(|e| skip(&format!("/dev/kvm: {e}")));
        let fd = kvm
            .create_vm()
            .unwrap_or_else(|e| skip(&format!("KVM_CREATE_VM: {e}")));
        Vm { fd, kvm }
    }

    pub fn map(&self, mut window: kvm_map_address_space) -> Result<()> {
        // SAFETY: The struct is what the request takes.
        let answer =
            unsafe { asfd::sys::ioctl(self.fd.as_raw_fd(), KVM_MAP_ADDRESS_SPACE, &mut window) };
        answer.map(drop).map_err(errno)
    }

    #[track_caller]
    pub fn must_map(&self, window: kvm_map_address_space) {
        if let Err(e) = self.map(window) {
            panic!("{window:x?}: {e}");
        }
    }

    pub fn unmap_slot(&self, slot: u32) -> Result<()> {
        self.map(kvm_map_address_space {
            slot,
            asfd: -1,
            ..Default::default()
        })
    }

    /// An ordinary slot; the caller keeps `hva..hva + len` mapped while a guest runs.
    pub fn set_plain_slot(
        &self,
        slot: u32,
        flags: u32,
        gpa: u64,
        len: u64,
        hva: u64,
    ) -> Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: len,
            userspace_addr: hva,
        };
        // SAFETY: By this method's contract; the tests use memory that they map for good.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(|e| Errno::from_raw(e.errno()))
    }

    pub fn guest_memfd(&self, len: u64, flags: u64) -> Result<std::fs::File> {
        let args = kvm_create_guest_memfd {
            size: len,
            flags,
            ..Default::default()
        };
        let fd = self
            .fd
            .create_guest_memfd(args)
            .map_err(|e| Errno::from_raw(e.errno()))?;
        // SAFETY: Just made for us.
        Ok(unsafe { std::fs::File::from_raw_fd(fd) })
    }

    /// A guest_memfd that others than the guest can use, or the test is skipped.
    pub fn shared_guest_memfd(&self, len: u64) -> std::fs::File {
        const MMAP: u64 = 1 << 0;
        const INIT_SHARED: u64 = 1 << 1;
        self.guest_memfd(len, MMAP | INIT_SHARED)
            .unwrap_or_else(|e| skip(&format!("guest_memfd with MMAP and INIT_SHARED: {e}")))
    }

    /// Pages of the slot that the guest wrote since the last call. (The page at `CODE` is one of
    /// them whenever the CPU walks the guest's page tables.)
    pub fn dirty_pages(&self, slot: u32, len: u64) -> Vec<u64> {
        let log = self
            .fd
            .get_dirty_log(slot, len as usize)
            .expect("KVM_GET_DIRTY_LOG");
        (0..len / PAGE)
            .filter(|page| log[*page as usize / 64] >> (page % 64) & 1 == 1)
            .collect()
    }

    pub fn vcpu(&self, id: u64) -> Vcpu {
        Vcpu::new(self.fd.create_vcpu(id).expect("KVM_CREATE_VCPU"))
    }
}

pub struct Vcpu {
    pub fd: VcpuFd,
    /// What a load from a hole or a port gives.
    pub answer: u32,
    /// KVM waits to be told that an MMIO or port access is done.
    pending: bool,
    watchdog: Arc<Watchdog>,
    initial: kvm_sregs,
}

/// Kicks a vCPU that has been in the guest for very long: a test that meets a loop without an
/// exit, as KVM's own after a fault that it repeats for ever, shall say where.
#[derive(Default)]
struct Watchdog {
    /// The thread that is in KVM_RUN, or 0.
    thread: AtomicI32,
    runs: AtomicU64,
}

impl Watchdog {
    const PATIENCE: Duration = Duration::from_secs(15);

    fn start() -> Arc<Watchdog> {
        let watchdog = Arc::new(Watchdog::default());
        let weak = Arc::downgrade(&watchdog);
        std::thread::spawn(move || {
            let mut since = (0, Instant::now());
            while let Some(watchdog) = weak.upgrade() {
                let runs = watchdog.runs.load(Ordering::Acquire);
                if runs != since.0 {
                    since = (runs, Instant::now());
                } else if since.1.elapsed() > Watchdog::PATIENCE {
                    kick(watchdog.thread.load(Ordering::Acquire));
                }
                drop(watchdog);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        watchdog
    }
}

/// Fills `data` with the bytes of a word.
fn repeat(word: u32, data: &mut [u8]) {
    let bytes = word.to_le_bytes().into_iter().cycle();
    data.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
}

fn kick(thread: i32) {
    if thread != 0 {
        // SAFETY: Takes no pointers; the signal has a handler.
        unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, KICK) };
    }
}

impl Vcpu {
    fn new(fd: VcpuFd) -> Vcpu {
        handle_kicks();
        let mut sregs = fd.get_sregs().expect("KVM_GET_SREGS");
        let flat = |type_, selector| kvm_segment {
            base: 0,
            limit: 0xffff_ffff,
            selector,
            type_,
            present: 1,
            db: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        sregs.cs = flat(0xb, 8);
        let data = flat(0x3, 16);
        (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
        (sregs.fs, sregs.gs) = (data, data);
        const CR0_PE_PG: u64 = 1 | 1 << 31;
        const CR4_PSE: u64 = 1 << 4;
        sregs.cr0 |= CR0_PE_PG;
        sregs.cr3 = CODE;
        sregs.cr4 |= CR4_PSE;
        // An exception has no handler, and is a shutdown at once.
        sregs.idt.limit = 0;
        fd.set_sregs(&sregs).expect("KVM_SET_SREGS");
        Vcpu {
            fd,
            answer: 0xa5a5_a5a5,
            pending: false,
            watchdog: Watchdog::start(),
            initial: sregs,
        }
    }

    /// Runs a routine until its first exit.
    pub fn call(&mut self, routine: Routine, args: Args) -> Exit {
        self.jump(ROUTINES_AT + 64 * routine as u64, args)
    }

    /// Runs code at a guest-physical address until its first exit.
    pub fn jump(&mut self, rip: u64, args: Args) -> Exit {
        self.finish();
        let regs = kvm_regs {
            rip,
            rflags: 2,
            rax: args.eax.into(),
            rbx: args.ebx.into(),
            rcx: args.ecx.into(),
            rdx: args.edx.into(),
            rsi: args.esi.into(),
            rdi: args.edi.into(),
            ..Default::default()
        };
        self.fd.set_regs(&regs).expect("KVM_SET_REGS");
        self.resume()
    }

    /// Goes on after an exit.
    pub fn resume(&mut self) -> Exit {
        self.pending = false;
        self.watchdog.runs.fetch_add(1, Ordering::Release);
        self.watchdog
            .thread
            .store(nix::unistd::gettid().as_raw(), Ordering::Release);
        let run = self.fd.run();
        self.watchdog.thread.store(0, Ordering::Release);
        let exit = match run {
            Ok(VcpuExit::Hlt) => None,
            Ok(VcpuExit::MmioRead(addr, data)) => {
                self.pending = true;
                repeat(self.answer, data);
                Some(Exit::MmioRead {
                    addr,
                    len: data.len(),
                })
            }
            Ok(VcpuExit::MmioWrite(addr, data)) => {
                self.pending = true;
                Some(Exit::MmioWrite {
                    addr,
                    data: data.to_vec(),
                })
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                self.pending = true;
                repeat(self.answer, data);
                Some(Exit::In {
                    port,
                    len: data.len(),
                })
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                self.pending = true;
                Some(Exit::Out {
                    port,
                    data: data.to_vec(),
                })
            }
            Ok(VcpuExit::MemoryFault { flags, gpa, size }) => {
                Some(Exit::MemoryFault { gpa, flags, size })
            }
            Ok(VcpuExit::Intr) => Some(Exit::Kicked),
            Ok(other) => Some(Exit::Other(format!("{other:x?}"))),
            Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => Some(Exit::Kicked),
            Err(e) => Some(Exit::Other(format!("KVM_RUN: {e}"))),
        };
        exit.unwrap_or_else(|| Exit::Done(self.eax()))
    }

    /// Back to 32-bit code with paging and no exception under way. (A guest whose code and page
    /// tables are gone gets page faults that it cannot handle.)
    pub fn reset(&mut self) {
        self.pending = false;
        self.fd
            .set_vcpu_events(&Default::default())
            .expect("KVM_SET_VCPU_EVENTS");
        self.fd.set_sregs(&self.initial).expect("KVM_SET_SREGS");
    }

    pub fn eax(&self) -> u32 {
        self.fd.get_regs().expect("KVM_GET_REGS").rax as u32
    }

    pub fn edx(&self) -> u32 {
        self.fd.get_regs().expect("KVM_GET_REGS").rdx as u32
    }

    pub fn load(&mut self, addr: u64) -> Exit {
        self.call(
            Routine::Load,
            Args {
                ebx: addr as u32,
                ..Default::default()
            },
        )
    }

    pub fn store(&mut self, addr: u64, value: u32) -> Exit {
        self.call(
            Routine::Store,
            Args {
                ebx: addr as u32,
                eax: value,
                ..Default::default()
            },
        )
    }

    /// Lets KVM finish an MMIO or port access without running the guest on. A copying instruction may have
    /// another one to make.
    fn finish(&mut self) {
        if std::mem::take(&mut self.pending) {
            self.fd.set_kvm_immediate_exit(1);
            let ended = (0..1000).any(|_| self.fd.run().is_err());
            self.fd.set_kvm_immediate_exit(0);
            assert!(ended, "KVM_RUN does not end with immediate_exit");
        }
    }
}

/// Interrupts the vCPU that the calling thread runs, again and again, once `delay` has passed:
/// a guest may loop without an exit.
pub struct Kicker {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

const KICK: libc::c_int = libc::SIGUSR1;

/// The signal must interrupt KVM_RUN, so it has a handler, without SA_RESTART.
fn handle_kicks() {
    extern "C" fn ignore(_: libc::c_int) {}
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: An all-zero sigaction is valid, and the handler does nothing.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
            assert_eq!(libc::sigaction(KICK, &action, std::ptr::null_mut()), 0);
        }
    });
}

impl Kicker {
    pub fn after(delay: Duration) -> Kicker {
        handle_kicks();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let tid = nix::unistd::gettid();
        let thread = std::thread::spawn(move || {
            std::thread::park_timeout(delay);
            while !stopped.load(Ordering::Acquire) {
                kick(tid.as_raw());
                std::thread::park_timeout(Duration::from_millis(10));
            }
        });
        Kicker {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Kicker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// A VM that shows the first `pages` of a space from guest-physical address 0, with the routines
/// in page 0 and holes behind.
pub struct Guest {
    pub space: Space,
    pub vm: Vm,
    pub vcpu: Vcpu,
}

pub const SLOT: u32 = 3;

impl Guest {
    pub fn new(pages: u64) -> Guest {
        Guest::with_flags(pages, 0)
    }

    pub fn with_flags(pages: u64, flags: u32) -> Guest {
        let space = Space::new();
        place_code(&space, CODE);
        let vm = Vm::new();
        let mut window = window(SLOT, 0, pages * PAGE, &space, 0);
        window.flags = flags;
        vm.must_map(window);
        let vcpu = vm.vcpu(0);
        Guest { space, vm, vcpu }
    }
}

/// Maps the routines at `addr` of the space.
pub fn place_code(space: &Space, addr: u64) {
    let code = files::memfd(PAGE);
    code.write_all_at(&code_page(), 0).expect("write");
    space.must_map(Map::file(&code, addr, PAGE));
}

/// The routines at `CODE` in an ordinary slot 0: they stay when the space changes or goes.
pub fn plain_code(vm: &Vm) -> OwnMemory {
    let memory = OwnMemory::at(0x7000_0000, PAGE, 0);
    memory.set(0, &code_page());
    vm.set_plain_slot(0, 0, CODE, PAGE, memory.0)
        .expect("an ordinary slot");
    memory
}

/// Runs `vcpu` until the word at `at` is no longer `old`, with no exit in between; while it
/// runs, `change` happens.
pub fn sees(vcpu: &mut Vcpu, at: u64, old: u32, change: impl FnOnce() + Send) -> Exit {
    let running = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !running.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            // Time for the guest to get into its loop.
            std::thread::sleep(Duration::from_millis(50));
            change();
        });
        let args = Args {
            ebx: at as u32,
            ecx: old,
            ..Default::default()
        };
        running.store(true, Ordering::Release);
        vcpu.call(Routine::Await, args)
    })
}
