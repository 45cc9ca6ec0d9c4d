//! Waking a runtime from other threads.
//!
//! A waker is a 64-bit number, so it cannot own the runtime it wakes. Runtimes are therefore listed in a process-wide
//! table by number; a wake on the wrong thread looks its runtime up there, and finds nothing once that has ended.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use crossbeam_queue::SegQueue;
use rustix::event::{EventfdFlags, eventfd};

static RUNTIMES: RwLock<Vec<Weak<Shared>>> = RwLock::new(Vec::new());

/// The part of a runtime that other threads may touch.
pub(crate) struct Shared {
    id: u16,
    event: OwnedFd,
    sleeping: AtomicBool,
    poked: AtomicBool,
    remote: SegQueue<u64>,
}

impl Shared {
    /// Lists a new runtime.
    pub(crate) fn register() -> io::Result<Arc<Self>> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mut runtimes = RUNTIMES.write().unwrap_or_else(PoisonError::into_inner);
        let free = runtimes.iter().position(|it| it.strong_count() == 0).unwrap_or(runtimes.len());
        let id =
            u16::try_from(free).map_err(|_| io::Error::other("more than 65536 runtimes in one process"))?;
        let shared = Arc::new(Self {
            id,
            event,
            sleeping: AtomicBool::new(false),
            poked: AtomicBool::new(false),
            remote: SegQueue::new(),
        });
        if free == runtimes.len() {
            runtimes.push(Weak::new());
        }
        runtimes[free] = Arc::downgrade(&shared);
        Ok(shared)
    }

    pub(crate) fn id(&self) -> u16 {
        self.id
    }

    pub(crate) fn event(&self) -> &OwnedFd {
        &self.event
    }

    /// Announces that the worker is about to block. False when there is something to do first.
    pub(crate) fn fall_asleep(&self) -> bool {
        // Sequentially consistent on both sides: either the worker sees the entry, or the sender sees the sleeper.
        self.sleeping.store(true, Ordering::SeqCst);
        if self.remote.is_empty() && !self.poked.load(Ordering::SeqCst) {
            return true;
        }
        self.wake_up();
        false
    }

    pub(crate) fn wake_up(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }

    /// The next task that another thread woke.
    pub(crate) fn pop_remote(&self) -> Option<u64> {
        if self.remote.is_empty() { None } else { self.remote.pop() }
    }

    pub(crate) fn take_poke(&self) -> bool {
        self.poked.load(Ordering::Relaxed) && self.poked.swap(false, Ordering::SeqCst)
    }

    fn push_remote(&self, task: u64) {
        self.remote.push(task);
        self.rouse();
    }

    /// Ends the worker's wait, with one system call however many threads ask for it.
    fn rouse(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.sleeping.swap(false, Ordering::SeqCst) {
            // The counter cannot overflow: one write for each time the worker fell asleep.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }
}

/// Routes the wake of `task` to the runtime numbered `id`, from any thread. Nothing happens when it has ended.
pub(crate) fn wake_remote(id: u16, task: u64) {
    let shared = {
        let runtimes = RUNTIMES.read().unwrap_or_else(PoisonError::into_inner);
        runtimes.get(usize::from(id)).and_then(Weak::upgrade)
    };
    if let Some(shared) = shared {
        shared.push_remote(task);
    }
}

/// Makes a runtime take a turn and poll its main future, from any thread.
#[derive(Clone)]
pub struct WakeHandle {
    shared: Arc<Shared>,
}

impl WakeHandle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Wakes the runtime; wakes that come before it gets to run are merged into one.
    pub fn wake(&self) {
        if !self.shared.poked.swap(true, Ordering::SeqCst) {
            self.shared.rouse();
        }
    }
}
