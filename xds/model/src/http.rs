//! The HTTP connection manager
//! (`extensions.filters.network.http_connection_manager.v3.HttpConnectionManager`).

use std::{sync::Arc, time::Duration};

use ipnet::IpNet;

use crate::{
    AccessLog, ConfigSource, HeaderChange, Http2Options, Http3Options, HttpFilter, NamedFilter,
    RouteConfiguration, Tracing,
};

/// `HttpConnectionManager`, with Envoy's defaults applied. A timeout of `None` is off.
#[derive(Clone, Debug)]
pub struct HttpConnectionManager {
    /// `stat_prefix`
    pub stat_prefix: String,
    /// `route_config` or `rds`.
    pub routes: RouteSource,
    /// `http_filters`, in order. The router is last.
    pub filters: Vec<NamedFilter>,
    /// `common_http_protocol_options.idle_timeout`: 1 h.
    pub idle_timeout: Option<Duration>,
    /// `stream_idle_timeout`: 5 min.
    pub stream_idle_timeout: Option<Duration>,
    /// `stream_flush_timeout`: as `stream_idle_timeout`. How long a client of HTTP/2 may take for the rest of a response that
    /// is there as a whole.
    pub stream_flush_timeout: Option<Duration>,
    /// `request_timeout`: off. From the first byte of a request to its last.
    pub request_timeout: Option<Duration>,
    /// `request_headers_timeout`: off.
    pub request_headers_timeout: Option<Duration>,
    /// `delayed_close_timeout`: 1 s. `None` closes at once.
    pub delayed_close_timeout: Option<Duration>,
    /// `drain_timeout`: 5 s.
    pub drain_timeout: Duration,
    /// `common_http_protocol_options.max_connection_duration`: off.
    pub max_connection_duration: Option<Duration>,
    /// `common_http_protocol_options.max_stream_duration`: off. From the head of a request to the end of its response.
    pub max_stream_duration: Option<Duration>,
    /// `common_http_protocol_options.max_requests_per_connection`: unlimited.
    pub max_requests_per_connection: Option<u32>,
    /// `max_request_headers_kb` in bytes: 60 KiB.
    pub max_request_headers_bytes: usize,
    /// `common_http_protocol_options.max_headers_count`: 100.
    pub max_headers_count: usize,
    /// `common_http_protocol_options.headers_with_underscores_action`
    pub underscores: UnderscoresAction,
    /// `internal_address_config`: nobody is inside the mesh.
    pub internal: InternalAddresses,
    /// `use_remote_address`: false.
    pub use_remote_address: bool,
    /// `xff_num_trusted_hops`
    pub xff_num_trusted_hops: u32,
    /// `skip_xff_append`
    pub skip_xff_append: bool,
    /// `append_x_forwarded_port`
    pub append_forwarded_port: bool,
    /// `generate_request_id`: true.
    pub generate_request_id: bool,
    /// `preserve_external_request_id`
    pub preserve_external_request_id: bool,
    /// `always_set_request_id_in_response`
    pub always_set_request_id_in_response: bool,
    /// `request_id_extension.pack_trace_reason`: true. Request ids say why a request is traced.
    pub pack_trace_reason: bool,
    /// `request_id_extension.use_request_id_for_trace_sampling`: true. They are what is drawn.
    pub sample_by_request_id: bool,
    /// `tracing`; boxed, since most have none.
    pub tracing: Option<Box<Tracing>>,
    /// `server_name`: `envoy`.
    pub server_name: String,
    /// `server_header_transformation`
    pub server_header: ServerHeader,
    /// `via`
    pub via: String,
    /// `forward_client_cert_details`
    pub forward_client_cert: ForwardClientCert,
    /// `set_current_client_cert_details`
    pub client_cert_details: ClientCertDetails,
    /// `normalize_path`
    pub normalize_path: bool,
    /// `merge_slashes`
    pub merge_slashes: bool,
    /// `path_with_escaped_slashes_action`
    pub escaped_slashes: EscapedSlashes,
    /// `strip_matching_host_port` / `strip_any_host_port`
    pub strip_port: StripPort,
    /// `strip_trailing_host_dot`
    pub strip_trailing_host_dot: bool,
    /// `codec_type`
    pub codec: Codec,
    /// `http_protocol_options`
    pub http1: Http1Options,
    /// `http2_protocol_options`
    pub http2: Http2Options,
    /// `http3_protocol_options`
    pub http3: Http3Options,
    /// `upgrade_configs`: lower-case upgrade type and whether it is enabled.
    pub upgrades: Vec<(String, bool)>,
    /// Whether the `Router` suppresses `x-envoy-*` headers.
    pub suppress_envoy_headers: bool,
    /// `scheme_header_transformation`: the scheme of a request is what `x-forwarded-proto` says.
    pub scheme: Option<SchemeChange>,
    /// `early_header_mutation_extensions`: changes of a request before anything looks at it.
    pub early_changes: Vec<HeaderChange>,
    /// `access_log`
    pub access_log: Vec<AccessLog>,
    /// `access_log_options.flush_access_log_on_new_request`, or the deprecated field: an entry when a request begins.
    pub log_on_new_request: bool,
    /// `access_log_options.access_log_flush_interval`, or the deprecated field: entries while a request lasts.
    pub log_interval: Option<Duration>,
}

/// `config.core.v3.SchemeHeaderTransformation`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SchemeChange {
    /// `match_upstream`: as the upstream is reached.
    MatchUpstream,
    /// `scheme_to_overwrite`; whether that is `https`.
    Overwrite(bool),
}

/// `HttpConnectionManager.codec_type`: what its clients speak.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Codec {
    /// `AUTO`: what the TLS handshake agrees on, else what the first bytes look like.
    #[default]
    Auto,
    /// `HTTP1`
    Http1,
    /// `HTTP2`
    Http2,
    /// `HTTP3`: of listeners that speak QUIC, and of no others.
    Http3,
}

/// Where the routes of a connection manager come from.
#[derive(Clone, Debug)]
pub enum RouteSource {
    /// `route_config`
    Inline(Arc<RouteConfiguration>),
    /// `rds`
    Rds {
        /// `config_source`
        source: ConfigSource,
        /// `route_config_name`
        name: String,
    },
    /// `scoped_routes`
    Scoped(Arc<ScopedRoutes>),
}

/// `ScopedRoutes`: a request's route configuration is chosen by a key made of it.
#[derive(Clone, Debug)]
pub struct ScopedRoutes {
    /// `name`
    pub name: String,
    /// `scope_key_builder.fragments`; all of them have to be found in a request.
    pub key: Vec<ScopeFragment>,
    /// `rds_config_source`, where the scopes' route configurations come from. `None` when they are all inline.
    pub routes: Option<ConfigSource>,
    /// `config_specifier`
    pub scopes: ScopeSource,
}

/// `ScopeKeyBuilder.FragmentBuilder.HeaderValueExtractor`: a part of a scope's key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ScopeFragment {
    /// `name`, lower case.
    pub header: String,
    /// `element_separator`; empty takes the whole value.
    pub separator: String,
    /// `extract_type`
    pub extract: ScopeExtract,
}

/// Which element of a header is meant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ScopeExtract {
    /// `index`: counted from 0.
    Index(u32),
    /// `element`: the value of the first element with this key.
    Key {
        /// `separator`, between key and value.
        separator: String,
        /// `key`
        key: String,
    },
}

/// Where scopes come from.
#[derive(Clone, Debug)]
pub enum ScopeSource {
    /// `scoped_route_configurations_list`
    Inline(Vec<Arc<ScopedRoute>>),
    /// `scoped_rds.scoped_rds_config_source`
    Srds(ConfigSource),
}

/// `config.route.v3.ScopedRouteConfiguration`
#[derive(Clone, Debug)]
pub struct ScopedRoute {
    /// `name`
    pub name: String,
    /// `route_configuration_name` or `route_configuration`
    pub routes: ScopeRoutes,
    /// `key.fragments`
    pub key: Vec<String>,
}

/// The routes of a scope.
#[derive(Clone, Debug)]
pub enum ScopeRoutes {
    /// `route_configuration`
    Inline(Arc<RouteConfiguration>),
    /// `route_configuration_name`: from [`ScopedRoutes::routes`].
    Name(String),
}

/// `config.core.v3.TypedExtensionConfig` of an HTTP filter, from ECDS.
#[derive(Clone, Debug)]
pub struct TypedExtension {
    /// Full name of the message in `typed_config`.
    pub type_name: String,
    /// `typed_config`
    pub filter: HttpFilter,
}

/// `config.core.v3.ExtensionConfigSource`: a filter whose configuration comes from ECDS.
#[derive(Clone, Debug)]
pub struct DiscoveredFilter {
    /// `name` of the filter, which is that of the resource.
    pub name: String,
    /// `config_source`
    pub source: ConfigSource,
    /// `default_config`: until the first configuration comes, or where that is refused.
    pub default: Option<HttpFilter>,
    /// `apply_default_config_without_warming`: a listener does not wait for the first configuration.
    pub eager: bool,
    /// `type_urls`: what may come, as full names of messages.
    pub types: Vec<String>,
}

/// `HttpProtocolOptions.HeadersWithUnderscoresAction`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum UnderscoresAction {
    /// `ALLOW`
    #[default]
    Allow,
    /// `DROP_HEADER`
    Drop,
    /// `REJECT_REQUEST`: 400.
    Reject,
}

/// `ServerHeaderTransformation`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ServerHeader {
    /// `APPEND_IF_ABSENT`
    AppendIfAbsent,
    /// `OVERWRITE`
    #[default]
    Overwrite,
    /// `PASS_THROUGH`
    PassThrough,
}

/// `PathWithEscapedSlashesAction`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum EscapedSlashes {
    /// `KEEP_UNCHANGED`
    #[default]
    Keep,
    /// `REJECT_REQUEST`: 400.
    Reject,
    /// `UNESCAPE_AND_FORWARD`
    UnescapeAndForward,
    /// `UNESCAPE_AND_REDIRECT`: 307.
    UnescapeAndRedirect,
}

/// What happens to the port of the Host header.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum StripPort {
    /// `strip_any_host_port`
    Any,
    /// `strip_matching_host_port`: only when it is the listener's port.
    Matching,
    /// Kept.
    #[default]
    No,
}

/// `config.core.v3.Http1ProtocolOptions`.
#[derive(Clone, Debug)]
pub struct Http1Options {
    /// `allow_absolute_url`: true.
    pub allow_absolute_url: bool,
    /// `accept_http_10`: false, answered with 426.
    pub accept_http_10: bool,
    /// `default_host_for_http_10`
    pub default_host_for_http_10: String,
    /// `header_key_format`
    pub header_case: HeaderCase,
    /// `enable_trailers`: false, trailers are dropped.
    pub enable_trailers: bool,
    /// `allow_chunked_length`: false. Content-Length beside chunked is dropped instead of refused.
    pub allow_chunked_length: bool,
}

impl Default for Http1Options {
    fn default() -> Self {
        Self {
            allow_absolute_url: true,
            accept_http_10: false,
            default_host_for_http_10: String::new(),
            header_case: HeaderCase::Lower,
            enable_trailers: false,
            allow_chunked_length: false,
        }
    }
}

/// `Http1ProtocolOptions.header_key_format`: how names are written on an HTTP/1 connection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum HeaderCase {
    /// Lower case, Envoy's default.
    #[default]
    Lower,
    /// `stateful_formatter` with `PreserveCaseFormatterConfig`: as received.
    Preserve,
    /// `proper_case_words`: `Content-Type`.
    Proper,
}

/// `HttpConnectionManager.ForwardClientCertDetails`: what becomes of `x-forwarded-client-cert`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ForwardClientCert {
    /// `ALWAYS_FORWARD_ONLY`: it is forwarded, whoever sent it.
    Always,
    /// `APPEND_FORWARD`: with a client certificate it is forwarded, and that is appended.
    Append,
    /// `FORWARD_ONLY`: with a client certificate it is forwarded.
    Forward,
    /// `SANITIZE`: it is removed.
    #[default]
    Sanitize,
    /// `SANITIZE_SET`: with a client certificate it is replaced by that.
    Set,
}

/// `HttpConnectionManager.SetCurrentClientCertDetails`: what is said of a client certificate besides its hash.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ClientCertDetails {
    /// `cert`: itself.
    pub cert: bool,
    /// `chain`: itself and what came with it.
    pub chain: bool,
    /// `dns`: its DNS names.
    pub dns: bool,
    /// `subject`
    pub subject: bool,
    /// `uri`: its URIs.
    pub uri: bool,
}

/// `HttpConnectionManager.InternalAddressConfig`: which clients are inside the mesh, so that their `x-envoy-` headers
/// count.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct InternalAddresses {
    /// `cidr_ranges`
    pub ranges: Vec<IpNet>,
    /// `unix_sockets`
    pub unix_sockets: bool,
}
