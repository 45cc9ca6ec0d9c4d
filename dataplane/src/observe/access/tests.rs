//! Operators, filters and entries against facts made by hand; the expected texts are what Envoy 1.40 writes.

use std::time::{Duration, Instant};

use culvert_model::{
    AccessLogFilter, Comparison, ComparisonOp, CustomTag, GrpcLog, GrpcService, GrpcStatusStyle,
    HeaderMatcher, HeaderRule, JsonTemplate, PathSource, TimePoint, TimeUnit,
};
use culvert_proto::{Headers, Method, RequestHead, Version};
use envoy_types::pb::envoy::{
    config::core::v3::{Address, address, socket_address::PortSpecifier},
    data::accesslog::v3::{HttpAccessLogEntry, TcpAccessLogEntry},
};
use prost::Message as _;

use super::*;
use crate::listener::Peer;

fn peer(text: &str) -> Peer {
    Peer::Ip(text.parse().unwrap())
}

struct Request {
    head: RequestHead,
    response: Headers,
    trailers: Headers,
    tls: TlsFacts,
    started: Instant,
}

impl Request {
    fn new() -> Self {
        let mut head = RequestHead::new();
        head.method = Method::Post;
        head.version = Version::Http11;
        head.set_path("/x/y?a=1&b=%32zz");
        head.set_authority("h:1");
        head.headers.push("x-b", "q\"uo\\te");
        head.headers.push("content-type", "application/grpc");
        head.headers.push("x-request-id", "0000000a-7c95-4b5a-8d1e-000000000000");
        let mut response = Headers::default();
        response.push("x-a", "1");
        response.push("x-a", "2");
        let mut trailers = Headers::default();
        trailers.push("grpc-status", "4");
        let tls = TlsFacts {
            version: "TLSv1.3".to_owned(),
            cipher: "TLS_AES_128_GCM_SHA256".to_owned(),
            cipher_id: 0x1301,
            peer: CertificateFacts {
                subject: "CN=client".to_owned(),
                uri_sans: vec!["spiffe://a/b".to_owned(), "spiffe://a/c".to_owned()],
                valid_to: Some(Duration::from_secs(951_782_400)),
                ..CertificateFacts::default()
            },
            ..TlsFacts::default()
        };
        Self { head, response, trailers, tls, started: culvert_ring::time::now() }
    }

    fn facts(&self) -> Facts<'_> {
        let after = |millis| Some(self.started + Duration::from_millis(millis));
        Facts {
            hostname: "node",
            connection_id: 7,
            server_name: "a.b",
            tls: Some(&self.tls),
            protocol: Some(Version::Http11),
            request: Some(&self.head),
            request_headers: Some(&self.head.headers),
            response_headers: Some(&self.response),
            response_trailers: Some(&self.trailers),
            status: 503,
            details: "via upstream",
            flags: Flags::NO_ROUTE | Flags::NO_HEALTHY_UPSTREAM,
            bytes_received: 3,
            bytes_sent: 5,
            route_name: "r1",
            virtual_cluster: "v1",
            cluster: Some(("up", "alt_up")),
            upstream_local: Some("10.0.0.9:99".parse().unwrap()),
            upstream_failure: "delayed connect error: 111",
            attempts: 1,
            times: Times {
                rx_end: after(2),
                upstream_rx_begin: after(5),
                tx_end: after(9),
                ..Times::default()
            },
            ..Facts::connection(
                LogType::DownstreamEnd,
                self.started,
                peer("10.1.0.1:1234"),
                peer("[::1]:443"),
            )
        }
    }
}

fn written(part: FormatPart, facts: &Facts<'_>) -> (String, Value) {
    let mut out = Vec::new();
    let value = append(&part, facts, &mut out);
    (String::from_utf8(out).unwrap(), value)
}

#[test]
fn operators_without_parameters() {
    let request = Request::new();
    let facts = request.facts();
    use Value::{Absent, Number, Text};
    for (operator, expected, value) in [
        (Operator::AccessLogType, "DownstreamEnd", Text),
        (Operator::BytesReceived, "3", Number),
        (Operator::BytesSent, "5", Number),
        (Operator::ConnectionId, "7", Number),
        (Operator::ConnectionTerminationDetails, "", Absent),
        (Operator::CustomFlags, "", Text),
        (Operator::DownstreamDirectRemoteAddress, "10.1.0.1:1234", Text),
        (Operator::DownstreamLocalAddress, "[::1]:443", Text),
        (Operator::DownstreamLocalIp, "::1", Text),
        (Operator::DownstreamLocalPort, "443", Number),
        (Operator::DownstreamPeerSubject, "CN=client", Text),
        (Operator::DownstreamPeerUriSan, "spiffe://a/b,spiffe://a/c", Text),
        (Operator::DownstreamPeerIssuer, "", Absent),
        (Operator::DownstreamRemoteIp, "10.1.0.1", Text),
        (Operator::DownstreamRemotePort, "1234", Number),
        (Operator::DownstreamTlsCipher, "TLS_AES_128_GCM_SHA256", Text),
        (Operator::DownstreamTlsVersion, "TLSv1.3", Text),
        (Operator::FilterChainName, "", Absent),
        (Operator::Hostname, "node", Text),
        (Operator::Protocol, "HTTP/1.1", Text),
        (Operator::RequestedServerName, "a.b", Text),
        (Operator::ResponseCode, "503", Number),
        (Operator::ResponseCodeDetails, "via_upstream", Text),
        (Operator::ResponseFlags, "UH,NR", Text),
        (Operator::ResponseFlagsLong, "NoHealthyUpstream,NoRouteFound", Text),
        (Operator::ResponseTrailersBytes, "12", Number),
        (Operator::RouteName, "r1", Text),
        (Operator::StreamId, "0000000a-7c95-4b5a-8d1e-000000000000", Text),
        (Operator::UpstreamCluster, "alt_up", Text),
        (Operator::UpstreamClusterRaw, "up", Text),
        (Operator::UpstreamHost, "", Absent),
        (Operator::UpstreamLocalAddress, "10.0.0.9:99", Text),
        (Operator::UpstreamLocalPort, "99", Number),
        (Operator::UpstreamRequestAttemptCount, "1", Number),
        (Operator::UpstreamTransportFailureReason, "delayed_connect_error:_111", Text),
        (Operator::VirtualClusterName, "v1", Text),
    ] {
        let found = written(FormatPart::Operator(operator), &facts);
        assert_eq!(found, (expected.to_owned(), value), "{}", operator.name());
    }
    let (id, _) = written(FormatPart::Operator(Operator::UniqueId), &facts);
    assert_eq!((id.len(), &id[14..15]), (36, "4"), "{id}");
}

#[test]
fn operators_with_parameters() {
    let request = Request::new();
    let facts = request.facts();
    let header = |name: &str, alternative: Option<&str>, max| FormatPart::RequestHeader {
        name: name.to_owned(),
        alternative: alternative.map(str::to_owned),
        max,
    };
    let path = |query, max| FormatPart::Path { query, which: PathSource::OriginalOrPath, max };
    let parameter = |name: &str, max| FormatPart::QueryParameter { name: name.to_owned(), max };
    let between = |from, to, unit| FormatPart::Between { from, to, unit };
    use TimePoint::*;
    for (part, expected) in [
        (header("x-b", None, None), Some("q\"uo\\te")),
        (header("no", Some(":path"), Some(3)), Some("/x/")),
        (header("no", None, None), None),
        (path(true, None), Some("/x/y?a=1&b=%32zz")),
        (path(false, Some(3)), Some("/x/")),
        (FormatPart::Path { query: true, which: PathSource::Original, max: None }, None),
        (FormatPart::QueryString { which: PathSource::Path, max: Some(3) }, Some("a=1")),
        (parameter("b", Some(2)), Some("2z")),
        (parameter("c", None), None),
        (
            FormatPart::RequestHeaderWithoutQuery { name: ":path".to_owned(), alternative: None, max: None },
            Some("/x/y"),
        ),
        (FormatPart::ResponseHeader { name: "x-a".to_owned(), alternative: None, max: None }, Some("1")),
        (
            FormatPart::ResponseTrailer { name: "grpc-status".to_owned(), alternative: None, max: None },
            Some("4"),
        ),
        (FormatPart::GrpcStatus(GrpcStatusStyle::Camel), Some("DeadlineExceeded")),
        (FormatPart::GrpcStatus(GrpcStatusStyle::Snake), Some("DEADLINE_EXCEEDED")),
        (FormatPart::GrpcStatus(GrpcStatusStyle::Number), Some("4")),
        (between(DownstreamRxBegin, DownstreamRxEnd, TimeUnit::Milliseconds), Some("2")),
        (between(UpstreamRxBegin, DownstreamTxEnd, TimeUnit::Microseconds), Some("4000")),
        (between(UpstreamTxBegin, DownstreamTxEnd, TimeUnit::Nanoseconds), None),
        (FormatPart::PeerCertificateTime(true, vec![culvert_model::TimePart::Year]), Some("2000")),
        (FormatPart::PeerCertificateTime(false, vec![culvert_model::TimePart::Year]), None),
        (FormatPart::Nothing, None),
    ] {
        let (text, value) = written(part.clone(), &facts);
        assert_eq!((value != Value::Absent).then_some(text.as_str()), expected, "{part:?}");
    }
}

#[test]
fn json_keeps_types_and_leaves_out() {
    let request = Request::new();
    let facts = request.facts();
    let value = |part: FormatPart| JsonTemplate::Value(vec![part]);
    let member = |name: &str, value| (name.to_owned(), value);
    let missing = || FormatPart::RequestHeader { name: "no".to_owned(), alternative: None, max: None };
    let root = JsonTemplate::Object(vec![
        member("code", value(FormatPart::Operator(Operator::ResponseCode))),
        member("empty", JsonTemplate::Value(vec![])),
        member("inner", JsonTemplate::Object(vec![member("x", value(missing()))])),
        member("list", JsonTemplate::List(vec![value(missing()), JsonTemplate::Literal("1.5".to_owned())])),
        member("mixed", JsonTemplate::Value(vec![FormatPart::Text("a\"".to_owned()), missing()])),
        member("none", JsonTemplate::Null),
        member("text", value(FormatPart::Operator(Operator::Hostname))),
    ]);
    for (omit_empty, expected) in [
        (
            false,
            r#"{"code":503,"empty":"","inner":{"x":null},"list":[null,1.5],"mixed":"a\"-","none":null,"text":"node"}"#,
        ),
        (true, r#"{"code":503,"empty":"","list":[1.5],"mixed":"a\"","text":"node"}"#),
    ] {
        let mut out = Vec::new();
        json::write(&root, omit_empty, &facts, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}

#[test]
fn filters() {
    let request = Request::new();
    let facts = request.facts();
    let mut runtime = Runtime::new();
    runtime.insert("low".to_owned(), "400".to_owned());
    runtime.insert("all".to_owned(), "100".to_owned());
    let status = |op, value, key: &str| {
        AccessLogFilter::StatusCode(Comparison { op, value, runtime_key: key.to_owned() })
    };
    let header = |name: &str| {
        AccessLogFilter::Header(Box::new(HeaderMatcher {
            name: name.to_owned(),
            rule: HeaderRule::Present(true),
            invert: false,
            missing_is_empty: false,
        }))
    };
    let sampled = |key: &str, numerator, independent| AccessLogFilter::Runtime {
        key: key.to_owned(),
        numerator,
        denominator: 100,
        independent,
    };
    let (yes, no) = (AccessLogFilter::Constant(true), AccessLogFilter::Constant(false));
    use ComparisonOp::*;
    for (filter, expected) in [
        (status(GreaterOrEqual, 503, ""), true),
        (status(GreaterOrEqual, 504, ""), false),
        (status(LessOrEqual, 502, ""), false),
        (status(Equal, 503, ""), true),
        (status(NotEqual, 503, ""), false),
        (status(LessOrEqual, 600, "low"), false),
        (
            AccessLogFilter::Duration(Comparison {
                op: GreaterOrEqual,
                value: 60_000,
                runtime_key: String::new(),
            }),
            false,
        ),
        (header("x-b"), true),
        (header("x-c"), false),
        (AccessLogFilter::ResponseFlags(vec![]), true),
        (AccessLogFilter::ResponseFlags(vec!["DC".to_owned(), "NR".to_owned()]), true),
        (AccessLogFilter::ResponseFlags(vec!["DC".to_owned()]), false),
        (AccessLogFilter::GrpcStatus { statuses: vec![4], exclude: false }, true),
        (AccessLogFilter::GrpcStatus { statuses: vec![4], exclude: true }, false),
        (AccessLogFilter::LogType { types: vec![6], exclude: false }, true),
        (AccessLogFilter::LogType { types: vec![6], exclude: true }, false),
        (AccessLogFilter::And(vec![yes.clone(), no.clone()]), false),
        (AccessLogFilter::Or(vec![yes, no]), true),
        (sampled("", 0, true), false),
        (sampled("all", 0, true), true),
        // The request id begins with 10.
        (sampled("", 10, false), false),
        (sampled("", 11, false), true),
    ] {
        assert_eq!(filter::passes(&filter, &facts, &runtime), expected, "{filter:?}");
    }
    let connection =
        Facts::connection(LogType::NotSet, request.started, peer("10.1.0.1:1"), peer("10.1.0.2:2"));
    for (filter, expected) in [
        (status(LessOrEqual, 0, ""), true),
        (header("x-b"), false),
        (AccessLogFilter::GrpcStatus { statuses: vec![2], exclude: false }, true),
    ] {
        assert_eq!(filter::passes(&filter, &connection, &runtime), expected, "{filter:?}");
    }
}

#[test]
fn entries_are_what_protobuf_reads() {
    let request = Request::new();
    let facts = request.facts();
    let config = GrpcLog {
        log_name: "l".to_owned(),
        service: GrpcService {
            cluster: "als".to_owned(),
            authority: String::new(),
            timeout: None,
            metadata: vec![],
        },
        flush_interval: Duration::from_secs(1),
        buffer_size_bytes: 16_384,
        retry_back_off: (Duration::from_secs(1), Duration::from_secs(10)),
        custom_tags: vec![
            ("literal".to_owned(), CustomTag::Literal("v".to_owned())),
            (
                "header".to_owned(),
                CustomTag::RequestHeader { name: "x-b".to_owned(), default: String::new() },
            ),
            (
                "default".to_owned(),
                CustomTag::RequestHeader { name: "no".to_owned(), default: "d".to_owned() },
            ),
            ("none".to_owned(), CustomTag::RequestHeader { name: "no".to_owned(), default: String::new() }),
        ],
        request_headers: vec!["x-b".to_owned(), "no".to_owned()],
        response_headers: vec!["x-a".to_owned()],
        response_trailers: vec!["grpc-status".to_owned()],
    };
    let mut bytes = Vec::new();
    entry::http(&facts, &config, &mut bytes);
    let read = HttpAccessLogEntry::decode(&bytes[..]).unwrap();
    assert_eq!(read.encoded_len(), bytes.len(), "nothing is unknown or written twice");
    assert_eq!(read.protocol_version, 2);
    let common = read.common_properties.unwrap();
    let address = |given: Option<Address>| match given.unwrap().address.unwrap() {
        address::Address::SocketAddress(socket) => (socket.address, socket.port_specifier),
        other => panic!("{other:?}"),
    };
    let port = |port| Some(PortSpecifier::PortValue(port));
    assert_eq!(address(common.downstream_remote_address), ("10.1.0.1".to_owned(), port(1234)));
    assert_eq!(address(common.downstream_local_address), ("::1".to_owned(), port(443)));
    assert_eq!(address(common.upstream_local_address), ("10.0.0.9".to_owned(), port(99)));
    assert_eq!(common.time_to_last_rx_byte.unwrap().nanos, 2_000_000);
    assert_eq!(common.time_to_first_upstream_rx_byte.unwrap().nanos, 5_000_000);
    assert_eq!(common.time_to_last_downstream_tx_byte.unwrap().nanos, 9_000_000);
    assert!(common.duration.is_some() && common.start_time.unwrap().seconds > 1_600_000_000);
    let flags = common.response_flags.unwrap();
    assert!(flags.no_route_found && flags.no_healthy_upstream && !flags.upstream_overflow);
    assert_eq!((common.upstream_cluster.as_str(), common.route_name.as_str()), ("up", "r1"));
    assert_eq!((common.upstream_request_attempt_count, common.access_log_type), (1, 6));
    assert_eq!(common.upstream_transport_failure_reason, "delayed connect error: 111");
    assert_eq!(common.stream_id, "0000000a-7c95-4b5a-8d1e-000000000000");
    let mut tags: Vec<_> = common.custom_tags.into_iter().collect();
    tags.sort();
    let expected = [("default", "d"), ("header", "q\"uo\\te"), ("literal", "v")];
    assert_eq!(tags, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    let tls = common.tls_properties.unwrap();
    assert_eq!((tls.tls_version, tls.tls_sni_hostname.as_str()), (4, "a.b"));
    assert_eq!(tls.tls_cipher_suite.unwrap().value, 0x1301);
    let certificate = tls.peer_certificate_properties.unwrap();
    assert_eq!((certificate.subject.as_str(), certificate.subject_alt_name.len()), ("CN=client", 2));
    let properties = read.request.unwrap();
    assert_eq!((properties.request_method, properties.path.as_str()), (3, "/x/y?a=1&b=%32zz"));
    assert_eq!((properties.authority.as_str(), properties.request_body_bytes), ("h:1", 3));
    assert_eq!(properties.request_headers.len(), 1);
    assert!(properties.request_headers_bytes > 40);
    let response = read.response.unwrap();
    assert_eq!((response.response_code.unwrap().value, response.response_body_bytes), (503, 5));
    assert_eq!(response.response_headers["x-a"], "1");
    assert_eq!(response.response_trailers["grpc-status"], "4");
    assert_eq!(response.response_code_details, "via upstream");

    let connection = Facts {
        bytes_received: 300,
        bytes_sent: 4,
        complete: false,
        ..Facts::connection(LogType::TcpPeriodic, request.started, peer("10.1.0.1:1"), peer("10.1.0.2:2"))
    };
    bytes.clear();
    entry::tcp(&connection, &config, &mut bytes);
    let read = TcpAccessLogEntry::decode(&bytes[..]).unwrap();
    assert_eq!(read.encoded_len(), bytes.len());
    let properties = read.connection_properties.unwrap();
    assert_eq!((properties.received_bytes, properties.sent_bytes), (300, 4));
    assert!(read.common_properties.unwrap().duration.is_none());
}
