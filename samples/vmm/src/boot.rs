// SPDX-License-Identifier: GPL-2.0

//! What has to be in guest memory for Linux to start, by its 64-bit boot protocol
//! (Documentation/arch/x86/boot.rst).
//!
//! | at | is |
//! |---|---|
//! | 0x500 | descriptors of the segments |
//! | 0x7000 | `boot_params`, the "zero page" |
//! | 0x9000 | page tables that map the first 4G one to one |
//! | 0x2_0000 | the command line |
//! | 0xf_0000 | the table of processors and interrupts |
//! | 1M | the kernel, still compressed: the bzImage, mapped |
//! | 16M, as a rule | where the kernel puts itself |
//! | end of RAM below 3G | the initramfs, mapped |

use std::ffi::CString;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{ensure, Context, Result};
use linux_loader::cmdline::Cmdline;
use linux_loader::loader::bootparam::{
    boot_e820_entry, boot_params, setup_header, LOADED_HIGH, XLF_KERNEL_64,
};
use vm_memory::ByteValued;

use crate::memory::{GuestMemory, PAGE};
use crate::mptable;

pub const GDT: u64 = 0x500;
pub const ZERO_PAGE: u64 = 0x7000;
pub const PAGE_TABLES: u64 = 0x9000;
const CMDLINE: u64 = 0x2_0000;
/// Below 640K, less the last one, which is a BIOS's.
const BASE_RAM_END: u64 = 0x9_fc00;
const EXTENDED_RAM: u64 = 0x10_0000;
const KERNEL: u64 = EXTENDED_RAM;
/// From where the protected-mode code is loaded.
const ENTRY_64: u64 = 0x200;

/// Nothing, nothing, code and data: selectors 0x10 and 0x18 are the boot protocol's.
pub const SEGMENTS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// A bzImage.
pub struct Image {
    file: File,
    header: setup_header,
    /// Its protected-mode code.
    code: Range<u64>,
}

impl Image {
    pub fn open(path: &Path) -> Result<Self> {
        const HEADER: u64 = 0x1f1;
        const SECTOR: u64 = 512;
        const MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
        /// The first one that tells whether there is a 64-bit entry.
        const VERSION: u16 = 0x20c;

        let name = path.display();
        let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
        let len = file.metadata().with_context(|| format!("{name}"))?.len();
        let mut header = setup_header::default();
        // A file that is too short leaves the magic number out.
        let _ = file.read_exact_at(header.as_mut_slice(), HEADER);
        let (magic, version, flags) = (header.header, header.version, header.xloadflags);
        ensure!(magic == MAGIC, "{name} is not a Linux kernel (bzImage)");
        ensure!(
            version >= VERSION && header.loadflags & LOADED_HIGH != 0 && flags & XLF_KERNEL_64 != 0,
            "{name} is not a 64-bit Linux kernel"
        );
        // 0 is what old kernels say for 4.
        let sectors = match header.setup_sects {
            0 => 4,
            n => u64::from(n),
        };
        let code = (sectors + 1) * SECTOR..len;
        ensure!(code.start + ENTRY_64 < code.end, "{name} is cut short");
        Ok(Image { file, header, code })
    }

    fn code_len(&self) -> u64 {
        self.code.end - self.code.start
    }

    /// Where it has finished with memory before it knows what is where.
    fn end(&self) -> u64 {
        let unpacked = self.header.pref_address.max(KERNEL) + u64::from(self.header.init_size);
        unpacked.max(KERNEL + self.code_len())
    }

    pub fn cmdline(&self, append: &[String]) -> Result<CString> {
        let mut line = Cmdline::new(self.header.cmdline_size as usize + 1)?;
        // The keyboard controller is the one way here to reset.
        line.insert_str("console=ttyS0 reboot=k panic=-1")?;
        for more in append.iter().filter(|more| !more.trim().is_empty()) {
            line.insert_str(more).context("--append")?;
        }
        Ok(line.as_cstring()?)
    }
}

/// Fills guest memory, and returns where the first processor is to start.
pub fn load(
    memory: &GuestMemory,
    image: &Image,
    initramfs: Option<&Path>,
    cmdline: &CString,
    cpus: u8,
) -> Result<u64> {
    let end = image.end();
    let low = memory.ram()[0].end;
    ensure!(
        end <= low,
        "--mem is too small: the kernel needs {}M to start",
        end.div_ceil(1 << 20)
    );
    memory
        .place(&image.file, image.code.start, image.code_len(), KERNEL)
        .context("cannot place the kernel in guest memory")?;

    let mut params = boot_params {
        hdr: image.header,
        ..boot_params::default()
    };
    if let Some(path) = initramfs {
        let place = place_initramfs(memory, path, end..low, params.hdr.initrd_addr_max)
            .with_context(|| format!("initramfs {}", path.display()))?;
        params.hdr.ramdisk_image = place.start as u32;
        params.hdr.ramdisk_size = (place.end - place.start) as u32;
    }
    // Not one of the loaders that have a number.
    params.hdr.type_of_loader = 0xff;
    params.hdr.code32_start = KERNEL as u32;
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    let map = e820(memory.ram());
    params.e820_entries = map.len() as u8;
    for (to, from) in params.e820_table.iter_mut().zip(map) {
        *to = from;
    }

    memory.write(params.as_slice(), ZERO_PAGE)?;
    memory.write(cmdline.as_bytes_with_nul(), CMDLINE)?;
    memory.write(&SEGMENTS.map(u64::to_le_bytes).concat(), GDT)?;
    memory.write(&page_tables(), PAGE_TABLES)?;
    memory.write(&mptable::table(cpus), mptable::ADDRESS.into())?;
    Ok(KERNEL + ENTRY_64)
}

/// As high as the kernel lets it be, out of its way.
fn place_initramfs(
    memory: &GuestMemory,
    path: &Path,
    room: Range<u64>,
    last: u32,
) -> Result<Range<u64>> {
    let file = File::open(path).context("cannot open it")?;
    let len = file.metadata()?.len();
    ensure!(len > 0, "it is empty");
    let top = room.end.min(u64::from(last) + 1);
    let start = top.checked_sub(len).map(|start| start & !(PAGE - 1));
    let start = start.filter(|start| *start >= room.start);
    let start = start.context("--mem is too small for it and the kernel")?;
    memory
        .place(&file, 0, len, start)
        .context("cannot place it in guest memory")?;
    Ok(start..start + len)
}

/// The map of memory that a BIOS would give.
fn e820(ram: &[Range<u64>]) -> Vec<boot_e820_entry> {
    const RAM: u32 = 1;
    const RESERVED: u32 = 2;
    let entry = |range: Range<u64>, r#type| boot_e820_entry {
        addr: range.start,
        size: range.end - range.start,
        r#type,
    };
    let mut map = vec![
        entry(0..BASE_RAM_END, RAM),
        entry(mptable::ADDRESS.into()..EXTENDED_RAM, RESERVED),
        entry(EXTENDED_RAM..ram[0].end, RAM),
    ];
    map.extend(ram[1..].iter().map(|range| entry(range.clone(), RAM)));
    map
}

/// One page of each of the upper two levels, and the first 4G in pages of 2M.
fn page_tables() -> Vec<u8> {
    const PRESENT_AND_WRITABLE: u64 = 3;
    const HUGE: u64 = 1 << 7;
    const GIGABYTES: u64 = 4;
    let page = |entries: Vec<u64>| {
        let mut bytes: Vec<u8> = entries.into_iter().flat_map(u64::to_le_bytes).collect();
        bytes.resize(PAGE as usize, 0);
        bytes
    };
    let table = |n: u64| (PAGE_TABLES + n * PAGE) | PRESENT_AND_WRITABLE;
    let mut pages = page(vec![table(1)]);
    pages.extend(page((0..GIGABYTES).map(|n| table(2 + n)).collect()));
    let huge = |n: u64| n << 21 | HUGE | PRESENT_AND_WRITABLE;
    pages.extend((0..GIGABYTES * 512).flat_map(|n| huge(n).to_le_bytes()));
    pages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::ranges;

    fn map(size: u64) -> Vec<(u64, u64, u32)> {
        let entries = e820(&ranges(size));
        entries.iter().map(|e| (e.addr, e.size, e.r#type)).collect()
    }

    #[test]
    fn the_map_is_sorted_and_has_all_ram() {
        for size in [64 << 20, 3 << 30, 5 << 30] {
            let map = map(size);
            for pair in map.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
            }
            let usable: u64 = map.iter().filter(|e| e.2 == 1).map(|e| e.1).sum();
            assert_eq!(usable, size - (EXTENDED_RAM - BASE_RAM_END));
        }
    }

    #[test]
    fn ram_above_4g_is_an_entry_of_its_own() {
        assert_eq!(map(64 << 20).len(), 3);
        assert_eq!(map(5 << 30)[3], (4 << 30, 2 << 30, 1));
    }

    #[test]
    fn pages_map_to_themselves() {
        let tables = page_tables();
        let entry = |at: u64| {
            let at = (at - PAGE_TABLES) as usize;
            u64::from_le_bytes(tables[at..at + 8].try_into().unwrap())
        };
        for addr in [0, 0x1000_0000, 0xfee0_0000, (4 << 30) - 1] {
            let mut table = PAGE_TABLES;
            for shift in [39, 30] {
                let entry = entry(table + 8 * (addr >> shift & 511));
                assert_eq!(entry & 0xfff, 3);
                table = entry & !0xfff;
            }
            let huge = entry(table + 8 * (addr >> 21 & 511));
            assert_eq!(huge, addr >> 21 << 21 | 0x83);
        }
    }

    #[test]
    fn what_is_written_below_1m_is_apart() {
        let written = [
            GDT..GDT + 32,
            ZERO_PAGE..ZERO_PAGE + size_of::<boot_params>() as u64,
            PAGE_TABLES..PAGE_TABLES + page_tables().len() as u64,
            CMDLINE..CMDLINE + 0x1_0000,
            BASE_RAM_END..BASE_RAM_END,
            u64::from(mptable::ADDRESS)..EXTENDED_RAM,
        ];
        for pair in written.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{pair:x?}");
        }
    }
}
