//! HTTP filters before the router: a list that a request goes through, and its response in reverse. One file each.
//!
//! A filter looks at the head of a request once its route is known ([`Filter::decode`]): it lets it go on, perhaps after a
//! while, or answers it. Every response passes [`Filter::encode`], also those that culvert gives itself. A filter's state
//! is made when the connection manager is; what routes say about it is found by number.

mod basic_auth;
mod buffer;
mod compressor;
mod cors;
mod csrf;
mod discovered;
mod ext_authz;
mod fault;
mod grpc_stats;
mod grpc_web;
mod header_mutation;
mod health_check;
mod jwt;
mod local_ratelimit;
mod ratelimit;
mod rbac;

use std::{cell::RefCell, net::IpAddr, rc::Rc};

use culvert_model::{
    Action, ClusterSpecifier, Fraction, HostRules, RateLimitRule, Route, VirtualHost, WeightedCluster,
};
use culvert_proto::{
    Headers, ResponseHead,
    filter::{Settings, descriptor},
    h1::Framing,
    route::{Match, NoRoute, Override, Place, Table, pick_cluster},
};
use smallvec::SmallVec;

use crate::{
    http::{codec::ReceiveError, exchange::Exchange, metadata::DynamicMetadata, reply::Reply},
    snapshot::{HttpFilterKind, HttpFilterSpec},
    upstream::{Cluster, Host},
    worker::{LocalTable, Worker},
};

/// An HTTP filter with this worker's state.
enum Filter {
    /// `buffer`
    Buffer(buffer::Buffer),
    /// `compressor`
    Compressor(compressor::ResponseCompressor),
    /// `basic_auth`
    BasicAuth(basic_auth::Users),
    /// `cors`
    Cors(cors::Cors),
    /// `csrf`
    Csrf(csrf::Csrf),
    /// Whatever ECDS says.
    Discovered(discovered::Discovered),
    /// `ext_authz`
    ExtAuthz(ext_authz::Authorizer),
    /// `fault`
    Fault(fault::FaultInjector),
    /// `grpc_stats`
    GrpcStats(grpc_stats::CallCounter),
    /// `grpc_web`
    GrpcWeb(grpc_web::GrpcWeb),
    /// `header_mutation`
    HeaderMutation(header_mutation::HeaderMutation),
    /// `health_check`
    HealthCheck(health_check::HealthCheck),
    /// `jwt_authn`
    Jwt(jwt::Authenticator),
    /// `local_ratelimit`
    LocalRateLimit(local_ratelimit::RateLimiter),
    /// `ratelimit`
    RateLimit(ratelimit::GlobalLimiter),
    /// `rbac`
    Rbac(rbac::AccessFilter),
    /// One that there is not, and that a route may turn on nevertheless.
    Unsupported,
}

/// What becomes of a request.
pub(super) enum Verdict {
    Continue,
    /// The client has gone meanwhile.
    Gone,
    /// The request's body could not be received.
    Failed(ReceiveError),
    Reply(Reply),
}

/// What a filter remembers of a request until its end.
#[derive(Default)]
enum State {
    #[default]
    Nothing,
    /// May go on, with changes of the response.
    Authorized(Box<ext_authz::Changes>),
    /// May be compressed; what the client accepts.
    Compressing(Option<Box<[u8]>>),
    /// A call that is counted when it is over.
    Counting(grpc_stats::Counted),
    /// Counted by a service.
    Counted(Box<ratelimit::Told>),
    /// A request across origins, which may be.
    CrossOrigin,
    /// What the filter that was discovered remembers.
    Discovered(Box<(Rc<Filter>, Self)>),
    /// A fault, which counts for as long as the request lasts.
    Faulty(#[expect(dead_code, reason = "its end counts")] fault::Active),
    /// A request about the health of this server.
    HealthCheck,
    /// Has taken tokens.
    Limited(local_ratelimit::Taken),
    /// A call of a browser.
    Web(Box<grpc_web::WebCall>),
    /// An answered preflight; whether the origin is allowed.
    Preflight(bool),
}

impl Filter {
    fn new(kind: &HttpFilterKind, stat_prefix: &str, worker: &Worker) -> Self {
        let registry = &worker.process.registry;
        match kind {
            HttpFilterKind::Buffer(max) => Self::Buffer(buffer::Buffer(*max)),
            HttpFilterKind::GrpcWeb => Self::GrpcWeb(grpc_web::GrpcWeb::new()),
            HttpFilterKind::GrpcStats(config) => {
                Self::GrpcStats(grpc_stats::CallCounter::new(config.clone()))
            }
            HttpFilterKind::Compressor(config) => {
                Self::Compressor(compressor::ResponseCompressor::new(config.clone(), stat_prefix, registry))
            }
            HttpFilterKind::Jwt(config) => {
                Self::Jwt(jwt::Authenticator::new(config.clone(), stat_prefix, worker))
            }
            HttpFilterKind::BasicAuth(config) => {
                Self::BasicAuth(basic_auth::Users::new(config.clone(), stat_prefix, registry))
            }
            HttpFilterKind::Csrf(policy) => {
                Self::Csrf(csrf::Csrf::new(policy.clone(), stat_prefix, registry))
            }
            HttpFilterKind::Cors => Self::Cors(cors::Cors::new(stat_prefix, registry)),
            HttpFilterKind::Discovered { id, default, config } => {
                let (id, default, config) = (id.clone(), default.clone(), config.clone());
                Self::Discovered(discovered::Discovered::new(id, default, config, stat_prefix))
            }
            HttpFilterKind::ExtAuthz(config) => {
                Self::ExtAuthz(ext_authz::Authorizer::new(config.clone(), stat_prefix, registry))
            }
            HttpFilterKind::Fault(spec) => {
                Self::Fault(fault::FaultInjector::new(spec.clone(), stat_prefix, registry))
            }
            HttpFilterKind::HeaderMutation { changes, most_specific_wins } => {
                Self::HeaderMutation(header_mutation::HeaderMutation {
                    changes: changes.clone(),
                    most_specific_wins: *most_specific_wins,
                })
            }
            HttpFilterKind::HealthCheck(matchers) => {
                Self::HealthCheck(health_check::HealthCheck::new(matchers.clone(), stat_prefix, registry))
            }
            HttpFilterKind::LocalRateLimit(limit) => {
                Self::LocalRateLimit(local_ratelimit::RateLimiter::new(limit.clone(), registry))
            }
            HttpFilterKind::RateLimit(config) => {
                Self::RateLimit(ratelimit::GlobalLimiter::new(config.clone()))
            }
            HttpFilterKind::Rbac(spec) => {
                Self::Rbac(rbac::AccessFilter::new(spec.clone(), stat_prefix, registry))
            }
            HttpFilterKind::Unsupported => Self::Unsupported,
        }
    }

    /// Looks at the head of a request.
    async fn decode(&self, exchange: &mut Exchange<'_>, scope: &Scope<'_>, state: &mut State) -> Verdict {
        match self {
            Self::Buffer(filter) => Box::pin(filter.decode(exchange, scope)).await,
            Self::GrpcStats(filter) => {
                if let Some(counted) = filter.decode(exchange, scope) {
                    *state = State::Counting(counted);
                }
                Verdict::Continue
            }
            Self::GrpcWeb(filter) => {
                if let Some(call) = filter.decode(exchange, scope) {
                    *state = State::Web(Box::new(call));
                }
                Verdict::Continue
            }
            Self::Compressor(filter) => filter.decode(exchange, scope, state),
            Self::Jwt(filter) => Box::pin(filter.decode(exchange, scope)).await,
            Self::BasicAuth(filter) => filter.decode(exchange, scope),
            Self::Cors(filter) => filter.decode(exchange, scope, state),
            Self::Csrf(filter) => filter.decode(exchange, scope),
            // Boxed, as requests that nobody is asked about would pay for its size.
            Self::ExtAuthz(filter) => Box::pin(filter.decode(exchange, scope, state)).await,
            Self::Discovered(filter) => Box::pin(filter.decode(exchange, scope, state)).await,
            Self::Fault(filter) => filter.decode(exchange, scope, state).await,
            Self::HeaderMutation(filter) => filter.decode(exchange, scope),
            Self::HealthCheck(filter) => filter.decode(exchange, state),
            Self::LocalRateLimit(filter) => filter.decode(exchange, scope, state),
            Self::RateLimit(filter) => Box::pin(filter.decode(exchange, scope, state)).await,
            Self::Rbac(filter) => filter.decode(exchange, scope),
            Self::Unsupported => Verdict::Reply(Reply::new(500, "").details("filter_not_supported")),
        }
    }

    /// Looks at the head of a response.
    fn encode(&self, exchange: &Exchange<'_>, scope: &Scope<'_>, state: &State, response: &mut Response<'_>) {
        match self {
            Self::Compressor(filter) => filter.encode(exchange, state, response),
            Self::Cors(filter) => filter.encode(exchange, scope, state, response),
            Self::Discovered(_) => discovered::encode(exchange, scope, state, response),
            Self::ExtAuthz(_) => ext_authz::encode(state, response),
            Self::HeaderMutation(filter) => filter.encode(exchange, scope, response),
            Self::GrpcStats(_) => {
                if let State::Counting(call) = state {
                    call.encode(response.headers);
                }
            }
            Self::GrpcWeb(_) => {
                if let State::Web(call) = state {
                    call.encode(exchange, response);
                }
            }
            Self::HealthCheck(_) => health_check::encode(exchange, state, response),
            Self::LocalRateLimit(filter) => filter.encode(exchange, scope, state, response),
            Self::RateLimit(filter) => filter.encode(exchange, state, response),
            Self::BasicAuth(_)
            | Self::Buffer(_)
            | Self::Csrf(_)
            | Self::Fault(_)
            | Self::Jwt(_)
            | Self::Rbac(_)
            | Self::Unsupported => {}
        }
    }
}

/// The head of a response on its way to the client.
struct Response<'r> {
    headers: &'r mut Headers,
    status: u16,
    /// How its body is framed.
    framing: Framing,
    /// Where it comes from, if not from here.
    host: Option<&'r Rc<Host>>,
}

/// The filters of a connection manager, without the router.
pub(super) struct Chain {
    entries: Vec<Entry>,
    /// Of the table that was asked last.
    numbers: RefCell<Numbers>,
}

struct Entry {
    name: String,
    disabled: bool,
    filter: Filter,
}

/// What numbers the filters have in a table.
#[derive(Default)]
struct Numbers {
    table: Option<Rc<LocalTable>>,
    by_entry: Vec<Option<u32>>,
}

/// What the filters of a chain know of one request.
#[derive(Default)]
pub(super) struct Run {
    table: Option<Rc<LocalTable>>,
    place: Option<Place>,
    states: SmallVec<[State; 8]>,
    numbers: SmallVec<[Option<u32>; 8]>,
    /// What they found out about the request.
    pub(super) metadata: DynamicMetadata,
    /// The request has changed so that its route has to be looked for again.
    pub(super) reroute: bool,
}

/// What a filter may know of the route of a request.
pub(super) struct Scope<'t> {
    table: Option<&'t Table>,
    place: Place,
    /// The filter's number in the table.
    number: Option<u32>,
    route: Option<&'t Route>,
    host: Option<&'t VirtualHost>,
    weighted: Option<&'t WeightedCluster>,
}

impl<'t> Scope<'t> {
    /// What the levels of routes say about the filter, the most specific first.
    fn overrides(&self) -> impl DoubleEndedIterator<Item = &'t Override> {
        let found = self.table.zip(self.number);
        found.into_iter().flat_map(|(table, number)| table.overrides(number, self.place))
    }

    /// Settings of the most specific level that has some.
    fn settings(&self) -> Option<&'t Settings> {
        self.overrides().find_map(|level| level.settings.as_ref())
    }

    fn is_off(&self, entry: &Entry) -> bool {
        self.overrides().next().map_or(entry.disabled, |level| level.disabled)
    }

    /// The cluster that the request goes to.
    fn cluster<'a>(&'a self, headers: &'a Headers) -> Option<&'a [u8]> {
        let Action::Forward(action) = &self.route?.action else { return None };
        match &action.cluster {
            ClusterSpecifier::Header(name) => headers.get(name),
            ClusterSpecifier::Name(name) => Some(name.as_bytes()),
            ClusterSpecifier::Weighted(_) => self.weighted.map(|cluster| cluster.name.as_bytes()),
        }
    }
}

impl<'t> Scope<'t> {
    /// The cluster that the request goes to, if there is one.
    fn known_cluster(&self, exchange: &Exchange<'_>) -> Option<Rc<Cluster>> {
        let name = std::str::from_utf8(self.cluster(&exchange.head.headers)?).ok()?;
        exchange.conn.worker.cluster(name)
    }

    /// What the request is counted by, after the rules of its route and its virtual host that are for a stage.
    fn describe<'a>(
        &self,
        stage: u32,
        host_rules: HostRules,
        inputs: &descriptor::Inputs<'a>,
        descriptors: &mut descriptor::Descriptors<'a>,
    ) where
        't: 'a,
    {
        let Some(Action::Forward(action)) = self.route.map(|route| &route.action) else { return };
        let of_stage = |rules: &'t [RateLimitRule]| rules.iter().filter(move |rule| rule.stage == stage);
        descriptor::describe(of_stage(&action.rate_limits), inputs, descriptors);
        let included = match host_rules {
            HostRules::Include => true,
            HostRules::Override => action.rate_limits.is_empty(),
            HostRules::Ignore => false,
        };
        if let Some(host) = self.host.filter(|_| included || action.include_vh_rate_limits) {
            descriptor::describe(of_stage(&host.rate_limits), inputs, descriptors);
        }
    }
}

/// What descriptors of a request are made of.
fn describing<'a>(exchange: &'a Exchange<'_>, scope: &'a Scope<'_>) -> descriptor::Inputs<'a> {
    descriptor::Inputs {
        request: exchange.head.view(),
        source_cluster: &exchange.conn.worker.process.service_cluster,
        destination_cluster: scope.cluster(&exchange.head.headers).unwrap_or_default(),
        remote: exchange.client(),
        metadata: exchange.filters.metadata.get(),
        route_metadata: scope.route.and_then(|route| route.metadata.as_ref()),
    }
}

impl Chain {
    /// The filters that a connection manager with this `stat_prefix` has.
    pub(super) fn new(specs: &[HttpFilterSpec], stat_prefix: &str, worker: &Worker) -> Self {
        let entry = |spec: &HttpFilterSpec| Entry {
            name: spec.name.clone(),
            disabled: spec.disabled,
            filter: Filter::new(&spec.kind, stat_prefix, worker),
        };
        Self { entries: specs.iter().map(entry).collect(), numbers: RefCell::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Begins with a request whose routes these are, if it has any.
    fn begin(&self, table: Option<&Rc<LocalTable>>, place: Option<Place>) -> Run {
        let mut states = SmallVec::new();
        states.resize_with(self.entries.len(), State::default);
        let mut numbers = SmallVec::new();
        if let Some(table) = table {
            let mut known = self.numbers.borrow_mut();
            if !known.table.as_ref().is_some_and(|known| Rc::ptr_eq(known, table)) {
                known.by_entry.clear();
                known.by_entry.extend(self.entries.iter().map(|entry| table.filter_number(&entry.name)));
                known.table = Some(table.clone());
            }
            numbers.extend_from_slice(&known.by_entry);
        }
        Run { table: table.cloned(), place, states, numbers, ..Run::default() }
    }
}

impl Run {
    /// What filter `index` may know.
    fn scope(&self, index: usize) -> Scope<'_> {
        let number = self.numbers.get(index).copied().flatten();
        let table = self.table.as_ref().filter(|_| self.place.is_some()).map(|table| &***table);
        Scope {
            table,
            place: self.place.unwrap_or_default(),
            number,
            route: None,
            host: None,
            weighted: None,
        }
    }
}

/// Takes the head of a request through the filters. `found` is its route, which `random` chose among what fractions allow
/// and among weighted clusters; another one when a filter has changed the request and says so.
pub(super) async fn decode<'t>(
    exchange: &mut Exchange<'_>,
    table: Option<&'t Rc<LocalTable>>,
    found: &mut Result<Match<'t>, NoRoute>,
    random: u64,
) -> Verdict {
    let conn = exchange.conn;
    let chain = &conn.manager.filters;
    exchange.filters = chain.begin(table, place_of(found, random));
    for (index, entry) in chain.entries.iter().enumerate() {
        let scope = Scope {
            table: table.filter(|_| found.is_ok()).map(|table| &***table),
            route: found.as_ref().ok().map(|matched| &**matched.route),
            host: found.as_ref().ok().map(|matched| matched.vhost),
            weighted: found.as_ref().ok().and_then(|matched| chosen_cluster(matched, random)),
            ..exchange.filters.scope(index).detached()
        };
        if scope.is_off(entry) {
            continue;
        }
        let mut state = State::default();
        let verdict = entry.filter.decode(exchange, &scope, &mut state).await;
        exchange.filters.states[index] = state;
        if std::mem::take(&mut exchange.filters.reroute)
            && let Some(table) = table
        {
            *found = table.route(&exchange.head.view(), random);
            exchange.filters.place = place_of(found, random);
        }
        if !matches!(verdict, Verdict::Continue) {
            return verdict;
        }
    }
    Verdict::Continue
}

fn place_of(found: &Result<Match<'_>, NoRoute>, random: u64) -> Option<Place> {
    let matched = found.as_ref().ok()?;
    Some(matched.place.with_cluster(matched.route, chosen_cluster(matched, random)))
}

/// The cluster of a match that has a choice among several.
fn chosen_cluster<'t>(found: &Match<'t>, random: u64) -> Option<&'t WeightedCluster> {
    match &found.route.action {
        Action::Forward(action) => match &action.cluster {
            ClusterSpecifier::Weighted(weighted) => pick_cluster(weighted, random),
            ClusterSpecifier::Header(_) | ClusterSpecifier::Name(_) => None,
        },
        Action::Direct(_) | Action::Redirect(_) => None,
    }
}

impl Exchange<'_> {
    /// The client, as `x-forwarded-for` tells where that is trusted: `xff_num_trusted_hops` proxies in front of this one vouch
    /// for it, besides this one where it has added the other end of the connection itself.
    fn client(&self) -> Option<IpAddr> {
        self.record.client.get().or_else(|| self.conn.downstream.remote.ip())
    }

    /// Whether it is one of so many requests.
    fn draws(&self, fraction: Fraction) -> bool {
        fraction.numerator >= fraction.denominator
            || fraction.numerator > 0 && fraction.hits(self.conn.worker.rng.borrow_mut().u64(..))
    }
}

impl Scope<'_> {
    /// Without what it borrows.
    fn detached<'t>(&self) -> Scope<'t> {
        Scope { table: None, place: self.place, number: self.number, route: None, host: None, weighted: None }
    }
}

/// Takes the head of a response through the filters, from the last to the first. `framing` is that of its body. `host`: where
/// it comes from, if not from here.
pub(super) fn encode(
    exchange: &Exchange<'_>,
    head: &mut ResponseHead,
    framing: Framing,
    host: Option<&Rc<Host>>,
) {
    let chain = &exchange.conn.manager.filters;
    let run = &exchange.filters;
    let mut response = Response { status: head.status, headers: &mut head.headers, framing, host };
    for (index, entry) in chain.entries.iter().enumerate().rev() {
        let scope = run.scope(index);
        if !scope.is_off(entry) {
            let state = run.states.get(index).unwrap_or(&State::Nothing);
            entry.filter.encode(exchange, &scope, state, &mut response);
        }
    }
}

/// Tells the filters that the exchange is over.
pub(super) fn finish(exchange: &Exchange<'_>) {
    for state in exchange.filters.states() {
        match state {
            State::Counting(call) => call.finish(exchange),
            State::Web(call) => call.finish(exchange),
            _ => {}
        }
    }
}

impl Run {
    /// What the filters remember, those that were discovered among them.
    fn states(&self) -> impl Iterator<Item = &State> {
        self.states.iter().map(|state| match state {
            State::Discovered(discovered) => &discovered.1,
            state => state,
        })
    }

    /// Whether a browser calls, which is told of errors in its own way.
    pub(super) fn is_web(&self) -> bool {
        self.states().any(|state| matches!(state, State::Web(_)))
    }
}
