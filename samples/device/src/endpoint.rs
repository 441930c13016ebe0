// SPDX-License-Identifier: GPL-2.0

//! A device process. All it has is a socket to the VMM, and what comes over it: views.

use anyhow::{bail, ensure, Context, Result};
use asfd::{AddressSpace, Mapping, Mirror, Prot, Seals, View};

use crate::dma::{self, Dma};
use crate::ring::{self, RING};
use crate::vmm::RW;
use crate::wire::{Channel, Reply, Request};
use crate::worker;

/// A view, and where it is in the memory of this process.
struct Attached {
    view: AddressSpace,
    mirror: Mirror,
}

pub fn serve(channel: &Channel) -> Result<()> {
    dma::survive_faults()?;
    let mut attached = Vec::new();
    while let Some((request, fd)) = channel.receive()? {
        let reply = match request {
            Request::Attach => {
                let view = AddressSpace::try_from(fd.context("no view came along")?)?;
                attached.push(attach(view)?);
                Reply::Attached
            }
            Request::Kick { index, mirror } => {
                ensure!(mirror < attached.len(), "there is no mirror {mirror}");
                let ring = Dma(&attached[0].mirror);
                let data = Dma(&attached[mirror].mirror);
                Reply::Processed(ring::process(ring, data, index))
            }
            Request::Trespass => Reply::Trespassed(trespass(last(&attached)?)),
            Request::Work(job) => {
                let dma = Dma(&last(&attached)?.mirror);
                worker::work(channel, dma, &job)?
            }
            Request::Stop => bail!("there is no work to stop"),
        };
        channel.send(&reply, None)?;
    }
    Ok(())
}

/// One mmap, whatever is mapped in the view now and later.
fn attach(view: AddressSpace) -> Result<Attached> {
    let window = view.info()?.window;
    let mirror = view.mirror(0, (window.end - window.start) as usize, RW)?;
    Ok(Attached { view, mirror })
}

fn last(attached: &[Attached]) -> Result<&Attached> {
    attached.last().context("no view has come yet")
}

/// A device that is not content with what it was given.
fn trespass(attached: &Attached) -> Vec<(String, i32, i32)> {
    let Attached { view, mirror } = attached;
    let len = mirror.len();
    let page = Mapping::anonymous(4096).prot(RW);
    let behind = view.mirror(len as u64, 4096, RW);
    let tried = [
        (
            "map memory of its own",
            libc::EPERM,
            view.map(&page).map(drop),
        ),
        ("unmap the ring", libc::EPERM, view.unmap(RING, 4096)),
        (
            "protect the ring",
            libc::EPERM,
            view.protect(RING, 4096, Prot::READ),
        ),
        ("seal the space", libc::EPERM, view.seal(Seals::all())),
        (
            "make a view of its own",
            libc::EPERM,
            view.view(&View::whole()).map(drop),
        ),
        (
            "list what is mapped",
            libc::EPERM,
            view.mapping_at(RING).map(drop),
        ),
        ("mirror what lies behind it", libc::ERANGE, behind.map(drop)),
    ];
    let errno = |result: asfd::Result<()>| result.map_or_else(|error| error.errno(), |()| 0);
    tried
        .into_iter()
        .map(|(what, due, result)| (what.to_owned(), due, errno(result)))
        .collect()
}
