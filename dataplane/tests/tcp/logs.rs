//! Access logs of connections: the proxy's and the listener's.

use std::io::Write as _;

use crate::{connect, dead, echo, echoed, lines, log_to, proxy, rest, said, up, with};

const FORMAT: &str = "%ACCESS_LOG_TYPE% %RESPONSE_FLAGS% %BYTES_RECEIVED%/%BYTES_SENT% %UPSTREAM_CLUSTER% \
                      %UPSTREAM_REQUEST_ATTEMPT_COUNT% %FILTER_CHAIN_NAME% %RESPONSE_CODE_DETAILS%";

/// A folder, and a path in it: each driver has a file of its own.
fn fresh(folder: &tempfile::TempDir, name: &str) -> std::path::PathBuf {
    folder.path().join(name)
}

#[test]
fn each_moment_of_a_connection() {
    let upstream = echo();
    let folder = tempfile::tempdir().unwrap();
    let path = fresh(&folder, "log");
    let log = log_to(&path, FORMAT);
    let options = "access_log_options: {flush_access_log_on_start: true, flush_access_log_on_connected: true, \
                   access_log_flush_interval: 0.2s}";
    let filters = [proxy(&format!("{log}, {options}"))];
    with(&filters, "", &up(&[upstream.address]), |culvert, port| {
        let _ = std::fs::write(&path, "");
        let mut stream = connect(port);
        assert_eq!(echoed(&mut stream, "abc"), "abc");
        lines(culvert, &path, 3);
        drop(stream);
        let is_end = |line: &String| line.starts_with("TcpConnectionEnd");
        culvert.wait_until("the end", |c| lines(c, &path, 1).iter().any(is_end));
        let lines = lines(culvert, &path, 4);
        assert_eq!(lines[0], "TcpConnectionStart - 0/0 - 0 chain -");
        assert_eq!(lines[1], "TcpUpstreamConnected - 0/0 up 1 chain -");
        assert_eq!(lines[2], "TcpPeriodic - 3/3 up 1 chain -");
        assert_eq!(lines.last().unwrap(), "TcpConnectionEnd - 3/3 up 1 chain -");
    });
}

#[test]
fn why_there_is_no_upstream() {
    let folder = tempfile::tempdir().unwrap();
    let path = fresh(&folder, "log");
    let log = log_to(&path, &format!("{FORMAT} %UPSTREAM_TRANSPORT_FAILURE_REASON%"));
    for (cluster, endpoints, more, expected) in [
        (
            "up",
            vec![dead(), dead()],
            "",
            "TcpConnectionEnd UF,URX 0/0 up 2 chain - delayed_connect_error:_Connection_refused",
        ),
        ("up", vec![], "", "TcpConnectionEnd UH 0/0 up 0 chain - -"),
        ("other", vec![dead()], "", "TcpConnectionEnd NC 0/0 - 0 chain - -"),
        (
            "up",
            vec![dead()],
            "  circuit_breakers: {thresholds: [{max_connections: 0}]}\n",
            "TcpConnectionEnd UO 0/0 up 0 chain - -",
        ),
    ] {
        let filters = [proxy(&format!("{log}, max_connect_attempts: 2"))
            .replace("cluster: up", &format!("cluster: {cluster}"))];
        with(&filters, "", &(up(&endpoints) + more), |culvert, port| {
            let _ = std::fs::write(&path, "");
            assert_eq!(said(port), "");
            assert_eq!(lines(culvert, &path, 1), [expected]);
        });
    }
}

#[test]
fn a_listener_logs_every_connection() {
    let upstream = echo();
    let folder = tempfile::tempdir().unwrap();
    let path = fresh(&folder, "log");
    let log = log_to(&path, FORMAT);
    with(&[proxy("")], &log, &up(&[upstream.address]), |culvert, port| {
        let _ = std::fs::write(&path, "");
        let mut stream = connect(port);
        assert_eq!(echoed(&mut stream, "abc"), "abc");
        drop(stream);
        assert_eq!(lines(culvert, &path, 1), ["NotSet - 3/3 up 1 chain -"]);
    });
    // No chain is for it, or a listener filter had enough of it.
    let matching = "filter_chains: [{filter_chain_match: {destination_port: 1}}], listener_filters: [{name: p, typed_config: \
                    {\"@type\": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol}}]";
    for driver in crate::DRIVERS {
        let port = crate::free_port();
        let text = format!(
            "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\nstatic_resources: {{listeners: \
             [{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, {matching}, {log}}}]}}\n"
        );
        let flags = ["--file-flush-interval-msec", "20"];
        let culvert = crate::Culvert::start_with(driver, 0, &text, &flags);
        let _ = std::fs::write(&path, "");
        let mut stream = connect(port);
        stream.write_all(b"PROXY UNKNOWN\r\n").unwrap();
        assert_eq!(rest(&mut stream).0, "");
        assert_eq!(lines(&culvert, &path, 1), ["NotSet NR 0/0 - 0 - filter_chain_not_found"]);
        let mut stream = connect(port);
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(rest(&mut stream).0, "");
        assert_eq!(lines(&culvert, &path, 2)[1], "NotSet - 0/0 - 0 - -");
    }
}
