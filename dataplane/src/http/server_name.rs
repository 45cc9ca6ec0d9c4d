//! What a request calls the server that it is sent to, for handshakes (`UpstreamHttpProtocolOptions`).

use std::{net::IpAddr, rc::Rc};

use culvert_model::{HostRewrite, RequestNames, RouteAction, WeightedCluster};
use culvert_proto::{host::split_port, route::rewrite_host};

use super::exchange::Exchange;
use crate::upstream::ServerNames;

/// The names that `wanted` takes from the request, whose head is as it was received: from a header, else from the host
/// as the route rewrites it. `auto_host_rewrite` does not count, as in Envoy: the endpoint is not what the client asked for.
pub(super) fn server_names(
    exchange: &Exchange<'_>,
    wanted: &RequestNames,
    action: &RouteAction,
    weighted: Option<&WeightedCluster>,
) -> Option<Rc<ServerNames>> {
    let head = &exchange.head;
    let header = wanted.header.as_ref().and_then(|name| head.headers.get(name));
    let mut rewritten = Vec::new();
    let authority = match (header, weighted.and_then(|weighted| weighted.host_rewrite.as_deref())) {
        (Some(value), _) if !value.is_empty() => value,
        (_, Some(literal)) => literal.as_bytes(),
        _ if matches!(action.host, HostRewrite::Auto) => head.authority(),
        _ if rewrite_host(&action.host, &head.view(), "", &mut rewritten) => &rewritten,
        _ => head.authority(),
    };
    names(wanted, authority).map(Rc::new)
}

fn names(wanted: &RequestNames, authority: &[u8]) -> Option<ServerNames> {
    let (host, _) = split_port(authority);
    let host = std::str::from_utf8(host).ok()?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_ip = bare.parse::<IpAddr>().is_ok();
    if bare.is_empty() {
        return None;
    }
    Some(ServerNames {
        sni: (wanted.sni && !is_ip).then(|| bare.into()),
        san: wanted.san.then(|| bare.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_left_out_and_addresses_are_no_sni() {
        let wanted = RequestNames { sni: true, san: true, header: None };
        for (authority, sni, san) in [
            ("a.test:80", Some("a.test"), "a.test"),
            ("a.test", Some("a.test"), "a.test"),
            ("10.0.0.1:80", None, "10.0.0.1"),
            ("[::1]:80", None, "::1"),
        ] {
            let names = names(&wanted, authority.as_bytes()).unwrap();
            assert_eq!((names.sni.as_deref(), names.san.as_deref()), (sni, Some(san)), "{authority}");
        }
        assert_eq!(names(&wanted, b""), None);
    }
}
