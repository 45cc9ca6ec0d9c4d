//! HTTP checks: thresholds, what is asked, what counts as an answer.

use std::net::SocketAddr;

use crate::{
    answers, checked, flags, on_each, only, start,
    support::{
        DRIVERS,
        culvert::{Culvert, bootstrap, cluster, free_port},
        upstream::ok,
    },
    switch::{PATH, Switch},
};

fn http(thresholds: (u32, u32), fields: &str) -> String {
    checked(&format!(
        "healthy_threshold: {}\nunhealthy_threshold: {}\nhttp_health_check:\n  path: {PATH}\n{}",
        thresholds.0,
        thresholds.1,
        crate::indent(fields, 2)
    ))
}

fn up(servers: &[&Switch], checks: &str) -> String {
    let addresses: Vec<SocketAddr> = servers.iter().map(|server| server.address()).collect();
    cluster("up", &addresses) + checks
}

#[test]
fn an_endpoint_that_fails_gets_nothing_and_comes_back() {
    for driver in DRIVERS {
        let (a, b) = (Switch::new("a"), Switch::new("b"));
        let (culvert, port) = start(driver, &up(&[&a, &b], &http((2, 1), "")));
        assert!(only(&answers(port, 20), &["a", "b"]));
        b.answer(500, "");
        culvert.wait_until("b failed", |culvert| {
            flags(culvert, b.address()).as_deref() == Some("/failed_active_hc")
        });
        culvert.wait_until("all go to a", |_| only(&answers(port, 20), &["a"]));
        assert_eq!(flags(&culvert, a.address()).as_deref(), Some("healthy"));
        assert_eq!(culvert.stat("cluster.up.membership_healthy"), 1);
        assert_eq!(culvert.stat("cluster.up.membership_total"), 2);
        assert_eq!(culvert.stat("cluster.up.health_check.healthy"), 1);
        assert!(culvert.stat("cluster.up.health_check.failure") >= 1);
        assert_eq!(culvert.stat("cluster.up.health_check.network_failure"), 0);
        b.answer(200, "");
        culvert.wait_until("both are back", |_| only(&answers(port, 20), &["a", "b"]));
        assert_eq!(culvert.stat("cluster.up.membership_healthy"), 2);
        assert_eq!(culvert.stat("cluster.up.health_check.healthy"), 2);
        let attempts = culvert.stat("cluster.up.health_check.attempt");
        let stat = |name| culvert.stat(&format!("cluster.up.health_check.{name}"));
        assert!(stat("success") + stat("failure") + 2 >= attempts);
    }
}

#[test]
fn the_start_waits_for_the_first_round() {
    for driver in DRIVERS {
        let (good, bad) = (Switch::new("good"), Switch::new("bad"));
        bad.answer(500, "");
        // Panic would send requests to both.
        let cluster = up(&[&good, &bad], &http((5, 5), ""));
        let (culvert, port) = start(driver, &cluster);
        assert!(only(&answers(port, 20), &["good"]), "{}", culvert.log());
    }
}

#[test]
fn only_unexpected_answers_disregard_the_threshold() {
    for driver in DRIVERS {
        let (a, b) = (Switch::new("a"), Switch::new("b"));
        let fields =
            "retriable_statuses: [{start: 503, end: 504}]\nexpected_statuses: [{start: 204, end: 206}]\n";
        a.answer(204, "");
        b.answer(205, "");
        let (culvert, port) = start(driver, &up(&[&a, &b], &http((1, 1_000_000), fields)));
        assert!(only(&answers(port, 20), &["a", "b"]));
        b.answer(503, "");
        culvert.wait_until("failures", |culvert| culvert.stat("cluster.up.health_check.failure") >= 3);
        assert_eq!(flags(&culvert, b.address()).as_deref(), Some("healthy"));
        b.answer(200, "");
        culvert.wait_until("b failed", |culvert| {
            flags(culvert, b.address()).as_deref() == Some("/failed_active_hc")
        });
    }
}

#[test]
fn no_answer_in_time_counts_towards_the_threshold() {
    for driver in DRIVERS {
        let (a, b) = (Switch::new("a"), Switch::new("b"));
        let checks = http((1, 2), "").replace("timeout: 600s", "timeout: 2s");
        let (culvert, _) = start(driver, &up(&[&a, &b], &checks));
        b.say(Vec::new());
        culvert.wait_until("b failed", |culvert| {
            flags(culvert, b.address()).as_deref() == Some("/failed_active_hc/active_hc_timeout")
        });
        assert_eq!(culvert.stat("cluster.up.health_check.network_failure"), 2);
    }
}

#[test]
fn what_is_asked() {
    let fields = "host: asked.example\nmethod: PUT\nsend: {text: \"68656c6c6f\"}\n\
                  request_headers_to_add: [{header: {key: x-check, value: \"100%%\"}}]\n\
                  request_headers_to_remove: [user-agent]\n";
    for driver in DRIVERS {
        let a = Switch::new("a");
        let (_culvert, _) = start(driver, &up(&[&a], &http((1, 1), fields)));
        let (head, body) = a.first_check().expect("a check");
        assert!(head.starts_with("PUT /healthz HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("host: asked.example\r\n"), "{head}");
        assert!(head.contains("x-check: 100%\r\n"), "{head}");
        assert!(!head.contains("user-agent"), "{head}");
        assert_eq!(body, b"hello");
        let plain = Switch::new("plain");
        let (_culvert, _) = start(driver, &up(&[&plain], &http((1, 1), "")));
        let (head, _) = plain.first_check().expect("a check");
        assert!(head.starts_with("GET /healthz HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("host: up\r\n") && head.contains("user-agent: Envoy/HC\r\n"), "{head}");
    }
}

#[test]
fn bodies_and_names_of_answers() {
    for driver in DRIVERS {
        let (a, b) = (Switch::new("a"), Switch::new("b"));
        // "fine", of which two bytes are looked at.
        let receive = http((1, 1), "receive: [{text: \"6669\"}]\nresponse_buffer_size: 2\n");
        let named = http((1, 1), "service_name_matcher: {exact: web}\n");
        b.say(ok(b"xfine"));
        let (culvert, port) = start(driver, &up(&[&a, &b], &receive));
        assert!(only(&answers(port, 10), &["a"]));
        drop(culvert);
        a.answer(200, "x-envoy-upstream-healthchecked-cluster: web\r\n");
        b.answer(200, "x-envoy-upstream-healthchecked-cluster: api\r\n");
        let (culvert, port) = start(driver, &up(&[&a, &b], &named));
        assert!(only(&answers(port, 10), &["a"]));
        assert!(culvert.stat("cluster.up.health_check.verify_cluster") >= 2);
    }
}

#[test]
fn endpoints_may_call_themselves_degraded_or_leave() {
    for driver in DRIVERS {
        let (a, b) = (Switch::new("a"), Switch::new("b"));
        let (culvert, port) = start(driver, &up(&[&a, &b], &http((1, 1), "")));
        b.answer(200, "x-envoy-degraded: 1\r\n");
        culvert.wait_until("b is degraded", |culvert| {
            flags(culvert, b.address()).as_deref() == Some("/degraded_active_hc")
        });
        assert_eq!(culvert.stat("cluster.up.membership_degraded"), 1);
        assert_eq!(culvert.stat("cluster.up.health_check.degraded"), 1);
        b.answer(503, "x-envoy-immediate-health-check-fail: 1\r\n");
        culvert.wait_until("b leaves", |culvert| {
            let flags = flags(culvert, b.address());
            flags.as_deref().is_some_and(|flags| flags.contains("/excluded_via_immediate_hc_fail"))
        });
        assert_eq!(culvert.stat("cluster.up.membership_excluded"), 1);
        culvert.wait_until("all go to a", |_| only(&answers(port, 20), &["a"]));
    }
}

#[test]
fn connections_are_reused_as_configured() {
    for driver in DRIVERS {
        let (kept, fresh) = (Switch::new("kept"), Switch::new("fresh"));
        let of = |name, server: &Switch, more: &str| {
            cluster(name, &[server.address()]) + &http((1, 1), "").replace("timeout: 600s", more)
        };
        let clusters = of("up", &kept, "timeout: 600s")
            + &of("fresh", &fresh, "timeout: 600s\n    reuse_connection: false");
        let (culvert, _) = start(driver, &clusters);
        culvert.wait_until("checks", |_| kept.checks() >= 5 && fresh.checks() >= 5);
        assert_eq!(kept.upstream.accepted(), 1);
        assert!(fresh.upstream.accepted() >= 5);
    }
}

#[test]
fn intervals_and_the_first_check_as_configured() {
    for driver in DRIVERS {
        let (often, seldom, later) = (Switch::new("often"), Switch::new("seldom"), Switch::new("later"));
        let of = |name, server: &Switch, from: &str, to: &str| {
            cluster(name, &[server.address()]) + &http((1, 1), "").replace(from, to)
        };
        let clusters = of("up", &often, "none", "none")
            + &of("seldom", &seldom, "no_traffic_interval: 0.05s", "no_traffic_interval: 3600s")
            + "  wait_for_warm_on_init: false\n"
            + &of("later", &later, "timeout: 600s", "timeout: 600s\n    initial_jitter: 36000s")
            + "  wait_for_warm_on_init: false\n";
        let (culvert, _) = start(driver, &clusters);
        culvert.wait_until("checks", |_| often.checks() >= 10 && seldom.checks() == 1);
        assert_eq!(seldom.checks(), 1);
        assert_eq!(later.checks(), 0);
    }
}

#[test]
fn endpoints_say_where_they_are_checked_and_whether() {
    let (served, checked_at, other) = (Switch::new("served"), Switch::new("elsewhere"), Switch::new("other"));
    served.answer(500, "");
    other.answer(500, "");
    let with = |server: &Switch, config: &str| {
        cluster("up", &[server.address()])
            .replace("}}}", &format!("}}}}, health_check_config: {{{config}}}}}"))
            + &http((1, 1), "")
    };
    let port = checked_at.address().port();
    for config in [
        format!("port_value: {port}"),
        format!(
            "address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, hostname: own.example"
        ),
        format!("address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}, port_value: {port}"),
    ] {
        on_each(&with(&served, &config), |culvert, _| {
            assert_eq!(flags(culvert, served.address()).as_deref(), Some("healthy"), "{config}");
        });
    }
    let asked = checked_at.checks.lock().expect("checks");
    assert!(asked.iter().any(|(head, _)| head.contains("host: own.example\r\n")));
    drop(asked);
    on_each(&with(&other, "disable_active_health_check: true"), |culvert, _| {
        assert_eq!(flags(culvert, other.address()).as_deref(), Some("healthy"));
        assert_eq!(culvert.stat("cluster.up.health_check.attempt"), 0);
    });
    assert_eq!(other.checks(), 0);
    let alt = cluster("up", &[served.address()])
        + &http((1, 1), "").replace("timeout: 600s", &format!("timeout: 600s\n    alt_port: {port}"));
    on_each(&alt, |culvert, _| {
        assert_eq!(flags(culvert, served.address()).as_deref(), Some("healthy"));
    });
}

#[test]
fn idle_connections_to_an_endpoint_that_failed_are_given_up() {
    for driver in DRIVERS {
        let (a, b) = (Switch::new("a"), Switch::new("b"));
        // Checks leave no connection behind, so that those of requests can be counted.
        let checks = http((1, 1), "").replace("timeout: 600s", "timeout: 600s\n    reuse_connection: false");
        let (culvert, port) = start(driver, &up(&[&a, &b], &checks));
        assert!(only(&answers(port, 40), &["a", "b"]));
        b.answer(500, "");
        let mark = format!("up::{}::cx_active::0", b.address());
        culvert.wait_until("connections close", |culvert| {
            culvert.get("/clusters").is_some_and(|clusters| clusters.contains(&mark))
        });
        assert!(only(&answers(port, 20), &["a"]));
    }
}

/// Events of a file: what happened, and how it is described.
fn events(path: &std::path::Path) -> Vec<(String, serde_json::Value)> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let known = [
        "add_healthy_event",
        "degraded_healthy_host",
        "eject_unhealthy_event",
        "health_check_failure_event",
        "no_longer_degraded_host",
        "successful_health_check_event",
    ];
    text.lines()
        .map(|line| {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(event["health_checker_type"], "HTTP");
            assert_eq!(event["cluster_name"], "up");
            assert!(event["timestamp"].as_str().unwrap().ends_with('Z'));
            let name = known.into_iter().find(|name| event.get(name).is_some()).unwrap();
            (name.to_owned(), event)
        })
        .collect()
}

#[test]
fn events_are_written_to_files() {
    for driver in DRIVERS {
        let folder = tempfile::tempdir().unwrap();
        let (few, all) = (folder.path().join("few"), folder.path().join("all"));
        let server = Switch::new("a");
        let config = |name: &str, log: &str| {
            let sink = "type.googleapis.com/envoy.extensions.health_check.event_sinks.file.v3.HealthCheckEventFileSink";
            cluster(name, &[server.address()])
                + &http((2, 2), "retriable_statuses: [{start: 503, end: 504}]\n").replace(
                    "  - timeout",
                    &format!("  - {}\n    timeout", log.replace("SINK", &format!("'@type': {sink}"))),
                )
        };
        let few_log =
            format!("event_logger: [{{name: f, typed_config: {{SINK, event_log_path: {}}}}}]", few.display());
        let begin = |clusters: &str| {
            let (admin, port) = (free_port(), free_port());
            let routes = "- {match: {prefix: /}, route: {cluster: up}}";
            let text = bootstrap(admin, port, "", routes, clusters);
            Culvert::start_with(driver, admin, &text, &["--file-flush-interval-msec", "20"])
        };
        let culvert = begin(&config("up", &few_log));
        let names = |path: &std::path::Path| -> Vec<String> {
            events(path).into_iter().map(|(name, _)| name).collect()
        };
        let step = |what: &str, path: &std::path::Path, expected: &[&str]| {
            culvert.wait_until(what, |_| names(path).len() >= expected.len());
            assert_eq!(names(path), expected, "{what}");
        };
        step("it is healthy", &few, &["add_healthy_event"]);
        assert_eq!(events(&few)[0].1["add_healthy_event"]["first_check"], true);
        assert_eq!(events(&few)[0].1["host"]["socket_address"]["port_value"], server.address().port());
        server.answer(500, "");
        step("it is ejected", &few, &["add_healthy_event", "eject_unhealthy_event"]);
        let ejected = &events(&few)[1].1["eject_unhealthy_event"];
        assert_eq!((&ejected["failure_type"], &ejected["http_status_code"]), (&"ACTIVE".into(), &500.into()));
        server.answer(200, "");
        let back = ["add_healthy_event", "eject_unhealthy_event", "add_healthy_event"];
        step("it is back", &few, &back);
        assert_eq!(events(&few)[2].1["add_healthy_event"]["first_check"], false);
        server.answer(200, "x-envoy-degraded: true\r\n");
        step("it is degraded", &few, &[&back[..], &["degraded_healthy_host"]].concat());
        server.answer(200, "");
        step(
            "it is degraded no more",
            &few,
            &[&back[..], &["degraded_healthy_host", "no_longer_degraded_host"]].concat(),
        );
        drop(culvert);

        server.answer(503, "");
        let all_log = format!(
            "event_log_path: {}\n    always_log_health_check_failures: true\n    always_log_health_check_success: true",
            all.display()
        );
        let culvert = begin(&config("up", &all_log));
        let has =
            |name: &str, count: usize| names(&all).iter().filter(|known| *known == name).count() >= count;
        culvert.wait_until("every failure", |_| has("health_check_failure_event", 3));
        let first = &events(&all)[0].1["health_check_failure_event"];
        assert_eq!(first["first_check"], true, "{:?}", events(&all)[0]);
        assert_eq!(events(&all)[1].1["health_check_failure_event"]["first_check"], false);
        server.answer(200, "");
        culvert.wait_until("every success", |_| has("successful_health_check_event", 3));
        assert!(has("add_healthy_event", 1));
    }
}
