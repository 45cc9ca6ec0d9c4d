//! Taking over commands and snapshots from control.

use std::{rc::Rc, sync::Arc};

use culvert_ring::mailbox::Receiver;

use crate::{
    listener::ListenerRuntime,
    snapshot::Snapshot,
    upstream::discard_where,
    worker::{Command, DrainScope, LocalTable, Worker},
};

/// Obeys control until it says stop.
pub(super) async fn obey(worker: Rc<Worker>, mut commands: Receiver<Command>) {
    while let Some(command) = commands.recv().await {
        match command {
            Command::AddListener(bound) => worker.add_listener(bound),
            Command::Drain(scope) => worker.drain(scope),
            Command::Publish(snapshot) => worker.publish(snapshot),
            Command::Retarget { pod, direction, listener } => worker.retarget(pod, direction, &listener),
            Command::RemoveListener(name) => {
                worker.stop_accepting(|accepting| {
                    accepting.pod.is_none() && *accepting.listener.borrow() == name
                });
            }
            Command::RemovePod(pod) => {
                worker.stop_accepting(|accepting| accepting.pod.is_some_and(|(id, _)| id == pod));
                discard_where(&worker, |key, _| key.pod == pod);
            }
            Command::Stop => return,
        }
    }
}

impl Worker {
    fn drain(&self, scope: DrainScope) {
        // A drain never narrows: once everything drains, a later inbound-only drain changes nothing.
        if self.draining.get() != Some(DrainScope::All) {
            self.draining.set(Some(scope));
        }
    }

    fn publish(&self, snapshot: Arc<Snapshot>) {
        self.apply_clusters(&snapshot);
        self.apply_tables(&snapshot);
        self.apply_listeners(&snapshot);
        *self.snapshot.borrow_mut() = snapshot;
        discard_where(self, |_, host| host.is_removed());
    }

    fn apply_clusters(&self, snapshot: &Snapshot) {
        self.clusters.borrow_mut().retain(|name, cluster| match snapshot.clusters.get(name) {
            Some(spec) => {
                cluster.update(spec);
                true
            }
            None => {
                cluster.retire();
                false
            }
        });
    }

    fn apply_tables(&self, snapshot: &Snapshot) {
        let mut tables = self.tables.borrow_mut();
        tables.retain(|name, _| snapshot.routes.contains_key(name));
        for (name, table) in &snapshot.routes {
            if tables.get(name).is_some_and(|known| Arc::ptr_eq(&known.0, table)) {
                continue;
            }
            tables.insert(name.clone(), Rc::new(LocalTable(table.clone())));
        }
    }

    fn apply_listeners(&self, snapshot: &Snapshot) {
        let mut listeners = self.listeners.borrow_mut();
        listeners.retain(|name, runtime| {
            let kept = snapshot.listeners.contains_key(name);
            if !kept {
                runtime.drain();
            }
            kept
        });
        for (name, spec) in &snapshot.listeners {
            let known = listeners.get(name);
            if known.is_some_and(|known| Arc::ptr_eq(&known.spec, spec)) {
                continue;
            }
            let runtime = Rc::new(ListenerRuntime::new(spec.clone(), known, self));
            if let Some(old) = listeners.insert(name.clone(), runtime) {
                old.drain();
            }
        }
    }
}
