//! `envoy.filters.http.header_mutation`: changes of headers, of its own and of every level of routes.

use std::sync::Arc;

use culvert_model::HeaderChanges;
use culvert_proto::filter::{Settings, change_headers};

use super::{Response, Scope, Verdict};
use crate::http::{exchange::Exchange, format::Values};

/// The filter.
pub(super) struct HeaderMutation {
    pub(super) changes: Arc<HeaderChanges>,
    pub(super) most_specific_wins: bool,
}

impl HeaderMutation {
    pub(super) fn decode(&self, exchange: &mut Exchange<'_>, scope: &Scope<'_>) -> Verdict {
        // The list is taken out so that the values may look at the rest of the request.
        let mut headers = std::mem::take(&mut exchange.head.headers);
        let values = Values::for_filter(exchange);
        let mut scratch = exchange.conn.worker.buffer();
        self.each(scope, |changes| change_headers(&changes.request, &mut headers, &values, &mut scratch));
        exchange.conn.worker.recycle_buffer(scratch);
        exchange.head.headers = headers;
        Verdict::Continue
    }

    pub(super) fn encode(&self, exchange: &Exchange<'_>, scope: &Scope<'_>, response: &mut Response<'_>) {
        let values = Values::for_response(exchange, response.host);
        let mut scratch = exchange.conn.worker.buffer();
        self.each(scope, |changes| {
            change_headers(&changes.response, response.headers, &values, &mut scratch);
        });
        exchange.conn.worker.recycle_buffer(scratch);
    }

    /// Its own changes come first; of those of routes the last word has the least specific level, or the most specific.
    fn each(&self, scope: &Scope<'_>, mut apply: impl FnMut(&HeaderChanges)) {
        apply(&self.changes);
        let changes = scope.overrides().filter_map(|level| match &level.settings {
            Some(Settings::HeaderMutation(changes)) => Some(&**changes),
            _ => None,
        });
        if self.most_specific_wins {
            changes.rev().for_each(apply);
        } else {
            changes.for_each(apply);
        }
    }
}
