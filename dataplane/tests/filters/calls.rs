//! `grpc_stats`

use crate::{
    Scene, filter,
    support::{
        client::Client,
        culvert::{cluster, indent},
        upstream::{Upstream, read_request},
    },
};

/// A server that answers over HTTP/1.1 with two messages, and in trailers with the status that the path ends with.
fn server() -> Upstream {
    Upstream::start(|mut stream| {
        while let Some((head, _)) = read_request(&mut stream) {
            let status = head.split(' ').nth(1).unwrap().rsplit('-').next().unwrap().to_owned();
            let text = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n\
                 7\r\n\0\0\0\0\u{2}ab\r\n5\r\n\0\0\0\0\0\r\n0\r\ngrpc-status: {status}\r\n\r\n"
            );
            if std::io::Write::write_all(&mut stream, text.as_bytes()).is_err() {
                return;
            }
        }
    })
}

#[test]
fn calls_are_counted_by_how_they_end() {
    let up = server();
    const KIND: &str = "grpc_stats.v3.FilterConfig";
    let route = |host: &str, off: &[&str]| {
        let off: Vec<_> = off.iter().map(|name| crate::switch(name, "disabled: true")).collect();
        format!(
            "{{match: {{prefix: /, headers: [{{name: x-which, string_match: {{exact: {host}}}}}]}}, route: {{cluster: calls}}, \
             typed_per_filter_config: {{{}}}}}",
            off.join(", ")
        )
    };
    let filters = [
        filter("together", KIND, "emit_filter_state: true"),
        filter("all", KIND, "stats_for_all_methods: true, replace_dots_in_grpc_service_name: true"),
        filter(
            "these",
            KIND,
            "individual_method_stats_allowlist: {services: [{name: a.S, method_names: [M-5]}]}",
        ),
    ];
    let routes =
        [route("t", &["all", "these"]), route("a", &["together", "these"]), route("l", &["together", "all"])];
    let text = indent(&cluster("calls", &[up.address]), 2)
        + "    typed_extension_protocol_options:\n      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n        \
           \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n        \
           explicit_http_config: {http_protocol_options: {enable_trailers: true}}\n";
    Scene { filters: &filters, config: "", host: "", routes: &routes }.run_with(&text, |culvert, port| {
        let call = |which: &str, path: &str, kind: &str| {
            let mut client = Client::connect(port);
            client.send(format!(
                "POST {path} HTTP/1.1\r\nhost: a\r\nx-which: {which}\r\ncontent-type: {kind}\r\ncontent-length: 13\r\n\r\n"
            ));
            client.send(b"\0\0\0\0\x03abc\0\0\0\0\0");
            assert_eq!(client.response("POST").status, 200);
        };
        let stat = |name: &str| culvert.stat(&format!("cluster.calls.grpc.{name}"));
        let grpc = "application/grpc";
        call("t", "/a.S/M-0", grpc);
        call("t", "/a.S/M-5", grpc);
        call("t", "/a.S/M-5", "application/json");
        culvert.wait_until("both are counted", |_| stat("total") == 2);
        assert_eq!((stat("0"), stat("5"), stat("success"), stat("failure")), (1, 1, 1, 1));
        assert_eq!((stat("request_message_count"), stat("response_message_count")), (4, 4));
        call("a", "/a.S/M-0", grpc);
        culvert.wait_until("it is counted", |_| stat("a_S.M-0.total") == 1);
        call("l", "/a.S/M-5", grpc);
        call("l", "/a.S/M-0", grpc);
        culvert.wait_until("one of them has counters of its own", |_| stat("a.S.M-5.failure") == 1 && stat("total") == 3);
        assert_eq!(stat("a.S.M-0.total"), 0);
    });
}
