//! TLS contexts, compiled: what a handshake needs, made by control and shared by all workers.

use std::{
    cell::RefCell,
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use culvert_model::{
    Address, CommonTls, DownstreamTls, Endpoint, SessionTickets, UpstreamTls, ValidationContext,
};
use rustls::{
    ClientConfig, Error, ServerConfig, SignatureScheme,
    client::{ClientSessionMemoryCache, ResolvesClientCert, Resumption},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use webpki::{CertRevocationList, OwnedCertRevocationList};

use super::{
    certificate::{CertificateInfo, sha256},
    params, san,
    tickets::{Binding, OwnKeys, Sessions, Tickets},
    verify::{ClientVerifier, Policy, Roots, ServerVerifier},
};

/// Why a context could not be compiled.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct ContextError(String);

impl ContextError {
    fn of(what: &str, why: impl fmt::Display) -> Self {
        Self(format!("{what}: {why}"))
    }
}

/// The bytes that a context refers to, read.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Material {
    /// In order of preference.
    pub certificates: Vec<CertificateBytes>,
    /// `trusted_ca`, PEM.
    pub trusted_ca: Option<Arc<[u8]>>,
    /// `crl`, PEM.
    pub crl: Option<Arc<[u8]>>,
    /// PEM, by trust domain.
    pub bundles: Vec<(String, Arc<[u8]>)>,
    /// `session_ticket_keys`, when they are a secret.
    pub ticket_keys: Option<Vec<Arc<[u8]>>>,
}

/// A certificate with its key.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct CertificateBytes {
    /// PEM, the leaf first.
    pub chain: Arc<[u8]>,
    /// PEM.
    pub key: Arc<[u8]>,
    /// DER.
    pub ocsp_staple: Option<Arc<[u8]>>,
}

/// What connections of a filter chain are accepted with.
pub struct ServerContext {
    pub(super) config: Arc<ServerConfig>,
    /// For a client that offers only protocols that are not configured; as in Envoy it gets none.
    pub(super) without_alpn: Option<Arc<ServerConfig>>,
    sessions: Option<Arc<Sessions>>,
    binding: Binding,
    resolver: Arc<Resolver>,
    /// For `/certs`.
    pub certificates: Certificates,
}

impl ServerContext {
    /// The certificate that a client is shown who asks for that name.
    pub(super) fn shown_for(&self, name: Option<&str>) -> Option<Arc<CertificateInfo>> {
        let shown = self.resolver.choose(name, &params::SIGALGS.map(|(scheme, _)| scheme));
        shown.map(|entry| entry.info.clone())
    }
}

/// What connections to endpoints are made with.
pub struct ClientContext {
    configs: ClientConfigs,
    /// For servers whose certificate has to be for the name that a request asks for; made for the first of them.
    strict: OnceLock<ClientConfigs>,
    verifier: ServerVerifier,
    sni: Option<ServerName<'static>>,
    auto_host_sni: bool,
    max_sessions: usize,
    /// For `/certs`.
    pub certificates: Certificates,
}

/// A configuration with SNI, and the same without.
struct ClientConfigs {
    with_sni: Arc<ClientConfig>,
    nameless: Arc<ClientConfig>,
}

impl ClientConfigs {
    fn new(config: ClientConfig) -> Self {
        let mut nameless = config.clone();
        nameless.enable_sni = false;
        Self { with_sni: Arc::new(config), nameless: Arc::new(nameless) }
    }

    fn get(&self, name: &ServerName<'_>) -> &Arc<ClientConfig> {
        if matches!(name, ServerName::DnsName(_)) { &self.with_sni } else { &self.nameless }
    }
}

/// The server that a connection is made to.
#[derive(Clone, Copy, Debug)]
pub struct Server<'a> {
    /// The endpoint's hostname; may be empty.
    pub hostname: &'a str,
    /// The endpoint's address, for a certificate to be for where there is no name.
    pub ip: IpAddr,
    /// The SNI that a request asks for.
    pub sni: Option<&'a str>,
    /// What the certificate has to be for, besides what is configured, because a request asks for it.
    pub san: Option<&'a str>,
    /// Protocols to agree on when none are configured (`alpn_protocols`).
    pub alpn: &'a [&'a [u8]],
}

impl<'a> Server<'a> {
    /// An endpoint, by what is known of itself.
    pub fn of(endpoint: &'a Endpoint) -> Self {
        let ip = match &endpoint.address {
            Address::Ip(address) => address.ip(),
            Address::Pipe { .. } => Ipv4Addr::UNSPECIFIED.into(),
        };
        Self { hostname: &endpoint.hostname, ip, sni: None, san: None, alpn: &[] }
    }
}

impl ClientContext {
    /// The configuration and the name to connect with.
    ///
    /// # Errors
    /// A request asks for what is not the name of a host.
    pub fn for_server(&self, server: &Server<'_>) -> Result<(Arc<ClientConfig>, ServerName<'static>), Error> {
        let name = match server.sni {
            Some(sni) => asked_for(sni)?,
            None => {
                let own = self.auto_host_sni && !server.hostname.is_empty();
                let own = own.then(|| ServerName::try_from(server.hostname.to_owned()).ok()).flatten();
                let configured = own.or_else(|| self.sni.clone());
                configured.unwrap_or_else(|| ServerName::IpAddress(server.ip.into()))
            }
        };
        let Some(san) = server.san else { return Ok((self.configs.get(&name).clone(), name)) };
        let san = asked_for(san)?;
        if san == name {
            let strict = || self.with_verifier(self.verifier.for_asked_name());
            return Ok((self.strict.get_or_init(strict).get(&name).clone(), name));
        }
        // Every request may ask for another one: no session is kept.
        let mut config = ClientConfig::clone(self.configs.get(&name));
        config.resumption = Resumption::disabled();
        config.dangerous().set_certificate_verifier(Arc::new(self.verifier.for_name(san)));
        Ok((Arc::new(config), name))
    }

    /// The same with another verifier, and sessions of its own: those of others say nothing to it.
    fn with_verifier(&self, verifier: ServerVerifier) -> ClientConfigs {
        let mut config = ClientConfig::clone(&self.configs.with_sni);
        config.resumption = resumption(self.max_sessions);
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        ClientConfigs::new(config)
    }
}

fn asked_for(name: &str) -> Result<ServerName<'static>, Error> {
    ServerName::try_from(name.to_owned()).map_err(|_| {
        Error::General(format!("{name:?}, which the request asks for, is not the name of a host"))
    })
}

fn resumption(max_sessions: usize) -> Resumption {
    match max_sessions {
        0 => Resumption::disabled(),
        // The store counts servers, and keeps as many tickets as it likes for each.
        max => Resumption::store(Arc::new(ClientSessionMemoryCache::new(max.max(8)))),
    }
}

/// The certificates of a context.
#[derive(Clone, Debug, Default)]
pub struct Certificates {
    /// Its own.
    pub own: Vec<Arc<CertificateInfo>>,
    /// Those it trusts.
    pub trusted: Vec<Arc<CertificateInfo>>,
    /// Where each of its own was read from.
    pub own_paths: Vec<String>,
    /// The secret that each of its own came as; empty for none.
    pub own_names: Vec<String>,
    /// Where those it trusts were read from.
    pub trusted_path: String,
    /// The secret that those it trusts came as; empty for none.
    pub trusted_name: String,
}

/// A context that may not be there yet, and that may be replaced while connections go on with the one they have.
///
/// The lock is taken once for each new connection, never for a request.
#[derive(Debug)]
pub struct Slot<C>(Mutex<Option<Arc<C>>>);

impl<C> Slot<C> {
    /// Whether both are one place, or none.
    pub fn is_same(one: Option<&Arc<Self>>, other: Option<&Arc<Self>>) -> bool {
        match (one, other) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        }
    }
}

impl<C> Default for Slot<C> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<C> Slot<C> {
    /// The context in force; `None` while a secret is missing.
    pub fn get(&self) -> Option<Arc<C>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces it.
    pub fn set(&self, context: Arc<C>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(context);
    }
}

/// What the client said in the handshake that this thread is working on.
pub(super) struct Hello {
    pub(super) sni: Option<String>,
    pub(super) local: Arc<CertificateInfo>,
}

thread_local! {
    static HELLO: RefCell<Option<Hello>> = const { RefCell::new(None) };
}

/// What [`Resolver`] saw since this was last asked.
pub(super) fn take_hello() -> Option<Hello> {
    HELLO.with_borrow_mut(Option::take)
}

/// Compiles a downstream context. `scope` names where it belongs: tickets issued there are good only there. Sessions of
/// `before` are kept when they mean the same.
///
/// # Errors
/// What is wrong with the certificates, keys or lists.
pub fn server(
    tls: &DownstreamTls,
    validation: Option<&ValidationContext>,
    material: &Material,
    scope: &str,
    keys: &Arc<OwnKeys>,
    before: Option<&ServerContext>,
) -> Result<ServerContext, ContextError> {
    let provider = Arc::new(params::provider(&tls.common));
    let (policy, trusted) = policy(validation, material)?;
    let verifier = ClientVerifier::new(policy, tls.require_client_certificate, provider.clone());
    let resolver = Arc::new(Resolver::new(&material.certificates, &provider)?);
    if resolver.entries.is_empty() {
        return Err(ContextError("no certificate is given".to_owned()));
    }
    let own = resolver.entries.iter().map(|entry| entry.info.clone()).collect();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&params::versions(&tls.common))
        .map_err(|error| ContextError::of("tls_params", error))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(resolver.clone());
    config.ignore_client_order = true;
    let binding = binding(scope, tls, validation, material);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    let sessions = (!tls.disable_stateful_resumption).then(|| {
        let kept = before.filter(|before| before.binding == binding).and_then(|it| it.sessions.clone());
        kept.unwrap_or_else(|| Arc::new(Sessions::new(tls.session_timeout)))
    });
    if let Some(sessions) = &sessions {
        config.session_storage = sessions.clone();
    }
    let bad_key = || ContextError("session_ticket_keys: a key has 80 bytes".to_owned());
    match (&tls.tickets, &material.ticket_keys) {
        (SessionTickets::Disabled, _) => {}
        (SessionTickets::Keys(keys), _) | (SessionTickets::Sds(_), Some(keys)) => {
            let tickets = Tickets::configured(keys, binding, tls.session_timeout).ok_or_else(bad_key)?;
            config.ticketer = Arc::new(tickets);
        }
        (SessionTickets::Own | SessionTickets::Sds(_), _) => {
            config.ticketer = Arc::new(Tickets::own(keys.clone(), binding, tls.session_timeout));
        }
    }
    let without_alpn = (!tls.common.alpn.is_empty()).then(|| Arc::new(config.clone()));
    config.alpn_protocols = alpn(&tls.common);
    let certificates = Certificates { own, trusted, ..Certificates::default() };
    Ok(ServerContext { config: Arc::new(config), without_alpn, sessions, binding, resolver, certificates })
}

/// Compiles an upstream context.
///
/// # Errors
/// See [`server`].
pub fn client(
    tls: &UpstreamTls,
    validation: Option<&ValidationContext>,
    material: &Material,
) -> Result<ClientContext, ContextError> {
    let provider = Arc::new(params::provider(&tls.common));
    let (policy, trusted) = policy(validation, material)?;
    let verifier = ServerVerifier::new(policy, tls.auto_sni_san_validation, provider.clone());
    let resolver = Arc::new(Resolver::new(&material.certificates, &provider)?);
    let own = resolver.entries.iter().map(|entry| entry.info.clone()).collect();
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&params::versions(&tls.common))
        .map_err(|error| ContextError::of("tls_params", error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier.clone()))
        .with_client_cert_resolver(resolver);
    config.alpn_protocols = alpn(&tls.common);
    let max_sessions = tls.max_session_keys as usize;
    config.resumption = resumption(max_sessions);
    let sni = match tls.sni.as_str() {
        "" => None,
        name => {
            let parsed = ServerName::try_from(name.to_owned());
            Some(parsed.map_err(|_| ContextError(format!("sni: {name:?} is not a host name")))?)
        }
    };
    Ok(ClientContext {
        configs: ClientConfigs::new(config),
        strict: OnceLock::new(),
        verifier,
        sni,
        max_sessions,
        auto_host_sni: tls.auto_host_sni,
        certificates: Certificates { own, trusted, ..Certificates::default() },
    })
}

fn alpn(common: &CommonTls) -> Vec<Vec<u8>> {
    common.alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect()
}

/// Certificates of the system's authorities. A configuration with thousands of clusters has thousands of contexts: they are
/// read once for all that are made at a time.
fn system_roots() -> Vec<CertificateDer<'static>> {
    static LAST: Mutex<Option<(Instant, Vec<CertificateDer<'static>>)>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((at, roots)) = &*last
        && at.elapsed() < SYSTEM_ROOTS_AGE
    {
        return roots.clone();
    }
    let roots = rustls_native_certs::load_native_certs().certs;
    *last = Some((Instant::now(), roots.clone()));
    roots
}

/// How old the system's roots may be, as they were read.
const SYSTEM_ROOTS_AGE: Duration = Duration::from_secs(10);

/// Everything that a full handshake would have looked at.
fn binding(
    scope: &str,
    tls: &DownstreamTls,
    validation: Option<&ValidationContext>,
    material: &Material,
) -> Binding {
    let mut text = Vec::new();
    let mut part = |bytes: &[u8]| {
        text.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        text.extend_from_slice(bytes);
    };
    part(scope.as_bytes());
    part(&[u8::from(tls.require_client_certificate)]);
    part(format!("{validation:?}").as_bytes());
    part(material.trusted_ca.as_deref().unwrap_or_default());
    part(material.crl.as_deref().unwrap_or_default());
    for (domain, bundle) in &material.bundles {
        part(domain.as_bytes());
        part(bundle);
    }
    sha256(&text)
}

fn policy(
    validation: Option<&ValidationContext>,
    material: &Material,
) -> Result<(Policy, Vec<Arc<CertificateInfo>>), ContextError> {
    let none = ValidationContext::default();
    let context = validation.unwrap_or(&none);
    let mut trusted = Vec::new();
    let mut bundle = |what: &str, pem: &[u8]| {
        let (certificates, crls) = certificates(what, pem)?;
        trusted.extend(certificates.iter().filter_map(CertificateInfo::parse).map(Arc::new));
        Ok::<_, ContextError>((certificates, crls))
    };
    let (mut roots, mut crls): (Option<Vec<CertificateDer<'static>>>, _) = (None, Vec::new());
    if let Some(pem) = &material.trusted_ca {
        let (certificates, more) = bundle("trusted_ca", pem)?;
        roots = Some(certificates);
        crls.extend(more);
    }
    if context.system_roots {
        let system = system_roots();
        if system.is_empty() {
            return Err(ContextError("system_root_certs: the system has none".to_owned()));
        }
        roots.get_or_insert_default().extend(system);
    }
    let mut spiffe = std::collections::HashMap::new();
    for (domain, pem) in &material.bundles {
        let (certificates, _) = bundle(&format!("trust domain {domain}"), pem)?;
        spiffe.insert(domain.clone(), to_roots("trust_bundle", certificates)?);
    }
    if let Some(pem) = &material.crl {
        let before = crls.len();
        for der in CertificateRevocationListDer::pem_slice_iter(pem) {
            crls.push(der.map_err(|error| ContextError::of("crl", error))?);
        }
        if crls.len() == before {
            return Err(ContextError("crl: no revocation list in it".to_owned()));
        }
    }
    let crls: Result<Vec<_>, ContextError> = crls
        .iter()
        .map(|der| {
            let list = OwnedCertRevocationList::from_der(der);
            Ok(CertRevocationList::from(list.map_err(|error| ContextError::of("crl", error))?))
        })
        .collect();
    let roots = match roots {
        // Those of the system may hold what is not understood here; one that was configured is an error.
        Some(roots) if context.system_roots && material.trusted_ca.is_none() => {
            let good: Vec<_> =
                roots.into_iter().filter(|der| webpki::anchor_from_trusted_cert(der).is_ok()).collect();
            Some(to_roots("system_root_certs", good)?)
        }
        Some(roots) => Some(to_roots("trusted_ca", roots)?),
        None => None,
    };
    let policy = Policy {
        roots,
        spiffe,
        crls: crls?,
        only_leaf_crl: context.only_leaf_crl,
        sans: context.sans.clone(),
        certificate_hashes: context.certificate_hashes.clone(),
        spki_hashes: context.spki_hashes.clone(),
        allow_expired: context.allow_expired,
        accept_untrusted: context.accept_untrusted,
        max_depth: context.max_depth,
    };
    Ok((policy, trusted))
}

fn to_roots(what: &str, certificates: Vec<CertificateDer<'static>>) -> Result<Roots, ContextError> {
    Roots::new(certificates).map_err(|error| ContextError::of(what, error))
}

type Bundle = (Vec<CertificateDer<'static>>, Vec<CertificateRevocationListDer<'static>>);

/// The certificates and revocation lists of a bundle.
fn certificates(what: &str, pem: &[u8]) -> Result<Bundle, ContextError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| ContextError::of(what, error))?;
    if found.is_empty() {
        return Err(ContextError::of(what, "no certificate in it"));
    }
    let crls: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
    Ok((found, crls.map_err(|error| ContextError::of(what, error))?))
}

/// Chooses among the own certificates.
#[derive(Debug)]
struct Resolver {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    key: Arc<CertifiedKey>,
    info: Arc<CertificateInfo>,
    is_ecdsa: bool,
}

impl Resolver {
    fn new(certificates: &[CertificateBytes], provider: &CryptoProvider) -> Result<Self, ContextError> {
        let entries: Result<Vec<_>, _> = certificates.iter().map(|it| Entry::new(it, provider)).collect();
        Ok(Self { entries: entries? })
    }

    /// The first whose names stand for `name`, exactly before by wildcard, else the first of all; one with an ECDSA key
    /// before its equals when the peer can verify that.
    fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<&Entry> {
        let usable = |entry: &&Entry| entry.key.key.choose_scheme(schemes).is_some();
        let exact = |entry: &Entry, name: &str| {
            entry.info.dns_sans.iter().any(|known| known.eq_ignore_ascii_case(name))
        };
        let wild = |entry: &Entry, name: &str| {
            entry.info.dns_sans.iter().any(|known| san::dns_name_matches(name, known))
        };
        let rank = |entry: &Entry| match name {
            Some(name) if exact(entry, name) => 0,
            Some(name) if wild(entry, name) => 1,
            _ => 2,
        };
        self.entries.iter().filter(usable).min_by_key(|entry| (rank(entry), !entry.is_ecdsa))
    }
}

impl Entry {
    fn new(bytes: &CertificateBytes, provider: &CryptoProvider) -> Result<Self, ContextError> {
        let (chain, _) = certificates("certificate_chain", &bytes.chain)?;
        let key = PrivateKeyDer::from_pem_slice(&bytes.key)
            .map_err(|error| ContextError::of("private_key", error))?;
        let info = chain.first().and_then(CertificateInfo::parse);
        let info = info.ok_or_else(|| ContextError("certificate_chain: cannot be read".to_owned()))?;
        let key = provider.key_provider.load_private_key(key);
        let key = key.map_err(|error| ContextError::of("private_key", error))?;
        // Not by rustls, to which a certificate of version 1 is none.
        if key.public_key().is_some_and(|key| sha256(&key) != info.spki_sha256) {
            return Err(ContextError("private_key: it does not belong to the certificate".to_owned()));
        }
        let mut key = CertifiedKey::new(chain, key);
        key.ocsp = bytes.ocsp_staple.as_deref().map(<[u8]>::to_vec);
        let is_ecdsa = key.key.algorithm() == rustls::SignatureAlgorithm::ECDSA;
        Ok(Self { key: Arc::new(key), info: Arc::new(info), is_ecdsa })
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let entry = self.choose(hello.server_name(), hello.signature_schemes())?;
        let seen = Hello { sni: hello.server_name().map(str::to_owned), local: entry.info.clone() };
        HELLO.set(Some(seen));
        Some(entry.key.clone())
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.choose(None, schemes).map(|entry| entry.key.clone())
    }

    fn has_certs(&self) -> bool {
        !self.entries.is_empty()
    }
}
