//! `extensions.access_loggers.grpc.v3`.

use std::{sync::Arc, time::Duration};

use culvert_model::{CustomTag, GrpcLog};
use envoy_types::pb::envoy::{
    config::core::v3::RetryPolicy,
    extensions::access_loggers::grpc::v3::{
        CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig,
    },
    r#type::tracing::v3::{self as tracing, custom_tag::Type},
};

use crate::{at::At, convert::core};

/// The logger whose entries are HTTP's.
pub(super) fn http(at: &At<'_>, config: &HttpGrpcAccessLogConfig) -> Option<Arc<GrpcLog>> {
    let mut log = common(&at.field("common_config"), config.common_config.as_ref()?)?;
    let lower = |names: &[String]| names.iter().map(|name| name.to_ascii_lowercase()).collect();
    log.request_headers = lower(&config.additional_request_headers_to_log);
    log.response_headers = lower(&config.additional_response_headers_to_log);
    log.response_trailers = lower(&config.additional_response_trailers_to_log);
    Some(Arc::new(log))
}

/// The logger whose entries are TCP's.
pub(super) fn tcp(at: &At<'_>, config: &TcpGrpcAccessLogConfig) -> Option<Arc<GrpcLog>> {
    common(&at.field("common_config"), config.common_config.as_ref()?).map(Arc::new)
}

fn common(at: &At<'_>, config: &CommonGrpcAccessLogConfig) -> Option<GrpcLog> {
    let service = core::grpc_service(&at.field("grpc_service"), config.grpc_service.as_ref()?);
    let interval = core::duration_or(
        &at.field("buffer_flush_interval"),
        config.buffer_flush_interval.as_ref(),
        Duration::from_secs(1),
    );
    let retry = back_off(&at.field("grpc_stream_retry_policy"), config.grpc_stream_retry_policy.as_ref());
    let tags = at.field("custom_tags");
    let tags: Vec<_> =
        config.custom_tags.iter().enumerate().map(|(i, tag)| custom_tag(&tags.index(i), tag)).collect();
    core::transport_version(at, config.transport_api_version())?;
    Some(GrpcLog {
        log_name: config.log_name.clone(),
        service: service?,
        flush_interval: interval?,
        buffer_size_bytes: config.buffer_size_bytes.as_ref().map_or(16_384, |size| size.value as usize),
        retry_back_off: retry?,
        custom_tags: tags.into_iter().collect::<Option<Vec<_>>>()?.into_iter().flatten().collect(),
        request_headers: Vec::new(),
        response_headers: Vec::new(),
        response_trailers: Vec::new(),
    })
}

/// Intervals of reconnecting: 1 s to 10 s unless given.
fn back_off(at: &At<'_>, policy: Option<&RetryPolicy>) -> Option<(Duration, Duration)> {
    let Some(strategy) = policy.and_then(|policy| policy.retry_back_off.as_ref()) else {
        return Some((Duration::from_secs(1), Duration::from_secs(10)));
    };
    let at = at.field("retry_back_off");
    let base = core::duration(&at.field("base_interval"), strategy.base_interval.as_ref()?)?;
    let max = core::duration_or(&at.field("max_interval"), strategy.max_interval.as_ref(), base * 10)?;
    if max < base {
        return at.field("max_interval").error("must be greater than or equal to the base_interval");
    }
    Some((base, max))
}

/// A tag; `Some(None)` where it could never have a value.
pub(super) fn custom_tag(at: &At<'_>, tag: &tracing::CustomTag) -> Option<Option<(String, CustomTag)>> {
    let value = match tag.r#type.as_ref()? {
        Type::Environment(variable) => {
            let value = std::env::var(&variable.name).unwrap_or_else(|_| variable.default_value.clone());
            if value.is_empty() {
                return Some(None);
            }
            CustomTag::Literal(value)
        }
        Type::Literal(literal) => CustomTag::Literal(literal.value.clone()),
        Type::RequestHeader(header) => CustomTag::RequestHeader {
            name: header.name.to_ascii_lowercase(),
            default: header.default_value.clone(),
        },
        Type::Metadata(_) => return at.field("metadata").unsupported("requests carry no metadata"),
        _ => return at.field("value").unsupported("formatted tags are not supported"),
    };
    Some(Some((tag.tag.clone(), value)))
}
