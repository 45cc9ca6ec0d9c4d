//! Circuit breakers, retries and rate limits: never one over, and nobody is refused while there is room, whichever worker
//! the load is on.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use crate::{
    Client, clients_of,
    gate::Gate,
    on_each,
    support::{
        culvert::{Culvert, cluster},
        full,
    },
};

/// The limits that are tried.
const LIMITS: std::ops::RangeInclusive<usize> = 1..=10;

/// A route and a cluster for each limit; `{}` in `thresholds` stands for it.
fn limited(gates: &[Gate], action: &str, thresholds: &str) -> (String, String) {
    let routes = LIMITS.map(|limit| {
        format!("- {{match: {{prefix: /{limit}/}}, route: {{cluster: up{limit}, timeout: 0s{action}}}}}\n")
    });
    let clusters = LIMITS.zip(gates).map(|(limit, gate)| {
        let thresholds = thresholds.replace("{}", &limit.to_string());
        cluster(&format!("up{limit}"), &[gate.address()])
            + &format!("  circuit_breakers: {{thresholds: [{{{thresholds}}}]}}\n")
    });
    (routes.collect(), clusters.collect())
}

fn gates() -> Vec<Gate> {
    LIMITS.map(|_| Gate::start()).collect()
}

fn send(client: &mut Client, limit: usize, path: &str) {
    client.send(format!("GET /{limit}/{path} HTTP/1.1\r\nhost: t\r\n\r\n"));
}

fn ask(client: &mut Client, limit: usize, path: &str) -> u16 {
    send(client, limit, path);
    client.response("GET").status
}

/// How often each of several clients asks.
fn turns() -> usize {
    if full() { 1_000 } else { 60 }
}

/// All clients ask again and again at the same time. How many of their requests were answered, and refused.
fn hammer(clients: &mut [Client], limit: usize, path: &str) -> (usize, usize) {
    let (answered, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for client in clients {
            let (answered, refused) = (&answered, &refused);
            scope.spawn(move || {
                for _ in 0..turns() {
                    let count = match ask(client, limit, path) {
                        200 => answered,
                        503 => refused,
                        other => panic!("{other}"),
                    };
                    count.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    (answered.into_inner(), refused.into_inner())
}

#[test]
fn requests() {
    let gates = gates();
    let (routes, clusters) = limited(&gates, "", "max_requests: {}");
    on_each(&routes, &clusters, |culvert, port| {
        for (limit, gate) in LIMITS.zip(&gates) {
            let overflows =
                |culvert: &Culvert| culvert.stat(&format!("cluster.up{limit}.upstream_rq_active_overflow"));
            let mut here = clients_of(0, culvert, port, limit + 1);
            let mut there = clients_of(1, culvert, port, limit);
            // All load on one worker of two.
            for client in &mut here[..limit] {
                send(client, limit, "hold");
            }
            gate.wait_for(limit);
            assert_eq!(overflows(culvert), 0);
            assert_eq!(ask(&mut here[limit], limit, ""), 503, "{limit}: one over");
            assert_eq!(ask(&mut there[0], limit, ""), 503, "{limit}: one over on the other worker");
            assert_eq!((gate.now(), overflows(culvert)), (limit, 2));
            gate.pass(1);
            gate.wait_for(limit - 1);
            let ended = here[..limit].iter_mut().position(|client| {
                client.stream.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
                let ended = client.try_response("GET").is_ok();
                client.stream.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
                ended
            });
            assert!(ended.is_some(), "{limit}: one is answered");
            // The last place is anybody's, again and again.
            for _ in 0..turns() {
                assert_eq!(ask(&mut here[limit], limit, ""), 200, "{limit}");
                assert_eq!(ask(&mut there[0], limit, ""), 200, "{limit}");
            }
            gate.pass(limit - 1);
            gate.wait_for(0);
            culvert
                .wait_until("they end", |it| it.stat(&format!("cluster.up{limit}.upstream_rq_active")) == 0);
            assert_eq!(overflows(culvert), 2);

            // As many clients as there are places: nobody is refused, wherever they are.
            let mut both = clients_of(0, culvert, port, limit.div_ceil(2));
            both.extend(there.drain(..limit / 2));
            assert_eq!(hammer(&mut both, limit, "").1, 0, "{limit}");
            // Twice as many: what is refused is counted, and never is there one over.
            both.extend(clients_of(0, culvert, port, limit));
            let (answered, refused) = hammer(&mut both, limit, "");
            assert_eq!(answered + refused, both.len() * turns());
            assert!(answered > 0, "{limit}");
            assert_eq!(overflows(culvert), 2 + refused as u64, "{limit}");
            assert_eq!(gate.most(), limit, "never one over");
        }
    });
}

/// A worker's first connection to an endpoint is guaranteed, as in Envoy; with that exception the limit holds.
#[test]
fn connections_and_who_waits_for_them() {
    let gates = gates();
    let (routes, clusters) = limited(&gates, "", "max_connections: {}, max_pending_requests: {}");
    on_each(&routes, &clusters, |culvert, port| {
        for (limit, gate) in LIMITS.zip(&gates) {
            let stat = |name: &str| culvert.stat(&format!("cluster.up{limit}.{name}"));
            let mut here = clients_of(0, culvert, port, 2 * limit + 1);
            for client in &mut here[..limit] {
                send(client, limit, "hold");
            }
            gate.wait_for(limit);
            assert_eq!((stat("upstream_cx_active"), stat("upstream_rq_pending_active")), (limit as u64, 0));
            // Those who wait have a limit of their own.
            for client in &mut here[limit..2 * limit] {
                send(client, limit, "hold");
            }
            culvert.wait_until("they wait", |_| stat("upstream_rq_pending_active") == limit as u64);
            assert_eq!(stat("upstream_rq_pending_overflow"), 0);
            assert_eq!(ask(&mut here[2 * limit], limit, ""), 503, "{limit}: one over");
            assert_eq!((stat("upstream_rq_pending_overflow"), stat("upstream_cx_active")), (1, limit as u64));
            assert_eq!(gate.now(), limit);
            gate.pass(2 * limit);
            for client in &mut here[..2 * limit] {
                assert_eq!(client.response("GET").status, 200);
            }
            assert!(stat("upstream_cx_active") <= limit as u64);
            // The other worker has its first one, and no other.
            for client in &mut here[..limit] {
                send(client, limit, "hold");
            }
            gate.wait_for(limit);
            let mut there = clients_of(1, culvert, port, 2);
            send(&mut there[0], limit, "hold");
            gate.wait_for(limit + 1);
            send(&mut there[1], limit, "hold");
            culvert.wait_until("it waits", |_| stat("upstream_rq_pending_active") == 1);
            assert_eq!((gate.now(), stat("upstream_cx_active")), (limit + 1, limit as u64 + 1));
            gate.pass(limit + 2);
            for client in here[..limit].iter_mut().chain(&mut there) {
                assert_eq!(client.response("GET").status, 200);
            }
            assert_eq!(gate.most(), limit + 1);
        }
    });
}

/// All are to be tried again at the same time, on both workers.
#[test]
fn retries() {
    let gates = gates();
    let action = ", retry_policy: {retry_on: 5xx, retry_back_off: {base_interval: 0.001s}}";
    let (routes, clusters) = limited(&gates, action, "max_retries: {}");
    on_each(&routes, &clusters, |culvert, port| {
        for (limit, gate) in LIMITS.zip(&gates) {
            let stat = |name: &str| culvert.stat(&format!("cluster.up{limit}.upstream_rq_retry{name}"));
            let mut clients = clients_of(0, culvert, port, limit);
            clients.extend(clients_of(1, culvert, port, 3));
            for client in &mut clients {
                send(client, limit, "again");
            }
            gate.wait_for(limit);
            culvert.wait_until("the others are refused", |_| stat("_overflow") == 3);
            assert_eq!((stat(""), gate.now(), gate.most_again()), (limit as u64, limit, limit));
            gate.pass(limit);
            let answers: Vec<_> = clients.iter_mut().map(|client| client.response("GET").status).collect();
            let failed = answers.iter().filter(|status| **status == 500).count();
            assert_eq!((failed, answers.len() - failed), (3, limit), "{answers:?}");
            // The places are free again.
            for client in &mut clients[..limit] {
                send(client, limit, "again");
            }
            gate.wait_for(limit);
            gate.pass(limit);
            assert!(clients[..limit].iter_mut().all(|client| client.response("GET").status == 200));
            assert_eq!((stat("_overflow"), gate.most_again()), (3, limit));
        }
    });
}
