//! Files on their own, for `culvert check`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use envoy_types::pb::envoy::config::{
    cluster::v3 as cluster, endpoint::v3 as endpoint, listener::v3 as listener, route::v3 as route,
};

use crate::{
    Error, ErrorKind, Errors, LoadOptions, Note,
    convert::{self, Clusters, Localities},
    decode::{self, Syntax, UnknownFields},
    load_bootstrap,
    resource::{Kind, Resource},
    source::{self, FileError},
};

/// Validates bootstraps and resource files on their own: one entry for a bootstrap, and one for each resource of a
/// resource file, or for the file where it cannot be read. Clusters that routes refer to are taken to exist.
#[must_use]
pub fn check(paths: &[PathBuf]) -> Vec<(PathBuf, Result<Vec<Note>, Errors>)> {
    let mut outcomes = Vec::new();
    for path in paths {
        let found = if holds_resources(path) { resources(path) } else { vec![bootstrap(path)] };
        outcomes.extend(found.into_iter().map(|outcome| (path.clone(), outcome)));
    }
    outcomes
}

/// A file with `resources` is a discovery response; a bootstrap has no such field.
fn holds_resources(path: &Path) -> bool {
    let Ok(text) = fs::read_to_string(path) else { return false };
    decode::parse(&text, Syntax::Yaml).is_ok_and(|tree| tree.get("resources").is_some())
}

fn bootstrap(path: &Path) -> Result<Vec<Note>, Errors> {
    let options = LoadOptions { config_path: Some(path.to_owned()), ..LoadOptions::default() };
    load_bootstrap(&options).map(|loaded| loaded.notes)
}

fn resources(path: &Path) -> Vec<Result<Vec<Note>, Errors>> {
    match source::read(path, UnknownFields::Refuse) {
        Ok(batch) => batch.resources.iter().map(|resource| convert(resource).map_err(Errors::from)).collect(),
        Err(FileError::Malformed(errors)) => vec![Err(errors.into())],
        Err(FileError::Io(e)) => {
            vec![Err(Error::invalid(path.display().to_string(), "", e.to_string()).into())]
        }
    }
}

fn convert(resource: &Resource) -> Result<Vec<Note>, Vec<Error>> {
    let clusters = Clusters { exists: &|_| true, validate: false };
    match resource.kind {
        Kind::Cluster => resource.convert::<cluster::Cluster, _>(convert::cluster).map(|(_, notes)| notes),
        Kind::LoadAssignment => {
            let converted = resource.convert::<endpoint::ClusterLoadAssignment, _>(|at, message| {
                convert::load_assignment(at, message, Localities::default())
            });
            converted.map(|(_, notes)| notes)
        }
        Kind::Listener => {
            let converted = resource
                .convert::<listener::Listener, _>(|at, message| convert::listener(at, message, &clusters));
            converted.map(|(_, notes)| notes)
        }
        Kind::RouteConfiguration => {
            let converted = resource.convert::<route::RouteConfiguration, _>(|at, message| {
                convert::route_configuration(at, message, &clusters)
            });
            converted.map(|(_, notes)| notes)
        }
        kind => {
            let reason = format!("a {kind} is not supported");
            let error = Error::invalid(kind.title(&resource.name), "", reason);
            Err(vec![Error { kind: ErrorKind::Unsupported, ..error }])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bootstraps_and_resource_files() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let cluster = "'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster";
        let files = [
            write("bootstrap.yaml", "static_resources: {clusters: [{name: a, type: LOGICAL_DNS}]}"),
            write(
                "cds.yaml",
                &format!("resources: [{{{cluster}, name: a}}, {{{cluster}, name: b, lb_policy: 99}}]"),
            ),
            write("bad.json", "{\"resources\": 5}"),
            directory.path().join("missing"),
        ];
        let outcomes: Vec<_> = check(&files)
            .into_iter()
            .map(|(path, outcome)| {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (
                    name,
                    outcome
                        .map(|notes| notes.len())
                        .map_err(|errors| (errors.is_unsupported(), errors.to_string())),
                )
            })
            .collect();
        let refused = |unsupported: bool, text: &str| Err((unsupported, text.to_owned()));
        assert_eq!(outcomes[0].1, refused(true, "cluster \"a\": type: LOGICAL_DNS is not supported"));
        assert_eq!((outcomes[1].0.as_str(), &outcomes[1].1), ("cds.yaml", &Ok(0)));
        let reason = "cluster \"b\": lb_policy: value must be one of the defined enum values";
        assert_eq!(outcomes[2].1, refused(false, reason));
        assert_eq!(
            outcomes[3].1,
            refused(false, "discovery response: resources: expected a message with @type")
        );
        assert!(outcomes[4].1.as_ref().unwrap_err().1.contains("No such file"));
    }
}
