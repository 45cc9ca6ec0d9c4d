//! Processes of the lab: placed, logged, and ended with whoever started them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::exec::Placement;
use super::{LabError, interrupt};

/// How long a process may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(5);

const POLL: Duration = Duration::from_millis(5);

/// How much of a log an error quotes.
const LOG_LINES: usize = 15;

/// A running process. When dropped it is asked to end (SIGTERM), then made to; it ends too when its parent is killed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` where `placement` says; stdout is kept for [`Process::output`], stderr goes to a file in
    /// `log_directory`.
    ///
    /// # Errors
    /// When the log cannot be written or the process not be started. That the command itself does not exist shows
    /// only when it ends.
    pub fn start(
        name: &str,
        placement: &Placement,
        command: Vec<OsString>,
        log_directory: &Path,
    ) -> Result<Self, LabError> {
        let log = log_directory.join(format!("{}.log", name.replace([' ', '/'], "-")));
        let stderr = File::create(&log).map_err(LabError::file(&log))?;
        let own = std::env::current_exe().map_err(LabError::file("/proc/self/exe"))?;
        let child = Command::new(&own)
            .args(["exec", "--die-with-parent"])
            .args(placement.to_arguments())
            .arg("--")
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            // Ctrl-C at the terminal is for the parent, which ends its processes in order.
            .process_group(0)
            .spawn()
            .map_err(LabError::file(own))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Its process id; stays the same when the command replaces itself.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `is_ready`, which is asked again and again.
    ///
    /// # Errors
    /// When the process ends, the time is up, or a signal came.
    pub fn wait_until(
        &mut self,
        limit: Duration,
        mut is_ready: impl FnMut() -> bool,
    ) -> Result<(), LabError> {
        let deadline = Instant::now() + limit;
        while !is_ready() {
            interrupt::check()?;
            if let Some(status) = self.try_wait()? {
                return Err(self.error(format!("ended at once: {status}")));
            }
            if Instant::now() >= deadline {
                return Err(self.error(format!("not ready after {} s", limit.as_secs())));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// The first line it writes to stdout; waits for it, and fails when there is none. What it writes later must fit a pipe
    /// (64 KB).
    ///
    /// # Errors
    /// When the process ends without a line.
    pub fn first_line(&mut self) -> Result<String, LabError> {
        let mut line = Vec::new();
        let mut byte = [0];
        // Byte by byte: what follows is for others.
        while let Some(stdout) = &mut self.child.stdout {
            match stdout.read(&mut byte) {
                Ok(1) if byte[0] == b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
                Ok(1) => line.push(byte[0]),
                Ok(_) => break,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.error(format!("unreadable output: {error}"))),
            }
        }
        let _ = self.child.wait();
        Err(self.error("ended at once".to_owned()))
    }

    /// Waits for the end of the process and returns what it wrote to stdout, which must fit a pipe (64 KB).
    ///
    /// # Errors
    /// When it fails, the time is up, or a signal came.
    pub fn output(mut self, limit: Duration) -> Result<String, LabError> {
        let deadline = Instant::now() + limit;
        let status = loop {
            interrupt::check()?;
            if let Some(status) = self.try_wait()? {
                break status;
            }
            if Instant::now() >= deadline {
                return Err(self.error(format!("still running after {} s", limit.as_secs())));
            }
            thread::sleep(POLL);
        };
        if !status.success() {
            return Err(self.error(format!("failed: {status}")));
        }
        let mut text = String::new();
        if let Some(stdout) = &mut self.child.stdout {
            stdout
                .read_to_string(&mut text)
                .map_err(|error| self.error(format!("unreadable output: {error}")))?;
        }
        Ok(text)
    }

    /// An error about this process, with the end of its log.
    pub fn error(&self, what: String) -> LabError {
        let text =
            fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let log = lines[lines.len().saturating_sub(LOG_LINES)..]
            .iter()
            .map(|line| format!("\n    {line}"))
            .collect();
        LabError::Process { name: self.name.clone(), what, log }
    }

    fn try_wait(&mut self) -> Result<Option<ExitStatus>, LabError> {
        self.child.try_wait().map_err(|error| self.error(error.to_string()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(POLL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
