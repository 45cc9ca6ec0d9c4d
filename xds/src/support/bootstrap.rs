//! `config.bootstrap.v3` and Culvert's own settings.

use super::Table;

const NO_SINKS: &str = "there are no stats sinks to flush to";
const OWN_AGENT: &str = "control planes are told Culvert's own";

pub(super) const TABLES: &[Table] = &[
    Table {
        used: &[
            "node",
            "static_resources",
            "dynamic_resources",
            "cluster_manager",
            "layered_runtime",
            "admin",
            "overload_manager",
            "bootstrap_extensions",
            "default_regex_engine",
            "typed_dns_resolver_config",
            "stats_config",
            "stats_flush_interval",
        ],
        no_effect: &[
            ("node_context_params", "resources are asked for by their names alone"),
            ("hds_config", "health discovery is not done; nothing waits for it"),
            ("flags_path", "flags in files are not read"),
            ("deferred_stat_options", "counters cost no memory before they count"),
            ("stats_flush_on_admin", NO_SINKS),
            ("stats_eviction_interval", "counters live as long as what they count"),
            ("watchdog", "there is no watchdog"),
            ("watchdogs", "there is no watchdog"),
            ("enable_dispatcher_stats", "there is no dispatcher"),
            ("stats_server_version_override", "server.version is Culvert's own"),
            ("inline_headers", "it speeds up header look-ups in Envoy only"),
            ("perf_tracing_file_path", "it needs a debugging build of Envoy"),
            ("application_log_config", "the application log has one format"),
            ("grpc_async_client_manager_config", "it tunes Envoy's gRPC clients"),
            ("memory_allocator_manager", "it tunes Envoy's allocator"),
            ("enable_worker_cpu_affinity", "workers are pinned in any case"),
        ],
        only_off: &["use_tcp_for_dns_lookups"],
        refused: &[
            ("stats_sinks", "stats sinks are not supported"),
            ("tracing", "tracing is not supported"),
            ("header_prefix", "the prefix of x-envoy- headers cannot be changed"),
            ("dns_resolution_config", "resolvers cannot be chosen; the system's are used"),
        ],
        ..Table::of("envoy.config.bootstrap.v3.Bootstrap")
    },
    Table {
        used: &["id", "cluster", "metadata", "locality", "listening_addresses"],
        no_effect: &[
            ("dynamic_parameters", "resources are asked for by their names alone"),
            ("user_agent_name", OWN_AGENT),
            ("user_agent_version", OWN_AGENT),
            ("user_agent_build_version", OWN_AGENT),
            ("extensions", OWN_AGENT),
            ("client_features", OWN_AGENT),
        ],
        ..Table::of("envoy.config.core.v3.Node")
    },
    // The resources below are looked into one by one, under their own names.
    Table {
        used: &["listeners", "clusters", "secrets"],
        ..Table::of("envoy.config.bootstrap.v3.Bootstrap.StaticResources")
    },
    Table {
        used: &["lds_config", "cds_config", "ads_config"],
        ..Table::of("envoy.config.bootstrap.v3.Bootstrap.DynamicResources")
    },
    Table {
        used: &["local_cluster_name"],
        no_effect: &[
            ("outlier_detection", "ejections are written to the log of the process"),
            ("load_stats_config", "load is not reported"),
            ("enable_deferred_cluster_creation", "clusters cost little before they are used"),
        ],
        refused: &[("upstream_bind_config", "source addresses cannot be chosen")],
        ..Table::of("envoy.config.bootstrap.v3.ClusterManager")
    },
    Table {
        used: &["address"],
        no_effect: &[
            ("access_log", "admin requests are not logged"),
            ("access_log_path", "admin requests are not logged"),
            ("profile_path", "there is no CPU profiler"),
            ("ignore_global_conn_limit", "admin connections are not counted"),
        ],
        ..Table::of("envoy.config.bootstrap.v3.Admin")
    },
    Table { used: &["layers"], ..Table::of("envoy.config.bootstrap.v3.LayeredRuntime") },
    Table {
        used: &["stats_tags", "use_all_default_tags", "stats_matcher", "histogram_bucket_settings"],
        ..Table::of("envoy.config.metrics.v3.StatsConfig")
    },
    Table {
        used: &["tag_name", "regex", "fixed_value"],
        ..Table::of("envoy.config.metrics.v3.TagSpecifier")
    },
    Table {
        used: &["reject_all", "exclusion_list", "inclusion_list"],
        ..Table::of("envoy.config.metrics.v3.StatsMatcher")
    },
    Table { used: &["match", "buckets"], ..Table::of("envoy.config.metrics.v3.HistogramBucketSettings") },
    Table { used: &["patterns"], ..Table::of("envoy.type.matcher.v3.ListStringMatcher") },
    Table {
        used: &["name", "static_layer", "rtds_layer"],
        no_effect: &[("admin_layer", "runtime values cannot be changed from the admin server")],
        refused: &[("disk_layer", "runtime values on disk are not read")],
        ..Table::of("envoy.config.bootstrap.v3.RuntimeLayer")
    },
    Table { used: &["name", "rtds_config"], ..Table::of("envoy.config.bootstrap.v3.RuntimeLayer.RtdsLayer") },
    Table {
        used: &["resource_monitors"],
        no_effect: &[("refresh_interval", "the only monitor there is counts connections as they come")],
        ..Table::of("envoy.config.overload.v3.OverloadManager")
    },
    Table { used: &["name", "typed_config"], ..Table::of("envoy.config.overload.v3.ResourceMonitor") },
    Table {
        used: &["max_active_downstream_connections"],
        ..Table::of(
            "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        )
    },
    Table::of("envoy.extensions.regex_engines.v3.GoogleRE2"),
    Table {
        used: &["exclude_outbound_cidrs", "exclude_outbound_ports", "exclude_inbound_ports"],
        ..Table::of("culvert.v1.Capture")
    },
];
