// SPDX-License-Identifier: GPL-2.0

//! Swap on RAM disks, so that anonymous memory and memfds can be paged out.

use std::process::Command;

/// Off again at the end.
pub struct Swap(Vec<String>);

impl Swap {
    /// On so many disks, if all can be had.
    pub fn on(disks: u64) -> Option<Swap> {
        let mut swap = Swap(Vec::new());
        for number in 0..disks {
            let disk = format!("/dev/ram{number}");
            if !(run("mkswap", &disk) && run("swapon", &disk)) {
                return None;
            }
            swap.0.push(disk);
        }
        Some(swap)
    }
}

fn run(program: &str, disk: &str) -> bool {
    let output = Command::new(program).arg(disk).output();
    output.is_ok_and(|output| output.status.success())
}

impl Drop for Swap {
    fn drop(&mut self) {
        for disk in &self.0 {
            run("swapoff", disk);
        }
    }
}
