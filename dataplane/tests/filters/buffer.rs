//! `buffer`

use crate::{Scene, filter, logged, route, seen, settings, support::client::Client};

#[test]
fn requests_go_on_when_they_are_whole() {
    let filters = [filter("b", "buffer.v3.Buffer", "max_request_bytes: 10")];
    const PER_ROUTE: &str = "buffer.v3.BufferPerRoute";
    let routes = [
        route("/off", &[settings("b", PER_ROUTE, "disabled: true")]),
        route("/more", &[settings("b", PER_ROUTE, "buffer: {max_request_bytes: 20}")]),
        route("/", &[]),
    ];
    Scene { filters: &filters, config: "", host: "", routes: &routes }.run(|culvert, port| {
        let post = |path: &str, length: usize| {
            let mut client = Client::connect(port);
            client.send(format!("POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"));
            client.send(format!("1\r\nx\r\n{:x}\r\n{}\r\n0\r\n\r\n", length - 1, "y".repeat(length - 1)));
            client.response("POST")
        };
        let whole = post("/", 10);
        assert_eq!((whole.status, seen(&whole, "content-length")), (200, vec!["10".to_owned()]));
        assert!(seen(&whole, "transfer-encoding").is_empty());
        let large = post("/", 11);
        assert_eq!((large.status, large.text().as_str()), (413, "Payload Too Large"));
        logged(culvert, "/ 413 - request_payload_too_large");
        assert_eq!((post("/more", 20).status, post("/more", 21).status), (200, 413));
        let off = post("/off", 30);
        assert_eq!((off.status, seen(&off, "transfer-encoding")), (200, vec!["chunked".to_owned()]));

        let mut client = Client::connect(port);
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nab");
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(culvert.stat("cluster.up.upstream_rq_active"), 0, "half of it is not enough");
        client.send("cde");
        assert_eq!(client.response("POST").status, 200);
    });
}
