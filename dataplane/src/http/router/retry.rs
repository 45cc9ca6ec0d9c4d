//! The retries of one request: what `culvert_proto::retry` decides, the circuit breaker, and the counters.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use culvert_model::{AvoidHost, RetryPolicy, RoutePriority, Struct};
use culvert_proto::{
    ResponseHead,
    balance::ChildPriorities,
    retry::{BackOffState, Decision, PreviousPriorities, Reset, Retries, rate_limited},
    route::RequestView,
};
use culvert_ring::time;
use smallvec::SmallVec;

use super::CountedBy;
use crate::{
    http::log::Flags,
    upstream::{Choice, Cluster, Credit, Host},
};

/// What a route and its request say about retries, and how many there were.
pub(super) struct Retrying<'a> {
    policy: Option<&'a RetryPolicy>,
    priority: RoutePriority,
    counted: CountedBy,
    state: RefCell<State<'a>>,
    /// There is no way to send the request again.
    abandoned: Cell<bool>,
}

struct State<'a> {
    retries: Retries<'a>,
    back_off: BackOffState,
    /// Where the policy avoids those of the attempts so far.
    priorities: Option<PreviousPriorities>,
    /// Of the retry that is under way.
    credit: Option<Credit>,
    /// Hosts of the attempts so far, where the policy avoids them.
    tried: SmallVec<[Rc<Host>; 2]>,
}

/// What becomes of an attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// It is the last one; what the log has to say about that.
    Keep(Flags),
    /// Another one begins after a while.
    Retry(Duration),
}

impl<'a> Retrying<'a> {
    /// `None` when neither the policy nor the request asks for retries.
    pub(super) fn new(
        policy: Option<&'a RetryPolicy>,
        priority: RoutePriority,
        request: &RequestView<'_>,
        counted: &CountedBy,
    ) -> Option<Self> {
        let retries = Retries::new(policy, request)?;
        let back_off = policy.map(|policy| policy.back_off).unwrap_or_default();
        let priorities = policy.and_then(|policy| policy.avoid_priorities_after);
        let state = State {
            retries,
            back_off: BackOffState::new(back_off),
            priorities: priorities.map(PreviousPriorities::new),
            credit: None,
            tried: SmallVec::new(),
        };
        Some(Self {
            policy,
            priority,
            counted: counted.clone(),
            state: RefCell::new(state),
            abandoned: Cell::new(false),
        })
    }

    /// Whether the request has to be kept, to be sent again.
    pub(super) fn is_enabled(&self) -> bool {
        self.state.borrow().retries.is_enabled()
    }

    /// The request is too large to be kept.
    pub(super) fn abandon(&self) {
        self.abandoned.set(true);
        self.state.borrow_mut().credit = None;
    }

    /// What becomes of an attempt that was answered.
    pub(super) fn answered(
        &self,
        cluster: &Rc<Cluster>,
        response: &ResponseHead,
        early: bool,
        rng: &mut fastrand::Rng,
    ) -> Verdict {
        if self.abandoned.get() {
            return Verdict::Keep(Flags::default());
        }
        let decision = self.state.borrow().retries.after_response(response, early);
        let told = match (decision, self.policy.and_then(|policy| policy.rate_limited.as_ref())) {
            (Decision::Retry, Some(policy)) => {
                let now = time::since_1970(time::now()).as_secs();
                rate_limited(policy, &response.headers, now, rng.u64(..))
            }
            _ => None,
        };
        self.decide(cluster, decision, told, rng)
    }

    /// What becomes of an attempt that was not answered.
    pub(super) fn unanswered(&self, cluster: &Rc<Cluster>, reset: Reset, rng: &mut fastrand::Rng) -> Verdict {
        if self.abandoned.get() {
            return Verdict::Keep(Flags::default());
        }
        let decision = self.state.borrow().retries.after_reset(reset);
        self.decide(cluster, decision, None, rng)
    }

    fn decide(
        &self,
        cluster: &Rc<Cluster>,
        decision: Decision,
        told: Option<Duration>,
        rng: &mut fastrand::Rng,
    ) -> Verdict {
        let state = &mut *self.state.borrow_mut();
        let was_retry = state.credit.take().is_some();
        if decision == Decision::Keep {
            if was_retry {
                cluster.stats.upstream_rq_retry_success.inc();
                self.counted.each(|by| by.stats.upstream_rq_retry_success.inc());
            }
            return Verdict::Keep(Flags::default());
        }
        if !state.retries.take() {
            cluster.stats.upstream_rq_retry_limit_exceeded.inc();
            self.counted.each(|by| by.stats.upstream_rq_retry_limit_exceeded.inc());
            return Verdict::Keep(Flags::UPSTREAM_RETRY_LIMIT);
        }
        state.credit = Credit::take_retry(cluster, self.priority);
        if state.credit.is_none() {
            cluster.stats.upstream_rq_retry_overflow.inc();
            self.counted.each(|by| by.stats.upstream_rq_retry_overflow.inc());
            return Verdict::Keep(Flags::UPSTREAM_OVERFLOW);
        }
        cluster.stats.upstream_rq_retry.inc();
        self.counted.each(|by| by.stats.upstream_rq_retry.inc());
        Verdict::Retry(match (decision, told) {
            (Decision::RetryNow, _) => Duration::ZERO,
            (_, Some(told)) => {
                cluster.stats.upstream_rq_retry_backoff_ratelimited.inc();
                told
            }
            _ => {
                cluster.stats.upstream_rq_retry_backoff_exponential.inc();
                state.back_off.next(rng.u64(..))
            }
        })
    }

    /// A host of `cluster`, at another priority than before where the policy says so.
    pub(super) fn pick(
        &self,
        cluster: &Cluster,
        rng: &mut fastrand::Rng,
        choice: Choice<'_>,
    ) -> Option<Rc<Host>> {
        let priorities = &mut self.state.borrow_mut().priorities;
        let Some(priorities) = priorities else { return cluster.pick(rng, choice) };
        let host = cluster.pick(rng, Choice { without: priorities.avoided(), ..choice });
        if cluster.is_exhausted() {
            priorities.exhausted();
        }
        host
    }

    /// The child of an aggregate cluster with these priorities, and which of its own, where the policy avoids others.
    /// `drawn` is a random percentage below 100.
    pub(super) fn child(&self, all: &ChildPriorities, drawn: u8) -> Option<(usize, u32)> {
        let priorities = &mut self.state.borrow_mut().priorities;
        let priorities = priorities.as_mut()?;
        let without = priorities.avoided();
        if without.is_empty() {
            return None;
        }
        let chosen = all.avoiding(without, drawn);
        if chosen.is_none() {
            priorities.exhausted();
        }
        chosen
    }

    /// An attempt goes to this host, which is at this priority, counted through the children of an aggregate cluster.
    /// `revived`: it is the one before once more.
    pub(super) fn tries(&self, host: &Rc<Host>, priority: u32, revived: bool) {
        if let Some(priorities) = &mut self.state.borrow_mut().priorities
            && !revived
        {
            priorities.tries(priority);
        }
        if self.policy.is_some_and(|policy| policy.avoid.contains(&AvoidHost::Previous)) {
            self.state.borrow_mut().tried.push(host.clone());
        }
    }

    /// How often another host is looked for.
    pub(super) fn host_attempts(&self) -> u32 {
        self.policy.map_or(0, |policy| if policy.avoid.is_empty() { 0 } else { policy.host_attempts })
    }

    /// Whether another host is to be looked for.
    pub(super) fn avoids(&self, host: &Rc<Host>) -> bool {
        let Some(policy) = self.policy else { return false };
        policy.avoid.iter().any(|avoid| match avoid {
            AvoidHost::Previous => self.state.borrow().tried.iter().any(|tried| Rc::ptr_eq(tried, host)),
            AvoidHost::Canary => host.is_canary(),
            AvoidHost::Metadata(wanted) => with_labels(host, |labels| {
                wanted.is_empty()
                    || labels.is_some_and(|labels| {
                        wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
                    })
            }),
        })
    }
}

/// The metadata of a host that balancing looks at.
fn with_labels<R>(host: &Host, read: impl FnOnce(Option<&Struct>) -> R) -> R {
    let spec = host.spec();
    read(spec.endpoint.metadata.as_ref().and_then(|metadata| metadata.0.get("envoy.lb")))
}
