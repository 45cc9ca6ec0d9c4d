//! `ext_authz` over gRPC

#![allow(deprecated)]

use std::time::Duration;

use envoy_types::pb::{
    envoy::{
        config::core::v3::{HeaderValue, HeaderValueOption, QueryParameter},
        service::auth::v3::{
            CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
            authorization_server::{Authorization, AuthorizationServer},
            check_response::HttpResponse,
        },
        r#type::v3::HttpStatus,
    },
    google::{
        protobuf::{BoolValue, Struct, Value, value::Kind},
        rpc,
    },
};
use tonic::{Request, Response, Status};

use crate::{
    Scene, ask, filter, get, grpc_cluster, logged, route, seen, send,
    service::{Served, Service},
    settings,
    support::{client::Client, upstream::Upstream},
    values,
};

struct Judge(Served<CheckRequest, CheckResponse>);

#[tonic::async_trait]
impl Authorization for Judge {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        self.0.serve(request).await
    }
}

fn header(key: &str, value: &str, append: Option<bool>, action: i32) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: key.to_owned(), value: value.to_owned(), ..HeaderValue::default() }),
        append: append.map(|value| BoolValue { value }),
        append_action: action,
        ..HeaderValueOption::default()
    }
}

/// Decides by the path.
fn judge(request: &CheckRequest) -> Result<CheckResponse, Option<Status>> {
    let http = request.attributes.as_ref().unwrap().request.as_ref().unwrap().http.as_ref().unwrap();
    let path = http.path.split('?').next().unwrap();
    let status = |code| Some(rpc::Status { code, ..rpc::Status::default() });
    match path {
        "/changed" => {
            let query = QueryParameter { key: "a".to_owned(), value: "9".to_owned() };
            let value = Value { kind: Some(Kind::StringValue("blue".to_owned())) };
            Ok(CheckResponse {
                status: status(0),
                http_response: Some(HttpResponse::OkResponse(OkHttpResponse {
                    headers: vec![
                        header("x-set", "s", Some(false), 0),
                        header("x-append", "s", Some(true), 0),
                        header("x-append-none", "s", Some(true), 0),
                        header("host", "elsewhere", None, 0),
                    ],
                    headers_to_remove: vec!["x-gone".to_owned(), ":path".to_owned()],
                    response_headers_to_add: vec![
                        header("r-add", "s", None, 0),
                        header("r-own", "absent", None, 1),
                        header("r-new", "absent", None, 1),
                        header("r-over", "s", None, 3),
                    ],
                    query_parameters_to_set: vec![query],
                    query_parameters_to_remove: vec!["z".to_owned()],
                    ..OkHttpResponse::default()
                })),
                dynamic_metadata: Some(Struct { fields: [("team".to_owned(), value)].into() }),
            })
        }
        "/deny" => Ok(CheckResponse {
            status: status(7),
            http_response: Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
                status: Some(HttpStatus { code: 401 }),
                headers: vec![header("x-why", "1", None, 0), header("content-type", "text/html", None, 0)],
                body: "no".to_owned(),
            })),
            ..CheckResponse::default()
        }),
        "/forbid" => Ok(CheckResponse { status: status(7), ..CheckResponse::default() }),
        "/unavailable" => Err(Some(Status::unavailable("not now"))),
        "/silent" => Err(None),
        "/twice" if http.headers.contains_key("x-once") => Err(Some(Status::unavailable("not now"))),
        "/broken" => Ok(CheckResponse {
            status: status(0),
            http_response: Some(HttpResponse::OkResponse(OkHttpResponse {
                headers: vec![header("x bad", "a\r\nb: c", None, 0)],
                ..OkHttpResponse::default()
            })),
            ..CheckResponse::default()
        }),
        _ => Ok(CheckResponse { status: status(0), ..CheckResponse::default() }),
    }
}

fn service() -> Service<CheckRequest, CheckResponse> {
    Service::start(judge, |served| {
        tonic::transport::Server::builder().add_service(AuthorizationServer::new(Judge(served)))
    })
}

const KIND: &str = "ext_authz.v3.ExtAuthz";
const PER_ROUTE: &str = "ext_authz.v3.ExtAuthzPerRoute";

fn authz(fields: &str) -> String {
    let service = "grpc_service: {envoy_grpc: {cluster_name: auth}, timeout: 20s, initial_metadata: [{key: x-who, \
                   value: culvert}]}";
    filter("ea", KIND, &format!("transport_api_version: V3, {service}, {fields}"))
}

#[test]
fn the_service_decides_and_changes() {
    let judge = service();
    let filters = [
        authz("stat_prefix: own, include_tls_session: true"),
        filter(
            "late",
            "rbac.v3.RBAC",
            "rules: {action: DENY, policies: {p: {permissions: [{metadata: {filter: envoy.filters.http.ext_authz, path: \
             [{key: team}], value: {string_match: {exact: blue}}}}], principals: [{header: {name: x-red, present_match: \
             true}}]}}}",
        ),
    ];
    let clusters = grpc_cluster("auth", judge.address);
    Scene { filters: &filters, routes: &[route("/", &[])], clusters, ..Scene::default() }.run(
        |culvert, port| {
            let own = [("x-set", "c"), ("x-append", "c"), ("x-gone", "c"), ("multi", "1"), ("multi", "2")];
            let answer = get(port, "/changed?a=1&b=2&z", &own);
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert!(
                answer.text().starts_with("GET /changed?b=2&a=9 HTTP/1.1\r\nhost: test\r\n"),
                "{}",
                answer.text()
            );
            for (name, expected) in
                [("x-set", &["s"][..]), ("x-append", &["c,s"]), ("x-append-none", &[]), ("x-gone", &[])]
            {
                assert_eq!(seen(&answer, name), expected, "{name}");
            }
            for (name, expected) in
                [("r-add", &["s"][..]), ("r-own", &["u"]), ("r-new", &["absent"]), ("r-over", &[])]
            {
                assert_eq!(values(&answer, name), expected, "{name}");
            }
            let mut asked = judge.asked();
            let (metadata, asked) = asked.remove(0);
            assert_eq!(metadata.get("x-who").unwrap(), "culvert");
            assert_eq!(metadata.get("grpc-timeout").unwrap(), "20000m");
            let attributes = asked.attributes.unwrap();
            let request = attributes.request.unwrap();
            assert!(request.time.unwrap().seconds > 1_600_000_000);
            let http = request.http.unwrap();
            assert_eq!((http.method.as_str(), http.path.as_str()), ("GET", "/changed?a=1&b=2&z"));
            assert_eq!((http.host.as_str(), http.scheme.as_str()), ("test", "http"));
            assert_eq!((http.protocol.as_str(), http.size), ("HTTP/1.1", 0));
            assert_eq!(
                (http.headers["multi"].as_str(), http.headers[":path"].as_str()),
                ("1,2", http.path.as_str())
            );
            assert!(attributes.tls_session.is_some_and(|tls| tls.sni.is_empty()));
            assert!(format!("{:?}", attributes.destination).contains(&port.to_string()));
            assert!(attributes.source.unwrap().principal.is_empty());

            assert_eq!(
                get(port, "/changed", &[("x-red", "1")]).status,
                403,
                "metadata feeds the rules behind"
            );
            let denied = get(port, "/deny", &[]);
            assert_eq!(
                (denied.status, denied.text().as_str(), denied.header("x-why")),
                (401, "no", Some("1"))
            );
            assert_eq!(values(&denied, "content-type"), ["text/html"]);
            assert_eq!(get(port, "/forbid", &[]).status, 403);
            let grpc = ask(port, "POST", "/deny", &[("content-type", "application/grpc")], b"");
            assert_eq!(
                (grpc.status, grpc.header("grpc-status"), grpc.header("x-why")),
                (200, Some("16"), Some("1"))
            );
            assert_eq!(get(port, "/unavailable", &[]).status, 403);
            assert_eq!(get(port, "/broken", &[]).status, 403);
            logged(culvert, "/deny 401 UAEX ext_authz_denied 0");
            logged(culvert, "/unavailable 403 UAEX ext_authz_error 0");
            logged(culvert, "/broken 403 UAEX ext_authz_error 0");
            for (scope, ok) in [("http.s", 2), ("cluster.up", 2)] {
                let stat = |name: &str| culvert.stat(&format!("{scope}.ext_authz.own.{name}"));
                assert_eq!((stat("ok"), stat("denied"), stat("error")), (ok, 3, 2), "{scope}");
            }
            assert_eq!(culvert.stat("cluster.up.upstream_rq_401"), 2);
            assert_eq!(culvert.stat("cluster.auth.upstream_rq_total"), 7);
            assert_eq!(
                culvert.stat("cluster.auth.upstream_cx_active"),
                culvert.stat("cluster.auth.upstream_cx_total")
            );
            judge.asked();
        },
    );
}

#[test]
fn the_body_is_shown_and_reaches_the_upstream() {
    let judge = service();
    let filters = [authz("with_request_body: {max_request_bytes: 10, allow_partial_message: true}")];
    let raw = "check_settings: {with_request_body: {max_request_bytes: 10, pack_as_bytes: true}}";
    let none =
        "check_settings: {disable_request_body_buffering: true, context_extensions: {a: route, b: route}}";
    let routes = [
        route("/whole", &[settings("ea", PER_ROUTE, raw)]),
        route("/none", &[settings("ea", PER_ROUTE, none)]),
        route("/", &[]),
    ];
    let host = format!(
        "typed_per_filter_config: {{{}}},",
        settings("ea", PER_ROUTE, "check_settings: {context_extensions: {a: host, c: host}}")
    );
    let clusters = grpc_cluster("auth", judge.address);
    Scene { filters: &filters, host: &host, routes: &routes, clusters, ..Scene::default() }.run(
        |culvert, port| {
            let http = || judge.only().attributes.unwrap().request.unwrap().http.unwrap();
            let long = vec![b'x'; 300_000];
            let answer = ask(port, "POST", "/part", &[], &long);
            assert!(answer.status == 200 && answer.body.ends_with(&long), "all of it arrives");
            let shown = http();
            assert_eq!((shown.body.len(), shown.headers["x-envoy-auth-partial-body"].as_str()), (10, "true"));
            assert!(ask(port, "POST", "/part", &[], b"short").text().ends_with("short"));
            let shown = http();
            assert_eq!((shown.body.as_str(), shown.size), ("short", 5));
            assert_eq!(shown.headers["x-envoy-auth-partial-body"], "false");

            let mut client = Client::connect(port);
            client.send("POST /whole HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
            client.send("4\r\n\u{ff}ab\r\n");
            client.send("0\r\n\r\n");
            assert!(client.response("POST").text().ends_with("\u{ff}ab"));
            assert_eq!(http().raw_body, "\u{ff}ab".as_bytes());
            send(&mut client, "POST", "/whole", &[], b"01234567890");
            let large = client.response("POST");
            assert_eq!((large.status, large.text().as_str()), (413, "Payload Too Large"));
            logged(culvert, "/whole 413 - request_payload_too_large 11");
            assert!(judge.asked().is_empty());

            assert!(ask(port, "POST", "/none", &[], b"body").text().ends_with("body"));
            let asked = judge.only().attributes.unwrap();
            let shown = asked.request.unwrap().http.unwrap();
            assert!(shown.body.is_empty() && !shown.headers.contains_key("x-envoy-auth-partial-body"));
            let context = ["a", "b", "c"].map(|key| asked.context_extensions[key].clone());
            assert_eq!(context, ["route", "route", "host"]);

            let mut client = Client::connect(port);
            send(&mut client, "POST", "/deny", &[], b"short");
            assert_eq!(client.response("POST").status, 401);
            assert_eq!(client.get("/").status, 200, "all was read, so the connection goes on");
            logged(culvert, "/deny 401 UAEX ext_authz_denied 5");
            judge.asked();
        },
    );
}

#[test]
fn without_a_decision_the_mode_of_failure_says_what_happens() {
    let judge = service();
    let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = Upstream::start(|mut stream| drop(std::io::copy(&mut stream, &mut std::io::sink())));
    let garbage = Upstream::start(|mut stream| {
        drop(std::io::Write::write_all(
            &mut stream,
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
        ));
    });
    let of = |cluster: &str, timeout: &str| {
        format!(
            "transport_api_version: V3, grpc_service: {{envoy_grpc: {{cluster_name: {cluster}}}, timeout: {timeout}}}"
        )
    };
    let open = "failure_mode_allow: true, failure_mode_allow_header_add: true";
    let filters = [
        filter("open", KIND, &format!("{}, {open}", of("auth", "0.1s"))),
        filter("refused", KIND, &format!("{}, {open}", of("refused", "20s"))),
        filter("garbage", KIND, &format!("{}, {open}", of("garbage", "20s"))),
        filter("silent", KIND, &format!("{}, {open}", of("silent", "0.1s"))),
        filter("missing", KIND, &format!("{}, {open}", of("missing", "20s"))),
        filter("closed", KIND, &format!("{}, status_on_error: {{code: BadGateway}}", of("auth", "0.1s"))),
    ];
    let off = |names: &[&str]| -> Vec<String> {
        names.iter().map(|name| settings(name, PER_ROUTE, "disabled: true")).collect()
    };
    let routes = [
        "{match: {path: /silent}, route: {cluster: up}}".to_owned(),
        route("/open", &off(&["closed"])),
        route("/", &off(&["open", "refused", "garbage", "silent", "missing", "closed"])),
    ];
    let clusters = grpc_cluster("auth", judge.address)
        + &grpc_cluster("refused", refusing)
        + &grpc_cluster("silent", silent.address)
        + &grpc_cluster("garbage", garbage.address);
    Scene { filters: &filters, routes: &routes, clusters, ..Scene::default() }.run(|culvert, port| {
        let before = judge.given_up();
        let failed = get(port, "/silent", &[]);
        assert_eq!((failed.status, failed.text().as_str()), (502, ""));
        culvert.wait_until("the calls were given up", |_| judge.given_up() == before + 2);
        assert_eq!(culvert.stat("cluster.silent.upstream_rq_timeout"), 1);
        assert_eq!(culvert.stat("http.s.ext_authz.failure_mode_allowed"), 5);
        assert_eq!(culvert.stat("http.s.ext_authz.error"), 6);
        judge.asked();
        let allowed = get(port, "/open", &[]);
        assert_eq!(allowed.status, 200);
        assert_eq!(seen(&allowed, "x-envoy-auth-failure-mode-allowed"), ["true"]);
        judge.only();
        assert_eq!(get(port, "/anything", &[]).status, 200);
        assert!(judge.asked().is_empty(), "the route turns them off");
    });
}

#[test]
fn a_client_that_goes_takes_its_call_along() {
    let judge = service();
    let clusters = grpc_cluster("auth", judge.address);
    Scene { filters: &[authz("")], routes: &[route("/", &[])], clusters, ..Scene::default() }.run(
        |culvert, port| {
            let before = judge.given_up();
            let mut client = Client::connect(port);
            send(&mut client, "GET", "/silent", &[], b"");
            culvert.wait_until("the service is asked", |_| !judge.asked().is_empty());
            // A connection that is reset is gone; one that is only finished may still read.
            socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
            drop(client);
            culvert.wait_until("the call was given up", |_| judge.given_up() == before + 1);
            logged(culvert, "/silent 0 DC downstream_remote_disconnect 0");
            assert_eq!(culvert.stat("cluster.auth.upstream_rq_cancelled"), 1);
            assert_eq!(culvert.stat("cluster.auth.upstream_rq_active"), 0);
        },
    );
}

#[test]
fn calls_are_tried_again_and_routes_looked_for_again() {
    let judge = service();
    let service = "grpc_service: {envoy_grpc: {cluster_name: auth, authority: judge.example}, timeout: 20s, retry_policy: \
                   {retry_on: unavailable, num_retries: 3, retry_back_off: {base_interval: 0.001s}}}";
    let filters =
        [filter("ea", KIND, &format!("transport_api_version: V3, {service}, clear_route_cache: true"))];
    let routes = [
        "{match: {prefix: /, headers: [{name: x-set, string_match: {exact: s}}]}, direct_response: {status: 299}}".to_owned(),
        route("/", &[]),
    ];
    let clusters = grpc_cluster("auth", judge.address);
    Scene { filters: &filters, routes: &routes, clusters, ..Scene::default() }.run(|culvert, port| {
        assert_eq!(get(port, "/twice", &[("x-once", "1")]).status, 403);
        assert_eq!(judge.asked().len(), 4);
        assert_eq!(culvert.stat("cluster.auth.upstream_rq_retry"), 3);
        assert_eq!(get(port, "/twice", &[]).status, 200);
        assert_eq!(judge.asked().len(), 1);
        assert_eq!(get(port, "/changed", &[]).status, 299, "what the service has set leads to another route");
        judge.asked();
    });
}
