//! `config.accesslog.v3.AccessLogFilter`.

use culvert_model::{AccessLogFilter, Comparison, ComparisonOp};
use envoy_types::pb::envoy::{
    config::accesslog::v3::{
        self as pb, access_log_filter::FilterSpecifier, comparison_filter::Op, extension_filter,
    },
    r#type::v3::fractional_percent::DenominatorType,
};

use super::extension_name;
use crate::{at::At, convert::matcher};

/// A filter.
pub(super) fn filter(at: &At<'_>, filter: &pb::AccessLogFilter) -> Option<AccessLogFilter> {
    Some(match filter.filter_specifier.as_ref()? {
        FilterSpecifier::AndFilter(and) => {
            AccessLogFilter::And(all(&at.field("and_filter").field("filters"), &and.filters)?)
        }
        FilterSpecifier::DurationFilter(duration) => {
            AccessLogFilter::Duration(comparison(duration.comparison.as_ref()?)?)
        }
        FilterSpecifier::ExtensionFilter(extension) => {
            let any =
                extension.config_type.as_ref().map(|extension_filter::ConfigType::TypedConfig(any)| any);
            return at
                .field("extension_filter")
                .unsupported(format!("{} is not a supported filter", extension_name(any)));
        }
        FilterSpecifier::GrpcStatusFilter(grpc) => AccessLogFilter::GrpcStatus {
            statuses: grpc.statuses.iter().filter_map(|status| u32::try_from(*status).ok()).collect(),
            exclude: grpc.exclude,
        },
        FilterSpecifier::HeaderFilter(header) => {
            let at = at.field("header_filter");
            let header = matcher::header(&at.field("header"), header.header.as_ref()?)?;
            AccessLogFilter::Header(Box::new(header))
        }
        FilterSpecifier::LogTypeFilter(log_type) => {
            AccessLogFilter::LogType { types: log_type.types.clone(), exclude: log_type.exclude }
        }
        // No request carries metadata, so the key is never found.
        FilterSpecifier::MetadataFilter(metadata) => AccessLogFilter::Constant(
            metadata.match_if_key_not_found.as_ref().is_none_or(|matches| matches.value),
        ),
        FilterSpecifier::NotHealthCheckFilter(_) => AccessLogFilter::NotHealthCheck,
        FilterSpecifier::OrFilter(or) => {
            AccessLogFilter::Or(all(&at.field("or_filter").field("filters"), &or.filters)?)
        }
        FilterSpecifier::ResponseFlagFilter(flags) => AccessLogFilter::ResponseFlags(flags.flags.clone()),
        FilterSpecifier::RuntimeFilter(runtime) => {
            let percent = runtime.percent_sampled.unwrap_or_default();
            AccessLogFilter::Runtime {
                key: runtime.runtime_key.clone(),
                numerator: percent.numerator,
                denominator: match percent.denominator() {
                    DenominatorType::Hundred => 100,
                    DenominatorType::TenThousand => 10_000,
                    DenominatorType::Million => 1_000_000,
                },
                independent: runtime.use_independent_randomness,
            }
        }
        FilterSpecifier::StatusCodeFilter(status) => {
            AccessLogFilter::StatusCode(comparison(status.comparison.as_ref()?)?)
        }
        FilterSpecifier::TraceableFilter(_) => AccessLogFilter::Traceable,
    })
}

fn all(at: &At<'_>, filters: &[pb::AccessLogFilter]) -> Option<Vec<AccessLogFilter>> {
    let converted: Vec<_> =
        filters.iter().enumerate().map(|(i, inner)| filter(&at.index(i), inner)).collect();
    converted.into_iter().collect()
}

fn comparison(comparison: &pb::ComparisonFilter) -> Option<Comparison> {
    let value = comparison.value.as_ref()?;
    Some(Comparison {
        op: match comparison.op() {
            Op::Eq => ComparisonOp::Equal,
            Op::Ge => ComparisonOp::GreaterOrEqual,
            Op::Le => ComparisonOp::LessOrEqual,
            Op::Ne => ComparisonOp::NotEqual,
        },
        value: u64::from(value.default_value),
        runtime_key: value.runtime_key.clone(),
    })
}
