// SPDX-License-Identifier: GPL-2.0

//! The advice that a space takes.

use std::fmt;
use std::str::FromStr;

use crate::UnknownName;

macro_rules! advice {
    ($($(#[$doc:meta])* $name:ident = $number:ident, $word:literal;)*) => {
        /// Advice on a range of a space; the words are those of madvise(2).
        ///
        /// It is written and read as in `MADV_*`, in lower case.
        ///
        /// ```
        /// use asfd::Advice;
        ///
        /// assert_eq!("dontneed".parse(), Ok(Advice::DontNeed));
        /// assert_eq!(Advice::PopulateRead.to_string(), "populate_read");
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Advice {
            $($(#[$doc])* $name,)*
        }

        impl Advice {
            /// Every advice.
            pub const ALL: &[Advice] = &[$(Advice::$name,)*];

            /// The name, as it is shown.
            pub fn name(self) -> &'static str {
                match self {
                    $(Advice::$name => $word,)*
                }
            }

            /// `MADV_*`.
            pub(crate) fn number(self) -> u32 {
                match self {
                    $(Advice::$name => libc::$number as u32,)*
                }
            }
        }
    };
}

advice! {
    /// Nothing special; takes `Random` and `Sequential` back.
    Normal = MADV_NORMAL, "normal";
    /// Accesses will jump about: reading ahead does not pay.
    Random = MADV_RANDOM, "random";
    /// Accesses will go upwards: read ahead, and drop what lies behind.
    Sequential = MADV_SEQUENTIAL, "sequential";
    /// Accesses come soon: read the file in already.
    WillNeed = MADV_WILLNEED, "willneed";
    /// The pages are not needed: they leave the space now. The next access finds what the file
    /// has, or zeros in private anonymous memory.
    DontNeed = MADV_DONTNEED, "dontneed";
    /// The contents of private anonymous memory are not needed: the system takes the pages when
    /// it is short of memory.
    Free = MADV_FREE, "free";
    /// Makes a hole in the mapped file itself. Needs write access.
    Remove = MADV_REMOVE, "remove";
    /// The pages are the first ones to be reclaimed.
    Cold = MADV_COLD, "cold";
    /// Reclaims the pages now.
    PageOut = MADV_PAGEOUT, "pageout";
    /// Transparent huge pages where they fit.
    HugePage = MADV_HUGEPAGE, "hugepage";
    /// No transparent huge pages.
    NoHugePage = MADV_NOHUGEPAGE, "nohugepage";
    /// Puts the pages together into huge pages now.
    Collapse = MADV_COLLAPSE, "collapse";
    /// Pages of equal contents may be merged (KSM).
    Mergeable = MADV_MERGEABLE, "mergeable";
    /// They may no longer, and are taken apart.
    Unmergeable = MADV_UNMERGEABLE, "unmergeable";
    /// Brings the pages in as reading them would.
    PopulateRead = MADV_POPULATE_READ, "populate_read";
    /// Brings the pages in as writing them would.
    PopulateWrite = MADV_POPULATE_WRITE, "populate_write";
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Advice {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let found = Advice::ALL.iter().find(|advice| advice.name() == text);
        found.copied().ok_or_else(|| UnknownName {
            name: text.to_owned(),
            known: Advice::ALL.iter().map(Advice::to_string).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for advice in Advice::ALL {
            assert_eq!(advice.to_string().parse(), Ok(*advice));
        }
        assert_eq!(Advice::DontNeed.number(), 4);
        assert_eq!(Advice::PopulateWrite.number(), 23);
        let error = "fork".parse::<Advice>().unwrap_err().to_string();
        assert!(
            error.starts_with("\"fork\" is none of normal, random, "),
            "{error}"
        );
    }
}
