//! State of the world.

use std::{collections::BTreeSet, sync::atomic::Ordering, time::Duration};

use culvert_model::{ApiKind, RateLimit, SourceSpecifier};
use culvert_xds::remote::{Interest, ResourceType::*};
use tonic::Status;

use crate::support::{Client, Sotw, api, soon, sotw, source};

const ADS: SourceSpecifier = SourceSpecifier::Ads;

fn ads(server: &Sotw) -> Client {
    Client::new(server.port, Some(api(ApiKind::Grpc)))
}

#[tokio::test]
async fn one_stream_for_all_types() {
    let mut server = Sotw::start().await;
    let mut client = ads(&server);
    client.want_all(&ADS, Cluster);
    client.want_all(&ADS, Listener);
    let mut call = server.call().await;
    assert_eq!(
        call.head.uri.path(),
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
    );
    assert_eq!(call.head.headers["token"], "secret");
    assert_eq!(call.head.uri.authority().unwrap(), "xds");
    let clusters = call.next().await;
    assert_eq!(clusters.type_url, "type.googleapis.com/envoy.config.cluster.v3.Cluster");
    assert_eq!(clusters.node.unwrap().id, "node-1");
    assert!(clusters.resource_names.is_empty());
    let listeners = call.next().await;
    assert_eq!(listeners.type_url, Listener.type_url());
    assert!(listeners.node.is_none(), "the node again");

    let mut response = sotw(Cluster, "1", "a", &[b"x", b"yy"]);
    response.control_plane =
        Some(envoy_types::pb::envoy::config::core::v3::ControlPlane { identifier: "me".to_owned() });
    call.send(response);
    let delivery = client.delivery().await;
    assert_eq!((delivery.resource_type, delivery.version.as_str(), delivery.full), (Cluster, "1", true));
    let values: Vec<_> = delivery.resources.iter().map(|r| r.body.clone().unwrap().value).collect();
    assert_eq!(values, ["x", "yy"]);
    assert!(call.is_silent().await, "answered before it was");
    client.remote.answer(delivery.id, Ok(()));
    let ack = call.next().await;
    assert_eq!((ack.version_info.as_str(), ack.response_nonce.as_str()), ("1", "a"));
    let control_plane = client.remote.control_plane(&ADS, Listener).unwrap();
    assert_eq!(control_plane.identifier(), "me");
    assert_eq!(control_plane.connected_state.load(Ordering::Relaxed), 1);

    call.send(sotw(Cluster, "2", "b", &[]));
    let delivery = client.delivery().await;
    client.remote.answer(delivery.id, Err("no good".to_owned()));
    let nack = call.next().await;
    assert_eq!((nack.version_info.as_str(), nack.response_nonce.as_str()), ("1", "b"));
    assert_eq!(nack.error_detail.unwrap().message, "no good");
    call.send(sotw(Listener, "1", "c", &[]));
    client.accept().await;
    let ack = call.next().await;
    assert_eq!((ack.type_url, ack.response_nonce.as_str()), (Listener.type_url(), "c"));
}

#[tokio::test]
async fn a_stream_for_each_type() {
    let mut server = Sotw::start().await;
    let api = culvert_model::ApiSource { node_on_first_message_only: false, ..api(ApiKind::Grpc) };
    let own = source(&api);
    let mut client = Client::new(server.port, None);
    client.want_all(&own, Listener);
    let mut listeners = server.call().await;
    assert!(listeners.head.uri.path().ends_with("ListenerDiscoveryService/StreamListeners"));
    assert_eq!(listeners.next().await.node.unwrap().id, "node-1");
    client.want(&own, RouteConfiguration, &["a"]);
    let mut routes = server.call().await;
    assert!(routes.head.uri.path().ends_with("RouteDiscoveryService/StreamRoutes"));
    routes.next().await;
    // The same nonce on both is not mixed up, and every message has the node.
    routes.send(sotw(RouteConfiguration, "r", "1", &[]));
    listeners.send(sotw(Listener, "l", "1", &[]));
    client.accept().await;
    client.accept().await;
    let (route, listener) = (routes.next().await, listeners.next().await);
    assert_eq!((route.version_info.as_str(), listener.version_info.as_str()), ("r", "l"));
    assert!(route.node.is_some() && listener.node.is_some());
    client.give_up(&own, RouteConfiguration);
    assert!(routes.try_next().await.is_none(), "still open");
    listeners.send(sotw(Listener, "l2", "2", &[]));
    client.accept().await;
    assert_eq!(listeners.next().await.version_info, "l2");
}

#[tokio::test]
async fn names_that_change_while_a_response_is_unanswered() {
    let mut server = Sotw::start().await;
    let mut client = ads(&server);
    client.want(&ADS, LoadAssignment, &["a"]);
    let mut call = server.call().await;
    assert_eq!(call.next().await.resource_names, ["a"]);
    call.send(sotw(LoadAssignment, "1", "x", &[]));
    let delivery = client.delivery().await;
    client.want(&ADS, LoadAssignment, &["a", "b"]);
    client.want(&ADS, LoadAssignment, &["a", "b", "c"]);
    assert!(call.is_silent().await);
    client.remote.answer(delivery.id, Ok(()));
    let request = call.next().await;
    assert_eq!((request.resource_names.len(), request.response_nonce.as_str()), (3, "x"));
    assert!(call.is_silent().await, "said twice");
}

#[tokio::test]
async fn reset_at_every_message() {
    let mut server = Sotw::start().await;
    let mut client = ads(&server);
    client.want_all(&ADS, Cluster);
    let mut version = String::new();
    for round in 0..6 {
        let mut call = server.call().await;
        let request = call.next().await;
        assert_eq!(request.version_info, version, "the accepted version is lost");
        assert!(request.response_nonce.is_empty() && request.node.is_some());
        if round % 2 == 0 {
            call.fail(Status::unavailable("go away"));
        } else {
            version = round.to_string();
            call.send(sotw(Cluster, &version, "n", &[]));
            client.accept().await;
            assert_eq!(call.next().await.version_info, version);
            call.fail(Status::internal("go away"));
        }
        let error = client.failure().await;
        assert!(error.contains("go away"), "{error}");
        assert_eq!(
            client.remote.control_plane(&ADS, Cluster).unwrap().connected_state.load(Ordering::Relaxed),
            0
        );
    }
    assert_eq!(client.dialer.dialled.load(Ordering::Relaxed), 1, "one connection is enough");
}

#[tokio::test]
async fn an_answer_after_the_stream_is_gone_counts() {
    let mut server = Sotw::start().await;
    let mut client = ads(&server);
    client.want_all(&ADS, Cluster);
    let mut call = server.call().await;
    call.next().await;
    call.send(sotw(Cluster, "5", "n", &[]));
    let delivery = client.delivery().await;
    call.fail(Status::unavailable("gone"));
    client.remote.answer(delivery.id, Ok(()));
    let mut call = server.call().await;
    let request = call.next().await;
    assert_eq!((request.version_info.as_str(), request.response_nonce.as_str()), ("5", ""));
}

#[tokio::test]
async fn a_control_plane_that_comes_late() {
    let port = Sotw::start().await.port;
    let mut client = Client::new(port, Some(api(ApiKind::Grpc)));
    client.want_all(&ADS, Cluster);
    let error = client.failure().await;
    assert!(error.contains("refused"), "{error}");
    let mut server = Sotw::start().await;
    client.dialer.port.store(server.port, Ordering::Relaxed);
    assert_eq!(server.call().await.next().await.type_url, Cluster.type_url());
}

#[tokio::test]
async fn fifty_megabytes() {
    let mut server = Sotw::start().await;
    let mut client = ads(&server);
    client.want_all(&ADS, Cluster);
    let mut call = server.call().await;
    call.next().await;
    let large = vec![7; 50 << 20];
    call.send(sotw(Cluster, "1", "n", &[&large, b"small"]));
    let delivery = client.accept().await;
    assert_eq!(delivery.resources[0].body.as_ref().unwrap().value, large);
    assert_eq!(delivery.resources[1].body.as_ref().unwrap().value, "small");
    assert_eq!(call.next().await.response_nonce, "n");
}

#[tokio::test]
async fn twenty_thousand_names() {
    let mut server = Sotw::start().await;
    let mut client = ads(&server);
    let names: BTreeSet<_> =
        (0..20_000).map(|n| format!("service-{n}.namespace.svc.cluster.local")).collect();
    client.set(&ADS, LoadAssignment, Interest { wildcard: false, names: names.clone() });
    let mut call = server.call().await;
    let request = call.next().await;
    assert_eq!(request.resource_names.into_iter().collect::<BTreeSet<_>>(), names);
    for _ in 0..1_000 {
        let wanted = client.wanted.clone();
        client.remote.want(&wanted);
    }
    assert!(call.is_silent().await, "nothing has changed");
    let mut values = Vec::new();
    values.resize(20_000, b"assignment".as_slice());
    call.send(sotw(LoadAssignment, "1", "n", &values));
    assert_eq!(client.accept().await.resources.len(), 20_000);
    assert_eq!(call.next().await.response_nonce, "n");
}

#[tokio::test]
async fn requests_wait_for_tokens() {
    let mut server = Sotw::start().await;
    let rate_limit = Some(RateLimit { max_tokens: 1, fill_rate_milli: 5_000 });
    let api = culvert_model::ApiSource { rate_limit, ..api(ApiKind::Grpc) };
    let mut client = Client::new(server.port, Some(api));
    client.want_all(&ADS, Cluster);
    client.want_all(&ADS, Listener);
    client.want(&ADS, RouteConfiguration, &["a"]);
    let mut call = server.call().await;
    for expected in [Cluster, Listener, RouteConfiguration] {
        assert_eq!(call.next().await.type_url, expected.type_url());
    }
    let control_plane = client.remote.control_plane(&ADS, Cluster).unwrap();
    assert!(control_plane.rate_limit_enforced.load(Ordering::Relaxed) >= 1);
    assert_eq!(control_plane.pending_requests.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn nothing_more_is_read_before_the_answer() {
    let mut server = Sotw::start().await;
    let mut client = ads(&server);
    client.want_all(&ADS, Cluster);
    let mut call = server.call().await;
    call.next().await;
    call.send(sotw(Cluster, "1", "a", &[]));
    call.send(sotw(Cluster, "2", "b", &[]));
    let first = client.delivery().await;
    let none = tokio::time::timeout(Duration::from_millis(150), client.delivery()).await;
    assert!(none.is_err());
    client.remote.answer(first.id, Ok(()));
    assert_eq!(client.accept().await.version, "2");
    let answered = soon(async {
        loop {
            let request = call.next().await;
            if request.response_nonce == "b" {
                return request;
            }
        }
    });
    assert_eq!(answered.await.version_info, "2");
}

#[tokio::test]
async fn unexpected_types_are_tolerated() {
    let mut server = Sotw::start().await;
    let mut client = ads(&server);
    client.want_all(&ADS, Cluster);
    let mut call = server.call().await;
    call.next().await;
    let mut odd = sotw(Cluster, "1", "a", &[]);
    odd.type_url = "type.googleapis.com/no.such.Type".to_owned();
    call.send(odd);
    call.send(sotw(Secret, "1", "b", &[]));
    call.send(sotw(Cluster, "1", "c", &[]));
    assert_eq!(client.accept().await.resource_type, Cluster);
    assert_eq!(call.next().await.response_nonce, "c");
}

#[tokio::test]
async fn who_sends_the_same_again_at_once_is_not_told_so_at_once_for_ever() {
    let mut server = Sotw::start().await;
    let mut client = ads(&server);
    client.want_all(&ADS, Cluster);
    let mut call = server.call().await;
    call.next().await;
    let mut rounds = 0;
    loop {
        rounds += 1;
        assert!(rounds < 1_000, "it goes on and on");
        call.send(sotw(Cluster, "1", &rounds.to_string(), &[b"x"]));
        let delivery = client.delivery().await;
        client.remote.answer(delivery.id, Err("no".to_owned()));
        if call.is_silent().await {
            break;
        }
    }
    // Other types do not wait, and in the end the answer comes.
    client.want_all(&ADS, Listener);
    assert_eq!(call.next().await.type_url, Listener.type_url());
    let nack = call.next().await;
    assert_eq!(
        (nack.error_detail.unwrap().message, nack.response_nonce),
        ("no".to_owned(), rounds.to_string())
    );
    // What can be used is answered at once, whatever was before.
    call.send(sotw(Cluster, "2", "good", &[]));
    client.accept().await;
    assert_eq!(call.next().await.version_info, "2");
}
