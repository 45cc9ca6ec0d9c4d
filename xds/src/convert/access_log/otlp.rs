//! `extensions.access_loggers.open_telemetry.v3`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use culvert_model::{OtlpExporter, OtlpLog, OtlpValue};
use envoy_types::pb::{
    envoy::extensions::access_loggers::{
        grpc::v3::CommonGrpcAccessLogConfig, open_telemetry::v3::OpenTelemetryAccessLogConfig,
    },
    opentelemetry::proto::common::v1::{AnyValue, KeyValueList, any_value::Value},
};

use super::{formatters, grpc::custom_tag};
use crate::{
    at::At,
    convert::{core, tracing},
    format,
};

/// The logger.
pub(super) fn log(at: &At<'_>, config: &OpenTelemetryAccessLogConfig) -> Option<Arc<OtlpLog>> {
    let none = CommonGrpcAccessLogConfig::default();
    let common = config.common_config.as_ref();
    let exporter = exporter(at, config);
    let common = common.unwrap_or(&none);
    let at_common = at.field("common_config");
    if config.common_config.is_some() {
        core::transport_version(&at_common, common.transport_api_version())?;
    }
    // What is given outside goes first.
    let (at_interval, interval) = match &config.buffer_flush_interval {
        Some(interval) => (*at, Some(interval)),
        None => (at_common, common.buffer_flush_interval.as_ref()),
    };
    let interval =
        core::duration_or(&at_interval.field("buffer_flush_interval"), interval, Duration::from_secs(1));
    let size = config.buffer_size_bytes.as_ref().or(common.buffer_size_bytes.as_ref());
    let (at_tags, tags) = match config.custom_tags.as_slice() {
        [] => (at_common, common.custom_tags.as_slice()),
        tags => (*at, tags),
    };
    let at_tags = at_tags.field("custom_tags");
    let tags: Vec<_> = tags.iter().enumerate().map(|(i, tag)| custom_tag(&at_tags.index(i), tag)).collect();
    let body = match &config.body {
        Some(body) => value(&at.field("body"), body).map(Some),
        None => Some(None),
    };
    let attributes = match &config.attributes {
        Some(attributes) => members(&at.field("attributes"), attributes),
        None => Some(Vec::new()),
    };
    let resource = resource(at, config);
    formatters(&at.field("formatters"), &config.formatters)?;
    let log_name = if config.log_name.is_empty() { &common.log_name } else { &config.log_name };
    Some(Arc::new(OtlpLog {
        exporter: exporter?,
        flush_interval: interval?,
        buffer_size_bytes: size.map_or(16_384, |size| size.value as usize),
        log_name: log_name.clone(),
        builtin_labels: !config.disable_builtin_labels,
        resource: resource?,
        body: body?,
        attributes: attributes?,
        custom_tags: tags.into_iter().collect::<Option<Vec<_>>>()?.into_iter().flatten().collect(),
        stat_prefix: config.stat_prefix.clone(),
    }))
}

/// Where the entries go: to exactly one place.
fn exporter(at: &At<'_>, config: &OpenTelemetryAccessLogConfig) -> Option<OtlpExporter> {
    let common = config.common_config.as_ref();
    let given = [config.http_service.is_some(), config.grpc_service.is_some(), common.is_some()];
    if given.iter().filter(|given| **given).count() != 1 {
        return at.error("exactly one of http_service, grpc_service and common_config is required");
    }
    if let Some(service) = &config.http_service {
        return tracing::http_service(&at.field("http_service"), service);
    }
    if let Some(service) = &config.grpc_service {
        return core::grpc_service(&at.field("grpc_service"), service).map(OtlpExporter::Grpc);
    }
    let at = at.field("common_config");
    core::grpc_service(&at.field("grpc_service"), common?.grpc_service.as_ref()?).map(OtlpExporter::Grpc)
}

/// The attributes of the resource. What is configured comes before what detectors find.
fn resource(at: &At<'_>, config: &OpenTelemetryAccessLogConfig) -> Option<Vec<(String, String)>> {
    let mut attributes = BTreeMap::new();
    tracing::detect(&at.field("resource_detectors"), &config.resource_detectors, &mut |key, value| {
        attributes.insert(key.to_owned(), value.to_owned());
    })?;
    let at = at.field("resource_attributes");
    let at = at.field("values");
    let given = config.resource_attributes.iter().flat_map(|list| &list.values);
    for (index, member) in given.enumerate() {
        // They are as they stand: there is no request that operators could speak of.
        let Some(Value::StringValue(text)) = member.value.as_ref().and_then(|value| value.value.as_ref())
        else {
            return at.index(index).field("value").unsupported("only texts are supported");
        };
        attributes.insert(member.key.clone(), text.clone());
    }
    Some(attributes.into_iter().collect())
}

fn members(at: &At<'_>, list: &KeyValueList) -> Option<Vec<(String, OtlpValue)>> {
    let at = at.field("values");
    let converted: Vec<_> = list
        .values
        .iter()
        .enumerate()
        .map(|(index, member)| {
            let at = at.index(index);
            let at = at.field("value");
            let Some(given) = &member.value else { return at.error("value is required") };
            Some((member.key.clone(), value(&at, given)?))
        })
        .collect();
    converted.into_iter().collect()
}

fn value(at: &At<'_>, given: &AnyValue) -> Option<OtlpValue> {
    Some(match &given.value {
        Some(Value::StringValue(text)) => OtlpValue::Text(format::format(&at.field("string_value"), text)?),
        Some(Value::KvlistValue(list)) => OtlpValue::Map(members(&at.field("kvlist_value"), list)?),
        Some(Value::ArrayValue(list)) => {
            let at = at.field("array_value");
            let at = at.field("values");
            let converted: Vec<_> =
                list.values.iter().enumerate().map(|(i, member)| value(&at.index(i), member)).collect();
            OtlpValue::List(converted.into_iter().collect::<Option<_>>()?)
        }
        _ => return at.error("only texts, and lists and maps of texts can be logged"),
    })
}
