// SPDX-License-Identifier: GPL-2.0

//! Instructions that get at memory, each in another way.

use super::bench::FORCED;
use super::guest::Args;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// The routine leaves what it loaded in eax.
    Load,
    /// It stores eax.
    Store,
    /// It loads and stores in one.
    Update,
}

/// An instruction on the memory that ebx, esi and edi point at, or at the
/// bench's page of scratch, at 0x101000.
pub struct Op {
    pub name: &'static str,
    pub kind: Kind,
    /// Bytes of its operand.
    pub len: usize,
    before: &'static [u8],
    /// What is emulated if that is forced.
    code: &'static [u8],
    after: &'static [u8],
    /// What an update makes of the 8 bytes that it finds.
    pub new: fn(u64) -> u64,
}

const fn op(name: &'static str, kind: Kind, len: usize, code: &'static [u8]) -> Op {
    Op {
        name,
        kind,
        len,
        before: &[],
        code,
        after: &[],
        new: |old| old,
    }
}

const fn update(name: &'static str, len: usize, code: &'static [u8], new: fn(u64) -> u64) -> Op {
    let mut op = op(name, Kind::Update, len, code);
    op.new = new;
    op
}

const fn between(mut op: Op, before: &'static [u8], after: &'static [u8]) -> Op {
    op.before = before;
    op.after = after;
    op
}

/// The values that the programs find in eax, ecx and edx.
pub const EAX: u32 = 0x1122_3344;
pub const ECX: u32 = 0x5566_7788;

pub const OPS: [Op; 22] = [
    op("mov eax,[ebx]", Kind::Load, 4, &[0x8b, 0x03]),
    // xor eax,eax first
    between(
        op("mov ax,[ebx]", Kind::Load, 2, &[0x66, 0x8b, 0x03]),
        &[0x31, 0xc0],
        &[],
    ),
    op("movzx eax,byte [ebx]", Kind::Load, 1, &[0x0f, 0xb6, 0x03]),
    op("lodsd", Kind::Load, 4, &[0xad]),
    // mov esp,ebx before
    between(op("pop eax", Kind::Load, 4, &[0x58]), &[0x89, 0xdc], &[]),
    // mov edi,0x101000 before; mov eax,[edi-4] after
    between(
        op("movsd from", Kind::Load, 4, &[0xa5]),
        &[0xbf, 0x00, 0x10, 0x10, 0x00],
        &[0x8b, 0x47, 0xfc],
    ),
    op("mov [ebx],eax", Kind::Store, 4, &[0x89, 0x03]),
    op("mov [ebx],ax", Kind::Store, 2, &[0x66, 0x89, 0x03]),
    op("mov [ebx],al", Kind::Store, 1, &[0x88, 0x03]),
    op("stosd", Kind::Store, 4, &[0xab]),
    // lea esp,[ebx+4] before
    between(
        op("push eax", Kind::Store, 4, &[0x50]),
        &[0x8d, 0x63, 0x04],
        &[],
    ),
    // mov [0x101000],eax; mov esi,0x101000 before
    between(
        op("movsd to", Kind::Store, 4, &[0xa5]),
        &[0xa3, 0x00, 0x10, 0x10, 0x00, 0xbe, 0x00, 0x10, 0x10, 0x00],
        &[],
    ),
    update("inc dword [ebx]", 4, &[0xff, 0x03], |old| {
        low(old, 4, |w| w + 1)
    }),
    update("lock inc byte [ebx]", 1, &[0xf0, 0xfe, 0x03], |old| {
        low(old, 1, |w| w + 1)
    }),
    update("lock inc word [ebx]", 2, &[0x66, 0xf0, 0xff, 0x03], |old| {
        low(old, 2, |w| w + 1)
    }),
    update("lock inc dword [ebx]", 4, &[0xf0, 0xff, 0x03], |old| {
        low(old, 4, |w| w + 1)
    }),
    update("lock xadd [ebx],eax", 4, &[0xf0, 0x0f, 0xc1, 0x03], |old| {
        low(old, 4, |w| w + EAX as u64)
    }),
    update("xchg [ebx],eax", 4, &[0x87, 0x03], |old| {
        low(old, 4, |_| EAX as u64)
    }),
    update(
        "lock bts dword [ebx],31",
        4,
        &[0xf0, 0x0f, 0xba, 0x2b, 31],
        |old| old | 1 << 31,
    ),
    // mov eax,[0x101000] before: what is there
    between(
        update(
            "lock cmpxchg [ebx],ecx",
            4,
            &[0xf0, 0x0f, 0xb1, 0x0b],
            |old| low(old, 4, |_| ECX as u64),
        ),
        &[0xa1, 0x00, 0x10, 0x10, 0x00],
        &[],
    ),
    between(
        update(
            "lock cmpxchg [ebx],cl",
            1,
            &[0xf0, 0x0f, 0xb0, 0x0b],
            |old| low(old, 1, |_| ECX as u64),
        ),
        &[0xa1, 0x00, 0x10, 0x10, 0x00],
        &[],
    ),
    // mov eax,[0x101000]; mov edx,[0x101004]; mov ebx,0x01020304 before
    between(
        update("lock cmpxchg8b [edi]", 8, &[0xf0, 0x0f, 0xc7, 0x0f], |_| {
            (ECX as u64) << 32 | 0x0102_0304
        }),
        &[
            0xa1, 0x00, 0x10, 0x10, 0x00, 0x8b, 0x15, 0x04, 0x10, 0x10, 0x00, 0xbb, 0x04, 0x03,
            0x02, 0x01,
        ],
        &[],
    ),
];

/// Changes so many of the low bytes.
pub fn low(old: u64, len: usize, change: fn(u64) -> u64) -> u64 {
    let mask = (1 << (8 * len)) - 1;
    old & !mask | change(old & mask) & mask
}

pub fn program(op: &Op, forced: bool) -> Vec<u8> {
    let prefix: &[u8] = if forced { &FORCED } else { &[] };
    [op.before, prefix, op.code, op.after, &[0xf4]].concat()
}

pub fn args(at: u64) -> Args {
    Args {
        eax: EAX,
        ecx: ECX,
        ebx: at as u32,
        esi: at as u32,
        edi: at as u32,
        ..Default::default()
    }
}
