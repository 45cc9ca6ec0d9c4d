//! What the control thread tells a worker.

use std::{os::fd::OwnedFd, sync::Arc};

use crate::{
    capture::{Direction, PodHandle},
    snapshot::Snapshot,
};

/// A message from control to one worker.
pub enum Command {
    /// Accept on a new socket.
    AddListener(BoundListener),
    /// From now on close connections after their current request; those of inbound listeners only if asked.
    Drain(DrainScope),
    /// The configuration from now on.
    Publish(Arc<Snapshot>),
    /// Connections accepted from now on on the sockets of this number enter this listener.
    Rename {
        /// See [`BoundListener::number`].
        number: u64,
        /// The listener's name.
        listener: Arc<str>,
    },
    /// Connections accepted from now on on a pod's sockets of this direction enter this listener.
    Retarget {
        /// Which pod.
        pod: u32,
        /// Which of its sockets.
        direction: Direction,
        /// The listener's name.
        listener: Arc<str>,
    },
    /// Stop accepting on the sockets of this number. `refuse` tells nobody new that they are there; else another socket
    /// has the address and takes its share.
    RemoveSocket {
        /// See [`BoundListener::number`].
        number: u64,
        /// Whether the address is given up.
        refuse: bool,
    },
    /// Stop accepting on the in-pod sockets of this pod and forget its pooled connections.
    RemovePod(u32),
    /// End the worker's loop.
    Stop,
}

/// Which connections a drain concerns.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DrainScope {
    /// All listeners.
    All,
    /// Listeners with `traffic_direction: INBOUND`.
    Inbound,
}

/// A socket to accept on, with what it means.
pub struct BoundListener {
    /// Name of the configured listener its connections enter.
    pub listener: Arc<str>,
    /// Bound, listening, non-blocking.
    pub socket: OwnedFd,
    /// By which control refers to it later; workers that share an address have the same. 0 for pods'.
    pub number: u64,
    /// Whether it is one of UDP, for connections of QUIC.
    pub quic: bool,
    /// How the original destination of a connection is found.
    pub origin: Origin,
}

/// Where connections of a socket come from.
#[derive(Clone)]
pub enum Origin {
    /// An ordinary listener: the local address is where the client connected to.
    Direct,
    /// An in-pod listener that captured connections arrive at.
    Pod(Arc<PodHandle>, Direction),
}
