//! Outlier detection: rows of failures, limits and times of ejections, success rates.

use std::time::Duration;

use culvert_model::{Enforcing, OutlierDetection};
use culvert_proto::outlier::{Ejectable, Rate, Streak, failing, may_eject, success_rate_outliers};
use proptest::prelude::*;

fn config() -> OutlierDetection {
    let s = Duration::from_secs;
    OutlierDetection {
        consecutive_5xx: 5,
        consecutive_gateway: 5,
        consecutive_local: 5,
        split: false,
        interval: s(10),
        base_ejection: s(30),
        max_ejection: s(300),
        jitter: Duration::ZERO,
        max_percent: 10,
        always_one: false,
        check_unejects: true,
        success_rate_hosts: 5,
        success_rate_volume: 100,
        success_rate_factor: 1_900,
        failure_percentage: 85,
        failure_percentage_hosts: 5,
        failure_percentage_volume: 50,
        enforcing: Enforcing {
            consecutive_5xx: 100,
            consecutive_gateway: 0,
            consecutive_local: 100,
            success_rate: 100,
            local_success_rate: 100,
            failure_percentage: 0,
            local_failure_percentage: 0,
        },
    }
}

#[test]
fn a_share_of_the_hosts_may_be_ejected() {
    let with = |max_percent, always_one| OutlierDetection { max_percent, always_one, ..config() };
    // As Envoy 1.40 counts: with the one that is to be ejected.
    assert!(!may_eject(&with(10, false), 0, 2));
    assert!(may_eject(&with(10, true), 0, 2));
    assert!(!may_eject(&with(10, true), 1, 2));
    assert!(may_eject(&with(10, false), 0, 10));
    assert!(!may_eject(&with(10, false), 1, 10));
    assert!(may_eject(&with(50, false), 0, 2));
    assert!(!may_eject(&with(50, false), 1, 2));
    assert!(may_eject(&with(100, false), 1, 2));
    assert!(!may_eject(&with(0, false), 0, 1_000));
}

#[test]
fn ejections_last_longer_each_time() {
    let config = OutlierDetection { max_ejection: Duration::from_secs(70), ..config() };
    let mut host = Ejectable::default();
    let mut now = Duration::ZERO;
    let mut lasts = |host: &mut Ejectable| {
        host.eject(&config, now, Duration::ZERO);
        let since = now;
        while !host.sweep(&config, now) {
            now += Duration::from_secs(1);
        }
        host.uneject();
        (now - since).as_secs()
    };
    assert_eq!([lasts(&mut host), lasts(&mut host), lasts(&mut host), lasts(&mut host)], [30, 60, 70, 70]);
    assert_eq!(host.count(), 4);
    // Each quiet interval forgives one.
    for _ in 0..2 {
        assert!(!host.sweep(&config, Duration::from_secs(9_999)));
    }
    assert_eq!(lasts(&mut host), 60);
}

#[test]
fn jitter_puts_the_return_off() {
    let mut host = Ejectable::default();
    host.eject(&config(), Duration::from_secs(100), Duration::from_secs(7));
    assert!(host.is_ejected());
    assert!(!host.sweep(&config(), Duration::from_secs(136)));
    assert!(host.sweep(&config(), Duration::from_secs(137)));
}

fn rates(of: &[(u64, u64)]) -> Vec<Option<Rate>> {
    of.iter().map(|(total, successes)| Some(Rate { total: *total, successes: *successes })).collect()
}

#[test]
fn success_rates_far_below_the_mean() {
    let good = (100, 100);
    let with = |bad| rates(&[good, good, good, good, bad]);
    // Mean 90, standard deviation 20: below 52 with a factor of 1.9.
    assert_eq!(success_rate_outliers(&config(), &with((100, 50))), [4]);
    let strict = OutlierDetection { success_rate_factor: 2_100, ..config() };
    assert!(success_rate_outliers(&strict, &with((100, 50))).is_empty());
    // Too few requests, and with them too few hosts.
    assert!(success_rate_outliers(&config(), &with((99, 0))).is_empty());
    let fewer = OutlierDetection { success_rate_hosts: 4, ..config() };
    assert!(success_rate_outliers(&fewer, &with((99, 0))).is_empty());
    assert!(success_rate_outliers(&fewer, &with((100, 100))).is_empty());
    let mut ejected = with((100, 50));
    ejected[4] = None;
    assert!(success_rate_outliers(&config(), &ejected).is_empty());
}

#[test]
fn failure_percentages() {
    let all = rates(&[(50, 50), (50, 7), (50, 8), (49, 0), (60, 60), (50, 50)]);
    // 86 % and 84 % of 50, and one with too few requests.
    assert_eq!(failing(&config(), &all), [1]);
    let more = OutlierDetection { failure_percentage_hosts: 6, ..config() };
    assert!(failing(&more, &all).is_empty());
    let lower = OutlierDetection { failure_percentage: 84, failure_percentage_volume: 49, ..config() };
    assert_eq!(failing(&lower, &all), [1, 2, 3]);
}

proptest! {
    /// Against the definition.
    #[test]
    fn rows_of_failures(statuses in prop::collection::vec(prop::sample::select(vec![200, 404, 500, 501, 502, 503, 504]), 0..40)) {
        let streak = statuses.iter().fold(Streak::default(), |streak, status| {
            Streak::of_word(streak.word()).after(*status)
        });
        let row = |in_row: fn(&u16) -> bool| statuses.iter().rev().take_while(|s| in_row(s)).count() as u32;
        prop_assert_eq!(streak.errors, row(|status| *status >= 500));
        prop_assert_eq!(streak.gateway, row(|status| *status >= 502));
        prop_assert_eq!(streak.word() == 0, streak.errors == 0);
    }

    /// No more than the share, whatever the order of events.
    #[test]
    fn the_limit_holds(percent in 0..=100_u32, hosts in 1..50_usize, always_one: bool) {
        let config = OutlierDetection { max_percent: percent, always_one, ..config() };
        let mut ejected = 0;
        while may_eject(&config, ejected, hosts) {
            ejected += 1;
            prop_assert!(ejected <= hosts);
        }
        let share = hosts * percent as usize / 100;
        prop_assert_eq!(ejected, if always_one { share.max(1) } else { share });
    }
}
