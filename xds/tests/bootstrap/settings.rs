//! Everything else in a bootstrap, and the command line.

use std::fs;

use culvert_model::Address;
use culvert_xds::{LoadOptions, NoteKind, load_bootstrap};

use crate::{good, seconds};

#[test]
fn settings_of_the_process() {
    let loaded = good(
        "node: {id: n, cluster: c, metadata: {a: [1, {b: null}]}}
admin: {address: {pipe: {path: /run/admin}}}
dynamic_resources:
  lds_config: {path_config_source: {path: /l, watched_directory: {path: /w}}, initial_fetch_timeout: 0s}
  cds_config: {path: /c}
layered_runtime: {layers: [{name: a, static_layer: {overload: {global_downstream_max_connections: 5}}}, \
{name: b, static_layer: {overload.global_downstream_max_connections: '7'}}, {name: c, admin_layer: {}}]}
bootstrap_extensions:
- name: culvert.capture
  typed_config:
    '@type': type.googleapis.com/culvert.v1.Capture
    exclude_outbound_cidrs: [10.1.2.3/8, fd00::/8, 192.0.2.1]
    exclude_outbound_ports: [25, 465]
    excludeInboundPorts: 22
",
    );
    let bootstrap = &loaded.bootstrap;
    assert_eq!((bootstrap.node_id.as_str(), bootstrap.node_cluster.as_str()), ("n", "c"));
    assert_eq!(bootstrap.admin, Some(Address::Pipe { path: "/run/admin".into(), mode: 0 }));
    let lds = bootstrap.lds.as_ref().unwrap();
    assert_eq!((lds.watched_directory(), lds.initial_fetch_timeout), (Some("/w".as_ref()), None));
    assert_eq!(bootstrap.cds.as_ref().unwrap().initial_fetch_timeout, seconds(15));
    assert_eq!(bootstrap.max_downstream_connections, Some(7));
    let cidrs: Vec<_> = bootstrap.capture.exclude_outbound_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["10.0.0.0/8", "fd00::/8", "192.0.2.1/32"]);
    assert_eq!(bootstrap.capture.exclude_outbound_ports, [25, 465]);
    assert_eq!(bootstrap.capture.exclude_inbound_ports, [22]);

    let monitor = "overload_manager: {resource_monitors: [{name: m, typed_config: {'@type': \
    EXT/resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig, \
     max_active_downstream_connections: 9}}]}";
    assert_eq!(good(monitor).bootstrap.max_downstream_connections, Some(9));
}

#[test]
fn the_command_line_is_merged_over_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        Some(path)
    };
    let file = "node: {id: f, cluster: f}\nadmin: {address: {socket_address: {address: 127.0.0.1, \
    port_value: 1}}}\n\
                static_resources: {clusters: [{name: a}]}\n";
    let options = LoadOptions {
        config_path: write("x.yaml", file),
        config_yaml: Some(
            "node: {id: y}\nadmin: {address: {socket_address: {port_value: 2}}}\nstatic_resources: \
             {clusters: [{name: b}]}"
                .to_owned(),
        ),
        node_cluster: Some("flag".to_owned()),
        ..LoadOptions::default()
    };
    let bootstrap = load_bootstrap(&options).unwrap().bootstrap;
    assert_eq!((bootstrap.node_id.as_str(), bootstrap.node_cluster.as_str()), ("y", "flag"));
    assert_eq!(bootstrap.admin.unwrap().to_string(), "127.0.0.1:2");
    let names: Vec<_> = bootstrap.config.clusters.iter().map(|cluster| &*cluster.name).collect();
    assert_eq!(names, ["a", "b"]);

    let json = LoadOptions {
        config_path: write("x.json", r#"{"node": {"id": "j"}}"#),
        node_id: Some("flag".to_owned()),
        ..LoadOptions::default()
    };
    assert_eq!(load_bootstrap(&json).unwrap().bootstrap.node_id, "flag");
    let no_node = LoadOptions {
        config_yaml: Some("{}".to_owned()),
        node_id: Some("i".to_owned()),
        ..LoadOptions::default()
    };
    assert_eq!(load_bootstrap(&no_node).unwrap().bootstrap.node_id, "i");

    let error = |options: &LoadOptions| load_bootstrap(options).unwrap_err().to_string();
    assert_eq!(
        error(&LoadOptions::default()),
        "bootstrap: at least one of --config-path and --config-yaml has to be given"
    );
    let missing = LoadOptions { config_path: Some("/nonexistent".into()), ..LoadOptions::default() };
    assert_eq!(error(&missing), "bootstrap: /nonexistent: No such file or directory (os error 2)");
    let yaml = LoadOptions { config_yaml: Some("bogus: 1".to_owned()), ..LoadOptions::default() };
    assert_eq!(
        error(&yaml),
        "--config-yaml: bootstrap: bogus: unknown field of envoy.config.bootstrap.v3.Bootstrap"
    );
    let lenient = LoadOptions { allow_unknown_static_fields: true, ..yaml };
    let notes = load_bootstrap(&lenient).unwrap().notes;
    assert_eq!((notes.len(), notes[0].kind), (1, NoteKind::UnknownField));
}
