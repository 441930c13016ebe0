// SPDX-License-Identifier: GPL-2.0

//! The VMM as a process, and the guest as one sees it: by its console.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use asfd::{process, AddressSpace};

use crate::initramfs::SHOWN_AS;

/// How long the guest has for anything. It is slow where one emulates the machine and a debug
/// kernel the processors.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// What the guest says when it takes commands.
pub const READY: &str = "the guest is ready";

/// The lines of its boot that are worth to be seen.
const TELLING: [&str; 7] = [
    "Linux version",
    "Command line:",
    "Hypervisor detected",
    "found SMP MP-table",
    "Memory:",
    "smp: Brought up",
    "Run /init",
];

pub struct Config<'a> {
    pub kernel: &'a Path,
    pub initramfs: &'a Path,
    pub memory: u64,
    pub cpus: u8,
    pub append: &'a str,
}

pub struct Guest {
    vmm: Child,
    keyboard: ChildStdin,
    console: Receiver<String>,
    complaints: Receiver<String>,
    log: Vec<String>,
    commands: u32,
    /// Its memory, as asctl takes it.
    pub space: String,
}

impl Guest {
    pub fn start(config: &Config) -> Result<Self> {
        // An emulated processor may set XCR0 without telling KVM, which then has another idea of
        // how large its state is; Linux would complain.
        let append = format!("noxsave {}", config.append);
        let mut vmm = Command::new("vmm")
            .arg("--kernel")
            .arg(config.kernel)
            .arg("--initramfs")
            .arg(config.initramfs)
            .args(["--mem", &config.memory.to_string()])
            .args(["--cpus", &config.cpus.to_string()])
            .args(["--append", append.trim()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run vmm")?;
        let taken = "each stream is taken once";
        let keyboard = vmm.stdin.take().expect(taken);
        let screen = vmm.stdout.take().expect(taken);
        let mut errors = BufReader::new(vmm.stderr.take().expect(taken));

        let mut first = String::new();
        errors.read_line(&mut first)?;
        eprint!("{first}");
        let space = first.split_once(" is ").map(|(_, rest)| rest);
        let space = space.and_then(|rest| rest.split(';').next());
        let space = space.context("the VMM did not start")?.to_owned();
        // Nobody may listen any more when the guest has ended.
        let (sender, complaints) = mpsc::channel();
        thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                eprintln!("{line}");
                let _ = sender.send(line);
            }
        });
        let (sender, console) = mpsc::channel();
        thread::spawn(move || lines(screen).try_for_each(|line| sender.send(line)));
        Ok(Guest {
            vmm,
            keyboard,
            console,
            complaints,
            log: Vec::new(),
            commands: 0,
            space,
        })
    }

    pub fn pid(&self) -> u32 {
        self.vmm.id()
    }

    /// Its memory, for this process.
    pub fn space(&self) -> Result<AddressSpace> {
        let (pid, fd) = self.space.split_once(':').context("no PID:FD")?;
        Ok(process::open(pid.parse()?, fd.parse()?)?)
    }

    /// Waits until the guest takes commands, and shows some of what it says before.
    pub fn boots(&mut self) -> Result<()> {
        self.wait(READY, |line| {
            if TELLING.iter().any(|telling| line.contains(telling)) {
                println!("  guest | {line}");
            }
            line == READY
        })?;
        Ok(())
    }

    /// Waits for a first sign of life.
    pub fn says_something(&mut self) -> Result<()> {
        self.wait("say something", |_| true)?;
        Ok(())
    }

    /// What Linux said first.
    pub fn version(&self) -> Option<&str> {
        let mut lines = self.log.iter();
        lines.find_map(|line| line.find("Linux version").map(|start| &line[start..]))
    }

    /// Waits until the guest shows this as its note.
    pub fn note_becomes(&mut self, text: &str) -> Result<()> {
        let shown = format!("{SHOWN_AS}{text}");
        let line = self.wait(&shown, |line| line.starts_with(&shown))?;
        println!("  guest | {line}");
        Ok(())
    }

    /// Has the guest run a command, which has to succeed; returns the lines that it wrote.
    pub fn shell(&mut self, command: &str) -> Result<Vec<String>> {
        self.commands += 1;
        let end = format!("[{}] ", self.commands);
        writeln!(self.keyboard, "{{ {command}; }} 2>&1; echo \"{end}$?\"")?;
        let mut lines = Vec::new();
        let last = self.wait(command, |line| {
            if !line.starts_with(SHOWN_AS) && !line.starts_with(&end) {
                lines.push(line.to_owned());
            }
            line.starts_with(&end)
        })?;
        let status = last.trim_start_matches(&end);
        ensure!(
            status == "0",
            "in the guest, {command}: status {status}, {}",
            lines.join("; ")
        );
        Ok(lines)
    }

    /// Of all memory that Linux has, in KiB.
    pub fn memory_total(&mut self) -> Result<u64> {
        let line = self.shell("grep MemTotal: /proc/meminfo")?.join("");
        let number = line.split_whitespace().nth(1);
        Ok(number.context("no MemTotal")?.parse()?)
    }

    pub fn reboot(&mut self) -> Result<()> {
        Ok(writeln!(self.keyboard, "reboot -f")?)
    }

    /// Waits for the VMM to end.
    pub fn end(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.vmm.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("the VMM does not end");
    }

    /// What the VMM wrote to standard error after its first line, once it has ended.
    pub fn complaints(&self) -> Vec<String> {
        self.complaints.iter().collect()
    }

    /// The end of what was on the console, when something went wrong.
    pub fn show_last_words(&mut self) {
        self.log.extend(self.console.try_iter());
        let from = self.log.len().saturating_sub(30);
        for line in &self.log[from..] {
            eprintln!("  guest | {line}");
        }
    }

    /// Waits for a line of the console.
    fn wait(&mut self, what: &str, mut is_it: impl FnMut(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.console.recv_timeout(left);
            let line = line.with_context(|| format!("the guest did not get to: {what}"))?;
            self.log.push(line.clone());
            if is_it(&line) {
                return Ok(line);
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It has ended, unless something went wrong.
        let _ = self.vmm.kill();
        let _ = self.vmm.wait();
    }
}

/// Lines of a console, with the bytes that are no text as `\xff`.
fn lines(screen: impl Read) -> impl Iterator<Item = String> {
    let lines = BufReader::new(screen).split(b'\n');
    lines.map_while(Result::ok).map(|line| readable(&line))
}

fn readable(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    line.iter()
        .map(|&byte| match byte {
            b' '..=b'~' | b'\t' => char::from(byte).to_string(),
            _ => format!("\\x{byte:02x}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_text() {
        let console = &b"one\r\ntwo \"2\"\r\n\xff\xff\x00\r\nrest"[..];
        let lines: Vec<_> = lines(console).collect();
        assert_eq!(lines, ["one", "two \"2\"", r"\xff\xff\x00", "rest"]);
    }
}
