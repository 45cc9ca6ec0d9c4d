//! Active health checks: thresholds, intervals, answers.

use std::time::Duration;

use culvert_model::{
    HealthCheck, HealthChecker, HealthIntervals, HttpHealthCheck, StringMatcher, TcpHealthCheck,
};
use culvert_proto::health::{
    Checked, Failure, HttpAnswer, Outcome, Thresholds, Transition, contains_in_order, grpc_serving,
    judge_http, next_check,
};
use proptest::prelude::*;

const OK: Outcome = Outcome::Success { degraded: false };
const DEGRADED: Outcome = Outcome::Success { degraded: true };
const ANSWER: Outcome = Outcome::Failure(Failure::Answer);
const NETWORK: Outcome = Outcome::Failure(Failure::Network);
const RETRIABLE: Outcome = Outcome::Failure(Failure::Retriable);
const THRESHOLDS: Thresholds = Thresholds { healthy: 2, unhealthy: 3 };

/// Transitions of an endpoint that starts as failed, as in a new cluster.
fn run(outcomes: &[Outcome]) -> (Checked, Vec<Transition>) {
    let mut checked = Checked::new(true);
    let transitions = outcomes.iter().map(|outcome| checked.record(*outcome, THRESHOLDS)).collect();
    (checked, transitions)
}

#[test]
fn one_success_is_enough_at_first() {
    use Transition::{Changed, Pending, Unchanged};
    assert_eq!(run(&[OK, OK]).1, [Changed, Unchanged]);
    assert_eq!(run(&[ANSWER, OK, OK]).1, [Unchanged, Pending, Changed]);
    assert_eq!(run(&[NETWORK, OK, NETWORK, OK, OK]).1, [Unchanged, Pending, Unchanged, Pending, Changed]);
}

#[test]
fn failures_count_unless_the_answer_is_wrong() {
    use Transition::{Changed, Pending, Unchanged};
    assert_eq!(
        run(&[OK, NETWORK, RETRIABLE, NETWORK, NETWORK]).1,
        [Changed, Pending, Pending, Changed, Unchanged]
    );
    assert_eq!(run(&[OK, NETWORK, NETWORK, OK, NETWORK]).1, [Changed, Pending, Pending, Unchanged, Pending]);
    assert_eq!(run(&[OK, ANSWER]).1, [Changed, Changed]);
}

#[test]
fn degraded_is_a_change() {
    let (checked, transitions) = run(&[DEGRADED, DEGRADED, OK]);
    assert_eq!(transitions, [Transition::Changed, Transition::Unchanged, Transition::Changed]);
    assert!(!checked.is_degraded() && !checked.is_failed() && checked.is_checked());
}

proptest! {
    /// Against the definition: look back over the whole history.
    #[test]
    fn thresholds_are_of_outcomes_in_a_row(
        kinds in prop::collection::vec(0..4_u8, 1..60), healthy in 1..4_u32, unhealthy in 1..4_u32,
    ) {
        let outcomes: Vec<_> =
            kinds.iter().map(|kind| [OK, ANSWER, NETWORK, RETRIABLE][usize::from(*kind)]).collect();
        let mut checked = Checked::new(true);
        let mut failed = true;
        // Where the present state began: what came before does not count.
        let mut since = 0;
        for (at, outcome) in outcomes.iter().enumerate() {
            let good = *outcome == OK;
            let row = outcomes[since..=at].iter().rev().take_while(|o| (**o == OK) == good).count() as u32;
            let flips = match (failed, good) {
                (true, true) => at == 0 || row >= healthy,
                (false, false) => *outcome == ANSWER || row >= unhealthy,
                _ => false,
            };
            let transition = checked.record(*outcome, Thresholds { healthy, unhealthy });
            if flips {
                failed = !failed;
                since = at + 1;
            }
            prop_assert_eq!(checked.is_failed(), failed);
            prop_assert_eq!(transition == Transition::Changed, flips);
        }
    }

    #[test]
    fn no_body_of_a_grpc_answer_panics(body in prop::collection::vec(any::<u8>(), 0..40)) {
        let _ = grpc_serving(&body);
    }
}

fn check() -> HealthCheck {
    let s = Duration::from_secs;
    HealthCheck {
        timeout: s(1),
        intervals: HealthIntervals {
            healthy: s(10),
            unhealthy: s(20),
            unhealthy_edge: s(30),
            healthy_edge: s(40),
            no_traffic: s(50),
            no_traffic_healthy: s(60),
        },
        initial_jitter: Duration::ZERO,
        interval_jitter: Duration::ZERO,
        interval_jitter_percent: 0,
        unhealthy_threshold: 1,
        healthy_threshold: 1,
        reuse_connection: true,
        alt_port: None,
        alpn: Vec::new(),
        checker: HealthChecker::Tcp(TcpHealthCheck::default()),
        event_logs: Vec::new(),
        logs_failures: false,
        logs_successes: false,
    }
}

#[test]
fn intervals_by_health_and_traffic() {
    use Transition::{Changed, Pending, Unchanged};
    let rng = &mut fastrand::Rng::with_seed(1);
    let mut seconds =
        |outcome, transition, traffic| next_check(&check(), outcome, transition, traffic, rng).as_secs();
    assert_eq!(seconds(OK, Unchanged, true), 10);
    assert_eq!(seconds(OK, Changed, true), 10);
    assert_eq!(seconds(OK, Pending, true), 40);
    assert_eq!(seconds(NETWORK, Unchanged, true), 20);
    assert_eq!(seconds(NETWORK, Changed, true), 20);
    assert_eq!(seconds(NETWORK, Pending, true), 30);
    assert_eq!(seconds(OK, Changed, false), 60);
    assert_eq!(seconds(OK, Pending, false), 50);
    assert_eq!(seconds(ANSWER, Unchanged, false), 50);
}

#[test]
fn jitter_is_added_up_to_its_bounds() {
    let jittered =
        HealthCheck { interval_jitter: Duration::from_secs(3), interval_jitter_percent: 50, ..check() };
    let rng = &mut fastrand::Rng::with_seed(7);
    let waits: Vec<f64> = (0..2_000)
        .map(|_| next_check(&jittered, OK, Transition::Unchanged, true, rng).as_secs_f64())
        .collect();
    assert!(waits.iter().all(|wait| (10.0..18.0).contains(wait)));
    assert!(waits.iter().any(|wait| *wait < 12.0) && waits.iter().any(|wait| *wait > 16.0));
    let none = HealthCheck {
        intervals: HealthIntervals { healthy: Duration::ZERO, ..check().intervals },
        ..check()
    };
    assert!(next_check(&none, OK, Transition::Unchanged, true, rng) > Duration::ZERO);
}

fn http() -> HttpHealthCheck {
    HttpHealthCheck {
        host: String::new(),
        path: "/".into(),
        method: "GET".into(),
        send: Vec::new(),
        receive: Vec::new(),
        buffer: Some(1_024),
        add: Vec::new(),
        remove: Vec::new(),
        expected: vec![(200, 201), (300, 310)],
        retriable: vec![(400, 500), (503, 504)],
        http2: false,
        service_name: None,
    }
}

#[test]
fn answers() {
    let judge = |answer| judge_http(&http(), &answer).outcome;
    let status = |status| HttpAnswer { status, ..HttpAnswer::default() };
    assert_eq!(judge(status(200)), OK);
    assert_eq!(judge(status(309)), OK);
    assert_eq!(judge(status(201)), ANSWER);
    assert_eq!(judge(status(310)), ANSWER);
    assert_eq!(judge(status(499)), RETRIABLE);
    assert_eq!(judge(status(503)), RETRIABLE);
    assert_eq!(judge(status(500)), ANSWER);
    assert_eq!(judge(HttpAnswer { degraded: true, ..status(200) }), DEGRADED);
    let leaves = HttpAnswer { excludes_itself: true, ..status(503) };
    assert!(judge_http(&http(), &leaves).excluded);
    assert!(!judge_http(&http(), &HttpAnswer { status: 200, ..leaves }).excluded);
}

#[test]
fn answers_with_a_body_or_a_name() {
    let with_body = HttpHealthCheck { receive: vec![b"al".to_vec(), b"ive".to_vec()], ..http() };
    let body =
        |body| judge_http(&with_body, &HttpAnswer { status: 200, body, ..HttpAnswer::default() }).outcome;
    assert_eq!(body(b"alive"), OK);
    assert_eq!(body(b"ive al"), ANSWER);
    let name = StringMatcher::Prefix { value: "web".into(), ignore_case: false };
    let named = HttpHealthCheck { service_name: Some(name), ..http() };
    let cluster = |cluster| judge_http(&named, &HttpAnswer { status: 200, cluster, ..HttpAnswer::default() });
    assert_eq!(cluster(b"web-1").outcome, OK);
    assert_eq!(cluster(b"api").outcome, ANSWER);
    assert_eq!(cluster(b"").outcome, ANSWER);
    assert!(cluster(b"web").verified);
}

#[test]
fn payloads_follow_each_other() {
    let parts = [b"ab".to_vec(), b"ab".to_vec()];
    assert!(contains_in_order(&parts, b"xabyab"));
    assert!(!contains_in_order(&parts, b"xaby"));
    assert!(!contains_in_order(&parts, b"aba b"));
    assert!(contains_in_order(&[], b""));
}

#[test]
fn grpc_answers() {
    assert_eq!(grpc_serving(&[0, 0, 0, 0, 2, 8, 1]), Some(true));
    assert_eq!(grpc_serving(&[0, 0, 0, 0, 2, 8, 2]), Some(false));
    assert_eq!(grpc_serving(&[0, 0, 0, 0, 0]), Some(false));
    // Unknown fields of every kind before the status.
    let message = [0x12, 1, 7, 0x19, 1, 2, 3, 4, 5, 6, 7, 8, 0x25, 1, 2, 3, 4, 0x28, 0x81, 1, 8, 1];
    let mut body = vec![0, 0, 0, 0, message.len() as u8];
    body.extend(message);
    assert_eq!(grpc_serving(&body), Some(true));
    for bad in [&[][..], &[0, 0, 0, 0], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 3, 8, 1], &[0, 0, 0, 0, 1, 8]] {
        assert_eq!(grpc_serving(bad), None, "{bad:?}");
    }
}
