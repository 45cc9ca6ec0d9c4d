//! Which transport socket an endpoint is reached with.

use std::sync::Arc;

use culvert_model::{Cluster, Endpoint, ProxyVersion, Struct, UpstreamTls};

use crate::{
    observe::stats::{Counter, Registry, Sample, StatSet},
    tls::{ClientContext, Contexts, Slot},
};

/// What an endpoint is reached with: the place of its TLS context, or `None` in the clear.
type Socket = Option<Arc<Slot<ClientContext>>>;

/// How an endpoint is reached.
pub(super) struct Reached {
    pub(super) tls: Socket,
    /// The header that connections begin with.
    pub(super) proxy: Option<ProxyVersion>,
}

/// The transport sockets of a cluster.
pub(super) struct Sockets {
    default: Reached,
    matches: Vec<Reached>,
    counts: Option<Arc<MatchCounts>>,
}

impl Sockets {
    /// Those of `config`; which are chosen is counted in `registry` where there is a choice.
    pub(super) fn new(config: &Cluster, contexts: &Contexts, registry: &Registry) -> Self {
        let place = |tls: &Option<Arc<UpstreamTls>>, proxy| Reached {
            tls: tls.as_ref().map(|tls| contexts.client(tls)),
            proxy,
        };
        let matches = &config.transport_socket_matches;
        let counts = (!matches.is_empty()).then(|| {
            let names = matches.iter().map(|socket| socket.name.as_str()).chain(["default"]);
            let counts = names.map(|name| (format!("{name}.total_match_count"), Counter::default()));
            let counts = Arc::new(MatchCounts(counts.collect()));
            registry.register(format!("cluster.{}", config.stat_name), counts.clone());
            counts
        });
        Self {
            default: place(&config.tls, config.proxy_protocol),
            matches: matches.iter().map(|socket| place(&socket.tls, socket.proxy_protocol)).collect(),
            counts,
        }
    }

    /// The one of the match at `index`, or the default one.
    pub(super) fn get(&self, index: Option<usize>) -> &Reached {
        index.and_then(|index| self.matches.get(index)).unwrap_or(&self.default)
    }

    /// Counts that it was chosen for an endpoint.
    pub(super) fn count(&self, index: Option<usize>) {
        let Some(MatchCounts(counts)) = self.counts.as_deref() else { return };
        if let Some((_, count)) = counts.get(index.unwrap_or(counts.len() - 1)) {
            count.inc();
        }
    }
}

/// `cluster.<name>.<match>.total_match_count`, as Envoy calls them; the last one is of `transport_socket`.
struct MatchCounts(Vec<(String, Counter)>);

impl StatSet for MatchCounts {
    fn visit(&self, f: &mut dyn FnMut(&str, Sample<'_>)) {
        for (name, count) in &self.0 {
            f(name, Sample::Counter(count.value()));
        }
    }
}

/// The namespace of the metadata that is looked at.
const NAMESPACE: &str = "envoy.transport_socket_match";

/// The first of the cluster's `transport_socket_matches` whose criteria the endpoint's metadata has, else the first one
/// whose criteria its locality's metadata has.
pub(in crate::control) fn socket_match(config: &Cluster, endpoint: &Endpoint) -> Option<usize> {
    let matches = &config.transport_socket_matches;
    let find = |labels: Option<&Struct>| {
        let has = |(key, value): (&String, _)| labels.and_then(|labels| labels.get(key)) == Some(value);
        matches.iter().position(|socket| socket.criteria.iter().all(has))
    };
    let own = endpoint.metadata.as_ref().and_then(|metadata| metadata.0.get(NAMESPACE));
    find(own).or_else(|| find(endpoint.locality.socket_match.as_deref()))
}

/// The TLS context that connections to an endpoint need; `None` leaves them in the clear.
pub(in crate::control) fn tls_for<'a>(
    config: &'a Cluster,
    endpoint: &Endpoint,
) -> Option<&'a Arc<UpstreamTls>> {
    match socket_match(config, endpoint) {
        Some(index) => config.transport_socket_matches[index].tls.as_ref(),
        None => config.tls.as_ref(),
    }
}

/// The header that connections to an endpoint begin with.
pub(in crate::control) fn proxy_for(config: &Cluster, endpoint: &Endpoint) -> Option<ProxyVersion> {
    match socket_match(config, endpoint) {
        Some(index) => config.transport_socket_matches[index].proxy_protocol,
        None => config.proxy_protocol,
    }
}

#[cfg(test)]
mod tests {
    use culvert_model::{Discovery, LoadAssignment};

    use super::*;

    /// A cluster with two matches, and endpoints with this metadata.
    fn cluster(endpoints: &str) -> Arc<Cluster> {
        let raw = "transport_socket: {name: raw, typed_config: {'@type': \
                   type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}";
        let text = format!(
            "static_resources: {{clusters: [{{name: a, transport_socket_matches: [{{name: x, match: {{mode: x, n: 1}}, \
             {raw}}}, {{name: y, match: {{mode: y}}, {raw}}}], load_assignment: {{cluster_name: a, endpoints: \
             [{endpoints}]}}}}]}}"
        );
        let options = culvert_xds::LoadOptions { config_yaml: Some(text), ..Default::default() };
        culvert_xds::load_bootstrap(&options).unwrap().bootstrap.config.clusters[0].clone()
    }

    fn matched(labels: &str, of_locality: &str) -> Option<usize> {
        let metadata = |labels: &str| {
            format!("metadata: {{filter_metadata: {{envoy.transport_socket_match: {{{labels}}}}}}}")
        };
        let cluster = cluster(&format!(
            "{{{}, lb_endpoints: [{{{}, endpoint: {{address: {{socket_address: {{address: 10.0.0.1, port_value: \
             1}}}}}}}}]}}",
            metadata(of_locality),
            metadata(labels)
        ));
        let Discovery::Static(assignment) = &cluster.discovery else { panic!("static") };
        let LoadAssignment { endpoints, .. } = &**assignment;
        socket_match(&cluster, &endpoints[0])
    }

    /// As Envoy 1.40 chooses.
    #[test]
    fn an_endpoint_goes_before_its_locality() {
        assert_eq!(matched("mode: x, n: 1.0, more: a", ""), Some(0));
        assert_eq!(matched("mode: x", ""), None, "all of the criteria");
        assert_eq!(matched("mode: [x, y], n: 1", ""), None);
        assert_eq!(matched("mode: y", "mode: x, n: 1"), Some(1));
        assert_eq!(matched("mode: z", "mode: x, n: 1"), Some(0), "what the endpoint has matches nothing");
        assert_eq!(matched("n: 1", "mode: x"), None, "the two are not put together");
    }
}
