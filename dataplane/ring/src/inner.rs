//! The inside of a runtime: its parts, each behind its own cell, as tasks call in while others are at work.

use std::{
    cell::{Cell, RefCell, RefMut},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::Arc,
    task::Context,
    time::{Duration, Instant},
};

use crate::{
    config::RuntimeConfig,
    io::Io,
    stats::RuntimeStats,
    task::{AfterPoll, TaskFuture, TaskId, Tasks},
    time::{WallClock, Wheel},
    wake::Shared,
};

/// How often one task may run in a turn, when it or others keep waking it.
const ROUNDS: usize = 4;

pub(crate) struct Core {
    id: u16,
    shared: Arc<Shared>,
    now: Cell<Instant>,
    wall_clock: Cell<WallClock>,
    main_woken: Cell<bool>,
    tasks: RefCell<Tasks>,
    after_poll: RefCell<Vec<Rc<dyn AfterPoll>>>,
    wheel: RefCell<Wheel>,
    io: RefCell<Io>,
}

impl Core {
    pub(crate) fn new(config: &RuntimeConfig) -> io::Result<Self> {
        let shared = Shared::register()?;
        let now = Instant::now();
        Ok(Self {
            id: shared.id(),
            now: Cell::new(now),
            wall_clock: Cell::new(WallClock::read_at(now)),
            main_woken: Cell::new(true),
            tasks: RefCell::new(Tasks::new(shared.id())),
            after_poll: RefCell::default(),
            wheel: RefCell::new(Wheel::new(now)),
            io: RefCell::new(Io::new(config, &shared, now)?),
            shared,
        })
    }

    pub(crate) fn id(&self) -> u16 {
        self.id
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    #[inline]
    pub(crate) fn now(&self) -> Instant {
        self.now.get()
    }

    /// The system's clock, as it was not more than a second or a turn ago.
    pub(crate) fn wall_clock(&self) -> WallClock {
        let now = self.now.get();
        if self.wall_clock.get().is_old(now) {
            self.wall_clock.set(WallClock::read_at(now));
        }
        self.wall_clock.get()
    }

    #[inline]
    pub(crate) fn io(&self) -> RefMut<'_, Io> {
        self.io.borrow_mut()
    }

    #[inline]
    pub(crate) fn wheel(&self) -> RefMut<'_, Wheel> {
        self.wheel.borrow_mut()
    }

    pub(crate) fn stats(&self) -> RuntimeStats {
        let io = self.io.borrow();
        RuntimeStats { slots: io.len() as u64, tasks: self.tasks.borrow().len() as u64, ..io.stats }
    }

    pub(crate) fn spawn(&self, future: TaskFuture) -> TaskId {
        self.tasks.borrow_mut().insert(future)
    }

    pub(crate) fn abort(&self, task: TaskId) -> Option<TaskFuture> {
        self.tasks.borrow_mut().abort(task)
    }

    #[inline]
    pub(crate) fn wake(&self, task: TaskId) {
        if task.is_main() {
            self.main_woken.set(true);
        } else {
            self.tasks.borrow_mut().wake(task);
        }
    }

    #[inline]
    pub(crate) fn after_poll(&self, it: Rc<dyn AfterPoll>) {
        self.after_poll.borrow_mut().push(it);
    }

    fn run_after_poll(&self) {
        loop {
            // Outside of the borrow, as it may ask again.
            let Some(it) = self.after_poll.borrow_mut().pop() else { return };
            it.after_poll();
        }
    }

    pub(crate) fn take_main_woken(&self) -> bool {
        self.main_woken.replace(false)
    }

    pub(crate) fn wake_main(&self) {
        self.main_woken.set(true);
    }

    /// Runs the tasks that are ready, and those that they wake, within the budget of a turn.
    pub(crate) fn run_ready(&self) {
        for _ in 0..ROUNDS {
            let queued = self.tasks.borrow().queued();
            for _ in 0..queued {
                let Some((id, future)) = self.tasks.borrow_mut().next() else { return };
                self.run(id, future);
                self.flush_eagerly();
            }
        }
    }

    /// Completes and sends what was queued by what has just run, where the driver prefers that.
    #[inline]
    pub(crate) fn flush_eagerly(&self) {
        self.run_after_poll();
        self.io.borrow_mut().flush_eager();
    }

    /// The end of a turn and the beginning of the next: flush, wait, take in what has happened.
    pub(crate) fn turn(&self) -> io::Result<()> {
        self.run_after_poll();
        self.io.borrow_mut().settle();
        let idle = !self.main_woken.get() && self.tasks.borrow().queued() == 0;
        let timeout = if !idle || !self.shared.fall_asleep() {
            Some(Duration::ZERO)
        } else {
            self.wheel.borrow().next_wait(self.now.get())
        };
        let outcome = self.io.borrow_mut().wait(timeout);
        self.shared.wake_up();
        outcome?;
        let now = Instant::now();
        self.now.set(now);
        self.io.borrow_mut().turn(now);
        self.wheel.borrow_mut().expire(now);
        while let Some(bits) = self.shared.pop_remote() {
            self.wake(TaskId::from_bits(bits));
        }
        if self.shared.take_poke() {
            self.main_woken.set(true);
        }
        Ok(())
    }

    /// Drops all tasks, then gives what they left behind a bounded time to be sent.
    pub(crate) fn finish(&self, patience: Duration) {
        loop {
            let future = self.tasks.borrow_mut().take_any();
            match future {
                Some(future) => drop(catch_unwind(AssertUnwindSafe(|| drop(future)))),
                None => break,
            }
        }
        self.run_after_poll();
        let deadline = Instant::now() + patience;
        while self.io.borrow().is_closing() && Instant::now() < deadline {
            let mut io = self.io.borrow_mut();
            io.settle();
            if io.wait(Some(Duration::from_millis(10))).is_err() {
                return;
            }
            io.turn(Instant::now());
        }
    }

    fn run(&self, id: TaskId, mut future: TaskFuture) {
        let waker = id.waker();
        let mut cx = Context::from_waker(&waker);
        // One connection's bug must not end the worker.
        let outcome = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut cx).is_pending()));
        match outcome {
            Ok(true) => {
                let aborted = self.tasks.borrow_mut().suspend(id, future);
                drop(aborted);
            }
            Ok(false) => {
                self.tasks.borrow_mut().finish(id);
                drop(future);
            }
            Err(_) => {
                self.io.borrow_mut().stats.task_panics += 1;
                log::error!("a task panicked and was ended; its connections are closed");
                self.tasks.borrow_mut().finish(id);
                drop(catch_unwind(AssertUnwindSafe(|| drop(future))));
            }
        }
    }
}
