//! The direct path: connections between pods of this node that need no proxy go without one.
//!
//! [`qualify`] says whether a connection needs it, [`plan`] asks that of everything a pod may dial and makes rules of the
//! answers, which the eBPF programs follow. This file keeps the rules those of the configuration in force, closes
//! connections that it allows no more, and counts them where Envoy's users look ([`counts`]).
//!
//! Connections live without this process. What is pinned tells the next one which there are, where they were going and
//! how far they were counted; it closes those that its own first configuration does not allow.

mod counts;
mod needs;
mod plan;
mod qualify;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    os::fd::AsFd as _,
    sync::Arc,
};

use culvert_bpf::{DiagSocket, DirectFlow, DirectTable, DirectTally, OpenSocket};
use culvert_model::CircuitBreakers;

use self::{
    counts::Counts,
    plan::{Counted, Plan, Planner},
    qualify::Policy,
};
use crate::{
    capture::{CaptureManager, DirectPod},
    observe::stats::Registry,
    snapshot::Snapshot,
};

/// Every so many rounds of [`Direct::look`] bytes are counted and the idle are closed; the others only close what a rule
/// has overtaken.
const COUNT_EVERY: u32 = 4;

/// Direct connections of the node. Lives on the control thread.
pub(super) struct Direct {
    counts: Counts,
    plan: Plan,
    pods: Vec<DirectPod>,
    /// How far tallies have been counted, bytes of open connections included.
    counted: HashMap<u64, DirectTally>,
    /// Where tallies are counted; of rules of the past too, while connections are left of them.
    places: HashMap<u64, Counted>,
    /// By network namespace cookie of the pod.
    sockets: HashMap<u64, DiagSocket>,
    /// Connections whose socket was not there in the last round.
    missing: HashSet<u64>,
    /// Tallies that nothing referred to in the last round.
    former: HashSet<u64>,
    /// Clusters that have as many connections as they may by default.
    full: HashSet<Arc<str>>,
    /// Whether the number of connections of the process is limited.
    limited: bool,
    /// Whether there ever was anything to do.
    active: bool,
    /// Whether the kernel can close connections; asked once.
    able: Option<bool>,
    round: u32,
    /// What was said of it last.
    said: HashSet<String>,
}

impl Direct {
    pub(super) fn new(registry: Registry, limited: bool) -> Self {
        Self {
            counts: Counts::new(registry),
            plan: Plan::default(),
            pods: Vec::new(),
            counted: HashMap::new(),
            places: HashMap::new(),
            sockets: HashMap::new(),
            missing: HashSet::new(),
            former: HashSet::new(),
            full: HashSet::new(),
            limited,
            active: false,
            able: None,
            round: 0,
            said: HashSet::new(),
        }
    }

    /// Takes over a configuration, or another set of pods: what is allowed no more is closed before this returns.
    pub(super) fn follow(&mut self, snapshot: &Snapshot, manager: &mut CaptureManager) {
        let excluded = manager.excluded_inbound_ports();
        let pods = manager.direct_pods();
        let Some(table) = manager.direct_table() else { return };
        let wanted = pods.iter().any(|pod| pod.direct);
        // Also where nothing is to be done: a pod that was removed must not be held on to.
        self.pods = pods;
        self.sockets.retain(|cookie, _| self.pods.iter().any(|pod| pod.cookie == *cookie));
        // What an earlier process left has to be looked at once.
        if !wanted && self.active && self.plan.rules.is_empty() && self.places.is_empty() {
            return;
        }
        let able = wanted && self.is_able();
        let plan = if able {
            let policy = Policy::new(snapshot, self.limited);
            let (pods, full) = (&self.pods, &self.full);
            Planner { policy, pods, excluded_inbound: &excluded, full }.plan()
        } else {
            Plan::default()
        };
        self.active = true;
        if let Err(error) = table.apply(&plan.rules) {
            log::error!(target: "capture", "direct path: {error}; every connection goes through the proxy");
            self.plan = Plan::default();
        } else {
            self.say(&plan);
            self.plan = plan;
        }
        self.places.extend(self.plan.counted.iter().map(|(tally, counted)| (*tally, counted.clone())));
        let direct = self.plan.rules.iter().filter(|rule| !rule.endpoints.is_empty()).count();
        self.counts.own.rules.set(direct as u64);
        self.counts.own.rules_proxied.set((self.plan.rules.len() - direct) as u64);
        match table.flows() {
            Ok(flows) => self.withdraw(&flows),
            Err(error) => log::error!(target: "capture", "direct path: {error}"),
        }
    }

    /// Looks after the connections. To be called several times a second. Whether the plan has to be made anew.
    pub(super) fn look(&mut self, manager: &mut CaptureManager) -> bool {
        if !self.active || self.places.is_empty() && self.pods.iter().all(|pod| !pod.direct) {
            return false;
        }
        let Some(table) = manager.direct_table() else { return false };
        self.round = self.round.wrapping_add(1);
        let looked = if self.round.is_multiple_of(COUNT_EVERY) {
            self.count(table)
        } else {
            // One that was being made when its rule went is seen by now.
            table.flows().map(|flows| {
                self.withdraw(&flows);
                false
            })
        };
        looked.unwrap_or_else(|error| {
            log::warn!(target: "capture", "direct path: {error}");
            false
        })
    }

    fn count(&mut self, table: &mut DirectTable) -> Result<bool, culvert_bpf::Error> {
        // What ends between the two is counted the next time, and nothing twice.
        let tallies = table.tallies()?;
        let flows = table.flows()?;
        self.withdraw(&flows);
        let open = self.open_sockets(&flows);
        let mut moved: HashMap<u64, DirectTally> = tallies;
        let mut active: HashMap<u64, u64> = HashMap::new();
        for flow in &flows {
            match open.get(&(flow.netns, flow.cookie)) {
                Some(socket) => {
                    self.missing.remove(&flow.cookie);
                    let tally = moved.entry(flow.tally).or_default();
                    tally.sent += socket.sent;
                    tally.received += socket.received;
                    *active.entry(flow.tally).or_default() += u64::from(!socket.connecting);
                    self.close_idle(flow, socket);
                }
                // It ended meanwhile, or its end was missed.
                None => {
                    if self.sockets.contains_key(&flow.netns) && !self.missing.insert(flow.cookie) {
                        self.missing.remove(&flow.cookie);
                        table.forget(flow)?;
                    }
                }
            }
        }
        self.missing.retain(|cookie| flows.iter().any(|flow| flow.cookie == *cookie));
        for (tally, now) in &moved {
            let before = match self.counted.entry(*tally) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(table.read(*tally)?),
            };
            let since = difference(now, before);
            if since == DirectTally::default() {
                continue;
            }
            *before += since;
            if let Some(counted) = self.places.get(tally) {
                self.counts.add(counted, &since);
            }
            table.set_read(*tally, *before)?;
        }
        let open = |tally: &u64| active.get(tally).copied().unwrap_or_default();
        self.counts.set_open(self.places.iter().map(|(tally, counted)| (counted, open(tally))));
        self.forget_former(table, &moved, &flows)?;
        Ok(self.notice_full(&active))
    }

    /// Drops what is counted of rules of the past once nothing is left of them.
    fn forget_former(
        &mut self,
        table: &mut DirectTable,
        moved: &HashMap<u64, DirectTally>,
        flows: &[DirectFlow],
    ) -> Result<(), culvert_bpf::Error> {
        let used: HashSet<u64> = flows.iter().map(|flow| flow.tally).collect();
        let unused = moved.keys().filter(|it| !self.plan.counted.contains_key(it) && !used.contains(it));
        // What ended just now is counted in the next round.
        let (gone, former): (HashSet<u64>, HashSet<u64>) =
            unused.copied().partition(|it| self.former.contains(it));
        self.former = former;
        for tally in gone {
            table.remove_tally(tally)?;
            self.counted.remove(&tally);
            self.places.remove(&tally);
        }
        Ok(())
    }

    /// Circuit breakers that nobody has set stop at 1,024 connections: from there on the proxy decides. Whether that has
    /// changed for a cluster.
    fn notice_full(&mut self, active: &HashMap<u64, u64>) -> bool {
        let mut open: HashMap<&Arc<str>, u64> = HashMap::new();
        for (tally, active) in active {
            for (cluster, _) in self.places.get(tally).iter().flat_map(|counted| &counted.clusters) {
                *open.entry(cluster).or_default() += active;
            }
        }
        let max = u64::from(CircuitBreakers::default().max_connections);
        let full = open.into_iter().filter(|(_, open)| *open >= max).map(|(name, _)| name.clone()).collect();
        std::mem::replace(&mut self.full, full) != self.full
    }

    /// Closes what is allowed no more.
    fn withdraw(&mut self, flows: &[DirectFlow]) {
        for flow in flows {
            // A pod that was let go has its own traffic.
            let is_ours = self.pods.iter().any(|pod| pod.cookie == flow.netns);
            if is_ours && !self.plan.allows(flow) && self.close(flow) {
                self.counts.own.cx_withdrawn.inc();
                log::info!(
                    target: "capture",
                    "direct path: closed {} to {} ({}): it is not allowed any more",
                    flow.client, flow.endpoint, flow.meant
                );
            }
        }
    }

    fn close_idle(&mut self, flow: &DirectFlow, socket: &OpenSocket) {
        let Some(counted) = self.places.get(&flow.tally).cloned() else { return };
        let Some(timeout) = counted.idle_timeout else { return };
        if !socket.connecting && u128::from(socket.idle_ms) > timeout.as_millis() && self.close(flow) {
            self.counts.idle(&counted);
        }
    }

    fn close(&mut self, flow: &DirectFlow) -> bool {
        let Some(diag) = self.diag(flow.netns) else { return false };
        diag.destroy(flow.client, flow.endpoint, flow.cookie).unwrap_or_else(|error| {
            log::error!(target: "capture", "direct path: closing {} to {}: {error}", flow.client, flow.endpoint);
            false
        })
    }

    /// The open sockets of all pods that have direct connections, by pod and cookie.
    fn open_sockets(&mut self, flows: &[DirectFlow]) -> HashMap<(u64, u64), OpenSocket> {
        let pods: HashSet<u64> = flows.iter().map(|flow| flow.netns).collect();
        let mut open = HashMap::new();
        for netns in pods {
            let Some(diag) = self.diag(netns) else { continue };
            match diag.sockets() {
                Ok(sockets) => open.extend(sockets.into_iter().map(|it| ((netns, it.cookie), it))),
                Err(error) => {
                    log::warn!(target: "capture", "direct path: the sockets of a pod: {error}");
                    self.sockets.remove(&netns);
                }
            }
        }
        open
    }

    fn diag(&mut self, netns: u64) -> Option<&DiagSocket> {
        match self.sockets.entry(netns) {
            Entry::Occupied(known) => Some(known.into_mut()),
            Entry::Vacant(new) => {
                let pod = self.pods.iter().find(|pod| pod.cookie == netns)?;
                let opened = DiagSocket::open(pod.handle.netns.as_fd());
                let opened =
                    opened.inspect_err(|error| log::warn!(target: "capture", "direct path: {error}"));
                Some(new.insert(opened.ok()?))
            }
        }
    }

    /// Whether connections can be closed when they are allowed no more; without that none is made.
    fn is_able(&mut self) -> bool {
        if let Some(able) = self.able {
            return able;
        }
        let Some(first) = self.pods.iter().find(|pod| pod.direct).map(|pod| pod.cookie) else { return false };
        let Some(asked) = self.diag(first).map(DiagSocket::can_destroy) else { return false };
        let able = match asked {
            Ok(true) => true,
            Ok(false) => {
                log::warn!(
                    target: "capture",
                    "direct path: off: the kernel cannot close established connections \
                     (CONFIG_INET_DIAG_DESTROY)"
                );
                false
            }
            Err(error) => {
                log::warn!(target: "capture", "direct path: off: closing connections: {error}");
                false
            }
        };
        self.able = Some(able);
        able
    }

    /// Says what goes through the proxy and why, when that is new.
    fn say(&mut self, plan: &Plan) {
        let lines = plan.proxied.iter();
        let said: HashSet<String> = lines
            .map(|(pod, to, reason)| format!("pod {pod} to {to}: through the proxy: {reason}"))
            .collect();
        for line in said.difference(&self.said) {
            log::debug!(target: "capture", "direct path: {line}");
        }
        self.said = said;
    }
}

/// What was added. Bytes of a connection that ended just now may be missing for a moment.
fn difference(now: &DirectTally, before: &DirectTally) -> DirectTally {
    DirectTally {
        opened: now.opened.saturating_sub(before.opened),
        closed: now.closed.saturating_sub(before.closed),
        failed: now.failed.saturating_sub(before.failed),
        sent: now.sent.saturating_sub(before.sent),
        received: now.received.saturating_sub(before.received),
    }
}
