//! What is asked for when, and what serves when.

use super::*;

const FETCH: Duration = Duration::from_secs(15);

#[test]
fn listeners_are_asked_for_when_clusters_are_there() {
    let mut f = fixture(BOOTSTRAP);
    assert_eq!((f.wanted(Kind::Cluster), f.wanted(Kind::Listener)), (vec!["*".to_owned()], vec![]));
    f.sotw(Kind::Cluster, "1", &[cluster("a", 1_000), cluster("b", 1_000)]).unwrap();
    assert_eq!(f.wanted(Kind::LoadAssignment), ["a", "b"], "all names in one request");
    assert!(f.wanted(Kind::Listener).is_empty(), "clusters have no endpoints yet");
    f.sotw(Kind::LoadAssignment, "1", &[assignment("a", 1)]).unwrap();
    assert!(f.wanted(Kind::Listener).is_empty());
    assert_eq!(f.unready(), ["LDS", "EDS b"]);
    f.sotw(Kind::LoadAssignment, "1", &[assignment("b", 1)]).unwrap();
    assert_eq!(f.wanted(Kind::Listener), ["*"]);
    assert!(!f.store.is_initialised());
    f.sotw(Kind::Listener, "1", &[listener("l", 1, "r"), listener("m", 2, "r"), listener("n", 3, "q")])
        .unwrap();
    assert_eq!(f.wanted(Kind::RouteConfiguration), ["q", "r"]);
    assert!(!f.store.is_initialised());
    f.sotw(Kind::RouteConfiguration, "1", &[routes("r", "a"), routes("q", "a")]).unwrap();
    assert!(f.store.is_initialised());
    assert_eq!(f.changed()[0], ["l", "m", "n"]);
}

#[test]
fn a_silent_control_plane_is_given_up_waiting_for() {
    let mut f = fixture(BOOTSTRAP);
    f.after(FETCH);
    assert_eq!(f.counters("cluster_manager.cds").init_fetch_timeout.load(Ordering::Relaxed), 1);
    assert_eq!(f.wanted(Kind::Listener), ["*"]);
    f.after(FETCH);
    assert!(f.store.is_initialised());
    assert_eq!(f.wanted(Kind::Cluster), ["*"], "it is still wanted");

    let patient = BOOTSTRAP.replace("cds_config: {", "cds_config: {initial_fetch_timeout: 0s, ");
    let mut f = fixture(&patient);
    f.after(FETCH * 1_000);
    assert!(f.wanted(Kind::Listener).is_empty());
    assert!(!f.store.is_initialised());
    assert_eq!(f.store.deadline(), None);
}

#[test]
fn endpoints_that_never_come_are_given_up() {
    let mut f = fixture(BOOTSTRAP);
    f.sotw(Kind::Cluster, "1", &[cluster("a", 1_000)]).unwrap();
    assert_eq!(f.dump("dynamic_warming_clusters")[0]["cluster"]["name"], "a");
    assert_eq!(f.store.warming(Kind::Cluster), 1);
    f.after(FETCH - Duration::from_millis(1));
    assert_eq!(f.changed()[1], ["xds"]);
    f.after(Duration::from_millis(1));
    assert_eq!(f.changed()[1], ["a"]);
    assert!(f.dump("dynamic_warming_clusters").as_array().unwrap().is_empty());
    assert_eq!(f.store.warming(Kind::Cluster), 0);
}

#[test]
fn a_changed_cluster_waits_for_endpoints_again() {
    let mut f = mesh();
    f.sotw(Kind::Cluster, "2", &[cluster("a", 2_000)]).unwrap();
    assert_eq!(f.renewed(), ["a"], "they are asked for again");
    assert_eq!(f.changed(), [vec![], vec![], vec![], Vec::<String>::new()], "the old version serves");
    assert_eq!(f.store.unready(), [("EDS a".to_owned(), vec!["cluster \"a\"".to_owned()])]);
    // The same endpoints as before.
    f.sotw(Kind::LoadAssignment, "1", &[assignment("a", 1)]).unwrap();
    assert_eq!(f.changed()[1], ["a"]);
    assert_eq!(f.store.config().clusters[1].connect_timeout, Duration::from_secs(2));
}

#[test]
fn a_changed_cluster_uses_the_endpoints_it_had_after_the_timeout() {
    for source in [ads(), json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"})] {
        let with = |millis| {
            let mut cluster = cluster("a", millis);
            cluster["eds_cluster_config"]["eds_config"] = source.clone();
            cluster
        };
        let mut f = mesh();
        f.sotw(Kind::Cluster, "1", &[with(1_000)]).unwrap();
        f.sotw(Kind::LoadAssignment, "1", &[assignment("a", 1)]).unwrap();
        f.changed();
        f.sotw(Kind::Cluster, "2", &[with(2_000)]).unwrap();
        // It changes all the time: that does not put it off.
        for millis in 0..14 {
            f.after(Duration::from_secs(1));
            f.sotw(Kind::Cluster, "3", &[with(3_000 + millis)]).unwrap();
            assert!(f.changed()[1].is_empty());
        }
        f.after(Duration::from_secs(1));
        assert_eq!(f.changed()[1], ["a"]);
        assert_eq!(f.store.config().clusters[1].connect_timeout, Duration::from_millis(3_013));
        assert_eq!(f.port("a"), Some(1));
    }
}

#[test]
fn going_back_to_what_serves_ends_the_wait() {
    let mut f = mesh();
    f.sotw(Kind::Cluster, "2", &[cluster("a", 2_000)]).unwrap();
    f.sotw(Kind::Cluster, "3", &[cluster("a", 1_000)]).unwrap();
    assert_eq!(f.store.warming(Kind::Cluster), 0);
    f.after(FETCH);
    assert_eq!(f.changed(), [vec![], vec![], vec![], Vec::<String>::new()]);
}

#[test]
fn a_listener_waits_for_its_routes_and_the_old_one_serves() {
    let mut f = mesh();
    f.sotw(Kind::Listener, "2", &[listener("l", 1, "other")]).unwrap();
    assert_eq!(f.wanted(Kind::RouteConfiguration), ["other", "r"], "both versions need theirs");
    assert_eq!(f.changed()[0], Vec::<String>::new());
    assert_eq!(f.dump("dynamic_listeners")[0]["warming_state"]["version_info"], "2");
    assert_eq!(f.dump("dynamic_listeners")[0]["active_state"]["version_info"], "1");
    f.sotw(Kind::RouteConfiguration, "2", &[routes("other", "a")]).unwrap();
    assert_eq!(f.changed(), [vec!["l".to_owned()], vec![], vec!["other".to_owned(), "r".to_owned()], vec![]]);
    assert_eq!(f.wanted(Kind::RouteConfiguration), ["other"]);
}

#[test]
fn two_sources_of_one_name_are_two_resources() {
    let api = json!({
        "api_config_source": {
            "api_type": "GRPC", "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
        },
        "resource_api_version": "V3",
    });
    let mut f = fixture(BOOTSTRAP);
    let mut other = cluster("b", 1_000);
    other["eds_cluster_config"] = json!({"service_name": "a", "eds_config": api});
    f.sotw(Kind::Cluster, "1", &[cluster("a", 1_000), other]).unwrap();
    assert_eq!(f.wanted(Kind::LoadAssignment), ["a", "a"]);
    let source = f.store.dynamic(Kind::LoadAssignment).iter().find_map(|entry| match &entry.key.source {
        Some(source @ SourceSpecifier::Api(_)) => Some(source.clone()),
        _ => None,
    });
    let source = source.unwrap();
    f.sotw(Kind::LoadAssignment, "1", &[assignment("a", 1)]).unwrap();
    f.deliver_to(
        source,
        Kind::LoadAssignment,
        "1",
        vec![resource(Kind::LoadAssignment, &assignment("a", 2))],
        None,
    )
    .unwrap();
    f.changed();
    let config = f.store.config();
    let mut ports: Vec<_> =
        config.assignments.values().map(|assignment| assignment.endpoints[0].address.to_string()).collect();
    ports.sort();
    assert_eq!(ports, ["10.0.0.1:1", "10.0.0.1:2"]);
}

#[test]
fn a_service_that_two_clusters_share_is_asked_for_once() {
    let mut f = mesh();
    let mut second = cluster("b", 1_000);
    second["eds_cluster_config"]["service_name"] = json!("a");
    f.sotw(Kind::Cluster, "2", &[cluster("a", 1_000), second.clone()]).unwrap();
    assert_eq!(f.wanted(Kind::LoadAssignment), ["a"]);
    assert!(f.store.subscriptions().any(|s| s.prefixes.len() == 2));
    f.sotw(Kind::LoadAssignment, "2", &[assignment("a", 1)]).unwrap();
    assert_eq!(f.changed()[1], ["b"]);
    f.sotw(Kind::Cluster, "3", &[second]).unwrap();
    assert_eq!(f.wanted(Kind::LoadAssignment), ["a"], "one of them still needs it");
    assert_eq!(f.port("a"), Some(1));
    f.sotw(Kind::Cluster, "4", &[]).unwrap();
    assert!(f.wanted(Kind::LoadAssignment).is_empty());
    assert_eq!(f.changed(), [vec![], vec!["a".to_owned(), "b".to_owned()], vec![], vec!["a".to_owned()]]);
}

#[test]
fn the_latest_version_says_how_long_to_wait() {
    let mut f = mesh();
    let mut hasty = cluster("a", 2_000);
    hasty["eds_cluster_config"]["eds_config"]["initial_fetch_timeout"] = json!("0.5s");
    f.sotw(Kind::Cluster, "2", &[hasty]).unwrap();
    f.after(Duration::from_millis(499));
    assert!(f.changed()[1].is_empty());
    f.after(Duration::from_millis(1));
    assert_eq!(f.changed()[1], ["a"]);
}

#[test]
fn secrets_of_every_socket_warm_a_cluster() {
    let context = |secret: &str| {
        let secret = json!({"name": secret, "sds_config": ads()});
        json!({"name": "tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {"validation_context_sds_secret_config": secret},
        }})
    };
    let mut f = fixture(BOOTSTRAP);
    f.changed();
    let cluster = json!({
        "name": "a",
        "transport_socket": context("one"),
        "transport_socket_matches": [{"name": "m", "match": {"a": 1}, "transport_socket": context("two")}],
    });
    f.sotw(Kind::Cluster, "1", &[cluster]).unwrap();
    assert_eq!(f.wanted(Kind::Secret), ["one", "two"]);
    assert_eq!(f.changed()[1], [""; 0], "it waits for both");
    let secret = |name: &str| json!({"name": name, "validation_context": {"max_verify_depth": 1}});
    f.sotw(Kind::Secret, "1", &[secret("one")]).unwrap();
    assert_eq!(f.changed()[1], [""; 0]);
    f.sotw(Kind::Secret, "1", &[secret("one"), secret("two")]).unwrap();
    assert_eq!(f.changed()[1], ["a"]);
}
