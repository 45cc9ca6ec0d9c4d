//! The sockets of ordinary listeners: bound here, accepted on by workers.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use culvert_model::{Address, Config, ListenSocket, Listener, SocketState};
use culvert_ring::net;

use crate::{
    upstream::keepalive,
    worker::{BoundListener, Command, Origin, UDP_BUFFER, Workers},
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

/// Addresses that are bound, which a listener may take from another one.
#[derive(Clone, Default)]
pub(super) struct Held(Arc<Mutex<HashSet<Address>>>);

impl Held {
    /// Why the addresses of a listener cannot be had, where that is known without binding them.
    pub(super) fn check(&self, listener: &Listener) -> Result<(), String> {
        if !listener.bind_to_port {
            return Ok(());
        }
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for wanted in wanted(listener).iter().filter(|wanted| !held.contains(&wanted.address)) {
            let Address::Ip(address) = &wanted.address else { continue };
            with_options(wanted, |options| net::try_bind(address, options))
                .map_err(|error| format!("cannot bind {address}: {error}"))?;
        }
        Ok(())
    }
}

/// What is bound for which listener.
#[derive(Default)]
pub(super) struct Sockets {
    held: Held,
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

/// Sockets that another listener may take.
struct Spare {
    /// The listener that still has them, should nobody take them.
    owner: Option<Arc<str>>,
    bound: Bound,
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
    /// Of UDP.
    quic: bool,
}

impl Sockets {
    /// The addresses that are bound, as that changes.
    pub(super) fn held(&self) -> Held {
        self.held.clone()
    }

    fn show_held(&self) {
        let held = self.bound.values().flatten().map(|bound| bound.wanted.address.clone()).collect();
        *self.held.0.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// Binds what is new, then stops accepting on what is gone: an address that goes from one listener to another is open
    /// all the time. Every listener is handled, also after one failed; one that fails keeps the sockets it had.
    pub(super) fn apply(&mut self, config: &Config, workers: &Workers) -> Vec<BindError> {
        let is_open = |listener: &&Arc<Listener>| {
            listener.bind_to_port && !self.closed.contains(listener.name.as_str())
        };
        let listeners: Vec<_> =
            config.listeners.iter().filter(is_open).map(|listener| (listener, wanted(listener))).collect();
        let mut spare = self.take_spare(&listeners);
        let mut errors = Vec::new();
        for (listener, wanted) in &listeners {
            if let Err(error) = self.apply_one(listener, wanted, &mut spare, workers) {
                errors.push(error);
            }
        }
        // Whoever failed, and was to give an address to somebody who failed too, keeps it.
        for spare in spare.extract_if(.., |spare| {
            let owner = spare.owner.as_deref();
            owner.is_some_and(|owner| errors.iter().any(|error| *error.listener == *owner))
        }) {
            let Spare { owner: Some(owner), bound } = spare else { continue };
            self.bound.entry(owner).or_default().push(bound);
        }
        if !spare.is_empty() {
            let open: HashSet<&Address> =
                self.bound.values().flatten().map(|bound| &bound.wanted.address).collect();
            for Spare { bound: old, .. } in &spare {
                remove(old, !open.contains(&old.wanted.address), workers);
            }
        }
        self.show_held();
        errors
    }

    /// The sockets of listeners that are gone, and those that another listener wants as they are.
    fn take_spare(&mut self, listeners: &[(&Arc<Listener>, Vec<Wanted>)]) -> Vec<Spare> {
        let by_name: HashMap<&str, &[Wanted]> =
            listeners.iter().map(|(listener, wanted)| (listener.name.as_str(), wanted.as_slice())).collect();
        let users: HashMap<&Address, &Wanted> =
            listeners.iter().flat_map(|(_, wanted)| wanted).map(|wanted| (&wanted.address, wanted)).collect();
        let mut spare = Vec::new();
        self.bound.retain(|name, bound| {
            let Some(wanted) = by_name.get(&**name) else {
                spare.extend(bound.drain(..).map(|bound| Spare { owner: None, bound }));
                return false;
            };
            let moves = |bound: &mut Bound| {
                !wanted.contains(&bound.wanted)
                    && users.get(&bound.wanted.address).is_some_and(|user| **user == bound.wanted)
            };
            let moved = bound.extract_if(.., moves);
            spare.extend(moved.map(|bound| Spare { owner: Some(name.clone()), bound }));
            true
        });
        spare
    }

    /// Addresses that stayed as they are keep their sockets. What is not wanted any more comes to `spare`.
    fn apply_one(
        &mut self,
        listener: &Listener,
        wanted: &[Wanted],
        spare: &mut Vec<Spare>,
        workers: &Workers,
    ) -> Result<(), BindError> {
        let name: Arc<str> = listener.name.as_str().into();
        let before = self.bound.get(&name).map_or(&[][..], Vec::as_slice);
        let is_bound = |wanted: &&Wanted| before.iter().any(|bound| bound.wanted == **wanted);
        let (mut made, mut taken) = (Vec::new(), Vec::new());
        for wanted in wanted.iter().filter(|wanted| !is_bound(wanted)) {
            if let Some(at) = spare.iter().position(|spare| spare.bound.wanted == *wanted) {
                taken.push(spare.swap_remove(at));
                continue;
            }
            let failed =
                |error| BindError { listener: listener.name.clone(), address: wanted.address.clone(), error };
            let same = before.iter().find(|bound| bound.wanted.address == wanted.address);
            // Two sockets can have the address at once only if both allow it.
            let bound = match same {
                Some(same) if !(same.wanted.reuse_port && wanted.reuse_port) => Err(io::Error::other(
                    "options of a socket that has the address for itself cannot be changed; see enable_reuse_port",
                )),
                _ => bind(wanted, workers.len()),
            };
            match bound {
                Ok(bound) => made.push((wanted.clone(), bound)),
                Err(error) => {
                    spare.append(&mut taken);
                    return Err(failed(error));
                }
            }
        }
        let bound = self.bound.entry(name.clone()).or_default();
        let unwanted = bound.extract_if(.., |bound| !wanted.contains(&bound.wanted));
        spare.extend(unwanted.map(|bound| Spare { owner: None, bound }));
        for Spare { bound: old, .. } in taken {
            let number = old.number;
            workers.tell_all(|| Command::Rename { number, listener: name.clone() });
            bound.push(old);
        }
        for (wanted, sockets) in made {
            self.last += 1;
            let number = self.last;
            let wanted_quic = wanted.quic;
            bound.push(Bound { wanted, number });
            for (worker, socket) in sockets {
                let (listener, quic) = (name.clone(), wanted_quic);
                let bound = BoundListener { listener, socket, number, quic, origin: Origin::Direct };
                workers.tell(worker, Command::AddListener(bound));
            }
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
        self.show_held();
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
        quic: listener.quic.is_some(),
    };
    listener.addresses().zip(sockets).map(wanted).collect()
}

/// One socket per worker, or one that all share.
fn bind(wanted: &Wanted, workers: usize) -> io::Result<Vec<(usize, OwnedFd)>> {
    match &wanted.address {
        Address::Ip(ip) if wanted.quic => (0..workers).map(|worker| Ok((worker, udp(wanted, ip)?))).collect(),
        Address::Ip(ip) if wanted.reuse_port => {
            (0..workers).map(|worker| Ok((worker, tcp(wanted, ip)?))).collect()
        }
        Address::Ip(ip) => share(tcp(wanted, ip)?, workers),
        Address::Pipe { path, mode } => share(net::unix_listener(path, *mode)?, workers),
    }
}

fn tcp(wanted: &Wanted, address: &SocketAddr) -> io::Result<OwnedFd> {
    with_options(wanted, |options| net::listener(address, options))
}

fn with_options<T>(wanted: &Wanted, f: impl FnOnce(&net::ListenOptions<'_>) -> T) -> T {
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
    f(&options)
}

/// A socket for datagrams; the kernel spreads clients over those of an address by theirs.
fn udp(wanted: &Wanted, address: &SocketAddr) -> io::Result<OwnedFd> {
    let of = |state: SocketState| -> Vec<net::RawOption<'_>> {
        let options = wanted.socket.options.iter().filter(|(when, _)| *when == state);
        options.map(|(_, option)| (option.level, option.name, option.value.as_slice())).collect()
    };
    let [prebind, bound] = [SocketState::Prebind, SocketState::Bound].map(of);
    let options = net::UdpOptions {
        reuse_port: true,
        receive_buffer: Some(UDP_BUFFER),
        send_buffer: Some(UDP_BUFFER),
        freebind: wanted.freebind,
        v6only: !wanted.socket.ipv4_compat,
        options: [&prebind, &bound],
        ..net::UdpOptions::default()
    };
    net::udp_socket(address, &options)
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
