//! Outlier detection: hosts that fail requests are ejected, and come back.

use std::net::{SocketAddr, TcpListener};

use crate::{
    answers, checked, flags, only, start,
    support::{
        DRIVERS,
        client::Client,
        culvert::{Culvert, cluster},
    },
    switch::{PATH, Switch},
};

/// A cluster of these servers with this `outlier_detection`.
fn up(addresses: &[SocketAddr], detection: &str) -> String {
    format!("{}  outlier_detection: {{{detection}}}\n", cluster("up", addresses))
}

fn is_ejected(culvert: &Culvert, address: SocketAddr) -> bool {
    flags(culvert, address).as_deref() == Some("/failed_outlier_check")
}

/// Sends requests, from all workers, until `condition` holds.
fn request_until(culvert: &Culvert, port: u16, what: &str, condition: impl Fn(&Culvert) -> bool) {
    culvert.wait_until(what, |culvert| {
        answers(port, 4);
        condition(culvert)
    });
}

fn stat(culvert: &Culvert, name: &str) -> u64 {
    culvert.stat(&format!("cluster.up.outlier_detection.{name}"))
}

#[test]
fn a_host_that_answers_5xx_is_ejected_and_comes_back() {
    for driver in DRIVERS {
        let (a, b) = (Switch::new("a"), Switch::new("b"));
        let detection =
            "consecutive_5xx: 3, interval: 0.1s, base_ejection_time: 2s, max_ejection_percent: 50";
        let (culvert, port) = start(driver, &up(&[a.address(), b.address()], detection));
        assert!(only(&answers(port, 20), &["a", "b"]));
        b.fail(true);
        request_until(&culvert, port, "b is ejected", |culvert| is_ejected(culvert, b.address()));
        assert_eq!(stat(&culvert, "ejections_active"), 1);
        assert_eq!(stat(&culvert, "ejections_enforced_total"), 1);
        assert_eq!(stat(&culvert, "ejections_enforced_consecutive_5xx"), 1);
        assert_eq!(culvert.stat("cluster.up.membership_healthy"), 1);
        b.fail(false);
        // Nothing but a goes on until the time is over.
        culvert.wait_until("it is back", |culvert| !is_ejected(culvert, b.address()));
        culvert.wait_until("it gets requests", |_| only(&answers(port, 20), &["a", "b"]));
        assert_eq!(stat(&culvert, "ejections_active"), 0);
        // Now the other one, on which the count was ended by successes all the time.
        a.fail(true);
        request_until(&culvert, port, "a is ejected", |culvert| is_ejected(culvert, a.address()));
    }
}

#[test]
fn ejected_hosts_get_nothing_from_any_worker() {
    for driver in DRIVERS {
        let (a, b) = (Switch::new("a"), Switch::new("b"));
        let detection = "consecutive_5xx: 2, base_ejection_time: 3000s, max_ejection_time: 3000s, max_ejection_percent: 50";
        let (culvert, port) = start(driver, &up(&[a.address(), b.address()], detection));
        b.fail(true);
        request_until(&culvert, port, "b is ejected", |culvert| is_ejected(culvert, b.address()));
        culvert.wait_until("all go to a", |_| only(&answers(port, 20), &["a"]));
        assert!(only(&answers(port, 60), &["a"]));
        // No more than half of them.
        a.fail(true);
        request_until(&culvert, port, "a would be", |culvert| stat(culvert, "ejections_overflow") >= 2);
        assert!(!is_ejected(&culvert, a.address()));
        assert_eq!(stat(&culvert, "ejections_active"), 1);
    }
}

#[test]
fn rows_are_counted_over_all_workers() {
    for driver in DRIVERS {
        let a = Switch::new("a");
        a.fail(true);
        let detection = "consecutive_5xx: 10, max_ejection_percent: 100, base_ejection_time: 3000s, max_ejection_time: 3000s";
        let (culvert, port) = start(driver, &up(&[a.address()], detection));
        // Connections are spread over two workers: neither of them sees all.
        assert_eq!(answers(port, 9).get("500"), Some(&9));
        assert_eq!(stat(&culvert, "ejections_detected_consecutive_5xx"), 0);
        a.fail(false);
        answers(port, 1);
        a.fail(true);
        answers(port, 9);
        assert_eq!(stat(&culvert, "ejections_detected_consecutive_5xx"), 0);
        answers(port, 1);
        culvert.wait_until("it is ejected", |culvert| is_ejected(culvert, a.address()));
        assert_eq!(stat(&culvert, "ejections_enforced_total"), 1);
        // All are ejected: panic.
        culvert.wait_until("panic", |culvert| {
            answers(port, 2);
            culvert.stat("cluster.up.lb_healthy_panic") > 0
        });
    }
}

#[test]
fn detection_is_not_always_ejection() {
    for driver in DRIVERS {
        let (a, b) = (Switch::new("a"), Switch::new("b"));
        for switch in [&a, &b] {
            switch.fail(true);
        }
        for (detection, counted) in [
            (
                "consecutive_5xx: 2, enforcing_consecutive_5xx: 0, max_ejection_percent: 100",
                "ejections_detected_consecutive_5xx",
            ),
            ("consecutive_5xx: 2", "ejections_overflow"),
        ] {
            let (culvert, port) = start(driver, &up(&[a.address(), b.address()], detection));
            request_until(&culvert, port, counted, |culvert| stat(culvert, counted) >= 3);
            assert_eq!(stat(&culvert, "ejections_enforced_total"), 0);
            assert_eq!(flags(&culvert, a.address()).as_deref(), Some("healthy"));
        }
        let one = "consecutive_5xx: 2, always_eject_one_host: true, base_ejection_time: 3000s, max_ejection_time: 3000s";
        let (culvert, port) = start(driver, &up(&[a.address(), b.address()], one));
        request_until(&culvert, port, "overflow", |culvert| stat(culvert, "ejections_overflow") >= 1);
        assert_eq!(stat(&culvert, "ejections_active"), 1);
    }
}

#[test]
fn hosts_that_cannot_be_reached() {
    for driver in DRIVERS {
        let a = Switch::new("a");
        let dead = TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("an address");
        let common = "base_ejection_time: 3000s, max_ejection_time: 3000s, max_ejection_percent: 50";
        for (detection, counted) in [
            ("consecutive_5xx: 3", "ejections_enforced_consecutive_5xx"),
            (
                "consecutive_5xx: 0, consecutive_gateway_failure: 3, enforcing_consecutive_gateway_failure: 100",
                "ejections_enforced_consecutive_gateway_failure",
            ),
            (
                "consecutive_5xx: 1, split_external_local_origin_errors: true, consecutive_local_origin_failure: 3",
                "ejections_enforced_consecutive_local_origin_failure",
            ),
        ] {
            let (culvert, port) = start(driver, &up(&[a.address(), dead], &format!("{detection}, {common}")));
            request_until(&culvert, port, "it is ejected", |culvert| is_ejected(culvert, dead));
            assert_eq!(stat(&culvert, counted), 1, "{counted}");
            assert_eq!(stat(&culvert, "ejections_enforced_total"), 1);
            culvert.wait_until("all go to a", |_| only(&answers(port, 20), &["a"]));
        }
    }
}

#[test]
fn shares_of_failures_in_an_interval() {
    for driver in DRIVERS {
        let (a, b) = (Switch::new("a"), Switch::new("b"));
        b.fail(true);
        let common = "consecutive_5xx: 0, interval: 1s, base_ejection_time: 3000s, max_ejection_time: 3000s, max_ejection_percent: 50";
        for (detection, counted) in [
            (
                "enforcing_success_rate: 0, enforcing_failure_percentage: 100, failure_percentage_minimum_hosts: 2, \
                 failure_percentage_request_volume: 5",
                "ejections_enforced_failure_percentage",
            ),
            (
                "success_rate_minimum_hosts: 2, success_rate_request_volume: 5, success_rate_stdev_factor: 900",
                "ejections_enforced_success_rate",
            ),
        ] {
            let (culvert, port) =
                start(driver, &up(&[a.address(), b.address()], &format!("{detection}, {common}")));
            culvert.wait_until("it is ejected", |culvert| {
                let mut client = Client::connect(port);
                for _ in 0..40 {
                    client.get("/");
                }
                is_ejected(culvert, b.address())
            });
            assert_eq!(stat(&culvert, counted), 1, "{counted}");
            assert_eq!(flags(&culvert, a.address()).as_deref(), Some("healthy"));
        }
    }
}

#[test]
fn a_host_that_passes_its_checks_is_taken_back() {
    for driver in DRIVERS {
        let (a, b) = (Switch::new("a"), Switch::new("b"));
        b.fail(true);
        let checks = checked(&format!(
            "healthy_threshold: 1\nunhealthy_threshold: 1\nhttp_health_check: {{path: {PATH}}}\n"
        ));
        let detection = "consecutive_5xx: 2, base_ejection_time: 3000s, max_ejection_time: 3000s, max_ejection_percent: 50";
        let all = [a.address(), b.address()];
        let (culvert, port) = start(driver, &(up(&all, detection) + &checks));
        request_until(&culvert, port, "ejections", |culvert| stat(culvert, "ejections_enforced_total") >= 2);
        let kept = format!("{detection}, successful_active_health_check_uneject_host: false");
        let (culvert, port) = start(driver, &(up(&all, &kept) + &checks));
        request_until(&culvert, port, "b is ejected", |culvert| is_ejected(culvert, b.address()));
        let seen = b.checks();
        culvert.wait_until("checks", |_| b.checks() > seen + 5);
        assert!(is_ejected(&culvert, b.address()));
    }
}
