//! Files of resources: a `DiscoveryResponse` as YAML, JSON or on the wire.

use std::{fs, io, path::Path};

use prost_reflect::{DynamicMessage, ReflectMessage as _, Value};

use crate::{
    Error, Note,
    at::{At, Sink},
    decode::{self, Syntax, UnknownFields},
    descriptor,
    resource::{Kind, Resource},
};

const RESPONSE: &str = "envoy.service.discovery.v3.DiscoveryResponse";
/// A resource with a name and a version of its own, as delta responses carry them.
const WRAPPER: &str = "envoy.service.discovery.v3.Resource";

/// Largest file that is read: what a control plane may send over gRPC is of this order.
const BYTES_MAX: u64 = 256 << 20;

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Batch {
    /// `version_info`
    pub(crate) version: String,
    pub(crate) resources: Vec<Resource>,
    /// Fields that do not exist.
    pub(crate) unknown: Vec<Note>,
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// It is not there, or not readable.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is there, and not what it should be.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Malformed(Vec<Error>),
}

impl FileError {
    fn malformed(reason: impl Into<String>) -> Self {
        Self::Malformed(vec![Error::invalid("discovery response", "", reason)])
    }
}

/// Reads `path`: `.pb` holds the wire format, `.json` JSON, anything else YAML.
///
/// # Errors
/// The file cannot be read, or not be parsed.
pub(crate) fn read(path: &Path, unknown: UnknownFields) -> Result<Batch, FileError> {
    let length = fs::metadata(path)?.len();
    if length > BYTES_MAX {
        return Err(FileError::malformed(format!("{length} bytes are more than a resource file may have")));
    }
    parse(path, fs::read(path)?, unknown)
}

fn parse(path: &Path, contents: Vec<u8>, unknown: UnknownFields) -> Result<Batch, FileError> {
    let Some(descriptor) = descriptor::message(RESPONSE) else {
        return Err(FileError::malformed("no descriptor"));
    };
    let sink = Sink::new("discovery response");
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let message = if extension == "pb" {
        decode::from_wire(&sink.root(), &descriptor, &contents, unknown)
    } else {
        let syntax = if extension == "json" { Syntax::Json } else { Syntax::Yaml };
        let text = String::from_utf8(contents).map_err(|_| FileError::malformed("not UTF-8"))?;
        let tree = decode::parse(&text, syntax).map_err(FileError::malformed)?;
        if tree.is_null() {
            // A file that was truncated to be written again, most often; never meant as "no resources".
            return Err(FileError::malformed("the file is empty"));
        }
        decode::decode(&sink.root(), &descriptor, &tree, unknown)
    };
    let batch = message.map(|message| batch(&sink.root(), &message));
    let (errors, notes) = sink.into_parts();
    match batch {
        Some(batch) if errors.is_empty() => Ok(Batch { unknown: notes, ..batch }),
        _ if errors.is_empty() => Err(FileError::malformed("does not decode")),
        _ => Err(FileError::Malformed(errors)),
    }
}

fn batch(at: &At<'_>, response: &DynamicMessage) -> Batch {
    let text = |name| response.get_field_by_name(name).and_then(|value| value.as_str().map(str::to_owned));
    let at = at.field("resources");
    let mut resources = Vec::new();
    if let Some(Value::List(values)) = response.get_field_by_name("resources").as_deref() {
        for (index, value) in values.iter().enumerate() {
            let opened = value.as_message().and_then(|any| resource(&at.index(index), any));
            resources.extend(opened.map(|(resource, _)| resource));
        }
    }
    Batch { version: text("version_info").unwrap_or_default(), resources, unknown: Vec::new() }
}

/// The resource in an `Any`, with its message.
pub(crate) fn resource(at: &At<'_>, any: &DynamicMessage) -> Option<(Resource, DynamicMessage)> {
    let Some(mut message) = decode::open(any) else {
        return at.error("unknown type, or not a message of its type");
    };
    if message.descriptor().full_name() == WRAPPER {
        let inner = message.get_field_by_name("resource")?;
        let Some(opened) = inner.as_message().and_then(decode::open) else {
            return at.field("resource").error("unknown type, or not a message of its type");
        };
        message = opened;
    }
    let descriptor = message.descriptor();
    let Some(kind) = Kind::of(descriptor.full_name()) else {
        return at.error(format!("{} is not a resource that files are read for", descriptor.full_name()));
    };
    Some((Resource::new(kind, &message), message))
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn parse_as(name: &str, text: &str) -> Result<Batch, FileError> {
        parse(Path::new(name), text.as_bytes().to_vec(), UnknownFields::Note)
    }

    const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

    #[test]
    fn yaml_json_and_wire_are_the_same() {
        let yaml =
            format!("version_info: v\nresources:\n- '@type': {CLUSTER}\n  name: a\n  connectTimeout: 1s\n");
        let json = format!(
            r#"{{"versionInfo": "v", "resources": [{{"@type": "{CLUSTER}", "connect_timeout": "1s",
                "name": "a"}}]}}"#
        );
        let a = parse_as("x.yaml", &yaml).unwrap();
        let b = parse_as("x.json", &json).unwrap();
        assert_eq!((a.version.as_str(), a.resources[0].name.as_str()), ("v", "a"));
        assert_eq!(a.resources, b.resources);

        let sink = Sink::new("x");
        let tree = decode::parse(&yaml, Syntax::Yaml).unwrap();
        let descriptor = descriptor::message(RESPONSE).unwrap();
        let wire =
            decode::decode(&sink.root(), &descriptor, &tree, UnknownFields::Refuse).unwrap().encode_to_vec();
        let c = parse(Path::new("x.pb"), wire, UnknownFields::Refuse).unwrap();
        assert_eq!((a.version, a.resources), (c.version, c.resources));
    }

    #[test]
    fn one_resource_needs_no_list_and_may_be_wrapped() {
        let yaml = format!(
            "resources:\n  '@type': type.googleapis.com/{WRAPPER}\n  name: a\n  resource: {{'@type': \
             {CLUSTER}, name: b}}\n"
        );
        assert_eq!(parse_as("x", &yaml).unwrap().resources[0].name, "b");
    }

    #[test]
    fn what_is_no_response_is_refused() {
        for (text, reason) in [
            ("", "discovery response: the file is empty"),
            ("resources: [", "invalid YAML"),
            ("- a", "discovery response: expected a message, not a list"),
            ("resources: [{name: a}]", "discovery response: resources[0]: @type is missing"),
            (
                "resources: [{'@type': type.googleapis.com/envoy.config.core.v3.Node}]",
                "discovery response: resources[0]: envoy.config.core.v3.Node is not a resource that files are read for",
            ),
        ] {
            let error = parse_as("x.yaml", text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert!(parse(Path::new("x.pb"), vec![0xFF], UnknownFields::Note).is_err());
        assert!(parse(Path::new("x.yaml"), vec![0xFF, 0xFE], UnknownFields::Note).is_err());
    }

    #[test]
    fn unknown_fields_are_notes_or_errors() {
        let text = format!("resources: [{{'@type': {CLUSTER}, name: a, bogus: 1}}]");
        let batch = parse_as("x.yaml", &text).unwrap();
        assert_eq!(batch.unknown[0].text, "envoy.config.cluster.v3.Cluster has no field bogus");
        let error = parse(Path::new("x.yaml"), text.into_bytes(), UnknownFields::Refuse).unwrap_err();
        assert_eq!(
            error.to_string(),
            "discovery response: resources[0].bogus: unknown field of envoy.config.cluster.v3.Cluster"
        );
    }
}
