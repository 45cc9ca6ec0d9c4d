//! The tasks of a worker: a slab of boxed futures, woken through numbers.
//!
//! A waker is the number of its task (runtime, generation, index) in the place of a pointer. Cloning, comparing and
//! dropping it are free, and a waker that outlives its task wakes nothing.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    ptr,
    rc::Rc,
    task::{Poll, RawWaker, RawWakerVTable, Waker},
};

use crate::{context, wake};

/// A spawned task; stays valid, and refers to nothing, after the task has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskId(u64);

/// Starts a task on the current runtime. It first runs later in this turn.
///
/// # Panics
/// When called outside of `Runtime::block_on`.
pub fn spawn(future: impl Future<Output = ()> + 'static) -> TaskId {
    let future = Box::pin(future);
    context::with(|core| core.spawn(future))
}

/// Drops a task's future, now or, when it is the task that is running, at its next suspension. A task that has ended is
/// left alone.
pub fn abort(task: TaskId) {
    // The future is dropped outside of every borrow, as its destructors call back into the runtime.
    drop(context::try_with(|core| core.abort(task)).flatten());
}

/// Lets the other tasks that are ready run first.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What [`after_poll`] calls back.
pub trait AfterPoll {
    /// The task that asked for it has returned; what it queued has not been sent yet. Must not panic.
    fn after_poll(&self);
}

/// Calls `it` once, when the task that is running returns: to do once what its several steps ask for.
///
/// # Panics
/// When called outside of `Runtime::block_on`.
#[inline]
pub fn after_poll(it: Rc<dyn AfterPoll>) {
    context::with(|core| core.after_poll(it));
}

const INDEX_BITS: u32 = 24;
const GENERATION_BITS: u32 = 24;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
const GENERATION_MASK: u64 = (1 << GENERATION_BITS) - 1;

/// The index that stands for the future given to `block_on`.
const MAIN: u64 = INDEX_MASK;

const _: () = assert!(usize::BITS == 64, "a waker packs its task into one 64-bit word");

impl TaskId {
    fn new(runtime: u16, generation: u32, index: usize) -> Self {
        let generation = u64::from(generation) & GENERATION_MASK;
        Self(u64::from(runtime) << (INDEX_BITS + GENERATION_BITS) | generation << INDEX_BITS | index as u64)
    }

    pub(crate) fn main(runtime: u16) -> Self {
        Self::new(runtime, 0, MAIN as usize)
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(crate) fn is_main(self) -> bool {
        self.0 & INDEX_MASK == MAIN
    }

    fn runtime(self) -> u16 {
        (self.0 >> (INDEX_BITS + GENERATION_BITS)) as u16
    }

    fn generation(self) -> u32 {
        (self.0 >> INDEX_BITS & GENERATION_MASK) as u32
    }

    fn index(self) -> usize {
        (self.0 & INDEX_MASK) as usize
    }

    pub(crate) fn waker(self) -> Waker {
        // SAFETY: the functions of the table treat the data as a number, keep nothing alive and may run on any thread.
        unsafe { Waker::from_raw(raw_waker(ptr::without_provenance(self.0 as usize))) }
    }
}

static VTABLE: RawWakerVTable = RawWakerVTable::new(raw_waker, wake_raw, wake_raw, |_| {});

fn raw_waker(data: *const ()) -> RawWaker {
    RawWaker::new(data, &VTABLE)
}

fn wake_raw(data: *const ()) {
    let task = TaskId(data.addr() as u64);
    let local = context::try_with(|core| {
        let ours = core.id() == task.runtime();
        if ours {
            core.wake(task);
        }
        ours
    });
    if local != Some(true) {
        wake::wake_remote(task.runtime(), task.0);
    }
}

pub(crate) type TaskFuture = Pin<Box<dyn Future<Output = ()>>>;

/// The slab and the queue of those that want to run.
pub(crate) struct Tasks {
    runtime: u16,
    entries: Vec<Entry>,
    free: Vec<u32>,
    ready: VecDeque<TaskId>,
}

impl Tasks {
    pub(crate) fn new(runtime: u16) -> Self {
        Self { runtime, entries: Vec::new(), free: Vec::new(), ready: VecDeque::new() }
    }

    pub(crate) fn insert(&mut self, future: TaskFuture) -> TaskId {
        let index = match self.free.pop() {
            Some(index) => index as usize,
            None => {
                assert!((self.entries.len() as u64) < MAIN, "more than 16 million tasks on one worker");
                self.entries.push(Entry::default());
                self.entries.len() - 1
            }
        };
        let entry = &mut self.entries[index];
        entry.state = State::Queued(future);
        let id = TaskId::new(self.runtime, entry.generation, index);
        self.ready.push_back(id);
        id
    }

    /// Queues a task, unless it is queued or gone.
    pub(crate) fn wake(&mut self, id: TaskId) {
        let Some(entry) = self.entry(id) else { return };
        match std::mem::take(&mut entry.state) {
            State::Idle(future) => {
                entry.state = State::Queued(future);
                self.ready.push_back(id);
            }
            State::Running { .. } => entry.state = State::Running { again: true },
            other => entry.state = other,
        }
    }

    /// The next task to run, with its future, which must come back through [`Tasks::suspend`] or [`Tasks::finish`].
    pub(crate) fn next(&mut self) -> Option<(TaskId, TaskFuture)> {
        while let Some(id) = self.ready.pop_front() {
            let Some(entry) = self.entry(id) else { continue };
            match std::mem::replace(&mut entry.state, State::Running { again: false }) {
                State::Queued(future) => return Some((id, future)),
                other => entry.state = other,
            }
        }
        None
    }

    /// Takes back a future that is not done. Returned when the task was aborted meanwhile: the caller drops it.
    pub(crate) fn suspend(&mut self, id: TaskId, future: TaskFuture) -> Option<TaskFuture> {
        let entry = self.entry(id)?;
        match entry.state {
            State::Running { again: false } => entry.state = State::Idle(future),
            State::Running { again: true } => {
                entry.state = State::Queued(future);
                self.ready.push_back(id);
            }
            _ => {
                self.finish(id);
                return Some(future);
            }
        }
        None
    }

    /// Forgets a task whose future is done.
    pub(crate) fn finish(&mut self, id: TaskId) {
        let Some(entry) = self.entry(id) else { return };
        entry.state = State::Vacant;
        entry.generation = entry.generation.wrapping_add(1) & GENERATION_MASK as u32;
        self.free.push(id.index() as u32);
    }

    /// Ends a task; the future is returned to be dropped, unless it is running.
    pub(crate) fn abort(&mut self, id: TaskId) -> Option<TaskFuture> {
        let entry = self.entry(id)?;
        match std::mem::take(&mut entry.state) {
            State::Idle(future) | State::Queued(future) => {
                self.finish(id);
                Some(future)
            }
            State::Aborted | State::Running { .. } => {
                entry.state = State::Aborted;
                None
            }
            State::Vacant => None,
        }
    }

    /// Takes one future out, whatever its state: for the end of the runtime.
    pub(crate) fn take_any(&mut self) -> Option<TaskFuture> {
        let index =
            self.entries.iter().position(|it| matches!(it.state, State::Idle(_) | State::Queued(_)))?;
        let id = TaskId::new(self.runtime, self.entries[index].generation, index);
        self.abort(id)
    }

    pub(crate) fn queued(&self) -> usize {
        self.ready.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    fn entry(&mut self, id: TaskId) -> Option<&mut Entry> {
        self.entries.get_mut(id.index()).filter(|it| it.generation == id.generation())
    }
}

#[derive(Default)]
struct Entry {
    generation: u32,
    state: State,
}

#[derive(Default)]
enum State {
    /// Aborted while running.
    Aborted,
    /// Waiting for a wake.
    Idle(TaskFuture),
    /// In the ready queue.
    Queued(TaskFuture),
    /// Its future is being polled; `again` when it was woken meanwhile.
    Running { again: bool },
    #[default]
    Vacant,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks() -> Tasks {
        Tasks::new(9)
    }

    #[test]
    fn ids_round_trip_through_wakers() {
        let id = TaskId::new(65_535, (1 << 24) - 1, 12_345);
        assert_eq!((id.runtime(), id.generation(), id.index()), (65_535, (1 << 24) - 1, 12_345));
        assert!(!id.is_main());
        assert!(TaskId::main(3).is_main());
        assert!(id.waker().will_wake(&id.waker()));
    }

    #[test]
    fn a_stale_id_wakes_nothing() {
        let mut tasks = tasks();
        let old = tasks.insert(Box::pin(async {}));
        let (id, _future) = tasks.next().unwrap();
        tasks.finish(id);
        let new = tasks.insert(Box::pin(async {}));
        assert_eq!(old.index(), new.index());
        let (id, future) = tasks.next().unwrap();
        assert!(tasks.suspend(id, future).is_none());
        tasks.wake(old);
        assert_eq!(tasks.queued(), 0);
        tasks.wake(new);
        tasks.wake(new);
        assert_eq!(tasks.queued(), 1);
    }

    #[test]
    fn a_wake_while_running_queues_once() {
        let mut tasks = tasks();
        tasks.insert(Box::pin(async {}));
        let (id, future) = tasks.next().unwrap();
        tasks.wake(id);
        tasks.wake(id);
        assert_eq!(tasks.queued(), 0);
        assert!(tasks.suspend(id, future).is_none());
        assert_eq!(tasks.queued(), 1);
    }

    #[test]
    fn aborting_the_running_task_ends_it_at_its_suspension() {
        let mut tasks = tasks();
        tasks.insert(Box::pin(async {}));
        let (id, future) = tasks.next().unwrap();
        assert!(tasks.abort(id).is_none());
        assert!(tasks.suspend(id, future).is_some());
        assert_eq!(tasks.len(), 0);
    }
}
