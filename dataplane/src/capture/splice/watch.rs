//! One connection on its way into the map, and in it.

use std::{os::fd::BorrowedFd, rc::Rc};

use culvert_bpf::{EnterError, Leg, LegProgress, LegSpec};
use culvert_ring::{Progress, Watch};

use super::{PodSpliceCounts, WorkerSplice};
use crate::{capture::PodHandle, worker::Local};

/// How many times a connection is received from before its socket enters. Entering costs some system calls, which a
/// connection for one request would never get back.
const RECEIVES_BEFORE: u32 = 2;

/// The longest pause between questions about a reader that are asked in vain, in bytes sent.
const MAX_PAUSE: u64 = 16 << 20;

/// Messages to an application after which it is asked what it has read: before the programs return to TCP for their number
/// (64, however small they are).
const MESSAGES: u32 = 32;

/// Follows a connection for its lifetime.
pub(super) struct LegWatch {
    worker: Rc<WorkerSplice>,
    pod: Rc<Local<PodHandle>>,
    spec: LegSpec,
    state: State,
}

enum State {
    /// Not worth it yet.
    Waiting {
        receives: u32,
    },
    Entered(Entered),
    /// It stays with TCP.
    Left,
}

struct Entered {
    leg: Leg,
    /// What was counted already.
    counted: LegProgress,
    /// The reader is an application, about which the kernel has to be asked.
    asks: bool,
    /// Bytes that the application is known to have read.
    confirmed: u64,
    /// Bytes that were sent when it was last asked.
    asked: u64,
    /// Bytes redirected to it by then.
    redirected: u64,
    /// Sends since then.
    messages: u32,
    /// Bytes to be sent before the next question, unless the application has answered.
    pause: u64,
    /// The application's socket was taken out of the map.
    released: bool,
}

impl LegWatch {
    pub(super) fn new(worker: Rc<WorkerSplice>, pod: Rc<Local<PodHandle>>, spec: LegSpec) -> Self {
        Self { worker, pod, spec, state: State::Waiting { receives: 0 } }
    }

    fn enter(&mut self, socket: BorrowedFd<'_>, progress: Progress) {
        let Some(splice) = &self.pod.splice else { return };
        let pool = self.worker.pool(&splice.programs);
        let stats = &self.worker.stats;
        self.state = match pool.enter(socket, &self.spec, progress.received) {
            Ok(leg) => {
                stats.cx_total.inc();
                stats.cx_active.inc();
                splice.counters.add(PodSpliceCounts { spliced: 1, ..PodSpliceCounts::default() });
                let asks = self.spec.peer_netns == self.spec.netns;
                let mut entered = Entered {
                    leg,
                    counted: LegProgress::default(),
                    asks,
                    confirmed: 0,
                    asked: 0,
                    redirected: 0,
                    messages: 0,
                    pause: splice.programs.limit() / 4,
                    released: false,
                };
                if asks && progress.sent > 0 {
                    entered.ask(&self.worker, &self.pod, socket, progress);
                }
                State::Entered(entered)
            }
            // The next time, perhaps.
            Err(EnterError::Unread) => return,
            Err(error) => {
                match error {
                    EnterError::Busy => stats.declined_busy.inc(),
                    EnterError::Full => stats.declined_full.inc(),
                    _ => stats.declined_other.inc(),
                }
                log::debug!(target: "capture", "pod {}: a connection is not spliced: {error}", self.pod.name);
                State::Left
            }
        };
    }
}

impl Watch for LegWatch {
    #[inline]
    fn received(&mut self, socket: BorrowedFd<'_>, progress: Progress) {
        match &mut self.state {
            State::Waiting { receives } => {
                *receives += 1;
                if *receives >= RECEIVES_BEFORE {
                    self.enter(socket, progress);
                }
            }
            State::Entered(entered) => {
                entered.leg.publish_read(progress.received);
                entered.count(&self.worker, &self.pod);
                if entered.asks {
                    entered.answered(&self.worker, &self.pod, socket, progress);
                }
            }
            State::Left => {}
        }
    }

    #[inline]
    fn sent(&mut self, socket: BorrowedFd<'_>, progress: Progress) {
        let State::Entered(entered) = &mut self.state else { return };
        let Some(splice) = &self.pod.splice else { return };
        entered.messages = entered.messages.saturating_add(1);
        let unknown = progress.sent.saturating_sub(entered.confirmed);
        let since = progress.sent.saturating_sub(entered.asked);
        if entered.asks && unknown >= splice.programs.limit() / 2 && since >= entered.pause {
            entered.ask(&self.worker, &self.pod, socket, progress);
        }
    }
}

impl Entered {
    /// The application has sent something, so it has probably read all that it was sent: a good moment to find out.
    #[inline]
    fn answered(
        &mut self,
        worker: &WorkerSplice,
        pod: &PodHandle,
        socket: BorrowedFd<'_>,
        progress: Progress,
    ) {
        let Some(splice) = &pod.splice else { return };
        let leaves = self.counted.declined && !self.released;
        let since = progress.sent.saturating_sub(self.asked);
        let due = since >= splice.programs.limit() / 4 || self.messages >= MESSAGES;
        if progress.sent > self.confirmed && due || leaves {
            self.ask(worker, pod, socket, progress);
        }
        // Nothing is under way to the application, and nothing is being sent.
        if leaves && progress.queued == 0 && self.confirmed == progress.sent {
            self.leg.release_peer();
            self.released = true;
        }
    }

    fn ask(&mut self, worker: &WorkerSplice, pod: &PodHandle, socket: BorrowedFd<'_>, progress: Progress) {
        let Some(diag) = worker.diag(pod) else { return };
        let Some(splice) = &pod.splice else { return };
        worker.stats.reader_asked.inc();
        match self.leg.confirm(&diag, socket, progress.sent) {
            Ok(read) => self.confirmed = read,
            // The application's socket is gone.
            Err(error) => log::trace!(target: "capture", "pod {}: sock_diag: {error}", pod.name),
        }
        let redirected = self.leg.progress().redirected_out;
        let quarter = splice.programs.limit() / 4;
        self.pause = if redirected == self.redirected { (2 * self.pause).min(MAX_PAUSE) } else { quarter };
        (self.asked, self.redirected, self.messages) = (progress.sent, redirected, 0);
    }

    /// Adds what the programs have done since it was last counted.
    #[inline]
    fn count(&mut self, worker: &WorkerSplice, pod: &PodHandle) {
        let (now, before) = (self.leg.progress(), self.counted);
        if now == before {
            return;
        }
        self.counted = now;
        let stats = &worker.stats;
        stats.rx_bytes_total.add(now.redirected_in - before.redirected_in);
        stats.tx_bytes_total.add(now.redirected_out - before.redirected_out);
        let fell_back = now.fell_back - before.fell_back;
        let declined = now.declined && !before.declined;
        if fell_back > 0 {
            stats.fallback_limit.add(fell_back);
        }
        if declined {
            stats.fallback_option.inc();
        }
        if now.miscounted && !before.miscounted {
            stats.fallback_miscount.inc();
            log::warn!(target: "capture", "pod {}: more was read of a spliced connection than was sent", pod.name);
        }
        if let Some(splice) = pod.splice.as_ref().filter(|_| fell_back > 0 || declined) {
            let fell_back = fell_back + u64::from(declined);
            splice.counters.add(PodSpliceCounts { fell_back, ..PodSpliceCounts::default() });
        }
    }
}

impl Drop for LegWatch {
    fn drop(&mut self) {
        let State::Entered(entered) = &mut self.state else { return };
        entered.count(&self.worker, &self.pod);
        self.worker.stats.cx_active.dec();
        if let Some(splice) = &self.pod.splice {
            let LegProgress { redirected_in: bytes_in, redirected_out: bytes_out, .. } = entered.counted;
            splice.counters.add(PodSpliceCounts { bytes_in, bytes_out, ..PodSpliceCounts::default() });
        }
    }
}
