//! The server over real sockets, with a backend that remembers what it was asked.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use super::*;
use crate::control::admin::{
    ClusterView, DrainRequest, HostAddress, HostView, ListenerView, ServerInfo, ServerState,
};
use crate::observe::stats::{ClusterStats, CodeStats, Registry};

struct Fake {
    registry: Registry,
    calls: Arc<Mutex<Vec<String>>>,
    state: RefCell<ServerState>,
    quit: tokio::sync::Notify,
    cluster: Arc<ClusterStats>,
    codes: Arc<CodeStats>,
}

impl Fake {
    fn new(calls: Arc<Mutex<Vec<String>>>) -> Self {
        let fake = Self {
            registry: Registry::new(),
            calls,
            state: RefCell::new(ServerState::Live),
            quit: tokio::sync::Notify::new(),
            cluster: Arc::default(),
            codes: Arc::new(CodeStats::upstream()),
        };
        fake.registry.register("cluster.backend", fake.cluster.clone());
        fake.registry.register("cluster.backend", fake.codes.clone());
        fake.cluster.upstream_rq_total.add(6);
        fake.codes.record(200);
        fake
    }

    fn note(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }
}

impl Backend for Fake {
    fn state(&self) -> ServerState {
        *self.state.borrow()
    }

    fn server_info(&self) -> ServerInfo {
        ServerInfo {
            version: "sha/1.2.3/Clean/RELEASE/none".into(),
            uptime: Duration::from_millis(4_900),
            command_line_options: json!({"mode": "Serve"}),
            node: json!({"id": "n1"}),
        }
    }

    fn registry(&self) -> Registry {
        self.registry.clone()
    }

    fn refresh_stats(&self) {
        self.note("refresh");
    }

    fn clusters(&self) -> Vec<ClusterView> {
        let mut host = HostView::new(HostAddress::Ip("127.0.0.1:18090".parse().unwrap()));
        (host.hostname, host.cx_total, host.rq_success, host.rq_total) = ("bk".into(), 7, 6, 7);
        let mut sick = HostView::new(HostAddress::Pipe("/tmp/up.sock".into()));
        (sick.health.failed_active_hc, sick.health.failed_eds_health) = (true, true);
        (sick.priority, sick.locality.zone) = (1, "z".into());
        let view = |name: &str, hosts| ClusterView {
            name: name.into(),
            observability_name: name.into(),
            added_via_api: false,
            eds_service_name: None,
            limits_default: Default::default(),
            limits_high: Default::default(),
            hosts,
        };
        vec![view("backend", vec![host]), view("dead", vec![sick])]
    }

    fn listeners(&self) -> Vec<ListenerView> {
        let ip = |text: &str| HostAddress::Ip(text.parse().unwrap());
        let addresses = vec![ip("0.0.0.0:18080"), ip("[::1]:18080")];
        vec![
            ListenerView { name: "ingress".into(), addresses },
            ListenerView { name: "pipe".into(), addresses: vec![HostAddress::Pipe("/tmp/l.sock".into())] },
        ]
    }

    fn config_dump(&self, include_endpoints: bool) -> Vec<Value> {
        let listener = |name: &str| json!({"listener": {"@type": "L", "name": name, "address": {"x": 1}}, "last_updated": "t"});
        let mut configs = vec![
            json!({"@type": "B", "bootstrap": {"node": {"id": "n1"}, "admin": {}}, "last_updated": "t"}),
            json!({"@type": "LD", "static_listeners": [listener("ingress"), listener("egress")]}),
        ];
        if include_endpoints {
            let endpoints = json!({"endpoint_config": {"@type": "E", "cluster_name": "c"}});
            configs.push(json!({"@type": "ED", "static_endpoint_configs": [endpoints]}));
        }
        configs
    }

    fn drain_listeners(&self, request: DrainRequest) {
        self.note(format!(
            "{:?} graceful={} skip_exit={}",
            request.scope, request.graceful, request.skip_exit
        ));
    }

    fn fail_health_checks(&self, fail: bool) {
        *self.state.borrow_mut() = if fail { ServerState::Draining } else { ServerState::Live };
    }

    fn quit(&self) {
        self.quit.notify_one();
    }

    fn reopen_logs(&self) {
        self.note("reopen");
    }

    fn unready_targets(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A server on a thread of its own, which ends when this is dropped or `/quitquitquit` is called.
struct Running {
    address: String,
    calls: Arc<Mutex<Vec<String>>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Running {
    fn start(listen: Listen) -> Self {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (send, receive) = mpsc::channel();
        let shared = calls.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let admin = Admin::bind(&listen).await.unwrap();
                send.send(admin.address().to_owned()).unwrap();
                let backend = Rc::new(Fake::new(shared));
                tokio::select! {
                    () = admin.run(backend.clone()) => {}
                    () = backend.quit.notified() => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address: receive.recv().unwrap(), calls, stop: Some(stop), thread: Some(thread) }
    }

    fn tcp() -> Self {
        Self::start(Listen::Ip("127.0.0.1:0".parse().unwrap()))
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        // The server may have answered and closed before it has seen everything.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Status code, head and body.
    fn ask(&self, method: &str, target: &str) -> (u16, String, String) {
        split(
            &self.raw(
                format!("{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes(),
            ),
        )
    }

    fn get(&self, target: &str) -> (u16, String) {
        let (status, _, body) = self.ask("GET", target);
        (status, body)
    }

    fn post(&self, target: &str) -> (u16, String) {
        let (status, _, body) = self.ask("POST", target);
        (status, body)
    }

    fn json(&self, target: &str) -> Value {
        let (status, head, body) = self.ask("GET", target);
        assert_eq!(status, 200, "{target}: {body}");
        assert!(head.contains("content-type: application/json"), "{head}");
        serde_json::from_str(&body).unwrap()
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            assert!(result.is_ok() || thread::panicking());
        }
    }
}

fn split(answer: &str) -> (u16, String, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap();
    (status, head.to_owned(), body.to_owned())
}

#[test]
fn readiness_follows_the_health_switch() {
    let server = Running::tcp();
    assert_eq!(server.get("/ready"), (200, "LIVE\n".into()));
    assert_eq!(server.post("/healthcheck/fail"), (200, "OK\n".into()));
    assert_eq!(server.get("/ready"), (503, "DRAINING\n".into()));
    assert_eq!(server.json("/server_info")["state"], "DRAINING");
    assert_eq!(server.post("/healthcheck/ok"), (200, "OK\n".into()));
    assert_eq!(server.get("/ready").0, 200);
}

#[test]
fn answers_carry_envoys_headers() {
    let server = Running::tcp();
    let (_, head, _) = server.ask("GET", "/ready");
    for header in [
        "content-type: text/plain; charset=UTF-8",
        "cache-control: no-cache, max-age=0",
        "x-content-type-options: nosniff",
        "server: culvert",
        "date: ",
    ] {
        assert!(head.contains(header), "{header} in {head}");
    }
    let (status, head, body) = server.ask("HEAD", "/ready");
    assert_eq!((status, body.as_str()), (200, ""));
    assert!(head.contains("content-length: 5"), "{head}");
}

#[test]
fn what_changes_something_needs_post() {
    let server = Running::tcp();
    for path in [
        "/quitquitquit",
        "/drain_listeners",
        "/healthcheck/fail",
        "/healthcheck/ok",
        "/reset_counters",
        "/reopen_logs",
        "/logging",
    ] {
        assert_eq!(server.get(path), (405, "Method GET not allowed, POST required.".into()), "{path}");
    }
    assert_eq!(server.ask("PUT", "/logging").2, "Method PUT not allowed, POST required.");
    assert_eq!(server.post("/ready").0, 200);
    assert!(server.calls().is_empty());
}

#[test]
fn draining_passes_its_parameters_on() {
    let server = Running::tcp();
    for target in ["/drain_listeners", "/drain_listeners?graceful&inboundonly", "/drain_listeners?skip_exit"]
    {
        assert_eq!(server.post(target), (200, "OK\n".into()));
    }
    let expected = [
        "All graceful=false skip_exit=false",
        "Inbound graceful=true skip_exit=false",
        "All graceful=false skip_exit=true",
    ];
    assert_eq!(server.calls(), expected);
}

#[test]
fn quitting_is_answered() {
    let mut server = Running::tcp();
    assert_eq!(server.post("/quitquitquit"), (200, "OK\n".into()));
    server.thread.take().unwrap().join().unwrap();
}

#[test]
fn an_unknown_path_gets_the_help() {
    let server = Running::tcp();
    let (status, body) = server.get("/foo");
    assert_eq!(status, 404);
    assert!(body.starts_with("invalid path. admin commands are:\n  /: Admin home page\n"), "{body}");
    assert!(body.contains("\n  /quitquitquit (POST): exit the server\n"));
    assert_eq!(server.get("/help"), (200, body.trim_start_matches("invalid path. ").into()));
    assert_eq!(server.get("/READY").0, 404);
    let (status, head, body) = server.ask("GET", "/");
    assert_eq!(status, 200);
    assert!(head.contains("text/html") && body.contains("action='quitquitquit' method='post'"));
}

#[test]
fn clusters_as_text_are_envoys_lines() {
    let server = Running::tcp();
    let (_, body) = server.get("/clusters?filter=^backend$");
    assert_eq!(
        body,
        "backend::observability_name::backend\n\
         backend::default_priority::max_connections::1024\n\
         backend::default_priority::max_pending_requests::1024\n\
         backend::default_priority::max_requests::1024\n\
         backend::default_priority::max_retries::3\n\
         backend::high_priority::max_connections::1024\n\
         backend::high_priority::max_pending_requests::1024\n\
         backend::high_priority::max_requests::1024\n\
         backend::high_priority::max_retries::3\n\
         backend::added_via_api::false\n\
         backend::127.0.0.1:18090::cx_active::0\n\
         backend::127.0.0.1:18090::cx_connect_fail::0\n\
         backend::127.0.0.1:18090::cx_total::7\n\
         backend::127.0.0.1:18090::rq_active::0\n\
         backend::127.0.0.1:18090::rq_error::0\n\
         backend::127.0.0.1:18090::rq_pending_active::0\n\
         backend::127.0.0.1:18090::rq_success::6\n\
         backend::127.0.0.1:18090::rq_timeout::0\n\
         backend::127.0.0.1:18090::rq_total::7\n\
         backend::127.0.0.1:18090::hostname::bk\n\
         backend::127.0.0.1:18090::health_flags::healthy\n\
         backend::127.0.0.1:18090::weight::1\n\
         backend::127.0.0.1:18090::region::\n\
         backend::127.0.0.1:18090::zone::\n\
         backend::127.0.0.1:18090::sub_zone::\n\
         backend::127.0.0.1:18090::canary::false\n\
         backend::127.0.0.1:18090::priority::0\n\
         backend::127.0.0.1:18090::success_rate::-1\n\
         backend::127.0.0.1:18090::local_origin_success_rate::-1\n"
    );
    let (_, body) = server.get("/clusters?filter=dead");
    assert!(
        body.contains("dead::/tmp/up.sock::health_flags::/failed_active_hc/failed_eds_health\n"),
        "{body}"
    );
    assert_eq!(server.get("/clusters?filter=("), (400, "Invalid re2 regex".into()));
}

#[test]
fn clusters_as_json_are_envoys_message() {
    let server = Running::tcp();
    let body = server.json("/clusters?format=json");
    let host = &body["cluster_statuses"][0]["host_statuses"][0];
    assert_eq!(
        *host,
        json!({
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 18090}},
            "stats": [
                {"name": "cx_connect_fail"},
                {"value": "7", "name": "cx_total"},
                {"name": "rq_error"},
                {"value": "6", "name": "rq_success"},
                {"name": "rq_timeout"},
                {"value": "7", "name": "rq_total"},
                {"type": "GAUGE", "name": "cx_active"},
                {"type": "GAUGE", "name": "rq_active"},
                {"type": "GAUGE", "name": "rq_pending_active"},
            ],
            "health_status": {"eds_health_status": "HEALTHY"},
            "weight": 1,
            "hostname": "bk",
            "locality": {},
        })
    );
    let thresholds = &body["cluster_statuses"][0]["circuit_breakers"]["thresholds"];
    assert_eq!(thresholds[1]["priority"], "HIGH");
    assert_eq!(thresholds[0]["max_retries"], 3);
    let sick = &body["cluster_statuses"][1]["host_statuses"][0];
    assert_eq!(sick["address"], json!({"pipe": {"path": "/tmp/up.sock"}}));
    let health = json!({"failed_active_health_check": true, "eds_health_status": "UNHEALTHY"});
    assert_eq!(
        (&sick["health_status"], &sick["priority"], &sick["locality"]),
        (&health, &json!(1), &json!({"zone": "z"}))
    );
}

#[test]
fn listeners_as_text_and_json() {
    let server = Running::tcp();
    assert_eq!(
        server.get("/listeners"),
        (200, "ingress::0.0.0.0:18080\ningress::[::1]:18080\npipe::/tmp/l.sock\n".into())
    );
    let body = server.json("/listeners?format=json");
    assert_eq!(
        body["listener_statuses"][0],
        json!({
            "name": "ingress",
            "local_address": {"socket_address": {"address": "0.0.0.0", "port_value": 18080}},
            "additional_local_addresses": [{"socket_address": {"address": "::1", "port_value": 18080}}],
        })
    );
    assert_eq!(body["listener_statuses"][1]["local_address"], json!({"pipe": {"path": "/tmp/l.sock"}}));
}

#[test]
fn statistics_in_every_format() {
    let server = Running::tcp();
    let used = "usedonly&filter=upstream_rq";
    let text = "cluster.backend.upstream_rq_200: 1\n\
                cluster.backend.upstream_rq_2xx: 1\n\
                cluster.backend.upstream_rq_completed: 1\n\
                cluster.backend.upstream_rq_total: 6\n";
    assert_eq!(server.get(&format!("/stats?{used}")), (200, text.into()));
    let (_, html) = server.get(&format!("/stats?format=html&{used}"));
    assert!(html.contains(text), "{html}");
    let body = server.json(&format!("/stats?format=json&{used}"));
    assert_eq!(body["stats"][3], json!({"name": "cluster.backend.upstream_rq_total", "value": 6}));
    for target in [format!("/stats/prometheus?{used}"), format!("/stats?format=prometheus&{used}")] {
        let (_, body) = server.get(&target);
        assert!(
            body.starts_with(
                "# HELP envoy_cluster_upstream_rq Answers, by status.\n\
                 # TYPE envoy_cluster_upstream_rq counter\n\
                 envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"backend\"} 1\n"
            ),
            "{body}"
        );
    }
    assert!(server.calls().iter().all(|call| call == "refresh"));
}

#[test]
fn bad_parameters_of_statistics_are_refused() {
    let server = Running::tcp();
    for (target, answer) in [
        ("/stats?format=blah", "usage: /stats?format=(html|json|prometheus|text)\n\n"),
        ("/stats?type=foo", "invalid &type= param"),
        ("/stats?histogram_buckets=foo", "usage: /stats?histogram_buckets=(cumulative|disjoint|summary)\n"),
    ] {
        assert_eq!(server.get(target), (400, answer.into()), "{target}");
    }
    let (status, body) = server.get("/stats?filter=%5B(");
    assert_eq!(status, 400);
    assert!(body.starts_with("Invalid re2 regex: "), "{body}");
    assert_eq!(server.get("/stats?filter=(a%7B1000%7D)%7B1000%7D").0, 400);
}

#[test]
fn counters_are_reset() {
    let server = Running::tcp();
    assert_eq!(server.post("/reset_counters"), (200, "OK\n".into()));
    assert_eq!(server.get("/stats?filter=upstream_rq_total").1, "cluster.backend.upstream_rq_total: 0\n");
}

#[test]
fn server_info_is_envoys_message() {
    let server = Running::tcp();
    assert_eq!(
        server.json("/server_info"),
        json!({
            "version": "sha/1.2.3/Clean/RELEASE/none",
            "state": "LIVE",
            "uptime_current_epoch": "4s",
            "uptime_all_epochs": "4s",
            "hot_restart_version": "disabled",
            "command_line_options": {"mode": "Serve"},
            "node": {"id": "n1"},
        })
    );
    assert_eq!(server.json("/certs"), json!({"certificates": []}));
    assert_eq!(server.json("/runtime"), json!({"layers": [], "entries": {}}));
    assert_eq!(server.json("/init_dump"), json!({}));
    assert_eq!(server.get("/hot_restart_version").1, "disabled");
    assert!(server.json("/memory")["total_physical_bytes"].as_str().unwrap().parse::<u64>().unwrap() > 0);
    assert_eq!(server.post("/reopen_logs"), (200, "OK\n".into()));
    assert_eq!(server.calls(), ["reopen"]);
}

#[test]
fn config_dump_whole_and_in_parts() {
    let server = Running::tcp();
    let whole = server.json("/config_dump");
    assert_eq!(whole["configs"].as_array().unwrap().len(), 2);
    assert_eq!(server.json("/config_dump?include_eds")["configs"].as_array().unwrap().len(), 3);

    let named = server.json("/config_dump?name_regex=in.*");
    assert_eq!(named["configs"][0], whole["configs"][0]);
    assert_eq!(named["configs"][1]["static_listeners"].as_array().unwrap().len(), 1);
    // The whole name has to match.
    let none = server.json("/config_dump?name_regex=gress");
    assert_eq!(none["configs"][1]["static_listeners"], json!([]));

    let parts = server.json("/config_dump?resource=static_listeners&mask=listener.name");
    let part = |name: &str| {
        json!({
            "@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump.StaticListener",
            "listener": {"@type": "L", "name": name},
        })
    };
    assert_eq!(parts, json!({"configs": [part("ingress"), part("egress")]}));
    assert_eq!(server.json("/config_dump?resource=dynamic_listeners"), json!({}));
    let endpoints = server.json("/config_dump?resource=static_endpoint_configs&name_regex=c");
    assert_eq!(endpoints["configs"][0]["endpoint_config"]["cluster_name"], "c");

    let masked = server.json("/config_dump?mask=bootstrap.node");
    assert_eq!(masked, json!({"configs": [{"@type": "B", "bootstrap": {"node": {"id": "n1"}}}]}));
}

#[test]
fn bad_parameters_of_config_dump_are_refused() {
    let server = Running::tcp();
    assert_eq!(server.get("/config_dump?resource=foo"), (404, "foo not found in config dump".into()));
    assert_eq!(
        server.get("/config_dump?resource=bootstrap"),
        (400, "bootstrap is not a repeated field. Use ?mask=bootstrap to get only this field".into())
    );
    assert_eq!(
        server.get("/config_dump?mask=foo"),
        (400, "FieldMask foo could not be successfully applied to any configs.".into())
    );
    let (status, body) = server.get("/config_dump?name_regex=(");
    assert_eq!(status, 400);
    assert!(body.starts_with("INVALID_ARGUMENT: Error while parsing name_regex from (: "), "{body}");
    assert_eq!(server.get("/config_dump?name_regex=a)(b").0, 400);
}

#[test]
fn logging_shows_and_refuses() {
    let server = Running::tcp();
    let (status, body) = server.post("/logging");
    assert_eq!(status, 200);
    assert!(body.starts_with("active loggers:\n  admin: "), "{body}");
    for (target, error) in [
        ("/logging?level=loud", "unknown logger level"),
        ("/logging?nosuch=debug", "unknown logger name"),
        ("/logging?http=loud", "unknown logger level"),
        ("/logging?http=debug&tcp=debug", "invalid number of parameters"),
        ("/logging?paths=http", "empty logger name or empty logger level"),
        ("/logging?paths=http:debug,nosuch:debug", "unknown logger name"),
    ] {
        let (status, body) = server.post(target);
        assert_eq!(status, 400, "{target}");
        assert!(
            body.starts_with(&format!("error: {error}\n\nusage: /logging?<name>=<level>")),
            "{target}: {body}"
        );
    }
}

#[test]
fn logging_changes_levels_by_query_and_by_form() {
    // `misc` alone, so that tests of the levels beside this one do not disturb it for long.
    let server = Running::tcp();
    let until = Instant::now() + Duration::from_secs(30);
    while !server.post("/logging?misc=error").1.contains("  misc: error\n") {
        assert!(Instant::now() < until);
    }
    let form = "level=&paths=misc%3Adebug&group=";
    while !server
        .raw(
            format!(
                "POST /logging HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\
                 content-type: application/x-www-form-urlencoded\r\n\r\n{form}",
                form.len()
            )
            .as_bytes(),
        )
        .contains("  misc: debug\n")
    {
        assert!(Instant::now() < until);
    }
}

#[test]
fn garbage_is_refused_and_the_server_lives() {
    let server = Running::tcp();
    for garbage in [
        b"GARBAGE\r\n\r\n".as_slice(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\n\r\n",
        b"POST /logging HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /logging HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"\xff\xff\xff\xff\r\n\r\n\r\n",
    ] {
        let mut stream = server.connect();
        stream.write_all(garbage).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{garbage:?}: {answer}");
    }
    for target in ["/stats?filter=%ff%fe&format=json", "/%00", "/logging?%%%", "/clusters?filter=%2500", "*"]
    {
        let (status, _) = server.get(target);
        assert!([200, 400, 404, 405].contains(&status), "{target}: {status}");
    }
    assert_eq!(server.get("/ready").0, 200);
}

#[test]
fn requests_are_bounded_in_size() {
    let server = Running::tcp();
    let head = format!("GET /ready HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(2 * HEAD_MAX));
    assert_eq!(split(&server.raw(head.as_bytes())).0, 431);
    let body = vec![b'a'; BODY_MAX + 1];
    let mut request =
        format!("POST /logging HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
    request.extend_from_slice(&body);
    assert_eq!(split(&server.raw(&request)).0, 413);
    assert_eq!(server.get("/ready").0, 200);
}

#[test]
fn slow_clients_do_not_keep_others_out() {
    let server = Running::tcp();
    let slow: Vec<TcpStream> = (0..CONNECTIONS_MAX + 16)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(b"GET /ready HTT").unwrap();
            stream
        })
        .collect();
    assert_eq!(server.get("/ready").0, 200);
    // The oldest were displaced: their connection is at its end.
    let mut oldest = slow.into_iter().next().unwrap();
    let mut rest = Vec::new();
    let ended = oldest.read_to_end(&mut rest);
    assert!(rest.is_empty() && !ended.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock));
}

#[test]
fn a_connection_serves_several_requests() {
    let server = Running::tcp();
    let mut stream = server.connect();
    for _ in 0..3 {
        stream.write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        let mut part = [0; 512];
        while !answer.ends_with(b"LIVE\n") {
            let read = stream.read(&mut part).unwrap();
            assert!(read > 0, "the connection ended");
            answer.extend_from_slice(&part[..read]);
        }
    }
}

#[test]
fn a_unix_socket_has_its_mode_and_replaces_a_stale_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    drop(unix::UnixListener::bind(&path).unwrap());
    let server = Running::start(Listen::Pipe { path: path.clone(), mode: 0o600 });
    assert_eq!(server.address, path.display().to_string());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut stream = unix::UnixStream::connect(&path).unwrap();
    stream.write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("LIVE\n"), "{answer}");

    // One that still answers is left alone.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let listen = Listen::Pipe { path: path.clone(), mode: 0 };
    let error = runtime.block_on(Admin::bind(&listen)).unwrap_err();
    assert!(error.to_string().starts_with(&format!("admin address {}: ", path.display())), "{error}");
    drop(server);
    assert!(!path.exists());
}

#[test]
fn a_file_that_is_no_socket_is_not_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("precious");
    fs::write(&path, "data").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let listen = Listen::Pipe { path: path.clone(), mode: 0 };
    assert!(runtime.block_on(Admin::bind(&listen)).is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), "data");
}

#[test]
fn an_abstract_socket_and_a_port_in_use() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let name = format!("@culvert-admin-test-{}", std::process::id());
        let admin = Admin::bind(&Listen::Pipe { path: name.clone().into(), mode: 0o600 }).await.unwrap();
        assert_eq!(admin.address(), name);
        let first = Admin::bind(&Listen::Ip("127.0.0.1:0".parse().unwrap())).await.unwrap();
        let again = Listen::Ip(first.address().parse().unwrap());
        let error = Admin::bind(&again).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("admin address {}: ", first.address())), "{error}");
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("address");
        first.write_address(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), first.address());
    });
}
