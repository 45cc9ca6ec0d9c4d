//! How many retries there may be at a time.

use crate::{Client, Scene, get, support::culvert::Culvert, with};

/// Starts requests whose retries hang.
fn hanging(culvert: &Culvert, port: u16, count: usize, name: &str) -> Vec<Client> {
    (0..count)
        .map(|nth| {
            let active = culvert.stat("cluster.up.upstream_rq_retry");
            let mut client = Client::connect(port);
            client.send(format!("GET /{name}/{nth} HTTP/1.1\r\nhost: t\r\nx-script: 503 hang\r\n\r\n"));
            culvert.wait_until("a retry", |it| it.stat("cluster.up.upstream_rq_retry") > active);
            client
        })
        .collect()
}

const POLICY: &str = "timeout: 0s, retry_policy: {retry_on: 5xx, retry_back_off: {base_interval: 0.001s}}";

fn overflows(culvert: &Culvert) -> u64 {
    culvert.stat("cluster.up.upstream_rq_retry_overflow")
}

#[test]
fn a_cluster_has_so_many_retries() {
    for max in [0, 1, 4] {
        let limits = format!("circuit_breakers: {{thresholds: [{{max_retries: {max}}}]}}");
        let scene = Scene { routes: &[("/", "")], actions: &[POLICY], cluster: &limits, ..Scene::default() };
        with(scene, |culvert, port, ledger| {
            let held = hanging(culvert, port, max, "held");
            assert_eq!(get(port, "/over", "503 200").status, 503);
            assert_eq!(ledger.count("/over"), 1);
            assert_eq!((overflows(culvert), culvert.stat("cluster.up.upstream_rq_retry")), (1, max as u64));
            crate::logged(culvert, "/over 503 UO via_upstream 1");
            if max > 0 {
                // A retry that has ended makes room.
                for client in held {
                    socket2::SockRef::from(&client.stream)
                        .set_linger(Some(std::time::Duration::ZERO))
                        .unwrap();
                }
                culvert.wait_until("they end", |it| it.stat("http.s.downstream_rq_active") == 0);
                assert_eq!(get(port, "/room", "503 200").status, 200);
            }
        });
    }
}

#[test]
fn the_default_is_three() {
    with(Scene { routes: &[("/", "")], actions: &[POLICY], ..Scene::default() }, |culvert, port, _| {
        let _held = hanging(culvert, port, 3, "held");
        assert_eq!(get(port, "/over", "503 200").status, 503);
        assert_eq!(overflows(culvert), 1);
    });
}

#[test]
fn a_budget_is_a_share_of_the_requests() {
    let limits = "circuit_breakers: {thresholds: [{max_retries: 0, retry_budget: {budget_percent: {value: 50}, \
                  min_retry_concurrency: 1}}]}";
    let scene = Scene { routes: &[("/", "")], actions: &[POLICY], cluster: limits, ..Scene::default() };
    with(scene, |culvert, port, ledger| {
        let _first = hanging(culvert, port, 1, "first");
        // One is always allowed; half of one request is none.
        assert_eq!(get(port, "/over", "503 200").status, 503);
        assert_eq!(overflows(culvert), 1);
        let mut slow: Vec<_> = (0..7).map(|_| Client::connect(port)).collect();
        for (nth, client) in slow.iter_mut().enumerate() {
            client.send(format!("GET /slow/{nth} HTTP/1.1\r\nhost: t\r\nx-script: hang\r\n\r\n"));
        }
        culvert.wait_until("they are there", |it| it.stat("cluster.up.upstream_rq_active") == 8);
        // With the request that asks for the seventh retry there are fourteen.
        let _more = hanging(culvert, port, 6, "more");
        assert_eq!(culvert.stat("cluster.up.upstream_rq_active"), 14);
        assert_eq!(overflows(culvert), 1);
        assert_eq!(get(port, "/no-more", "503 200").status, 503);
        assert_eq!((overflows(culvert), ledger.count("/no-more")), (2, 1));
    });
}

#[test]
fn a_budget_may_be_of_the_last_requests() {
    let limits = "circuit_breakers: {thresholds: [{retry_budget: {budget_percent: {value: 20}, budget_interval: 3600s, \
                  min_retry_concurrency: 0}}]}";
    let scene = Scene { routes: &[("/", "")], actions: &[POLICY], cluster: limits, ..Scene::default() };
    with(scene, |culvert, port, _| {
        assert_eq!(get(port, "/early", "503 200").status, 503);
        assert_eq!(overflows(culvert), 1);
        for nth in 0..13 {
            assert_eq!(get(port, &format!("/{nth}"), "200").status, 200);
        }
        // A fifth of fifteen requests, all of which have ended but one.
        let _held = hanging(culvert, port, 3, "held");
        assert_eq!(overflows(culvert), 1);
    });
}

/// As long as there is nothing left to be read. What came while a connection was made is read.
#[test]
fn a_client_that_is_refused_keeps_its_connection() {
    let limits = "circuit_breakers: {thresholds: [{max_requests: 0}]}";
    with(Scene { routes: &[("/", "")], cluster: limits, ..Scene::default() }, |culvert, port, ledger| {
        let mut client = Client::connect(port);
        for method in ["POST", "GET", "GET"] {
            let body = if method == "POST" { "content-length: 4\r\n\r\nbody" } else { "\r\n" };
            client.send(format!("{method} / HTTP/1.1\r\nhost: t\r\n{body}"));
            let response = client.response(method);
            assert_eq!((response.status, response.header("connection")), (503, None), "{method}");
        }
        client.send("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 4\r\n\r\nbody");
        assert_eq!(client.response("POST").header("connection"), Some("close"));
        assert_eq!((culvert.stat("cluster.up.upstream_rq_active_overflow"), ledger.count("/")), (4, 0));
        assert_eq!(culvert.stat("cluster.up.upstream_cx_total"), 1);
    });
}
