//! `config.endpoint.v3`.

use super::Table;

pub(super) const TABLES: &[Table] = &[
    Table {
        used: &["cluster_name", "endpoints", "policy"],
        no_effect: &[("named_endpoints", "endpoints cannot refer to them by name")],
        ..Table::of("envoy.config.endpoint.v3.ClusterLoadAssignment")
    },
    Table {
        used: &["drop_overloads", "overprovisioning_factor", "weighted_priority_health"],
        refused: &[("endpoint_stale_after", "endpoints do not become stale")],
        ..Table::of("envoy.config.endpoint.v3.ClusterLoadAssignment.Policy")
    },
    Table {
        used: &["drop_percentage"],
        no_effect: &[("category", "load is not reported, by category or at all")],
        ..Table::of("envoy.config.endpoint.v3.ClusterLoadAssignment.Policy.DropOverload")
    },
    Table {
        used: &["lb_endpoints", "load_balancing_weight", "priority", "metadata", "locality"],
        no_effect: &[("proximity", "nothing reads it")],
        ..Table::of("envoy.config.endpoint.v3.LocalityLbEndpoints")
    },
    Table {
        used: &["endpoint", "health_status", "load_balancing_weight", "metadata"],
        refused: &[("endpoint_name", "endpoints cannot refer to others by name")],
        ..Table::of("envoy.config.endpoint.v3.LbEndpoint")
    },
    Table {
        used: &["address", "hostname", "additional_addresses", "health_check_config"],
        no_effect: &[("observability_name", "endpoints are shown by address")],
        ..Table::of("envoy.config.endpoint.v3.Endpoint")
    },
    Table {
        used: &["port_value", "hostname", "address", "disable_active_health_check"],
        ..Table::of("envoy.config.endpoint.v3.Endpoint.HealthCheckConfig")
    },
    Table { used: &["address"], ..Table::of("envoy.config.endpoint.v3.Endpoint.AdditionalAddress") },
    Table {
        used: &["filter_metadata"],
        no_effect: &[("typed_filter_metadata", "nothing reads it")],
        ..Table::of("envoy.config.core.v3.Metadata")
    },
];
