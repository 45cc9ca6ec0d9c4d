//! What a worker has to do with splicing: which of its connections are candidates.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    rc::Rc,
    sync::Arc,
};

use culvert_bpf::{Diag, LegSpec, SlotPool, Splice};
use culvert_ring::Stream;

use super::watch::LegWatch;
use crate::{
    capture::PodHandle,
    observe::stats::{Registry, SpliceStats},
    worker::Local,
};

/// A worker's part. Shared by its connections.
pub struct WorkerSplice {
    pub(super) stats: Arc<SpliceStats>,
    pool: RefCell<Option<(Splice, SlotPool)>>,
    /// By pod; made when first needed. `None` where the kernel does not answer.
    diags: RefCell<HashMap<u32, Option<Rc<Diag>>>>,
    /// The pods of this process, by number.
    pods: RefCell<HashMap<u32, Arc<PodHandle>>>,
}

/// The ends of a connection of culvert's inside a pod.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The socket's own address, as the kernel has it.
    pub local: SocketAddr,
    /// Its peer's.
    pub peer: SocketAddr,
    /// Whether culvert has made the connection, or accepted it.
    pub active: bool,
}

impl WorkerSplice {
    /// With counters of its own.
    pub fn new(registry: &Registry) -> Rc<Self> {
        let stats = Arc::new(SpliceStats::default());
        registry.register("culvert.splice", stats.clone());
        Rc::new(Self { stats, pool: RefCell::default(), diags: RefCell::default(), pods: RefCell::default() })
    }

    /// A pod's listener was added.
    pub fn add_pod(&self, pod: &Arc<PodHandle>) {
        self.pods.borrow_mut().insert(pod.id, pod.clone());
    }

    /// A pod's listeners are gone.
    pub fn remove_pod(&self, id: u32) {
        self.pods.borrow_mut().remove(&id);
        self.diags.borrow_mut().remove(&id);
    }

    /// Follows a connection, to splice it once it is used a second time. Nothing follows where the pod is not spliced, or
    /// where the peer is not on this node.
    pub fn follow(self: &Rc<Self>, stream: &Stream, pod: &Rc<Local<PodHandle>>, ends: Ends) {
        if let Some(spec) = self.spec(pod, ends) {
            stream.watch(Box::new(LegWatch::new(self.clone(), pod.clone(), spec)));
        }
    }

    /// [`WorkerSplice::follow`] of a connection that culvert has made.
    pub fn follow_upstream(self: &Rc<Self>, stream: &Stream, pod: &Rc<Local<PodHandle>>) {
        if pod.splice.is_none() {
            return;
        }
        let socket = |address: std::io::Result<socket2::SockAddr>| address.ok()?.as_socket();
        if let (Some(local), Some(peer)) = (socket(stream.local_addr()), socket(stream.peer_addr())) {
            self.follow(stream, pod, Ends { local, peer, active: true });
        }
    }

    fn spec(&self, pod: &PodHandle, ends: Ends) -> Option<LegSpec> {
        pod.splice.as_ref()?;
        let peer_netns = self.peer_netns(pod, ends.peer.ip().to_canonical(), ends.active)?;
        let Ends { local, peer, active } = ends;
        Some(LegSpec { netns: pod.netns_cookie, local, peer, peer_netns, active })
    }

    /// The namespace that a peer's address is in: the pod's own, or that of another pod. Which it was is proved by the
    /// programs before a byte is redirected.
    fn peer_netns(&self, pod: &PodHandle, peer: IpAddr, active: bool) -> Option<u64> {
        if peer.is_loopback() || active && pod.is_local(peer) {
            return Some(pod.netns_cookie);
        }
        let pods = self.pods.borrow();
        let mut others =
            pods.values().filter(|other| other.splice.is_some() && other.addresses.contains(&peer));
        let found = others.next().map(|other| other.netns_cookie);
        if others.any(|other| Some(other.netns_cookie) != found) {
            // Networks of their own, with the same addresses.
            return None;
        }
        // An application that is bound to its pod's address is captured with it.
        found.or_else(|| pod.is_local(peer).then_some(pod.netns_cookie))
    }

    /// Places for legs of these programs.
    pub(super) fn pool(&self, programs: &Splice) -> SlotPool {
        let mut known = self.pool.borrow_mut();
        match &*known {
            Some((splice, pool)) if splice.is_same(programs) => pool.clone(),
            _ => {
                let pool = programs.slots();
                *known = Some((programs.clone(), pool.clone()));
                pool
            }
        }
    }

    /// Who answers what applications of a pod have not read.
    pub(super) fn diag(&self, pod: &PodHandle) -> Option<Rc<Diag>> {
        let mut diags = self.diags.borrow_mut();
        let diag = diags.entry(pod.id).or_insert_with(|| match Diag::open(pod.netns.as_fd()) {
            Ok(diag) => Some(Rc::new(diag)),
            Err(error) => {
                log::warn!(target: "capture", "pod {}: {error}; what goes to its applications is not spliced", pod.name);
                None
            }
        });
        diag.clone()
    }
}
