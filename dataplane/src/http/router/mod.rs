//! The router: choosing a cluster and a host, sending the request, relaying the response.
//!
//! [`Passage`] is what all attempts of a request share; `target` finds the cluster, `request` writes the head that is sent,
//! `attempt` is one connection with both directions over it (`body` there, `respond` back), `conclude` says what becomes of
//! the request when it is over (`retry`: whether there is another one), `replies` what the client is told if there was no answer.

mod attempt;
pub(super) mod body;
mod conclude;
mod counted;
mod mirror;
pub(super) mod redirect;
mod replies;
mod request;
mod respond;
mod retry;
mod target;
mod timeouts;
mod tunnel;

use std::{
    cell::{Cell, OnceCell, RefCell},
    rc::Rc,
};

use bytes::Bytes;
use culvert_model::{MirrorPolicy, RouteAction, WeightedCluster};
use culvert_proto::{
    Headers, Method,
    h1::Framing,
    route::{Match, Mutations, Table},
};

use culvert_ring::time;
use smallvec::SmallVec;

use crate::{
    http::{
        connection::Timers,
        deadlines::Deadlines,
        exchange::{After, Exchange},
        log::Flags,
        reply::Reply,
        server_name::server_names,
    },
    upstream::{Choice, Cluster, Credit, Host, Lent, Via, ends_for},
    worker::LocalTable,
};
use attempt::ActiveUpstream;
use body::{Activity, Kept};
use conclude::Next;
pub(super) use counted::CountedBy;
use mirror::Mirror;
use redirect::Redirected;
use retry::Retrying;
use timeouts::Timeouts;

/// What became of a request that was forwarded.
pub(in crate::http) enum Forwarded {
    Done(After),
    /// It is another request now.
    Redirected,
}

/// A request on its way to its cluster.
struct Passage<'a> {
    action: &'a RouteAction,
    matched: &'a Match<'a>,
    /// Which of several clusters it is, where the route has a choice.
    weighted: Option<&'a WeightedCluster>,
    mutations: Mutations<'a>,
    /// Of the present attempt.
    cluster: Rc<Cluster>,
    /// What `cluster` is a child of, where a retry may go to another one.
    aggregate: Option<Rc<Cluster>>,
    /// Priorities of `cluster` that the aggregate cluster leaves out in the present attempt.
    left_out: SmallVec<[u32; 4]>,
    via: Via,
    timeouts: Timeouts,
    deadlines: Deadlines,
    /// What is to be done about attempts that fail; `None` when nothing is.
    retrying: Option<Retrying<'a>>,
    /// It asked to switch protocols and may.
    upgrade: bool,
    /// The upstream has accepted that.
    tunnel_open: Cell<bool>,
    /// The body, as far as it was received.
    kept: Kept,
    /// The whole request has been sent in the present attempt.
    sent: Cell<bool>,
    response_started: Cell<bool>,
    /// Something of an answer has come: an informational one.
    answering: Cell<bool>,
    activity: Activity,
    /// What balancing by hash goes by.
    hash: OnceCell<Option<u64>>,
    /// There was an attempt before the present one.
    is_retry: Cell<bool>,
    /// It met a dead connection and is sent again over a new one.
    revived: Cell<bool>,
    /// That counts as a retry, as the upstream may have read it before.
    revival: Cell<Option<Credit>>,
    /// Where the request goes too.
    mirrors: RefCell<Vec<Mirror>>,
}

/// How much of a request is kept that is sent again only if it meets a dead connection, in bytes.
const REVIVED_BYTES: usize = 64 * 1024;

impl Passage<'_> {
    /// The priority of a host of `cluster`, counted through the children of an aggregate cluster.
    fn priority_of(&self, host: &Host) -> u32 {
        let priority = host.spec().endpoint.priority;
        let number = || {
            let children = self.aggregate.as_ref()?.children()?;
            let config = self.cluster.config();
            let child = children.shares.iter().position(|(name, _)| *name == config.name)?;
            children.priorities.number(child, priority)
        };
        number().unwrap_or(priority)
    }

    /// The body is too large to be kept.
    fn abandon(&self) {
        let retrying = self.retrying.as_ref().filter(|retrying| retrying.is_enabled());
        if let Some(retrying) = retrying {
            retrying.abandon();
        }
        if retrying.is_some() || self.action.internal_redirects.is_some() {
            self.cluster.stats.retry_or_shadow_abandoned.inc();
        }
    }

    /// A piece of the body was received.
    fn mirror_piece(&self, piece: &[u8]) {
        let mut mirrors = self.mirrors.borrow_mut();
        if mirrors.is_empty() {
            return;
        }
        let piece = Bytes::copy_from_slice(piece);
        let before = mirrors.len();
        mirrors.retain(|mirror| mirror.send(&piece));
        self.cluster.stats.retry_or_shadow_abandoned.add((before - mirrors.len()) as u64);
    }

    /// The body has ended.
    fn mirror_end(&self, trailers: Option<&Headers>) {
        for mirror in self.mirrors.borrow().iter() {
            mirror.finish(trailers);
        }
    }
}

/// The policies of the most specific level that has some.
fn mirror_policies<'t>(table: &'t Table, matched: &Match<'t>, action: &'t RouteAction) -> &'t [MirrorPolicy] {
    let levels = [&action.mirrors, &matched.vhost.mirrors, &table.config().mirrors];
    levels.into_iter().find(|level| !level.is_empty()).map_or(&[], Vec::as_slice)
}

impl Exchange<'_> {
    /// Forwards the request as `action` says.
    pub(super) async fn forward(
        &mut self,
        action: &RouteAction,
        table: &LocalTable,
        matched: &Match<'_>,
        random: u64,
        timers: &mut Timers,
    ) -> Forwarded {
        let mut passage = match self.begin(action, table, matched, random) {
            Ok(passage) => passage,
            Err(reply) => return Forwarded::Done(self.reply(reply)),
        };
        // A filter may have taken away what it was asked for with.
        self.upgrading = passage.upgrade;
        if passage.upgrade {
            self.framing = Framing::Tunnel;
        }
        let ended = self.attempts(&mut passage, table, timers).await;
        timers.wait.clear();
        timers.route.clear();
        match ended {
            Ok(after) => {
                self.conn.worker.recycle_buffer(passage.kept.into_parts().0);
                Forwarded::Done(after)
            }
            Err((redirected, status)) => {
                self.become_redirected(*redirected, status, passage.kept);
                Forwarded::Redirected
            }
        }
    }

    /// Makes attempts until there is an answer, or none is to be had; the request that a redirect makes, and the status of
    /// that, if one is to be followed.
    async fn attempts(
        &mut self,
        passage: &mut Passage<'_>,
        table: &LocalTable,
        timers: &mut Timers,
    ) -> Result<After, (Box<Redirected>, u16)> {
        self.record.attempts.set(1);
        loop {
            let Some(host) = self.choose(passage) else {
                self.count_upstream(&passage.cluster, 503);
                let reply = Reply::new(503, "no healthy upstream");
                let reply = reply.flag(Flags::NO_HEALTHY_UPSTREAM).details("no_healthy_upstream");
                return Ok(self.reply(reply));
            };
            if passage.is_retry.get() || passage.revived.get() {
                self.prepare_again(passage, &host);
            } else {
                self.prepare_head(passage, &host);
                passage.deadlines.start(passage.kept.is_complete(), passage.upgrade, timers);
                let policies = mirror_policies(table, passage.matched, passage.action);
                if !policies.is_empty() {
                    *passage.mirrors.borrow_mut() = self.mirrors(passage, policies);
                    passage.kept.replay(|piece| passage.mirror_piece(piece), |end| passage.mirror_end(end));
                }
            }
            // Of an attempt before, not of one that may get no connection.
            self.record.upstream_version.set(None);
            self.begin_attempt();
            let next = self.attempt(passage, &host, timers).await;
            self.end_attempt(&host, matches!(next, Next::Retry(_) | Next::Revive));
            match next {
                Next::Done(after) => return Ok(after),
                Next::Redirect(redirected, status) => return Err((redirected, status)),
                Next::Revive => passage.revived.set(true),
                Next::Retry(wait) => {
                    if !wait.is_zero()
                        && let Err(outcome) = self.pause(passage, wait, timers).await
                    {
                        return Ok(self.conclude_pause(outcome, passage));
                    }
                    passage.is_retry.set(true);
                    passage.revived.set(false);
                    passage.revival.take();
                    self.record.attempts.set(self.record.attempts.get() + 1);
                }
            }
        }
    }

    /// Sends the request to `host` and the answer to the client.
    async fn attempt(&self, passage: &Passage<'_>, host: &Rc<Host>, timers: &mut Timers) -> Next {
        let active = ActiveUpstream::new(&passage.cluster, host, passage.action.priority);
        let no_body = self.framing.is_empty();
        passage.sent.set(no_body);
        let outcome = match self.acquire(passage, host, timers).await {
            Ok(lent) if self.is_refused(passage, &lent) => {
                lent.release(&self.conn.worker);
                self.count_upstream(&passage.cluster, 502);
                return Next::Done(self.reply(replies::protocol_error(passage.is_retry.get())));
            }
            Ok(mut lent) => {
                lent.host.reached(false);
                lent.begin_request();
                lent.conn.send_head(&self.head, self.framing);
                // It is the client's doing: no host is to blame, and no other one would take it.
                if lent.conn.is_unsendable() {
                    let reply = Reply::new(400, "").flag(Flags::DOWNSTREAM_PROTOCOL_ERROR);
                    return Next::Done(self.reply(reply.details("request_not_expressible_in_http2")));
                }
                self.upstream_begun(passage, &lent, no_body);
                self.keep_body(passage, &lent);
                let outcome = self.converse(passage, &lent, timers).await;
                (outcome, Some(lent))
            }
            Err(outcome) => (outcome, None),
        };
        let next = self.conclude(outcome, passage, host);
        drop(active);
        next
    }

    /// Whether the upstream has said that it takes no upgrades.
    fn is_refused(&self, passage: &Passage<'_>, lent: &Lent) -> bool {
        passage.upgrade && self.head.method != Method::Connect && lent.conn.refuses_upgrades()
    }

    /// Has the body kept where it may have to be sent again.
    fn keep_body(&self, passage: &Passage<'_>, lent: &Lent) {
        if passage.kept.is_complete() || passage.upgrade {
            return;
        }
        let wanted = passage.retrying.as_ref().is_some_and(Retrying::is_enabled)
            || passage.action.internal_redirects.is_some();
        let limit = if wanted {
            self.buffer_limit(passage.matched)
        } else if lent.reused {
            REVIVED_BYTES
        } else {
            return;
        };
        passage.kept.keep_up_to(limit, || self.conn.worker.buffer());
    }

    /// How many bytes of a request are kept at most.
    fn buffer_limit(&self, matched: &Match<'_>) -> usize {
        let connection = self.conn.downstream.listener.spec.config.buffer_limit_bytes;
        match matched.route.request_buffer.or(matched.vhost.request_buffer) {
            Some(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
            None => connection,
        }
    }

    /// The body, as far as filters have received it, or a request before that was redirected.
    fn received(&self, upgrade: bool) -> Kept {
        if self.framing.is_empty() || upgrade {
            return Kept::new(!upgrade);
        }
        let Some(bytes) = self.stream.take_kept() else { return Kept::new(false) };
        self.record.bytes_received.set(bytes.len() as u64);
        let mut times = self.record.times.borrow_mut();
        times.rx_end = times.rx_end.or_else(|| Some(time::now()));
        Kept::whole(bytes, self.stream.take_trailers())
    }

    /// Finds out where the request goes; an answer if it goes nowhere.
    fn begin<'a>(
        &self,
        action: &'a RouteAction,
        table: &'a LocalTable,
        matched: &'a Match<'a>,
        random: u64,
    ) -> Result<Passage<'a>, Reply> {
        let found = self.cluster(action, random);
        let total = &self.conn.manager.stats.rq_total;
        let Some((cluster, weighted)) = found else {
            total.inc();
            return Err(self.no_cluster(action));
        };
        self.tells_attempts.set(matched.vhost.include_attempt_count_in_response);
        *self.record.cluster.borrow_mut() = Some(cluster.clone());
        self.count_by(table, matched);
        let upgrade = self.upgrade(action)?;
        total.inc();
        if cluster.sheds_all() {
            self.count_upstream(&cluster, 503);
            return Err(replies::shed_all());
        }
        if cluster.sheds(&mut self.conn.worker.rng.borrow_mut()) {
            self.count_upstream(&cluster, 503);
            return Err(replies::shed());
        }
        let policy = action.retry.as_deref().or(matched.vhost.retry.as_deref());
        let timeouts =
            Timeouts::new(action, policy, &self.head.headers, cluster.config().max_stream_duration);
        let retrying =
            Retrying::new(policy, action.priority, &self.head.view(), &self.record.counted.borrow());
        Ok(Passage {
            action,
            matched,
            weighted,
            mutations: Mutations::new(table, matched, weighted),
            via: self.via(&cluster, action, weighted),
            cluster,
            aggregate: retrying.as_ref().and_then(|_| self.aggregate(action, weighted)),
            left_out: SmallVec::new(),
            timeouts,
            deadlines: Deadlines::new(
                action,
                timeouts.whole,
                &self.conn.manager.spec.config,
                &self.head.headers,
                self.record.started,
            ),
            retrying,
            upgrade,
            tunnel_open: Cell::new(false),
            kept: self.received(upgrade),
            sent: Cell::new(false),
            response_started: Cell::new(false),
            answering: Cell::new(false),
            activity: Activity::new(),
            hash: OnceCell::new(),
            is_retry: Cell::new(false),
            revived: Cell::new(false),
            revival: Cell::default(),
            mirrors: RefCell::default(),
        })
    }

    /// Where connections of a request to `cluster` are made from.
    fn via(&self, cluster: &Cluster, action: &RouteAction, weighted: Option<&WeightedCluster>) -> Via {
        let config = cluster.config();
        let names = config.request_names.as_deref();
        let downstream = &self.conn.downstream;
        Via {
            pod: downstream.pod.clone(),
            source: downstream.preserved_source,
            priority: action.priority,
            names: names.and_then(|wanted| server_names(self, wanted, action, weighted)),
            ends: ends_for(&config, downstream),
        }
    }

    /// A host of the request's cluster; `None` when there is none to choose.
    fn choose(&self, passage: &mut Passage<'_>) -> Option<Rc<Host>> {
        let mut host = self.pick(passage, 0);
        if let Some(again) = passage.retrying.as_ref().map(Retrying::host_attempts) {
            for attempt in 1..=if passage.is_retry.get() { again } else { 0 } {
                let avoids = |host| passage.retrying.as_ref().is_some_and(|retrying| retrying.avoids(host));
                if !host.as_ref().is_some_and(avoids) {
                    break;
                }
                host = self.pick(passage, attempt);
            }
        }
        if let (Some(retrying), Some(host)) = (&passage.retrying, &host) {
            retrying.tries(host, passage.priority_of(host), passage.revived.get());
        }
        match &host {
            Some(host) => *self.record.host.borrow_mut() = Some(host.clone()),
            None => passage.cluster.stats.upstream_cx_none_healthy.inc(),
        }
        host
    }

    /// A host, after so many that would not do.
    fn pick(&self, passage: &mut Passage<'_>, attempt: u32) -> Option<Rc<Host>> {
        self.change_child(passage);
        let passage = &*passage;
        let cluster = &passage.cluster;
        let hash =
            *passage.hash.get_or_init(|| self.affinity(passage.action, cluster, || self.foreseen(passage)));
        let subset = passage.weighted.map_or(&passage.action.subset, |weighted| &weighted.subset).as_ref();
        let destination = self.destination(cluster);
        let choice = Choice { hash, subset, without: &passage.left_out, attempt, destination };
        let rng = &mut self.conn.worker.rng.borrow_mut();
        match &passage.retrying {
            Some(retrying) if passage.aggregate.is_none() => retrying.pick(cluster, rng, choice),
            _ => cluster.pick(rng, choice),
        }
    }

    /// Before each retry an aggregate cluster decides anew which of its children, and which priority of that, is next.
    fn change_child(&self, passage: &mut Passage<'_>) {
        let (Some(aggregate), Some(retrying)) = (&passage.aggregate, &passage.retrying) else { return };
        if !passage.is_retry.get() || passage.revived.get() {
            return;
        }
        let Some(children) = aggregate.children() else { return };
        let worker = &self.conn.worker;
        let drawn = worker.rng.borrow_mut().u8(..100);
        let (name, left_out) = match retrying.child(&children.priorities, drawn) {
            Some((child, priority)) => {
                let name = children.shares.get(child).map(|(name, _)| name.clone());
                (name, children.priorities.others(child, priority))
            }
            None => (aggregate.child(&mut worker.rng.borrow_mut()), SmallVec::new()),
        };
        passage.left_out = left_out;
        let Some(cluster) = name.and_then(|name| worker.cluster(&name)) else { return };
        if Rc::ptr_eq(&cluster, &passage.cluster) {
            return;
        }
        passage.via = self.via(&cluster, passage.action, passage.weighted);
        passage.hash = OnceCell::new();
        *self.record.cluster.borrow_mut() = Some(cluster.clone());
        passage.cluster = cluster;
    }
}
