//! Listeners of the configuration in force: binding, and what is counted of them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use culvert_model::{Config, Listener};

use super::{BindError, Control};

impl Control {
    /// Binds what the configuration in force wants bound. `changed`: names of the listeners that are not what they were;
    /// without it all of them.
    pub(super) fn bind(&mut self, changed: Option<&[String]>) -> Vec<BindError> {
        let config = self.shared.config.borrow().clone();
        let mut failed = Vec::new();
        // Listeners that could not be bound are tried again.
        if changed.is_none_or(|names| !names.is_empty()) || self.unbound {
            failed = self.sockets.apply(&config, &self.shared.workers);
            self.unbound = !failed.is_empty();
            let bound = config.listeners.len() - failed.len();
            // Counted by worker, as in Envoy.
            let names: HashSet<&str> =
                config.listeners.iter().map(|listener| listener.name.as_str()).collect();
            let is_there = |name: &&String| names.contains(name.as_str());
            let made = changed
                .map_or(config.listeners.len(), |names| names.iter().filter(is_there).count())
                .saturating_sub(failed.len());
            self.listener_stats.listener_create_success.add((made * self.shared.workers.len()) as u64);
            self.listener_stats.total_listeners_active.set(bound as u64);
            if let Some(manager) = &mut self.manager {
                manager.set_listeners(config.listeners.iter().map(|l| (l.name.as_str().into(), l.direction)));
            }
            // What a pod's choice means may be another listener now.
            if self.shared.live.get() {
                self.follow_pods();
            }
        }
        failed
    }

    /// Tries again to bind what could not be bound: whoever has the address may have given it up.
    pub(super) fn bind_again(&mut self) {
        if self.unbound {
            let config = self.shared.config.borrow().clone();
            let failed = self.sockets.apply(&config, &self.shared.workers);
            self.unbound = !failed.is_empty();
            let bound = config.listeners.len() - failed.len();
            self.listener_stats.total_listeners_active.set(bound as u64);
        }
    }

    /// Counts what an update adds, changes and removes, and what drains for it.
    pub(super) fn count_listeners(&self, next: &Config) {
        let stats = &self.listener_stats;
        let current = self.shared.config.borrow();
        let (mut listeners, mut chains) = (0, 0);
        let mut before: HashMap<&str, &Arc<Listener>> =
            current.listeners.iter().map(|listener| (listener.name.as_str(), listener)).collect();
        for listener in next.listeners.iter() {
            match before.remove(listener.name.as_str()) {
                Some(known) if Arc::ptr_eq(known, listener) => {}
                Some(known) if known.fingerprint == listener.fingerprint => {
                    stats.listener_modified.inc();
                    stats.listener_in_place_updated.inc();
                    let kept: HashSet<u64> = listener.chains().map(|chain| chain.fingerprint).collect();
                    chains += known.chains().filter(|chain| !kept.contains(&chain.fingerprint)).count();
                }
                Some(_) => {
                    stats.listener_modified.inc();
                    listeners += 1;
                }
                None => stats.listener_added.inc(),
            }
        }
        let removed = before.len();
        stats.listener_removed.add(removed as u64);
        self.count_draining((listeners + removed) as u64, chains as u64);
    }

    /// Shows so many listeners and filter chains as draining for the drain time.
    fn count_draining(&self, listeners: u64, chains: u64) {
        if listeners + chains == 0 {
            return;
        }
        let (stats, wait) = (self.listener_stats.clone(), self.options.drain.time);
        stats.total_listeners_draining.add(listeners);
        stats.total_filter_chains_draining.add(chains);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(wait).await;
            stats.total_listeners_draining.sub(listeners);
            stats.total_filter_chains_draining.sub(chains);
        });
    }

    pub(super) fn report(&self, failed: &[BindError]) {
        for error in failed {
            self.listener_stats.listener_create_failure.inc();
            log::error!(target: "config", "{error}");
        }
    }
}
