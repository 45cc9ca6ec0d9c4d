//! What spans are called, and who is told.

use super::{Scene, ZIPKIN, get, provider, seen};

#[test]
fn the_client_is_told_of_an_operation() {
    let route = "decorator: {operation: stock},";
    Scene { route, ..Scene::default() }.run(|_, port| {
        let header = "x-envoy-decorator-operation";
        assert_eq!(get(port, "/", &[]).header(header), Some("stock"));
        assert_eq!(get(port, "/direct", &[]).header(header), None);
        // The client's own comes first, and ends here.
        let own = get(port, "/", &[(header, "mine")]);
        assert_eq!((own.header(header), seen(&own, header)), (None, None));
    });
    let route = "decorator: {operation: stock, propagate: false},";
    Scene { route, ..Scene::default() }.run(|_, port| {
        assert_eq!(get(port, "/", &[]).header("x-envoy-decorator-operation"), None);
    });
}

#[test]
fn the_upstream_is_told_by_outbound_listeners() {
    let scene = Scene {
        route: "decorator: {operation: stock},",
        listener: "traffic_direction: OUTBOUND,",
        ..Scene::default()
    };
    scene.run(|_, port| {
        let header = "x-envoy-decorator-operation";
        let response = get(port, "/", &[]);
        assert_eq!((response.header(header), seen(&response, header).as_deref()), (None, Some("stock")));
    });
}

#[test]
fn spans_are_called_by_operations() {
    let (collector, requests) = super::http_collector("202");
    let clusters = super::indent(&super::cluster("collector", &[collector.address]), 2);
    let zipkin = provider("ZipkinConfig", ZIPKIN);
    let split = provider("ZipkinConfig", &format!("{ZIPKIN}, split_spans_for_request: true"));
    let formats = format!(
        "{zipkin}, spawn_upstream_span: true, operation: 'of %REQ(x-none)%%REQ(:method)%', upstream_operation: \
         'up %UPSTREAM_CLUSTER%'"
    );
    let (route, outbound) = ("decorator: {operation: stock},", "traffic_direction: OUTBOUND,");
    let own = "tracing: {operation: route's, upstream_operation: attempt's},";
    for (tracing, route, listener, field, expected) in [
        (&zipkin, "", "", "", &["\"name\":\"test\",\"kind\":\"SERVER\""][..]),
        (&zipkin, "", outbound, "", &["\"name\":\"test\",\"kind\":\"CLIENT\""]),
        (&split, "", outbound, "", &["\"name\":\"test\",\"kind\":\"SERVER\""]),
        (&zipkin, route, "", "", &["\"name\":\"stock\""]),
        (&zipkin, route, "", "mine", &["\"name\":\"mine\""]),
        (&formats, route, "", "", &["\"name\":\"of GET\"", "\"name\":\"up up\""]),
        (&formats, own, "", "", &["\"name\":\"route's\"", "\"name\":\"attempt's\""]),
    ] {
        let scene = Scene { tracing, route, listener, clusters: &clusters, ..Scene::default() };
        scene.run(|culvert, port| {
            let fields = [("x-envoy-decorator-operation", field)];
            get(port, "/", if field.is_empty() { &[] } else { &fields });
            culvert.wait_until("spans", |_| !requests.lock().unwrap().is_empty());
            let (_, body) = requests.lock().unwrap().remove(0);
            let body = String::from_utf8(body).unwrap();
            assert!(expected.iter().all(|name| body.contains(name)), "{expected:?} {body}");
        });
    }
}
