// SPDX-License-Identifier: GPL-2.0

//! The files that the guest starts with: busybox, and a script that runs it.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use cpio::newc::{self, Builder, ModeFileType};

use crate::guest::READY;

const BUSYBOX: &str = "/bin/busybox";

/// The guest writes this into a file, and shows what is in that file again and again.
pub const NOTE: &str = "what the guest wrote";
/// Of the file, with the end of the line.
pub const NOTE_LEN: usize = 48;
pub const SHOWN_AS: &str = "note: ";

/// Shows the note, and runs what comes from the console. The note is put together there, so that
/// it is nowhere in memory before.
fn init() -> String {
    let (first, second) = NOTE.split_at(NOTE.len() / 2);
    let width = NOTE_LEN - 1;
    format!(
        "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
stty -echo
dmesg -n 1
printf '%-{width}s\\n' '{first}''{second}' > /note
while :; do read -r text < /note; echo \"{SHOWN_AS}$text\"; sleep 1; done &
echo '{READY}'
while read -r command; do eval \"$command\"; done
"
    )
}

pub fn write(path: &Path) -> Result<()> {
    let busybox = fs::read(BUSYBOX).context(BUSYBOX)?;
    let mut archive = BufWriter::new(File::create(path)?);
    for folder in ["bin", "dev", "proc", "sys", "mnt"] {
        add(&mut archive, folder, ModeFileType::Directory, &[])?;
    }
    add(&mut archive, "bin/busybox", ModeFileType::Regular, &busybox)?;
    add(
        &mut archive,
        "init",
        ModeFileType::Regular,
        init().as_bytes(),
    )?;
    newc::trailer(&mut archive)?.flush()?;
    Ok(())
}

fn add(archive: &mut impl Write, name: &str, kind: ModeFileType, content: &[u8]) -> Result<()> {
    let entry = Builder::new(name).mode(0o755).set_mode_file_type(kind);
    let mut file = entry.write(archive, content.len().try_into()?);
    file.write_all(content)?;
    file.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_is_not_in_the_archive() {
        let init = init();
        assert!(!init.contains(NOTE));
        assert!(NOTE.len() < NOTE_LEN);
    }
}
