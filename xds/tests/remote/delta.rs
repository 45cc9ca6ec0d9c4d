//! Incremental xDS.

use culvert_model::{ApiKind, SourceSpecifier};
use culvert_xds::remote::ResourceType::*;
use tonic::Status;

use crate::support::{Client, Delta, api, delta, source};

const ADS: SourceSpecifier = SourceSpecifier::Ads;

#[tokio::test]
async fn differences_and_resumption() {
    let mut server = Delta::start().await;
    let mut client = Client::new(server.port, Some(api(ApiKind::DeltaGrpc)));
    client.want_all(&ADS, Cluster);
    client.want(&ADS, LoadAssignment, &["a", "b"]);
    let mut call = server.call().await;
    assert!(call.head.uri.path().ends_with("AggregatedDiscoveryService/DeltaAggregatedResources"));
    let clusters = call.next().await;
    assert!(clusters.node.is_some() && clusters.resource_names_subscribe.is_empty());
    assert_eq!(call.next().await.resource_names_subscribe, ["a", "b"]);
    call.send(delta(Cluster, "1", &[("x", "v1"), ("y", "v1")], &["z"]));
    let delivery = client.accept().await;
    assert_eq!((delivery.full, delivery.removed), (false, vec!["z".to_owned()]));
    assert_eq!((delivery.resources[0].name.as_str(), delivery.resources[0].version.as_str()), ("x", "v1"));
    let ack = call.next().await;
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("1", None));
    call.send(delta(LoadAssignment, "2", &[("a", "v1"), ("b", "v1")], &[]));
    client.accept().await;
    call.next().await;
    client.want(&ADS, LoadAssignment, &["b", "c"]);
    let request = call.next().await;
    assert_eq!(request.resource_names_subscribe, ["c"]);
    assert_eq!(request.resource_names_unsubscribe, ["a"]);
    call.send(delta(Cluster, "3", &[("x", "v2")], &["y"]));
    let delivery = client.delivery().await;
    client.remote.answer(delivery.id, Err("no".to_owned()));
    let nack = call.next().await;
    assert_eq!((nack.response_nonce.as_str(), nack.error_detail.unwrap().message.as_str()), ("3", "no"));

    call.fail(Status::unavailable("restart"));
    let mut call = server.call().await;
    let mut clusters: Vec<_> = call.next().await.initial_resource_versions.into_iter().collect();
    clusters.sort();
    let pair = |name: &str, version: &str| (name.to_owned(), version.to_owned());
    // What the refused response was about is neither what it was nor what it said.
    assert_eq!(clusters, [pair("x", ""), pair("y", "")]);
    let request = call.next().await;
    assert_eq!(request.resource_names_subscribe, ["b", "c"]);
    assert_eq!(request.initial_resource_versions.into_iter().collect::<Vec<_>>(), [pair("b", "v1")]);
    assert!(request.response_nonce.is_empty());
}

#[tokio::test]
async fn virtual_hosts_have_a_stream_of_their_own() {
    let mut server = Delta::start().await;
    let own = source(&api(ApiKind::DeltaGrpc));
    let mut client = Client::new(server.port, None);
    client.want(&own, VirtualHost, &["routes"]);
    let mut call = server.call().await;
    assert!(call.head.uri.path().ends_with("VirtualHostDiscoveryService/DeltaVirtualHosts"));
    assert_eq!(call.next().await.resource_names_subscribe, ["routes"]);
    call.send(delta(VirtualHost, "1", &[("routes/a", "v1")], &[]));
    assert_eq!(client.accept().await.resources[0].name, "routes/a");
    assert_eq!(call.next().await.response_nonce, "1");
    client.want(&own, VirtualHost, &["routes", "routes/b.example"]);
    assert_eq!(call.next().await.resource_names_subscribe, ["routes/b.example"]);
}
