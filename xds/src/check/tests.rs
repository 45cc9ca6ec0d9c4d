//! Files as operators have them.

use std::fs;

use super::*;

/// `file: title: verdict[: what]`, one for each error or entry.
fn lines(files: &[(&str, &str)], options: CheckOptions) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        paths.push(path);
    }
    paths.push(directory.path().join("missing"));
    let mut lines = Vec::new();
    for checked in check(&paths, options) {
        let file = checked.file.file_name().unwrap().to_str().unwrap().to_owned();
        let line = format!("{file}: {}: {:?}", checked.title(), checked.verdict());
        if checked.errors.is_empty() {
            let notes: Vec<_> = checked.notes.iter().map(|note| note.text.as_str()).collect();
            lines.push(format!("{line} {}", notes.join("; ")).trim_end().to_owned());
        }
        lines.extend(checked.errors.iter().map(|e| match e.kind {
            ErrorKind::Unsupported => format!("{line}: {}", e.feature()),
            ErrorKind::Invalid => format!("{line}: {}", e.reason),
        }));
    }
    assert!(lines.pop().unwrap().starts_with("missing: file: Invalid: No such file"));
    lines
}

const CLUSTER: &str = "'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster";

#[test]
fn every_resource_has_a_line() {
    let bootstrap = "static_resources: {clusters: [{name: a, preconnect_policy: {per_upstream_preconnect_ratio: 2}}, {name: b}]}\nbogus: 1";
    let cds = format!(
        "resources:\n- {{{CLUSTER}, name: a, more: 1}}\n- {{{CLUSTER}, name: b, lb_policy: 99}}\n- {{'@type': \
         type.googleapis.com/envoy.config.core.v3.Node}}\n- {{'@type': a/b.c.D}}\n- {{name: c}}\n"
    );
    let found = lines(
        &[("bootstrap.yaml", bootstrap), ("cds.yaml", &cds), ("bad.json", "{"), ("other.yaml", "env: 1")],
        CheckOptions::default(),
    );
    let expected = [
        "bootstrap.yaml: bootstrap: Invalid: unknown field of envoy.config.bootstrap.v3.Bootstrap",
        "bootstrap.yaml: cluster \"a\": Refused: ",
        "bootstrap.yaml: cluster \"b\": Accepted",
        "cds.yaml: cluster \"a\": Accepted envoy.config.cluster.v3.Cluster has no field more",
        "cds.yaml: cluster \"b\": Invalid: value must be one of the defined enum values",
        "cds.yaml: resource: Invalid: envoy.config.core.v3.Node is not a resource that files are read for",
        "cds.yaml: resource: Refused: b.c.D",
        "cds.yaml: resource \"c\": Invalid: @type is missing",
        "bad.json: file: Invalid: invalid JSON: EOF while parsing an object at line 1 column 1",
        "other.yaml: file: Refused: file: neither a bootstrap nor resources of Envoy's",
    ];
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected.trim_end_matches(": b.c.D")), "{found}\n{expected}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn unknown_fields_are_what_the_options_make_of_them() {
    let files =
        [("a.yaml", "node: {id: a, bogus: 1}"), ("b.clusters.yaml", "[{name: a, type: STATIC, bogus: 1}]")];
    let loose = CheckOptions { allow_unknown_static_fields: true, ..CheckOptions::default() };
    let found = lines(&files, loose);
    assert!(found[0].starts_with("a.yaml: bootstrap: Accepted"), "{found:?}");
    assert!(found[1].starts_with("b.clusters.yaml: cluster \"a\": Accepted"), "{found:?}");
    let strict = CheckOptions { reject_unknown_dynamic_fields: true, ..CheckOptions::default() };
    let found = lines(&files, strict);
    assert!(found.iter().all(|line| line.contains(": Invalid: unknown field of ")), "{found:?}");
}

#[test]
fn files_of_a_snapshot_resolve() {
    let listener = "- name: l\n  address: {socket_address: {address: 127.0.0.1, port_value: 1}}\n  filter_chains:\n  - \
                    filters:\n    - name: hcm\n      typed_config:\n        '@type': \
                    type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n        \
                    stat_prefix: a\n        ROUTES\n        http_filters: [{name: r, typed_config: {'@type': \
                    type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]\n";
    let inline = listener.replace(
        "ROUTES",
        "route_config: {name: i, virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, route: \
         {cluster: CLUSTER}}]}]}",
    );
    let rds = listener
        .replace("ROUTES", "rds: {route_config_name: far, config_source: {path_config_source: {path: /x}}}");
    let clusters = "[{name: near, type: STATIC}]";
    let check = |files: &[(&str, &str)]| lines(files, CheckOptions::default());
    let good = inline.replace("CLUSTER", "near");
    let bad = inline.replace("CLUSTER", "nowhere");
    let found = check(&[("s.listeners.yaml", &good), ("s.clusters.yaml", clusters)]);
    assert!(found.iter().all(|line| line.contains(": Accepted")), "{found:#?}");
    let found = check(&[("s.listeners.yaml", &bad), ("s.clusters.yaml", clusters)]);
    assert!(found[0].contains(": Invalid: ") && found[0].contains("nowhere"), "{found:#?}");
    // Without the clusters of the snapshot there is nothing to hold them against.
    for other in ["t.clusters.yaml", "clusters.yaml"] {
        let found = check(&[("s.listeners.yaml", &bad), (other, clusters)]);
        assert!(found[0].contains(": Accepted"), "{found:#?}");
    }
    let found = check(&[("s.listeners.yaml", &rds), ("s.routes.yaml", "[{name: other}]")]);
    let warning = "Accepted there is no route configuration \"far\" in this snapshot";
    assert!(found[0].ends_with(warning), "{found:#?}");
    assert!(
        check(&[("s.listeners.yaml", &rds), ("s.routes.yaml", "[{name: far}]")])[0].ends_with("Accepted")
    );
}

#[test]
fn every_promise_can_be_printed() {
    let promises = promises();
    assert!(promises.len() > 100);
    let of = |message: &str, field: &str| {
        let found = promises.iter().find(|p| p.message == message && p.field == field);
        found.map(|p| p.promise)
    };
    assert_eq!(of("envoy.config.cluster.v3.Cluster", "name"), Some(Promise::Used));
    let flags = of("envoy.config.bootstrap.v3.Bootstrap", "flags_path");
    assert!(matches!(flags, Some(Promise::NoEffect(_))), "{flags:?}");
}

#[test]
fn secrets_that_were_taken_out_are_passed_over_unless_told_otherwise() {
    let secrets = "- {name: a, tls_certificate: {certificate_chain: {inline_string: x}, private_key: {inline_string: y}}}\n- \
                   {name: b, validation_context: {trusted_ca: {inline_string: \"-----BEGIN X-----\"}}}";
    let files = [("s.secrets.yaml", secrets)];
    let found = lines(&files, CheckOptions { strict_secrets: true, ..CheckOptions::default() });
    assert!(found[0].ends_with("secret \"a\": Invalid: it is not PEM"), "{found:#?}");
    assert!(found.last().unwrap().contains("secret \"b\": Invalid: "), "{found:#?}");
    let found = lines(&files, CheckOptions::default());
    assert!(found[0].ends_with("secret \"a\": Accepted it is not PEM; it is not PEM"), "{found:#?}");
    assert!(found[1].contains("secret \"b\": Invalid: "), "what is no placeholder is an error: {found:#?}");
}
