//! Accepting a field is a promise that it takes effect: whatever a table calls used must be able to change the model.
//!
//! The samples are resources that use what is supported. Field after field of every message in them is taken away, or
//! given another value, and what the converters make of it compared with what they made before. A field that never
//! made a difference, anywhere, is ignored.

mod variants;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use prost_reflect::{DynamicMessage, ReflectMessage as _};

use super::{Promise, promises, table};
use crate::{
    LoadOptions,
    at::Sink,
    convert::Clusters,
    decode::{self, Syntax, UnknownFields},
    descriptor, load_bootstrap,
    resource::{Kind, Resource},
    store::Value,
};

/// Files with resources, one after the other, each with its type.
const SAMPLES: [&str; 9] =
    ["bootstrap", "clusters", "filters", "listeners", "http", "routes", "tls", "network", "others"];

const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";

/// Fields that have an effect no change of them can show.
const EXEMPT: [(Place, &str); 25] = [
    (("envoy.extensions.filters.http.basic_auth.v3.BasicAuth", "users"), USERS),
    (("envoy.extensions.filters.http.basic_auth.v3.BasicAuthPerRoute", "users"), USERS),
    (("envoy.config.route.v3.FilterConfig", "is_optional"), "without it what is not supported is refused"),
    (("envoy.extensions.filters.http.health_check.v3.HealthCheck", "pass_through_mode"), ONE_VALUE),
    (("envoy.extensions.filters.common.set_filter_state.v3.FilterStateValue", "factory_key"), ONE_VALUE),
    (("envoy.config.bootstrap.v3.Bootstrap", "default_regex_engine"), ONE_VALUE),
    (("envoy.config.core.v3.ApiConfigSource", "transport_api_version"), ONE_VALUE),
    (("envoy.config.core.v3.ConfigSource", "resource_api_version"), "any value means V3, as in Envoy"),
    (("envoy.config.core.v3.SocketOption", "state"), ONE_VALUE),
    (
        ("envoy.extensions.access_loggers.grpc.v3.CommonGrpcAccessLogConfig", "transport_api_version"),
        ONE_VALUE,
    ),
    (
        (
            "envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig",
            "locality_weighted_lb_config",
        ),
        ONE_VALUE,
    ),
    (("envoy.config.ratelimit.v3.RateLimitServiceConfig", "transport_api_version"), ONE_VALUE),
    (("envoy.config.trace.v3.ZipkinConfig", "collector_endpoint_version"), ONE_VALUE),
    (
        ("envoy.extensions.filters.http.jwt_authn.v3.JwtProvider", "local_jwks"),
        "a set of keys with anything behind it is none",
    ),
    (("envoy.extensions.filters.http.ext_authz.v3.ExtAuthz", "transport_api_version"), ONE_VALUE),
    (("envoy.type.matcher.v3.RegexMatcher", "google_re2"), ONE_VALUE),
    (("xds.type.matcher.v3.RegexMatcher", "google_re2"), ONE_VALUE),
    (
        ("envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig", "formatters"),
        "the operators of those that are supported are always there",
    ),
    (
        ("envoy.config.core.v3.SubstitutionFormatString", "formatters"),
        "the operators of those that are supported are always there",
    ),
    (("envoy.config.cluster.v3.Cluster.CustomClusterType", "name"), LABEL),
    (("envoy.config.overload.v3.ResourceMonitor", "name"), LABEL),
    (("xds.core.v3.TypedExtensionConfig", "name"), LABEL),
    (("envoy.config.endpoint.v3.ClusterLoadAssignment", "cluster_name"), NAME),
    (("envoy.service.runtime.v3.Runtime", "name"), NAME),
    (("envoy.config.core.v3.TypedExtensionConfig", "name"), LABEL),
];

const ONE_VALUE: &str = "any other value is refused";
const USERS: &str =
    "text that is not made of names and hashes is refused; the filter's tests have other users";
const LABEL: &str = "the type of the extension says which one it is";
const NAME: &str = "by it the resource is found; the model keeps it outside";

/// Message and field.
type Place = (&'static str, &'static str);

#[test]
fn every_field_in_use_changes_the_model() {
    let mut missing: BTreeSet<Place> = promises()
        .iter()
        .filter(|promise| promise.promise == Promise::Used)
        .map(|promise| (promise.message, promise.field))
        .filter(|place| !holds_nothing_used(place) && EXEMPT.iter().all(|(exempt, _)| exempt != place))
        .collect();
    let mut refused: BTreeMap<Place, String> = BTreeMap::new();
    let mut report = Vec::new();
    for file in SAMPLES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/support/effect/{file}.yaml"));
        for (index, sample) in documents(&fs::read_to_string(path).unwrap()).iter().enumerate() {
            let model = match model(sample) {
                Ok(model) => model,
                Err(errors) => {
                    report.push(format!("{file}.yaml, document {index}: {errors}"));
                    continue;
                }
            };
            let name = sample.descriptor().full_name().to_owned();
            let table = table(&name).unwrap_or_else(|| panic!("no table for {name}"));
            variants::of(sample, table, &mut |places, variant| {
                if places.iter().all(|place| !missing.contains(place)) {
                    return;
                }
                match self::model(&variant) {
                    Ok(changed) if changed != model => places.iter().for_each(|place| {
                        missing.remove(place);
                    }),
                    Ok(_) => {}
                    Err(errors) => drop(refused.insert(places[0], errors)),
                }
            });
        }
    }
    report.extend(missing.iter().map(|place| {
        let why = refused.get(place).map_or("no sample shows an effect of it", String::as_str);
        format!("{}.{}: {why}", place.0, place.1)
    }));
    assert!(report.is_empty(), "{} fields may be ignored:\n{}", report.len(), report.join("\n"));
}

#[test]
fn exemptions_are_of_fields_in_use_and_have_a_reason() {
    for ((message, field), reason) in EXEMPT {
        let used =
            |p: &super::FieldPromise| p.message == message && p.field == field && p.promise == Promise::Used;
        assert!(promises().iter().any(used), "{message}.{field}");
        assert!(!reason.is_empty());
    }
}

/// Whether a field holds a message none of whose fields is used: it is accepted for what it may hold, no more.
fn holds_nothing_used((message, field): &Place) -> bool {
    let field = descriptor::message(message).and_then(|message| message.get_field_by_name(field));
    let Some(prost_reflect::Kind::Message(inner)) = field.map(|field| field.kind()) else { return false };
    table(inner.full_name())
        .is_some_and(|table| table.used.is_empty() && table.used_as.is_empty() && inner.fields().len() > 0)
}

/// The messages of a sample file.
fn documents(text: &str) -> Vec<DynamicMessage> {
    let text = text
        .replace("EXT/", "type.googleapis.com/envoy.extensions.")
        .replace("CFG/", "type.googleapis.com/envoy.config.");
    let any = descriptor::message("google.protobuf.Any").unwrap();
    text.split("\n---\n")
        .map(|document| {
            let json =
                decode::parse(document, Syntax::Yaml).unwrap_or_else(|error| panic!("{error}\n{document}"));
            let sink = Sink::new("sample");
            let found = decode::decode(&sink.root(), &any, &json, UnknownFields::Refuse);
            let (errors, _) = sink.into_parts();
            assert!(errors.is_empty(), "{errors:?}\n{document}");
            decode::open(&found.unwrap()).unwrap()
        })
        .collect()
}

/// What the converters make of a resource, as text.
fn model(message: &DynamicMessage) -> Result<String, String> {
    let name = message.descriptor().full_name().to_owned();
    if name == BOOTSTRAP {
        return bootstrap(message);
    }
    let kind = Kind::of(&name).unwrap_or_else(|| panic!("{name} is no resource"));
    let clusters = Clusters { exists: &|name| name != "missing", validate: false };
    let resource = Resource::new(kind, message);
    Value::convert(&resource, Some(message), &clusters)
        .map(|(value, _)| format!("{value:?}"))
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

fn bootstrap(message: &DynamicMessage) -> Result<String, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bootstrap.pb");
    fs::write(&path, decode::canonical(message)).unwrap();
    let loaded = load_bootstrap(&LoadOptions { config_path: Some(path), ..LoadOptions::default() });
    loaded
        .map(|loaded| format!("{:?} {:?}", loaded.bootstrap, loaded.node()))
        .map_err(|errors| errors.to_string())
}
