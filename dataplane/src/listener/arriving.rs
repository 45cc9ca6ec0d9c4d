//! A connection on its way from accept to its filter chain: listener filters in order, then the choice of the chain.

use std::{net::SocketAddr, rc::Rc, time::Instant};

use culvert_model::{ListenerFilterKind, ListenerPredicate};
use culvert_proto::chain::{Facts, Opening};
use culvert_ring::{Chunk, Stream, net, task, time};

use crate::{
    http::connection::serve,
    listener::{
        Downstream, ListenerRuntime, Peer, Terminal,
        filters::{self, Verdict},
        inspect,
        runtime::Selected,
        secure, unmapped,
    },
    observe::access::Flags,
    tcp,
    tls::Transport,
    worker::Worker,
};

/// A connection that has no filter chain yet.
pub(super) struct Arriving {
    pub(super) stream: Stream,
    /// Bytes that were received and not consumed.
    pub(super) bytes: Vec<u8>,
    pub(super) who: Downstream,
    pub(super) since: Instant,
    /// The next listener filter.
    next: usize,
    /// Whether it was handed over to the listener of its destination already.
    handed_over: bool,
}

impl Arriving {
    pub(super) fn new(stream: Stream, who: Downstream) -> Self {
        let mut arriving =
            Self { stream, bytes: Vec::new(), who, since: time::now(), next: 0, handed_over: false };
        if arriving.who.listener.spec.config.use_original_dst {
            arriving.original_destination();
        }
        arriving
    }

    /// Goes on to the next listener filter that has to receive bytes, or to the filter chain.
    pub(super) fn advance(mut self, worker: &Rc<Worker>) {
        while let Some(filter) = self.who.listener.clone().spec.config.listener_filters.get(self.next) {
            self.next += 1;
            if filter.disabled.as_ref().is_some_and(|disabled| self.is(disabled)) {
                continue;
            }
            match &filter.kind {
                ListenerFilterKind::OriginalDst => self.original_destination(),
                ListenerFilterKind::HttpInspector | ListenerFilterKind::TlsInspector { .. }
                    if !self.depends_on_opening(worker) => {}
                _ => {
                    task::spawn(inspect::run(worker.clone(), self, filter.kind.clone()));
                    return;
                }
            }
        }
        self.enter(worker);
    }

    /// Sets the destination a PROXY header tells.
    pub(super) fn redirect(&mut self, source: SocketAddr, destination: SocketAddr) {
        let (source, local) = (unmapped(source), Peer::Ip(unmapped(destination)));
        self.who.remote = Peer::Ip(source);
        self.who.restored |= self.who.local != local;
        self.who.local = local;
    }

    /// What is known of the first bytes.
    pub(super) fn opening(&mut self) -> &mut Opening {
        self.who.opening.get_or_insert_default()
    }

    /// Chooses the filter chain and spawns what serves the connection. Waits for nothing more.
    pub(super) fn enter(mut self, worker: &Rc<Worker>) {
        if let Some(listener) = self.successor(worker) {
            self.who.listener = listener;
            (self.next, self.handed_over) = (0, true);
            return self.advance(worker);
        }
        let listener = self.who.listener.clone();
        let none = Opening::default();
        let opening = self.who.opening.as_deref().unwrap_or(&none);
        let Selected::Chain(chain, config) = listener.select(&self.facts(Some(opening))) else {
            listener.stats.no_filter_chain_match.inc();
            let notes = self.who.note();
            notes.flag(Flags::NO_ROUTE);
            return notes.details.set("filter_chain_not_found");
        };
        listener.stats.downstream_cx_total.inc();
        let place = chain.enter();
        let key = place.key;
        self.who.place = Some(place);
        let leftover = (!self.bytes.is_empty()).then(|| Chunk::from(self.bytes));
        let stream = Transport::plain(self.stream, leftover);
        if config.tls.is_some() {
            let handshake = secure::handshake(worker.clone(), stream, self.who, config.clone());
            chain.served_by(key, task::spawn(handshake));
        } else {
            start(worker, stream, self.who);
        }
    }

    /// The listener that takes the connection over for its destination.
    fn successor(&self, worker: &Worker) -> Option<Rc<ListenerRuntime>> {
        let listener = &self.who.listener;
        if !listener.spec.config.use_original_dst || !self.who.restored || self.handed_over {
            return None;
        }
        worker.listener_at(self.who.local.socket()?).filter(|other| !Rc::ptr_eq(other, listener))
    }

    /// Whether the chain, or what happens in it, depends on the first bytes. A server that speaks first is not to wait
    /// for bytes that nobody asks about.
    fn depends_on_opening(&self, worker: &Worker) -> bool {
        let listener = &self.who.listener;
        let may_redirect = |kind: &ListenerFilterKind| {
            matches!(kind, ListenerFilterKind::ProxyProtocol { .. } | ListenerFilterKind::OriginalDst)
        };
        let later = listener.spec.config.listener_filters.get(self.next..).unwrap_or_default();
        if later.iter().any(|filter| may_redirect(&filter.kind)) {
            return true;
        }
        let successor = self.successor(worker);
        match successor.as_ref().unwrap_or(listener).select(&self.facts(None)) {
            Selected::Chain(chain, _) => chain.spec.reads_opening,
            Selected::Nothing => false,
            Selected::Undecided => true,
        }
    }

    fn original_destination(&mut self) {
        // That of a captured connection is known already.
        if self.who.pod.is_some() {
            return;
        }
        // With a transparent socket it is the local address already.
        self.who.restored |= self.who.listener.spec.config.transparent;
        let Some(local) = net::original_dst(self.stream.fd()).ok().map(|it| Peer::Ip(unmapped(it))) else {
            return;
        };
        self.who.restored |= self.who.local != local;
        self.who.local = local;
    }

    fn facts<'a>(&self, opening: Option<&'a Opening>) -> Facts<'a> {
        Facts {
            destination: self.who.local.socket(),
            source: self.who.remote.socket(),
            direct_source: self.who.direct_remote.socket(),
            opening,
        }
    }

    fn is(&self, predicate: &ListenerPredicate) -> bool {
        match predicate {
            ListenerPredicate::Always => true,
            ListenerPredicate::And(all) => all.iter().all(|predicate| self.is(predicate)),
            ListenerPredicate::DestinationPort(from, to) => {
                let port = self.who.local.socket().map(|local| u32::from(local.port()));
                port.is_some_and(|port| (*from..*to).contains(&port))
            }
            ListenerPredicate::Not(not) => !self.is(not),
            ListenerPredicate::Or(any) => any.iter().any(|predicate| self.is(predicate)),
        }
    }
}

/// Hands a connection to the filters of its chain, and to the terminal one.
pub(super) fn start(worker: &Rc<Worker>, stream: Transport, mut who: Downstream) {
    let Some((chain, key)) = who.place.as_ref().map(|place| (place.chain.clone(), place.key)) else { return };
    let worker = worker.clone();
    if let Verdict::Close(delay) = filters::run(&chain.filters, &worker, &mut who) {
        let terminal = filters::proxy_of(chain.terminal.as_ref());
        chain.served_by(key, task::spawn(filters::refuse(worker, stream, who, terminal, delay)));
        return;
    }
    let task = match &chain.terminal {
        Some(Terminal::DirectResponse(response)) => {
            task::spawn(tcp::direct_response(stream, who, response.clone()))
        }
        Some(Terminal::Echo) => task::spawn(tcp::echo(stream, who)),
        Some(Terminal::Http(manager)) => task::spawn(serve(worker, stream, who, manager.clone())),
        Some(Terminal::Tcp(manager)) => task::spawn(tcp::proxy(worker, stream, who, manager.clone())),
        None => return who.listener.stats.downstream_cx_destroy.inc(),
    };
    chain.served_by(key, task);
}
