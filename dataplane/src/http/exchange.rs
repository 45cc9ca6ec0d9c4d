//! One request and its response.

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Instant,
};

use culvert_model::{Action, BodyFormat, DirectResponse, PathMatch, PathRewrite, Redirect};
use culvert_proto::{
    Headers, Method, RequestHead, ResponseHead, Version,
    h1::{self, Decimal, Framing},
    route::{Match, Mutations, NoRoute, RequestView, Table, redirect_location, rewrite_path, tls_location},
};
use culvert_ring::{Chunk, time};

use crate::{
    http::{
        affinity::NewCookies,
        codec::ServerStream,
        connection::Timers,
        filters::{self, Verdict},
        format::Values,
        grpc, hygiene,
        log::{Flags, Held},
        reply::Reply,
        router::{CountedBy, Forwarded, redirect::Redirects},
        shared::{Shared, millis},
        trace::Trace,
    },
    observe::access::{self, LogType, Times},
    upstream::{Cluster, Host},
};

/// What happens to the connection after an exchange.
pub(super) enum After {
    /// Reset it: the response cannot be completed.
    Abort,
    /// Close it once what was written has left.
    Close,
    /// Wait for the next request.
    KeepAlive,
    /// The client has ended it; what was written still leaves.
    Finished,
}

/// A request being answered.
pub(super) struct Exchange<'c> {
    pub(super) conn: &'c Shared,
    pub(super) stream: ServerStream<'c>,
    pub(super) head: Box<RequestHead>,
    pub(super) framing: Framing,
    pub(super) record: Record,
    /// What the client speaks; the head's version becomes the upstream's.
    pub(super) downstream_version: Version,
    /// Whether client, limits and drain state let the connection stay open.
    keep_alive: bool,
    /// It asks for a tunnel: what follows its head is no body, and has no end of its own.
    pub(super) upgrading: bool,
    /// What filters know of it.
    pub(super) filters: filters::Run,
    /// Whether responses tell how often it was tried.
    pub(super) tells_attempts: Cell<bool>,
    /// Redirects that were followed.
    pub(super) redirects: RefCell<Option<Box<Redirects>>>,
    /// What its client is given, so that it comes to the same host again.
    pub(super) new_cookies: NewCookies,
    /// What is known of its trace, once it is routed.
    pub(super) trace: Option<Trace>,
}

/// What is known of a request when it is logged.
pub(super) struct Record {
    pub(super) started: Instant,
    pub(super) status: Cell<u16>,
    pub(super) flags: Cell<Flags>,
    pub(super) details: Cell<&'static str>,
    /// In place of `details`, where they are made for the request.
    pub(super) details_text: RefCell<String>,
    pub(super) bytes_received: Cell<u64>,
    pub(super) bytes_sent: Cell<u64>,
    pub(super) route_name: RefCell<String>,
    /// Name of the virtual cluster; empty without.
    pub(super) virtual_cluster: RefCell<String>,
    /// What it is counted by beside its cluster.
    pub(super) counted: RefCell<CountedBy>,
    pub(super) cluster: RefCell<Option<Rc<Cluster>>>,
    pub(super) host: RefCell<Option<Rc<Host>>>,
    pub(super) response: RefCell<Option<Box<ResponseHead>>>,
    /// Trailers of the response, kept for logs.
    pub(super) trailers: RefCell<Option<Headers>>,
    /// This end of the upstream connection, when a log asks for it.
    pub(super) upstream_local: Cell<Option<SocketAddr>>,
    /// Why no upstream connection came about.
    pub(super) upstream_failure: RefCell<String>,
    /// How often an upstream was tried.
    pub(super) attempts: Cell<u32>,
    /// What the upstream connection speaks, once a request is on it.
    pub(super) upstream_version: Cell<Option<Version>>,
    pub(super) times: RefCell<Times>,
    /// How the response's body is framed towards the client.
    pub(super) framing: Cell<Framing>,
    /// Who asks, as far as `x-forwarded-for` is trusted to tell; the other end of the connection where it does not.
    pub(super) client: Cell<Option<IpAddr>>,
    /// The end of the response was that of the upstream's connection.
    pub(super) upstream_ended: Cell<bool>,
    /// Its scheme is known.
    pub(super) scheme_known: Cell<bool>,
    /// It never became a request: nothing of it is known.
    pub(super) bare: Cell<bool>,
    /// It asks for the health of this server, which is no traffic.
    pub(super) health_check: Cell<bool>,
}

impl<'c> Exchange<'c> {
    /// A request whose head was received. `last`: no further request is taken on this connection.
    pub(super) fn new(
        conn: &'c Shared,
        stream: ServerStream<'c>,
        head: Box<RequestHead>,
        framing: Framing,
        started: Instant,
        last: bool,
    ) -> Self {
        let keep_alive = !last && h1::keep_alive(head.version, &head.headers);
        let record = Record {
            started,
            status: Cell::new(0),
            flags: Cell::new(Flags::default()),
            details: Cell::new(""),
            details_text: RefCell::default(),
            bytes_received: Cell::new(0),
            bytes_sent: Cell::new(0),
            route_name: RefCell::default(),
            virtual_cluster: RefCell::default(),
            counted: RefCell::default(),
            cluster: RefCell::default(),
            host: RefCell::default(),
            response: RefCell::default(),
            trailers: RefCell::default(),
            upstream_local: Cell::default(),
            upstream_failure: RefCell::default(),
            attempts: Cell::default(),
            upstream_version: Cell::default(),
            times: RefCell::default(),
            framing: Cell::new(Framing::None),
            client: Cell::default(),
            upstream_ended: Cell::default(),
            scheme_known: Cell::new(stream.is_multiplexed()),
            bare: Cell::default(),
            health_check: Cell::default(),
        };
        Self {
            downstream_version: head.version,
            conn,
            stream,
            head,
            framing,
            record,
            keep_alive,
            upgrading: false,
            filters: filters::Run::default(),
            tells_attempts: Cell::default(),
            redirects: RefCell::default(),
            new_cookies: NewCookies::default(),
            trace: None,
        }
    }

    /// Answers it.
    pub(super) async fn run(mut self, timers: &mut Timers) -> After {
        self.count_request();
        self.conn.manager.stats.downstream_rq_active.inc();
        let active = Active(self.conn);
        let after = self.answer(timers).await;
        drop(active);
        self.finish();
        after
    }

    /// Counts it by what it came over.
    pub(super) fn count_request(&self) {
        let stats = &self.conn.manager.stats;
        stats.downstream_rq_total.inc();
        match self.downstream_version {
            Version::Http10 | Version::Http11 => stats.downstream_rq_http1_total.inc(),
            Version::Http2 => stats.downstream_rq_http2_total.inc(),
            Version::Http3 => stats.downstream_rq_http3_total.inc(),
        }
    }

    /// Answers it with `reply` without looking at it.
    pub(super) fn refuse(self, reply: Reply) -> After {
        self.count_request();
        if !self.stream.is_multiplexed() && self.record.bare.get() {
            self.count_early_response();
        }
        let after = self.reply(reply);
        self.finish();
        after
    }

    /// Whether the request came from inside the mesh.
    pub(super) fn is_internal(&self) -> bool {
        self.head.headers.get("x-envoy-internal") == Some(b"true")
    }

    /// Whether the connection stays open after this exchange, given that the request has been read to its end.
    pub(super) fn keeps_alive(&self) -> bool {
        self.keep_alive && !self.conn.should_close() && !self.stream.is_finished()
    }

    async fn answer(&mut self, timers: &mut Timers) -> After {
        self.upgrading = self.asks_for_tunnel();
        if self.framing.is_empty() && !self.upgrading {
            self.record.times.borrow_mut().rx_end = Some(time::now());
        }
        if self.conn.manager.spec.config.log_on_new_request {
            self.log(LogType::DownstreamStart);
        }
        if let Err(reply) = hygiene::prepare(self) {
            return self.reply(reply);
        }
        loop {
            if let Some(after) = self.route(timers).await {
                return after;
            }
        }
    }

    /// Whether it asks for an upgrade, or is CONNECT. One of HTTP/1 that has a body is taken for what it is without that.
    fn asks_for_tunnel(&self) -> bool {
        let wants = self.head.method == Method::Connect || h1::upgrade(&self.head.headers).is_some();
        wants
            && self.downstream_version != Version::Http10
            && (self.framing.is_empty() || self.stream.is_multiplexed())
    }

    /// Does what its route says; `None` when a redirect made it another request.
    async fn route(&mut self, timers: &mut Timers) -> Option<After> {
        let local = self.conn.manager.table(&self.conn.worker, &self.head.view());
        let random = self.conn.worker.rng.borrow_mut().u64(..);
        let mut found = match &local {
            Some(table) => table.route(&self.head.view(), random),
            None => Err(NoRoute::Route),
        };
        let random = found.as_ref().map_or(random, |found| self.cluster_random(found, random));
        if self.conn.manager.tracer.is_some() {
            self.begin_trace(found.as_ref().ok());
        }
        if !self.conn.manager.filters.is_empty() {
            match filters::decode(self, local.as_ref(), &mut found, random).await {
                Verdict::Continue => {}
                Verdict::Failed(error) => return Some(self.request_failed(&error, false)),
                Verdict::Gone => {
                    self.downstream_lost();
                    return Some(After::Abort);
                }
                Verdict::Reply(reply) => {
                    if let Ok(found) = &found {
                        self.name_route(&found.route.name);
                        self.record_cluster(found, random);
                    }
                    if self.record.health_check.get() {
                        self.discard_received();
                    }
                    let kept = self.stream.with_kept(<[u8]>::len) as u64;
                    self.record.bytes_received.set(self.record.bytes_received.get().max(kept));
                    return Some(self.reply(reply));
                }
            }
        }
        if !matches!(&found, Ok(found) if matches!(found.route.action, Action::Forward(_))) {
            self.conn.manager.stats.rq_total.inc();
        }
        let Some(table) = &local else { return Some(self.no_route()) };
        let table = &**table;
        let matched = match found {
            Ok(matched) => matched,
            Err(NoRoute::Route | NoRoute::VirtualHost) => return Some(self.no_route()),
            Err(NoRoute::TlsRequired) => return Some(self.redirect_to_tls()),
        };
        self.name_route(&matched.route.name);
        Some(match &matched.route.action {
            Action::Direct(direct) => {
                self.conn.manager.stats.rq_direct_response.inc();
                let mut reply = Reply::new(direct.status, "").details("direct_response");
                reply = match &direct.format {
                    None => reply.body(direct.body.clone()),
                    Some(format) => self.formatted(reply, direct, format),
                };
                if matches!(direct.status, 201 | 300..=399) {
                    reply = reply.location(own_location(&self.head.view()));
                }
                self.reply_with(reply, Some((table, &matched)))
            }
            Action::Forward(action) => match self.forward(action, table, &matched, random, timers).await {
                Forwarded::Done(after) => after,
                Forwarded::Redirected => return None,
            },
            Action::Redirect(redirect) => {
                self.conn.manager.stats.rq_direct_response.inc();
                let mut location = Vec::new();
                redirect_location(redirect, &matched.route.matcher.path, &self.head.view(), &mut location);
                let reply = Reply::new(redirect.status, "").details("direct_response").location(location);
                self.record_redirected_path(redirect, &matched.route.matcher.path);
                self.reply_with(reply, Some((table, &matched)))
            }
        })
    }

    /// A direct response whose body is made for the request.
    fn formatted(&self, reply: Reply, direct: &DirectResponse, format: &BodyFormat) -> Reply {
        let body = match &format.parts {
            None => direct.body.clone(),
            Some(parts) => {
                let mut body = Vec::new();
                let missing: &[u8] = if format.omit_empty { b"" } else { b"-" };
                self.with_facts(LogType::DownstreamEnd, None, Held::default(), |facts| {
                    access::write_text(parts, missing, facts, &mut body);
                });
                body.into()
            }
        };
        let mut headers = Headers::new();
        if !format.content_type.is_empty() {
            headers.push("content-type", &format.content_type);
        }
        reply.body(body).headers(headers)
    }

    /// A request that is answered on its way to a cluster is logged with it.
    fn record_cluster(&self, found: &Match<'_>, random: u64) {
        let Action::Forward(action) = &found.route.action else { return };
        let cluster = self.cluster(action, random).map(|(cluster, _)| cluster);
        *self.record.cluster.borrow_mut() = cluster;
    }

    fn name_route(&self, name: &str) {
        self.name(&self.record.route_name, name);
    }

    /// Keeps a name for logs.
    pub(super) fn name(&self, place: &RefCell<String>, name: &str) {
        if !name.is_empty() {
            let mut known = place.borrow_mut();
            if known.capacity() == 0 {
                *known = String::from_utf8(self.conn.worker.buffer()).unwrap_or_default();
            }
            known.push_str(name);
        }
    }

    /// Logs show where a redirect leads, as they show what is forwarded.
    fn record_redirected_path(&mut self, redirect: &Redirect, matched: &PathMatch) {
        if !matches!(redirect.path, PathRewrite::Prefix(_) | PathRewrite::Regex(_)) {
            return;
        }
        let mut path = Vec::new();
        rewrite_path(&redirect.path, matched, self.head.path(), &mut path);
        if !self.conn.manager.spec.config.suppress_envoy_headers {
            let (headers, path, _) = self.head.headers_beside();
            headers.set("x-envoy-original-path", path);
        }
        self.head.set_path(&path);
    }

    fn no_route(&self) -> After {
        self.conn.manager.stats.no_route.inc();
        self.reply(Reply::new(404, "").flag(Flags::NO_ROUTE).details("route_not_found"))
    }

    fn redirect_to_tls(&self) -> After {
        self.conn.manager.stats.rq_direct_response.inc();
        let mut location = Vec::new();
        tls_location(&self.head.view(), &mut location);
        self.reply(Reply::new(301, "").details("direct_response").location(location))
    }

    /// Answers without an upstream.
    pub(super) fn reply(&self, reply: Reply) -> After {
        self.reply_with(reply, None)
    }

    fn reply_with(&self, reply: Reply, matched: Option<(&Table, &Match<'_>)>) -> After {
        // The rest of the request would have to be read before the next one; nobody wants it.
        let complete = !self.upgrading
            && (self.framing.is_empty()
                || self.stream.has_kept_all()
                || self.record.times.borrow().rx_end.is_some());
        let keep_alive = self.keeps_alive() && complete && !reply.closes;
        self.record.status.set(reply.status);
        self.record.flags.set(self.record.flags.get() | reply.flags);
        self.record.details.set(reply.details);
        if let Some(text) = reply.own_details() {
            self.record.details_text.borrow_mut().push_str(text);
        }
        let mut head = self.conn.worker.response_head();
        let web = self.filters.is_web();
        let grpc = !web && grpc::is_request(&self.head.headers);
        if grpc {
            self.record.status.set(200);
            reply.write_grpc_head(&mut head);
        } else {
            reply.write_head(&mut head);
        }
        let head_only = self.head.method == Method::Head;
        if let Some((table, matched)) = matched {
            let mutations = Mutations::new(table, matched, None);
            let values = Values::for_response(self, None);
            let mut scratch = self.conn.worker.buffer();
            mutations.apply_to_response(&mut head.headers, &values, &mut scratch);
            self.conn.worker.recycle_buffer(scratch);
        }
        if head.headers.get_all("location").nth(1).is_some() {
            let joined = head.headers.joined("location").map(|list| list.to_vec()).unwrap_or_default();
            head.headers.set("location", joined);
        }
        if self.tells_attempts.get() {
            head.headers.set("x-envoy-attempt-count", Decimal::new(self.record.attempts.get().max(1).into()));
        }
        if !grpc {
            reply.write_body_fields(&mut head, head_only);
        }
        // These have no body whatever the configuration says; its bytes would be taken for the next response.
        let bodiless = matches!(reply.status, 100..=199 | 204 | 304);
        let mut body = if grpc { Chunk::Static(&[]) } else { reply.into_body() };
        let mut with_body = !body.is_empty() && !bodiless && !head_only;
        let framing = if with_body && !web { Framing::Length(body.len() as u64) } else { Framing::None };
        filters::encode(self, &mut head, framing, None);
        if web && !body.is_empty() {
            head.headers.set("grpc-status", grpc::status_of(head.status));
            head.headers.set("grpc-message", grpc::message(&body));
            body = Chunk::Static(&[]);
            with_body = false;
        }
        hygiene::finish_response(self, &mut head, !keep_alive);
        let framing = if head_only { Framing::None } else { Framing::Length(body.len() as u64) };
        self.stream.send_head(&head, framing, !with_body);
        self.record.times.borrow_mut().tx_begin = Some(time::now());
        if with_body {
            self.stream.send_data(body);
            self.stream.finish(None);
            self.record.bytes_sent.set(self.stream.sent());
        }
        self.record.times.borrow_mut().tx_end = Some(time::now());
        self.record.response.replace(Some(head));
        if !complete {
            self.count_early_response();
        }
        if keep_alive { After::KeepAlive } else { After::Close }
    }

    /// Counts and logs, and gives the heads back.
    fn finish(self) {
        let manager = &self.conn.manager;
        let status = self.record.status.get();
        if status != 0 && !self.record.health_check.get() {
            manager.count(status);
        }
        manager.stats.downstream_rq_time.record(millis(time::now() - self.record.started));
        if !manager.filters.is_empty() {
            filters::finish(&self);
        }
        self.log(LogType::DownstreamEnd);
        self.finish_trace();
        let response = self.record.response.take();
        for name in [&self.record.route_name, &self.record.virtual_cluster] {
            self.conn.worker.recycle_buffer(name.take().into_bytes());
        }
        self.conn.worker.recycle(self.head, response);
    }
}

/// The request's own URL, which Envoy gives as the location of a direct response that redirects.
fn own_location(request: &RequestView<'_>) -> Vec<u8> {
    [request.scheme, b"://", request.authority, request.path].concat()
}

/// Keeps `downstream_rq_active`, also when the task is dropped in the middle of a request.
struct Active<'c>(&'c Shared);

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.manager.stats.downstream_rq_active.dec();
    }
}
