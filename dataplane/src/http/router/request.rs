//! The head of a request as its upstream gets it.

use std::rc::Rc;

use culvert_model::RouteAction;
use culvert_proto::{
    Method,
    h1::{self, Framing},
    route::{rewrite_host, rewrite_path},
};

use super::Passage;
use crate::{
    http::{deadlines::route_timeout, exchange::Exchange, format::Values, hygiene, reply::Reply},
    upstream::Host,
};

impl Exchange<'_> {
    /// Whether the request asks for an upgrade that the route or the connection manager allows.
    pub(super) fn upgrade(&self, action: &RouteAction) -> Result<bool, Reply> {
        let manager = &self.conn.manager;
        if self.speaks_http_10() {
            return Ok(false);
        }
        let wanted = match h1::upgrade(&self.head.headers) {
            Some(wanted) => wanted,
            None if self.head.method == Method::Connect => b"connect",
            None => return Ok(false),
        };
        let of = |list: &[(String, bool)]| {
            list.iter().find(|(name, _)| name.as_bytes().eq_ignore_ascii_case(wanted)).map(|(_, on)| *on)
        };
        let allowed = of(&action.upgrades).or_else(|| of(&manager.spec.config.upgrades)).unwrap_or(false);
        // CONNECT is refused until it is terminated properly.
        if !allowed || self.head.method == Method::Connect {
            manager.stats.downstream_rq_ws_on_non_ws_route.inc();
            return Err(Reply::new(403, "").details("upgrade_failed"));
        }
        manager.stats.downstream_cx_upgrades_total.inc();
        Ok(true)
    }

    /// Turns the downstream head into the upstream head. Returns how its body is framed.
    pub(super) fn prepare_head(&mut self, passage: &Passage<'_>, host: &Rc<Host>) -> Framing {
        let Passage { action, matched, weighted, .. } = *passage;
        h1::remove_hop_by_hop(&mut self.head.headers, passage.upgrade);
        let mut scratch = Vec::new();
        if rewrite_path(&action.path, &matched.route.matcher.path, self.head.path(), &mut scratch) {
            let original = self.head.path().to_vec();
            self.head.headers.set("x-envoy-original-path", original);
            self.head.set_path(&scratch);
        }
        let spec = host.spec();
        let rewritten = match weighted.and_then(|weighted| weighted.host_rewrite.as_deref()) {
            Some(literal) => {
                scratch.clear();
                scratch.extend_from_slice(literal.as_bytes());
                true
            }
            None => rewrite_host(&action.host, &self.head.view(), &spec.endpoint.hostname, &mut scratch),
        };
        if rewritten {
            if action.append_forwarded_host {
                let original = self.head.authority().to_vec();
                self.head.headers.append("x-forwarded-host", original);
            }
            self.head.set_authority(&scratch);
        }
        hygiene::router_headers(self, route_timeout(action));
        if matched.vhost.include_request_attempt_count {
            self.head.headers.set("x-envoy-attempt-count", "1");
        }
        // The list is taken out so that the values may look at the rest of the request.
        let mut headers = std::mem::take(&mut self.head.headers);
        passage.mutations.apply_to_request(&mut headers, &Values::for_request(self, host), &mut scratch);
        self.head.headers = headers;
        self.framing
    }
}
