//! Where resources come from (`config.core.v3.ConfigSource`, `ApiConfigSource`, `GrpcService`).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// `config.core.v3.ConfigSource`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ConfigSource {
    /// `config_source_specifier`
    pub specifier: SourceSpecifier,
    /// `initial_fetch_timeout`: 15 s; `None` when 0 (wait for ever).
    pub initial_fetch_timeout: Option<Duration>,
}

impl ConfigSource {
    /// The file, when it is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match &self.specifier {
            SourceSpecifier::File { path, .. } => Some(path),
            SourceSpecifier::Ads | SourceSpecifier::Api(_) => None,
        }
    }

    /// The `watched_directory` of a file.
    #[must_use]
    pub fn watched_directory(&self) -> Option<&Path> {
        match &self.specifier {
            SourceSpecifier::File { watched_directory, .. } => watched_directory.as_deref(),
            SourceSpecifier::Ads | SourceSpecifier::Api(_) => None,
        }
    }
}

/// `ConfigSource.config_source_specifier`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum SourceSpecifier {
    /// `ads`: the stream of [`crate::Bootstrap::ads`].
    Ads,
    /// `api_config_source`: a stream, or polling, of its own.
    Api(Arc<ApiSource>),
    /// `path_config_source`, or the deprecated `path`.
    File {
        /// The file of resources.
        path: PathBuf,
        /// `watched_directory`
        watched_directory: Option<PathBuf>,
    },
}

/// `config.core.v3.ApiConfigSource`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ApiSource {
    /// `api_type`
    pub kind: ApiKind,
    /// `grpc_services`, the first of which is used, or for REST `cluster_names`. Never empty.
    pub services: Vec<GrpcService>,
    /// `refresh_delay`, of REST: how long to wait between polls.
    pub refresh_delay: Duration,
    /// `request_timeout`, of REST: 1 s.
    pub request_timeout: Duration,
    /// `rate_limit_settings`; `None` does not limit.
    pub rate_limit: Option<RateLimit>,
    /// `set_node_on_first_message_only`: false.
    pub node_on_first_message_only: bool,
}

/// `ApiConfigSource.ApiType`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ApiKind {
    /// `DELTA_GRPC`
    DeltaGrpc,
    /// `GRPC`: state of the world.
    Grpc,
    /// `REST`
    Rest,
}

/// `RateLimitSettings`: how many requests may be sent to a control plane.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RateLimit {
    /// `max_tokens`: 100.
    pub max_tokens: u32,
    /// `fill_rate` in thousandths of a token per second: 10 tokens.
    pub fill_rate_milli: u64,
}

/// `config.core.v3.GrpcService` with `envoy_grpc`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct GrpcService {
    /// `envoy_grpc.cluster_name`: an ordinary cluster.
    pub cluster: String,
    /// `envoy_grpc.authority`; empty for the cluster's name.
    pub authority: String,
    /// `timeout` of a call; `None` waits.
    pub timeout: Option<Duration>,
    /// `initial_metadata`: sent with every call.
    pub metadata: Vec<(String, String)>,
}

/// A resource by where it comes from and its name: two sources may have different resources of one name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ResourceKey {
    /// `None` for what is part of the bootstrap.
    pub source: Option<SourceSpecifier>,
    /// Its name.
    pub name: String,
}

impl ResourceKey {
    /// The resource called `name` that `source` delivers.
    #[must_use]
    pub fn new(source: &ConfigSource, name: &str) -> Self {
        Self { source: Some(source.specifier.clone()), name: name.to_owned() }
    }
}

/// `transport_sockets.tls.v3.SdsSecretConfig`: a secret by its name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SecretRef {
    /// `name`
    pub name: String,
    /// `sds_config`; `None` names one of the bootstrap's static secrets.
    pub source: Option<ConfigSource>,
}

impl SecretRef {
    /// Where the secret is in [`crate::Config::secrets`].
    #[must_use]
    pub fn key(&self) -> ResourceKey {
        let source = self.source.as_ref().map(|source| source.specifier.clone());
        ResourceKey { source, name: self.name.clone() }
    }
}
