//! `config.endpoint.v3`.

use super::Table;

pub(super) const TABLES: &[Table] = &[
    Table {
        used: &["cluster_name", "endpoints", "policy"],
        no_effect: &[("named_endpoints", "endpoints cannot refer to them by name")],
        ..Table::of("envoy.config.endpoint.v3.ClusterLoadAssignment")
    },
    Table {
        refused: &[
            ("drop_overloads", "requests cannot be dropped by category"),
            ("overprovisioning_factor", "the overprovisioning factor cannot be changed"),
            ("endpoint_stale_after", "endpoints do not become stale"),
            ("weighted_priority_health", "priorities are chosen by the number of healthy endpoints"),
        ],
        ..Table::of("envoy.config.endpoint.v3.ClusterLoadAssignment.Policy")
    },
    Table {
        used: &["lb_endpoints", "load_balancing_weight", "priority"],
        no_effect: &[
            ("locality", "endpoints of all localities are used by their weights"),
            ("metadata", "nothing reads it"),
            ("proximity", "nothing reads it"),
        ],
        ..Table::of("envoy.config.endpoint.v3.LocalityLbEndpoints")
    },
    Table {
        used: &["endpoint", "health_status", "load_balancing_weight"],
        no_effect: &[("metadata", "nothing reads it")],
        refused: &[("endpoint_name", "endpoints cannot refer to others by name")],
        ..Table::of("envoy.config.endpoint.v3.LbEndpoint")
    },
    Table {
        used: &["address", "hostname"],
        no_effect: &[
            ("health_check_config", "there are no active health checks"),
            ("observability_name", "endpoints are shown by address"),
        ],
        refused: &[("additional_addresses", "an endpoint has one address")],
        ..Table::of("envoy.config.endpoint.v3.Endpoint")
    },
];
