//! Access logs in files: workers hand over whole buffers, a thread of its own writes them.
//!
//! A worker appends a line to an open buffer. A buffer that is full, or that has waited for the flush interval, goes to
//! the writing thread. Buffers change hands through bounded lock-free queues; when the disk does not keep up and
//! the queue is full, lines are dropped and counted. A worker is never held up.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;

use crate::observe::stats::{Counter, FilesystemStats, Registry, SinkStats};

/// Full buffers that may wait for the writing thread, for each sink. With the default buffer size, 1 MiB.
const FULL_MAX: usize = 16;
/// Empty buffers kept for reuse, for each sink.
const SPARE_MAX: usize = 2;

/// When buffered lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The longest time a line waits (`--file-flush-interval-msec`, default 10 s).
    pub flush_interval: Duration,
    /// The bytes after which a buffer is written without waiting (`--file-flush-min-size-kb`, default 64 KiB).
    pub flush_size: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { flush_interval: Duration::from_secs(10), flush_size: 64 << 10 }
    }
}

/// Why there is no access log.
#[derive(Debug, thiserror::Error)]
pub enum AccessLogError {
    /// The file cannot be opened for appending.
    #[error("access log {}: {source}", path.display())]
    Open {
        /// As configured.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The writing thread cannot be started.
    #[error("access log thread: {0}")]
    Thread(io::Error),
}

/// All log files of the process and the thread that writes them. Cheap to clone. When the last clone is dropped, what is
/// buffered is written and the thread ends.
#[derive(Debug, Clone)]
pub struct AccessLogs(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    registry: Registry,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    files: Mutex<BTreeMap<PathBuf, LogFile>>,
    stop: AtomicBool,
}

#[derive(Debug)]
struct LogFile {
    target: Arc<Mutex<Target>>,
    queues: Vec<Arc<Queue>>,
}

/// What the writing thread goes through in one round: a file and what its sinks handed over.
type Source = (PathBuf, Arc<Mutex<Target>>, Vec<Arc<Queue>>);

#[derive(Debug)]
enum Target {
    File(File),
    Stderr,
    Stdout,
}

enum Command {
    Flush(Sender<()>),
    Reopen,
}

/// The way of one worker into one log file.
#[derive(Debug)]
pub struct Sink {
    queue: Arc<Queue>,
    stats: Arc<SinkStats>,
    writer: Thread,
}

#[derive(Debug)]
struct Queue {
    flush_size: usize,
    /// The buffer being filled, while neither the worker nor the writing thread has it in hand.
    open: ArrayQueue<Buffer>,
    full: ArrayQueue<Buffer>,
    spare: ArrayQueue<Vec<u8>>,
    /// Buffers begun so far; counted by the worker.
    begun: Counter,
}

#[derive(Debug)]
struct Buffer {
    /// Which one of its queue, in the order in which they were begun. The writing thread may take the open buffer
    /// while the one before is still among the full ones.
    number: u64,
    bytes: Vec<u8>,
}

impl AccessLogs {
    /// Starts the writing thread. Its statistics are registered as `filesystem`.
    pub fn new(options: Options, registry: &Registry) -> Result<Self, AccessLogError> {
        let shared = Arc::new(Shared { options, files: Mutex::default(), stop: AtomicBool::new(false) });
        let stats = Arc::new(FilesystemStats::default());
        registry.register("filesystem", stats.clone());
        let (commands, inbox) = mpsc::channel();
        let writer = Writer { shared: shared.clone(), stats, inbox };
        let thread = thread::Builder::new()
            .name("culvert-logs".to_owned())
            .spawn(move || {
                culvert_ring::sched::give_way_or_warn("access log writer");
                writer.run();
            })
            .map_err(AccessLogError::Thread)?;
        Ok(Self(Arc::new(Handle { shared, commands, registry: registry.clone(), thread: Some(thread) })))
    }

    /// A way into the file at `path`, which is made if it is missing. Each worker asks for its own; lines of one worker
    /// stay in order. `/dev/stdout` and `/dev/stderr` mean the process's own, whatever they are.
    pub fn sink(&self, path: impl AsRef<Path>) -> Result<Arc<Sink>, AccessLogError> {
        let path = path.as_ref();
        let mut files = self.0.shared.lock_files();
        if !files.contains_key(path) {
            let target = Target::open(path)
                .map_err(|source| AccessLogError::Open { path: path.to_owned(), source })?;
            let file = LogFile { target: Arc::new(Mutex::new(target)), queues: Vec::new() };
            files.insert(path.to_owned(), file);
        }
        let flush_size = self.0.shared.options.flush_size.max(1);
        let queue = Arc::new(Queue {
            flush_size,
            open: ArrayQueue::new(1),
            full: ArrayQueue::new(FULL_MAX),
            spare: ArrayQueue::new(SPARE_MAX),
            begun: Counter::default(),
        });
        if let Some(file) = files.get_mut(path) {
            file.queues.push(queue.clone());
        }
        let stats = Arc::new(SinkStats::default());
        self.0.registry.register("filesystem", stats.clone());
        Ok(Arc::new(Sink { queue, stats, writer: self.0.writer() }))
    }

    /// Has every file opened anew, after what is buffered was written: for log rotation. Does not wait for it.
    pub fn reopen(&self) {
        self.0.tell(Command::Reopen);
    }

    /// Writes what is buffered. Returns when it is written and what was told before is done; not for a thread that
    /// must not wait for a disk.
    pub fn flush(&self) {
        let (done, wait) = mpsc::channel();
        self.0.tell(Command::Flush(done));
        // The sender is dropped if the thread is gone, so this cannot hang.
        let _ = wait.recv();
    }

    /// Reopens the files whenever the process gets `SIGUSR1`, as Envoy does. Never returns, unless the signal
    /// cannot be watched.
    pub async fn reopen_on_sigusr1(self) -> io::Result<()> {
        let mut signals = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::user_defined1())?;
        while signals.recv().await.is_some() {
            self.reopen();
        }
        Ok(())
    }
}

impl Handle {
    fn writer(&self) -> Thread {
        // The thread is only taken when the handle is dropped.
        self.thread.as_ref().map_or_else(thread::current, |thread| thread.thread().clone())
    }

    fn tell(&self, command: Command) {
        // The thread only ends before this handle if it died, which the handle reports when it is dropped.
        if self.commands.send(command).is_ok() {
            self.writer().unpark();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else { return };
        thread.thread().unpark();
        if thread.join().is_err() {
            log::error!("access log thread died; buffered lines are lost");
        }
    }
}

impl Sink {
    /// Takes one line; adds the newline if the line has none. Copies the bytes and returns; when the disk has not kept up,
    /// drops the line and counts it. To be called by the thread that asked for the sink.
    pub fn write_line(&self, line: &[u8]) {
        let queue = &self.queue;
        let mut buffer = queue.open.pop().unwrap_or_else(|| queue.begin());
        if buffer.bytes.len() >= queue.flush_size {
            // The last attempt to hand this buffer over found the queue full.
            if let Err(back) = queue.full.push(buffer) {
                self.stats.write_dropped.inc();
                queue.put_back(back);
                return;
            }
            buffer = queue.begin();
        }
        buffer.bytes.extend_from_slice(line);
        if line.last() != Some(&b'\n') {
            buffer.bytes.push(b'\n');
        }
        self.stats.write_buffered.inc();
        if buffer.bytes.len() < queue.flush_size {
            queue.put_back(buffer);
            return;
        }
        if let Err(back) = queue.full.push(buffer) {
            queue.put_back(back);
        }
        self.writer.unpark();
    }

    /// Lines dropped so far.
    pub fn dropped(&self) -> u64 {
        self.stats.write_dropped.value()
    }
}

impl Queue {
    fn begin(&self) -> Buffer {
        self.begun.inc();
        let bytes = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(self.flush_size));
        Buffer { number: self.begun.value(), bytes }
    }

    fn put_back(&self, buffer: Buffer) {
        // Only the worker fills the place, and it emptied it before.
        let _ = self.open.push(buffer);
    }

    /// What the worker handed over, in the order it was written.
    fn take(&self, take: Take) -> Vec<Buffer> {
        // Whatever is older than the open buffer was put among the full ones before that one was begun.
        let open = if take == Take::Everything { self.open.pop() } else { None };
        let mut buffers: Vec<Buffer> =
            std::iter::from_fn(|| self.full.pop()).take(FULL_MAX).chain(open).collect();
        buffers.sort_unstable_by_key(|buffer| buffer.number);
        buffers
    }

    /// Keeps an empty buffer for reuse.
    fn give_back(&self, mut bytes: Vec<u8>) {
        bytes.clear();
        // One long line may have made it large; that one is not kept.
        if bytes.capacity() <= 2 * self.flush_size {
            let _ = self.spare.push(bytes);
        }
    }
}

impl Shared {
    fn lock_files(&self) -> MutexGuard<'_, BTreeMap<PathBuf, LogFile>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writing thread.
struct Writer {
    shared: Arc<Shared>,
    stats: Arc<FilesystemStats>,
    inbox: Receiver<Command>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Take {
    Everything,
    FullBuffers,
}

impl Writer {
    fn run(&self) {
        let interval = self.shared.options.flush_interval;
        let mut due = Instant::now() + interval;
        loop {
            thread::park_timeout(due.saturating_duration_since(Instant::now()));
            if self.shared.stop.load(Ordering::Acquire) {
                self.write(Take::Everything);
                return;
            }
            while let Ok(command) = self.inbox.try_recv() {
                self.obey(command);
            }
            if Instant::now() < due {
                self.write(Take::FullBuffers);
                continue;
            }
            if self.write(Take::Everything) {
                self.stats.flushed_by_timer.inc();
            }
            due = Instant::now() + interval;
        }
    }

    fn obey(&self, command: Command) {
        self.write(Take::Everything);
        // Whoever asked may have stopped waiting; nothing is lost by that.
        match command {
            Command::Flush(done) => {
                let _ = done.send(());
            }
            Command::Reopen => self.reopen(),
        }
    }

    /// Writes what the workers handed over; tells whether there was anything.
    fn write(&self, take: Take) -> bool {
        let mut any = false;
        for (path, target, queues) in self.sources() {
            let mut target = target.lock().unwrap_or_else(PoisonError::into_inner);
            for queue in &queues {
                for buffer in queue.take(take) {
                    any |= self.write_buffer(&path, &mut target, &buffer.bytes);
                    queue.give_back(buffer.bytes);
                }
            }
        }
        self.forget_abandoned();
        any
    }

    fn write_buffer(&self, path: &Path, target: &mut Target, bytes: &[u8]) -> bool {
        if bytes.is_empty() {
            return false;
        }
        match target.write_all(bytes) {
            Ok(()) => self.stats.write_completed.inc(),
            Err(error) => {
                self.stats.write_failed.inc();
                log::debug!("access log {}: {error}", path.display());
            }
        }
        true
    }

    /// A copy of the list, so that a slow disk does not hold up whoever asks for a sink.
    fn sources(&self) -> Vec<Source> {
        let files = self.shared.lock_files();
        files.iter().map(|(path, file)| (path.clone(), file.target.clone(), file.queues.clone())).collect()
    }

    /// Lets go of sinks that were dropped and have nothing left, and of files without sinks.
    fn forget_abandoned(&self) {
        self.shared.lock_files().retain(|_, file| {
            file.queues.retain(|queue| {
                Arc::strong_count(queue) > 1 || !queue.full.is_empty() || !queue.open.is_empty()
            });
            !file.queues.is_empty()
        });
    }

    fn reopen(&self) {
        for (path, target, _) in self.sources() {
            match Target::open(&path) {
                Ok(new) => *target.lock().unwrap_or_else(PoisonError::into_inner) = new,
                Err(error) => {
                    self.stats.reopen_failed.inc();
                    log::warn!(
                        "access log {}: cannot reopen, going on with the old file: {error}",
                        path.display()
                    );
                }
            }
        }
    }
}

impl Target {
    fn open(path: &Path) -> io::Result<Self> {
        // Opening these paths fails when they are sockets, as under systemd.
        if path == Path::new("/dev/stdout") {
            return Ok(Self::Stdout);
        }
        if path == Path::new("/dev/stderr") {
            return Ok(Self::Stderr);
        }
        OpenOptions::new().append(true).create(true).open(path).map(Self::File)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.write_all(bytes),
            Self::Stderr => io::stderr().lock().write_all(bytes),
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(bytes)?;
                stdout.flush()
            }
        }
    }
}

#[cfg(test)]
mod tests;
