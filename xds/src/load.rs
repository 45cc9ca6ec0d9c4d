//! The bootstrap: from a file and a command line to the model.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use culvert_model::{Address, ApiSource, Bootstrap, Config, Discovery, Listener, SourceSpecifier};
use envoy_types::pb::envoy::config::{
    bootstrap::v3 as pb, cluster::v3 as cluster_pb, listener::v3 as listener_pb,
};
use prost::{Message as _, bytes::Bytes};
use prost_reflect::{DynamicMessage, Value};

use crate::{
    Error, Errors, Note,
    at::Sink,
    convert::{self, Clusters, Localities},
    decode::{self, Syntax, UnknownFields},
    descriptor, remote,
    resource::{Kind, Resource},
    walk,
};

const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";

/// Where the bootstrap comes from and what the command line changes in it.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// `-c`, `--config-path`: YAML or JSON, or `.pb` for the wire format.
    pub config_path: Option<PathBuf>,
    /// `--config-yaml`: merged over the file as protobuf merges messages: scalars replace, lists append.
    pub config_yaml: Option<String>,
    /// `--service-node`: replaces `node.id`.
    pub node_id: Option<String>,
    /// `--service-cluster`: replaces `node.cluster`.
    pub node_cluster: Option<String>,
    /// `--allow-unknown-static-fields`: a field that does not exist is a note, not an error.
    pub allow_unknown_static_fields: bool,
    /// `--reject-unknown-dynamic-fields`: a field that does not exist is an error in resource files too.
    pub reject_unknown_dynamic_fields: bool,
}

/// A bootstrap that can be served.
#[derive(Debug)]
pub struct Loaded {
    /// The validated model.
    pub bootstrap: Bootstrap,
    /// What was accepted without effect, and warnings.
    pub notes: Vec<Note>,
    /// What `/config_dump` shows.
    pub(crate) raw: Raw,
    /// How the static EDS clusters read their endpoints, by service name.
    pub(crate) localities: Vec<(String, Localities)>,
    /// `--reject-unknown-dynamic-fields`.
    pub(crate) reject_unknown_dynamic_fields: bool,
}

impl Loaded {
    /// `node`, after the command line, as control planes are told it: with what Culvert says about itself.
    #[must_use]
    pub fn node(&self) -> envoy_types::pb::envoy::config::core::v3::Node {
        remote::of_bootstrap(&self.raw.bootstrap)
    }
}

/// A bootstrap as it came.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    pub(crate) bootstrap: Bytes,
    pub(crate) listeners: Vec<Resource>,
    pub(crate) clusters: Vec<Resource>,
}

/// Reads, checks and converts a bootstrap.
///
/// # Errors
/// Everything that is wrong with it: unreadable or malformed text, fields that do not exist, violated constraints and
/// features that are not supported.
pub fn load_bootstrap(options: &LoadOptions) -> Result<Loaded, Errors> {
    let (message, mut notes) = read(options)?;
    let (rest, listeners, clusters) = take_apart(&message);
    let raw = Raw { bootstrap: decode::canonical(&message).into(), listeners, clusters };

    let mut errors = Vec::new();
    let settings = settings(&rest, &mut errors, &mut notes);
    let (clusters, localities) = static_clusters(&raw.clusters, &mut errors, &mut notes);
    let listeners = static_listeners(&raw, &mut errors, &mut notes);
    errors.extend(missing_local_cluster(&rest, &raw.clusters));
    if let Some(settings) = &settings {
        errors.extend(unfit_control_planes(settings, &clusters, &raw.clusters));
    }
    let Some(settings) = settings.filter(|_| errors.is_empty()) else { return Err(errors.into()) };

    let node = |field| node_field(&message, field);
    let bootstrap = Bootstrap {
        node_id: node("id"),
        node_cluster: node("cluster"),
        admin: settings.admin,
        config: Config {
            listeners: listeners.into(),
            clusters: clusters.into(),
            secrets: settings.secrets,
            ..Config::default()
        },
        ads: settings.ads.map(Arc::new),
        runtime: Vec::new(),
        lds: settings.lds,
        cds: settings.cds,
        capture: settings.capture,
        max_downstream_connections: settings.max_downstream_connections,
    };
    Ok(Loaded {
        bootstrap,
        notes,
        raw,
        localities,
        reject_unknown_dynamic_fields: options.reject_unknown_dynamic_fields,
    })
}

/// The bootstrap message with the command line applied.
fn read(options: &LoadOptions) -> Result<(DynamicMessage, Vec<Note>), Errors> {
    let unknown =
        if options.allow_unknown_static_fields { UnknownFields::Note } else { UnknownFields::Refuse };
    let mut notes = Vec::new();
    let mut bytes = Vec::new();
    if options.config_path.is_none() && options.config_yaml.is_none() {
        return Err(bootstrap_error("at least one of --config-path and --config-yaml has to be given").into());
    }
    if let Some(path) = &options.config_path {
        bytes.extend(decode::canonical(&read_file(path, unknown, &mut notes)?));
    }
    if let Some(text) = &options.config_yaml {
        let message = read_text(text, Syntax::Yaml, unknown, &mut notes).map_err(|errors| {
            let in_argument = |e: Error| Error { resource: format!("--config-yaml: {}", e.resource), ..e };
            errors.into_iter().map(in_argument).collect::<Vec<_>>()
        })?;
        // Bytes of two messages, one after the other, are the bytes of the two merged.
        bytes.extend(decode::canonical(&message));
    }
    let merged =
        descriptor::message(BOOTSTRAP).and_then(|d| DynamicMessage::decode(d, bytes.as_slice()).ok());
    let Some(mut message) = merged else { return Err(bootstrap_error("cannot be merged").into()) };
    for (field, value) in [("id", &options.node_id), ("cluster", &options.node_cluster)] {
        if let (Some(value), Some(Value::Message(node))) = (value, message.get_field_by_name_mut("node")) {
            node.set_field_by_name(field, Value::String(value.clone()));
        }
    }
    Ok((message, notes))
}

fn bootstrap_error(reason: impl Into<String>) -> Error {
    Error::invalid("bootstrap", "", reason)
}

/// `.pb` holds the wire format, `.json` JSON, anything else YAML.
fn read_file(path: &Path, unknown: UnknownFields, notes: &mut Vec<Note>) -> Result<DynamicMessage, Errors> {
    let in_file = |reason: String| bootstrap_error(format!("{}: {reason}", path.display()));
    let contents = fs::read(path).map_err(|e| in_file(e.to_string()))?;
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if extension == "pb" {
        let sink = Sink::new("bootstrap");
        let message = descriptor::message(BOOTSTRAP)
            .and_then(|descriptor| decode::from_wire(&sink.root(), &descriptor, &contents, unknown));
        return finish(sink, message, notes).map_err(Errors::from);
    }
    let syntax = if extension == "json" { Syntax::Json } else { Syntax::Yaml };
    let text = String::from_utf8(contents).map_err(|_| in_file("not UTF-8".to_owned()))?;
    read_text(&text, syntax, unknown, notes).map_err(Errors::from)
}

fn read_text(
    text: &str,
    syntax: Syntax,
    unknown: UnknownFields,
    notes: &mut Vec<Note>,
) -> Result<DynamicMessage, Vec<Error>> {
    let tree = decode::parse(text, syntax).map_err(|reason| vec![bootstrap_error(reason)])?;
    let sink = Sink::new("bootstrap");
    // An empty document is an empty message.
    let empty = serde_json::Value::Object(serde_json::Map::new());
    let root = if tree.is_null() { &empty } else { &tree };
    let message = descriptor::message(BOOTSTRAP)
        .and_then(|descriptor| decode::decode(&sink.root(), &descriptor, root, unknown));
    finish(sink, message, notes).map_err(|errors| attribute(errors, &tree))
}

fn finish(
    sink: Sink,
    message: Option<DynamicMessage>,
    notes: &mut Vec<Note>,
) -> Result<DynamicMessage, Vec<Error>> {
    let (errors, more) = sink.into_parts();
    notes.extend(more);
    match message {
        Some(message) if errors.is_empty() => Ok(message),
        _ if errors.is_empty() => Err(vec![bootstrap_error("does not decode")]),
        _ => Err(errors),
    }
}

/// Names the static resource that an error in the bootstrap's text is in.
fn attribute(errors: Vec<Error>, tree: &serde_json::Value) -> Vec<Error> {
    let find = |value: &serde_json::Value, names: [&str; 2]| {
        names.iter().find_map(|name| value.get(name)).cloned().unwrap_or_default()
    };
    let resources = find(tree, ["static_resources", "staticResources"]);
    errors
        .into_iter()
        .map(|error| {
            for (field, kind) in [("listeners", Kind::Listener), ("clusters", Kind::Cluster)] {
                let Some(rest) = error.field.strip_prefix(&format!("static_resources.{field}[")) else {
                    continue;
                };
                let Some((index, rest)) = rest.split_once(']') else { continue };
                let resource = &resources[field][index.parse::<usize>().unwrap_or(usize::MAX)];
                if let Some(name) = resource.get("name").and_then(|name| name.as_str()) {
                    let field = rest.trim_start_matches('.').to_owned();
                    return Error { resource: kind.title(name), field, ..error };
                }
            }
            error
        })
        .collect()
}

/// The bootstrap without its listeners and clusters, and these.
fn take_apart(message: &DynamicMessage) -> (DynamicMessage, Vec<Resource>, Vec<Resource>) {
    let mut rest = message.clone();
    let mut take = |field: &str, kind: Kind| -> Vec<Resource> {
        let Some(Value::Message(resources)) = rest.get_field_by_name_mut("static_resources") else {
            return Vec::new();
        };
        let Some(Value::List(values)) = resources.take_field_by_name(field) else { return Vec::new() };
        values.iter().filter_map(Value::as_message).map(|message| Resource::new(kind, message)).collect()
    };
    let listeners = take("listeners", Kind::Listener);
    let clusters = take("clusters", Kind::Cluster);
    (rest, listeners, clusters)
}

fn settings(
    rest: &DynamicMessage,
    errors: &mut Vec<Error>,
    notes: &mut Vec<Note>,
) -> Option<convert::Settings> {
    let sink = Sink::new("bootstrap");
    let root = sink.root();
    walk::walk(&root, rest);
    let typed = pb::Bootstrap::decode(decode::canonical(rest).as_slice());
    let settings = match typed {
        _ if sink.has_errors() => None,
        Ok(typed) => convert::settings(&root, &typed),
        Err(e) => root.error(e.to_string()),
    };
    let (found, more) = sink.into_parts();
    errors.extend(found);
    notes.extend(more);
    settings
}

type StaticClusters = (Vec<Arc<culvert_model::Cluster>>, Vec<(String, Localities)>);

fn static_clusters(resources: &[Resource], errors: &mut Vec<Error>, notes: &mut Vec<Note>) -> StaticClusters {
    let mut seen = HashSet::new();
    let mut clusters = Vec::with_capacity(resources.len());
    let mut localities = Vec::new();
    for resource in resources {
        if !seen.insert(&resource.name) {
            errors.push(duplicate(resource));
        }
        match resource.convert::<cluster_pb::Cluster, _>(convert::cluster) {
            Ok((cluster, more)) => {
                if let Discovery::Eds { service_name, .. } = &cluster.model.discovery {
                    localities.push((service_name.clone(), cluster.localities));
                }
                clusters.push(Arc::new(cluster.model));
                notes.extend(more);
            }
            Err(found) => errors.extend(found),
        }
    }
    (clusters, localities)
}

fn static_listeners(raw: &Raw, errors: &mut Vec<Error>, notes: &mut Vec<Note>) -> Vec<Arc<Listener>> {
    // Also those that did not convert: an error in a cluster is not one in every route to it.
    let names: HashSet<_> = raw.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
    let clusters = Clusters { exists: &|name| names.contains(name), validate: true };
    let mut seen = HashSet::new();
    let mut listeners: Vec<Arc<Listener>> = Vec::with_capacity(raw.listeners.len());
    for resource in &raw.listeners {
        if !seen.insert(&resource.name) {
            errors.push(duplicate(resource));
        }
        let converted = resource
            .convert::<listener_pb::Listener, _>(|at, message| convert::listener(at, message, &clusters));
        match converted {
            Ok((listener, more)) => {
                errors.extend(same_address(&listener, listeners.iter().map(AsRef::as_ref)));
                listeners.push(Arc::new(listener));
                notes.extend(more);
            }
            Err(found) => errors.extend(found),
        }
    }
    listeners
}

/// The error of a bootstrap whose `local_cluster_name` is none of its clusters.
fn missing_local_cluster(rest: &DynamicMessage, clusters: &[Resource]) -> Option<Error> {
    let manager = rest.get_field_by_name("cluster_manager")?;
    let name = manager.as_message()?.get_field_by_name("local_cluster_name")?.as_str()?.to_owned();
    if name.is_empty() || clusters.iter().any(|cluster| cluster.name == name) {
        return None;
    }
    let field = "cluster_manager.local_cluster_name";
    Some(Error::invalid("bootstrap", field, format!("unknown cluster {name:?}")))
}

/// Errors of sources whose control plane cannot be reached before they have brought something: its cluster has to be in
/// the bootstrap, and not wait for endpoints itself.
fn unfit_control_planes(
    settings: &convert::Settings,
    clusters: &[Arc<culvert_model::Cluster>],
    resources: &[Resource],
) -> Vec<Error> {
    let mut errors = Vec::new();
    let check = |errors: &mut Vec<Error>, field: &str, api: &ApiSource| {
        for service in &api.services {
            let name = service.cluster.as_str();
            let field = format!("dynamic_resources.{field}");
            if !resources.iter().any(|resource| resource.name == name) {
                let reason = format!("unknown cluster {name:?}: it has to be in static_resources");
                errors.push(Error::invalid("bootstrap", &field, reason));
            }
            let waits = |cluster: &&Arc<culvert_model::Cluster>| {
                *cluster.name == *name
                    && matches!(&cluster.discovery, Discovery::Eds { source, .. } if source.file().is_none())
            };
            if clusters.iter().any(|cluster| waits(&cluster)) {
                let reason = format!("cluster {name:?} cannot be of type EDS");
                errors.push(Error::invalid("bootstrap", &field, reason));
            }
        }
    };
    if let Some(ads) = &settings.ads {
        check(&mut errors, "ads_config", ads);
    }
    for (field, source) in [("lds_config", &settings.lds), ("cds_config", &settings.cds)] {
        match source.as_ref().map(|source| &source.specifier) {
            Some(SourceSpecifier::Api(api)) => check(&mut errors, field, api),
            Some(SourceSpecifier::Ads) if settings.ads.is_none() => {
                let field = format!("dynamic_resources.{field}.ads");
                errors.push(Error::invalid("bootstrap", &field, "ads_config is required"));
            }
            _ => {}
        }
    }
    errors
}

fn duplicate(resource: &Resource) -> Error {
    let reason = format!("duplicate {}", resource.kind);
    Error::invalid(resource.kind.title(&resource.name), "name", reason)
}

/// The error of a listener that wants an address which another one has.
pub(crate) fn same_address<'a>(
    listener: &Listener,
    mut others: impl Iterator<Item = &'a Listener>,
) -> Option<Error> {
    let any = |address: &Address| matches!(address, Address::Ip(ip) if ip.port() == 0);
    let (address, other) = others.find_map(|other| {
        let theirs = || std::iter::once(&other.address).chain(&other.additional_addresses);
        let mut ours = std::iter::once(&listener.address).chain(&listener.additional_addresses);
        ours.find(|address| !any(address) && theirs().any(|their| their == *address))
            .map(|address| (address, other))
    })?;
    let reason = format!("duplicate address {address}, which listener {:?} has", other.name);
    Some(Error::invalid(Kind::Listener.title(&listener.name), "address", reason))
}

fn node_field(message: &DynamicMessage, field: &str) -> String {
    let node = message.get_field_by_name("node");
    node.as_deref()
        .and_then(Value::as_message)
        .and_then(|node| node.get_field_by_name(field)?.as_str().map(str::to_owned))
        .unwrap_or_default()
}
