// SPDX-License-Identifier: GPL-2.0

//! Which space is meant.

use std::os::fd::RawFd;
use std::str::FromStr;

use asfd::{process, AddressSpace};

/// A descriptor of another process (`PID:FD`) or one that asctl inherited (`:FD`, `self:FD`, `FD`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// `None`: asctl itself.
    pid: Option<u32>,
    fd: RawFd,
}

impl Target {
    pub fn open(&self) -> asfd::Result<AddressSpace> {
        match self.pid {
            Some(pid) => process::open(pid, self.fd),
            None => process::inherited(self.fd),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pid, fd) = match text.split_once(':') {
            Some(("" | "self", fd)) => (None, fd),
            Some((pid, fd)) => (Some(pid), fd),
            None => (None, text),
        };
        let pid = pid.map(number).transpose()?;
        let fd = number(fd)?;
        let fd = RawFd::try_from(fd).map_err(|_| format!("{fd} is too large for a descriptor"))?;
        Ok(Target { pid, fd })
    }
}

fn number(text: &str) -> Result<u32, String> {
    // parse() alone would take a sign.
    let number = text.parse().ok();
    number
        .filter(|_| !text.starts_with('+'))
        .ok_or_else(|| "want PID:FD, or FD for an inherited descriptor".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let parse = |text: &str| text.parse().ok().map(|t: Target| (t.pid, t.fd));
        assert_eq!(parse("12:3"), Some((Some(12), 3)));
        assert_eq!(parse(":3"), Some((None, 3)));
        assert_eq!(parse("self:3"), Some((None, 3)));
        assert_eq!(parse("3"), Some((None, 3)));
        for text in [
            "",
            ":",
            "1:",
            "a:3",
            "1:2:3",
            "-1",
            "1:-1",
            "+1:3",
            "3000000000",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
