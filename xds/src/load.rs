//! The bootstrap: from a file and a command line to the model.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use culvert_model::{ApiSource, Bootstrap, Config, Discovery, Listener, SourceSpecifier};
use envoy_types::pb::envoy::config::{
    bootstrap::v3 as pb, cluster::v3 as cluster_pb, listener::v3 as listener_pb,
};
use prost::{Message as _, bytes::Bytes, encoding};
use prost_reflect::{DynamicMessage, Value};

use crate::{
    Error, Errors, Note,
    addresses::{self, Addresses},
    at::Sink,
    convert::{self, Clusters},
    decode::{self, Syntax, UnknownFields},
    descriptor,
    document::{Document, Part, Unreadable},
    remote,
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
    /// `--reject-unknown-dynamic-fields`.
    pub(crate) reject_unknown_dynamic_fields: bool,
}

impl Loaded {
    /// `node`, after the command line, as control planes are told it: with what Culvert says about itself.
    #[must_use]
    pub fn node(&self) -> envoy_types::pb::envoy::config::core::v3::Node {
        remote::of_bootstrap(&self.raw.rest)
    }
}

/// A bootstrap as it came.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    /// All but the resources.
    rest: Bytes,
    pub(crate) listeners: Vec<Resource>,
    pub(crate) clusters: Vec<Resource>,
}

impl Raw {
    /// The whole bootstrap on the wire.
    pub(crate) fn bootstrap(&self) -> Bytes {
        let mut bytes = self.rest.to_vec();
        for resource in self.listeners.iter().chain(&self.clusters) {
            // Messages merge: each resource comes in a `static_resources` that holds nothing else.
            let number = if resource.kind == Kind::Listener { 1 } else { 2 };
            let mut resources = Vec::with_capacity(resource.bytes.len() + 8);
            encoding::bytes::encode(number, &resource.bytes, &mut resources);
            encoding::bytes::encode(2, &resources, &mut bytes);
        }
        bytes.into()
    }
}

/// Reads, checks and converts a bootstrap.
///
/// # Errors
/// Everything that is wrong with it: unreadable or malformed text, fields that do not exist, violated constraints and
/// features that are not supported.
pub fn load_bootstrap(options: &LoadOptions) -> Result<Loaded, Errors> {
    let Examined { loaded, errors, notes, .. } = examine(options);
    match loaded {
        Some(loaded) if errors.is_empty() => Ok(Loaded { notes, ..loaded }),
        _ => Err(errors.into()),
    }
}

/// All there is to say about a bootstrap.
pub(crate) struct Examined {
    /// `None` when it cannot be served.
    loaded: Option<Loaded>,
    /// Why not.
    pub(crate) errors: Vec<Error>,
    pub(crate) notes: Vec<Note>,
    /// Type and name of the resources in it.
    pub(crate) resources: Vec<(Kind, String)>,
}

pub(crate) fn examine(options: &LoadOptions) -> Examined {
    let mut reading = Reading::new(options);
    let loaded = inputs(options)
        .and_then(|inputs| reading.load(&inputs, options))
        .map_err(|error| reading.errors.push(error));
    let Reading { errors, notes, resources, .. } = reading;
    Examined { loaded: loaded.ok().flatten(), errors, notes, resources }
}

/// A file or an argument that holds a bootstrap, or a part of one.
struct Input {
    contents: Contents,
    /// What errors in it begin with.
    prefix: &'static str,
}

enum Contents {
    Text(String, Syntax),
    Wire(Vec<u8>),
}

/// What the command line names, in the order in which it is merged.
fn inputs(options: &LoadOptions) -> Result<Vec<Input>, Error> {
    if options.config_path.is_none() && options.config_yaml.is_none() {
        return Err(bootstrap_error("at least one of --config-path and --config-yaml has to be given"));
    }
    let mut inputs = Vec::new();
    if let Some(path) = &options.config_path {
        inputs.push(Input { contents: read_file(path)?, prefix: "" });
    }
    if let Some(text) = &options.config_yaml {
        let contents = Contents::Text(text.clone(), Syntax::Yaml);
        inputs.push(Input { contents, prefix: "--config-yaml: " });
    }
    Ok(inputs)
}

/// `.pb` holds the wire format, `.json` JSON, anything else YAML.
fn read_file(path: &Path) -> Result<Contents, Error> {
    let in_file = |reason: String| bootstrap_error(format!("{}: {reason}", path.display()));
    let contents = fs::read(path).map_err(|e| in_file(e.to_string()))?;
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if extension == "pb" {
        return Ok(Contents::Wire(contents));
    }
    let syntax = if extension == "json" { Syntax::Json } else { Syntax::Yaml };
    let text = String::from_utf8(contents).map_err(|_| in_file("not UTF-8".to_owned()))?;
    Ok(Contents::Text(text, syntax))
}

/// A resource that was not read yet, and what errors in it begin with.
type Unread<'a> = (Part<'a>, &'static str);

/// Static resources of one type.
struct Resources<T> {
    models: Vec<Arc<T>>,
    resources: Vec<Resource>,
    /// Also of those that did not convert: an error in a cluster is not one in every route to it.
    names: HashSet<String>,
}

impl<T> Default for Resources<T> {
    fn default() -> Self {
        Self { models: Vec::new(), resources: Vec::new(), names: HashSet::new() }
    }
}

/// What reading has come to.
struct Reading {
    unknown: UnknownFields,
    errors: Vec<Error>,
    notes: Vec<Note>,
    /// Type and name of each resource, in their order.
    resources: Vec<(Kind, String)>,
}

impl Reading {
    fn new(options: &LoadOptions) -> Self {
        let unknown = match options.allow_unknown_static_fields {
            true => UnknownFields::Note,
            false => UnknownFields::Refuse,
        };
        Self { unknown, errors: Vec::new(), notes: Vec::new(), resources: Vec::new() }
    }

    /// The bootstrap; `None` when something is wrong with it.
    fn load(&mut self, inputs: &[Input], options: &LoadOptions) -> Result<Option<Loaded>, Error> {
        let (rest, parts) = self.split(inputs, options)?;
        let settings = self.settings(&rest);
        let (listeners, clusters) = parts.into_iter().partition(|(part, _)| part.kind == Kind::Listener);
        let clusters = self.clusters(clusters);
        let listeners = self.listeners(listeners, &clusters.names);
        self.errors.extend(missing_local_cluster(&rest, &clusters.names));
        if let Some(settings) = &settings {
            self.errors.extend(unfit_control_planes(settings, &clusters.models, &clusters.names));
        }
        let Some(settings) = settings.filter(|_| self.errors.is_empty()) else { return Ok(None) };

        let node = |field| node_field(&rest, field);
        let bootstrap = Bootstrap {
            node_id: node("id"),
            node_cluster: node("cluster"),
            admin: settings.admin,
            config: Config {
                listeners: listeners.models.into(),
                clusters: clusters.models.into(),
                secrets: settings.secrets,
                ..Config::default()
            },
            ads: settings.ads.map(Arc::new),
            runtime: settings.runtime,
            stats: settings.stats,
            lds: settings.lds,
            cds: settings.cds,
            capture: settings.capture,
            max_downstream_connections: settings.max_downstream_connections,
            resolver: Arc::new(settings.resolver),
            locality: settings.locality,
            local_cluster: settings.local_cluster,
        };
        let raw = Raw {
            rest: decode::canonical(&rest).into(),
            listeners: listeners.resources,
            clusters: clusters.resources,
        };
        Ok(Some(Loaded {
            bootstrap,
            notes: Vec::new(),
            raw,
            reject_unknown_dynamic_fields: options.reject_unknown_dynamic_fields,
        }))
    }

    /// The bootstrap without its resources, with the command line applied, and these.
    fn split<'a>(
        &mut self,
        inputs: &'a [Input],
        options: &LoadOptions,
    ) -> Result<(DynamicMessage, Vec<Unread<'a>>), Error> {
        let Some(descriptor) = descriptor::message(BOOTSTRAP) else {
            return Err(bootstrap_error("no descriptor"));
        };
        let mut parts = Vec::new();
        let mut bytes = Vec::new();
        for input in inputs {
            let sink = Sink::new("bootstrap");
            let root = sink.root();
            let rest = match &input.contents {
                Contents::Text(text, syntax) => match Document::parse(text, *syntax) {
                    Ok(document) => {
                        parts.extend(document.parts.into_iter().map(|part| (part, input.prefix)));
                        decode::decode(&root, &descriptor, &document.rest, self.unknown)
                    }
                    Err(reason) => root.error(reason),
                },
                Contents::Wire(wire) => {
                    let mut message = decode::from_wire(&root, &descriptor, wire, self.unknown);
                    let taken = message.as_mut().map(Part::take).unwrap_or_default();
                    parts.extend(taken.into_iter().map(|part| (part, input.prefix)));
                    message
                }
            };
            let (errors, notes) = sink.into_parts();
            self.notes.extend(notes);
            self.fail(errors, input.prefix);
            // Bytes of two messages, one after the other, are the bytes of the two merged.
            bytes.extend(rest.as_ref().map(decode::canonical).unwrap_or_default());
        }
        let Ok(mut rest) = DynamicMessage::decode(descriptor, bytes.as_slice()) else {
            return Err(bootstrap_error("cannot be merged"));
        };
        for (field, value) in [("id", &options.node_id), ("cluster", &options.node_cluster)] {
            if let (Some(value), Some(Value::Message(node))) = (value, rest.get_field_by_name_mut("node")) {
                node.set_field_by_name(field, Value::String(value.clone()));
            }
        }
        Ok((rest, parts))
    }

    fn settings(&mut self, rest: &DynamicMessage) -> Option<convert::Settings> {
        let sink = Sink::new("bootstrap");
        let root = sink.root();
        walk::walk(&root, rest);
        let typed = pb::Bootstrap::decode(decode::canonical(rest).as_slice());
        let settings = match typed {
            _ if sink.has_errors() => None,
            Ok(typed) => convert::settings(&root, &typed),
            Err(e) => root.error(e.to_string()),
        };
        let (errors, notes) = sink.into_parts();
        self.errors.extend(errors);
        self.notes.extend(notes);
        settings
    }

    fn clusters(&mut self, unread: Vec<Unread<'_>>) -> Resources<culvert_model::Cluster> {
        let mut read = Resources::default();
        for unread in unread {
            let Some((resource, message)) = self.read(unread, &mut read.names) else { continue };
            match resource.convert_message::<cluster_pb::Cluster, _>(Some(&message), convert::cluster) {
                Ok((cluster, notes)) => {
                    read.models.push(Arc::new(cluster));
                    self.notes.extend(notes);
                }
                Err(found) => self.errors.extend(found),
            }
            read.resources.push(resource);
        }
        read
    }

    fn listeners(&mut self, unread: Vec<Unread<'_>>, names: &HashSet<String>) -> Resources<Listener> {
        let clusters = Clusters { exists: &|name| names.contains(name), validate: true };
        let mut read = Resources::default();
        let mut addresses = Addresses::default();
        for unread in unread {
            let Some((resource, message)) = self.read(unread, &mut read.names) else { continue };
            let converted = resource
                .convert_message::<listener_pb::Listener, _>(Some(&message), |at, message| {
                    convert::listener(at, message, &clusters)
                });
            match converted {
                Ok((listener, notes)) => {
                    let index = read.models.len();
                    if let Some((address, other)) = addresses.taken(index, &listener) {
                        let other: &Arc<Listener> = &read.models[other];
                        self.errors.push(addresses::duplicate(&listener, address, &other.name));
                    }
                    addresses.add(index, &listener);
                    read.models.push(Arc::new(listener));
                    self.notes.extend(notes);
                }
                Err(found) => self.errors.extend(found),
            }
            read.resources.push(resource);
        }
        read
    }

    /// The next resource; `None` when it could not be read.
    fn read(
        &mut self,
        (part, prefix): Unread<'_>,
        names: &mut HashSet<String>,
    ) -> Option<(Resource, DynamicMessage)> {
        let kind = part.kind;
        match part.read(self.unknown, &mut self.notes) {
            Ok((resource, message)) => {
                self.resources.push((kind, resource.name.clone()));
                if !names.insert(resource.name.clone()) {
                    self.errors.push(duplicate(&resource));
                }
                Some((resource, message))
            }
            Err(Unreadable { name, errors }) => {
                self.resources.push((kind, name.clone()));
                names.insert(name);
                self.fail(errors, prefix);
                None
            }
        }
    }

    fn fail(&mut self, errors: Vec<Error>, prefix: &str) {
        let prefixed = |e: Error| Error { resource: format!("{prefix}{}", e.resource), ..e };
        self.errors.extend(errors.into_iter().map(prefixed));
    }
}

fn bootstrap_error(reason: impl Into<String>) -> Error {
    Error::invalid("bootstrap", "", reason)
}

/// The error of a bootstrap whose `local_cluster_name` is none of its clusters.
fn missing_local_cluster(rest: &DynamicMessage, clusters: &HashSet<String>) -> Option<Error> {
    let manager = rest.get_field_by_name("cluster_manager")?;
    let name = manager.as_message()?.get_field_by_name("local_cluster_name")?.as_str()?.to_owned();
    if name.is_empty() || clusters.contains(&name) {
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
    names: &HashSet<String>,
) -> Vec<Error> {
    let mut errors = Vec::new();
    let check = |errors: &mut Vec<Error>, field: &str, api: &ApiSource| {
        for service in &api.services {
            let name = service.cluster.as_str();
            let field = format!("dynamic_resources.{field}");
            if !names.contains(name) {
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

fn node_field(message: &DynamicMessage, field: &str) -> String {
    let node = message.get_field_by_name("node");
    node.as_deref()
        .and_then(Value::as_message)
        .and_then(|node| node.get_field_by_name(field)?.as_str().map(str::to_owned))
        .unwrap_or_default()
}
