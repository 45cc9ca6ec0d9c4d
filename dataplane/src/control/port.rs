//! The workers as capture sees them.

use std::sync::Arc;

use crate::{
    capture::{Direction, InPodListener, WorkerPort},
    worker::{BoundListener, Command, Origin, Workers},
};

/// Hands in-pod listeners to the workers.
pub(super) struct Port(pub(super) Arc<Workers>);

impl WorkerPort for Port {
    fn workers(&self) -> usize {
        self.0.len()
    }

    fn add_listener(&self, worker: usize, listener: InPodListener) {
        let bound = BoundListener {
            listener: listener.listener_name,
            socket: listener.fd,
            number: 0,
            quic: false,
            origin: Origin::Pod(listener.pod, listener.direction),
        };
        self.0.tell(worker, Command::AddListener(bound));
    }

    fn retarget(&self, pod: u32, direction: Direction, listener_name: Arc<str>) {
        self.0.tell_all(|| Command::Retarget { pod, direction, listener: listener_name.clone() });
    }

    fn remove_listeners(&self, pod: u32) {
        self.0.tell_all(|| Command::RemovePod(pod));
    }
}
