//! `config.bootstrap.v3`, without the resources in it.

use std::{collections::HashMap, net::IpAddr, str::FromStr as _, sync::Arc};

use culvert_model::{
    Address, ApiKind, ApiSource, CaptureSettings, ConfigSource, Discovered, DnsResolver, Locality,
    ResourceKey, RuntimeLayer, RuntimeLayerKind, Secret, StatsSettings,
};
use envoy_types::pb::{
    envoy::{
        config::{
            bootstrap::v3::{self as pb, runtime_layer::LayerSpecifier},
            core::v3::{ApiConfigSource, TypedExtensionConfig},
            overload::v3::resource_monitor,
        },
        extensions::{
            regex_engines::v3::GoogleRe2,
            resource_monitors::downstream_connections::v3::DownstreamConnectionsConfig,
        },
    },
    google::protobuf::{Any, Struct, value::Kind},
};
use ipnet::IpNet;

use super::{cluster_dns, core, endpoint, extension_name, stats, tls, unpack};
use crate::{NoteKind, at::At};

const CONNECTION_LIMIT: &str = "overload.global_downstream_max_connections";
/// Keys that tracing looks at.
const TRACING: [&str; 8] = [
    "tracing.client_enabled",
    "tracing.global_enabled",
    "tracing.opentelemetry.flush_interval_ms",
    "tracing.opentelemetry.min_flush_spans",
    "tracing.random_sampling",
    "tracing.zipkin.flush_interval_ms",
    "tracing.zipkin.min_flush_spans",
    "tracing.zipkin.request_timeout",
];

/// What a bootstrap says besides its resources.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    pub(crate) admin: Option<Address>,
    pub(crate) lds: Option<ConfigSource>,
    pub(crate) cds: Option<ConfigSource>,
    pub(crate) ads: Option<ApiSource>,
    pub(crate) capture: CaptureSettings,
    pub(crate) max_downstream_connections: Option<u64>,
    /// `static_resources.secrets`
    pub(crate) secrets: Discovered<Secret>,
    pub(crate) runtime: Vec<RuntimeLayer>,
    pub(crate) stats: StatsSettings,
    pub(crate) resolver: DnsResolver,
    pub(crate) locality: Locality,
    pub(crate) local_cluster: Option<Arc<str>>,
}

/// The settings of a bootstrap.
pub(crate) fn settings(at: &At<'_>, message: &pb::Bootstrap) -> Option<Settings> {
    let admin = optional(message.admin.as_ref().and_then(|admin| admin.address.as_ref()), |address| {
        core::address(&at.field("admin").field("address"), Some(address))
    });
    let dynamic = at.field("dynamic_resources");
    let source =
        |name, source| optional(source, |source| core::config_source(&dynamic.field(name), Some(source)));
    let resources = message.dynamic_resources.as_ref();
    let lds = source("lds_config", resources.and_then(|resources| resources.lds_config.as_ref()));
    let cds = source("cds_config", resources.and_then(|resources| resources.cds_config.as_ref()));
    let ads = optional(resources.and_then(|resources| resources.ads_config.as_ref()), |source| {
        ads(&dynamic.field("ads_config"), source)
    });
    let capture = extensions(&at.field("bootstrap_extensions"), &message.bootstrap_extensions);
    let runtime = runtime(&at.field("layered_runtime"), message.layered_runtime.as_ref());
    let overload = overload(&at.field("overload_manager"), message);
    let engine = only::<GoogleRe2>(&at.field("default_regex_engine"), message.default_regex_engine.as_ref());
    let resolver = optional(message.typed_dns_resolver_config.as_ref(), |config| {
        cluster_dns::typed_resolver(&at.field("typed_dns_resolver_config"), config)
    });
    let secrets = secrets(&at.field("static_resources").field("secrets"), message);
    let stats = stats::settings(at, message);
    engine?;
    let ((runtime, limit), overload) = (runtime?, overload?);
    Some(Settings {
        admin: admin?,
        lds: lds?,
        cds: cds?,
        ads: ads?,
        capture: capture?,
        // The resource monitor takes the place of the runtime key, as in Envoy.
        secrets: secrets?,
        max_downstream_connections: overload.or(limit),
        runtime,
        stats: stats?,
        resolver: resolver?.unwrap_or_default(),
        locality: endpoint::place(message.node.as_ref().and_then(|node| node.locality.as_ref())),
        local_cluster: message
            .cluster_manager
            .as_ref()
            .map(|manager| manager.local_cluster_name.as_str())
            .filter(|name| !name.is_empty())
            .map(Into::into),
    })
}

/// The control plane of all sources that say `ads`.
fn ads(at: &At<'_>, source: &ApiConfigSource) -> Option<ApiSource> {
    let source = core::api_source(at, source)?;
    if source.kind == ApiKind::Rest {
        return at.field("api_type").error("aggregated discovery is done over gRPC only");
    }
    Some(source)
}

fn secrets(at: &At<'_>, message: &pb::Bootstrap) -> Option<Discovered<Secret>> {
    let mut secrets = HashMap::new();
    let all = message.static_resources.iter().flat_map(|resources| &resources.secrets);
    for (index, message) in all.enumerate() {
        let at = at.index(index);
        let key = ResourceKey { source: None, name: message.name.clone() };
        if secrets.insert(Arc::new(key), Arc::new(tls::secret(&at, message)?)).is_some() {
            return at.field("name").error(format!("duplicate secret {:?}", message.name));
        }
    }
    Some(Arc::new(secrets))
}

/// `Some(None)` where there is nothing to convert.
fn optional<T, U>(value: Option<T>, convert: impl FnOnce(T) -> Option<U>) -> Option<Option<U>> {
    value.map_or(Some(None), |value| convert(value).map(Some))
}

/// An extension of which only one implementation makes sense.
fn only<T: prost::Message + prost::Name + Default>(
    at: &At<'_>,
    config: Option<&TypedExtensionConfig>,
) -> Option<()> {
    match config.map(|config| config.typed_config.as_ref()) {
        Some(any) if any.and_then(unpack::<T>).is_none() => {
            at.field("typed_config").unsupported(format!("{} is not supported", extension_name(any)))
        }
        _ => Some(()),
    }
}

/// The limit of the resource monitor that counts downstream connections.
fn overload(at: &At<'_>, message: &pb::Bootstrap) -> Option<Option<u64>> {
    let mut limit = None;
    let monitors = message.overload_manager.iter().flat_map(|manager| &manager.resource_monitors);
    for (index, monitor) in monitors.enumerate() {
        let any = monitor.config_type.as_ref().map(|resource_monitor::ConfigType::TypedConfig(any)| any);
        let Some(config) = any.and_then(unpack::<DownstreamConnectionsConfig>) else {
            let name = extension_name(any);
            return at
                .field("resource_monitors")
                .index(index)
                .field("typed_config")
                .unsupported(format!("{name} is not a supported resource monitor"));
        };
        limit = u64::try_from(config.max_active_downstream_connections).ok();
    }
    Some(limit)
}

/// The layers, and the limit of connections in the static ones, of which later ones win.
fn runtime(at: &At<'_>, runtime: Option<&pb::LayeredRuntime>) -> Option<(Vec<RuntimeLayer>, Option<u64>)> {
    let at = at.field("layers");
    let mut limit = None;
    let mut layers: Vec<RuntimeLayer> = Vec::new();
    for (index, layer) in runtime.iter().flat_map(|runtime| &runtime.layers).enumerate() {
        let at = at.index(index);
        if layers.iter().any(|other| other.name == layer.name) {
            return at.field("name").error(format!("duplicate layer name: {:?}", layer.name));
        }
        let kind = match layer.layer_specifier.as_ref()? {
            LayerSpecifier::AdminLayer(_)
                if layers.iter().any(|other| matches!(other.kind, RuntimeLayerKind::Admin)) =>
            {
                return at.error("too many admin layers; there can be only one");
            }
            LayerSpecifier::AdminLayer(_) => RuntimeLayerKind::Admin,
            LayerSpecifier::RtdsLayer(rtds) => {
                let at = at.field("rtds_layer");
                let source = core::config_source(&at.field("rtds_config"), rtds.rtds_config.as_ref())?;
                let name = if rtds.name.is_empty() { &layer.name } else { &rtds.name };
                RuntimeLayerKind::Rtds { name: name.clone(), source }
            }
            LayerSpecifier::StaticLayer(values) => {
                let at = at.field("static_layer");
                let mut flat = Vec::new();
                flatten("", values, &mut flat);
                if let Some((_, value)) = flat.iter().find(|(key, _)| key == CONNECTION_LIMIT) {
                    limit = Some(connections(&at.key(CONNECTION_LIMIT), value)?);
                }
                let is_known = |key: &str| key == CONNECTION_LIMIT || TRACING.contains(&key);
                for (key, _) in flat.iter().filter(|(key, _)| !is_known(key)) {
                    at.key(key).note(NoteKind::NoEffect, "not a runtime key that Culvert knows");
                }
                let shown = flat.into_iter().map(|(key, value)| (key, shown(value)));
                RuntimeLayerKind::Static(Arc::new(shown.collect()))
            }
            LayerSpecifier::DiskLayer(_) => return at.field("disk_layer").unsupported("not supported"),
        };
        layers.push(RuntimeLayer { name: layer.name.clone(), kind });
    }
    Some((layers, limit))
}

fn connections(at: &At<'_>, value: &Kind) -> Option<u64> {
    match value {
        Kind::NumberValue(number) if *number >= 0.0 && number.fract() == 0.0 => Some(*number as u64),
        Kind::StringValue(text) if text.parse::<u64>().is_ok() => text.parse().ok(),
        _ => at.error("expected a number of connections"),
    }
}

/// A runtime value as `/runtime` shows it.
fn shown(value: &Kind) -> String {
    match value {
        Kind::BoolValue(value) => value.to_string(),
        Kind::NumberValue(number) => number.to_string(),
        Kind::StringValue(text) => text.clone(),
        Kind::ListValue(_) | Kind::NullValue(_) | Kind::StructValue(_) => String::new(),
    }
}

/// Nested structures as dotted keys.
fn flatten<'a>(prefix: &str, values: &'a Struct, flat: &mut Vec<(String, &'a Kind)>) {
    let mut fields: Vec<_> = values.fields.iter().collect();
    fields.sort_unstable_by_key(|(key, _)| *key);
    for (key, value) in fields {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value.kind.as_ref() {
            Some(Kind::StructValue(inner)) => flatten(&key, inner, flat),
            Some(kind) => flat.push((key, kind)),
            None => {}
        }
    }
}

fn extensions(at: &At<'_>, extensions: &[TypedExtensionConfig]) -> Option<CaptureSettings> {
    let mut capture = None;
    for (index, extension) in extensions.iter().enumerate() {
        let at = at.index(index);
        let at = at.field("typed_config");
        let Some(message) = extension.typed_config.as_ref().and_then(unpack_capture) else {
            let name = extension_name(extension.typed_config.as_ref());
            return at.unsupported(format!("{name} is not a supported bootstrap extension"));
        };
        if capture.is_some() {
            return at.error("culvert.v1.Capture is given twice");
        }
        capture = Some(capture_settings(&at, &message)?);
    }
    Some(capture.unwrap_or_default())
}

/// `culvert.v1.Capture`; a test holds it to its descriptor.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Capture {
    #[prost(string, repeated, tag = "1")]
    exclude_outbound_cidrs: Vec<String>,
    #[prost(uint32, repeated, tag = "2")]
    exclude_outbound_ports: Vec<u32>,
    #[prost(uint32, repeated, tag = "3")]
    exclude_inbound_ports: Vec<u32>,
}

impl prost::Name for Capture {
    const NAME: &'static str = "Capture";
    const PACKAGE: &'static str = "culvert.v1";
}

fn unpack_capture(any: &Any) -> Option<Capture> {
    unpack::<Capture>(any)
}

fn capture_settings(at: &At<'_>, message: &Capture) -> Option<CaptureSettings> {
    let cidrs = at.field("exclude_outbound_cidrs");
    let mut exclude_outbound_cidrs = Vec::with_capacity(message.exclude_outbound_cidrs.len());
    for (index, text) in message.exclude_outbound_cidrs.iter().enumerate() {
        let net = IpNet::from_str(text).or_else(|_| IpAddr::from_str(text).map(IpNet::from));
        match net {
            Ok(net) => exclude_outbound_cidrs.push(net.trunc()),
            Err(_) => {
                return cidrs.index(index).error(format!("{text:?} is neither an address nor a CIDR range"));
            }
        }
    }
    // The walk has checked their range.
    let ports = |ports: &[u32]| ports.iter().filter_map(|port| u16::try_from(*port).ok()).collect();
    Some(CaptureSettings {
        exclude_outbound_cidrs,
        exclude_outbound_ports: ports(&message.exclude_outbound_ports),
        exclude_inbound_ports: ports(&message.exclude_inbound_ports),
    })
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_reflect::DynamicMessage;

    use super::*;
    use crate::descriptor;

    #[test]
    fn capture_is_what_its_descriptor_says() {
        let message = Capture {
            exclude_outbound_cidrs: vec!["10.0.0.0/8".to_owned()],
            exclude_outbound_ports: vec![1, 2],
            exclude_inbound_ports: vec![3],
        };
        let descriptor = descriptor::message("culvert.v1.Capture").unwrap();
        assert_eq!(descriptor.fields().len(), 3);
        let decoded = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).unwrap();
        let json = serde_json::json!({
            "excludeOutboundCidrs": ["10.0.0.0/8"], "excludeOutboundPorts": [1, 2], "excludeInboundPorts": [3],
        });
        assert_eq!(serde_json::to_value(&decoded).unwrap(), json);
    }
}
