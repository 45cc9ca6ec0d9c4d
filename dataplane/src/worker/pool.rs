//! Starting the worker threads and talking to them.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use core_affinity::CoreId;
use culvert_ring::{DriverKind, Runtime, RuntimeConfig, mailbox, mailbox::Sender, task};

use crate::{
    upstream,
    worker::{Command, Process, Worker, apply},
};

/// How workers are started.
#[derive(Clone, Copy, Debug)]
pub struct WorkerConfig {
    /// How many; at least 1.
    pub count: usize,
    /// Which driver; the start-up probe chose it.
    pub driver: DriverKind,
}

/// Why a worker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The driver refused, for instance because of RLIMIT_MEMLOCK.
    #[error("worker {index}: the {driver:?} driver did not start: {error}")]
    Driver {
        /// Which worker.
        index: usize,
        /// Its driver.
        driver: DriverKind,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// No thread.
    #[error("worker {index}: cannot start a thread: {error}")]
    Thread {
        /// Which worker.
        index: usize,
        /// What the kernel said.
        error: std::io::Error,
    },
}

/// The running workers.
pub struct Workers {
    senders: Vec<Sender<Command>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Commands a worker may be behind. Snapshots are published one at a time, so only a burst of listeners comes near.
const MAILBOX: usize = 1_024;

impl Workers {
    /// Starts `config.count` workers, each pinned to one of the CPUs this process may run on.
    ///
    /// # Errors
    /// The first worker that did not start; the others are stopped.
    pub fn start(config: WorkerConfig, process: &Arc<Process>) -> Result<Self, StartError> {
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let mut workers = Self { senders: Vec::new(), threads: Mutex::default() };
        for index in 0..config.count {
            let core = (!cores.is_empty()).then(|| cores[index % cores.len()]);
            let (started, outcome) = std::sync::mpsc::channel();
            let process = process.clone();
            let thread = thread::Builder::new()
                .name(format!("wrk:worker_{index}"))
                .spawn(move || run(index, core, config.driver, process, &started))
                .map_err(|error| StartError::Thread { index, error })?;
            workers.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
            match outcome.recv() {
                Ok(Ok(sender)) => workers.senders.push(sender),
                Ok(Err(error)) => return Err(StartError::Driver { index, driver: config.driver, error }),
                Err(_) => {
                    let error = std::io::Error::other("the thread ended");
                    return Err(StartError::Driver { index, driver: config.driver, error });
                }
            }
        }
        Ok(workers)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.senders.len()
    }

    /// Whether there are none, which [`Workers::start`] does not produce.
    pub fn is_empty(&self) -> bool {
        self.senders.is_empty()
    }

    /// Tells one worker. Waits for room in its queue, which a live worker makes within a turn of its loop.
    pub fn tell(&self, worker: usize, command: Command) {
        let mut command = command;
        let mut waited = Duration::ZERO;
        while let Err(back) = self.senders[worker].try_send(command) {
            if waited >= MAILBOX_PATIENCE {
                log::error!(target: "worker", "worker {worker} does not take commands; one was dropped");
                return;
            }
            thread::sleep(MAILBOX_RETRY);
            waited += MAILBOX_RETRY;
            command = back;
        }
    }

    /// Tells every worker.
    pub fn tell_all(&self, command: impl Fn() -> Command) {
        for worker in 0..self.senders.len() {
            self.tell(worker, command());
        }
    }

    /// Stops all workers and waits for their threads. Open connections are closed.
    pub fn stop(&self) {
        self.tell_all(|| Command::Stop);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                log::error!(target: "worker", "a worker thread panicked");
            }
        }
    }
}

const MAILBOX_PATIENCE: Duration = Duration::from_secs(10);
const MAILBOX_RETRY: Duration = Duration::from_millis(1);

type Started = std::sync::mpsc::Sender<std::io::Result<Sender<Command>>>;

fn run(index: usize, core: Option<CoreId>, driver: DriverKind, process: Arc<Process>, started: &Started) {
    if let Some(core) = core
        && !core_affinity::set_for_current(core)
    {
        log::warn!(target: "worker", "worker {index}: cannot pin to CPU {}", core.id);
    }
    let mut runtime = match Runtime::new(&RuntimeConfig { driver, ..RuntimeConfig::default() }) {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    let (sender, receiver) = mailbox::channel(MAILBOX);
    if started.send(Ok(sender)).is_err() {
        return;
    }
    runtime.block_on(async move {
        let worker = Worker::new(index, process);
        task::spawn(upstream::janitor(worker.clone()));
        apply::obey(worker, receiver).await;
    });
}
