//! What a file holds: bootstraps, discovery responses, lists of resources, resources.

use std::{fs, path::Path};

use serde_json::Value as Json;

use crate::{
    decode::{self, Syntax},
    descriptor,
    resource::Kind,
};

const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";
const RESPONSES: [&str; 2] =
    ["envoy.service.discovery.v3.DiscoveryResponse", "envoy.service.discovery.v3.DeltaDiscoveryResponse"];

/// How the files of a snapshot are told apart: `NAME.clusters.yaml`.
const PARTS: [(&str, Kind); 5] = [
    ("clusters", Kind::Cluster),
    ("endpoints", Kind::LoadAssignment),
    ("listeners", Kind::Listener),
    ("routes", Kind::RouteConfiguration),
    ("secrets", Kind::Secret),
];

/// One thing in a file.
#[derive(Debug)]
pub(super) enum Document {
    /// A bootstrap; the file is read again as a whole when it is the only one in it.
    Bootstrap(Json),
    /// A resource, or what stands in the place of one.
    Resource(Kind, Json),
    /// A resource that says itself what it is, as those in discovery responses do.
    Typed(Json),
    /// Nothing that belongs to Envoy.
    Foreign,
}

/// The snapshot that a file is a part of, by the name of the files without the part, and what it holds.
pub(super) fn part(path: &Path) -> Option<(String, Kind)> {
    let name = path.file_name()?.to_str()?;
    let (stem, part) = name.rsplit_once('.')?.0.rsplit_once('.')?;
    let (_, kind) = PARTS.iter().find(|(known, _)| *known == part)?;
    Some((stem.to_owned(), *kind))
}

/// Reads a file.
///
/// # Errors
/// It cannot be read or is neither YAML nor JSON.
pub(super) fn read(path: &Path) -> Result<Vec<Document>, String> {
    let contents = fs::read(path).map_err(|e| e.to_string())?;
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if extension == "pb" {
        return Ok(vec![Document::Bootstrap(Json::Null)]);
    }
    let text = String::from_utf8(contents).map_err(|_| "not UTF-8".to_owned())?;
    let syntax = if extension == "json" { Syntax::Json } else { Syntax::Yaml };
    let mut documents = Vec::new();
    for tree in decode::parse_all(&text, syntax)? {
        sort(tree, part(path).map(|(_, kind)| kind), &mut documents);
    }
    Ok(documents)
}

fn sort(tree: Json, expected: Option<Kind>, documents: &mut Vec<Document>) {
    match tree {
        Json::Null => {}
        Json::Array(elements) => elements.into_iter().for_each(|tree| sort(tree, expected, documents)),
        Json::Object(mut fields) => {
            let named = fields.get("@type").and_then(Json::as_str).map(decode::type_name);
            if named.is_some_and(|name| RESPONSES.contains(&name)) || fields.contains_key("resources") {
                return match fields.remove("resources") {
                    Some(Json::Array(elements)) => {
                        documents.extend(elements.into_iter().map(Document::Typed));
                    }
                    Some(Json::Null) | None => {}
                    Some(single) => documents.push(Document::Typed(single)),
                };
            }
            if named == Some(BOOTSTRAP) {
                fields.remove("@type");
                return documents.push(Document::Bootstrap(Json::Object(fields)));
            }
            if named.is_some() {
                return documents.push(Document::Typed(Json::Object(fields)));
            }
            let kind =
                expected.or_else(|| Kind::ALL.into_iter().find(|kind| is_one(kind.message_name(), &fields)));
            documents.push(match kind {
                Some(kind) => Document::Resource(kind, Json::Object(fields)),
                None if is_bootstrap(&fields) => Document::Bootstrap(Json::Object(fields)),
                None => Document::Foreign,
            });
        }
        _ => documents.push(Document::Foreign),
    }
}

/// Whether these are the fields of a message, and not only its name, which every resource has.
fn is_one(message: &str, fields: &serde_json::Map<String, Json>) -> bool {
    let Some(message) = descriptor::message(message) else { return false };
    let known =
        |key: &str| message.get_field_by_name(key).or_else(|| message.get_field_by_json_name(key)).is_some();
    fields.keys().all(|key| known(key)) && fields.keys().any(|key| key != "name")
}

/// One field of a bootstrap is enough: a mistake in another one is to be told.
fn is_bootstrap(fields: &serde_json::Map<String, Json>) -> bool {
    let Some(message) = descriptor::message(BOOTSTRAP) else { return false };
    fields
        .keys()
        .any(|key| message.get_field_by_name(key).or_else(|| message.get_field_by_json_name(key)).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(name: &str, text: &str) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        let documents = read(&path).unwrap();
        let shape = |document: &Document| match document {
            Document::Bootstrap(_) => "bootstrap".to_owned(),
            Document::Resource(kind, _) => kind.to_string(),
            Document::Typed(_) => "typed".to_owned(),
            Document::Foreign => "foreign".to_owned(),
        };
        documents.iter().map(shape).collect()
    }

    #[test]
    fn what_a_file_holds_is_found_out() {
        assert_eq!(shapes("a.yaml", "static_resources: {}\nbogus: 1"), ["bootstrap"]);
        assert_eq!(
            shapes("a.yaml", "staticResources: {}\n---\nadmin: {}\n---\n"),
            ["bootstrap", "bootstrap"]
        );
        assert_eq!(shapes("a.yaml", "resources: [{'@type': a/b}, {'@type': a/b}]"), ["typed", "typed"]);
        assert_eq!(shapes("a.yaml", "resources: {'@type': a/b}"), ["typed"]);
        assert_eq!(shapes("a.yaml", "'@type': a/b"), ["typed"]);
        assert_eq!(
            shapes("a.yaml", "[{name: a, filterChains: []}, {name: b, type: EDS}]"),
            ["listener", "cluster"]
        );
        assert_eq!(shapes("a.json", r#"{"clusterName": "a"}"#), ["load assignment"]);
        assert_eq!(shapes("a.secrets.yaml", "- name: a"), ["secret"]);
        assert_eq!(shapes("a.routes.yaml", "[]"), Vec::<String>::new());
        assert_eq!(shapes("a.yaml", "env: {browser: true}\n---\njust text"), ["foreign", "foreign"]);
        assert!(read(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn files_of_a_snapshot_share_a_stem() {
        let of = |name: &str| part(Path::new(name));
        assert_eq!(of("/x/a.b.clusters.yaml"), Some(("a.b".to_owned(), Kind::Cluster)));
        assert_eq!(of("a.secrets.json"), Some(("a".to_owned(), Kind::Secret)));
        assert_eq!((of("clusters.yaml"), of("a.yaml"), of("a.other.yaml")), (None, None, None));
    }
}
