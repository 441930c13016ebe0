// SPDX-License-Identifier: GPL-2.0

//! Who has to be told when a space ends.
//!
//! A client holds the `mm_struct` and the [`Space`], never the file: a virtual machine and a
//! guest_memfd of that machine mapped in the space would keep each other alive for ever.

use core::ptr::{self, NonNull};
use kernel::{
    bindings,
    mm::Mm,
    prelude::*,
    sync::{aref::ARef, new_condvar, new_mutex, Arc, CondVar, Mutex},
    task::Task,
};

use crate::space::Space;

/// A registered `struct asfd_client`, as an identity. It is only looked into before its release.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Client(NonNull<bindings::asfd_client>);

// SAFETY: The client's functions may be called on any thread; see `struct asfd_client`.
unsafe impl Send for Client {}

struct Release {
    client: Client,
    /// Who runs it. May be the one who unregisters.
    task: *mut bindings::task_struct,
}

// SAFETY: The task is compared with, never looked into.
unsafe impl Send for Release {}

struct State {
    registered: KVec<Client>,
    running: Option<Release>,
}

/// The clients of a space.
#[pin_data]
pub(crate) struct Clients {
    #[pin]
    state: Mutex<State>,
    #[pin]
    released: CondVar,
}

impl Clients {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            state <- new_mutex!(State { registered: KVec::new(), running: None }, "asfd_clients"),
            released <- new_condvar!("asfd_client_released"),
        })
    }

    /// Tells every client that the space ends, one after the other, with no lock held.
    pub(crate) fn release_all(&self) {
        loop {
            let mut state = self.state.lock();
            let Some(client) = state.registered.pop() else {
                return;
            };
            state.running = Some(Release {
                client,
                task: Task::current_raw(),
            });
            drop(state);

            // SAFETY: Until it is released or unregistered a client is valid, and the latter waits
            // for us from now on. It may be gone when the call returns.
            unsafe {
                let release = (*client.0.as_ptr()).release;
                if let Some(release) = release {
                    release(client.0.as_ptr());
                }
            }

            self.state.lock().running = None;
            self.released.notify_all();
        }
    }

    fn add(&self, client: Client) -> Result {
        Ok(self.state.lock().registered.push(client, GFP_KERNEL)?)
    }

    /// Forgets `client`. If it is being released by another task, waits for the end of that.
    fn remove(&self, client: Client) {
        let mut state = self.state.lock();
        state.registered.retain(|c| *c != client);

        let elsewhere = |r: &Release| r.client == client && r.task != Task::current_raw();
        while state.running.as_ref().is_some_and(elsewhere) {
            self.released.wait(&mut state);
        }
    }
}

/// Registers `client` with `space` and fills it in.
///
/// # Safety
///
/// `client` must be valid, and stay so until [`unregister`]; its `release` must be set.
pub(crate) unsafe fn register(space: Arc<Space>, client: NonNull<bindings::asfd_client>) -> Result {
    let mm: ARef<Mm> = space.mm().clone();
    let client_ptr = client.as_ptr();
    // SAFETY: The client is valid, and nobody looks at it yet.
    unsafe {
        (*client_ptr).mm = ARef::into_raw(mm).cast().as_ptr();
        (*client_ptr).space = Arc::as_ptr(&space).cast_mut().cast();
    }
    match space.clients.add(Client(client)) {
        Ok(()) => {
            // The client holds this reference now.
            let _ = Arc::into_raw(space);
            Ok(())
        }
        Err(err) => {
            // SAFETY: The reference was made above and nobody else has seen it.
            drop(unsafe { take_mm(client) });
            Err(err)
        }
    }
}

/// Ends the registration of `client`.
///
/// # Safety
///
/// `client` must have been registered, and not been unregistered.
pub(crate) unsafe fn unregister(client: NonNull<bindings::asfd_client>) {
    // SAFETY: The client holds a reference to its space since it was registered.
    let space = unsafe { Arc::<Space>::from_raw((*client.as_ptr()).space.cast()) };
    space.clients.remove(Client(client));
    // SAFETY: The client holds a reference to the mm since it was registered.
    drop(unsafe { take_mm(client) });
}

/// # Safety
///
/// `client` must own a reference to its mm, which passes to the caller.
unsafe fn take_mm(client: NonNull<bindings::asfd_client>) -> ARef<Mm> {
    // SAFETY: As this function requires.
    unsafe {
        let mm = ptr::replace(&raw mut (*client.as_ptr()).mm, ptr::null_mut());
        ARef::from_raw(NonNull::new_unchecked(mm.cast()))
    }
}
