//! Listeners and TCP proxies.

use culvert_model::{Address, ClusterSpecifier, TerminalFilter, TrafficDirection};

use crate::{good, http, listener, seconds, terminal};

#[test]
fn listeners() {
    let loaded = good(&http(&[(
        "LISTENER",
        "stat_prefix: front
    additional_addresses: [{address: {socket_address: {address: '::1', port_value: 10000}}}, {address: \
    {pipe: {path: '@x'}}}]
    per_connection_buffer_limit_bytes: 32768
    deprecated_v1: {bind_to_port: false}
    traffic_direction: outbound
    enable_reuse_port: false
    tcp_backlog_size: 77
    listener_filters:
    - name: original
      typed_config: {'@type': EXT/filters.listener.original_dst.v3.OriginalDst}",
    )]));
    let listener = listener(&loaded);
    assert_eq!((listener.stat_prefix.as_str(), listener.buffer_limit_bytes), ("front", 32_768));
    let addresses: Vec<_> = listener.additional_addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["[::1]:10000", "@x"]);
    assert!(!listener.bind_to_port && !listener.reuse_port);
    assert_eq!((listener.direction, listener.backlog), (TrafficDirection::Outbound, Some(77)));
    let notes: Vec<_> = loaded.notes.iter().map(ToString::to_string).collect();
    assert_eq!(notes, ["listener \"ingress\": deprecated_v1: warning: deprecated"]);
}

#[test]
fn a_listener_without_name_is_called_by_its_address() {
    let text = http(&[("LISTENER", "traffic_direction: INBOUND")]).replace("name: ingress", "stat_prefix: x");
    let loaded = good(&text);
    assert_eq!(
        (listener(&loaded).name.as_str(), listener(&loaded).direction),
        ("127.0.0.1:10000", TrafficDirection::Inbound)
    );
    let text = http(&[]).replace("name: ingress", "").replace(
        "socket_address: {address: 127.0.0.1, port_value: 10000}",
        "pipe: {path: /run/x, mode: 0660}",
    );
    let loaded = good(&text);
    assert_eq!(listener(&loaded).name, "/run/x");
    assert_eq!(listener(&loaded).address, Address::Pipe { path: "/run/x".into(), mode: 0o660 });
}

#[test]
fn tcp_proxies() {
    let text = |cluster: &str| {
        format!(
            "static_resources: {{listeners: [{{name: l, address: {{pipe: {{path: /x}}}}, \
             default_filter_chain: {{filters: [{{name: t, \
             typed_config: {{'@type': EXT/filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: s, \
             {cluster}}}}}]}}}}]}}"
        )
    };
    let proxy = |cluster: &str| match terminal(&good(&text(cluster))) {
        TerminalFilter::Tcp(proxy) => proxy.clone(),
        _ => panic!("not TCP"),
    };
    let one = proxy("cluster: a");
    assert!(matches!(&one.cluster, ClusterSpecifier::Name(name) if &**name == "a"));
    assert_eq!((one.stat_prefix.as_str(), one.idle_timeout), ("s", seconds(3_600)));
    let two = proxy(
        "idle_timeout: 0s, weighted_clusters: {clusters: [{name: a, weight: 3}, {name: b, weight: 1}]}",
    );
    let ClusterSpecifier::Weighted(weighted) = &two.cluster else { panic!("not weighted") };
    assert_eq!((weighted.total, weighted.clusters[0].weight, two.idle_timeout), (4, 3, None));
}
