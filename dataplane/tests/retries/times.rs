//! How long attempts take, and what is waited for between them.

use std::time::{Duration, Instant};

use crate::{Client, Scene, ask, get, logged, with};

#[test]
fn an_attempt_that_takes_too_long_is_followed_by_another_one() {
    let scene = Scene {
        routes: &[("/try", ""), ("/idle", ""), ("/once", ""), ("/larger", ""), ("/both", "")],
        actions: &[
            "retry_policy: {retry_on: 5xx, per_try_timeout: 0.2s, num_retries: 2}",
            "retry_policy: {retry_on: reset, per_try_idle_timeout: 0.2s}",
            "retry_policy: {retry_on: connect-failure, per_try_timeout: 0.2s}",
            "timeout: 0.4s, retry_policy: {retry_on: 5xx, per_try_timeout: 1s}",
            "retry_policy: {retry_on: reset, per_try_timeout: 0.2s, per_try_idle_timeout: 1.2s}",
        ],
        ..Scene::default()
    };
    with(scene, |culvert, port, ledger| {
        assert_eq!(get(port, "/try/ok", "hang hang 200").status, 200);
        assert_eq!(ledger.count("/try/ok"), 3);
        logged(culvert, "/try/ok 200 - via_upstream 3");
        let response = get(port, "/try/never", "hang");
        assert_eq!((response.status, response.text().as_str()), (504, "upstream request timeout"));
        assert_eq!(ledger.count("/try/never"), 3);
        logged(culvert, "/try/never 504 URX,UT upstream_per_try_timeout 3");
        assert_eq!(culvert.stat("cluster.up.upstream_rq_per_try_timeout"), 5);

        assert_eq!(get(port, "/idle/ok", "hang 200").status, 200);
        assert_eq!(get(port, "/idle/never", "hang").status, 504);
        logged(culvert, "/idle/never 504 URX,UT upstream_per_try_idle_timeout 2");
        assert_eq!(culvert.stat("cluster.up.upstream_rq_per_try_idle_timeout"), 3);

        // Also when the answer has begun; the limit of the attempt does not count any more then.
        for path in ["/idle/stall", "/both/stall"] {
            let mut client = Client::connect(port);
            client.send(format!("GET {path} HTTP/1.1\r\nhost: t\r\nx-script: stall\r\n\r\n"));
            assert!(client.until(b"\r\n\r\n").unwrap().starts_with(b"HTTP/1.1 200"));
            assert!(client.rest().unwrap().is_empty());
            logged(culvert, &format!("{path} 200 UT upstream_per_try_idle_timeout 1"));
        }
        assert_eq!(culvert.stat("cluster.up.upstream_rq_per_try_timeout"), 5);

        assert_eq!(get(port, "/once", "hang").status, 504);
        assert_eq!(ledger.count("/once"), 1);
        logged(culvert, "/once 504 UT upstream_per_try_timeout 1");

        // It could not be reached before the route's own.
        assert_eq!(get(port, "/larger", "hang").status, 504);
        assert_eq!(ledger.count("/larger"), 1);
        logged(culvert, "/larger 504 UT response_timeout 1");
        assert_eq!(culvert.stat("cluster.up.upstream_rq_timeout"), 1);
    });
}

#[test]
fn the_timeout_of_the_route_is_for_all_attempts() {
    let scene = Scene {
        routes: &[("/tries", ""), ("/waits", "")],
        actions: &[
            "timeout: 1s, retry_policy: {retry_on: 5xx, per_try_timeout: 0.4s, num_retries: 50}",
            "timeout: 0.3s, retry_policy: {retry_on: 5xx, num_retries: 1, rate_limited_retry_back_off: \
             {reset_headers: [{name: retry-after}]}}",
        ],
        ..Scene::default()
    };
    with(scene, |culvert, port, ledger| {
        let begun = Instant::now();
        assert_eq!(get(port, "/tries", "hang").status, 504);
        assert!(begun.elapsed() >= Duration::from_secs(1));
        logged(culvert, &format!("/tries 504 UT response_timeout {}", ledger.count("/tries")));
        assert!(ledger.count("/tries") < 10);
        let seen = ledger.of("/tries");
        let expected = |nth: usize| -> u64 {
            seen[nth].header("x-envoy-expected-rq-timeout-ms").unwrap().parse().unwrap()
        };
        assert_eq!(expected(0), 400);
        let last = expected(seen.len() - 1);
        assert!(last < 400, "no more than is left: {last}");

        assert_eq!(get(port, "/waits", "503+retry-after=30").status, 504);
        assert_eq!(ledger.count("/waits"), 1);
        logged(culvert, "/waits 504 UT response_timeout 1");
        assert_eq!(culvert.stat("cluster.up.upstream_rq_active"), 0);
        assert_eq!(culvert.stat("cluster.up.upstream_rq_timeout"), 1);
    });
}

#[test]
fn an_upstream_says_when_to_come_back() {
    let scene = Scene {
        routes: &[("/", "")],
        actions: &["retry_policy: {retry_on: 5xx, retry_back_off: {base_interval: 0.001s}, \
                    rate_limited_retry_back_off: {max_interval: 5s, reset_headers: [{name: X-Wait}, {name: X-At, \
                    format: UNIX_TIMESTAMP}]}}"],
        ..Scene::default()
    };
    with(scene, |culvert, port, _| {
        let took = |path: &str, word: &str| {
            let begun = Instant::now();
            assert_eq!(get(port, path, &format!("{word} 200")).status, 200);
            begun.elapsed()
        };
        let stat = |name: &str| culvert.stat(&format!("cluster.up.upstream_rq_retry_backoff_{name}"));
        assert!(took("/wait", "503+x-wait=1") >= Duration::from_secs(1));
        assert_eq!((stat("ratelimited"), stat("exponential")), (1, 0));
        // Too long, nonsense, in the past.
        took("/long", "503+x-wait=6");
        took("/nonsense", "503+x-wait=soon");
        took("/past", "503+x-at=1000000000");
        assert_eq!((stat("ratelimited"), stat("exponential")), (1, 3));
        let soon = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 2;
        assert!(took("/at", &format!("503+x-at={soon}")) >= Duration::from_secs(1));
        assert_eq!(stat("ratelimited"), 2);
    });
}

#[test]
fn attempts_wait_longer_and_longer() {
    // Bounds of 0.2 and 0.4 s, drawn evenly: forty waits of nothing would be a wonder.
    let scene = Scene {
        routes: &[("/", "")],
        actions: &["retry_policy: {retry_on: 5xx, num_retries: 10, retry_back_off: {base_interval: 0.2s, \
                    max_interval: 0.4s}}"],
        ..Scene::default()
    };
    with(scene, |culvert, port, ledger| {
        let begun = Instant::now();
        assert_eq!(get(port, "/", "503").status, 503);
        assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
        assert_eq!(ledger.count("/"), 11);
        assert_eq!(culvert.stat("cluster.up.upstream_rq_retry_backoff_exponential"), 10);
    });
}

#[test]
fn requests_say_how_long_they_may_take() {
    let scene = Scene {
        manager: "use_remote_address: true, internal_address_config: {cidr_ranges: [{address_prefix: 127.0.0.0, \
                  prefix_len: 8}]},",
        routes: &[("/", "")],
        actions: &["timeout: 60s, retry_policy: {retry_on: 5xx, num_retries: 1}"],
        ..Scene::default()
    };
    with(scene, |culvert, port, ledger| {
        let whole = [("x-envoy-upstream-rq-timeout-ms", "300")];
        assert_eq!(ask(port, "GET", "/whole", "hang", &whole).status, 504);
        logged(culvert, "/whole 504 UT response_timeout 1");
        let seen = &ledger.of("/whole")[0];
        assert_eq!(seen.header("x-envoy-expected-rq-timeout-ms"), Some("300"));
        assert_eq!(seen.header("x-envoy-upstream-rq-timeout-ms"), None);
        // 204 is what it wants to be told then.
        let other = [whole[0], ("x-envoy-upstream-rq-timeout-alt-response", "1")];
        let response = ask(port, "GET", "/other", "hang", &other);
        assert_eq!((response.status, response.body.len()), (204, 0));
        logged(culvert, "/other 204 UT response_timeout 1");
        assert_eq!(ledger.of("/other")[0].header("x-envoy-upstream-rq-timeout-alt-response"), None);
        assert_eq!(culvert.stat("cluster.up.upstream_rq_204"), 1);
        let tries = [("x-envoy-upstream-rq-per-try-timeout-ms", "200")];
        assert_eq!(ask(port, "GET", "/tries", "hang 200", &tries).status, 200);
        let seen = &ledger.of("/tries")[0];
        assert_eq!(seen.header("x-envoy-expected-rq-timeout-ms"), Some("200"));
        assert_eq!(seen.header("x-envoy-upstream-rq-per-try-timeout-ms"), None);
    });
}

#[test]
fn requests_say_how_long_their_streams_may_take() {
    const DURATION: &str = "x-envoy-upstream-stream-duration-ms";
    let internal = "use_remote_address: true, internal_address_config: {cidr_ranges: [{address_prefix: 127.0.0.0, \
                    prefix_len: 8}]},";
    let scene = Scene {
        manager: internal,
        routes: &[("/", "")],
        actions: &["timeout: 1.5s"],
        cluster: "common_http_protocol_options: {max_stream_duration: 60s}",
        ..Scene::default()
    };
    with(scene, |culvert, port, ledger| {
        assert_eq!(ask(port, "GET", "/own", "hang", &[(DURATION, "200")]).status, 504);
        logged(culvert, "/own 504 UMSDR upstream_max_stream_duration_reached 1");
        assert_eq!(ledger.of("/own")[0].header(DURATION), None);
        assert_eq!(culvert.stat("cluster.up.upstream_rq_max_duration_reached"), 1);
    });
    let short = Scene { cluster: "common_http_protocol_options: {max_stream_duration: 0.2s}", ..scene };
    with(short, |culvert, port, _| {
        assert_eq!(ask(port, "GET", "/none", "hang", &[(DURATION, "0")]).status, 504);
        logged(culvert, "/none 504 UT response_timeout 1");
        assert_eq!(ask(port, "GET", "/rubbish", "hang", &[(DURATION, "x")]).status, 504);
        logged(culvert, "/rubbish 504 UMSDR upstream_max_stream_duration_reached 1");
    });
    // Nobody outside the mesh says so.
    let external = internal.replace("127.0.0.0", "10.0.0.0");
    with(Scene { manager: &external, ..scene }, |culvert, port, ledger| {
        assert_eq!(ask(port, "GET", "/outside", "hang", &[(DURATION, "200")]).status, 504);
        logged(culvert, "/outside 504 UT response_timeout 1");
        assert_eq!(ledger.of("/outside")[0].header(DURATION), None);
    });
}

#[test]
fn a_client_that_leaves_ends_the_wait() {
    let scene = Scene {
        routes: &[("/", "")],
        actions: &[
            "timeout: 0s, retry_policy: {retry_on: 5xx, rate_limited_retry_back_off: {reset_headers: [{name: \
                    retry-after}]}}",
        ],
        ..Scene::default()
    };
    with(scene, |culvert, port, ledger| {
        let mut client = Client::connect(port);
        client.send("GET /gone HTTP/1.1\r\nhost: t\r\nx-script: 503+retry-after=200\r\n\r\n");
        culvert.wait_until("it waits", |culvert| culvert.stat("cluster.up.retry.upstream_rq_503") == 1);
        socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        culvert.wait_until("its end", |culvert| culvert.stat("http.s.downstream_rq_active") == 0);
        assert_eq!(ledger.count("/gone"), 1);
        logged(culvert, "/gone 0 DC downstream_remote_disconnect 1");
    });
}

#[test]
fn an_attempt_is_cut_when_the_streams_of_its_cluster_may_not_take_longer() {
    let scene = Scene {
        routes: &[("/try", ""), ("/", "")],
        actions: &["retry_policy: {retry_on: 5xx, num_retries: 2}", "timeout: 0s"],
        cluster: "common_http_protocol_options: {max_stream_duration: 0.4s}",
        ..Scene::default()
    };
    with(scene, |culvert, port, ledger| {
        let reached = || culvert.stat("cluster.up.upstream_rq_max_duration_reached");
        let response = get(port, "/once", "hang");
        let text = response.text();
        assert_eq!((response.status, text.as_str()), (504, "upstream max stream duration reached"));
        logged(culvert, "/once 504 UMSDR upstream_max_stream_duration_reached 1");
        assert_eq!(reached(), 1);
        // It is no answer of the cluster's.
        assert_eq!(culvert.stat("cluster.up.upstream_rq_completed"), 0);

        assert_eq!(get(port, "/try/ok", "hang hang 200").status, 200);
        assert_eq!(get(port, "/try/never", "hang").status, 504);
        assert_eq!(ledger.count("/try/never"), 3);
        logged(culvert, "/try/never 504 URX,UMSDR upstream_max_stream_duration_reached 3");
        assert_eq!(reached(), 6);

        // The response is a part of it.
        let mut client = Client::connect(port);
        client.send("GET /stall HTTP/1.1\r\nhost: t\r\nx-script: stall\r\n\r\n");
        assert!(client.until(b"\r\n\r\n").unwrap().starts_with(b"HTTP/1.1 200"));
        assert!(client.rest().unwrap().is_empty());
        logged(culvert, "/stall 200 UMSDR upstream_max_stream_duration_reached 1");

        // So is the request.
        let mut client = Client::connect(port);
        client.send("POST /body HTTP/1.1\r\nhost: t\r\ncontent-length: 9\r\n\r\nhalf");
        assert_eq!(client.response("POST").status, 408);
        logged(culvert, "/body 408 UMSDR upstream_max_stream_duration_reached 1");
        assert_eq!(reached(), 8);
        assert_eq!(get(port, "/quick", "200").status, 200);
        assert_eq!(culvert.stat("cluster.up.upstream_rq_active"), 0);
    });
}
