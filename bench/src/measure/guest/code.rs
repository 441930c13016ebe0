// SPDX-License-Identifier: GPL-2.0

//! What the guest executes: code that may lie anywhere, with its arguments in registers.

/// Code for the guest.
#[derive(Clone, Copy)]
pub struct Code {
    start: *const u8,
    end: *const u8,
}

/// Where code has its handler of page faults, if it has one.
pub const PAGE_FAULT_AT: u64 = 16;

impl Code {
    /// # Safety
    ///
    /// What lies in between is constant.
    pub const unsafe fn between(start: *const u8, end: *const u8) -> Code {
        Code { start, end }
    }

    pub fn bytes(&self) -> &'static [u8] {
        // SAFETY: By the promise made to `between`.
        unsafe {
            let len = self.end.offset_from(self.start) as usize;
            std::slice::from_raw_parts(self.start, len)
        }
    }
}

/// Defines a function that returns code, from two symbols for its ends and a template of `asm!`.
macro_rules! guest_code {
    ($(#[$doc:meta])* fn $name:ident, $start:ident, $end:ident, [$($line:expr,)+], $($constants:tt)*) => {
        std::arch::global_asm!(
            ".pushsection .rodata.bench_guest, \"a\"",
            concat!(".globl ", stringify!($start), ", ", stringify!($end)),
            concat!(stringify!($start), ":"),
            $($line,)+
            concat!(stringify!($end), ":"),
            ".popsection",
            $($constants)*
        );

        $(#[$doc])*
        fn $name() -> $crate::measure::guest::code::Code {
            extern "C" {
                static $start: u8;
                static $end: u8;
            }
            // SAFETY: The symbols are in one section of this program that nothing writes to.
            unsafe { $crate::measure::guest::code::Code::between(&raw const $start, &raw const $end) }
        }
    };
}
pub(super) use guest_code;
