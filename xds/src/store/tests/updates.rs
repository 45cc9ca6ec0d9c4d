//! What a delivery does.

use super::*;

const NOTHING: [Vec<String>; 4] = [vec![], vec![], vec![], vec![]];

#[test]
fn what_is_missing_in_a_state_of_the_world_is_gone_for_collections_only() {
    let mut f = mesh();
    // Nothing, and something nobody asked for.
    f.sotw(Kind::RouteConfiguration, "2", &[]).unwrap();
    f.sotw(Kind::LoadAssignment, "2", &[assignment("z", 9)]).unwrap();
    assert_eq!(f.changed(), NOTHING);
    assert_eq!(f.port("a"), Some(1));
    f.sotw(Kind::Listener, "2", &[]).unwrap();
    assert_eq!(f.changed(), [vec!["l".to_owned()], vec![], vec!["r".to_owned()], vec![]]);
    f.sotw(Kind::Cluster, "2", &[]).unwrap();
    assert_eq!(f.changed(), [vec![], vec!["a".to_owned()], vec![], vec!["a".to_owned()]]);
    assert_eq!(f.store.config().clusters.len(), 1, "the static one");
}

#[test]
fn delta_removes_what_it_names() {
    let mut f = mesh();
    f.delta(Kind::Cluster, "2", &[cluster("b", 1_000)], &[]).unwrap();
    f.delta(Kind::LoadAssignment, "2", &[assignment("b", 2)], &[]).unwrap();
    assert_eq!(f.changed()[1], ["b"], "what is not named stays");
    // As Envoy does: what refers to them is the authority.
    f.delta(Kind::LoadAssignment, "", &[], &["a", "b"]).unwrap();
    f.delta(Kind::RouteConfiguration, "", &[], &["r"]).unwrap();
    assert_eq!(f.changed(), NOTHING);
    f.delta(Kind::Cluster, "", &[], &["b", "unknown"]).unwrap();
    assert_eq!(f.changed(), [vec![], vec!["b".to_owned()], vec![], vec!["b".to_owned()]]);
    f.delta(Kind::Listener, "", &[], &["l"]).unwrap();
    assert_eq!(f.changed()[0], ["l"]);
}

#[test]
fn endpoints_that_do_not_exist_are_an_answer() {
    let mut f = fixture(BOOTSTRAP);
    f.delta(Kind::Cluster, "1", &[cluster("a", 1_000)], &[]).unwrap();
    f.delta(Kind::LoadAssignment, "", &[], &["a"]).unwrap();
    assert!(f.changed()[1].contains(&"a".to_owned()));
    assert_eq!(f.wanted(Kind::Listener), ["*"]);
}

#[test]
fn duplicates_refuse_everything() {
    let mut f = mesh();
    let outcome = f.sotw(Kind::Cluster, "2", &[cluster("b", 1), cluster("a", 2_000), cluster("b", 1)]);
    assert_eq!(reasons(outcome), ["cluster \"b\": duplicate cluster"]);
    let outcome = f.sotw(Kind::LoadAssignment, "2", &[assignment("a", 2), assignment("a", 3)]);
    assert_eq!(reasons(outcome), ["load assignment \"a\": duplicate load assignment"]);
    assert_eq!(f.changed(), NOTHING);
    assert_eq!((f.counts("cluster_manager.cds"), f.counts("cluster.a")), ([1, 1], [1, 1]));
    assert_eq!(f.store.version(Kind::Cluster), Some("1"));
}

#[test]
fn another_type_is_refused() {
    let mut f = mesh();
    let outcome = f.deliver_to(
        SourceSpecifier::Ads,
        Kind::Cluster,
        "2",
        vec![resource(Kind::Listener, &listener("l", 2, "r"))],
        None,
    );
    assert_eq!(reasons(outcome), ["listener \"l\": a cluster was expected"]);
    assert_eq!(f.changed(), NOTHING);
}

#[test]
fn the_good_ones_of_a_response_are_applied_and_all_bad_ones_named() {
    let mut f = mesh();
    let bad = |name: &str| {
        let mut bad = cluster(name, 1_000);
        bad["connect_timeout"] = json!("-1s");
        bad
    };
    let outcome = f.sotw(Kind::Cluster, "2", &[bad("a"), cluster("b", 1_000), bad("c")]);
    let reasons = reasons(outcome);
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(
        reasons[0].starts_with("cluster \"a\": connect_timeout") && reasons[1].starts_with("cluster \"c\"")
    );
    f.sotw(Kind::LoadAssignment, "2", &[assignment("b", 2)]).unwrap();
    assert_eq!(f.changed()[1], ["b"]);
    assert_eq!(f.store.config().clusters.len(), 3, "the good version of the bad one serves on");
    assert_eq!(f.store.version(Kind::Cluster), Some("1"), "the version was not accepted");
    let dump = f.dump("dynamic_active_clusters");
    assert_eq!(dump[0]["version_info"], "1");
    assert!(dump[0]["error_state"]["details"].as_str().unwrap().contains("connect_timeout"));
    assert_eq!(dump[0]["error_state"]["version_info"], "2");
    assert_eq!(dump[1]["version_info"], "2");
    assert_eq!(dump[2]["error_state"]["failed_configuration"]["name"], "c");

    let outcome = f.sotw(Kind::LoadAssignment, "3", &[assignment("a", 3), json!({"cluster_name": "b", "endpoints": [{
        "lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "not an address", "port_value": 1}}}}]
    }]})]);
    assert_eq!(outcome.unwrap_err().len(), 1);
    assert_eq!((f.changed()[3].clone(), f.port("a"), f.port("b")), (vec!["a".to_owned()], Some(3), Some(2)));
    assert_eq!((f.counts("cluster.a"), f.counts("cluster.b")), ([2, 0], [1, 1]));
    // The last good version again: nothing is wrong any more.
    f.sotw(Kind::Cluster, "4", &[cluster("a", 1_000), cluster("b", 1_000)]).unwrap();
    assert!(f.dump("dynamic_active_clusters")[0].get("error_state").is_none());
    assert_eq!(f.store.version(Kind::Cluster), Some("4"));
}

#[test]
fn garbage_is_refused_and_removes_nothing() {
    let mut f = mesh();
    let garbage = Incoming {
        name: "a".to_owned(),
        version: String::new(),
        ttl: None,
        body: Body::Wire {
            type_url: format!("type.googleapis.com/{}", Kind::Cluster.message_name()),
            value: vec![0x0A, 0x01, b'a', 0xFF, 0xFF, 0xFF].into(),
        },
    };
    let outcome = f.deliver_to(SourceSpecifier::Ads, Kind::Cluster, "2", vec![garbage], None);
    assert_eq!(outcome.unwrap_err().len(), 1);
    assert_eq!(f.changed(), NOTHING);

    let delivery = Delivery {
        source: SourceSpecifier::Ads,
        kind: Kind::Listener,
        version: "2".to_owned(),
        full: true,
        resources: Vec::new(),
        removed: Vec::new(),
        broken: vec![(Some("l".to_owned()), "no resource".to_owned())],
    };
    let outcome = f.store.deliver(&delivery, f.now, SystemTime::now());
    assert_eq!(reasons(outcome), ["listener \"l\": no resource"]);
    assert_eq!(f.changed(), NOTHING);
}

#[test]
fn bytes_without_a_name_may_have_been_anything() {
    for kind in [Kind::Cluster, Kind::Listener, Kind::LoadAssignment, Kind::RouteConfiguration] {
        let mut f = mesh();
        let type_url = format!("type.googleapis.com/{}", kind.message_name());
        let body = Body::Wire { type_url, value: vec![0xFF; 40].into() };
        let garbage = Incoming { name: String::new(), version: String::new(), ttl: None, body };
        let outcome = f.deliver_to(SourceSpecifier::Ads, kind, "2", vec![garbage], None);
        assert_eq!(reasons(outcome), [format!("{kind} \"\": does not decode")]);
        assert_eq!(f.changed(), NOTHING);
    }
}

#[test]
fn the_same_again_is_nothing() {
    let mut f = mesh();
    f.sotw(Kind::Cluster, "2", &[cluster("a", 1_000)]).unwrap();
    f.sotw(Kind::RouteConfiguration, "2", &[routes("r", "a")]).unwrap();
    // Fields in another order: other bytes, the same meaning.
    let Body::Wire { type_url, value } = resource(Kind::LoadAssignment, &assignment("a", 1)).body else {
        panic!()
    };
    let name = value.iter().position(|byte| *byte == b'a').unwrap() + 1;
    let value = [&value[name..], &value[..name]].concat().into();
    let same = Incoming {
        name: String::new(),
        version: String::new(),
        ttl: None,
        body: Body::Wire { type_url, value },
    };
    f.deliver_to(SourceSpecifier::Ads, Kind::LoadAssignment, "2", vec![same], None).unwrap();
    assert_eq!(f.changed(), NOTHING);
    assert!(f.renewed().is_empty());
    assert_eq!(f.counts("cluster.a"), [2, 0]);
    assert_eq!(f.counters("cluster.a").config_reload.load(Ordering::Relaxed), 1);
    assert_eq!(f.store.version(Kind::Cluster), Some("2"));
}

#[test]
fn what_did_not_change_is_the_same_in_memory() {
    let mut f = mesh();
    f.sotw(Kind::Cluster, "2", &[cluster("a", 1_000), cluster("b", 1_000)]).unwrap();
    f.sotw(Kind::LoadAssignment, "2", &[assignment("a", 1), assignment("b", 1)]).unwrap();
    f.changed();
    let before = f.store.config();
    f.sotw(Kind::LoadAssignment, "3", &[assignment("a", 1), assignment("b", 2)]).unwrap();
    assert_eq!(f.changed(), [vec![], vec![], vec![], vec!["b".to_owned()]]);
    let after = f.store.config();
    assert!(
        Arc::ptr_eq(&before.clusters, &after.clusters) && Arc::ptr_eq(&before.listeners, &after.listeners)
    );
    let of = |config: &culvert_model::Config, name: &str| {
        config.assignments.iter().find(|(key, _)| key.name == name).unwrap().1.clone()
    };
    assert!(Arc::ptr_eq(&of(&before, "a"), &of(&after, "a")));
    assert!(!Arc::ptr_eq(&of(&before, "b"), &of(&after, "b")));
}

#[test]
fn a_time_to_live_ends_unless_it_is_renewed() {
    let mut f = mesh();
    let mortal = |name: &str| Incoming {
        name: name.to_owned(),
        ttl: Some(Duration::from_secs(10)),
        ..resource(Kind::Cluster, &cluster(name, 1_000))
    };
    let resources = vec![resource(Kind::Cluster, &cluster("a", 1_000)), mortal("b"), mortal("c")];
    f.deliver_to(SourceSpecifier::Ads, Kind::Cluster, "2", resources, None).unwrap();
    f.sotw(Kind::LoadAssignment, "2", &[assignment("b", 1), assignment("c", 1)]).unwrap();
    assert_eq!(f.changed()[1], ["b", "c"]);
    f.after(Duration::from_secs(9));
    let heartbeat = Incoming {
        name: "b".to_owned(),
        version: String::new(),
        ttl: Some(Duration::from_secs(10)),
        body: Body::Heartbeat,
    };
    f.deliver_to(SourceSpecifier::Ads, Kind::Cluster, "2", vec![heartbeat], None).unwrap();
    assert_eq!(f.changed(), NOTHING, "a heartbeat says nothing about others");
    f.after(Duration::from_secs(1));
    assert_eq!(f.changed()[1], ["c"]);
    f.after(Duration::from_secs(9));
    assert_eq!(f.changed()[1], ["b"]);
    assert_eq!(f.store.config().clusters.len(), 2);
}

#[test]
fn many_times_to_live_end_at_once() {
    let mut f = mesh();
    let mortal = |name: &str| Incoming {
        ttl: Some(Duration::from_secs(10)),
        ..resource(
            Kind::Listener,
            &json!({"name": name, "address": {"pipe": {"path": format!("/{name}")}},
            "filter_chains": [{"filters": [{"name": "tcp", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "t", "cluster": "a"}}]}]}),
        )
    };
    let names = ["m", "n", "o"];
    let resources = names.iter().map(|name| mortal(name)).collect();
    f.deliver_to(SourceSpecifier::Ads, Kind::Listener, "2", resources, Some(&[])).unwrap();
    assert_eq!(f.changed()[0], names);
    f.after(Duration::from_secs(10));
    assert_eq!(f.changed()[0], names);
    // What is left is what a delta response changes.
    f.delta(Kind::Listener, "3", &[listener("l", 2, "r")], &[]).unwrap();
    assert_eq!(f.changed()[0], ["l"]);
    assert_eq!(f.store.config().listeners.len(), 1);
}

#[test]
fn addresses_are_free_again_when_their_listener_has_another() {
    let mut f = mesh();
    let refused = |outcome| reasons(outcome)[0].contains("duplicate address");
    // One after the other, in one response and in two.
    f.delta(Kind::Listener, "2", &[listener("l", 2, "r"), listener("m", 1, "r")], &[]).unwrap();
    assert!(refused(f.delta(Kind::Listener, "3", &[listener("n", 1, "r")], &[])));
    assert!(refused(f.delta(Kind::Listener, "4", &[listener("n", 2, "r")], &[])));
    f.delta(Kind::Listener, "5", &[listener("n", 1, "r")], &["m"]).unwrap();
    assert!(refused(f.delta(Kind::Listener, "6", &[listener("o", 3, "r"), listener("p", 3, "r")], &[])));
    assert_eq!(f.store.config().listeners.len(), 1);
    f.store.compose();
    let names: Vec<_> = f.store.config().listeners.iter().map(|it| it.name.clone()).collect();
    assert_eq!(names, ["l", "n", "o"]);
}

#[test]
fn garbage_does_not_keep_its_response() {
    let mut f = mesh();
    let cluster = resource(Kind::Cluster, &cluster("g", 1_000));
    let Body::Wire { type_url, value } = cluster.body else { panic!() };
    let bad: prost::bytes::Bytes = [&value[..], &[0x22, 0x05, 0xFF]].concat().into();
    let body = Body::Wire { type_url, value: bad.clone() };
    let garbage = Incoming { name: "g".to_owned(), version: String::new(), ttl: None, body };
    let outcome = f.deliver_to(SourceSpecifier::Ads, Kind::Cluster, "2", vec![garbage], Some(&[]));
    assert!(outcome.is_err());
    drop(outcome);
    let failures = f.store.entries.iter().flatten().filter_map(|entry| entry.failure.as_ref());
    let kept: Vec<_> = failures.map(|failure| failure.resource.bytes.clone()).collect();
    assert_eq!(kept, std::slice::from_ref(&bad));
    assert_ne!(kept[0].as_ptr(), bad.as_ptr(), "a part of the response");
}

/// A listener with a discovered filter that may be one of `types`, with a default where it is not waited for.
fn discovering(name: &str, port: u16, types: &[&str], eager: bool) -> Json {
    let url = |of: &&str| format!("type.googleapis.com/envoy.extensions.filters.http.{of}");
    let mut discovery =
        json!({"config_source": ads(), "type_urls": types.iter().map(url).collect::<Vec<_>>()});
    if eager {
        discovery["default_config"] = json!({"@type": url(&types[0])});
        discovery["apply_default_config_without_warming"] = json!(true);
    }
    let mut listener = listener(name, port, "r");
    let filters = &mut listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"];
    let filter = json!({"name": "f", "config_discovery": discovery});
    filters.as_array_mut().unwrap().insert(0, filter);
    listener
}

fn extension(of: &str) -> Json {
    let url = format!("type.googleapis.com/envoy.extensions.filters.http.{of}");
    json!({"name": "f", "typed_config": {"@type": url}})
}

const RBAC: &str = "rbac.v3.RBAC";
const CORS: &str = "cors.v3.Cors";

#[test]
fn who_has_no_default_waits_although_another_one_has() {
    let mut f = mesh();
    f.sotw(Kind::Listener, "2", &[listener("l", 1, "r"), discovering("eager", 2, &[CORS], true)]).unwrap();
    assert_eq!(f.changed()[0], ["eager"]);
    assert!(f.store.is_initialised(), "nobody waits for it");
    assert_eq!(f.unready(), [""; 0]);
    let both = [discovering("eager", 2, &[CORS], true), discovering("waits", 3, &[CORS], false)];
    f.delta(Kind::Listener, "3", &both[1..], &[]).unwrap();
    assert_eq!(f.changed()[0], [""; 0]);
    assert_eq!(f.unready(), ["ECDS f"]);
    f.sotw(Kind::ExtensionConfig, "1", &[extension(CORS)]).unwrap();
    assert_eq!(f.changed()[0], ["waits"]);
}

#[test]
fn an_extension_is_what_all_who_use_it_take() {
    let mut f = mesh();
    let both = [discovering("m", 2, &[CORS, RBAC], true), discovering("n", 3, &[RBAC], false)];
    f.delta(Kind::Listener, "2", &both, &[]).unwrap();
    let outcome = f.sotw(Kind::ExtensionConfig, "1", &[extension(CORS)]);
    assert!(reasons(outcome)[0].contains("not what is asked for"));
    f.sotw(Kind::ExtensionConfig, "2", &[extension(RBAC)]).unwrap();
    f.delta(Kind::Listener, "3", &[], &["n"]).unwrap();
    f.sotw(Kind::ExtensionConfig, "3", &[extension(CORS)]).unwrap();
}

#[test]
fn names_that_say_where_they_are_to_be_found_are_refused() {
    let mut f = mesh();
    let name = "xdstp://plane.test/some.Type/x";
    let mut eds = cluster("b", 1_000);
    eds["eds_cluster_config"]["service_name"] = json!(name);
    let why = "names of xdstp are not supported";
    let text = reasons(f.delta(Kind::Cluster, "2", &[eds], &[]));
    assert_eq!(text, [format!("cluster \"b\": eds_cluster_config.service_name: {why}")]);
    let text = reasons(f.delta(Kind::Listener, "2", &[listener("m", 2, name)], &[]));
    assert!(text[0].ends_with(&format!("rds.route_config_name: {why}")), "{text:?}");
    assert_eq!(f.wanted(Kind::RouteConfiguration), ["r"]);
}

#[test]
fn unknown_fields_are_counted_or_refused() {
    let field = [0xFA, 0xFF, 0x7F, 0x01, b'x'];
    let with_unknown = || {
        let incoming = resource(Kind::Cluster, &cluster("a", 5_000));
        let Body::Wire { type_url, value } = incoming.body else { panic!() };
        let value = [&value[..], &field].concat().into();
        Incoming { body: Body::Wire { type_url, value }, ..resource(Kind::Cluster, &cluster("a", 5_000)) }
    };
    let mut f = mesh();
    f.deliver_to(SourceSpecifier::Ads, Kind::Cluster, "2", vec![with_unknown()], None).unwrap();
    assert_eq!(f.store.unknown_fields, 1);
    let mut f = mesh();
    f.store.refuse_unknown = true;
    assert!(f.deliver_to(SourceSpecifier::Ads, Kind::Cluster, "2", vec![with_unknown()], None).is_err());
}

#[test]
fn a_refused_listener_is_tried_again_when_its_cluster_comes() {
    let mut inline = listener("l", 1, "");
    let config = &mut inline["filter_chains"][0]["filters"][0]["typed_config"];
    config.as_object_mut().unwrap().remove("rds");
    config["route_config"] = routes("inline", "b");
    let mut f = mesh();
    let outcome = f.sotw(Kind::Listener, "2", &[inline]);
    assert!(reasons(outcome)[0].contains('b'));
    f.delta(Kind::Cluster, "2", &[cluster("b", 1_000)], &[]).unwrap();
    f.delta(Kind::LoadAssignment, "2", &[assignment("b", 1)], &[]).unwrap();
    assert_eq!(f.changed()[0], ["l"]);
    assert!(f.dump("dynamic_listeners")[0].get("error_state").is_none());
}

#[test]
fn static_names_and_addresses_are_not_taken_over() {
    let mut f = mesh();
    let outcome = f.sotw(Kind::Cluster, "2", &[cluster("a", 1_000), cluster("xds", 1_000)]);
    assert_eq!(reasons(outcome), ["cluster \"xds\": name: the bootstrap has a static cluster of that name"]);
    // Addresses may be swapped in one response, but not shared.
    let outcome = f.sotw(Kind::Listener, "2", &[listener("l", 1, "r"), listener("m", 1, "r")]);
    assert!(reasons(outcome)[0].contains("duplicate address"));
    f.sotw(Kind::Listener, "3", &[listener("m", 1, "r")]).unwrap();
    assert_eq!(f.changed()[0], ["m", "l"]);
}

#[test]
fn a_secret_that_cannot_be_used_changes_nothing() {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let context = json!({"tls_certificate_sds_secret_configs": [{"name": "id", "sds_config": ads()}],
        "validation_context_sds_secret_config": {"name": "ca", "sds_config": ads()}});
    let cluster = json!({"name": "a", "transport_socket": {"name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": context}}});
    let id = |key: &str| {
        json!({"name": "id", "tls_certificate": {"certificate_chain": {"inline_string": certificate.pem()},
            "private_key": {"inline_string": key}}})
    };
    let ca = |pem: &str| json!({"name": "ca", "validation_context": {"trusted_ca": {"inline_string": pem}}});
    let mut f = fixture(BOOTSTRAP);
    f.changed();
    f.sotw(Kind::Cluster, "1", &[cluster]).unwrap();
    f.sotw(Kind::Secret, "1", &[id(&key.serialize_pem()), ca(&certificate.pem())]).unwrap();
    assert_eq!(f.changed()[1], ["a"]);
    let secret = |f: &Fixture, name: &str| {
        let config = f.store.config();
        config.secrets.iter().find(|(key, _)| key.name == name).map(|(_, secret)| secret.clone())
    };
    let before = secret(&f, "id");
    // Its neighbour, which is right, is taken.
    let reasons = reasons(f.sotw(Kind::Secret, "2", &[id(&other), ca(&certificate.pem().repeat(2))]));
    assert_eq!(
        reasons,
        ["secret \"id\": tls_certificate.private_key: it does not belong to the certificate"]
    );
    let was = secret(&f, "ca");
    assert!(f.store.compose().is_some());
    assert_eq!(secret(&f, "id"), before);
    assert_ne!(secret(&f, "ca"), was);
    assert_eq!(f.counts("sds.id"), [1, 1]);
    let text = self::reasons(f.sotw(Kind::Secret, "3", &[ca("nothing")]));
    assert_eq!(text, ["secret \"ca\": validation_context.trusted_ca: it is not PEM"]);
}
