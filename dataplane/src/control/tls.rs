//! TLS contexts: what they refer to is gathered, they are compiled when any of it changes, and put into their places.

mod expiry;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use culvert_model::{
    CertificateSource, Cluster, CommonTls, Config, Discovered, DownstreamTls, Listener, Secret, SecretData,
    SecretRef, SessionTickets, TlsCertificate, UpstreamTls, ValidationContext, ValidationSource,
};

use expiry::Expiries;
use serde_json::{Value, json};

use crate::{
    observe::{names::listener_scope, stats::Registry},
    stat_set,
    tls::{self, CertificateBytes, CertificateInfo, Certificates, ContextError, Contexts, Material},
};

stat_set! {
    /// Scope `listener.<address>.server_ssl_socket_factory` or `cluster.<name>.client_ssl_socket_factory`.
    struct FactoryStats {
        counter ssl_context_update_by_sds,
        /// Updates that could not be used; the context before them serves on.
        counter ssl_context_update_failed,
    }
}

/// The contexts of the configuration in force.
pub(super) struct TlsControl {
    contexts: Arc<Contexts>,
    registry: Registry,
    files: Files,
    entries: HashMap<usize, Entry>,
    stats: HashMap<String, Arc<FactoryStats>>,
    expiries: Expiries,
    applied: Applied,
}

/// The parts of a configuration that contexts are made of. The others are not kept in memory for their sake.
#[derive(Default)]
struct Applied {
    listeners: Arc<Vec<Arc<Listener>>>,
    clusters: Arc<Vec<Arc<Cluster>>>,
    secrets: Discovered<Secret>,
}

/// A context that was compiled.
struct Entry {
    user: User,
    inputs: Option<Inputs>,
    certificates: Certificates,
    /// What was wrong last, so that it is logged once.
    error: Option<String>,
}

/// Whose context it is.
#[derive(Clone)]
enum User {
    Chain { tls: Arc<DownstreamTls>, scope: String, title: String, stats: String },
    Cluster { tls: Arc<UpstreamTls>, title: String, stats: String },
}

/// All that a context is compiled from, besides its configuration.
#[derive(Clone, PartialEq)]
struct Inputs {
    material: Material,
    validation: Option<ValidationContext>,
    own_paths: Vec<String>,
    own_names: Vec<String>,
    trusted_path: String,
    trusted_name: String,
}

/// Why there are no inputs.
enum Missing {
    File(String),
    Secret(String),
    Wrong(String),
}

impl TlsControl {
    pub(super) fn new(contexts: Arc<Contexts>, registry: Registry) -> Self {
        Self {
            contexts,
            registry,
            files: Files::default(),
            entries: HashMap::new(),
            stats: HashMap::new(),
            expiries: Expiries::default(),
            applied: Applied::default(),
        }
    }

    /// Makes sure that every context of `config` is compiled. Call it before `config` is published.
    /// Whether anything had to be looked at.
    pub(super) fn apply(&mut self, config: &Config) -> bool {
        let same = Arc::ptr_eq(&self.applied.listeners, &config.listeners)
            && Arc::ptr_eq(&self.applied.clusters, &config.clusters)
            && Arc::ptr_eq(&self.applied.secrets, &config.secrets);
        if !same {
            self.applied = Applied {
                listeners: config.listeners.clone(),
                clusters: config.clusters.clone(),
                secrets: config.secrets.clone(),
            };
            self.compile();
        }
        !same
    }

    /// Looks at the files that contexts were read from; whether any has changed.
    pub(super) fn look_at_files(&mut self) -> bool {
        let changed = self.files.changed();
        if changed {
            self.compile();
        }
        changed
    }

    /// The certificates in use, by whom.
    pub(super) fn certificates(&self) -> Vec<Certificates> {
        self.entries.values().map(|entry| entry.certificates.clone()).collect()
    }

    /// Whole days until the first certificate expires; `None` without certificates.
    pub(super) fn days_until_expiry(&self) -> Option<u64> {
        let all = self.entries.values().flat_map(|entry| {
            entry.certificates.own.iter().chain(&entry.certificates.trusted).map(|info| info.not_after)
        });
        all.min().map(days_until)
    }

    fn compile(&mut self) {
        let users = users(&self.applied);
        let used: HashSet<_> = users.iter().map(User::key).collect();
        let mut leaving = Leaving::default();
        for (key, entry) in self.entries.iter().filter(|(key, _)| !used.contains(key)) {
            leaving.add(*key, &entry.user);
        }
        self.files.begin();
        for user in users {
            let key = user.key();
            let known = self.entries.remove(&key).or_else(|| self.take_equal(&user, &mut leaving));
            let mut entry = known.unwrap_or_else(|| Entry {
                user: user.clone(),
                inputs: None,
                certificates: Certificates::default(),
                error: None,
            });
            entry.user = user;
            self.compile_one(&mut entry);
            self.entries.insert(key, entry);
        }
        self.files.end();
        self.entries.retain(|key, _| used.contains(key));
        let scopes: HashSet<_> = self.entries.values().map(|entry| entry.user.stats()).collect();
        self.stats.retain(|scope, _| scopes.contains(scope.as_str()));
        self.contexts.prune();
        self.show_expiries();
    }

    fn show_expiries(&mut self) {
        let mut times = HashMap::<String, BTreeMap<String, i64>>::new();
        for entry in self.entries.values() {
            let scope = entry.user.stats().rsplit_once('.').map_or("", |(scope, _)| scope);
            let times = times.entry(scope.to_owned()).or_default();
            let Certificates { own, trusted, own_names, trusted_name, .. } = &entry.certificates;
            for (info, name) in own.iter().zip(own_names) {
                expiry::add(times, name, std::slice::from_ref(info), "unnamed_cert");
            }
            expiry::add(times, trusted_name, trusted, "unnamed_ca_cert");
        }
        times.retain(|_, times| !times.is_empty());
        self.expiries.show(times, &self.registry);
    }

    /// The entry of an earlier version of the same configuration; the two share their place from now on. Connections of
    /// chains that stayed ask with the earlier one.
    fn take_equal(&mut self, user: &User, leaving: &mut Leaving) -> Option<Entry> {
        let key = leaving.take(user, |key| {
            // Not one that was taken before.
            self.entries.get(&key).is_some_and(|entry| entry.user.equals(user))
        })?;
        let entry = self.entries.remove(&key)?;
        match (&entry.user, user) {
            (User::Chain { tls: old, .. }, User::Chain { tls: new, .. }) => {
                self.contexts.share_server(old, new);
            }
            (User::Cluster { tls: old, .. }, User::Cluster { tls: new, .. }) => {
                self.contexts.share_client(old, new);
            }
            _ => return None,
        }
        Some(entry)
    }

    fn compile_one(&mut self, entry: &mut Entry) {
        let (common, tickets) = entry.user.parts();
        let inputs = match gather(common, tickets, &self.applied.secrets, &mut self.files) {
            Ok(inputs) => inputs,
            Err(missing) => {
                let text = match &missing {
                    Missing::File(text) | Missing::Secret(text) | Missing::Wrong(text) => text.clone(),
                };
                return entry.fail(text);
            }
        };
        if entry.inputs.as_ref() == Some(&inputs) {
            entry.error = None;
            return;
        }
        let again = entry.inputs.is_some();
        let outcome = self.put(&entry.user, &inputs);
        let stats = self.stats.entry(entry.user.stats().to_owned()).or_insert_with(|| {
            let stats = Arc::new(FactoryStats::default());
            self.registry.register(entry.user.stats(), stats.clone());
            stats
        });
        match outcome {
            Ok(certificates) => {
                entry.certificates = Certificates {
                    own_paths: inputs.own_paths.clone(),
                    own_names: inputs.own_names.clone(),
                    trusted_path: inputs.trusted_path.clone(),
                    trusted_name: inputs.trusted_name.clone(),
                    ..certificates
                };
                entry.inputs = Some(inputs);
                entry.error = None;
                if again || entry.user.uses_secrets() {
                    stats.ssl_context_update_by_sds.inc();
                }
            }
            Err(error) => {
                stats.ssl_context_update_failed.inc();
                entry.fail(error.to_string());
            }
        }
    }

    fn put(&self, user: &User, inputs: &Inputs) -> Result<Certificates, ContextError> {
        let validation = inputs.validation.as_ref();
        match user {
            User::Chain { tls, scope, .. } => {
                let slot = self.contexts.server(tls);
                let before = slot.get();
                let keys = &self.contexts.keys;
                let context = tls::server(tls, validation, &inputs.material, scope, keys, before.as_deref())?;
                let certificates = context.certificates.clone();
                slot.set(Arc::new(context));
                Ok(certificates)
            }
            User::Cluster { tls, .. } => {
                let context = tls::client(tls, validation, &inputs.material)?;
                let certificates = context.certificates.clone();
                self.contexts.client(tls).set(Arc::new(context));
                Ok(certificates)
            }
        }
    }
}

/// Contexts that nobody uses any more, by what they say.
#[derive(Default)]
struct Leaving(HashMap<u64, Vec<usize>>);

impl Leaving {
    fn add(&mut self, key: usize, user: &User) {
        for hash in user.hashes() {
            self.0.entry(hash).or_default().push(key);
        }
    }

    /// One that says the same as that of `user`: best the one that was in its place.
    fn take(&mut self, user: &User, is_right: impl Fn(usize) -> bool) -> Option<usize> {
        user.hashes().into_iter().find_map(|hash| {
            let keys = self.0.get_mut(&hash)?;
            std::iter::from_fn(|| keys.pop()).find(|key| is_right(*key))
        })
    }
}

impl Entry {
    fn fail(&mut self, text: String) {
        if self.error.as_deref() == Some(text.as_str()) {
            return;
        }
        let now = if self.inputs.is_some() { "the last good context serves on" } else { "it is not ready" };
        log::warn!(target: "tls", "{}: transport_socket: {text}; {now}", self.user.title());
        self.error = Some(text);
    }
}

impl User {
    fn key(&self) -> usize {
        match self {
            Self::Chain { tls, .. } => Arc::as_ptr(tls).addr(),
            Self::Cluster { tls, .. } => Arc::as_ptr(tls).addr(),
        }
    }

    /// Whether both are of one listener or cluster, and say the same.
    fn equals(&self, other: &Self) -> bool {
        self.stats() == other.stats()
            && match (self, other) {
                (Self::Chain { tls: a, .. }, Self::Chain { tls: b, .. }) => a == b,
                (Self::Cluster { tls: a, .. }, Self::Cluster { tls: b, .. }) => a == b,
                _ => false,
            }
    }

    /// With and without its title; the same for two that are equal.
    fn hashes(&self) -> [u64; 2] {
        let mut hasher = DefaultHasher::new();
        self.stats().hash(&mut hasher);
        match self {
            Self::Chain { tls, .. } => tls.hash(&mut hasher),
            Self::Cluster { tls, .. } => tls.hash(&mut hasher),
        }
        let mut titled = hasher.clone();
        self.title().hash(&mut titled);
        [titled.finish(), hasher.finish()]
    }

    fn title(&self) -> &str {
        match self {
            Self::Chain { title, .. } | Self::Cluster { title, .. } => title,
        }
    }

    fn stats(&self) -> &str {
        match self {
            Self::Chain { stats, .. } | Self::Cluster { stats, .. } => stats,
        }
    }

    fn parts(&self) -> (&CommonTls, Option<&SessionTickets>) {
        match self {
            Self::Chain { tls, .. } => (&tls.common, Some(&tls.tickets)),
            Self::Cluster { tls, .. } => (&tls.common, None),
        }
    }

    fn uses_secrets(&self) -> bool {
        let (common, tickets) = self.parts();
        common.certificates.iter().any(|source| matches!(source, CertificateSource::Sds(_)))
            || matches!(common.validation, ValidationSource::Sds(_) | ValidationSource::Combined { .. })
            || matches!(tickets, Some(SessionTickets::Sds(_)))
    }
}

fn users(config: &Applied) -> Vec<User> {
    let mut users = Vec::new();
    for listener in config.listeners.iter() {
        let scope = match listener.stat_prefix.as_str() {
            "" => listener_scope(&listener.address),
            prefix => format!("listener.{prefix}"),
        };
        for (index, chain) in listener.filter_chains.iter().chain(&listener.default_filter_chain).enumerate()
        {
            let Some(tls) = &chain.tls else { continue };
            let chain = if chain.name.is_empty() { index.to_string() } else { chain.name.clone() };
            users.push(User::Chain {
                tls: tls.clone(),
                scope: format!("{}/{chain}", listener.name),
                title: format!("listener {:?}: filter chain {chain}", listener.name),
                stats: format!("{scope}.server_ssl_socket_factory"),
            });
        }
    }
    for cluster in config.clusters.iter() {
        let title = format!("cluster {:?}", cluster.name);
        let matched = cluster.transport_socket_matches.iter().map(|socket| {
            (socket.tls.as_ref(), format!("{title}: transport_socket_matches {:?}", socket.name))
        });
        for (tls, title) in matched.chain([(cluster.tls.as_ref(), title.clone())]) {
            let Some(tls) = tls else { continue };
            users.push(User::Cluster {
                tls: tls.clone(),
                title,
                stats: format!("cluster.{}.client_ssl_socket_factory", cluster.stat_name),
            });
        }
    }
    users
}

fn gather(
    common: &CommonTls,
    tickets: Option<&SessionTickets>,
    secrets: &Discovered<Secret>,
    files: &mut Files,
) -> Result<Inputs, Missing> {
    let mut material = Material::default();
    let (mut own_paths, mut own_names, mut trusted_path) = (Vec::new(), Vec::new(), String::new());
    for source in &common.certificates {
        let certificate = match source {
            CertificateSource::Inline(certificate) => certificate.clone(),
            CertificateSource::Sds(reference) => match &*find(secrets, reference)? {
                Secret::Certificate(certificate) => certificate.clone(),
                _ => return Err(Missing::Wrong(format!("secret {:?} is no certificate", reference.name))),
            },
        };
        own_paths.push(place(&certificate.chain));
        own_names.push(match source {
            CertificateSource::Inline(_) => String::new(),
            CertificateSource::Sds(reference) => reference.name.clone(),
        });
        material.certificates.push(certificate_bytes(&certificate, files)?);
    }
    let validation = match &common.validation {
        ValidationSource::None => None,
        ValidationSource::Inline(context) => Some(ValidationContext::clone(context)),
        ValidationSource::Sds(reference) => Some(ValidationContext::clone(&*of_secret(secrets, reference)?)),
        ValidationSource::Combined { default, secret } => Some(merge(default, &*of_secret(secrets, secret)?)),
    };
    if let Some(context) = &validation {
        trusted_path = context.trusted_ca.as_ref().map(place).unwrap_or_default();
        material.trusted_ca = optional(context.trusted_ca.as_ref(), files)?;
        material.crl = optional(context.crl.as_ref(), files)?;
        for bundle in &context.spiffe {
            material.bundles.push((bundle.trust_domain.clone(), files.read(&bundle.bundle)?));
        }
        let trusts = context.trusted_ca.is_some() || context.system_roots || !context.spiffe.is_empty();
        if !context.sans.is_empty() && !trusts {
            return Err(Missing::Wrong(
                "verification by subject alternative name without trusted CA is insecure and not allowed"
                    .to_owned(),
            ));
        }
    }
    if let Some(SessionTickets::Sds(reference)) = tickets {
        match &*find(secrets, reference)? {
            Secret::TicketKeys(keys) => material.ticket_keys = Some(keys.clone()),
            _ => {
                return Err(Missing::Wrong(format!("secret {:?} is no session ticket keys", reference.name)));
            }
        }
    }
    let trusted_name = match &common.validation {
        ValidationSource::Sds(reference) | ValidationSource::Combined { secret: reference, .. } => {
            reference.name.clone()
        }
        ValidationSource::Inline(_) | ValidationSource::None => String::new(),
    };
    Ok(Inputs { material, validation, own_paths, own_names, trusted_path, trusted_name })
}

/// Where data comes from, as `/certs` calls it.
fn place(data: &SecretData) -> String {
    match data {
        SecretData::File(path) => path.display().to_string(),
        SecretData::Inline(_) => "<inline>".to_owned(),
    }
}

fn find(secrets: &Discovered<Secret>, reference: &SecretRef) -> Result<Arc<Secret>, Missing> {
    let missing = || Missing::Secret(format!("secret {:?} has not come", reference.name));
    secrets.get(&reference.key()).cloned().ok_or_else(missing)
}

fn of_secret(secrets: &Discovered<Secret>, reference: &SecretRef) -> Result<Arc<ValidationContext>, Missing> {
    match &*find(secrets, reference)? {
        Secret::Validation(context) => Ok(context.clone()),
        _ => Err(Missing::Wrong(format!("secret {:?} is no validation context", reference.name))),
    }
}

/// The secret merged over the default, as protobuf merges messages: lists are appended, what is set wins.
fn merge(default: &ValidationContext, secret: &ValidationContext) -> ValidationContext {
    let both = |a: &[[u8; 32]], b: &[[u8; 32]]| [a, b].concat();
    ValidationContext {
        trusted_ca: secret.trusted_ca.clone().or_else(|| default.trusted_ca.clone()),
        system_roots: default.system_roots || secret.system_roots,
        crl: secret.crl.clone().or_else(|| default.crl.clone()),
        only_leaf_crl: default.only_leaf_crl || secret.only_leaf_crl,
        sans: default.sans.iter().chain(&secret.sans).cloned().collect(),
        certificate_hashes: both(&default.certificate_hashes, &secret.certificate_hashes),
        spki_hashes: both(&default.spki_hashes, &secret.spki_hashes),
        allow_expired: default.allow_expired || secret.allow_expired,
        accept_untrusted: default.accept_untrusted || secret.accept_untrusted,
        max_depth: secret.max_depth.or(default.max_depth),
        spiffe: if secret.spiffe.is_empty() { default.spiffe.clone() } else { secret.spiffe.clone() },
        watched_directory: secret.watched_directory.clone().or_else(|| default.watched_directory.clone()),
    }
}

fn certificate_bytes(certificate: &TlsCertificate, files: &mut Files) -> Result<CertificateBytes, Missing> {
    Ok(CertificateBytes {
        chain: files.read(&certificate.chain)?,
        key: files.read(&certificate.key)?,
        ocsp_staple: optional(certificate.ocsp_staple.as_ref(), files)?,
    })
}

fn optional(data: Option<&SecretData>, files: &mut Files) -> Result<Option<Arc<[u8]>>, Missing> {
    data.map(|data| files.read(data)).transpose()
}

/// `admin.v3.Certificates`, for `/certs`.
pub(super) fn to_json(contexts: &[Certificates]) -> Value {
    let details = |info: &CertificateInfo, path: &str| {
        let dns = info.dns_sans.iter().map(|name| json!({ "dns": name }));
        let uri = info.uri_sans.iter().map(|name| json!({ "uri": name }));
        let ip = info.ip_sans.iter().map(|ip| json!({ "ip_address": ip.to_string() }));
        json!({
            "path": path,
            "serial_number": info.serial,
            "subject_alt_names": dns.chain(uri).chain(ip).collect::<Vec<_>>(),
            "days_until_expiration": days_until(info.not_after).to_string(),
            "valid_from": timestamp(info.not_before),
            "expiration_time": timestamp(info.not_after),
        })
    };
    let context = |context: &Certificates| {
        let own = context.own.iter().zip(&context.own_paths);
        json!({
            "ca_cert": context.trusted.iter().map(|info| details(info, &context.trusted_path)).collect::<Vec<_>>(),
            "cert_chain": own.map(|(info, path)| details(info, path)).collect::<Vec<_>>(),
        })
    };
    json!({ "certificates": contexts.iter().map(context).collect::<Vec<_>>() })
}

/// RFC 3339, in UTC.
fn timestamp(seconds: i64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let text = httpdate::HttpDate::from(time).to_string();
    // "Sun, 06 Nov 1994 08:49:37 GMT"
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let parts: Vec<&str> = text.split(' ').collect();
    let [_, day, month, year, clock, _] = parts.as_slice() else { return text };
    let month = MONTHS.iter().position(|known| known == month).unwrap_or(0) + 1;
    format!("{year}-{month:02}-{day}T{clock}Z")
}

fn days_until(not_after: i64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs());
    u64::try_from(not_after).unwrap_or(0).saturating_sub(now) / (24 * 3_600)
}

/// Files that contexts are read from, with what they looked like then.
#[derive(Default)]
struct Files {
    known: HashMap<PathBuf, File>,
    used: HashSet<PathBuf>,
}

struct File {
    identity: Identity,
    contents: Result<Arc<[u8]>, String>,
}

/// What changes when a file is written or replaced; `None` when it is not there.
type Identity = Option<(u64, u64, i64, i64, u64)>;

impl Files {
    fn begin(&mut self) {
        self.used.clear();
    }

    fn end(&mut self) {
        let used = &self.used;
        self.known.retain(|path, _| used.contains(path));
    }

    fn read(&mut self, data: &SecretData) -> Result<Arc<[u8]>, Missing> {
        let path = match data {
            SecretData::Inline(bytes) => return Ok(bytes.clone()),
            SecretData::File(path) => path,
        };
        self.used.insert(path.clone());
        let file = self.known.entry(path.clone()).or_insert_with(|| File::read(path));
        file.contents.clone().map_err(|error| Missing::File(format!("{}: {error}", path.display())))
    }

    /// Whether any is another than it was. It is read anew.
    fn changed(&mut self) -> bool {
        let mut changed = false;
        for (path, file) in &mut self.known {
            if identity(path) != file.identity {
                let before = file.contents.clone();
                *file = File::read(path);
                changed |= before != file.contents;
            }
        }
        changed
    }
}

impl File {
    fn read(path: &Path) -> Self {
        // Before it is read: a change that comes in between is seen the next time.
        let identity = identity(path);
        let contents = fs::read(path).map(Arc::from).map_err(|error| error.to_string());
        Self { identity, contents }
    }
}

fn identity(path: &Path) -> Identity {
    let it = fs::metadata(path).ok()?;
    Some((it.dev(), it.ino(), it.mtime(), it.mtime_nsec(), it.size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_as_envoy_shows_them() {
        assert_eq!(timestamp(784_111_777), "1994-11-06T08:49:37Z");
    }

    fn config(chain: &str, key: &str, more: &str) -> Config {
        let quoted = |pem: &str| format!("\"{}\"", pem.replace('\n', "\\n"));
        let text = format!(
            "static_resources: {{listeners: [{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: \
             1}}}}, {more} filter_chains: [{{filters: [{{name: t, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: \
             c}}}}], transport_socket: {{name: tls, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: \
             {{tls_certificates: [{{certificate_chain: {{inline_string: {}}}, private_key: {{inline_string: \
             {}}}}}]}}}}}}}}]}}], clusters: [{{name: c}}]}}",
            quoted(chain),
            quoted(key)
        );
        let options = culvert_xds::LoadOptions { config_yaml: Some(text), ..Default::default() };
        culvert_xds::load_bootstrap(&options).unwrap().bootstrap.config
    }

    #[test]
    fn a_chain_that_an_update_left_alone_keeps_its_place() {
        let identity = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
            (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
        };
        let tls_of = |config: &Config| config.listeners[0].filter_chains[0].tls.clone().unwrap();
        let (chain, key) = identity();
        let contexts = Arc::new(Contexts::default());
        let mut control = TlsControl::new(contexts.clone(), Registry::new());
        let first = config(&chain, &key, "");
        control.apply(&first);
        let old = tls_of(&first);
        let slot = contexts.server(&old);
        let context = slot.get().expect("it is compiled");
        // The same context in another version of its listener.
        let second = config(&chain, &key, "tcp_backlog_size: 7,");
        control.apply(&second);
        assert!(!Arc::ptr_eq(&old, &tls_of(&second)));
        assert!(
            Arc::ptr_eq(&slot, &contexts.server(&old))
                && Arc::ptr_eq(&slot, &contexts.server(&tls_of(&second)))
        );
        assert!(Arc::ptr_eq(&context, &slot.get().unwrap()), "nothing was compiled anew");
        // Another certificate is another place, and the old one stays for whoever has it.
        let (chain, key) = identity();
        let third = config(&chain, &key, "");
        control.apply(&third);
        assert!(!Arc::ptr_eq(&slot, &contexts.server(&tls_of(&third))));
        assert!(Arc::ptr_eq(&context, &contexts.server(&old).get().unwrap()));
    }

    #[test]
    fn contexts_that_moved_keep_their_places() {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        // Chains that are told apart by their ciphers, the first ones of which are alike.
        let with = |config: &Config, curves: &[&str]| {
            let mut listener = Listener::clone(&config.listeners[0]);
            let chain = listener.filter_chains[0].clone();
            listener.filter_chains = curves
                .iter()
                .map(|curve| {
                    let mut chain = culvert_model::FilterChain::clone(&chain);
                    let mut tls = DownstreamTls::clone(chain.tls.as_ref().unwrap());
                    tls.common.curves = vec![(*curve).to_owned()];
                    chain.tls = Some(Arc::new(tls));
                    Arc::new(chain)
                })
                .collect();
            Config { listeners: Arc::new(vec![Arc::new(listener)]), ..config.clone() }
        };
        let contexts = Arc::new(Contexts::default());
        let slots = |config: &Config| -> Vec<_> {
            let chains = config.listeners[0].filter_chains.iter();
            chains.map(|chain| contexts.server(chain.tls.as_ref().unwrap())).collect()
        };
        let base = config(&pem, &key.serialize_pem(), "");
        let registry = Registry::new();
        let mut control = TlsControl::new(contexts.clone(), registry.clone());
        let first = with(&base, &["X25519", "X25519", "P-256"]);
        control.apply(&first);
        let before = slots(&first);
        // The same in place, and then in other places.
        let second = with(&base, &["X25519", "X25519", "P-256"]);
        control.apply(&second);
        let after = slots(&second);
        assert!(before.iter().zip(&after).all(|(a, b)| Arc::ptr_eq(a, b)));
        let third = with(&base, &["P-384", "P-256", "X25519", "X25519"]);
        control.apply(&third);
        let after = slots(&third);
        assert!(Arc::ptr_eq(&before[2], &after[1]));
        assert!(!Arc::ptr_eq(&after[2], &after[3]));
        for slot in &after[2..] {
            assert!(before[..2].iter().any(|old| Arc::ptr_eq(old, slot)));
        }
        assert!(before.iter().all(|old| !Arc::ptr_eq(old, &after[0])));
    }

    #[test]
    fn nothing_is_kept_of_what_is_gone() {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        let config = config(&params.self_signed(&key).unwrap().pem(), &key.serialize_pem(), "");
        let registry = Registry::new();
        let mut control = TlsControl::new(Arc::new(Contexts::default()), registry.clone());
        let users = Arc::strong_count(&config.routes);
        control.apply(&config);
        assert_eq!(Arc::strong_count(&config.routes), users, "routes are none of its business");
        let shown = || registry.snapshot().stats.iter().any(|stat| stat.name.contains("ssl_socket_factory"));
        assert!(shown());
        control.apply(&Config::default());
        assert!(!shown());
    }

    #[test]
    fn a_secret_is_merged_over_the_default() {
        let inline = |text: &str| Some(SecretData::Inline(text.as_bytes().into()));
        let default = ValidationContext {
            trusted_ca: inline("a"),
            crl: inline("c"),
            certificate_hashes: vec![[1; 32]],
            max_depth: Some(1),
            ..ValidationContext::default()
        };
        let secret = ValidationContext {
            trusted_ca: inline("b"),
            certificate_hashes: vec![[2; 32]],
            allow_expired: true,
            ..ValidationContext::default()
        };
        let merged = merge(&default, &secret);
        assert_eq!((merged.trusted_ca, merged.crl), (inline("b"), inline("c")));
        assert_eq!(merged.certificate_hashes, [[1; 32], [2; 32]]);
        assert!(merged.allow_expired && merged.max_depth == Some(1));
    }
}
