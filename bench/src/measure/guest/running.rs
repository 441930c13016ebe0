// SPDX-License-Identifier: GPL-2.0

//! A guest that runs: each vCPU, in a thread of its own, uses its part of the memory for ever.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{anyhow, bail, ensure, Context, Error, Result};
use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuExit;
use nix::sched::{sched_getaffinity, sched_setaffinity, CpuSet};
use nix::unistd::Pid;

use super::code::{guest_code, Code};
use super::{Guest, Vcpu, WORDS};
use crate::measure::memory::PAGE;

const REPORT_PORT: u16 = 0x10;
/// The longest that a vCPU may take for what it is asked, on a busy host.
const PATIENCE: Duration = Duration::from_secs(20);

/// Words by which a vCPU and the host talk, by their numbers in its page of them.
enum Word {
    /// Accesses made.
    Accesses,
    /// The range that is used all the time.
    From,
    To,
    /// A range that is used when asked only.
    ExtraFrom,
    ExtraTo,
    /// A number that is to be reported after a pass that begins later.
    Asked,
    Answered,
    /// How often each value was read.
    Seen = 8,
}

guest_code! {
    /// Writes to each page of its range, for ever, and counts that.
    fn write, bench_guest_write, bench_guest_write_end, [
        "1:  mov r8, [rbx + {asked}]",
        "    mov rsi, [rbx + {from}]",
        "2:  mov [rsi], rsi",
        "    inc qword ptr [rbx]",
        "    add rsi, 4096",
        "    cmp rsi, [rbx + {to}]",
        "    jb 2b",
        "    cmp r8, [rbx + {answered}]",
        "    je 1b",
        "    mov rsi, [rbx + {extra_from}]",
        "3:  cmp rsi, [rbx + {extra_to}]",
        "    jae 4f",
        "    mov [rsi], rsi",
        "    inc qword ptr [rbx]",
        "    add rsi, 4096",
        "    jmp 3b",
        "4:  mov eax, r8d",
        "    out {port}, eax",
        "    mov [rbx + {answered}], r8",
        "    jmp 1b",
    ],
    asked = const Word::Asked as u64 * 8,
    from = const Word::From as u64 * 8,
    to = const Word::To as u64 * 8,
    answered = const Word::Answered as u64 * 8,
    extra_from = const Word::ExtraFrom as u64 * 8,
    extra_to = const Word::ExtraTo as u64 * 8,
    port = const REPORT_PORT,
}

guest_code! {
    /// Reads a word of each page of its range, for ever, and counts its values, of two bits.
    fn read, bench_guest_read, bench_guest_read_end, [
        "1:  mov r8, [rbx + {asked}]",
        "    mov rsi, [rbx + {from}]",
        "2:  mov rax, [rsi]",
        "    and eax, 3",
        "    inc qword ptr [rbx + rax * 8 + {seen}]",
        "    inc qword ptr [rbx]",
        "    add rsi, 4096",
        "    cmp rsi, [rbx + {to}]",
        "    jb 2b",
        "    cmp r8, [rbx + {answered}]",
        "    je 1b",
        "    mov eax, r8d",
        "    out {port}, eax",
        "    mov [rbx + {answered}], r8",
        "    jmp 1b",
    ],
    asked = const Word::Asked as u64 * 8,
    from = const Word::From as u64 * 8,
    to = const Word::To as u64 * 8,
    answered = const Word::Answered as u64 * 8,
    seen = const Word::Seen as u64 * 8,
    port = const REPORT_PORT,
}

/// What a vCPU uses all the time, and what only when asked.
#[derive(Clone, Copy)]
pub struct Use {
    pub from: u64,
    pub to: u64,
    pub extra: Option<(u64, u64)>,
}

/// Where and when vCPUs run, so that they do not keep the caller from the CPU.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the one CPU, when nobody else wants it.
    WhenIdle,
    /// Not on the first of the CPUs, which the caller has for itself.
    OtherCpus,
}

impl Place {
    /// For the thread of the caller.
    fn leave(self) -> Result<()> {
        match self {
            Place::WhenIdle => Ok(()),
            Place::OtherCpus => run_on(CPUS[0]),
        }
    }

    /// For the thread of a vCPU.
    fn take(self, vcpu: u64) -> Result<()> {
        match self {
            Place::WhenIdle => run_when_idle(),
            Place::OtherCpus => {
                let others = other_cpus()?;
                run_on(others[vcpu as usize % others.len()])
            }
        }
    }
}

/// The CPUs that this program may use, as it was when the first thread was bound to one.
static CPUS: LazyLock<Vec<usize>> = LazyLock::new(|| {
    let allowed = sched_getaffinity(Pid::this()).unwrap_or_default();
    let is_allowed = |cpu: &usize| allowed.is_set(*cpu).unwrap_or(false);
    (0..CpuSet::count()).filter(is_allowed).collect()
});

/// The CPUs that vCPUs run on, which has to be one at least.
pub fn other_cpus() -> Result<&'static [usize]> {
    ensure!(CPUS.len() > 1, "there is one CPU only");
    Ok(&CPUS[1..])
}

fn run_on(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("sched_setaffinity")
}

pub struct Running {
    threads: Vec<JoinHandle<Result<()>>>,
    reports: Receiver<u64>,
    asked: u64,
    /// MMIO exits of all vCPUs.
    exits: Arc<AtomicU64>,
    pub guest: Guest,
}

impl Running {
    /// Starts a vCPU for each use.
    pub fn write(guest: Guest, uses: &[Use], place: Place) -> Result<Running> {
        Running::start(guest, write(), uses, place)
    }

    pub fn read(guest: Guest, uses: &[Use], place: Place) -> Result<Running> {
        Running::start(guest, read(), uses, place)
    }

    fn start(guest: Guest, code: Code, uses: &[Use], place: Place) -> Result<Running> {
        guest.load(code);
        place.leave()?;
        let (report, reports) = channel();
        let mut running = Running {
            threads: Vec::new(),
            reports,
            asked: 0,
            exits: Arc::default(),
            guest,
        };
        for (id, range) in (0..).zip(uses) {
            let extra = range.extra.unwrap_or((0, 0));
            running.word(id, Word::From).store(range.from, Relaxed);
            running.word(id, Word::To).store(range.to, Relaxed);
            running.word(id, Word::ExtraFrom).store(extra.0, Relaxed);
            running.word(id, Word::ExtraTo).store(extra.1, Relaxed);
            let vcpu = running.guest.vcpu(id)?;
            let (report, exits) = (report.clone(), running.exits.clone());
            running.threads.push(std::thread::spawn(move || {
                place.take(id)?;
                run(vcpu, &report, &exits)
            }));
        }
        // Once all have made a pass, each page that they use is mapped for the guest.
        running.pass()?;
        Ok(running)
    }

    fn word(&self, vcpu: u64, word: Word) -> &AtomicU64 {
        self.guest.word(WORDS + vcpu * PAGE + 8 * word as u64)
    }

    fn vcpus(&self) -> u64 {
        self.threads.len() as u64
    }

    /// Waits until each vCPU has used all of its range, the extra one included, from now on.
    pub fn pass(&mut self) -> Result<()> {
        self.asked += 1;
        for vcpu in 0..self.vcpus() {
            self.word(vcpu, Word::Asked).store(self.asked, Relaxed);
        }
        let mut missing = self.vcpus();
        while missing > 0 {
            let answer = match self.reports.recv_timeout(PATIENCE) {
                Ok(answer) => answer,
                Err(_) => return Err(self.why_no_answer()),
            };
            missing -= u64::from(answer == self.asked);
        }
        Ok(())
    }

    fn why_no_answer(&mut self) -> Error {
        let ended = self.threads.iter().position(JoinHandle::is_finished);
        let result = ended.map(|thread| self.threads.remove(thread).join());
        match result {
            Some(Ok(Err(why))) => why,
            other => anyhow!("a vCPU does not answer: {other:?}"),
        }
    }

    /// Accesses made so far, by all vCPUs.
    pub fn accesses(&self) -> u64 {
        (0..self.vcpus())
            .map(|vcpu| self.word(vcpu, Word::Accesses).load(Relaxed))
            .sum()
    }

    /// How often a value was read so far.
    pub fn seen(&self, value: u64) -> u64 {
        let first = WORDS + 8 * Word::Seen as u64;
        (0..self.vcpus())
            .map(|vcpu| {
                self.guest
                    .word(first + vcpu * PAGE + 8 * value)
                    .load(Relaxed)
            })
            .sum()
    }

    pub fn exits(&self) -> u64 {
        self.exits.load(Relaxed)
    }

    /// Ends the threads, when they have made another pass.
    pub fn stop(mut self) -> Result<()> {
        self.asked = STOP;
        for vcpu in 0..self.vcpus() {
            self.word(vcpu, Word::Asked).store(STOP, Relaxed);
        }
        for thread in self.threads.drain(..) {
            thread.join().expect("a vCPU's thread does not panic")?;
        }
        Ok(())
    }
}

/// A report after which a vCPU is run no more.
const STOP: u64 = u32::MAX as u64;

fn run(mut vcpu: Vcpu, reports: &Sender<u64>, exits: &AtomicU64) -> Result<()> {
    let words = WORDS + vcpu.id * PAGE;
    vcpu.start(kvm_regs {
        rbx: words,
        ..Default::default()
    })?;
    loop {
        match vcpu.fd.run() {
            Ok(VcpuExit::IoOut(REPORT_PORT, answer)) => {
                let answer = u32::from_le_bytes(answer.try_into()?).into();
                if answer == STOP || reports.send(answer).is_err() {
                    return Ok(());
                }
            }
            Ok(VcpuExit::MmioRead(_, data)) => {
                data.fill(0xff);
                exits.fetch_add(1, Relaxed);
            }
            Ok(VcpuExit::MmioWrite(..)) => {
                exits.fetch_add(1, Relaxed);
            }
            Ok(VcpuExit::Intr) => {}
            Err(e) if e.errno() == libc::EINTR => {}
            Ok(other) => bail!("{other:x?}"),
            Err(e) => bail!("KVM_RUN: {e}"),
        }
    }
}

/// Makes this thread wait whenever another one wants the CPU.
fn run_when_idle() -> Result<()> {
    // SAFETY: All zero is a priority.
    let param = unsafe { std::mem::zeroed() };
    // SAFETY: The parameter is valid.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &param) };
    nix::errno::Errno::result(result).context("sched_setscheduler")?;
    Ok(())
}
