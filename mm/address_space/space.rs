// SPDX-License-Identifier: GPL-2.0

//! The space itself: an mm that no task runs in, and who has to do with it.

use core::ops::Range;
use kernel::{
    bindings,
    mm::{Mm, OwnedMm},
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Atomic, Relaxed},
        Arc,
    },
};

use crate::clients::Clients;

/// Where byte 0 of a space lies in its mm.
///
/// Some of mm takes address 0 for "none", so it stays out of play. The rest of mm and its
/// security hooks see an address far above `mmap_min_addr`, and huge pages stay congruent.
pub(crate) const MM_BASE: usize = bindings::ASFD_MM_BASE;

static NEXT_ID: Atomic<u64> = Atomic::new(1);

/// What outlives the file of a space: its name, its `mm_struct`, and those to tell of its end.
///
/// An asfd and every registered client hold a reference. The mappings live and die with
/// [`SpaceOwner`].
#[pin_data]
pub(crate) struct Space {
    id: u64,
    mm: ARef<Mm>,
    #[pin]
    pub(crate) clients: Clients,
    windows: Atomic<i64>,
}

impl Space {
    /// Unique while the machine is up.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn mm(&self) -> &ARef<Mm> {
        &self.mm
    }

    /// How many KVM windows show this space.
    pub(crate) fn windows(&self) -> u64 {
        self.windows.load(Relaxed).max(0) as u64
    }

    pub(crate) fn count_windows(&self, delta: i64) {
        self.windows.fetch_add(delta, Relaxed);
    }
}

/// The one who keeps a space alive, held by its file.
///
/// When it is dropped, the clients are told first, while the mm can still answer them; then the
/// mappings go.
pub(crate) struct SpaceOwner {
    space: Arc<Space>,
    mm: OwnedMm,
}

impl SpaceOwner {
    /// Makes an empty space, charged to the current task's memory cgroup.
    pub(crate) fn new() -> Result<Self> {
        let mm = OwnedMm::new()?;
        let grabbed = mm.grab();
        let space = Arc::pin_init(
            pin_init!(Space {
                id: NEXT_ID.fetch_add(1, Relaxed),
                mm: grabbed,
                clients <- Clients::new(),
                windows: Atomic::new(0),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        Ok(Self { space, mm })
    }

    pub(crate) fn space(&self) -> &Arc<Space> {
        &self.space
    }

    pub(crate) fn mm(&self) -> &OwnedMm {
        &self.mm
    }

    /// The number of bytes that a space has addresses for.
    pub(crate) fn size(&self) -> usize {
        self.mm.task_size() - MM_BASE
    }

    /// Where `len` bytes at `offset` of the space lie in its mm; [`ENOMEM`] past its end.
    pub(crate) fn mm_range(&self, offset: u64, len: u64) -> Result<Range<usize>> {
        let end = offset.checked_add(len).ok_or(ENOMEM)?;
        if end > self.size() as u64 {
            return Err(ENOMEM);
        }
        Ok(offset as usize + MM_BASE..end as usize + MM_BASE)
    }
}

impl Drop for SpaceOwner {
    fn drop(&mut self) {
        self.space.clients.release_all();
    }
}

/// Where an address of the mm lies in the space.
pub(crate) fn offset_of(mm_addr: usize) -> u64 {
    (mm_addr - MM_BASE) as u64
}

/// `bytes` rounded up to a multiple of `unit`, a power of two.
pub(crate) fn round_up(bytes: u64, unit: usize) -> Option<u64> {
    bytes.checked_next_multiple_of(unit as u64)
}
