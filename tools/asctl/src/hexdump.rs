// SPDX-License-Identifier: GPL-2.0

//! A dump in the format of `hexdump -C`.

use std::io::{self, Write};

const WIDTH: usize = 16;

/// Writes bytes as lines of address, hexadecimal and text. A line like the one before it is
/// left out; a `*` stands for all of them.
pub struct Hexdump<W: Write> {
    out: W,
    addr: u64,
    line: Vec<u8>,
    last: Vec<u8>,
    starred: bool,
}

impl<W: Write> Hexdump<W> {
    pub fn new(out: W, addr: u64) -> Self {
        Hexdump {
            out,
            addr,
            line: Vec::new(),
            last: Vec::new(),
            starred: false,
        }
    }

    /// Writes the line that is not full yet, and the address where the dump ends. A dump of nothing
    /// stays empty.
    pub fn finish(mut self) -> io::Result<()> {
        if !self.line.is_empty() {
            self.write_line()?;
        }
        if !self.last.is_empty() {
            writeln!(self.out, "{:08x}", self.addr)?;
        }
        self.out.flush()
    }

    fn write_line(&mut self) -> io::Result<()> {
        if self.line == self.last {
            if !self.starred {
                writeln!(self.out, "*")?;
            }
            self.starred = true;
        } else {
            self.starred = false;
            writeln!(self.out, "{:08x}  {}", self.addr, format_line(&self.line))?;
        }
        self.addr += self.line.len() as u64;
        std::mem::swap(&mut self.line, &mut self.last);
        self.line.clear();
        Ok(())
    }
}

impl<W: Write> Write for Hexdump<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        for &byte in buf {
            self.line.push(byte);
            if self.line.len() == WIDTH {
                self.write_line()?;
            }
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn format_line(line: &[u8]) -> String {
    let mut hex = String::new();
    let mut text = String::new();
    for (i, &byte) in line.iter().enumerate() {
        let gap = if i == WIDTH / 2 { " " } else { "" };
        hex += &format!("{gap}{byte:02x} ");
        let visible = byte == b' ' || byte.is_ascii_graphic();
        text.push(if visible { byte.into() } else { '.' });
    }
    format!("{hex:<50}|{text}|")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump(addr: u64, bytes: &[u8]) -> String {
        let mut out = Vec::new();
        let mut dump = Hexdump::new(&mut out, addr);
        // In pieces that do not end where lines do.
        for piece in bytes.chunks(7) {
            dump.write_all(piece).unwrap();
        }
        dump.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    // What hexdump -C writes.
    #[test]
    fn as_hexdump_does() {
        let mut bytes = b"Hello, world!\n\0\x7f".to_vec();
        bytes.extend([0; 48]);
        bytes.extend(b"end");
        let expected = "\
00000000  48 65 6c 6c 6f 2c 20 77  6f 72 6c 64 21 0a 00 7f  |Hello, world!...|
00000010  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|
*
00000040  65 6e 64                                          |end|
00000043
";
        assert_eq!(dump(0, &bytes), expected);
    }

    #[test]
    fn addresses_may_be_long() {
        assert!(dump(0x12_3456_7890, b"a").starts_with("1234567890  61 "));
    }

    #[test]
    fn nothing() {
        assert_eq!(dump(0x10, b""), "");
    }
}
