//! `/stats`, `/stats/prometheus`, `/reset_counters`.

use regex::Regex;

use crate::control::admin::backend::Backend;
use crate::control::admin::home::escape;
use crate::control::admin::query::Query;
use crate::control::admin::reply::Reply;
use crate::observe::prometheus;
use crate::observe::registry::Snapshot;
use crate::observe::render::{self, HistogramForm, Select, SelectKind};

#[derive(Clone, Copy, PartialEq, Eq)]
enum StatsFormat {
    Html,
    Json,
    Prometheus,
    Text,
}

/// `/stats`
pub(super) fn stats(query: &Query, backend: &dyn Backend) -> Reply {
    let format = match query.non_empty("format") {
        None | Some("text") => StatsFormat::Text,
        Some("html") => StatsFormat::Html,
        Some("json") => StatsFormat::Json,
        Some("prometheus") => StatsFormat::Prometheus,
        Some(_) => return Reply::bad_request("usage: /stats?format=(html|json|prometheus|text)\n\n"),
    };
    answer(query, backend, format).unwrap_or_else(|refused| refused)
}

/// `/stats/prometheus`
pub(super) fn stats_prometheus(query: &Query, backend: &dyn Backend) -> Reply {
    answer(query, backend, StatsFormat::Prometheus).unwrap_or_else(|refused| refused)
}

/// `/reset_counters`
pub(super) fn reset_counters(_: &Query, backend: &dyn Backend) -> Reply {
    backend.registry().reset_counters();
    Reply::ok()
}

fn answer(query: &Query, backend: &dyn Backend, format: StatsFormat) -> Result<Reply, Reply> {
    let select = select(query)?;
    let form = match query.non_empty("histogram_buckets") {
        None | Some("summary") => HistogramForm::Summary,
        Some("cumulative") => HistogramForm::Cumulative,
        Some("disjoint") => HistogramForm::Disjoint,
        Some(_) => {
            return Err(Reply::bad_request(
                "usage: /stats?histogram_buckets=(cumulative|disjoint|summary)\n",
            ));
        }
    };
    backend.refresh_stats();
    let mut snapshot: Snapshot = backend.registry().snapshot();
    select.apply(&mut snapshot);
    Ok(match format {
        StatsFormat::Html => {
            Reply::html(format!("<!DOCTYPE html><pre>\n{}</pre>\n", escape(&render::text(&snapshot, form))))
        }
        StatsFormat::Json => Reply::json_compact(&render::json(&snapshot, form)),
        StatsFormat::Prometheus => Reply::text(prometheus::render(&snapshot)),
        StatsFormat::Text => Reply::text(render::text(&snapshot, form)),
    })
}

fn select(query: &Query) -> Result<Select, Reply> {
    let filter = query.non_empty("filter").map(Regex::new).transpose().map_err(|error| {
        // The last line of the parser's message says what is wrong; the others draw it.
        let message = error.to_string();
        let reason = message.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        Reply::bad_request(format!("Invalid re2 regex: {reason}"))
    })?;
    let kind = match query.non_empty("type") {
        None | Some("All") => SelectKind::All,
        Some("Counters") => SelectKind::Counters,
        Some("Gauges") => SelectKind::Gauges,
        Some("Histograms") => SelectKind::Histograms,
        Some("TextReadouts") => SelectKind::TextReadouts,
        Some(_) => return Err(Reply::bad_request("invalid &type= param")),
    };
    let (used_only, invert_filter) = (query.has("usedonly"), query.has("invert_filter"));
    Ok(Select { used_only, filter, invert_filter, kind })
}
