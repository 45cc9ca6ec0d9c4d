//! The sockets of ordinary listeners: bound here, accepted on by workers.

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use culvert_model::{Address, Config, Listener};
use culvert_ring::net;

use crate::worker::{BoundListener, Command, Origin, Workers};

/// A listener could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("listener {listener:?}: cannot bind {address}: {error}")]
pub struct BindError {
    /// Its name.
    pub listener: String,
    /// The address.
    pub address: Address,
    /// What the kernel said.
    pub error: std::io::Error,
}

/// What is bound for which listener.
#[derive(Default)]
pub(super) struct Sockets {
    bound: HashMap<Arc<str>, Vec<Address>>,
    /// Closed by `/drain_listeners`: later configurations do not open them again.
    closed: HashSet<Arc<str>>,
}

impl Sockets {
    /// Binds what is new, leaves what stayed, and stops accepting on what is gone. Every listener is handled, also after
    /// one failed; one that fails keeps the sockets it had.
    pub(super) fn apply(&mut self, config: &Config, workers: &Workers) -> Vec<BindError> {
        let mut errors = Vec::new();
        let wanted = |listener: &Arc<Listener>| {
            let mut addresses = vec![listener.address.clone()];
            addresses.extend(listener.additional_addresses.iter().cloned());
            addresses
        };
        let is_open = |listener: &&Arc<Listener>| !self.closed.contains(listener.name.as_str());
        for listener in config.listeners.iter().filter(|listener| listener.bind_to_port).filter(is_open) {
            let name: Arc<str> = listener.name.as_str().into();
            let addresses = wanted(listener);
            if self.bound.get(&name) == Some(&addresses) {
                continue;
            }
            match bind(listener, &addresses, workers.len()) {
                Ok(sockets) => {
                    if self.bound.insert(name.clone(), addresses).is_some() {
                        workers.tell_all(|| Command::RemoveListener(name.clone()));
                    }
                    for (worker, socket) in sockets {
                        let bound = BoundListener { listener: name.clone(), socket, origin: Origin::Direct };
                        workers.tell(worker, Command::AddListener(bound));
                    }
                }
                Err(error) => errors.push(error),
            }
        }
        self.bound.retain(|name, _| {
            let kept =
                config.listeners.iter().any(|listener| listener.bind_to_port && *listener.name == **name);
            if !kept {
                workers.tell_all(|| Command::RemoveListener(name.clone()));
            }
            kept
        });
        errors
    }

    /// Stops accepting on the listeners that `which` selects.
    pub(super) fn close(&mut self, workers: &Workers, which: impl Fn(&str) -> bool) {
        self.bound.retain(|name, _| {
            let closed = which(name);
            if closed {
                self.closed.insert(name.clone());
                workers.tell_all(|| Command::RemoveListener(name.clone()));
            }
            !closed
        });
    }
}

/// One socket per worker and address.
fn bind(
    listener: &Listener,
    addresses: &[Address],
    workers: usize,
) -> Result<Vec<(usize, OwnedFd)>, BindError> {
    let mut sockets = Vec::new();
    for address in addresses {
        let failed = |error| BindError { listener: listener.name.clone(), address: address.clone(), error };
        match address {
            Address::Ip(ip) if listener.reuse_port => {
                for worker in 0..workers {
                    sockets.push((worker, tcp(listener, ip, true).map_err(failed)?));
                }
            }
            Address::Ip(ip) => {
                share(tcp(listener, ip, false).map_err(failed)?, workers, &mut sockets).map_err(failed)?;
            }
            Address::Pipe { path, mode } => {
                let socket = net::unix_listener(path, *mode).map_err(failed)?;
                share(socket, workers, &mut sockets).map_err(failed)?;
            }
        }
    }
    Ok(sockets)
}

fn tcp(listener: &Listener, address: &std::net::SocketAddr, reuse_port: bool) -> std::io::Result<OwnedFd> {
    let options = net::ListenOptions {
        reuse_port,
        backlog: listener.backlog.unwrap_or(DEFAULT_BACKLOG),
        ..net::ListenOptions::default()
    };
    net::listener(address, &options)
}

/// Capped by the kernel at `net.core.somaxconn`.
const DEFAULT_BACKLOG: u32 = 4_096;

/// One socket that every worker accepts on.
fn share(socket: OwnedFd, workers: usize, sockets: &mut Vec<(usize, OwnedFd)>) -> std::io::Result<()> {
    for worker in 1..workers {
        sockets.push((worker, socket.as_fd().try_clone_to_owned()?));
    }
    sockets.push((0, socket));
    Ok(())
}
