//! Which filters a request meets, and with which settings.

use crate::{Scene, filter, get, logged, route, settings, switch};

fn abort(name: &str, status: u16) -> String {
    let fault = format!("abort: {{http_status: {status}, percentage: {{numerator: 100}}}}");
    settings(name, "fault.v3.HTTPFault", &fault)
}

#[test]
fn the_most_specific_level_has_the_last_word() {
    let weighted = format!(
        "{{match: {{prefix: /cluster}}, typed_per_filter_config: {{{}}}, route: {{weighted_clusters: {{clusters: [{{name: \
         up, weight: 1, typed_per_filter_config: {{{}}}}}]}}}}}}",
        abort("f", 402),
        abort("f", 403)
    );
    let routes = [
        weighted,
        route("/route", &[abort("f", 402)]),
        route("/off", &[switch("f", "disabled: true")]),
        route("/other", &[abort("g", 402)]),
        // It says nothing but that the filter is on: settings are those of the level above.
        route("/on", &[switch("f", "config: {}")]),
        "{match: {prefix: /direct}, direct_response: {status: 200}}".to_owned(),
        route("/host", &[]),
    ];
    let scene = Scene {
        filters: &[filter("f", "fault.v3.HTTPFault", "")],
        config: &format!("typed_per_filter_config: {{{}}},", abort("f", 400)),
        host: &format!("typed_per_filter_config: {{{}}},", abort("f", 401)),
        routes: &routes,
    };
    scene.run(|culvert, port| {
        let status = |path: &str| get(port, path, &[]).status;
        let found = ["/cluster", "/route", "/off", "/other", "/on", "/direct", "/host"].map(status);
        assert_eq!(found, [403, 402, 200, 401, 401, 401, 401]);
        assert_eq!(status("/none"), 404, "without a route the filter's own settings count");
        logged(culvert, "/none 404 NR route_not_found");
    });
    let scene = Scene { host: "", ..scene };
    scene.run(|_, port| assert_eq!(get(port, "/host", &[]).status, 400));
}

#[test]
fn a_route_turns_on_what_is_disabled() {
    let off = filter("f", "fault.v3.HTTPFault", "abort: {http_status: 418, percentage: {numerator: 100}}");
    let off = off.replacen("name: f,", "name: f, disabled: true,", 1);
    let unsupported = filter("u", "bandwidth_limit.v3.BandwidthLimit", "stat_prefix: a");
    let unsupported = unsupported.replacen("name: u,", "name: u, disabled: true,", 1);
    let routes = [
        route("/on", &[switch("f", "config: {}")]),
        route("/own", &[abort("f", 419)]),
        route("/unsupported", &[switch("u", "config: {}")]),
        route("/", &[]),
    ];
    Scene { filters: &[off, unsupported], config: "", host: "", routes: &routes }.run(|culvert, port| {
        let status = |path: &str| get(port, path, &[]).status;
        assert_eq!(["/", "/on", "/own", "/unsupported"].map(status), [200, 418, 419, 500]);
        logged(culvert, "/unsupported 500 - filter_not_supported");
    });
}

#[test]
fn filters_come_in_order_and_responses_in_reverse() {
    let adding = |name: &str| {
        let change = format!("{{append: {{header: {{key: x, value: {name}}}}}}}");
        let mutations =
            format!("mutations: {{request_mutations: [{change}], response_mutations: [{change}]}}");
        filter(name, "header_mutation.v3.HeaderMutation", &mutations)
    };
    let filters = [adding("a"), adding("b"), filter("f", "fault.v3.HTTPFault", ""), adding("c")];
    let routes = [route("/abort", &[abort("f", 418)]), route("/", &[])];
    Scene { filters: &filters, config: "", host: "", routes: &routes }.run(|_, port| {
        let response = get(port, "/", &[]);
        assert_eq!(crate::seen(&response, "x"), ["a", "b", "c"]);
        assert_eq!(crate::values(&response, "x"), ["c", "b", "a"]);
        let abort = get(port, "/abort", &[]);
        assert_eq!((abort.status, crate::values(&abort, "x")), (418, vec!["c", "b", "a"]));
    });
}
