//! The sets of statistics, with Envoy 1.40's names.
//!
//! A name is here only if the data plane feeds it. Histograms and times are in milliseconds, sizes in bytes. Unless a
//! set says otherwise each worker makes its own and registers it under the scope given.

use culvert_proto::outlier::Cause;
use culvert_ring::heap::{Allocations, count_allocations};

use crate::{
    observe::stats::{Sample, StatSet},
    stat_set,
};

stat_set! {
    /// Scope `listener.<address>` (see [`crate::observe::names::address_scope`]) or `listener.<stat_prefix>`.
    pub struct ListenerStats {
        counter downstream_cx_total,
        gauge downstream_cx_active,
        counter downstream_cx_destroy,
        /// Closed because the process-wide connection limit was reached.
        counter downstream_global_cx_overflow,
        /// Connections whose listener filters still run.
        gauge downstream_pre_cx_active,
        /// Closed by a listener filter.
        counter downstream_listener_filter_error,
        /// Closed by the client while listener filters ran.
        counter downstream_listener_filter_remote_close,
        counter downstream_pre_cx_timeout,
        /// Closed because no filter chain matches, and there is no default one.
        counter no_filter_chain_match,
        histogram downstream_cx_length_ms,
    }
}

stat_set! {
    /// Scope `listener.<address>.worker_<n>`: the same connections again, by worker.
    pub struct ListenerWorkerStats {
        counter downstream_cx_total,
        gauge downstream_cx_active,
    }
}

stat_set! {
    /// Scope `culvert.config`.
    pub struct ConfigStats {
        /// From the arrival of a delivery or the change of a file to a worker having taken over what came of it, in
        /// microseconds; one sample per worker.
        histogram apply_time,
    }
}

/// Scope `culvert.worker_<n>`: `allocations`, which stands still while requests of HTTP/1.1 are proxied that are like those
/// before them.
#[derive(Debug)]
pub struct HeapStats(Allocations);

impl HeapStats {
    /// Counts what the current thread allocates.
    pub fn of_this_thread() -> Self {
        Self(count_allocations())
    }
}

impl StatSet for HeapStats {
    fn visit(&self, f: &mut dyn FnMut(&str, Sample<'_>)) {
        f("allocations", Sample::Counter(self.0.value()));
    }
}

stat_set! {
    /// Scope `tls_inspector`.
    pub struct TlsInspectorStats {
        counter alpn_found,
        counter alpn_not_found,
        counter client_hello_too_large,
        counter sni_found,
        counter sni_not_found,
        counter tls_found,
        counter tls_not_found,
    }
}

stat_set! {
    /// Scope `http_inspector`.
    pub struct HttpInspectorStats {
        counter http10_found,
        counter http11_found,
        counter http2_found,
        counter http_not_found,
    }
}

stat_set! {
    /// No scope.
    pub struct ProxyFilterStats {
        /// Closed for the PROXY header, or for the lack of one.
        counter downstream_cx_proxy_proto_error,
    }
}

stat_set! {
    /// Scope `proxy_proto.<stat_prefix>`.
    pub struct ProxyStats {
        counter not_found_allowed,
        counter not_found_disallowed,
    }
}

stat_set! {
    /// Scope `proxy_proto.<stat_prefix>.versions.<v1 or v2>`.
    pub struct ProxyVersionStats {
        counter disallowed,
        counter error,
        counter found,
    }
}

stat_set! {
    /// Scope `listener_manager`; one set, owned by the control thread.
    pub struct ListenerManagerStats {
        counter listener_added,
        counter listener_create_failure,
        counter listener_create_success,
        counter listener_in_place_updated,
        counter listener_modified,
        counter listener_removed,
        counter listener_stopped,
        gauge total_filter_chains_draining,
        gauge total_listeners_active,
        gauge total_listeners_draining,
        gauge total_listeners_warming,
        gauge workers_started,
    }
}

stat_set! {
    /// Scope `http.<stat_prefix>`. Response classes are beside it in a
    /// [`CodeStats::downstream`](crate::observe::codes::CodeStats::downstream) of the same scope.
    pub struct HttpStats {
        counter downstream_cx_total,
        gauge downstream_cx_active,
        counter downstream_cx_delayed_close_timeout,
        counter downstream_cx_destroy,
        counter downstream_cx_destroy_active_rq,
        counter downstream_cx_destroy_local,
        counter downstream_cx_destroy_remote,
        counter downstream_cx_destroy_remote_active_rq,
        counter downstream_cx_drain_close,
        counter downstream_cx_http1_total,
        gauge downstream_cx_http1_active,
        counter downstream_cx_http2_total,
        gauge downstream_cx_http2_active,
        counter downstream_cx_http3_total,
        gauge downstream_cx_http3_active,
        counter downstream_cx_idle_timeout,
        counter downstream_cx_max_duration_reached,
        counter downstream_cx_max_requests_reached,
        counter downstream_cx_protocol_error,
        counter downstream_cx_rx_bytes_total,
        counter downstream_cx_tx_bytes_total,
        counter downstream_cx_upgrades_total,
        counter downstream_rq_total,
        gauge downstream_rq_active,
        counter downstream_rq_http1_total,
        counter downstream_rq_http2_total,
        counter downstream_rq_http3_total,
        counter downstream_rq_failed_path_normalization,
        counter downstream_rq_header_timeout,
        counter downstream_rq_idle_timeout,
        counter downstream_rq_max_duration_reached,
        counter downstream_rq_non_relative_path,
        counter downstream_rq_redirected_with_normalized_path,
        counter downstream_rq_response_before_rq_complete,
        counter downstream_rq_rx_reset,
        counter downstream_rq_timeout,
        counter downstream_rq_too_large,
        counter downstream_rq_tx_reset,
        counter downstream_rq_too_many_premature_resets,
        counter downstream_rq_ws_on_non_ws_route,
        counter no_cluster,
        counter no_route,
        counter passthrough_internal_redirect_bad_location,
        counter passthrough_internal_redirect_no_route,
        counter passthrough_internal_redirect_predicate,
        counter passthrough_internal_redirect_too_many_redirects,
        counter passthrough_internal_redirect_unsafe_scheme,
        counter rq_direct_response,
        counter rq_total,
        histogram downstream_cx_length_ms,
        histogram downstream_rq_time,
    }
}

stat_set! {
    /// Scope `cluster.<alt_stat_name or name>`: requests that ask for a subset of its endpoints.
    pub struct SubsetStats {
        counter lb_subsets_fallback,
        counter lb_subsets_fallback_panic,
        counter lb_subsets_selected,
    }
}

stat_set! {
    /// Scope `cluster.<alt_stat_name or name>`: requests that are routed by zone.
    pub struct ZoneStats {
        counter lb_zone_routing_all_directly,
        counter lb_zone_routing_cross_zone,
        counter lb_zone_routing_sampled,
    }
}

stat_set! {
    /// Scope `cluster.<alt_stat_name or name>`: what the workers do with the cluster. Response codes are beside it in a
    /// [`CodeStats::upstream`](crate::observe::codes::CodeStats::upstream) of the same scope.
    pub struct ClusterStats {
        counter lb_healthy_panic,
        counter original_dst_host_invalid,
        /// Requests that were too large to be kept, to be sent again or elsewhere too.
        counter retry_or_shadow_abandoned,
        counter upstream_cx_total,
        gauge upstream_cx_active,
        counter upstream_cx_close_notify,
        counter upstream_cx_connect_attempts_exceeded,
        counter upstream_cx_connect_fail,
        counter upstream_cx_connect_timeout,
        counter upstream_cx_destroy,
        counter upstream_cx_destroy_local,
        counter upstream_cx_destroy_local_with_active_rq,
        counter upstream_cx_destroy_remote,
        counter upstream_cx_destroy_remote_with_active_rq,
        counter upstream_cx_destroy_with_active_rq,
        counter upstream_cx_http1_total,
        counter upstream_cx_http2_total,
        counter upstream_cx_http3_total,
        counter upstream_cx_idle_timeout,
        counter upstream_cx_max_duration_reached,
        counter upstream_cx_max_requests,
        counter upstream_cx_none_healthy,
        counter upstream_cx_overflow,
        counter upstream_cx_protocol_error,
        counter upstream_cx_rx_bytes_total,
        counter upstream_cx_tx_bytes_total,
        counter upstream_internal_redirect_failed_total,
        counter upstream_internal_redirect_succeeded_total,
        counter upstream_rq_total,
        gauge upstream_rq_active,
        /// Refused because there were `max_requests` already.
        counter upstream_rq_active_overflow,
        counter upstream_rq_cancelled,
        /// Requests that met a connection from the pool that the upstream had given up, and were not sent again.
        counter upstream_rq_dead_connection_lost,
        /// Those that were sent again over another connection.
        counter upstream_rq_dead_connection_retry,
        counter upstream_rq_drop_overload,
        /// Attempts that took longer than `max_stream_duration`.
        counter upstream_rq_max_duration_reached,
        gauge upstream_rq_pending_active,
        counter upstream_rq_pending_failure_eject,
        counter upstream_rq_pending_overflow,
        counter upstream_rq_pending_total,
        counter upstream_rq_per_try_idle_timeout,
        counter upstream_rq_per_try_timeout,
        counter upstream_rq_retry,
        counter upstream_rq_retry_backoff_exponential,
        counter upstream_rq_retry_backoff_ratelimited,
        counter upstream_rq_retry_limit_exceeded,
        counter upstream_rq_retry_overflow,
        counter upstream_rq_retry_success,
        counter upstream_rq_rx_reset,
        counter upstream_rq_timeout,
        counter upstream_rq_tx_reset,
        histogram upstream_cx_connect_ms,
        histogram upstream_cx_length_ms,
        histogram upstream_rq_time,
    }
}

stat_set! {
    /// Scope `vhost.<virtual host>.vcluster.<virtual cluster>` or `vhost.<virtual host>.route.<stat_prefix>`. Response codes
    /// are beside it in a [`CodeStats::upstream`](crate::observe::codes::CodeStats::upstream) of the same scope.
    pub struct RequestStats {
        counter upstream_rq_retry,
        counter upstream_rq_retry_limit_exceeded,
        counter upstream_rq_retry_overflow,
        counter upstream_rq_retry_success,
        counter upstream_rq_timeout,
        counter upstream_rq_total,
        histogram upstream_rq_time,
    }
}

stat_set! {
    /// Scope `http2` for clients, `cluster.<alt_stat_name or name>.http2` for upstreams.
    pub struct Http2Stats {
        counter dropped_headers_with_underscores,
        counter goaway_sent,
        /// Closed for a block of header fields without end.
        counter header_overflow,
        counter inbound_empty_frames_flood,
        counter inbound_priority_frames_flood,
        counter inbound_window_update_frames_flood,
        counter keepalive_timeout,
        counter outbound_control_flood,
        counter requests_rejected_with_underscores_in_headers,
        counter rx_messaging_error,
        counter rx_reset,
        gauge streams_active,
        counter trailers,
        /// Responses whose rest the client did not take in time.
        counter tx_flush_timeout,
        counter tx_reset,
    }
}

stat_set! {
    /// Scope `http3` for clients, `cluster.<alt_stat_name or name>.http3` for upstreams.
    pub struct Http3Stats {
        counter dropped_headers_with_underscores,
        counter requests_rejected_with_underscores_in_headers,
        counter rx_reset,
        gauge streams_active,
        counter trailers,
        /// Responses whose rest the client did not take in time.
        counter tx_flush_timeout,
        counter tx_reset,
    }
}

stat_set! {
    /// Scope `cluster.<alt_stat_name or name>`: what the control thread knows of the cluster; one set, its own.
    pub struct ClusterControlStats {
        counter membership_change,
        gauge membership_degraded,
        gauge membership_excluded,
        gauge membership_healthy,
        gauge membership_total,
        gauge version,
    }
}

stat_set! {
    /// Scope `cluster.<alt_stat_name or name>.outlier_detection`; one set, owned by the control thread.
    pub struct OutlierStats {
        gauge ejections_active,
        /// Detected ones of 5xx in a row, enforced or not; Envoy's older name.
        counter ejections_consecutive_5xx,
        counter ejections_detected_consecutive_5xx,
        counter ejections_detected_consecutive_gateway_failure,
        counter ejections_detected_consecutive_local_origin_failure,
        counter ejections_detected_failure_percentage,
        counter ejections_detected_local_origin_failure_percentage,
        counter ejections_detected_local_origin_success_rate,
        counter ejections_detected_success_rate,
        counter ejections_enforced_consecutive_5xx,
        counter ejections_enforced_consecutive_gateway_failure,
        counter ejections_enforced_consecutive_local_origin_failure,
        counter ejections_enforced_failure_percentage,
        counter ejections_enforced_local_origin_failure_percentage,
        counter ejections_enforced_local_origin_success_rate,
        counter ejections_enforced_success_rate,
        counter ejections_enforced_total,
        /// Those that `max_ejection_percent` forbade.
        counter ejections_overflow,
        /// Detected ones of success rates, enforced or not; Envoy's older name.
        counter ejections_success_rate,
        /// Those of 5xx in a row and of success rates that were allowed; Envoy's older name.
        counter ejections_total,
    }
}

impl OutlierStats {
    /// An outlier was detected.
    pub fn detected(&self, cause: Cause) {
        match cause {
            Cause::Consecutive5xx => {
                self.ejections_consecutive_5xx.inc();
                &self.ejections_detected_consecutive_5xx
            }
            Cause::ConsecutiveGateway => &self.ejections_detected_consecutive_gateway_failure,
            Cause::ConsecutiveLocal => &self.ejections_detected_consecutive_local_origin_failure,
            Cause::SuccessRate => {
                self.ejections_success_rate.inc();
                &self.ejections_detected_success_rate
            }
            Cause::LocalSuccessRate => &self.ejections_detected_local_origin_success_rate,
            Cause::FailurePercentage => &self.ejections_detected_failure_percentage,
            Cause::LocalFailurePercentage => &self.ejections_detected_local_origin_failure_percentage,
        }
        .inc();
    }

    /// So many are ejected that one more may be.
    pub fn admitted(&self, cause: Cause) {
        if matches!(cause, Cause::Consecutive5xx | Cause::SuccessRate) {
            self.ejections_total.inc();
        }
    }

    /// A host was ejected.
    pub fn enforced(&self, cause: Cause) {
        self.ejections_enforced_total.inc();
        match cause {
            Cause::Consecutive5xx => &self.ejections_enforced_consecutive_5xx,
            Cause::ConsecutiveGateway => &self.ejections_enforced_consecutive_gateway_failure,
            Cause::ConsecutiveLocal => &self.ejections_enforced_consecutive_local_origin_failure,
            Cause::SuccessRate => &self.ejections_enforced_success_rate,
            Cause::LocalSuccessRate => &self.ejections_enforced_local_origin_success_rate,
            Cause::FailurePercentage => &self.ejections_enforced_failure_percentage,
            Cause::LocalFailurePercentage => &self.ejections_enforced_local_origin_failure_percentage,
        }
        .inc();
    }
}

stat_set! {
    /// Scope `cluster.<alt_stat_name or name>.health_check`; one set, owned by the control thread.
    pub struct HealthCheckStats {
        counter attempt,
        counter failure,
        /// Failures without an answer.
        counter network_failure,
        counter success,
        /// Answers whose service name was looked at.
        counter verify_cluster,
        gauge degraded,
        gauge healthy,
    }
}

stat_set! {
    /// Scope `cluster_manager`; one set, owned by the control thread.
    pub struct ClusterManagerStats {
        gauge active_clusters,
        counter cluster_added,
        counter cluster_modified,
        counter cluster_removed,
        counter cluster_updated,
    }
}

stat_set! {
    /// Scope `tcp.<stat_prefix>`.
    pub struct TcpStats {
        counter downstream_cx_total,
        counter downstream_cx_no_route,
        counter downstream_cx_drain_close,
        counter downstream_cx_rx_bytes_total,
        counter downstream_cx_tx_bytes_total,
        counter idle_timeout,
        counter max_downstream_connection_duration,
    }
}

stat_set! {
    /// Scope `<stat_prefix>.rbac`.
    pub struct RbacStats {
        counter allowed,
        counter denied,
    }
}

stat_set! {
    /// Scope `<stat_prefix>.rbac`, and `shadow_rules_stat_prefix` behind it.
    pub struct RbacShadowStats {
        counter shadow_allowed,
        counter shadow_denied,
    }
}

stat_set! {
    /// Scope `http.<stat_prefix>.basic_auth`.
    pub struct BasicAuthStats {
        counter allowed,
        counter denied,
    }
}

stat_set! {
    /// Scope `http.<stat_prefix>.csrf`.
    pub struct CsrfStats {
        counter missing_source_origin,
        counter request_invalid,
        counter request_valid,
    }
}

stat_set! {
    /// Scope `http.<stat_prefix>.cors`.
    pub struct CorsStats {
        counter origin_invalid,
        counter origin_valid,
    }
}

stat_set! {
    /// Scope `http.<stat_prefix>.ext_authz`, and the filter's `stat_prefix` behind it.
    pub struct ExtAuthzStats {
        counter denied,
        /// Requests that were not checked.
        counter disabled,
        counter error,
        counter failure_mode_allowed,
        counter ok,
    }
}

stat_set! {
    /// Scope `cluster.<name>.ext_authz`, and the filter's `stat_prefix` behind it: by where requests go.
    pub struct ExtAuthzClusterStats {
        counter denied,
        counter error,
        counter failure_mode_allowed,
        counter ok,
    }
}

stat_set! {
    /// Scope `http.<stat_prefix>.health_check`.
    pub struct HealthAnswerStats {
        counter failed,
        counter ok,
        counter request_total,
    }
}

stat_set! {
    /// Scope `http.<stat_prefix>.fault`.
    pub struct FaultStats {
        counter aborts_injected,
        gauge active_faults,
        counter delays_injected,
        /// Faults left out because there were `max_active_faults` already.
        counter faults_overflow,
    }
}

stat_set! {
    /// Scope `<stat_prefix>.http_local_rate_limit`.
    pub struct HttpRateLimitStats {
        counter enabled,
        counter enforced,
        counter ok,
        counter rate_limited,
        /// Requests above a limit on trial.
        counter shadow_mode,
    }
}

stat_set! {
    /// Scope `http.<stat_prefix>.jwt_authn`, and the filter's `stat_prefix` behind it.
    pub struct JwtStats {
        counter allowed,
        counter cors_preflight_bypassed,
        counter denied,
        /// Tokens of known providers: none is ever kept.
        counter jwt_cache_miss,
        counter jwks_fetch_failed,
        counter jwks_fetch_success,
    }
}

stat_set! {
    /// Scope `http.<stat_prefix>.compressor.<compressor_library.name>.<kind>.response`.
    pub struct CompressorStats {
        counter compressed,
        counter content_length_too_small,
        counter not_compressed,
        counter total_compressed_bytes,
        counter total_uncompressed_bytes,
    }
}

stat_set! {
    /// Scope `http.<stat_prefix>.compressor.<compressor_library.name>.<kind>.request`: bodies of requests never are.
    pub struct RequestCompressorStats {
        counter not_compressed,
    }
}

stat_set! {
    /// Scope `http.<stat_prefix>.compressor.<compressor_library.name>.<kind>`.
    pub struct EncodingStats {
        /// The client likes the encoding of another filter better.
        counter header_compressor_overshadowed,
        counter header_compressor_used,
        counter header_identity,
        counter header_not_valid,
        counter header_wildcard,
        counter no_accept_header,
        counter not_compressed_etag,
    }
}

stat_set! {
    /// Scope `cluster.<name>.ratelimit`, and the filter's `stat_prefix` behind it: by where requests go.
    pub struct RateLimitStats {
        counter error,
        counter failure_mode_allowed,
        counter ok,
        counter over_limit,
    }
}

stat_set! {
    /// Scope `connection_limit.<stat_prefix>`.
    pub struct ConnectionLimitStats {
        gauge active_connections,
        counter limited_connections,
    }
}

stat_set! {
    /// Scope `local_rate_limit.<stat_prefix>`.
    pub struct LocalRateLimitStats {
        counter rate_limited,
    }
}

stat_set! {
    /// Scope `server`; one set, owned by the control thread.
    pub struct ServerStats {
        /// Workers.
        gauge concurrency,
        /// 4,294,967,295 without certificates.
        gauge days_until_first_cert_expiring,
        gauge hot_restart_epoch,
        /// 1 while the server is live and not draining.
        gauge live,
        gauge memory_allocated,
        gauge memory_heap_size,
        gauge memory_physical_size,
        gauge parent_connections,
        /// 0 live, 1 draining, 2 pre-initialising, 3 initialising.
        gauge state,
        gauge total_connections,
        /// Seconds since start.
        gauge uptime,
        /// The first digits of the source revision.
        gauge version,
        counter static_unknown_fields,
        counter dynamic_unknown_fields,
        histogram initialization_time_ms,
    }
}

stat_set! {
    /// Scope `filesystem`; one set, owned by the thread that writes log files.
    pub struct FilesystemStats {
        /// Writes because the flush interval passed, not because a buffer was full.
        counter flushed_by_timer,
        counter reopen_failed,
        counter write_completed,
        counter write_failed,
    }
}

stat_set! {
    /// Scope `filesystem`: what one worker handed to one log file.
    pub struct SinkStats {
        /// Lines taken.
        counter write_buffered,
        /// Lines lost because the disk did not keep up (Culvert's own).
        counter write_dropped,
    }
}

stat_set! {
    /// Scope `culvert.direct`; one set, owned by the control thread.
    pub struct DirectStats {
        /// Connections that are open.
        gauge cx_active,
        counter cx_total,
        counter cx_connect_fail,
        /// Closed because nothing allows them any more.
        counter cx_withdrawn,
        /// Closed because they were idle for too long.
        counter cx_idle_timeout,
        /// Rules that lead to endpoints.
        gauge rules,
        /// Rules that lead to the proxy.
        gauge rules_proxied,
    }
}

stat_set! {
    /// Scope `culvert.splice`: connections whose bytes skip TCP between two sockets of this node, of which culvert's own are
    /// counted.
    pub struct SpliceStats {
        /// Sockets that entered the map; one of a connection for one request does not.
        counter cx_total,
        gauge cx_active,
        /// Bytes redirected to culvert.
        counter rx_bytes_total,
        /// Bytes redirected from culvert to applications; those to another socket of culvert's are received there.
        counter tx_bytes_total,
        /// How often a direction returned to TCP because a reader was slow.
        counter fallback_limit,
        /// Connections that returned to TCP because the application set an option that redirected bytes do not obey.
        counter fallback_option,
        /// Connections that returned to TCP because more was read than was known to be sent: a fault of the kernel's or ours.
        counter fallback_miscount,
        /// Not spliced because another eBPF program has the socket.
        counter declined_busy,
        /// Not spliced because all places were taken.
        counter declined_full,
        /// Not spliced because the kernel refused.
        counter declined_other,
        /// How often the kernel was asked what an application has read.
        counter reader_asked,
    }
}

stat_set! {
    /// Scope `culvert.capture`: connections that pods' traffic made, as the workers see them.
    pub struct CaptureStats {
        /// Outbound connections accepted with a recorded original destination.
        counter captured_outbound,
        /// Inbound connections accepted on behalf of a pod.
        counter captured_inbound,
        /// Reset because nobody had recorded where they were going: dialled by hand, or the record was lost.
        counter no_original_dst,
    }
}
