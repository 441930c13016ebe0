// SPDX-License-Identifier: GPL-2.0

//! What a process has mapped, by `/proc/PID/maps`.

use std::fs;

use anyhow::{Context, Result};

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Maps {
    /// The lines that are, or may be, guest memory: a mirror of a space, or what is mapped in one.
    pub guest_memory: Vec<String>,
    /// Bytes that the process can write.
    pub writable: u64,
}

const GUEST_MEMORY: [&str; 4] = ["[address_space", "memfd:", "bzImage", "/initramfs"];

pub fn of(pid: u32) -> Result<Maps> {
    let path = format!("/proc/{pid}/maps");
    let text = fs::read_to_string(&path).context(path.clone())?;
    parse(&text).context(path)
}

fn parse(text: &str) -> Result<Maps> {
    let mut maps = Maps::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let range = words.next().and_then(|range| range.split_once('-'));
        let (start, end) = range.context("no range of addresses")?;
        let len = u64::from_str_radix(end, 16)? - u64::from_str_radix(start, 16)?;
        if words.next().context("no permissions")?.contains('w') {
            maps.writable += len;
        }
        if GUEST_MEMORY.iter().any(|name| line.contains(name)) {
            maps.guest_memory.push(line.to_owned());
        }
    }
    Ok(maps)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = "\
7f0000000000-7f0000021000 rw-p 00000000 00:00 0
7f0000100000-7f0000103000 rw-s 00000000 00:0e 1042  anon_inode:kvm-vcpu:0
7f0000200000-7f0000300000 r-xp 00000000 00:02 77    /bin/vmm
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0     [stack]
";

    #[test]
    fn what_any_program_has_is_not_guest_memory() {
        let maps = parse(PROGRAM).unwrap();
        assert!(maps.guest_memory.is_empty());
        assert_eq!(maps.writable, 0x21000 + 0x3000 + 0x21000);
    }

    #[test]
    fn guest_memory_is_found() {
        for name in [
            "anon_inode:[address_space]",
            "/memfd:ram (deleted)",
            "/boot/bzImage",
        ] {
            let line = format!("7e0000000000-7e0004000000 rw-s 00000000 00:01 9  {name}");
            let maps = parse(&format!("{line}\n{PROGRAM}")).unwrap();
            assert_eq!(maps.guest_memory, [line]);
            assert!(maps.writable > 64 << 20);
        }
    }
}
