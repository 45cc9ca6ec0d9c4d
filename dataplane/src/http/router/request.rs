//! The head of a request as its upstream gets it.

use std::{rc::Rc, time::Duration};

use culvert_model::{HostRewrite, RouteAction, SchemeChange};
use culvert_proto::{
    Method, RequestHead, Scheme,
    h1::{self, Decimal, Framing},
    retry,
    route::{rewrite_host, rewrite_path},
};

use culvert_ring::time;

use super::{Passage, timeouts, tunnel};
use crate::{
    http::{exchange::Exchange, format::Values, grpc, hygiene, reply::Reply, shared::millis},
    upstream::Host,
};

impl Exchange<'_> {
    /// Whether the request asks for an upgrade that the route or the connection manager allows.
    pub(super) fn upgrade(&self, action: &RouteAction) -> Result<bool, Reply> {
        let manager = &self.conn.manager;
        if !self.upgrading {
            return Ok(false);
        }
        let wanted = match h1::upgrade(&self.head.headers) {
            _ if self.head.method == Method::Connect => b"connect",
            Some(wanted) => wanted,
            None => return Ok(false),
        };
        let of = |list: &[(String, bool)]| {
            list.iter().find(|(name, _)| name.as_bytes().eq_ignore_ascii_case(wanted)).map(|(_, on)| *on)
        };
        let allowed = of(&action.upgrades).or_else(|| of(&manager.spec.config.upgrades)).unwrap_or(false);
        if !allowed {
            manager.stats.downstream_rq_ws_on_non_ws_route.inc();
            return Err(Reply::new(403, "").details("upgrade_failed"));
        }
        manager.stats.downstream_cx_upgrades_total.inc();
        Ok(true)
    }

    /// A deadline that the route shortens is the upstream's too.
    fn cap_grpc_timeout(&mut self, action: &RouteAction) {
        let max = action.max_stream_duration.and_then(|route| route.grpc_timeout_max);
        let Some(max) = max.filter(|max| !max.is_zero()) else { return };
        if grpc::timeout(&self.head.headers).is_some_and(|asked| asked > max) {
            let mut text = Vec::with_capacity(9);
            h1::push_decimal(millis(max).min(99_999_999), &mut text);
            text.push(b'm');
            self.head.headers.set("grpc-timeout", text);
        }
    }

    /// The head as its upstream will get it, as far as that does not depend on the host: what balancing by hash goes by, as
    /// in Envoy.
    pub(super) fn foreseen(&self, passage: &Passage<'_>) -> Box<RequestHead> {
        let Passage { action, matched, weighted, .. } = *passage;
        let mut head = self.conn.worker.request_head();
        head.clone_from(&self.head);
        let mut scratch = Vec::new();
        if rewrite_path(&action.path, &matched.route.matcher.path, head.path(), &mut scratch) {
            head.set_path(&scratch);
        }
        match weighted.and_then(|weighted| weighted.host_rewrite.as_deref()) {
            Some(literal) => head.set_authority(literal),
            None if rewrite_host(&action.host, &head.view(), "", &mut scratch) => {
                head.set_authority(&scratch);
            }
            None => {}
        }
        passage.mutations.apply_to_request(&mut head.headers, &Values::for_filter(self), &mut scratch);
        head
    }

    /// Turns the downstream head into the upstream head. Returns how its body is framed.
    pub(super) fn prepare_head(&mut self, passage: &Passage<'_>, host: &Rc<Host>) -> Framing {
        let Passage { action, matched, weighted, .. } = *passage;
        h1::remove_hop_by_hop(&mut self.head.headers, passage.upgrade && self.head.method != Method::Connect);
        if passage.upgrade && self.stream.is_multiplexed() {
            tunnel::name_key(&mut self.head, &mut self.conn.worker.rng.borrow_mut());
        }
        let tells = !self.conn.manager.spec.config.suppress_envoy_headers;
        let mut scratch = self.conn.worker.buffer();
        if rewrite_path(&action.path, &matched.route.matcher.path, self.head.path(), &mut scratch) {
            if tells {
                let (headers, path, _) = self.head.headers_beside();
                headers.set("x-envoy-original-path", path);
            }
            self.head.set_path(&scratch);
        }
        let spec = host.spec();
        let by_cluster = weighted.is_some_and(|weighted| weighted.host_rewrite.is_some());
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
                let (headers, _, authority) = self.head.headers_beside();
                headers.append("x-forwarded-host", authority);
            }
            if tells && !by_cluster {
                let (headers, _, authority) = self.head.headers_beside();
                headers.set("x-envoy-original-host", authority);
            }
            self.head.set_authority(&scratch);
        }
        self.cap_grpc_timeout(action);
        if self.head.headers.iter().any(|(name, _)| name.starts_with(b"x-envoy-")) {
            for name in retry::REQUEST_HEADERS.iter().chain(&timeouts::REQUEST_HEADERS) {
                self.head.headers.remove(name);
            }
        }
        self.number_attempt(passage);
        // The list is taken out so that the values may look at the rest of the request.
        let mut headers = std::mem::take(&mut self.head.headers);
        passage.mutations.apply_to_request(&mut headers, &Values::for_request(self, host), &mut scratch);
        self.head.headers = headers;
        self.conn.worker.recycle_buffer(scratch);
        if self.conn.manager.spec.config.scheme == Some(SchemeChange::MatchUpstream) {
            self.head.scheme = if spec.tls.is_some() { Scheme::Https } else { Scheme::Http };
        }
        self.framing
    }

    /// The same again, for another host.
    pub(super) fn prepare_again(&mut self, passage: &Passage<'_>, host: &Rc<Host>) {
        let spec = host.spec();
        let literal = passage.weighted.and_then(|weighted| weighted.host_rewrite.as_deref());
        if literal.is_none()
            && matches!(passage.action.host, HostRewrite::Auto)
            && !spec.endpoint.hostname.is_empty()
        {
            self.head.set_authority(spec.endpoint.hostname.as_bytes());
        }
        self.number_attempt(passage);
    }

    /// What tells the upstream which attempt it is, and how long it may take.
    fn number_attempt(&mut self, passage: &Passage<'_>) {
        // What filters took before the first attempt is not the upstream's time.
        let complete = self.record.times.borrow().rx_end.filter(|_| self.record.attempts.get() > 1);
        let elapsed = complete.map_or(Duration::ZERO, |complete| time::now() - complete);
        hygiene::router_headers(self, passage.timeouts.expected(elapsed));
        if passage.matched.vhost.include_request_attempt_count {
            self.head.headers.set("x-envoy-attempt-count", Decimal::new(self.record.attempts.get().into()));
        }
    }
}
