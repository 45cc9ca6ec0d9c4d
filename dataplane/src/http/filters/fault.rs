//! `envoy.filters.http.fault`: delays and errors on purpose.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use culvert_model::{FaultAbort, HttpFault};
use culvert_proto::filter::{
    Settings,
    fault::{self, Answer},
};
use culvert_ring::time;

use super::{Scope, State, Verdict};
use crate::{
    http::{exchange::Exchange, log::Flags, reply::Reply},
    observe::stats::{FaultStats, Registry},
    snapshot::FaultSpec,
};

/// The filter on one worker.
pub(super) struct FaultInjector {
    spec: Arc<FaultSpec>,
    stats: Arc<FaultStats>,
}

/// A request with a fault.
pub(super) struct Active {
    spec: Arc<FaultSpec>,
    stats: Arc<FaultStats>,
}

impl Drop for Active {
    fn drop(&mut self) {
        self.spec.active.fetch_sub(1, Ordering::Relaxed);
        self.stats.active_faults.dec();
    }
}

impl FaultInjector {
    pub(super) fn new(spec: Arc<FaultSpec>, stat_prefix: &str, registry: &Registry) -> Self {
        let stats = Arc::new(FaultStats::default());
        registry.register(format!("http.{stat_prefix}.fault"), stats.clone());
        Self { spec, stats }
    }

    pub(super) async fn decode(
        &self,
        exchange: &Exchange<'_>,
        scope: &Scope<'_>,
        state: &mut State,
    ) -> Verdict {
        let config: &HttpFault = match scope.settings() {
            Some(Settings::Fault(config)) => config,
            _ => &self.spec.config,
        };
        let headers = &exchange.head.headers;
        if !fault::concerns(config, &exchange.head.view(), scope.cluster(headers)) {
            return Verdict::Continue;
        }
        let random = || exchange.conn.worker.rng.borrow_mut().u64(..);
        if let Some(delay) = config.delay.as_ref().and_then(|delay| fault::delay(delay, headers, random()))
            && self.begin(config, state)
        {
            self.stats.delays_injected.inc();
            exchange.record.flags.set(exchange.record.flags.get() | Flags::DELAY_INJECTED);
            if !wait(exchange, delay).await {
                return Verdict::Gone;
            }
        }
        let Some(abort) = &config.abort else { return Verdict::Continue };
        match fault::abort(abort, headers, random()) {
            Some(answer) if self.begin(config, state) => {
                self.stats.aborts_injected.inc();
                Verdict::Reply(reply(abort, answer))
            }
            _ => Verdict::Continue,
        }
    }

    /// Counts the request as one with a fault, once, unless there are enough.
    fn begin(&self, config: &HttpFault, state: &mut State) -> bool {
        if matches!(state, State::Faulty(_)) {
            return true;
        }
        let max = config.max_active.map_or(u64::MAX, u64::from);
        if self.spec.active.fetch_add(1, Ordering::Relaxed) >= max {
            self.spec.active.fetch_sub(1, Ordering::Relaxed);
            self.stats.faults_overflow.inc();
            return false;
        }
        self.stats.active_faults.inc();
        *state = State::Faulty(Active { spec: self.spec.clone(), stats: self.stats.clone() });
        true
    }
}

fn reply(abort: &FaultAbort, answer: Answer) -> Reply {
    let reply = match answer {
        Answer::Http(status) => Reply::new(status, ""),
        Answer::Grpc(status) => Reply::new(200, "").grpc_status(status.to_string()),
    };
    reply.body(abort.body.clone()).flag(Flags::FAULT_INJECTED).details("fault_filter_abort")
}

/// Waits; whether the client is still there.
async fn wait(exchange: &Exchange<'_>, delay: Duration) -> bool {
    let complete = exchange.framing.is_empty();
    let mut sleep = pin!(time::sleep(delay));
    poll_fn(|cx| {
        if sleep.as_mut().poll(cx).is_ready() {
            return Poll::Ready(true);
        }
        exchange.stream.poll_gone(complete, cx).map(|_| false)
    })
    .await
}
