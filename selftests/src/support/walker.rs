// SPDX-License-Identifier: GPL-2.0

//! A guest whose page tables lie in windows, with decoys of them in the VMM's own memory at the
//! numbers by which KVM could take that for the space's.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::bench::{set_cpuid, Secrets};
use super::guest::{code_page, window, Args, Exit, Vcpu, Vm};
use super::{files, Map, Space, PAGE};

/// Where the guest finds its directories, and where they are in the space.
pub const DIRECTORIES: u64 = 0x2200_0000;
/// The table, as the guest and the space have it.
pub const TABLE: u64 = 0x1000_0000;
pub const TABLE_OFFSET: u64 = 0x2000_0000;
/// Pages that its entries point at.
pub const DATA: u64 = 0x1800_0000;
pub const DATA_OFFSET: u64 = 0x2100_0000;
/// The addresses that the table maps.
pub const VIRTUAL: u64 = 0x4000_0000;

pub const ACCESSED: u64 = 1 << 5;
pub const DIRTY: u64 = 1 << 6;
/// Present, writable, for users.
pub const ENTRY: u64 = 7;

/// Entries of 4 bytes, or of 8 with physical address extension.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Format {
    Legacy,
    Extended,
}

impl Format {
    pub fn width(self) -> usize {
        match self {
            Format::Legacy => 4,
            Format::Extended => 8,
        }
    }

    pub fn bytes(self, entry: u64) -> Vec<u8> {
        entry.to_le_bytes()[..self.width()].to_vec()
    }

    /// A table whose entry n points at the n-th page of data.
    pub fn table(self, bits: u64) -> Vec<u8> {
        let entries = PAGE / self.width() as u64;
        (0..entries)
            .flat_map(|n| self.bytes((DATA + n % 4 * PAGE) | bits))
            .collect()
    }

    /// A table whose entries point at the last page of data.
    pub fn decoy(self) -> Vec<u8> {
        self.bytes((DATA + 4 * PAGE) | ENTRY)
            .repeat(PAGE as usize / self.width())
    }

    /// Where the directory's entry for `VIRTUAL` is.
    pub fn directory_entry(self) -> u64 {
        match self {
            Format::Legacy => 256 * 4,
            Format::Extended => 4 * PAGE,
        }
    }

    /// Directories with the code in their first page.
    pub fn directories(self) -> File {
        let file = files::memfd(6 * PAGE);
        let put = |at: u64, bytes: &[u8]| file.write_all_at(bytes, at).expect("write");
        put(0, &code_page());
        if self == Format::Extended {
            // The directory pointers at 2 pages, directories at 3 and 4: the first gigabyte is
            // mapped as it is, in pages of 2 MiB.
            for (n, directory) in [3, 4].into_iter().enumerate() {
                put(
                    2 * PAGE + 8 * n as u64,
                    &(directory * PAGE + 1).to_le_bytes(),
                );
            }
            let identity: Vec<u8> = (0..512u64)
                .flat_map(|n| (n << 21 | 0xe7).to_le_bytes())
                .collect();
            put(3 * PAGE, &identity);
        }
        put(self.directory_entry(), &self.bytes(TABLE | ENTRY));
        file
    }
}

/// A guest whose page tables are in windows.
pub struct Walker {
    pub space: Space,
    pub vcpu: Vcpu,
    pub vm: Vm,
    pub format: Format,
    secrets: Secrets,
}

impl Walker {
    pub fn new(format: Format, table_flags: u32) -> Walker {
        let secrets = Secrets::at(&[TABLE, TABLE_OFFSET], PAGE);
        secrets.begin_with(&format.decoy());
        let (vm, space) = (Vm::new(), Space::new());
        space.must_map(Map::file(&format.directories(), DIRECTORIES, 6 * PAGE));
        space.must_map(Map::file(&files::numbered(5, b'0'), DATA_OFFSET, 5 * PAGE));
        vm.must_map(window(0, 0, 6 * PAGE, &space, DIRECTORIES));
        vm.must_map(window(1, DATA, 5 * PAGE, &space, DATA_OFFSET));
        let mut table = window(2, TABLE, PAGE, &space, TABLE_OFFSET);
        table.flags = table_flags;
        vm.must_map(table);
        let vcpu = vm.vcpu(0);
        set_cpuid(&vm, &vcpu);
        if format == Format::Extended {
            let mut sregs = vcpu.fd.get_sregs().expect("KVM_GET_SREGS");
            sregs.cr4 |= 1 << 5;
            sregs.cr3 = 2 * PAGE;
            vcpu.fd.set_sregs(&sregs).expect("KVM_SET_SREGS");
        }
        Walker {
            space,
            vcpu,
            vm,
            format,
            secrets,
        }
    }

    /// Has the guest run this, which is put behind its directories.
    pub fn run(&mut self, program: &[u8], args: Args) -> Exit {
        self.space.put(DIRECTORIES + 5 * PAGE, program);
        self.vcpu.jump(5 * PAGE, args)
    }

    pub fn entry_at(&self, offset: u64) -> u64 {
        let mut entry = self.space.get(offset, self.format.width() as u64);
        entry.resize(8, 0);
        u64::from_le_bytes(entry.try_into().expect("8 bytes"))
    }

    #[track_caller]
    pub fn untouched(&self) {
        self.secrets.hold(&self.format.decoy());
    }
}
