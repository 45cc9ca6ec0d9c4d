//! Redirects that culvert follows itself (`internal_redirect_policy`).

use std::rc::Rc;

use culvert_model::{Action, InternalRedirects, RedirectPredicate};
use culvert_proto::{Method, RequestHead, ResponseHead, Scheme, route::Table};
use http::Uri;

use super::{Passage, body::Kept};
use crate::{
    http::{exchange::Exchange, log::Flags},
    observe::access::{LogType, Times},
    upstream::Cluster,
};

/// Which redirects a request has been through.
#[derive(Debug, Default)]
pub(in crate::http) struct Redirects {
    count: u32,
    /// From route to route, by their names.
    passed: Vec<(String, String)>,
}

/// The request that a redirect makes.
pub(super) struct Redirected {
    head: Box<RequestHead>,
    /// Without body.
    bare: bool,
    route: String,
    /// Where the route leads.
    cluster: Option<Rc<Cluster>>,
}

impl Exchange<'_> {
    /// The request that is made of this one if the answer is a redirect to be followed.
    pub(super) fn follow(&self, passage: &Passage<'_>, response: &ResponseHead) -> Option<Box<Redirected>> {
        let policy = passage.action.internal_redirects.as_deref()?;
        if !policy.statuses.contains(&response.status) {
            return None;
        }
        let followed = self.redirected(policy, passage, response);
        let stats = &passage.cluster.stats;
        match &followed {
            Some(_) => stats.upstream_internal_redirect_succeeded_total.inc(),
            None => stats.upstream_internal_redirect_failed_total.inc(),
        }
        followed
    }

    fn redirected(
        &self,
        policy: &InternalRedirects,
        passage: &Passage<'_>,
        response: &ResponseHead,
    ) -> Option<Box<Redirected>> {
        let stats = &self.conn.manager.stats;
        if !(passage.kept.is_complete() && passage.kept.is_whole()) || self.head.method == Method::Connect {
            return None;
        }
        let location = response.headers.get("location")?;
        let Some((scheme, uri)) = parse(location) else {
            stats.passthrough_internal_redirect_bad_location.inc();
            return None;
        };
        if !policy.cross_scheme && scheme != self.head.scheme {
            stats.passthrough_internal_redirect_unsafe_scheme.inc();
            return None;
        }
        let mut redirects = self.redirects.borrow_mut();
        if redirects.as_ref().map_or(0, |redirects| redirects.count) >= policy.max {
            stats.passthrough_internal_redirect_too_many_redirects.inc();
            return None;
        }
        let mut head = self.conn.worker.request_head();
        head.clone_from(&self.head);
        for name in &policy.copy {
            head.headers.remove(name);
            for value in response.headers.get_all(name) {
                head.headers.push(name, value);
            }
        }
        head.scheme = scheme;
        head.set_authority(uri.authority().map_or("", |authority| authority.as_str()));
        head.set_path(uri.path_and_query().map_or("/", |path| path.as_str()));
        let local = self.conn.manager.table(&self.conn.worker, &head.view());
        let random = self.conn.worker.rng.borrow_mut().u64(..);
        let found = local.as_ref().and_then(|table| self.target(table, &head, random));
        let Some((route, cluster)) = found else {
            stats.passthrough_internal_redirect_no_route.inc();
            return None;
        };
        let from = &passage.matched.route.name;
        let redirects = redirects.get_or_insert_default();
        for predicate in &policy.predicates {
            let accepted = match predicate {
                RedirectPredicate::AllowListed(names) => names.contains(&route),
                RedirectPredicate::PreviousRoutes => {
                    let step = (from.clone(), route.clone());
                    let is_new = !redirects.passed.contains(&step);
                    redirects.passed.push(step);
                    is_new
                }
                RedirectPredicate::SafeCrossScheme => {
                    self.head.scheme == Scheme::Https || scheme == Scheme::Http
                }
            };
            if !accepted {
                stats.passthrough_internal_redirect_predicate.inc();
                return None;
            }
        }
        let bare = response.status == 303 && !matches!(head.method, Method::Get | Method::Head);
        if bare {
            head.method = Method::Get;
            head.headers.remove("content-length");
        }
        redirects.count += 1;
        let mut original = format!("{}://", self.head.scheme.as_str()).into_bytes();
        original.extend_from_slice(self.head.authority());
        original.extend_from_slice(self.head.path());
        head.headers.set("x-envoy-original-url", original);
        Some(Box::new(Redirected { head, bare, route, cluster }))
    }

    /// The name of the route that the request would take, if there is one, and its cluster, if it leads to one.
    fn target(
        &self,
        table: &Table,
        head: &RequestHead,
        random: u64,
    ) -> Option<(String, Option<Rc<Cluster>>)> {
        let matched = table.route(&head.view(), random).ok()?;
        let cluster = match &matched.route.action {
            Action::Forward(action) => self.cluster(action, random),
            _ => None,
        };
        Some((matched.route.name.clone(), cluster.map(|(cluster, _)| cluster)))
    }

    /// Goes on as the request that a redirect made. What was there is logged as a request of its own.
    pub(super) fn become_redirected(&mut self, redirected: Redirected, status: u16, kept: Kept) {
        let Redirected { head, bare, route, cluster } = redirected;
        let before = std::mem::replace(&mut self.head, head);
        self.conn.worker.recycle(before, None);
        self.record.status.set(status);
        self.record.details.set("internal_redirect");
        *self.record.route_name.borrow_mut() = route;
        *self.record.cluster.borrow_mut() = cluster;
        self.log(LogType::DownstreamEnd);
        self.record.status.set(0);
        self.record.details.set("");
        self.record.flags.set(Flags::default());
        self.record.route_name.borrow_mut().clear();
        self.record.virtual_cluster.borrow_mut().clear();
        self.record.counted.take();
        self.record.attempts.set(0);
        self.record.upstream_version.set(None);
        self.record.host.take();
        self.record.cluster.take();
        let mut times = self.record.times.borrow_mut();
        *times = Times { rx_end: times.rx_end, ..Times::default() };
        drop(times);
        self.count_request();
        if bare {
            self.framing = culvert_proto::h1::Framing::None;
        } else if !self.framing.is_empty() {
            // Filters look at it once more.
            let (bytes, trailers) = kept.into_parts();
            self.stream.put_back(bytes, trailers);
        }
    }
}

/// An absolute URL of HTTP.
fn parse(location: &[u8]) -> Option<(Scheme, Uri)> {
    let uri = Uri::try_from(location).ok()?;
    let scheme = match uri.scheme_str()? {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return None,
    };
    let authority = uri.authority()?.as_str();
    (!authority.is_empty() && !authority.contains('@')).then_some((scheme, uri))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_absolute() {
        let parsed = |text: &str| {
            parse(text.as_bytes()).map(|(scheme, uri)| {
                (scheme, uri.path_and_query().map(ToString::to_string).unwrap_or_default())
            })
        };
        assert_eq!(parsed("http://a.test/b?c=d#e"), Some((Scheme::Http, "/b?c=d".to_owned())));
        assert_eq!(parsed("https://a.test"), Some((Scheme::Https, "/".to_owned())));
        for other in ["/b", "//a.test/b", "ftp://a.test/", "", "http:///b", "http://u@a.test/", "http://a b/"]
        {
            assert_eq!(parsed(other), None, "{other}");
        }
    }
}
