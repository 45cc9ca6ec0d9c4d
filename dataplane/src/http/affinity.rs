//! Which host a request belongs to: its hash, and the cookie that brings its client back.

use std::{cell::RefCell, net::IpAddr};

use culvert_model::{Action, ClusterSpecifier, HashCookie, HashPolicy, RouteAction};
use culvert_proto::{
    Headers, RequestHead,
    hash::xxh64,
    route::{HashContext, Match, cookie_text, request_hash, set_cookie},
};

use crate::{
    http::exchange::Exchange,
    listener::{Downstream, Peer},
    upstream::Cluster,
};

/// Cookies that the client is given with the answer: values of `set-cookie`.
#[derive(Default)]
pub(super) struct NewCookies(RefCell<Vec<String>>);

impl NewCookies {
    /// Appends them to the fields of a response.
    pub(super) fn write(&self, headers: &mut Headers) {
        for cookie in self.0.borrow().iter() {
            headers.append("set-cookie", cookie);
        }
    }
}

impl Exchange<'_> {
    /// What the request hashes to, with the head that `foreseen` gives; `None` when nothing of it counts. A cookie that it
    /// should have brought is made.
    pub(super) fn affinity(
        &self,
        action: &RouteAction,
        cluster: &Cluster,
        foreseen: impl FnOnce() -> Box<RequestHead>,
    ) -> Option<u64> {
        let config = cluster.config();
        // Nobody asks for the hash of other policies, and they give no cookies.
        if !config.lb_policy.hashes() {
            return None;
        }
        let of_cluster = &config.hash_policy;
        let policies = if of_cluster.is_empty() { &action.hash_policy } else { of_cluster };
        if policies.is_empty() {
            return None;
        }
        let head = foreseen();
        let hash = self.hash(policies, &head, Some(&self.new_cookies));
        self.conn.worker.recycle(head, None);
        hash
    }

    /// What chooses among the clusters of a route: `random` where neither a header nor the request's hash does.
    pub(super) fn cluster_random(&self, found: &Match<'_>, random: u64) -> u64 {
        let Action::Forward(action) = &found.route.action else { return random };
        let ClusterSpecifier::Weighted(weighted) = &action.cluster else { return random };
        let chosen = match &weighted.random_header {
            Some(name) => self.number(name),
            None if weighted.use_hash_policy => self.hash(&action.hash_policy, &self.head, None),
            None => None,
        };
        chosen.unwrap_or(random)
    }

    /// The number in a header that is there once.
    fn number(&self, name: &str) -> Option<u64> {
        let mut values = self.head.headers.get_all(name);
        let value = values.next().filter(|_| values.next().is_none())?;
        std::str::from_utf8(value).ok()?.trim().parse().ok()
    }

    fn hash(&self, policies: &[HashPolicy], head: &RequestHead, cookies: Option<&NewCookies>) -> Option<u64> {
        if policies.is_empty() {
            return None;
        }
        let config = &self.conn.manager.spec.config;
        let downstream = &self.conn.downstream;
        let hops = config.xff_num_trusted_hops as usize;
        // What was appended for this connection is one hop more.
        let client = match (config.use_remote_address, config.skip_xff_append) {
            (true, true) => hops.checked_sub(1),
            (true, false) | (false, _) => Some(hops),
        };
        let client = client.and_then(|place| forwarded_for(&head.headers, place));
        let client = client.or_else(|| downstream.remote.ip());
        request_hash(policies, &head.view(), &Context { client, downstream, cookies })
    }
}

/// The address in `x-forwarded-for` at `place`, counted from the last.
fn forwarded_for(headers: &Headers, place: usize) -> Option<IpAddr> {
    let mut left = place;
    let fields = headers.get_all("x-forwarded-for").count();
    for field in (0..fields).rev().filter_map(|index| headers.get_all("x-forwarded-for").nth(index)) {
        let entries = field.split(|byte| *byte == b',').count();
        if left < entries {
            let entry = field.rsplit(|byte| *byte == b',').nth(left)?;
            return std::str::from_utf8(entry).ok()?.trim().parse().ok();
        }
        left -= entries;
    }
    None
}

struct Context<'a> {
    client: Option<IpAddr>,
    downstream: &'a Downstream,
    /// `None` where none is given.
    cookies: Option<&'a NewCookies>,
}

impl HashContext for Context<'_> {
    fn source_ip(&self) -> Option<IpAddr> {
        self.client
    }

    fn filter_state(&self, key: &str) -> Option<u64> {
        let notes = self.downstream.notes()?;
        let state = notes.state.borrow();
        state.get(key).map(|text| xxh64(text.as_bytes(), 0))
    }

    fn new_cookie(&self, cookie: &HashCookie) -> u64 {
        // As Envoy: nobody who chooses a cluster gives a cookie, and its value is empty.
        let Some(cookies) = self.cookies else { return xxh64(b"", 0) };
        let downstream = self.downstream;
        let value = cookie_text(&text(&downstream.remote), &text(&downstream.local));
        let written = set_cookie(cookie, &value);
        let mut list = cookies.0.borrow_mut();
        if !list.contains(&written) {
            list.push(written);
        }
        xxh64(value.as_bytes(), 0)
    }
}

fn text(peer: &Peer) -> String {
    peer.socket().map_or_else(String::new, |address| address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_addresses_are_counted_from_the_last() {
        let mut headers = Headers::default();
        headers.push("x-forwarded-for", "1.1.1.1, 2.2.2.2");
        headers.push("x-forwarded-for", "3.3.3.3");
        let found: Vec<_> = (0..4).map(|place| forwarded_for(&headers, place)).collect();
        let address = |text: &str| text.parse().ok();
        assert_eq!(found, [address("3.3.3.3"), address("2.2.2.2"), address("1.1.1.1"), None]);
        headers.set("x-forwarded-for", "unknown");
        assert_eq!(forwarded_for(&headers, 0), None);
    }
}
