//! Taking over commands and snapshots from control.

use std::{rc::Rc, sync::Arc};

use culvert_model::Address;
use culvert_proto::route::Scopes;
use culvert_ring::mailbox::Receiver;

use crate::{
    listener::ListenerRuntime,
    snapshot::{RouteSpec, Snapshot},
    upstream::{Cluster, Host, discard_outdated, discard_where},
    worker::{Command, DrainScope, LocalScopes, LocalTable, Worker},
};

/// Obeys control until it says stop.
pub(super) async fn obey(worker: Rc<Worker>, mut commands: Receiver<Command>) {
    while let Some(command) = commands.recv().await {
        match command {
            Command::AddListener(bound) => worker.add_listener(bound),
            Command::Drain(scope) => worker.drain(scope),
            Command::Publish(snapshot) => worker.publish(snapshot),
            Command::Rename { number, listener } => {
                worker.rename(&listener, |accepting| accepting.pod.is_none() && accepting.number == number);
                worker.rename_endpoints(&listener, number);
            }
            Command::Retarget { pod, direction, listener } => {
                worker.rename(&listener, |accepting| accepting.pod == Some((pod, direction)));
            }
            Command::RemoveSocket { number, refuse } => {
                worker.close_endpoints(number);
                worker.stop_accepting(refuse, |accepting| {
                    accepting.pod.is_none() && accepting.number == number
                });
            }
            Command::RemovePod(pod) => {
                worker.stop_accepting(false, |accepting| accepting.pod.is_some_and(|(id, _)| id == pod));
                worker.pods.borrow_mut().remove(&pod);
                worker.splice.remove_pod(pod);
                discard_where(&worker, |key, _| key.pod == pod);
            }
            Command::Stop => return,
        }
    }
}

/// What has connections that are not used any more.
#[derive(Default)]
struct Left {
    hosts: Vec<Rc<Host>>,
    /// Clusters that are gone, with all their hosts.
    whole_clusters: bool,
}

impl Worker {
    fn drain(&self, scope: DrainScope) {
        // A drain never narrows: once everything drains, a later inbound-only drain changes nothing.
        if self.draining.get() != Some(DrainScope::All) {
            self.draining.set(Some(scope));
        }
    }

    fn publish(&self, snapshot: Arc<Snapshot>) {
        let before = self.snapshot.borrow().clone();
        let mut left = Left::default();
        if !Arc::ptr_eq(&before.clusters, &snapshot.clusters) {
            left = self.apply_clusters(&before, &snapshot);
        }
        let tables_stay = Arc::ptr_eq(&before.routes, &snapshot.routes)
            && Arc::ptr_eq(&before.scopes, &snapshot.scopes)
            && Arc::ptr_eq(&before.listeners, &snapshot.listeners);
        if !Arc::ptr_eq(&before.routes, &snapshot.routes) {
            self.apply_tables(&snapshot);
        }
        if !Arc::ptr_eq(&before.scopes, &snapshot.scopes) {
            self.apply_scopes(&snapshot);
        }
        if !Arc::ptr_eq(&before.listeners, &snapshot.listeners) {
            self.apply_listeners(&snapshot);
        }
        let arrived = snapshot.arrived;
        *self.snapshot.borrow_mut() = snapshot;
        if !tables_stay {
            self.request_counters.prune();
        }
        left.hosts.iter().for_each(|host| discard_outdated(self, host));
        if left.whole_clusters {
            discard_where(self, |_, host| host.is_removed());
        }
        if let Some(arrived) = arrived {
            let elapsed = u64::try_from(arrived.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.config_stats.apply_time.record(elapsed);
        }
    }

    /// Brings the clusters that this worker uses up to date: those that changed, or all after a generation was missed.
    fn apply_clusters(&self, before: &Snapshot, snapshot: &Snapshot) -> Left {
        let mut clusters = self.clusters.borrow_mut();
        let mut left = Left::default();
        let mut apply = |name: &Arc<str>, cluster: &Rc<Cluster>| match snapshot.clusters.get(name) {
            Some(spec) => {
                cluster.update(spec, |host| left.hosts.push(host.clone()));
                true
            }
            None => {
                cluster.retire();
                left.whole_clusters = true;
                false
            }
        };
        if before.generation + 1 == snapshot.generation {
            for name in &snapshot.changed_clusters {
                let kept = clusters.get(name).is_none_or(|cluster| apply(name, cluster));
                if !kept {
                    clusters.remove(name);
                }
            }
        } else {
            clusters.retain(|name, cluster| apply(name, cluster));
        }
        left
    }

    fn apply_tables(&self, snapshot: &Snapshot) {
        let mut tables = self.tables.borrow_mut();
        tables.retain(|name, _| snapshot.routes.contains_key(name));
        for (name, table) in snapshot.routes.iter() {
            if tables.get(name).is_some_and(|known| known.is_of(table)) {
                continue;
            }
            tables.insert(name.clone(), Rc::new(LocalTable::new(table.clone(), self)));
        }
    }

    fn apply_scopes(&self, snapshot: &Snapshot) {
        let local = |(name, scopes): (&Arc<str>, &Arc<Scopes<RouteSpec>>)| {
            (name.clone(), Rc::new(LocalScopes::new(scopes.clone(), self)))
        };
        let scopes = snapshot.scopes.iter().map(local).collect();
        *self.scopes.borrow_mut() = scopes;
    }

    /// A listener that differs in its chains alone keeps those that stayed, with their connections.
    fn apply_listeners(&self, snapshot: &Snapshot) {
        let mut listeners = self.listeners.borrow_mut();
        listeners.retain(|name, runtime| {
            let kept = snapshot.listeners.contains_key(name);
            if !kept {
                runtime.drain_all(&self.process.drain);
                self.see_off(name, runtime);
            }
            kept
        });
        for (name, spec) in snapshot.listeners.iter() {
            let known = listeners.get(name);
            if known.is_some_and(|known| Arc::ptr_eq(&known.spec, spec)) {
                continue;
            }
            let runtime = Rc::new(ListenerRuntime::new(spec.clone(), known, self));
            if let Some(old) = listeners.insert(name.clone(), runtime.clone()) {
                old.drain_but(&runtime, &self.process.drain);
            }
        }
        let at = |runtime: &Rc<ListenerRuntime>| {
            let runtime = runtime.clone();
            let addresses = runtime.spec.config.addresses().filter_map(|address| match address {
                Address::Ip(ip) => Some(*ip),
                Address::Pipe { .. } => None,
            });
            addresses.map(|address| (address, runtime.clone())).collect::<Vec<_>>()
        };
        *self.by_address.borrow_mut() = listeners.values().flat_map(at).collect();
    }
}
