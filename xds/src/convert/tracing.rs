//! Tracing: of connection managers, of routes, and the tracers.

use std::{collections::BTreeMap, sync::Arc};

use culvert_model::{
    CustomTag, Decorator, Format, Fraction, OpenTelemetry, OtlpExporter, RouteTracing, SpanTag,
    TraceProvider, TraceSampler, TraceSampling, Tracing, Zipkin,
};
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{HeaderValueOption, HttpService, TypedExtensionConfig},
            route::v3 as route_pb,
            trace::v3::{
                self as trace_pb, OpenTelemetryConfig, ZipkinConfig,
                tracing::http::ConfigType,
                zipkin_config::{CollectorEndpointVersion, TraceContextOption},
            },
        },
        extensions::{
            filters::network::http_connection_manager::v3::http_connection_manager as pb,
            tracers::opentelemetry::{
                resource_detectors::v3::{
                    EnvironmentResourceDetectorConfig, StaticConfigResourceDetectorConfig,
                },
                samplers::v3::{
                    AlwaysOnSamplerConfig, ParentBasedSamplerConfig, TraceIdRatioBasedSamplerConfig,
                },
            },
        },
        r#type::{
            metadata::v3::{MetadataKind, metadata_key::path_segment::Segment, metadata_kind},
            tracing::v3::{self as tag_pb, custom_tag::Type},
            v3::Percent,
        },
    },
    google::protobuf::Any,
};

use super::{call, core, extension_name, http_filter, unpack};
use crate::{at::At, format};

/// `tracing` of a connection manager. `child_spans`: the router has each attempt have a span.
pub(super) fn tracing(at: &At<'_>, tracing: &pb::Tracing, child_spans: bool) -> Option<Tracing> {
    let tags = tags(&at.field("custom_tags"), &tracing.custom_tags);
    let provider = match &tracing.provider {
        Some(provider) => provider_of(&at.field("provider"), provider).map(Some),
        None => Some(None),
    };
    let operation = name_format(&at.field("operation"), &tracing.operation);
    let upstream = name_format(&at.field("upstream_operation"), &tracing.upstream_operation);
    let spawn = tracing.spawn_upstream_span.as_ref().is_some_and(|spawn| spawn.value);
    Some(Tracing {
        sampling: TraceSampling {
            client: percent(tracing.client_sampling.as_ref()),
            random: percent(tracing.random_sampling.as_ref()),
            overall: percent(tracing.overall_sampling.as_ref()),
        },
        verbose: tracing.verbose,
        max_path_tag_length: tracing.max_path_tag_length.as_ref().map_or(256, |max| max.value as usize),
        custom_tags: tags?,
        provider: provider?.map(Arc::new),
        spawn_upstream_span: spawn || child_spans,
        operation: operation?,
        upstream_operation: upstream?,
        propagate: !tracing.no_context_propagation,
    })
}

/// `tracing` and `decorator` of a route.
pub(super) fn route(at: &At<'_>, route: &route_pb::Route) -> Option<Option<Box<RouteTracing>>> {
    if route.tracing.is_none() && route.decorator.is_none() {
        return Some(None);
    }
    let mut converted = RouteTracing {
        decorator: route.decorator.as_ref().map(|decorator| Decorator {
            operation: decorator.operation.clone(),
            propagate: decorator.propagate.as_ref().is_none_or(|propagate| propagate.value),
        }),
        ..RouteTracing::default()
    };
    if let Some(tracing) = &route.tracing {
        let at = at.field("tracing");
        let of = |percent: Option<&_>| percent.map_or(ALL, |percent| http_filter::fraction(Some(percent)));
        converted.sampling = Some(TraceSampling {
            client: of(tracing.client_sampling.as_ref()),
            random: of(tracing.random_sampling.as_ref()),
            overall: of(tracing.overall_sampling.as_ref()),
        });
        let tags = tags(&at.field("custom_tags"), &tracing.custom_tags);
        let operation = name_format(&at.field("operation"), &tracing.operation);
        converted.upstream_operation =
            name_format(&at.field("upstream_operation"), &tracing.upstream_operation)?;
        (converted.custom_tags, converted.operation) = (tags?, operation?);
    }
    Some(Some(Box::new(converted)))
}

const ALL: Fraction = Fraction { numerator: 100, denominator: 100 };

/// In hundredths of a percent, as Envoy draws.
fn percent(percent: Option<&Percent>) -> Fraction {
    percent.map_or(ALL, |percent| Fraction { numerator: (percent.value * 100.0) as u32, denominator: 10_000 })
}

fn name_format(at: &At<'_>, text: &str) -> Option<Option<Format>> {
    if text.is_empty() {
        return Some(None);
    }
    format::format(at, text).map(Some)
}

fn tags(at: &At<'_>, tags: &[tag_pb::CustomTag]) -> Option<Vec<(String, SpanTag)>> {
    let converted: Vec<_> = tags.iter().enumerate().map(|(i, it)| tag(&at.index(i), it)).collect();
    Some(converted.into_iter().collect::<Option<Vec<_>>>()?.into_iter().flatten().collect())
}

/// A tag; `Some(None)` where it could never have a value.
fn tag(at: &At<'_>, tag: &tag_pb::CustomTag) -> Option<Option<(String, SpanTag)>> {
    let value = match tag.r#type.as_ref()? {
        Type::Environment(variable) => {
            let value = std::env::var(&variable.name).unwrap_or_else(|_| variable.default_value.clone());
            if value.is_empty() {
                return Some(None);
            }
            SpanTag::Plain(CustomTag::Literal(value))
        }
        Type::Literal(literal) => SpanTag::Plain(CustomTag::Literal(literal.value.clone())),
        Type::RequestHeader(header) => SpanTag::Plain(CustomTag::RequestHeader {
            name: header.name.to_ascii_lowercase(),
            default: header.default_value.clone(),
        }),
        Type::Metadata(metadata) => {
            let at = at.field("metadata");
            let kind = metadata.kind.as_ref().and_then(|kind: &MetadataKind| kind.kind.as_ref());
            if !matches!(kind, None | Some(metadata_kind::Kind::Request(_))) {
                return at.field("kind").unsupported("only metadata of requests are supported");
            }
            let key = metadata.metadata_key.as_ref()?;
            let path = key.path.iter().filter_map(|segment| match &segment.segment {
                Some(Segment::Key(key)) => Some(key.clone()),
                // The walk has refused it.
                Some(Segment::Index(_)) | None => None,
            });
            SpanTag::Metadata {
                namespace: key.key.clone(),
                path: path.collect(),
                default: metadata.default_value.clone(),
            }
        }
        Type::Value(text) => SpanTag::Format(format::format(&at.field("value"), text)?),
    };
    Some(Some((tag.tag.clone(), value)))
}

fn provider_of(at: &At<'_>, provider: &trace_pb::tracing::Http) -> Option<TraceProvider> {
    let at = at.field("typed_config");
    let any = provider.config_type.as_ref().map(|ConfigType::TypedConfig(any)| any);
    if let Some(config) = any.and_then(unpack::<OpenTelemetryConfig>) {
        return open_telemetry(&at, &config).map(TraceProvider::OpenTelemetry);
    }
    if let Some(config) = any.and_then(unpack::<ZipkinConfig>) {
        return zipkin(&at, &config).map(TraceProvider::Zipkin);
    }
    at.unsupported(format!("{} is not a supported tracer", extension_name(any)))
}

fn open_telemetry(at: &At<'_>, config: &OpenTelemetryConfig) -> Option<OpenTelemetry> {
    let grpc = config
        .grpc_service
        .as_ref()
        .map(|service| core::grpc_service(&at.field("grpc_service"), service).map(OtlpExporter::Grpc));
    let http = config.http_service.as_ref().map(|service| http_service(&at.field("http_service"), service));
    if grpc.is_some() && http.is_some() {
        return at.error("OpenTelemetry Tracer cannot have both gRPC and HTTP exporters configured");
    }
    let exporter = match grpc.or(http) {
        Some(exporter) => Some(exporter?),
        None => None,
    };
    let sampler = match &config.sampler {
        Some(sampler) => Some(self::sampler(&at.field("sampler"), sampler)?),
        None => None,
    };
    Some(OpenTelemetry {
        exporter,
        resource: resource(at, config)?,
        sampler,
        max_cache_size: config.max_cache_size.as_ref().map_or(1_024, |max| max.value as usize),
        scope: config.set_instrumentation_scope.as_ref().is_none_or(|set| set.value),
    })
}

/// The attributes of the resource. What detectors find comes before what is known anyway.
fn resource(at: &At<'_>, config: &OpenTelemetryConfig) -> Option<Vec<(String, String)>> {
    let mut attributes = BTreeMap::new();
    let mut set = |key: &str, value: &str| attributes.insert(key.to_owned(), value.to_owned());
    if config.set_service_name_resource_attribute.as_ref().is_none_or(|set| set.value) {
        let name = match config.service_name.as_str() {
            "" => "unknown_service:envoy",
            name => name,
        };
        set("service.name", name);
    }
    if config.set_telemetry_sdk_resource_attributes.as_ref().is_none_or(|set| set.value) {
        set("telemetry.sdk.language", "rust");
        set("telemetry.sdk.name", "culvert");
        set("telemetry.sdk.version", env!("CARGO_PKG_VERSION"));
    }
    detect(&at.field("resource_detectors"), &config.resource_detectors, &mut |key, value| {
        attributes.insert(key.to_owned(), value.to_owned());
    })?;
    Some(attributes.into_iter().collect())
}

/// Attributes that detectors find; `at` is the list of them.
pub(super) fn detect(
    at: &At<'_>,
    detectors: &[TypedExtensionConfig],
    set: &mut dyn FnMut(&str, &str),
) -> Option<()> {
    for (index, detector) in detectors.iter().enumerate() {
        let any = detector.typed_config.as_ref();
        if let Some(config) = any.and_then(unpack::<StaticConfigResourceDetectorConfig>) {
            config.attributes.iter().filter(|(key, _)| !key.is_empty()).for_each(|(key, value)| {
                set(key, value);
            });
        } else if any.and_then(unpack::<EnvironmentResourceDetectorConfig>).is_some() {
            let known = std::env::var("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
            for (key, value) in known.split(',').filter_map(|pair| pair.split_once('=')) {
                set(key, value);
            }
        } else {
            return at
                .index(index)
                .field("typed_config")
                .unsupported(format!("{} is not a supported resource detector", extension_name(any)));
        }
    }
    Some(())
}

fn sampler(at: &At<'_>, sampler: &TypedExtensionConfig) -> Option<TraceSampler> {
    let any: Option<&Any> = sampler.typed_config.as_ref();
    if any.and_then(unpack::<AlwaysOnSamplerConfig>).is_some() {
        return Some(TraceSampler::AlwaysOn);
    }
    let at = at.field("typed_config");
    if let Some(config) = any.and_then(unpack::<ParentBasedSamplerConfig>) {
        let at = at.field("wrapped_sampler");
        let Some(wrapped) = &config.wrapped_sampler else { return at.error("value is required") };
        return self::sampler(&at, wrapped).map(|wrapped| TraceSampler::ParentBased(Box::new(wrapped)));
    }
    if let Some(config) = any.and_then(unpack::<TraceIdRatioBasedSamplerConfig>) {
        return Some(TraceSampler::Ratio(http_filter::fraction(config.sampling_percentage.as_ref())));
    }
    at.unsupported(format!("{} is not a supported sampler", extension_name(any)))
}

/// A collector that speaks HTTP.
pub(super) fn http_service(at: &At<'_>, service: &HttpService) -> Option<OtlpExporter> {
    let uri = call::http_uri(at, "http_uri", service.http_uri.as_ref());
    let at = at.field("request_headers_to_add");
    let headers: Vec<_> = service
        .request_headers_to_add
        .iter()
        .enumerate()
        .map(|(i, option)| plain_header(&at.index(i), option))
        .collect();
    Some(OtlpExporter::Http { uri: uri?, headers: headers.into_iter().collect::<Option<_>>()? })
}

/// A header that is the same for all requests.
fn plain_header(at: &At<'_>, option: &HeaderValueOption) -> Option<(String, String)> {
    let at = at.field("header");
    let header = option.header.as_ref()?;
    let value = &header.value;
    if value.contains('%') {
        return at.field("value").unsupported("substitutions are not supported here");
    }
    let valid = http::HeaderName::from_bytes(header.key.as_bytes()).is_ok()
        && http::HeaderValue::from_str(value).is_ok();
    if !valid {
        return at.error("not a header");
    }
    Some((header.key.to_ascii_lowercase(), value.clone()))
}

fn zipkin(at: &At<'_>, config: &ZipkinConfig) -> Option<Zipkin> {
    let required = |name, value: &str| {
        if value.is_empty() { at.field(name).error("value is required") } else { Some(()) }
    };
    let cluster = required("collector_cluster", &config.collector_cluster);
    let path = required("collector_endpoint", &config.collector_endpoint);
    if config.collector_endpoint_version() != CollectorEndpointVersion::HttpJson {
        return at.field("collector_endpoint_version").unsupported("only HTTP_JSON is supported");
    }
    if config.trace_context_option() != TraceContextOption::UseB3 {
        return at.field("trace_context_option").unsupported("only USE_B3 is supported");
    }
    cluster?;
    path?;
    if http::uri::PathAndQuery::try_from(&config.collector_endpoint).is_err() {
        return at.field("collector_endpoint").error("not a path");
    }
    let authority = match config.collector_hostname.as_str() {
        "" => config.collector_cluster.clone(),
        name => name.to_owned(),
    };
    Some(Zipkin {
        cluster: config.collector_cluster.clone(),
        path: config.collector_endpoint.clone(),
        authority,
        wide_ids: config.trace_id_128bit,
        shared: config.shared_span_context.as_ref().is_none_or(|shared| shared.value),
        split: config.split_spans_for_request,
    })
}
