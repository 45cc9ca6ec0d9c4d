//! `health_check`

use crate::{Scene, filter, get, logged, route};

#[test]
fn health_is_told_without_an_upstream() {
    let question = "pass_through_mode: false, headers: [{name: \":path\", string_match: {exact: /healthz}}, {name: x, \
                    present_match: true}]";
    let filters = [filter("h", "health_check.v3.HealthCheck", question)];
    Scene { filters: &filters, config: "", host: "", routes: &[route("/", &[])] }.run(|culvert, port| {
        const FAIL: &str = "x-envoy-immediate-health-check-fail";
        let healthy = get(port, "/healthz", &[("x", "1")]);
        assert_eq!((healthy.status, healthy.body.len()), (200, 0));
        assert_eq!(healthy.header("x-envoy-upstream-healthchecked-cluster"), Some("tests"));
        logged(culvert, "/healthz 200 - health_check_ok");
        let other = get(port, "/healthz", &[]);
        assert!(other.text().starts_with("GET /healthz "), "all matchers count");
        assert_eq!(other.header(FAIL), None);
        culvert.post("/healthcheck/fail");
        assert_eq!(get(port, "/healthz", &[("x", "1")]).status, 503);
        logged(culvert, "/healthz 503 LH health_check_failed");
        let other = get(port, "/", &[]);
        assert_eq!((other.status, other.header(FAIL)), (200, Some("true")));
        culvert.post("/healthcheck/ok");
        assert_eq!(get(port, "/healthz", &[("x", "1")]).status, 200);
    });
}
