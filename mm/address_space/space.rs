// SPDX-License-Identifier: GPL-2.0

//! The space itself: an mm that no task runs in, and who has to do with it.

use core::ops::Range;
use kernel::{
    bindings,
    fs::LocalFile,
    mm::{notifier::Registration, Mm, OwnedMm},
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Atomic, Relaxed},
        Arc, SetOnce,
    },
};

use crate::{clients::Clients, mirrors::Mirrors, seals::Seals, window::Window};

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
    pub(crate) seals: Seals,
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

/// The one who keeps a space alive, held by its files.
///
/// When it is dropped, the clients are told first, while the mm can still answer them; then the
/// mirrors, of which there are none left, are no longer told; then the mappings go.
pub(crate) struct SpaceOwner {
    space: Arc<Space>,
    /// There since the space was mirrored for the first time.
    mirrors: SetOnce<Pin<KBox<Registration<Mirrors>>>>,
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
                seals: Seals::none(),
                windows: Atomic::new(0),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        Ok(Self {
            space,
            mirrors: SetOnce::new(),
            mm,
        })
    }

    /// Sees to it that there are mirrors. `file` is an asfd of this space.
    pub(crate) fn prepare_mirrors(&self, file: &LocalFile) -> Result {
        if self.mirrors().is_some() {
            return Ok(());
        }
        // It is also what makes sure that only one of us does it.
        let guard = self.mm.mmap_write_lock_killable()?;
        if self.mirrors().is_none() {
            // SAFETY: This is dropped when the last of the files is released, which is on the
            // same inode as `file`.
            let mirrors = unsafe { Mirrors::new(file.mapping()) };
            // Any signal is enough to have it fail: do it again after the handler.
            let registration = Registration::new(&guard, mirrors).map_err(|err| match err {
                EINTR => ERESTARTNOINTR,
                err => err,
            })?;
            self.mirrors.populate(registration);
        }
        Ok(())
    }

    /// Who looks after the mirrors, if there ever were any.
    pub(crate) fn mirrors(&self) -> Option<&Mirrors> {
        self.mirrors.as_ref().map(|registration| &***registration)
    }

    pub(crate) fn space(&self) -> &Arc<Space> {
        &self.space
    }

    pub(crate) fn mm(&self) -> &OwnedMm {
        &self.mm
    }

    /// All of the space.
    pub(crate) fn window(&self) -> Window {
        Window::whole((self.mm.task_size() - MM_BASE) as u64)
    }
}

impl Drop for SpaceOwner {
    fn drop(&mut self) {
        self.space.clients.release_all();
    }
}

/// Where a range of the space, which has to be within its size, lies in its mm.
pub(crate) fn mm_range(range: Range<u64>) -> Range<usize> {
    range.start as usize + MM_BASE..range.end as usize + MM_BASE
}

/// `bytes` rounded up to a multiple of `unit`, a power of two.
pub(crate) fn round_up(bytes: u64, unit: usize) -> Option<u64> {
    bytes.checked_next_multiple_of(unit as u64)
}
