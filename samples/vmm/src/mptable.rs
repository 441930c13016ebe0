// SPDX-License-Identifier: GPL-2.0

//! Tells the guest of its processors and of the wiring of its interrupts, as the Intel
//! MultiProcessor Specification, version 1.4, has it. There is no ACPI here that would.

/// Where a guest looks for it: the area of a BIOS, 64K below 1M.
pub const ADDRESS: u32 = 0xf_0000;

const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
const ISA_BUS: u8 = 0;
const ISA_IRQS: u8 = 16;
/// The second interrupt controller of a PC is wired to this one; no device is.
const CASCADE: u8 = 2;

const POINTER_LEN: usize = 16;
const HEADER_LEN: usize = 44;
const SPEC_1_4: u8 = 4;

/// Types of interrupts, and the local APICs' inputs.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
const ALL_APICS: u8 = 0xff;

/// As many as have an APIC ID, one being that of the I/O APIC and one the broadcast.
pub const MAX_CPUS: u8 = 254;

/// The floating pointer, followed by the table that it points to. Processor n has APIC ID n.
pub fn table(cpus: u8) -> Vec<u8> {
    let entries = entries(cpus);
    let len = HEADER_LEN + entries.iter().map(Vec::len).sum::<usize>();

    let mut pointer = b"_MP_".to_vec();
    pointer.extend((ADDRESS + POINTER_LEN as u32).to_le_bytes());
    // Its length in units of 16 bytes, the version, the checksum; a table is there; no IMCR.
    pointer.extend([1, SPEC_1_4, 0, 0, 0, 0, 0, 0]);
    pointer[10] = checksum(&pointer);

    let mut table = b"PCMP".to_vec();
    table.extend((len as u16).to_le_bytes());
    table.extend([SPEC_1_4, 0]);
    table.extend(b"ASFD    ");
    table.extend(b"VMM SAMPLE  ");
    // No table of the manufacturer's.
    table.extend([0; 6]);
    table.extend((entries.len() as u16).to_le_bytes());
    table.extend(LOCAL_APIC.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries.concat());
    table[7] = checksum(&table);

    [pointer, table].concat()
}

fn entries(cpus: u8) -> Vec<Vec<u8>> {
    let io_apic = cpus;
    let mut entries: Vec<_> = (0..cpus).map(processor).collect();
    entries.push([&[1, ISA_BUS][..], b"ISA   "].concat());
    let usable = 1;
    entries.push([&[2, io_apic, 0x11, usable][..], &IO_APIC.to_le_bytes()].concat());
    // KVM's I/O APIC has each interrupt of the ISA bus at the pin of its number.
    let irqs = (0..ISA_IRQS).filter(|&irq| irq != CASCADE);
    entries.extend(irqs.map(|irq| vec![3, INT, 0, 0, ISA_BUS, irq, io_apic, irq]));
    entries.push(vec![4, EXT_INT, 0, 0, ISA_BUS, 0, 0, 0]);
    entries.push(vec![4, NMI, 0, 0, ISA_BUS, 0, ALL_APICS, 1]);
    entries
}

fn processor(id: u8) -> Vec<u8> {
    const USABLE: u8 = 1;
    const BOOTS: u8 = 2;
    const HAS_FPU_AND_APIC: u32 = 1 | 1 << 9;
    let flags = if id == 0 { USABLE | BOOTS } else { USABLE };
    let mut entry = vec![0, id, 0x14, flags, 0, 0, 0, 0];
    entry.extend(HAS_FPU_AND_APIC.to_le_bytes());
    entry.extend([0; 8]);
    entry
}

/// What makes the sum of all bytes 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0, |sum: u8, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The entries as a guest walks them: type and bytes.
    fn walk(bytes: &[u8]) -> Vec<&[u8]> {
        let table = &bytes[POINTER_LEN..];
        let mut rest = &table[HEADER_LEN..];
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let (entry, others) = rest.split_at(if rest[0] == 0 { 20 } else { 8 });
            entries.push(entry);
            rest = others;
        }
        entries
    }

    #[test]
    fn it_is_consistent() {
        for cpus in [1, 2, 8, MAX_CPUS] {
            let bytes = table(cpus);
            let (pointer, config) = bytes.split_at(POINTER_LEN);
            assert_eq!(checksum(pointer), 0);
            assert_eq!(checksum(config), 0);
            assert_eq!(&pointer[..4], b"_MP_");
            assert_eq!(pointer[4..8], (ADDRESS + 16).to_le_bytes());
            assert_eq!(&config[..4], b"PCMP");
            assert_eq!(config[4..6], (config.len() as u16).to_le_bytes());
            let entries = walk(&bytes);
            assert_eq!(config[34..36], (entries.len() as u16).to_le_bytes());
            // It stays in the area that a guest searches.
            assert!(bytes.len() < 0x1_0000);
        }
    }

    #[test]
    fn every_processor_is_there_and_the_first_one_boots() {
        for cpus in [1, 3, MAX_CPUS] {
            let bytes = table(cpus);
            let processors: Vec<_> = walk(&bytes).into_iter().filter(|e| e[0] == 0).collect();
            assert_eq!(processors.len(), usize::from(cpus));
            for (n, entry) in processors.iter().enumerate() {
                assert_eq!(entry[1], n as u8);
                assert_eq!(entry[3], if n == 0 { 3 } else { 1 });
            }
        }
    }

    #[test]
    fn interrupts_reach_an_apic_that_is_there() {
        let bytes = table(2);
        let entries = walk(&bytes);
        let io_apic = entries.iter().find(|e| e[0] == 2).unwrap()[1];
        assert_eq!(io_apic, 2);
        let irqs: Vec<_> = entries.iter().filter(|e| e[0] == 3).collect();
        assert_eq!(irqs.len(), 15);
        assert!(irqs.iter().all(|e| e[6] == io_apic && e[5] == e[7]));
    }
}
