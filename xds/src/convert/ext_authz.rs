//! `extensions.filters.http.ext_authz.v3`.

use std::sync::Arc;

use culvert_model::{
    AuthBody, AuthOverride, AuthPath, AuthService, ExtAuthz, Fraction, HttpAuth, StringMatcher,
};
use envoy_types::pb::envoy::{
    config::core::v3::{HeaderValue, HeaderValueOption},
    extensions::filters::http::ext_authz::v3::{
        self as pb, check_settings::ServiceOverride, ext_authz::Services, ext_authz_per_route::Override,
    },
    r#type::matcher::v3::ListStringMatcher,
};

use super::{call, core, header, http_filter, matcher, network};
use crate::at::At;

/// The filter.
pub(super) fn filter(at: &At<'_>, filter: &pb::ExtAuthz) -> Option<Arc<ExtAuthz>> {
    let Some(services) = &filter.services else {
        return at.error("one of grpc_service and http_service is required");
    };
    core::transport_version(at, filter.transport_api_version())?;
    let old = match services {
        Services::HttpService(http) => {
            http.authorization_request.as_ref().and_then(|it| it.allowed_headers.as_ref())
        }
        Services::GrpcService(_) => None,
    };
    let allowed = match (&filter.allowed_headers, old) {
        (Some(list), _) => Some(strings(&at.field("allowed_headers"), Some(list))?),
        (None, Some(list)) => {
            let (at, request) = (at.field("http_service"), "authorization_request");
            Some(strings(&at.field(request).field("allowed_headers"), Some(list))?)
        }
        (None, None) => None,
    };
    let service = match services {
        Services::GrpcService(grpc) => AuthService::Grpc(call::grpc(at, Some(grpc))?),
        Services::HttpService(http) => http_service(&at.field("http_service"), http)?,
    };
    let disallowed = strings(&at.field("disallowed_headers"), filter.disallowed_headers.as_ref());
    let enabled = filter.filter_enabled.as_ref();
    let enabled = enabled.map(|percent| http_filter::fraction(percent.default_value.as_ref()));
    let status = filter.status_on_error.as_ref().map_or(0, |status| status.code);
    Some(Arc::new(ExtAuthz {
        service,
        failure_mode_allow: filter.failure_mode_allow,
        failure_header: filter.failure_mode_allow_header_add,
        body: body(filter.with_request_body.as_ref()),
        clear_route_cache: filter.clear_route_cache,
        status_on_error: u16::try_from(status).ok().filter(|status| *status >= 200).unwrap_or(403),
        metadata_namespaces: filter.metadata_context_namespaces.clone(),
        route_metadata_namespaces: filter.route_metadata_context_namespaces.clone(),
        enabled: enabled.unwrap_or(Fraction { numerator: 100, denominator: 100 }),
        deny_at_disable: filter.deny_at_disable.as_ref().map(|deny| network::flag(Some(deny))),
        peer_certificate: filter.include_peer_certificate,
        tls_session: filter.include_tls_session,
        stat_prefix: filter.stat_prefix.clone(),
        allowed_headers: allowed,
        disallowed_headers: disallowed?,
        charge_cluster: filter.charge_cluster_response_stats.as_ref().is_none_or(|charge| charge.value),
        raw_headers: filter.encode_raw_headers,
    }))
}

/// What a route says.
pub(super) fn per_route(at: &At<'_>, route: &pb::ExtAuthzPerRoute) -> Option<Arc<AuthOverride>> {
    let settings = match route.r#override.as_ref()? {
        Override::Disabled(false) => {
            return at.field("disabled").unsupported("false, which would turn a disabled filter on");
        }
        Override::Disabled(true) => {
            return Some(Arc::new(AuthOverride { disabled: true, ..AuthOverride::default() }));
        }
        Override::CheckSettings(settings) => settings,
    };
    let at = at.field("check_settings");
    if settings.disable_request_body_buffering && settings.with_request_body.is_some() {
        return at.error("only one of disable_request_body_buffering and with_request_body can be given");
    }
    let service = match &settings.service_override {
        None => None,
        Some(ServiceOverride::GrpcService(grpc)) => Some(AuthService::Grpc(call::grpc(&at, Some(grpc))?)),
        Some(ServiceOverride::HttpService(http)) => Some(http_service(&at.field("http_service"), http)?),
    };
    let pairs = settings.context_extensions.iter();
    let mut context: Vec<_> = pairs.map(|(key, value)| (key.clone(), value.clone())).collect();
    context.sort_unstable();
    Some(Arc::new(AuthOverride {
        disabled: false,
        context,
        no_body: settings.disable_request_body_buffering,
        body: body(settings.with_request_body.as_ref()),
        service,
    }))
}

fn body(settings: Option<&pb::BufferSettings>) -> Option<AuthBody> {
    let settings = settings?;
    Some(AuthBody {
        max: settings.max_request_bytes as usize,
        partial: settings.allow_partial_message,
        raw: settings.pack_as_bytes,
    })
}

fn http_service(at: &At<'_>, http: &pb::HttpService) -> Option<AuthService> {
    let uri = call::http_uri(at, "server_uri", http.server_uri.as_ref());
    let retry = call::retry(at, http.retry_policy.as_ref());
    let path = match (http.path_prefix.as_str(), http.path_override.as_str()) {
        (prefix, "") if prefix.is_empty() || prefix.starts_with('/') => AuthPath::Prefix(prefix.to_owned()),
        (_, "") => return at.field("path_prefix").error("path_prefix should start with \"/\"."),
        ("", path) if path.starts_with('/') => AuthPath::Override(path.to_owned()),
        ("", _) => return at.field("path_override").error("path_override should start with \"/\"."),
        _ => return at.error("only one of path_prefix or path_override may be set."),
    };
    let add = http.authorization_request.as_ref().map(|request| request.headers_to_add.as_slice());
    // These replace what the client says.
    let option = |header: &HeaderValue| HeaderValueOption {
        header: Some(header.clone()),
        append_action: 2,
        ..HeaderValueOption::default()
    };
    let options: Vec<_> = add.unwrap_or_default().iter().map(option).collect();
    let add = header::additions(&at.field("authorization_request").field("headers_to_add"), &options);
    let empty = pb::AuthorizationResponse::default();
    let response = http.authorization_response.as_ref().unwrap_or(&empty);
    let at = at.field("authorization_response");
    let list = |name: &'static str, list: &Option<ListStringMatcher>| strings(&at.field(name), list.as_ref());
    Some(AuthService::Http(Arc::new(HttpAuth {
        uri: uri?,
        path,
        add: add?,
        upstream_headers: list("allowed_upstream_headers", &response.allowed_upstream_headers)?,
        upstream_append: list(
            "allowed_upstream_headers_to_append",
            &response.allowed_upstream_headers_to_append,
        )?,
        client_headers: list("allowed_client_headers", &response.allowed_client_headers)?,
        client_success: list(
            "allowed_client_headers_on_success",
            &response.allowed_client_headers_on_success,
        )?,
        metadata_headers: list("dynamic_metadata_from_headers", &response.dynamic_metadata_from_headers)?,
        retry: retry?,
    })))
}

fn strings(at: &At<'_>, list: Option<&ListStringMatcher>) -> Option<Vec<StringMatcher>> {
    let at = at.field("patterns");
    let patterns = list.map(|list| list.patterns.as_slice()).unwrap_or_default();
    let patterns: Vec<_> =
        patterns.iter().enumerate().map(|(i, it)| matcher::string(&at.index(i), it)).collect();
    patterns.into_iter().collect()
}
