//! Who is traced, and what upstreams are told.

use super::{PARENT, Scene, TRACE, ZIPKIN, get, logged, provider, seen};

/// The digit of a request id that says why it is traced.
fn reason(id: Option<String>) -> char {
    id.and_then(|id| id.chars().nth(14)).unwrap()
}

#[test]
fn reasons_are_told_and_counted() {
    let internal = "use_remote_address: true, internal_address_config: {cidr_ranges: [{address_prefix: 127.0.0.0, \
                    prefix_len: 8}]},";
    let tracing = "random_sampling: {value: 0}";
    Scene { tracing, manager: internal, ..Scene::default() }.run(|culvert, port| {
        let of = |fields: &[(&str, &str)]| reason(seen(&get(port, "/", fields), "x-request-id"));
        assert_eq!(of(&[("x-client-trace-id", "c"), ("x-envoy-force-trace", "1")]), 'b');
        assert_eq!(of(&[]), '4');
        let forced = get(port, "/", &[("x-envoy-force-trace", "1")]);
        assert_eq!(reason(forced.header("x-request-id").map(str::to_owned)), 'a');
        // Without a provider nobody is told.
        assert_eq!((seen(&forced, "traceparent"), seen(&forced, "x-b3-traceid")), (None, None));
        let counted = |name: &str| culvert.stat(&format!("http.s.tracing.{name}"));
        assert_eq!(counted("client_enabled"), 1);
        assert_eq!(counted("service_forced"), 1);
        assert_eq!(counted("not_traceable"), 1);
        assert_eq!(counted("random_sampling"), 0);
    });
}

#[test]
fn the_runtime_the_route_and_the_request_id_have_a_say() {
    let sampled = |scene: &Scene<'_>, expected: char| {
        scene.run(|_, port| {
            assert_eq!(reason(seen(&get(port, "/", &[]), "x-request-id")), expected);
        });
    };
    sampled(&Scene::default(), '9');
    sampled(&Scene { tracing: "overall_sampling: {value: 0}", ..Scene::default() }, '4');
    sampled(&Scene { runtime: "tracing.global_enabled: 0", ..Scene::default() }, '4');
    sampled(&Scene { runtime: "tracing.random_sampling: 0", ..Scene::default() }, '4');
    sampled(&Scene { route: "tracing: {random_sampling: {numerator: 0}},", ..Scene::default() }, '4');
    let route = Scene {
        tracing: "random_sampling: {value: 0}",
        route: "tracing: {client_sampling: {numerator: 0}},",
        ..Scene::default()
    };
    sampled(&route, '9');
    let ids = "request_id_extension: {typed_config: {'@type': \
               type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig, pack_trace_reason: \
               false}},";
    sampled(&Scene { manager: ids, ..Scene::default() }, '4');
    // An id that came with the request is drawn, and says why.
    Scene { tracing: "random_sampling: {value: 50}", ..Scene::default() }.run(|culvert, port| {
        for (id, expected) in [
            // 4999 and 5000 of ten thousand.
            ("00001387-0000-4000-8000-000000000000", '9'),
            ("00001388-0000-4000-8000-000000000000", '4'),
            ("00001388-0000-a000-8000-000000000000", 'a'),
        ] {
            assert_eq!(reason(seen(&get(port, "/", &[("x-request-id", id)]), "x-request-id")), expected);
        }
        assert_eq!(culvert.stat("http.s.tracing.service_forced"), 1);
    });
}

#[test]
fn contexts_of_open_telemetry() {
    let tracing = provider("OpenTelemetryConfig", "service_name: s");
    Scene { tracing: &tracing, ..Scene::default() }.run(|culvert, port| {
        let first = seen(&get(port, "/new", &[]), "traceparent").unwrap();
        assert_eq!((first.len(), &first[..3], &first[52..]), (55, "00-", "-01"));
        logged(culvert, &format!("/new {} {}", &first[3..35], &first[36..52]));
        for flag in ["01", "00"] {
            let parent = format!("{PARENT}{flag}");
            let fields = [("traceparent", parent.as_str()), ("tracestate", "a=b")];
            let next = get(port, "/next", &fields);
            let told = seen(&next, "traceparent").unwrap();
            assert_eq!((&told[3..35], &told[53..]), (TRACE, flag));
            assert_ne!(&told[36..52], &PARENT[36..52]);
            assert_eq!(seen(&next, "tracestate").as_deref(), Some("a=b"));
        }
        let junk = get(port, "/junk", &[("traceparent", "junk")]);
        assert_eq!(seen(&junk, "traceparent").as_deref(), Some("junk"));
        logged(culvert, "/junk - -");
    });
    let none = format!("{tracing}, random_sampling: {{value: 0}}");
    Scene { tracing: &none, ..Scene::default() }.run(|_, port| {
        let parent = format!("{PARENT}01");
        let told = seen(&get(port, "/", &[("traceparent", &parent)]), "traceparent").unwrap();
        assert_eq!((&told[3..35], &told[53..]), (TRACE, "00"));
    });
    let quiet = format!("{tracing}, no_context_propagation: true");
    Scene { tracing: &quiet, ..Scene::default() }.run(|_, port| {
        assert_eq!(seen(&get(port, "/", &[]), "traceparent"), None);
    });
}

#[test]
fn samplers_of_open_telemetry() {
    let sampler = |kind: &str, fields: &str| {
        format!(
            "{{name: s, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.tracers.opentelemetry.samplers.v3.{kind}, {fields}}}}}"
        )
    };
    let none = sampler("TraceIdRatioBasedSamplerConfig", "sampling_percentage: {numerator: 0}");
    let based = sampler("ParentBasedSamplerConfig", &format!("wrapped_sampler: {none}"));
    let flags = |sampler: &str, expected: [&str; 3]| {
        let tracing = provider("OpenTelemetryConfig", &format!("sampler: {sampler}"));
        Scene { tracing: &tracing, ..Scene::default() }.run(|_, port| {
            let (yes, no) = (format!("{PARENT}01"), format!("{PARENT}00"));
            let asked = [&[][..], &[("traceparent", yes.as_str())], &[("traceparent", no.as_str())]];
            for (fields, expected) in asked.into_iter().zip(expected) {
                let told = seen(&get(port, "/", fields), "traceparent").unwrap();
                assert_eq!(&told[53..], expected, "{sampler} {fields:?}");
            }
        });
    };
    flags(&sampler("AlwaysOnSamplerConfig", ""), ["01", "01", "01"]);
    flags(&none, ["00", "00", "00"]);
    flags(&based, ["00", "01", "00"]);
}

#[test]
fn contexts_of_zipkin() {
    let wide = "463ac35c9f6413ad48485a3953bb6124";
    let several = |sampled: &'static str| {
        [
            ("x-b3-traceid", wide),
            ("x-b3-spanid", "a2fb4a1d1a96d312"),
            ("x-b3-parentspanid", "0020000000000001"),
            ("x-b3-sampled", sampled),
        ]
    };
    let single = format!("{wide}-a2fb4a1d1a96d312-1-0020000000000001");
    let tracing = format!("{}, random_sampling: {{value: 0}}", provider("ZipkinConfig", ZIPKIN));
    Scene { tracing: &tracing, ..Scene::default() }.run(|culvert, port| {
        let first = get(port, "/new", &[]);
        let trace = seen(&first, "x-b3-traceid").unwrap();
        assert_eq!(trace.len(), 16);
        assert_eq!(seen(&first, "x-b3-spanid").as_ref(), Some(&trace));
        assert_eq!(seen(&first, "x-b3-sampled").as_deref(), Some("0"));
        logged(culvert, &format!("/new {trace} -"));
        // What came is what goes on.
        for fields in [several("1"), several("0")] {
            let next = get(port, "/", &fields);
            for (name, value) in fields {
                assert_eq!(seen(&next, name).as_deref(), Some(value));
            }
        }
        let next = get(port, "/", &[("b3", &single)]);
        assert_eq!(seen(&next, "b3").as_ref(), Some(&single));
        assert_eq!(seen(&next, "x-b3-traceid"), None);
        assert!(seen(&get(port, "/", &[("b3", "1")]), "b3").unwrap().ends_with("-1"));
        let junk = get(port, "/junk", &[("x-b3-traceid", "zz"), ("x-b3-spanid", "1")]);
        assert_eq!(seen(&junk, "x-b3-traceid").as_deref(), Some("zz"));
        assert_eq!(seen(&junk, "x-b3-sampled"), None);
    });
    let own = format!("{ZIPKIN}, shared_span_context: false, trace_id_128bit: true");
    Scene { tracing: &provider("ZipkinConfig", &own), ..Scene::default() }.run(|_, port| {
        let first = get(port, "/", &[]);
        let (trace, span) = (seen(&first, "x-b3-traceid").unwrap(), seen(&first, "x-b3-spanid").unwrap());
        assert_eq!((trace.len(), &trace[16..]), (32, span.as_str()));
        let next = get(port, "/", &several("1"));
        assert_eq!(seen(&next, "x-b3-parentspanid").as_deref(), Some("a2fb4a1d1a96d312"));
        assert_ne!(seen(&next, "x-b3-spanid").as_deref(), Some("a2fb4a1d1a96d312"));
    });
}
