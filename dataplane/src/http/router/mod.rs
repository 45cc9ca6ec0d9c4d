//! The router: choosing a cluster and a host, sending the request, relaying the response.
//!
//! [`Passage`] is what all attempts of a request share; `target` finds the cluster, `request` writes the head that is sent,
//! `attempt` is one connection with both directions over it (`body` there, `respond` back), `conclude` says what becomes of
//! the request when it is over, `replies` what the client is told if there was no answer.

mod attempt;
pub(super) mod body;
mod conclude;
mod replies;
mod request;
mod respond;
mod target;

use std::{cell::Cell, rc::Rc};

use culvert_model::{RouteAction, WeightedCluster};
use culvert_proto::{
    Version,
    route::{Match, Mutations, Table},
};

use crate::{
    http::{
        connection::Timers,
        deadlines::Deadlines,
        exchange::{After, Exchange},
        log::Flags,
        reply::Reply,
        server_name::server_names,
    },
    upstream::{Choice, Cluster, Credit, Host, Limit, Via},
};
use attempt::ActiveUpstream;
use body::Activity;

/// A request on its way to its cluster.
struct Passage<'a> {
    action: &'a RouteAction,
    matched: &'a Match<'a>,
    /// Which of several clusters it is, where the route has a choice.
    weighted: Option<&'a WeightedCluster>,
    mutations: Mutations<'a>,
    cluster: Rc<Cluster>,
    via: Via,
    deadlines: Deadlines,
    /// It asked to switch protocols and may.
    upgrade: bool,
    request_complete: Cell<bool>,
    response_started: Cell<bool>,
    activity: Activity,
}

impl Exchange<'_> {
    /// Forwards the request as `action` says.
    pub(super) async fn forward(
        &mut self,
        action: &RouteAction,
        table: &Table,
        matched: &Match<'_>,
        random: u64,
        timers: &mut Timers,
    ) -> After {
        let passage = match self.begin(action, table, matched, random) {
            Ok(passage) => passage,
            Err(reply) => return self.reply(reply),
        };
        let Some(host) = self.choose(&passage) else {
            let reply = Reply::new(503, "no healthy upstream");
            return self.reply(reply.flag(Flags::NO_HEALTHY_UPSTREAM).details("no_healthy_upstream"));
        };
        let max_requests = passage.cluster.config().circuit_breakers.max_requests;
        let Some(credit) = Credit::take(&passage.cluster.limits, Limit::Requests, max_requests) else {
            passage.cluster.stats.upstream_rq_pending_overflow.inc();
            return self.reply(replies::overflow());
        };
        let framing = self.prepare_head(&passage, &host);
        let active = ActiveUpstream::new(&passage.cluster, &host);
        self.record.attempts.set(1);
        passage.deadlines.start(framing.is_empty(), timers);
        let outcome = match self.acquire(&passage, &host, timers).await {
            // HTTP/2 has upgrades of another kind, which are not spoken.
            Ok(lent) if passage.upgrade && lent.conn.version() == Version::Http2 => {
                drop(lent);
                timers.wait.clear();
                timers.route.clear();
                return self.reply(Reply::new(403, "").details("upgrade_failed"));
            }
            Ok(mut lent) => {
                lent.host.reached(false);
                lent.begin_request();
                lent.conn.send_head(&self.head, framing);
                self.upstream_begun(&lent, framing.is_empty());
                let outcome = self.converse(&passage, &lent, timers).await;
                (outcome, Some(lent))
            }
            Err(outcome) => (outcome, None),
        };
        timers.wait.clear();
        timers.route.clear();
        let mut after = self.conclude(outcome, &passage, &host);
        if let After::Tunnel(tunnel) = &mut after {
            // It counts as a request for as long as it lasts.
            tunnel.keep((credit, active));
        }
        after
    }

    /// Finds out where the request goes; an answer if it goes nowhere.
    fn begin<'a>(
        &self,
        action: &'a RouteAction,
        table: &'a Table,
        matched: &'a Match<'a>,
        random: u64,
    ) -> Result<Passage<'a>, Reply> {
        let found = self.cluster_name(action, random);
        let found = found.and_then(|(name, weighted)| Some((self.conn.worker.cluster(&name)?, weighted)));
        let Some((cluster, weighted)) = found else { return Err(self.no_cluster(action)) };
        self.tells_attempts.set(matched.vhost.include_attempt_count_in_response);
        *self.record.cluster.borrow_mut() = Some(cluster.clone());
        let upgrade = self.upgrade(action)?;
        if cluster.sheds(&mut self.conn.worker.rng.borrow_mut()) {
            let reply = Reply::new(503, "drop overload");
            return Err(reply.flag(Flags::DROP_OVERLOAD).details("drop_overload"));
        }
        let config = cluster.config();
        let names = config.request_names.as_deref();
        let names = names.and_then(|wanted| server_names(self, wanted, action, weighted));
        let downstream = &self.conn.downstream;
        Ok(Passage {
            action,
            matched,
            weighted,
            mutations: Mutations::new(table, matched, weighted),
            cluster,
            via: Via { pod: downstream.pod.clone(), source: downstream.preserved_source, names },
            deadlines: Deadlines::new(
                action,
                &self.conn.manager.spec.config,
                &self.head.headers,
                self.record.started,
            ),
            upgrade,
            request_complete: Cell::new(self.framing.is_empty()),
            response_started: Cell::new(false),
            activity: Activity::new(),
        })
    }

    /// A host of the request's cluster; `None` when there is none to choose.
    fn choose(&self, passage: &Passage<'_>) -> Option<Rc<Host>> {
        let cluster = &passage.cluster;
        let choice =
            Choice { hash: self.affinity(passage.action, cluster), destination: self.destination(cluster) };
        let host = cluster.pick(&mut self.conn.worker.rng.borrow_mut(), choice);
        match &host {
            Some(host) => *self.record.host.borrow_mut() = Some(host.clone()),
            None => cluster.stats.upstream_cx_none_healthy.inc(),
        }
        host
    }
}
