//! Access logs (`config.accesslog.v3`, `extensions.access_loggers`) and the format strings they share with headers.

use std::{sync::Arc, time::Duration};

use crate::{GrpcService, HeaderMatcher, OtlpExporter};

/// `config.accesslog.v3.AccessLog`.
#[derive(Clone, Debug)]
pub struct AccessLog {
    /// Where its entries go and what they look like.
    pub sink: LogSink,
    /// `filter`: which entries are logged; `None` logs all.
    pub filter: Option<AccessLogFilter>,
}

/// The logger of an [`AccessLog`].
#[derive(Clone, Debug)]
pub enum LogSink {
    /// `extensions.access_loggers.file.v3.FileAccessLog` and the stdout and stderr loggers.
    File {
        /// A path; `/dev/stdout` and `/dev/stderr` are the process's own streams.
        path: String,
        /// How a line is written.
        format: LogFormat,
    },
    /// `extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig`
    GrpcHttp(Arc<GrpcLog>),
    /// `extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig`
    GrpcTcp(Arc<GrpcLog>),
    /// `extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig`
    OpenTelemetry(Arc<OtlpLog>),
}

/// How a line of a file is written; its newline is not part of it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum LogFormat {
    /// Envoy's default format string.
    #[default]
    Default,
    /// `json_format`
    Json {
        /// The object.
        root: JsonTemplate,
        /// `omit_empty_values`: members whose value is null or an empty object are left out.
        omit_empty: bool,
    },
    /// `text_format`, `text_format_source`, or the deprecated `format`.
    Text {
        /// The line.
        parts: Format,
        /// `omit_empty_values`: what has no value is nothing instead of `-`.
        omit_empty: bool,
    },
}

/// One value of a `json_format`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum JsonTemplate {
    /// A list.
    List(Vec<Self>),
    /// A boolean or a number, as JSON.
    Literal(String),
    /// `null`
    Null,
    /// Members, by name in byte order, the order Envoy writes them in.
    Object(Vec<(String, Self)>),
    /// A format string. One operator alone keeps its type.
    Value(Format),
}

/// `extensions.access_loggers.grpc.v3.CommonGrpcAccessLogConfig`, with what the HTTP logger adds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GrpcLog {
    /// `log_name`
    pub log_name: String,
    /// `grpc_service`
    pub service: GrpcService,
    /// `buffer_flush_interval`: 1 s.
    pub flush_interval: Duration,
    /// `buffer_size_bytes`: 16 KiB; 0 sends every entry at once.
    pub buffer_size_bytes: usize,
    /// `grpc_stream_retry_policy.retry_back_off`: base and greatest interval of reconnecting.
    pub retry_back_off: (Duration, Duration),
    /// `custom_tags`, by tag.
    pub custom_tags: Vec<(String, CustomTag)>,
    /// `additional_request_headers_to_log`, lower case.
    pub request_headers: Vec<String>,
    /// `additional_response_headers_to_log`, lower case.
    pub response_headers: Vec<String>,
    /// `additional_response_trailers_to_log`, lower case.
    pub response_trailers: Vec<String>,
}

/// `extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OtlpLog {
    /// `grpc_service`, `http_service`, or `common_config.grpc_service`.
    pub exporter: OtlpExporter,
    /// `buffer_flush_interval`: 1 s.
    pub flush_interval: Duration,
    /// `buffer_size_bytes`: 16 KiB.
    pub buffer_size_bytes: usize,
    /// `log_name`; of the resource.
    pub log_name: String,
    /// `disable_builtin_labels`, turned round: the resource tells the log's name and what is known of the node.
    pub builtin_labels: bool,
    /// `resource_attributes`, and those that `resource_detectors` find.
    pub resource: Vec<(String, String)>,
    /// `body`
    pub body: Option<OtlpValue>,
    /// `attributes`
    pub attributes: Vec<(String, OtlpValue)>,
    /// `custom_tags`: attributes after the others.
    pub custom_tags: Vec<(String, CustomTag)>,
    /// `stat_prefix`
    pub stat_prefix: String,
}

/// `opentelemetry.proto.common.v1.AnyValue`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum OtlpValue {
    /// `array_value`
    List(Vec<Self>),
    /// `kvlist_value`
    Map(Vec<(String, Self)>),
    /// `string_value`
    Text(Format),
}

/// `type.tracing.v3.CustomTag`. An environment variable is read when the configuration is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CustomTag {
    /// `literal`, `environment`
    Literal(String),
    /// `request_header`
    RequestHeader {
        /// Lower case.
        name: String,
        /// `default_value`; no tag when it is empty and the header is missing.
        default: String,
    },
}

/// `config.accesslog.v3.AccessLogFilter`.
#[derive(Clone, Debug)]
pub enum AccessLogFilter {
    /// `and_filter`
    And(Vec<Self>),
    /// `not_health_check_filter`
    NotHealthCheck,
    /// `traceable_filter`: requests that `x-envoy-force-trace` has traced.
    Traceable,
    /// What does not depend on the request: `metadata_filter` while requests carry no metadata.
    Constant(bool),
    /// `duration_filter`: milliseconds.
    Duration(Comparison),
    /// `grpc_status_filter`
    GrpcStatus {
        /// `statuses`
        statuses: Vec<u32>,
        /// `exclude`
        exclude: bool,
    },
    /// `header_filter`
    Header(Box<HeaderMatcher>),
    /// `log_type_filter`
    LogType {
        /// `types`, as numbers of `data.accesslog.v3.AccessLogType`.
        types: Vec<i32>,
        /// `exclude`
        exclude: bool,
    },
    /// `or_filter`
    Or(Vec<Self>),
    /// `response_flag_filter`: short names; empty means any flag.
    ResponseFlags(Vec<String>),
    /// `runtime_filter`
    Runtime {
        /// `runtime_key`: a whole number replaces the numerator.
        key: String,
        /// `percent_sampled.numerator`
        numerator: u32,
        /// `percent_sampled.denominator`: 100, 10,000 or 1,000,000.
        denominator: u32,
        /// `use_independent_randomness`: else the request id decides where there is one.
        independent: bool,
    },
    /// `status_code_filter`
    StatusCode(Comparison),
}

/// `config.accesslog.v3.ComparisonFilter`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Comparison {
    /// `op`
    pub op: ComparisonOp,
    /// `value.default_value`
    pub value: u64,
    /// `value.runtime_key`, which replaces the value where it is set.
    pub runtime_key: String,
}

/// `ComparisonFilter.Op`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ComparisonOp {
    /// `EQ`
    Equal,
    /// `GE`
    GreaterOrEqual,
    /// `LE`
    LessOrEqual,
    /// `NE`
    NotEqual,
}

/// A format string: literals and command operators in order.
pub type Format = Vec<FormatPart>;

/// One part of a [`Format`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FormatPart {
    /// Literal text, or what is known when the configuration is read (`%ENVIRONMENT(X)%`).
    Text(String),
    /// An operator without parameters.
    Operator(Operator),
    /// `%COMMON_DURATION(from:to:unit)%` and the durations with names of their own.
    Between {
        /// Where it begins.
        from: TimePoint,
        /// Where it ends.
        to: TimePoint,
        /// What it is counted in.
        unit: TimeUnit,
    },
    /// What exists in Envoy and never has a value here: metadata, filter state of upstreams.
    Nothing,
    /// `%FILTER_STATE(key:style):max%`: an object, which is a text.
    FilterState {
        /// Its key.
        key: String,
        /// `TYPED`, the default: as JSON, a text in quotation marks. `PLAIN` is without.
        typed: bool,
        /// Longest output in bytes.
        max: Option<usize>,
    },
    /// `%EMIT_TIME(format)%`
    EmitTime(TimeFormat),
    /// `%START_TIME(format)%`
    StartTime(TimeFormat),
    /// `%DOWNSTREAM_PEER_CERT_V_START(format)%` (false) and `..._END` (true).
    PeerCertificateTime(bool, TimeFormat),
    /// `%GRPC_STATUS(style)%`, `%GRPC_STATUS_NUMBER%`
    GrpcStatus(GrpcStatusStyle),
    /// `%PATH(query:which):max%`
    Path {
        /// Whether the query string belongs to it.
        query: bool,
        /// Which header it is taken from.
        which: PathSource,
        /// Longest output in bytes.
        max: Option<usize>,
    },
    /// `%QUERY_PARAM(name):max%`, decoded.
    QueryParameter {
        /// Its name.
        name: String,
        /// Longest output in bytes.
        max: Option<usize>,
    },
    /// `%QUERY_PARAMS(which):max%`: the query string.
    QueryString {
        /// Which header it is taken from.
        which: PathSource,
        /// Longest output in bytes.
        max: Option<usize>,
    },
    /// `%REQ(name?alternative):max%`
    RequestHeader {
        /// Lower case.
        name: String,
        /// Lower case; used when the first is absent.
        alternative: Option<String>,
        /// Longest output in bytes.
        max: Option<usize>,
    },
    /// `%REQ_WITHOUT_QUERY(name?alternative):max%` (`extensions.formatter.req_without_query.v3`)
    RequestHeaderWithoutQuery {
        /// Lower case.
        name: String,
        /// Lower case; used when the first is absent.
        alternative: Option<String>,
        /// Longest output in bytes.
        max: Option<usize>,
    },
    /// `%RESP(name?alternative):max%`
    ResponseHeader {
        /// Lower case.
        name: String,
        /// Lower case; used when the first is absent.
        alternative: Option<String>,
        /// Longest output in bytes.
        max: Option<usize>,
    },
    /// `%TRAILER(name?alternative):max%`
    ResponseTrailer {
        /// Lower case.
        name: String,
        /// Lower case; used when the first is absent.
        alternative: Option<String>,
        /// Longest output in bytes.
        max: Option<usize>,
    },
}

/// Which header `%PATH%` and `%QUERY_PARAMS%` look at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PathSource {
    /// `ORIG`: `x-envoy-original-path`
    Original,
    /// `ORIG_OR_PATH`, the default: the first, else the second.
    OriginalOrPath,
    /// `PATH`: `:path`
    Path,
}

/// How `%GRPC_STATUS%` is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GrpcStatusStyle {
    /// `CAMEL_STRING`: `DeadlineExceeded`
    Camel,
    /// `NUMBER`
    Number,
    /// `SNAKE_STRING`: `DEADLINE_EXCEEDED`
    Snake,
}

/// A moment in the life of a request, as `%COMMON_DURATION%` names it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TimePoint {
    /// `DS_RX_BEG`: the request's first byte was received.
    DownstreamRxBegin,
    /// `DS_RX_END`: its last byte was.
    DownstreamRxEnd,
    /// `DS_TX_BEG`: the response's first byte was sent.
    DownstreamTxBegin,
    /// `DS_TX_END`: its last byte was.
    DownstreamTxEnd,
    /// `US_RX_BEG`: the response's first byte was received.
    UpstreamRxBegin,
    /// `US_RX_END`: its last byte was.
    UpstreamRxEnd,
    /// `US_TX_BEG`: the request's first byte was sent.
    UpstreamTxBegin,
    /// `US_TX_END`: its last byte was.
    UpstreamTxEnd,
}

/// What a duration is counted in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TimeUnit {
    /// `us`
    Microseconds,
    /// `ms`
    Milliseconds,
    /// `ns`
    Nanoseconds,
}

/// How a moment is written.
pub type TimeFormat = Vec<TimePart>;

/// One part of a [`TimeFormat`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TimePart {
    /// `%Y-%m-%dT%H:%M:%S.%3fZ`, the default of `%START_TIME%`.
    Default,
    /// `%d` padded with a zero (true), `%e` with a space (false).
    Day(bool),
    /// `%j`: 001 to 366.
    DayOfYear,
    /// `%1f` to `%9f`: so many digits of the second's fraction.
    Fraction(u8),
    /// `%H`
    Hour,
    /// `%I`: 01 to 12.
    Hour12,
    /// `%p`: AM or PM.
    HalfDay,
    /// `%M`
    Minute,
    /// `%m`
    Month,
    /// `%b`, `%h` (short, false) and `%B` (long, true).
    MonthName(bool),
    /// `%S`
    Second,
    /// `%s`: seconds since 1970.
    Timestamp,
    /// Literal text, of the format or of a time zone that is always UTC.
    Text(String),
    /// `%u` (1 is Monday, true) and `%w` (0 is Sunday, false).
    Weekday(bool),
    /// `%a` (short, false) and `%A` (long, true).
    WeekdayName(bool),
    /// `%Y`
    Year,
    /// `%y`
    YearOfCentury,
}

macro_rules! operators {
    ($($variant:ident = $name:literal,)*) => {
        /// Operators that take no parameters, by their names in Envoy. What they stand for: Envoy's "Substitution
        /// formatting" page.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        #[non_exhaustive]
        pub enum Operator {
            $(#[doc = concat!("`%", $name, "%`")] $variant,)*
        }

        impl Operator {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// As it is written between percent signs.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

operators! {
    AccessLogType = "ACCESS_LOG_TYPE",
    BytesReceived = "BYTES_RECEIVED",
    BytesSent = "BYTES_SENT",
    ConnectionId = "CONNECTION_ID",
    ConnectionTerminationDetails = "CONNECTION_TERMINATION_DETAILS",
    CustomFlags = "CUSTOM_FLAGS",
    DownstreamDirectLocalAddress = "DOWNSTREAM_DIRECT_LOCAL_ADDRESS",
    DownstreamDirectLocalIp = "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT",
    DownstreamDirectLocalPort = "DOWNSTREAM_DIRECT_LOCAL_PORT",
    DownstreamDirectRemoteAddress = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
    DownstreamDirectRemoteIp = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
    DownstreamDirectRemotePort = "DOWNSTREAM_DIRECT_REMOTE_PORT",
    DownstreamLocalAddress = "DOWNSTREAM_LOCAL_ADDRESS",
    DownstreamLocalIp = "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    DownstreamLocalPort = "DOWNSTREAM_LOCAL_PORT",
    DownstreamLocalDnsSan = "DOWNSTREAM_LOCAL_DNS_SAN",
    DownstreamLocalSubject = "DOWNSTREAM_LOCAL_SUBJECT",
    DownstreamLocalUriSan = "DOWNSTREAM_LOCAL_URI_SAN",
    DownstreamPeerCert = "DOWNSTREAM_PEER_CERT",
    DownstreamPeerDnsSan = "DOWNSTREAM_PEER_DNS_SAN",
    DownstreamPeerFingerprint1 = "DOWNSTREAM_PEER_FINGERPRINT_1",
    DownstreamPeerFingerprint256 = "DOWNSTREAM_PEER_FINGERPRINT_256",
    DownstreamPeerIssuer = "DOWNSTREAM_PEER_ISSUER",
    DownstreamPeerSerial = "DOWNSTREAM_PEER_SERIAL",
    DownstreamPeerSubject = "DOWNSTREAM_PEER_SUBJECT",
    DownstreamPeerUriSan = "DOWNSTREAM_PEER_URI_SAN",
    DownstreamRemoteAddress = "DOWNSTREAM_REMOTE_ADDRESS",
    DownstreamRemoteIp = "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    DownstreamRemotePort = "DOWNSTREAM_REMOTE_PORT",
    DownstreamTlsCipher = "DOWNSTREAM_TLS_CIPHER",
    DownstreamTlsSessionId = "DOWNSTREAM_TLS_SESSION_ID",
    DownstreamTlsVersion = "DOWNSTREAM_TLS_VERSION",
    DownstreamTransportFailureReason = "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
    Duration = "DURATION",
    FilterChainName = "FILTER_CHAIN_NAME",
    Hostname = "HOSTNAME",
    LocalReplyBody = "LOCAL_REPLY_BODY",
    Protocol = "PROTOCOL",
    RequestHeadersBytes = "REQUEST_HEADERS_BYTES",
    RequestedServerName = "REQUESTED_SERVER_NAME",
    ResponseCode = "RESPONSE_CODE",
    ResponseCodeDetails = "RESPONSE_CODE_DETAILS",
    ResponseFlags = "RESPONSE_FLAGS",
    ResponseFlagsLong = "RESPONSE_FLAGS_LONG",
    ResponseHeadersBytes = "RESPONSE_HEADERS_BYTES",
    ResponseTrailersBytes = "RESPONSE_TRAILERS_BYTES",
    RouteName = "ROUTE_NAME",
    SpanId = "SPAN_ID",
    StreamId = "STREAM_ID",
    TraceId = "TRACE_ID",
    UniqueId = "UNIQUE_ID",
    UpstreamCluster = "UPSTREAM_CLUSTER",
    UpstreamClusterRaw = "UPSTREAM_CLUSTER_RAW",
    UpstreamHost = "UPSTREAM_HOST",
    UpstreamHostName = "UPSTREAM_HOST_NAME",
    UpstreamHostNameWithoutPort = "UPSTREAM_HOST_NAME_WITHOUT_PORT",
    UpstreamLocalAddress = "UPSTREAM_LOCAL_ADDRESS",
    UpstreamLocalIp = "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    UpstreamLocalPort = "UPSTREAM_LOCAL_PORT",
    UpstreamProtocol = "UPSTREAM_PROTOCOL",
    UpstreamRemoteAddress = "UPSTREAM_REMOTE_ADDRESS",
    UpstreamRemoteIp = "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    UpstreamRemotePort = "UPSTREAM_REMOTE_PORT",
    UpstreamRequestAttemptCount = "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    UpstreamTransportFailureReason = "UPSTREAM_TRANSPORT_FAILURE_REASON",
    VirtualClusterName = "VIRTUAL_CLUSTER_NAME",
}
