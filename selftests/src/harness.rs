// SPDX-License-Identifier: GPL-2.0

//! Runs the tests, each in a process of its own, and prints KTAP.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{killpg, Signal};
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use nix::unistd::{fork, getpid, pipe, setpgid, ForkResult, Pid};

/// One test: it passes by returning and fails by panicking.
pub struct Test {
    pub module: &'static str,
    pub name: &'static str,
    pub run: fn(),
    /// After this many seconds it has failed.
    pub limit: u64,
}

/// The tests of a module: `suite![first, second, long(600)]`, the limit in seconds.
#[macro_export]
macro_rules! suite {
    ($($name:ident $(($limit:literal))?),* $(,)?) => {
        pub const TESTS: &[$crate::harness::Test] = &[$($crate::harness::Test {
            module: module_path!(),
            name: stringify!($name),
            run: $name,
            limit: [$($limit,)? 180][0],
        }),*];
    };
}

/// Prints a line of diagnostics.
#[macro_export]
macro_rules! note {
    ($($arg:tt)*) => { println!("# {}", format_args!($($arg)*)) };
}

const USAGE: &str = "usage: selftests [--list] [--skip PREFIX]... [PREFIX]...

Runs the tests whose names begin with a PREFIX, all without one, and prints KTAP.
  --list         print the names only
  --skip PREFIX  leave out the tests whose names begin with PREFIX
The status is 0 when every test passed or was skipped, 1 when one failed, 2 on wrong usage.
SELFTESTS_ROUNDS sets the rounds of kvm_close_stress (500), and how long the
model and the races of mirrors run, in proportion to that.";

const SKIPPED: i32 = 4;

/// Where a test's process tells the harness why it failed or was skipped.
static REPORT: OnceLock<File> = OnceLock::new();

enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

impl Test {
    fn full_name(&self) -> String {
        let module = self.module.rsplit("::").next().unwrap();
        format!("{module}.{}", self.name)
    }
}

/// Ends the test as skipped.
pub fn skip(why: &str) -> ! {
    report(why);
    // SAFETY: Ends the process; nothing of it is needed any more.
    unsafe { libc::_exit(SKIPPED) }
}

fn report(line: &str) {
    if let Some(mut file) = REPORT.get() {
        let _ = writeln!(file, "{}", line.replace('\n', "; "));
    }
}

pub fn main(suites: &[&'static [Test]]) -> ExitCode {
    let mut list = false;
    let (mut only, mut skipped) = (Vec::new(), Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--list" => list = true,
            "--help" | "-h" => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            "--skip" => match args.next() {
                Some(prefix) => skipped.push(prefix),
                None => return usage_error("--skip needs a prefix"),
            },
            option if option.starts_with('-') => {
                return usage_error(&format!("unknown option {option}"));
            }
            _ => only.push(arg),
        }
    }
    let begins = |name: &str, list: &[String]| list.iter().any(|p| name.starts_with(p.as_str()));
    let tests: Vec<&Test> = suites
        .iter()
        .copied()
        .flatten()
        .filter(|test| {
            let name = test.full_name();
            (only.is_empty() || begins(&name, &only)) && !begins(&name, &skipped)
        })
        .collect();
    if tests.is_empty() {
        return usage_error("no test has such a name; --list shows them");
    }
    if list {
        for test in &tests {
            println!("{}", test.full_name());
        }
        return ExitCode::SUCCESS;
    }
    run_all(&tests)
}

fn usage_error(problem: &str) -> ExitCode {
    eprintln!("selftests: {problem}\n{USAGE}");
    ExitCode::from(2)
}

fn run_all(tests: &[&Test]) -> ExitCode {
    println!("KTAP version 1\n1..{}", tests.len());
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (number, test) in (1..).zip(tests) {
        let name = test.full_name();
        let started = Instant::now();
        let outcome = run_one(test);
        let took = started.elapsed().as_millis();
        match outcome {
            Outcome::Passed => {
                passed += 1;
                println!("ok {number} {name} # {took} ms");
            }
            Outcome::Skipped(why) => {
                skipped += 1;
                println!("ok {number} {name} # SKIP {why}");
            }
            Outcome::Failed(why) => {
                failed += 1;
                println!("not ok {number} {name} # {why} ({took} ms)");
            }
        }
    }
    println!("# Totals: pass:{passed} fail:{failed} skip:{skipped}");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run_one(test: &Test) -> Outcome {
    let (reader, writer) = pipe().expect("pipe");
    // SAFETY: This process has one thread, so the child may go on as if nothing had happened.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Child => {
            drop(reader);
            setpgid(Pid::from_raw(0), Pid::from_raw(0)).expect("setpgid");
            REPORT.set(File::from(writer)).expect("set once");
            run_here(test)
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let status = wait(child, Duration::from_secs(test.limit));
            // What the test started and left behind ends with it.
            let _ = killpg(child, Signal::SIGKILL);
            outcome(status, File::from(reader), test.limit)
        }
    }
}

fn run_here(test: &Test) -> ! {
    std::panic::set_hook(Box::new(|info| {
        let line = info.to_string();
        println!("# {}", line.replace('\n', "\n# "));
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let message = text
            .or(payload.downcast_ref().copied())
            .unwrap_or("panicked");
        let place = info
            .location()
            .map(|l| format!(" ({}:{})", l.file(), l.line()));
        report(&format!("{message}{}", place.unwrap_or_default()));
    }));
    let result = std::panic::catch_unwind(test.run);
    // SAFETY: As in `skip`. Threads that still run end with the process.
    unsafe { libc::_exit(if result.is_ok() { 0 } else { 1 }) }
}

/// The status of the child, `None` if it did not end in time.
fn wait(child: Pid, limit: Duration) -> Option<WaitStatus> {
    // SAFETY: Takes no pointers; the result is checked and owned by nobody else.
    let pidfd = unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, child.as_raw(), 0);
        assert!(fd >= 0, "pidfd_open");
        OwnedFd::from_raw_fd(fd as i32)
    };
    let ended = |limit: Duration| {
        let timeout = PollTimeout::try_from(limit).expect("less than a month");
        poll(
            &mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)],
            timeout,
        ) == Ok(1)
    };
    if ended(limit) {
        return waitpid(child, None).ok();
    }
    show_stacks(child);
    let _ = killpg(child, Signal::SIGKILL);
    if ended(Duration::from_secs(20)) {
        let _ = waitpid(child, Some(WaitPidFlag::WNOHANG));
    } else {
        note!("{child} cannot be killed");
        show_stacks(child);
    }
    None
}

/// Where in the kernel the threads of a test that hangs are.
fn show_stacks(pid: Pid) {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return;
    };
    for task in tasks.flatten() {
        let wchan = std::fs::read_to_string(task.path().join("wchan")).unwrap_or_default();
        let state = std::fs::read_to_string(task.path().join("stack")).unwrap_or_default();
        note!("task {:?} waits in {wchan}", task.file_name());
        state.lines().for_each(|line| note!("  {line}"));
    }
}

fn outcome(status: Option<WaitStatus>, mut reader: File, limit: u64) -> Outcome {
    let mut said = vec![0; 4096];
    let fd = reader.as_fd();
    let ready = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1);
    let len = if ready {
        reader.read(&mut said).unwrap_or(0)
    } else {
        0
    };
    let said = String::from_utf8_lossy(&said[..len]);
    let first = said.lines().next().unwrap_or("").to_string();
    match status {
        None => Outcome::Failed(format!("did not end in {limit} s")),
        Some(WaitStatus::Exited(_, 0)) => Outcome::Passed,
        Some(WaitStatus::Exited(_, SKIPPED)) => Outcome::Skipped(first),
        Some(WaitStatus::Exited(_, 1)) if !first.is_empty() => Outcome::Failed(first),
        Some(other) => Outcome::Failed(format!("{other:?} of {} {first}", getpid())),
    }
}
