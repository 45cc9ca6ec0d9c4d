//! `/config_dump`: picks from the whole configuration what `resource`, `mask` and `name_regex` ask for.

use std::collections::BTreeMap;

use hyper::StatusCode;
use regex::Regex;
use serde_json::{Map, Value, json};

use crate::control::admin::backend::Backend;
use crate::control::admin::query::Query;
use crate::control::admin::reply::Reply;

/// The lists of resources, and the type of their members (`admin.v3`).
const RESOURCES: [(&str, &str); 16] = [
    ("dynamic_active_clusters", "ClustersConfigDump.DynamicCluster"),
    ("dynamic_active_secrets", "SecretsConfigDump.DynamicSecret"),
    ("dynamic_endpoint_configs", "EndpointsConfigDump.DynamicEndpointConfig"),
    ("dynamic_listeners", "ListenersConfigDump.DynamicListener"),
    ("dynamic_route_configs", "RoutesConfigDump.DynamicRouteConfig"),
    ("dynamic_scoped_route_configs", "ScopedRoutesConfigDump.DynamicScopedRouteConfigs"),
    ("dynamic_warming_clusters", "ClustersConfigDump.DynamicCluster"),
    ("dynamic_warming_secrets", "SecretsConfigDump.DynamicSecret"),
    ("ecds_filters", "EcdsConfigDump.EcdsFilterConfig"),
    ("inline_scoped_route_configs", "ScopedRoutesConfigDump.InlineScopedRouteConfigs"),
    ("static_clusters", "ClustersConfigDump.StaticCluster"),
    ("static_endpoint_configs", "EndpointsConfigDump.StaticEndpointConfig"),
    ("static_listeners", "ListenersConfigDump.StaticListener"),
    ("static_route_configs", "RoutesConfigDump.StaticRouteConfig"),
    ("static_scoped_route_configs", "ScopedRoutesConfigDump.InlineScopedRouteConfigs"),
    ("static_secrets", "SecretsConfigDump.StaticSecret"),
];

/// Where a resource says its name; the second one is that of a load assignment.
const NAME_FIELDS: [&str; 2] = ["name", "cluster_name"];

/// `/config_dump`
pub(super) fn config_dump(query: &Query, backend: &dyn Backend) -> Reply {
    let dump = || {
        let names = match query.non_empty("name_regex") {
            None => None,
            Some(pattern) => Some(name_regex(pattern)?),
        };
        let include_endpoints =
            query.has("include_eds") || query.non_empty("resource").is_some_and(is_endpoints);
        let mut configs = backend.config_dump(include_endpoints);
        if let Some(names) = &names {
            configs.iter_mut().for_each(|config| keep_named(config, names));
        }
        if let Some(resource) = query.non_empty("resource") {
            configs = only_resource(configs, resource)?;
        }
        if let Some(mask) = query.non_empty("mask") {
            configs = masked(configs, mask, query.non_empty("resource").is_some())?;
        }
        Ok(configs)
    };
    match dump() {
        Ok(configs) if configs.is_empty() => Reply::json(&json!({})),
        Ok(configs) => Reply::json(&json!({ "configs": configs })),
        Err(refused) => refused,
    }
}

fn is_endpoints(resource: &str) -> bool {
    resource.ends_with("_endpoint_configs")
}

/// The whole name has to match.
fn name_regex(pattern: &str) -> Result<Regex, Reply> {
    // Compiled on its own first, so that it cannot close the group.
    let parsed = Regex::new(pattern).and_then(|_| Regex::new(&format!("^(?:{pattern})$")));
    parsed.map_err(|error| {
        let message = error.to_string();
        let reason = message.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        Reply::bad_request(format!(
            "INVALID_ARGUMENT: Error while parsing name_regex from {pattern}: {reason}"
        ))
    })
}

/// Takes resources with other names out of every list.
fn keep_named(config: &mut Value, names: &Regex) {
    let Some(fields) = config.as_object_mut() else { return };
    for (resource, _) in RESOURCES {
        if let Some(list) = fields.get_mut(resource).and_then(Value::as_array_mut) {
            list.retain(|member| name_of(member).is_some_and(|name| names.is_match(name)));
        }
    }
}

/// The name of a member of a resource list: its own, or that of the resource inside it.
fn name_of(member: &Value) -> Option<&str> {
    let own = |value: &Value| NAME_FIELDS.iter().find(|field| value[**field].is_string()).copied();
    if let Some(field) = own(member) {
        return member[field].as_str();
    }
    let resource = member.as_object()?.values().find(|value| own(value).is_some())?;
    resource[own(resource)?].as_str()
}

fn only_resource(configs: Vec<Value>, resource: &str) -> Result<Vec<Value>, Reply> {
    let not_found = || Reply::status(StatusCode::NOT_FOUND, format!("{resource} not found in config dump"));
    let Some((_, type_name)) = RESOURCES.iter().find(|(name, _)| *name == resource) else {
        if configs.iter().any(|config| config.get(resource).is_some()) {
            let hint =
                format!("{resource} is not a repeated field. Use ?mask={resource} to get only this field");
            return Err(Reply::bad_request(hint));
        }
        return Err(not_found());
    };
    let lists =
        configs.into_iter().filter_map(|mut config| match config.get_mut(resource).map(Value::take) {
            Some(Value::Array(list)) => Some(list),
            _ => None,
        });
    let typed = lists.flatten().map(|member| {
        let mut fields = Map::new();
        fields.insert("@type".to_owned(), json!(format!("type.googleapis.com/envoy.admin.v3.{type_name}")));
        if let Value::Object(member) = member {
            fields.extend(member);
        }
        Value::Object(fields)
    });
    Ok(typed.collect())
}

/// A field mask as a tree: a leaf keeps everything below it.
#[derive(Default)]
struct Mask(BTreeMap<String, Self>);

impl Mask {
    fn parse(text: &str) -> Self {
        let mut root = Self::default();
        for path in text.split(',').map(str::trim).filter(|path| !path.is_empty()) {
            let mut node = &mut root;
            for field in path.split('.') {
                node = node.0.entry(field.to_owned()).or_default();
            }
        }
        root
    }

    /// Removes what the mask does not name; tells whether anything it names was there.
    fn apply(&self, value: &mut Value) -> bool {
        if self.0.is_empty() {
            return true;
        }
        match value {
            Value::Array(list) => {
                // Every member has to be cut, not only those up to the first that has the field.
                let kept: Vec<bool> = list.iter_mut().map(|member| self.apply(member)).collect();
                kept.contains(&true)
            }
            Value::Object(fields) => {
                let mut any = false;
                fields.retain(|name, field| {
                    if name == "@type" {
                        return true;
                    }
                    let kept = self.0.get(name).is_some_and(|mask| mask.apply(field));
                    any |= kept;
                    kept
                });
                any
            }
            _ => false,
        }
    }
}

fn masked(configs: Vec<Value>, text: &str, of_resource: bool) -> Result<Vec<Value>, Reply> {
    let mask = Mask::parse(text);
    let empty = configs.is_empty();
    let kept: Vec<Value> = configs
        .into_iter()
        .filter_map(|mut config| (mask.apply(&mut config) || of_resource).then_some(config))
        .collect();
    if kept.is_empty() && !empty {
        let message = format!("FieldMask {text} could not be successfully applied to any configs.");
        return Err(Reply::bad_request(message));
    }
    Ok(kept)
}
