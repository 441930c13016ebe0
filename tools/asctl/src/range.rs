// SPDX-License-Identifier: GPL-2.0

//! A range to map: from the command line or from a spec.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use asfd::{AddressSpace, Mapping, Prot};
use rustix::fs::{memfd_create, MemfdFlags};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    File(PathBuf),
    Memfd(String),
    Anonymous,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Free,
    Hint(u64),
    At(u64),
    Replace(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub source: Source,
    pub offset: u64,
    /// `None`: the rest of the file.
    pub len: Option<u64>,
    /// `None`: [`Range::prot`] decides.
    pub prot: Option<Prot>,
    pub private: bool,
    pub populate: bool,
    pub place: Place,
}

/// The memfds made so far: ranges with the same name share one.
pub type Memfds = HashMap<String, File>;

impl Range {
    /// Maps the range and returns its address.
    pub fn map(&self, space: &AddressSpace, memfds: &mut Memfds) -> Result<u64> {
        match &self.source {
            Source::Anonymous => {
                ensure!(self.offset == 0, "anonymous memory has no offset");
                let len = self.known_len()?;
                Ok(space.map(&self.finish(Mapping::anonymous(len)))?)
            }
            Source::Memfd(name) => {
                let len = self.known_len()?;
                let file = memfd(memfds, name, self.offset, len)?;
                let addr = space.map(&self.finish(Mapping::file(file, len)));
                addr.with_context(|| format!("memfd {name}"))
            }
            Source::File(path) => {
                let file = self.open(path)?;
                let len = match self.len {
                    Some(len) => len,
                    None => rest(&file, path, self.offset)?,
                };
                let addr = space.map(&self.finish(Mapping::file(&file, len)));
                addr.with_context(|| path.display().to_string())
            }
        }
    }

    fn finish<'a>(&self, mapping: Mapping<'a>) -> Mapping<'a> {
        let mapping = mapping.offset(self.offset).prot(self.prot());
        let mapping = if self.private {
            mapping.private()
        } else {
            mapping
        };
        let mapping = if self.populate {
            mapping.populate()
        } else {
            mapping
        };
        match self.place {
            Place::Free => mapping,
            Place::Hint(addr) => mapping.hint(addr),
            Place::At(addr) => mapping.at(addr),
            Place::Replace(addr) => mapping.replacing(addr),
        }
    }

    fn prot(&self) -> Prot {
        self.prot.unwrap_or(match self.source {
            Source::File(_) => Prot::READ,
            _ => Prot::READ | Prot::WRITE,
        })
    }

    fn known_len(&self) -> Result<u64> {
        self.len.context("a length is needed")
    }

    /// Opens for writing only what the mapping will write to.
    fn open(&self, path: &Path) -> Result<File> {
        let write = !self.private && self.prot().contains(Prot::WRITE);
        fs::OpenOptions::new()
            .read(true)
            .write(write)
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))
    }
}

fn rest(file: &File, path: &Path, offset: u64) -> Result<u64> {
    let metadata = file
        .metadata()
        .with_context(|| format!("cannot tell the size of {}", path.display()))?;
    ensure!(
        metadata.is_file(),
        "{} is not a regular file: a length is needed",
        path.display()
    );
    let rest = metadata.len().saturating_sub(offset);
    ensure!(
        rest > 0,
        "{} has {} bytes, none of them at offset {offset:#x}",
        path.display(),
        metadata.len()
    );
    Ok(rest)
}

/// The memfd of this name, made and enlarged as needed.
fn memfd<'a>(memfds: &'a mut Memfds, name: &str, offset: u64, len: u64) -> Result<&'a File> {
    if !memfds.contains_key(name) {
        let fd = memfd_create(name, MemfdFlags::CLOEXEC)
            .with_context(|| format!("cannot create memfd {name}"))?;
        memfds.insert(name.to_owned(), File::from(fd));
    }
    let file = &memfds[name];
    let end = offset
        .checked_add(len)
        .context("offset and length are too large")?;
    if file.metadata()?.len() < end {
        file.set_len(end)
            .with_context(|| format!("cannot make memfd {name} {end} bytes long"))?;
    }
    Ok(file)
}

/// `r`, `w`, `rw` or `none`.
pub fn prot(text: &str) -> Result<Prot, String> {
    match text {
        "r" => Ok(Prot::READ),
        "w" => Ok(Prot::WRITE),
        "rw" => Ok(Prot::READ | Prot::WRITE),
        "none" => Ok(Prot::empty()),
        _ => Err("want r, w, rw or none".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prots() {
        assert_eq!(prot("rw"), Ok(Prot::READ | Prot::WRITE));
        assert_eq!(prot("none"), Ok(Prot::empty()));
        assert!(prot("rx").is_err());
        assert!(prot("").is_err());
    }

    #[test]
    fn a_memfd_is_shared_by_name_and_grows() {
        let mut memfds = Memfds::new();
        memfd(&mut memfds, "a", 0, 4096).unwrap();
        memfd(&mut memfds, "a", 8192, 4096).unwrap();
        let file = memfd(&mut memfds, "a", 0, 1).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 12288);
        memfd(&mut memfds, "b", 0, 1).unwrap();
        assert_eq!(memfds.len(), 2);
        assert!(memfd(&mut memfds, "a", u64::MAX, 1).is_err());
    }

    #[test]
    fn the_rest_of_a_file() {
        let mut memfds = Memfds::new();
        let file = memfd(&mut memfds, "a", 0, 10000).unwrap();
        let path = Path::new("a");
        assert_eq!(rest(file, path, 4096).unwrap(), 5904);
        assert!(rest(file, path, 12288).is_err());
        let device = File::open("/dev/zero").unwrap();
        assert!(rest(&device, path, 0).is_err());
    }
}
