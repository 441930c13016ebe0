// SPDX-License-Identifier: GPL-2.0

//! Standard input, for the guest's console.

use std::io::{self, IsTerminal, Read};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::termios::{cfmakeraw, tcgetattr, tcsetattr, SetArg, Termios};

use crate::devices::Devices;

/// A terminal whose keys all go to the guest. It is as before when this is dropped.
pub struct RawTerminal(Termios);

impl RawTerminal {
    /// `None` if standard input is no terminal.
    pub fn new() -> Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin).context("terminal")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw).context("terminal")?;
        Ok(Some(RawTerminal(before)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

/// Hands on what is typed, until its end. On a terminal `^A x` ends the VMM.
pub fn feed(devices: &Devices, ended: &Sender<Result<()>>) {
    let mut keys = io::stdin().is_terminal().then(Keys::default);
    let mut buf = [0; 64];
    while let Ok(n @ 1..) = io::stdin().read(&mut buf) {
        let mut typed = buf[..n].to_vec();
        if let Some(keys) = &mut keys {
            if keys.filter(&mut typed) {
                let _ = ended.send(Ok(()));
                return;
            }
        }
        let mut rest = &typed[..];
        while !rest.is_empty() {
            match devices.input(rest) {
                // Until the guest has read some of what is there.
                0 => thread::sleep(Duration::from_millis(5)),
                n => rest = &rest[n..],
            }
        }
    }
}

/// `^A` starts a command to the VMM, `^A ^A` is one for the guest.
#[derive(Default)]
struct Keys {
    command: bool,
}

impl Keys {
    const PREFIX: u8 = 1;

    /// Takes the commands out. Returns whether there was one to end.
    fn filter(&mut self, typed: &mut Vec<u8>) -> bool {
        let mut end = false;
        typed.retain(|&key| {
            let command = std::mem::take(&mut self.command);
            end |= command && key == b'x';
            self.command = !command && key == Self::PREFIX;
            if command {
                key == Self::PREFIX
            } else {
                !self.command
            }
        });
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_not_for_the_guest() {
        for (typed, seen, end) in [
            ("ls\n", "ls\n", false),
            ("a\x01xb", "ab", true),
            ("\x01\x01x", "\x01x", false),
            ("\x01yx", "x", false),
            ("x", "x", false),
        ] {
            // Whether it comes at once or key by key.
            let mut all = typed.as_bytes().to_vec();
            assert_eq!(Keys::default().filter(&mut all), end, "{typed:?}");
            assert_eq!(all, seen.as_bytes(), "{typed:?}");
            let mut keys = Keys::default();
            let (mut single, mut ended) = (Vec::new(), false);
            for key in typed.bytes() {
                let mut key = vec![key];
                ended |= keys.filter(&mut key);
                single.extend(key);
            }
            assert_eq!((single, ended), (all, end), "{typed:?}");
        }
    }
}
