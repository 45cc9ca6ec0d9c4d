//! HTTP filters that ask somebody.

use super::Table;

const NO_SPANS: &str = "calls of filters have no spans";
const NO_TYPED: &str = "there is no typed metadata";

pub(super) const TABLES: &[Table] = &[
    Table {
        used: &["retry_back_off", "num_retries", "retry_on"],
        refused: &[
            ("retry_priority", "calls are tried again on any priority"),
            ("retry_host_predicate", "calls are tried again on any host"),
            ("host_selection_retry_max_attempts", "calls are tried again on any host"),
        ],
        ..Table::of("envoy.config.core.v3.RetryPolicy")
    },
    Table {
        used: &[
            "http_service",
            "transport_api_version",
            "failure_mode_allow",
            "failure_mode_allow_header_add",
            "with_request_body",
            "clear_route_cache",
            "status_on_error",
            "metadata_context_namespaces",
            "route_metadata_context_namespaces",
            "filter_enabled",
            "deny_at_disable",
            "include_peer_certificate",
            "stat_prefix",
            "allowed_headers",
            "disallowed_headers",
            "include_tls_session",
            "charge_cluster_response_stats",
            "encode_raw_headers",
        ],
        used_as: &[("grpc_service", &CALL)],
        no_effect: &[
            ("typed_metadata_context_namespaces", NO_TYPED),
            ("route_typed_metadata_context_namespaces", NO_TYPED),
            ("validate_mutations", "headers that are none make the answer an error in any case"),
            ("emit_client_span", NO_SPANS),
        ],
        only_off: &[
            "emit_filter_state_stats",
            "max_denied_response_body_bytes",
            "enforce_response_header_limits",
            "shadow_mode",
        ],
        refused: &[
            ("filter_enabled_metadata", "it cannot be enabled by metadata"),
            ("bootstrap_metadata_labels_key", "the destination has no labels"),
            ("decoder_header_mutation_rules", "rules for what the service may change are not supported"),
            ("enable_dynamic_metadata_ingestion", "metadata of the service is always taken"),
            ("filter_metadata", "requests carry no metadata of the filter's own"),
        ],
        ..Table::of("envoy.extensions.filters.http.ext_authz.v3.ExtAuthz")
    },
    Table {
        used: &["max_request_bytes", "allow_partial_message", "pack_as_bytes"],
        ..Table::of("envoy.extensions.filters.http.ext_authz.v3.BufferSettings")
    },
    Table {
        used: &[
            "path_prefix",
            "path_override",
            "authorization_request",
            "authorization_response",
            "retry_policy",
        ],
        used_as: &[("server_uri", &SERVER_URI)],
        ..Table::of("envoy.extensions.filters.http.ext_authz.v3.HttpService")
    },
    Table {
        used: &["allowed_headers", "headers_to_add"],
        ..Table::of("envoy.extensions.filters.http.ext_authz.v3.AuthorizationRequest")
    },
    Table {
        used: &[
            "allowed_upstream_headers",
            "allowed_upstream_headers_to_append",
            "allowed_client_headers",
            "allowed_client_headers_on_success",
            "dynamic_metadata_from_headers",
        ],
        ..Table::of("envoy.extensions.filters.http.ext_authz.v3.AuthorizationResponse")
    },
    Table {
        used: &["disabled", "check_settings"],
        ..Table::of("envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute")
    },
    Table {
        used: &["context_extensions", "disable_request_body_buffering", "with_request_body", "http_service"],
        used_as: &[("grpc_service", &CALL)],
        no_effect: &[("emit_client_span", NO_SPANS)],
        ..Table::of("envoy.extensions.filters.http.ext_authz.v3.CheckSettings")
    },
    Table {
        used: &[
            "domain",
            "stage",
            "request_type",
            "timeout",
            "failure_mode_deny",
            "rate_limited_as_resource_exhausted",
            "rate_limit_service",
            "enable_x_ratelimit_headers",
            "disable_x_envoy_ratelimited_header",
            "rate_limited_status",
            "response_headers_to_add",
            "status_on_error",
            "stat_prefix",
            "filter_enabled",
            "filter_enforced",
            "failure_mode_deny_percent",
            "rate_limits",
            "metadata_namespace",
        ],
        only_off: &["enable_retry_after_header"],
        ..Table::of("envoy.extensions.filters.http.ratelimit.v3.RateLimit")
    },
    Table {
        used: &["vh_rate_limits", "rate_limits", "domain"],
        only_off: &["override_option"],
        ..Table::of("envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute")
    },
    Table {
        used: &["transport_api_version"],
        used_as: &[("grpc_service", &CALL)],
        ..Table::of("envoy.config.ratelimit.v3.RateLimitServiceConfig")
    },
    Table {
        used: &["actions", "limit", "hits_addend"],
        only_off: &["stage", "disable_key", "apply_on_stream_done", "x_ratelimit_option"],
        ..Table::of("envoy.config.route.v3.RateLimit")
    },
    Table {
        used: &[
            "source_cluster",
            "destination_cluster",
            "request_headers",
            "query_parameters",
            "remote_address",
            "generic_key",
            "header_value_match",
            "metadata",
            "masked_remote_address",
            "query_parameter_value_match",
            "remote_address_match",
        ],
        refused: &[
            ("dynamic_metadata", "it is deprecated; metadata says the same"),
            ("extension", "descriptors of extensions are not supported"),
        ],
        ..Table::of("envoy.config.route.v3.RateLimit.Action")
    },
    Table::of("envoy.config.route.v3.RateLimit.Action.SourceCluster"),
    Table::of("envoy.config.route.v3.RateLimit.Action.DestinationCluster"),
    Table::of("envoy.config.route.v3.RateLimit.Action.RemoteAddress"),
    Table {
        used: &["header_name", "descriptor_key", "skip_if_absent"],
        ..Table::of("envoy.config.route.v3.RateLimit.Action.RequestHeaders")
    },
    Table {
        used: &["query_parameter_name", "descriptor_key", "skip_if_absent"],
        ..Table::of("envoy.config.route.v3.RateLimit.Action.QueryParameters")
    },
    Table {
        used: &["v4_prefix_mask_len", "v6_prefix_mask_len"],
        ..Table::of("envoy.config.route.v3.RateLimit.Action.MaskedRemoteAddress")
    },
    Table {
        used: &["descriptor_value", "descriptor_key"],
        no_effect: &[("default_value", AS_IT_IS)],
        ..Table::of("envoy.config.route.v3.RateLimit.Action.GenericKey")
    },
    Table {
        used: &["descriptor_value", "descriptor_key", "expect_match", "headers"],
        no_effect: &[("default_value", AS_IT_IS)],
        ..Table::of("envoy.config.route.v3.RateLimit.Action.HeaderValueMatch")
    },
    Table {
        used: &["descriptor_value", "descriptor_key", "expect_match", "query_parameters"],
        no_effect: &[("default_value", AS_IT_IS)],
        ..Table::of("envoy.config.route.v3.RateLimit.Action.QueryParameterValueMatch")
    },
    Table {
        used: &["descriptor_value", "descriptor_key", "address_matcher"],
        no_effect: &[("default_value", AS_IT_IS)],
        ..Table::of("envoy.config.route.v3.RateLimit.Action.RemoteAddressMatch")
    },
    Table { used: &["ranges", "invert_match"], ..Table::of("envoy.type.matcher.v3.AddressMatcher") },
    Table { used: &["address_prefix", "prefix_len"], ..Table::of("xds.core.v3.CidrRange") },
    Table {
        used: &["descriptor_key", "metadata_key", "default_value", "source", "skip_if_absent"],
        ..Table::of("envoy.config.route.v3.RateLimit.Action.MetaData")
    },
    Table { used: &["key", "path"], ..Table::of("envoy.type.metadata.v3.MetadataKey") },
    Table { used: &["key"], ..Table::of("envoy.type.metadata.v3.MetadataKey.PathSegment") },
    Table {
        used: &["dynamic_metadata"],
        refused: &[("rate_limit", "limits are taken from metadata only")],
        ..Table::of("envoy.config.route.v3.RateLimit.Override")
    },
    Table {
        used: &["metadata_key"],
        ..Table::of("envoy.config.route.v3.RateLimit.Override.DynamicMetadata")
    },
    Table {
        used: &["number", "is_negative_hits"],
        refused: &[("format", "what a request counts cannot be a substitution")],
        ..Table::of("envoy.config.route.v3.RateLimit.HitsAddend")
    },
    Table {
        used: &["entries", "token_bucket", "shadow_mode"],
        ..Table::of("envoy.extensions.common.ratelimit.v3.LocalRateLimitDescriptor")
    },
    Table {
        used: &["key", "value"],
        ..Table::of("envoy.extensions.common.ratelimit.v3.RateLimitDescriptor.Entry")
    },
    Table {
        used: &[
            "providers",
            "rules",
            "bypass_cors_preflight",
            "requirement_map",
            "strip_failure_response",
            "stat_prefix",
        ],
        refused: &[("filter_state_rules", "requirements do not depend on filter state")],
        ..Table::of("envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication")
    },
    Table {
        used: &[
            "issuer",
            "audiences",
            "subjects",
            "require_expiration",
            "max_lifetime",
            "remote_jwks",
            "local_jwks",
            "forward",
            "from_headers",
            "from_params",
            "from_cookies",
            "forward_payload_header",
            "pad_forward_payload_header",
            "payload_in_metadata",
            "normalize_payload_in_metadata",
            "header_in_metadata",
            "clock_skew_seconds",
            "claim_to_headers",
            "clear_route_cache",
        ],
        no_effect: &[("jwt_cache_config", "every token is verified each time")],
        refused: &[("failed_status_in_metadata", "the metadata does not say why a token is refused")],
        ..Table::of("envoy.extensions.filters.http.jwt_authn.v3.JwtProvider")
    },
    Table {
        used: &["space_delimited_claims"],
        ..Table::of("envoy.extensions.filters.http.jwt_authn.v3.JwtProvider.NormalizePayload")
    },
    Table {
        no_effect: &[
            ("jwt_cache_size", "every token is verified each time"),
            ("jwt_max_token_size", "every token is verified each time"),
        ],
        ..Table::of("envoy.extensions.filters.http.jwt_authn.v3.JwtCacheConfig")
    },
    Table {
        used: &["http_uri", "cache_duration", "async_fetch", "retry_policy"],
        ..Table::of("envoy.extensions.filters.http.jwt_authn.v3.RemoteJwks")
    },
    Table {
        used: &["failed_refetch_duration"],
        no_effect: &[("fast_listener", "listeners do not wait for keys; requests do")],
        ..Table::of("envoy.extensions.filters.http.jwt_authn.v3.JwksAsyncFetch")
    },
    Table { used: &["uri", "cluster", "timeout"], ..Table::of("envoy.config.core.v3.HttpUri") },
    Table {
        used: &["name", "value_prefix"],
        ..Table::of("envoy.extensions.filters.http.jwt_authn.v3.JwtHeader")
    },
    Table {
        used: &["header_name", "claim_name", "claim_path"],
        ..Table::of("envoy.extensions.filters.http.jwt_authn.v3.JwtClaimToHeader")
    },
    Table {
        used: &["key"],
        ..Table::of("envoy.extensions.filters.http.jwt_authn.v3.JwtClaimToHeader.PathSegment")
    },
    Table {
        used: &["match", "requires", "requirement_name"],
        ..Table::of("envoy.extensions.filters.http.jwt_authn.v3.RequirementRule")
    },
    Table {
        used: &[
            "provider_name",
            "provider_and_audiences",
            "requires_any",
            "requires_all",
            "allow_missing_or_failed",
            "allow_missing",
        ],
        refused: &[(
            "extract_only_without_validation",
            "tokens are verified before anything of them is used",
        )],
        ..Table::of("envoy.extensions.filters.http.jwt_authn.v3.JwtRequirement")
    },
    Table {
        used: &["provider_name", "audiences"],
        ..Table::of("envoy.extensions.filters.http.jwt_authn.v3.ProviderWithAudiences")
    },
    Table {
        used: &["requirements"],
        ..Table::of("envoy.extensions.filters.http.jwt_authn.v3.JwtRequirementOrList")
    },
    Table {
        used: &["requirements"],
        ..Table::of("envoy.extensions.filters.http.jwt_authn.v3.JwtRequirementAndList")
    },
    Table {
        used: &["disabled", "requirement_name"],
        ..Table::of("envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig")
    },
    Table {
        used: &[
            "compressor_library",
            "response_direction_config",
            "content_length",
            "content_type",
            "disable_on_etag_header",
            "remove_accept_encoding_header",
            "choose_first",
        ],
        refused: &[
            ("request_direction_config", "requests are not compressed"),
            ("runtime_enabled", "the switch has to be in response_direction_config.common_config"),
        ],
        ..Table::of("envoy.extensions.filters.http.compressor.v3.Compressor")
    },
    Table {
        used: &["enabled", "min_content_length", "content_type", "content_type_matcher"],
        ..Table::of("envoy.extensions.filters.http.compressor.v3.Compressor.CommonDirectionConfig")
    },
    Table {
        used: &[
            "common_config",
            "disable_on_etag_header",
            "weaken_etag_on_compress",
            "remove_accept_encoding_header",
            "uncompressible_response_codes",
        ],
        only_off: &["status_header_enabled"],
        ..Table::of("envoy.extensions.filters.http.compressor.v3.Compressor.ResponseDirectionConfig")
    },
    Table {
        used: &["disabled", "overrides"],
        ..Table::of("envoy.extensions.filters.http.compressor.v3.CompressorPerRoute")
    },
    Table {
        used: &["response_direction_config"],
        refused: &[("compressor_library", "routes cannot compress in another way than the filter")],
        ..Table::of("envoy.extensions.filters.http.compressor.v3.CompressorOverrides")
    },
    Table {
        used: &["remove_accept_encoding_header"],
        ..Table::of("envoy.extensions.filters.http.compressor.v3.ResponseDirectionOverrides")
    },
    Table {
        used: &["compression_level"],
        no_effect: &[
            ("memory_level", OWN_MEMORY),
            ("window_bits", OWN_MEMORY),
            ("chunk_size", OWN_MEMORY),
            ("compression_strategy", "the strategy is the usual one"),
        ],
        ..Table::of("envoy.extensions.compression.gzip.compressor.v3.Gzip")
    },
    Table {
        used: &["quality", "window_bits"],
        no_effect: &[
            ("encoder_mode", "the mode is the usual one"),
            ("input_block_bits", OWN_MEMORY),
            ("chunk_size", OWN_MEMORY),
        ],
        only_off: &["disable_literal_context_modeling"],
        ..Table::of("envoy.extensions.compression.brotli.compressor.v3.Brotli")
    },
    Table {
        used: &["compression_level", "enable_checksum"],
        no_effect: &[("strategy", "the strategy is that of the level"), ("chunk_size", OWN_MEMORY)],
        refused: &[("dictionary", "dictionaries are not supported")],
        ..Table::of("envoy.extensions.compression.zstd.compressor.v3.Zstd")
    },
];

const OWN_MEMORY: &str = "what is sent is the same; memory is the library's own business";

const AS_IT_IS: &str = "the value is taken as it is";

/// Rules of routes, as opposed to those in settings of a filter.
pub(super) const ROUTE_RATE_LIMIT: Table = Table {
    used: &["stage", "actions", "limit"],
    no_effect: &[("hits_addend", "it counts in settings of the filter only, as in Envoy")],
    only_off: &["disable_key", "apply_on_stream_done", "x_ratelimit_option"],
    ..Table::of("envoy.config.route.v3.RateLimit")
};

/// A service that is asked once for each request, where others are streams.
pub(super) const CALL: Table = Table {
    used: &["timeout", "initial_metadata", "retry_policy"],
    used_as: &[("envoy_grpc", &CALLED)],
    refused: &[("google_grpc", "only envoy_grpc is supported")],
    ..Table::of("envoy.config.core.v3.GrpcService")
};

const CALLED: Table = Table {
    used: &["cluster_name", "authority"],
    only_off: &["skip_envoy_headers"],
    refused: &[
        ("retry_policy", "only that of the service itself is supported"),
        ("max_receive_message_length", "answers of up to 4 MiB are received"),
    ],
    ..Table::of("envoy.config.core.v3.GrpcService.EnvoyGrpc")
};

/// The service of `ext_authz`, whose path is that of the request.
const SERVER_URI: Table = Table {
    used: &["cluster", "timeout"],
    no_effect: &[("uri", "requests go to the cluster, with the host and the path of what is checked")],
    ..Table::of("envoy.config.core.v3.HttpUri")
};
