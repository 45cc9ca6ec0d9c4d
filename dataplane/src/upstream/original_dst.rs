//! Clusters of type ORIGINAL_DST: hosts are made when a connection asks for them, and forgotten when nothing does.

use std::{
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use culvert_model::{Address, Endpoint, Health, OriginalDst, ProxyVersion};
use culvert_ring::time;

use crate::{
    snapshot::{HostSpec, HostState},
    tls::{ClientContext, Slot},
    upstream::Host,
};

/// The hosts of one cluster on one worker.
#[derive(Default)]
pub(super) struct Passing {
    hosts: HashMap<SocketAddr, (Rc<Host>, Instant)>,
}

impl Passing {
    /// The host at `destination`, with the port that the cluster overrides.
    pub(super) fn host(
        &mut self,
        settings: &OriginalDst,
        destination: SocketAddr,
        (tls, proxy): (Option<&Arc<Slot<ClientContext>>>, Option<ProxyVersion>),
        worker: usize,
    ) -> Rc<Host> {
        let port = settings.port.unwrap_or_else(|| destination.port());
        let address = SocketAddr::new(destination.ip(), port);
        let entry = self.hosts.entry(address).or_insert_with(|| {
            let host = Host::new(plain(address, (tls.cloned(), proxy), own_state(worker)), worker);
            (Rc::new(host), time::now())
        });
        let (host, used) = entry;
        *used = time::now();
        host.clone()
    }

    /// Connects from now on as this says. Calls `left` with the hosts whose connections are not used any more.
    pub(super) fn follow(
        &self,
        (tls, proxy): (Option<&Arc<Slot<ClientContext>>>, Option<ProxyVersion>),
        mut left: impl FnMut(&Rc<Host>),
    ) {
        for (address, (host, _)) in &self.hosts {
            let before = host.spec();
            if Slot::is_same(before.tls.as_ref(), tls) && before.proxy == proxy {
                continue;
            }
            if host.update(&plain(*address, (tls.cloned(), proxy), before.state.clone())) {
                left(host);
            }
        }
    }

    /// Forgets hosts without connections that nothing asked for during `interval`.
    pub(super) fn forget(&mut self, interval: Duration) {
        let now = time::now();
        self.hosts.retain(|_, (host, used)| {
            let kept = host.is_connected() || now.saturating_duration_since(*used) < interval;
            if !kept {
                host.removed.set(true);
            }
            kept
        });
    }

    /// Marks all hosts removed.
    pub(super) fn retire(&self) {
        for (host, _) in self.hosts.values() {
            host.removed.set(true);
        }
    }
}

/// Nobody but this worker knows the host: the counters of the others stay 0.
fn own_state(worker: usize) -> Arc<HostState> {
    Arc::new(HostState::new(worker + 1))
}

/// A host of which nothing but its address is known.
pub(super) fn plain(
    address: SocketAddr,
    (tls, proxy): (Option<Arc<Slot<ClientContext>>>, Option<ProxyVersion>),
    state: Arc<HostState>,
) -> Arc<HostSpec> {
    let endpoint = Endpoint {
        address: Address::Ip(address),
        additional: Box::default(),
        hostname: Arc::default(),
        metadata: None,
        locality: Arc::default(),
        weight: 1,
        priority: 0,
        health: Health::Healthy,
        check: None,
    };
    Arc::new(HostSpec { endpoint: Arc::new(endpoint), limits: None, tls, proxy, state, outlier: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_outlive_a_change_of_the_transport_socket() {
        let slot = Arc::<Slot<ClientContext>>::default();
        let (mut passing, settings) = (Passing::default(), OriginalDst::default());
        let address = "10.0.0.1:80".parse().unwrap();
        let host = passing.host(&settings, address, (None, None), 1);
        let request = host.begin();
        let mut left = Vec::new();
        passing.follow((Some(&slot), None), |host| left.push(host.clone()));
        let same = passing.host(&settings, address, (Some(&slot), None), 1);
        assert!(Rc::ptr_eq(&host, &same) && same.spec().tls.is_some());
        assert!(left.len() == 1 && Rc::ptr_eq(&host, &left[0]), "its connections are in the clear");
        same.stats(|stats| assert_eq!((stats.rq_active.value(), stats.rq_total.value()), (1, 1)));
        drop(request);
        same.stats(|stats| assert_eq!(stats.rq_active.value(), 0));
    }
}
