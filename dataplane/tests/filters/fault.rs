//! `fault`

use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::{
    Scene, filter, get, logged, route, settings,
    support::{client::Client, culvert::Culvert},
};

const ALWAYS: &str = "percentage: {numerator: 100}";
const GRPC: (&str, &str) = ("content-type", "application/grpc");

fn with(faults: &[(&str, &str)], test: impl Fn(&Culvert, u16)) {
    let routes: Vec<_> = faults
        .iter()
        .map(|(prefix, fault)| route(prefix, &[settings("f", "fault.v3.HTTPFault", fault)]))
        .chain([route("/", &[])])
        .collect();
    let filters = [filter("f", "fault.v3.HTTPFault", "")];
    Scene { filters: &filters, config: "", host: "", routes: &routes }.run(test);
}

#[test]
fn requests_are_answered_with_errors() {
    let faults = [
        ("/http", format!("abort: {{http_status: 418, {ALWAYS}}}")),
        ("/never", "abort: {http_status: 418}".to_owned()),
        ("/body", format!("abort: {{http_status: 500, response_body: sorry, {ALWAYS}}}")),
        ("/grpc", format!("abort: {{grpc_status: 5, {ALWAYS}}}")),
        ("/header", format!("abort: {{header_abort: {{}}, {ALWAYS}}}")),
        ("/node", format!("abort: {{http_status: 418, {ALWAYS}}}, downstream_nodes: [n1, n2]")),
        ("/cluster", format!("abort: {{http_status: 418, {ALWAYS}}}, upstream_cluster: up")),
        ("/other", format!("abort: {{http_status: 418, {ALWAYS}}}, upstream_cluster: down")),
        (
            "/match",
            format!(
                "abort: {{http_status: 418, {ALWAYS}}}, headers: [{{name: x, string_match: {{exact: y}}}}]"
            ),
        ),
    ];
    let faults: Vec<_> = faults.iter().map(|(prefix, fault)| (*prefix, fault.as_str())).collect();
    with(&faults, |culvert, port| {
        let status = |path: &str, fields: &[(&str, &str)]| get(port, path, fields).status;
        assert_eq!(status("/", &[]), 200);
        let http = get(port, "/http", &[]);
        assert_eq!((http.status, http.text().as_str()), (418, "fault filter abort"));
        logged(culvert, "/http 418 FI fault_filter_abort");
        assert_eq!(status("/never", &[]), 200);
        assert_eq!(get(port, "/body", &[]).text(), "sorry");
        let grpc = get(port, "/grpc", &[GRPC]);
        assert_eq!((grpc.status, grpc.header("grpc-status")), (200, Some("5")));
        assert_eq!(grpc.header("grpc-message"), Some("fault filter abort"));
        assert_eq!(get(port, "/grpc", &[]).text(), "fault filter abort");
        assert_eq!(status("/header", &[]), 200);
        assert_eq!(status("/header", &[("x-envoy-fault-abort-request", "503")]), 503);
        assert_eq!(status("/node", &[]), 200);
        assert_eq!(status("/node", &[("x-envoy-downstream-service-node", "n2")]), 418);
        assert_eq!((status("/cluster", &[]), status("/other", &[])), (418, 200));
        assert_eq!((status("/match", &[]), status("/match", &[("x", "y")])), (200, 418));
        assert_eq!(culvert.stat("http.s.fault.aborts_injected"), 8);
        assert_eq!(culvert.stat("http.s.fault.active_faults"), 0);
    });
}

#[test]
fn requests_are_held_up() {
    let fixed = format!("delay: {{fixed_delay: 0.3s, {ALWAYS}}}");
    let both = format!("{fixed}, abort: {{http_status: 503, {ALWAYS}}}");
    let header = format!("delay: {{header_delay: {{}}, {ALWAYS}}}");
    with(&[("/fixed", &fixed), ("/both", &both), ("/header", &header)], |culvert, port| {
        let begun = Instant::now();
        assert_eq!(get(port, "/fixed", &[]).status, 200);
        assert_eq!(get(port, "/both", &[]).status, 503);
        assert_eq!(get(port, "/header", &[("x-envoy-fault-delay-request", "300")]).status, 200);
        assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
        assert_eq!(get(port, "/header", &[]).status, 200);
        logged(culvert, "/fixed 200 DI via_upstream");
        logged(culvert, "/both 503 DI,FI fault_filter_abort");
        assert_eq!(culvert.stat("http.s.fault.delays_injected"), 3);
    });
}

#[test]
fn there_are_only_so_many_at_once() {
    let fault = format!("max_active_faults: 2, delay: {{fixed_delay: 3600s, {ALWAYS}}}");
    with(&[("/slow", &fault)], |culvert, port| {
        let held: Vec<_> = (0..2)
            .map(|_| {
                let mut client = Client::connect(port);
                client.send("GET /slow HTTP/1.1\r\nhost: test\r\n\r\n");
                client
            })
            .collect();
        culvert.wait_until("two faults", |c| c.stat("http.s.fault.active_faults") == 2);
        // Over all workers: whichever gets it.
        for _ in 0..4 {
            assert_eq!(get(port, "/slow", &[]).status, 200);
        }
        assert_eq!(culvert.stat("http.s.fault.faults_overflow"), 4);
        // A mere end of what they send could be half of a close.
        for client in held {
            SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        culvert.wait_until("their end", |c| c.stat("http.s.fault.active_faults") == 0);
        logged(culvert, "/slow 0 DI,DC downstream_remote_disconnect");
    });
}
