//! The sockets of ordinary listeners: bound here, accepted on by workers.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use culvert_model::{Address, Config, ListenSocket, Listener, SocketState};
use culvert_ring::net;

use crate::{
    upstream::keepalive,
    worker::{BoundListener, Command, Origin, Workers},
};

/// A listener could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("listener {listener:?}: cannot bind {address}: {error}")]
pub struct BindError {
    /// Its name.
    pub listener: String,
    /// The address.
    pub address: Address,
    /// What the kernel said.
    pub error: io::Error,
}

/// What is bound for which listener.
#[derive(Default)]
pub(super) struct Sockets {
    bound: HashMap<Arc<str>, Vec<Bound>>,
    /// Closed by `/drain_listeners`: later configurations do not open them again.
    closed: HashSet<Arc<str>>,
    last: u64,
}

/// The sockets at one address, one for each worker or one that all share.
struct Bound {
    wanted: Wanted,
    /// See [`BoundListener::number`].
    number: u64,
}

/// An address and how it is to be bound.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Wanted {
    address: Address,
    socket: ListenSocket,
    freebind: bool,
    transparent: bool,
    backlog: Option<u32>,
    reuse_port: bool,
}

impl Sockets {
    /// Stops accepting on what is gone, binds what is new and leaves what stayed. Every listener is handled, also after
    /// one failed; one that fails keeps the sockets it had.
    pub(super) fn apply(&mut self, config: &Config, workers: &Workers) -> Vec<BindError> {
        self.bound.retain(|name, bound| {
            let kept =
                config.listeners.iter().any(|listener| listener.bind_to_port && *listener.name == **name);
            if !kept {
                bound.iter().for_each(|bound| remove(bound, true, workers));
            }
            kept
        });
        let mut errors = Vec::new();
        let is_open = |listener: &&Arc<Listener>| !self.closed.contains(listener.name.as_str());
        let listeners: Vec<_> =
            config.listeners.iter().filter(|listener| listener.bind_to_port).filter(is_open).collect();
        for listener in listeners {
            if let Err(error) = self.apply_one(listener, workers) {
                errors.push(error);
            }
        }
        errors
    }

    /// Addresses that stayed as they are keep their sockets.
    fn apply_one(&mut self, listener: &Listener, workers: &Workers) -> Result<(), BindError> {
        let name: Arc<str> = listener.name.as_str().into();
        let wanted = wanted(listener);
        let before = self.bound.get(&name).map_or(&[][..], Vec::as_slice);
        let is_bound = |wanted: &&Wanted| before.iter().any(|bound| bound.wanted == **wanted);
        let mut made = Vec::new();
        for wanted in wanted.iter().filter(|wanted| !is_bound(wanted)) {
            let failed =
                |error| BindError { listener: listener.name.clone(), address: wanted.address.clone(), error };
            let same = before.iter().find(|bound| bound.wanted.address == wanted.address);
            // Two sockets can have the address at once only if both allow it.
            if same.is_some_and(|same| !(same.wanted.reuse_port && wanted.reuse_port)) {
                return Err(failed(io::Error::other(
                    "options of a socket that has the address for itself cannot be changed; see enable_reuse_port",
                )));
            }
            made.push((wanted.clone(), bind(wanted, workers.len()).map_err(failed)?));
        }
        let old = self.bound.remove(&name).unwrap_or_default();
        let (kept, gone): (Vec<_>, Vec<_>) =
            old.into_iter().partition(|bound| wanted.contains(&bound.wanted));
        let bound = self.bound.entry(name.clone()).or_insert(kept);
        for (wanted, sockets) in made {
            self.last += 1;
            let number = self.last;
            bound.push(Bound { wanted, number });
            for (worker, socket) in sockets {
                let bound = BoundListener { listener: name.clone(), socket, number, origin: Origin::Direct };
                workers.tell(worker, Command::AddListener(bound));
            }
        }
        for old in gone {
            let replaced = bound.iter().any(|bound| bound.wanted.address == old.wanted.address);
            remove(&old, !replaced, workers);
        }
        Ok(())
    }

    /// Stops accepting on the listeners that `which` selects.
    pub(super) fn close(&mut self, workers: &Workers, which: impl Fn(&str) -> bool) {
        self.bound.retain(|name, bound| {
            let closed = which(name);
            if closed {
                self.closed.insert(name.clone());
                bound.iter().for_each(|bound| remove(bound, true, workers));
            }
            !closed
        });
    }
}

fn remove(bound: &Bound, refuse: bool, workers: &Workers) {
    let number = bound.number;
    workers.tell_all(|| Command::RemoveSocket { number, refuse });
}

fn wanted(listener: &Listener) -> Vec<Wanted> {
    let sockets = listener.sockets.iter().cloned().chain(std::iter::repeat_with(ListenSocket::default));
    let wanted = |(address, socket): (&Address, ListenSocket)| Wanted {
        address: address.clone(),
        socket,
        freebind: listener.freebind,
        transparent: listener.transparent,
        backlog: listener.backlog,
        reuse_port: listener.reuse_port,
    };
    listener.addresses().zip(sockets).map(wanted).collect()
}

/// One socket per worker, or one that all share.
fn bind(wanted: &Wanted, workers: usize) -> io::Result<Vec<(usize, OwnedFd)>> {
    match &wanted.address {
        Address::Ip(ip) if wanted.reuse_port => {
            (0..workers).map(|worker| Ok((worker, tcp(wanted, ip)?))).collect()
        }
        Address::Ip(ip) => share(tcp(wanted, ip)?, workers),
        Address::Pipe { path, mode } => share(net::unix_listener(path, *mode)?, workers),
    }
}

fn tcp(wanted: &Wanted, address: &SocketAddr) -> io::Result<OwnedFd> {
    let of = |state: SocketState| -> Vec<net::RawOption<'_>> {
        let options = wanted.socket.options.iter().filter(|(when, _)| *when == state);
        options.map(|(_, option)| (option.level, option.name, option.value.as_slice())).collect()
    };
    let [prebind, bound, listening] =
        [SocketState::Prebind, SocketState::Bound, SocketState::Listening].map(of);
    let options = net::ListenOptions {
        reuse_port: wanted.reuse_port,
        backlog: wanted.backlog.unwrap_or(DEFAULT_BACKLOG),
        freebind: wanted.freebind,
        transparent: wanted.transparent,
        v6only: !wanted.socket.ipv4_compat,
        options: [&prebind, &bound, &listening],
        keepalive: wanted.socket.keepalive.as_ref().map(keepalive),
        mark: None,
    };
    net::listener(address, &options)
}

/// Capped by the kernel at `net.core.somaxconn`.
const DEFAULT_BACKLOG: u32 = 4_096;

/// One socket that every worker accepts on.
fn share(socket: OwnedFd, workers: usize) -> io::Result<Vec<(usize, OwnedFd)>> {
    let mut sockets = Vec::with_capacity(workers);
    for worker in 1..workers {
        sockets.push((worker, socket.as_fd().try_clone_to_owned()?));
    }
    sockets.push((0, socket));
    Ok(sockets)
}
