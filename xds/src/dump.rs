//! `/config_dump`.

use std::time::SystemTime;

use prost::bytes::Bytes;
use prost_reflect::{DynamicMessage, Kind as FieldKind, ReflectMessage as _, SerializeOptions, Value};
use serde_json::{Map, Value as Json, json};

use crate::{
    DumpQuery, clock, decode, descriptor,
    resource::{Kind as ResourceKind, Resource},
    schema::Schema,
    store::{Entry, Failure, Held, Store},
};

const EXTENSIONS: &str = "ecds_filters";
const REDACTED: &str = "[redacted]";

/// The dump, in the order in which Envoy writes it.
pub(crate) fn config_dump(store: &Store, query: &DumpQuery) -> Json {
    let mut sections = vec![bootstrap(store), clusters(store)];
    let extensions = extensions(store);
    if extensions.contains_key(EXTENSIONS) {
        sections.push(extensions);
    }
    if query.include_eds {
        sections.push(endpoints(store));
    }
    sections.extend([listeners(store), section("ScopedRoutesConfigDump"), routes(store), secrets(store)]);
    if let Some(pattern) = &query.name_regex {
        let pattern = regex::Regex::new(pattern).ok();
        let keep = |name: &str| pattern.as_ref().is_some_and(|pattern| pattern.is_match(name));
        sections.iter_mut().for_each(|section| retain(section, &keep));
    }
    let configs = match &query.resource {
        Some(resource) => entries_of(&sections, resource),
        None => sections.into_iter().map(Json::Object).collect(),
    };
    json!({ "configs": configs })
}

fn section(name: &str) -> Map<String, Json> {
    let mut section = Map::new();
    section.insert("@type".to_owned(), format!("type.googleapis.com/envoy.admin.v3.{name}").into());
    section
}

fn bootstrap(store: &Store) -> Map<String, Json> {
    let mut section = section("BootstrapConfigDump");
    let message = descriptor::message("envoy.config.bootstrap.v3.Bootstrap");
    if let Some(bootstrap) = message.and_then(|message| show(message, store.raw.bootstrap())) {
        section.insert("bootstrap".to_owned(), bootstrap);
    }
    section.insert("last_updated".to_owned(), clock::rfc3339(store.started).into());
    section
}

fn clusters(store: &Store) -> Map<String, Json> {
    let mut section = section("ClustersConfigDump");
    version(&mut section, store, ResourceKind::Cluster);
    insert(&mut section, "static_clusters", fixed("cluster", &store.raw.clusters, store.started));
    let clusters = store.dynamic(ResourceKind::Cluster);
    let state = |held: &Option<Held>| held.as_ref().map(|held| Json::Object(state_of("cluster", held)));
    insert(
        &mut section,
        "dynamic_active_clusters",
        clusters.iter().filter_map(|entry| {
            let mut shown = entry.active.as_ref().map(|held| state_of("cluster", held));
            if let Some(failure) = &entry.failure {
                shown.get_or_insert_default().insert("error_state".to_owned(), failure_of(failure));
            }
            shown.map(Json::Object)
        }),
    );
    insert(
        &mut section,
        "dynamic_warming_clusters",
        clusters.iter().filter_map(|entry| state(&entry.warming)),
    );
    section
}

fn listeners(store: &Store) -> Map<String, Json> {
    let mut section = section("ListenersConfigDump");
    version(&mut section, store, ResourceKind::Listener);
    insert(&mut section, "static_listeners", fixed("listener", &store.raw.listeners, store.started));
    insert(
        &mut section,
        "dynamic_listeners",
        store.dynamic(ResourceKind::Listener).iter().map(|entry| {
            let mut shown = Map::new();
            shown.insert("name".to_owned(), entry.name().into());
            for (key, held) in [("active_state", &entry.active), ("warming_state", &entry.warming)] {
                if let Some(held) = held {
                    shown.insert(key.to_owned(), Json::Object(state_of("listener", held)));
                }
            }
            if let Some(failure) = &entry.failure {
                shown.insert("error_state".to_owned(), failure_of(failure));
            }
            Json::Object(shown)
        }),
    );
    section
}

fn routes(store: &Store) -> Map<String, Json> {
    let mut section = section("RoutesConfigDump");
    let inline =
        |resource: &Resource| resource.message().map(|listener| inline_routes(&listener)).unwrap_or_default();
    let listeners = store.dynamic(ResourceKind::Listener);
    let active = listeners.iter().filter_map(|entry| entry.active.as_ref());
    let of_static = store.raw.listeners.iter().flat_map(|listener| {
        inline(listener).into_iter().map(|routes| (routes, store.started)).collect::<Vec<_>>()
    });
    let of_dynamic = active.flat_map(|held| {
        inline(&held.resource).into_iter().map(|routes| (routes, held.updated)).collect::<Vec<_>>()
    });
    insert(
        &mut section,
        "static_route_configs",
        of_static.chain(of_dynamic).map(|(mut routes, updated)| {
            redact(&mut routes);
            let shown = with_type(&routes, to_json(&routes));
            json!({ "route_config": shown, "last_updated": clock::rfc3339(updated) })
        }),
    );
    insert(
        &mut section,
        "dynamic_route_configs",
        store
            .dynamic(ResourceKind::RouteConfiguration)
            .into_iter()
            .filter_map(|entry| single("route_config", entry)),
    );
    section
}

fn endpoints(store: &Store) -> Map<String, Json> {
    let mut section = section("EndpointsConfigDump");
    let assignments = store.raw.clusters.iter().filter_map(|cluster| {
        let cluster = cluster.message()?;
        let assignment = cluster.get_field_by_name("load_assignment")?.as_message()?.clone();
        let set = cluster.has_field_by_name("load_assignment");
        let shown = with_type(&assignment, to_json(&assignment));
        set.then(|| json!({ "endpoint_config": shown, "last_updated": clock::rfc3339(store.started) }))
    });
    insert(&mut section, "static_endpoint_configs", assignments);
    let dynamic = store.dynamic(ResourceKind::LoadAssignment);
    let dynamic = dynamic.into_iter().filter_map(|entry| single("endpoint_config", entry));
    insert(&mut section, "dynamic_endpoint_configs", dynamic);
    section
}

fn extensions(store: &Store) -> Map<String, Json> {
    let mut section = section("EcdsConfigDump");
    let entries = store.dynamic(ResourceKind::ExtensionConfig);
    let entries = entries.into_iter().filter_map(|entry| single("ecds_filter", entry));
    insert(&mut section, EXTENSIONS, entries);
    section
}

fn secrets(store: &Store) -> Map<String, Json> {
    let mut section = section("SecretsConfigDump");
    let entries = store.dynamic(ResourceKind::Secret);
    let active = entries.iter().filter_map(|entry| {
        let mut shown = entry.active.as_ref().map(|held| state_of("secret", held));
        if let Some(failure) = &entry.failure {
            shown.get_or_insert_default().insert("error_state".to_owned(), failure_of(failure));
        }
        shown.as_mut()?.insert("name".to_owned(), entry.name().into());
        shown.map(Json::Object)
    });
    insert(&mut section, "dynamic_active_secrets", active);
    let waiting = entries.iter().filter(|entry| entry.active.is_none() && entry.failure.is_none());
    insert(
        &mut section,
        "dynamic_warming_secrets",
        waiting.map(|entry| json!({ "name": entry.name(), "version_info": "uninitialized" })),
    );
    section
}

/// `version_info` of a source, if it has one.
fn version(section: &mut Map<String, Json>, store: &Store, kind: ResourceKind) {
    if let Some(version) = store.version(kind) {
        section.insert("version_info".to_owned(), version.into());
    }
}

/// A list, left out when it is empty.
fn insert(section: &mut Map<String, Json>, key: &str, values: impl Iterator<Item = Json>) {
    let values: Vec<_> = values.collect();
    if !values.is_empty() {
        section.insert(key.to_owned(), Json::Array(values));
    }
}

fn fixed(key: &str, resources: &[Resource], started: SystemTime) -> impl Iterator<Item = Json> {
    resources.iter().filter_map(move |resource| {
        let mut entry = Map::new();
        entry.insert(key.to_owned(), show_resource(resource)?);
        entry.insert("last_updated".to_owned(), clock::rfc3339(started).into());
        Some(Json::Object(entry))
    })
}

/// A resource of which there is one version.
fn single(key: &str, entry: &Entry) -> Option<Json> {
    let mut shown = entry.active.as_ref().map(|held| state_of(key, held));
    if let Some(failure) = &entry.failure {
        shown.get_or_insert_default().insert("error_state".to_owned(), failure_of(failure));
    }
    shown.map(Json::Object)
}

fn state_of(key: &str, held: &Held) -> Map<String, Json> {
    let mut state = Map::new();
    if !held.version.is_empty() {
        state.insert("version_info".to_owned(), (&*held.version).into());
    }
    if let Some(resource) = show_resource(&held.resource) {
        state.insert(key.to_owned(), resource);
    }
    state.insert("last_updated".to_owned(), clock::rfc3339(held.updated).into());
    state
}

fn failure_of(failure: &Failure) -> Json {
    let mut state = Map::new();
    if let Some(resource) = show_resource(&failure.resource) {
        state.insert("failed_configuration".to_owned(), resource);
    }
    state.insert("last_update_attempt".to_owned(), clock::rfc3339(failure.attempted).into());
    state.insert("details".to_owned(), failure.details.clone().into());
    if !failure.version.is_empty() {
        state.insert("version_info".to_owned(), (&*failure.version).into());
    }
    Json::Object(state)
}

fn show_resource(resource: &Resource) -> Option<Json> {
    let message = resource.kind.descriptor()?;
    let json = show(message.clone(), resource.bytes.clone())?;
    Some(with_type(&DynamicMessage::new(message), json))
}

fn show(descriptor: prost_reflect::MessageDescriptor, bytes: Bytes) -> Option<Json> {
    let read = |descriptor| {
        let mut message = DynamicMessage::decode(descriptor, bytes.clone()).ok()?;
        redact(&mut message);
        serialize(&message)
    };
    // What was accepted without effect may hold an extension that no table knows.
    read(descriptor.clone())
        .or_else(|| read(descriptor::everything().get_message_by_name(descriptor.full_name())?))
}

/// `@type` first.
fn with_type(message: &DynamicMessage, json: Json) -> Json {
    let mut typed = Map::new();
    typed.insert(
        "@type".to_owned(),
        format!("type.googleapis.com/{}", message.descriptor().full_name()).into(),
    );
    if let Json::Object(fields) = json {
        typed.extend(fields);
    }
    Json::Object(typed)
}

fn to_json(message: &DynamicMessage) -> Json {
    serialize(message).unwrap_or(Json::Null)
}

/// `None` for an `Any` of a type that is not among the descriptors that the message's own one comes with.
fn serialize(message: &DynamicMessage) -> Option<Json> {
    let options = SerializeOptions::new().use_proto_field_name(true);
    message.serialize_with_options(serde_json::value::Serializer, &options).ok()
}

/// Overwrites fields marked as sensitive, at any depth.
fn redact(message: &mut DynamicMessage) {
    let descriptor = message.descriptor();
    if descriptor.full_name() == "google.protobuf.Any" {
        if let Some(mut inner) = decode::open(message) {
            redact(&mut inner);
            message.set_field_by_number(2, Value::Bytes(decode::canonical(&inner).into()));
        }
        return;
    }
    for field in &Schema::of(&descriptor).fields {
        if !message.has_field(&field.descriptor) {
            continue;
        }
        let value = message.get_field_mut(&field.descriptor);
        match field.sensitive {
            true => overwrite(value, &field.descriptor.kind()),
            false => each_message(value, redact),
        }
    }
}

/// Hides a value and everything in it.
fn overwrite(value: &mut Value, kind: &FieldKind) {
    match value {
        Value::String(text) => REDACTED.clone_into(text),
        Value::Bytes(bytes) => *bytes = Bytes::from_static(REDACTED.as_bytes()),
        Value::List(values) => values.iter_mut().for_each(|value| overwrite(value, kind)),
        Value::Map(_) | Value::Message(_) => each_message(value, |message| {
            let fields: Vec<_> = message.fields().map(|(field, _)| field).collect();
            for field in fields {
                overwrite(message.get_field_mut(&field), &field.kind());
            }
        }),
        other => *other = Value::default_value(kind),
    }
}

fn each_message(value: &mut Value, visit: impl Fn(&mut DynamicMessage)) {
    match value {
        Value::Message(message) => visit(message),
        Value::List(values) => values.iter_mut().filter_map(Value::as_message_mut).for_each(visit),
        Value::Map(map) => map.values_mut().filter_map(Value::as_message_mut).for_each(visit),
        _ => {}
    }
}

/// Route configurations written into a listener.
fn inline_routes(message: &DynamicMessage) -> Vec<DynamicMessage> {
    let descriptor = message.descriptor();
    match descriptor.full_name() {
        "google.protobuf.Any" => decode::open(message).map(|inner| inline_routes(&inner)).unwrap_or_default(),
        "envoy.config.route.v3.RouteConfiguration" => vec![message.clone()],
        "envoy.config.listener.v3.Listener"
        | "envoy.config.listener.v3.FilterChain"
        | "envoy.config.listener.v3.Filter"
        | "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
            let mut found = Vec::new();
            for (_, value) in message.fields() {
                match value {
                    Value::Message(inner) => found.extend(inline_routes(inner)),
                    Value::List(values) => {
                        found.extend(values.iter().filter_map(Value::as_message).flat_map(inline_routes));
                    }
                    _ => {}
                }
            }
            found
        }
        _ => Vec::new(),
    }
}

/// Drops entries whose name `keep` refuses. The bootstrap has no name.
fn retain(section: &mut Map<String, Json>, keep: &impl Fn(&str) -> bool) {
    for value in section.values_mut() {
        if let Json::Array(entries) = value {
            entries.retain(|entry| name_of(entry).is_none_or(keep));
        }
    }
    section.retain(|_, value| !matches!(value, Json::Array(entries) if entries.is_empty()));
}

fn name_of(entry: &Json) -> Option<&str> {
    let inner = ["cluster", "listener", "route_config", "ecds_filter"]
        .iter()
        .find_map(|key| entry.get(key)?.get("name")?.as_str());
    let endpoint = || entry.get("endpoint_config")?.get("cluster_name")?.as_str();
    entry.get("name").and_then(Json::as_str).or(inner).or_else(endpoint)
}

/// The entries of one repeated field, each with its type.
fn entries_of(sections: &[Map<String, Json>], resource: &str) -> Vec<Json> {
    let kind = match resource {
        "static_clusters" => "ClustersConfigDump.StaticCluster",
        "dynamic_active_clusters" | "dynamic_warming_clusters" => "ClustersConfigDump.DynamicCluster",
        "static_listeners" => "ListenersConfigDump.StaticListener",
        "dynamic_listeners" => "ListenersConfigDump.DynamicListener",
        "static_route_configs" => "RoutesConfigDump.StaticRouteConfig",
        "dynamic_route_configs" => "RoutesConfigDump.DynamicRouteConfig",
        "static_endpoint_configs" => "EndpointsConfigDump.StaticEndpointConfig",
        "dynamic_endpoint_configs" => "EndpointsConfigDump.DynamicEndpointConfig",
        EXTENSIONS => "EcdsConfigDump.EcdsFilterConfig",
        "dynamic_active_secrets" | "dynamic_warming_secrets" => "SecretsConfigDump.DynamicSecret",
        _ => return Vec::new(),
    };
    let entries = sections.iter().filter_map(|section| section.get(resource)?.as_array()).flatten();
    let typed = entries.map(|entry| {
        let mut typed = section(kind);
        typed.extend(entry.as_object().cloned().unwrap_or_default());
        Json::Object(typed)
    });
    typed.collect()
}
