//! Rewriting paths and hosts, and building the location of a redirect.

use culvert_model::{HostRewrite, PathMatch, PathRewrite, Redirect, RegexSubstitution};

use crate::{h1::push_decimal, head::split_query, host, route::RequestView};

/// Writes the path to send, query included, into `out` (cleared first). Returns whether the route rewrites it; if so,
/// Envoy keeps the path asked for in `x-envoy-original-path`.
pub fn rewrite_path(rewrite: &PathRewrite, matched: &PathMatch, path: &[u8], out: &mut Vec<u8>) -> bool {
    out.clear();
    let (path_only, _) = split_query(path);
    let query = &path[path_only.len()..];
    match rewrite {
        PathRewrite::None => {
            out.extend_from_slice(path);
            return false;
        }
        PathRewrite::Full(full) => {
            out.extend_from_slice(full.as_bytes());
            if full.contains('?') {
                return true;
            }
        }
        PathRewrite::Prefix(prefix) => {
            out.extend_from_slice(prefix.as_bytes());
            out.extend_from_slice(&path_only[matched_len(matched, path_only)..]);
        }
        PathRewrite::Regex(substitution) => substitute(substitution, path_only, out),
    }
    out.extend_from_slice(query);
    true
}

/// Writes the authority to send into `out` (cleared first). Returns whether there is a rewrite; if not, `out` is empty.
/// `hostname` is the endpoint's, for `auto_host_rewrite`.
pub fn rewrite_host(
    rewrite: &HostRewrite,
    request: &RequestView<'_>,
    hostname: &str,
    out: &mut Vec<u8>,
) -> bool {
    out.clear();
    match rewrite {
        HostRewrite::None => {}
        HostRewrite::Auto => out.extend_from_slice(hostname.as_bytes()),
        HostRewrite::Header(name) => out.extend_from_slice(request.headers.get(name).unwrap_or_default()),
        HostRewrite::Literal(literal) => out.extend_from_slice(literal.as_bytes()),
        HostRewrite::PathRegex(substitution) => substitute(substitution, split_query(request.path).0, out),
    }
    !out.is_empty()
}

/// Writes the `location` of a redirect into `out` (cleared first): Envoy's `RouteEntryImplBase::newUri`.
pub fn redirect_location(
    redirect: &Redirect,
    matched: &PathMatch,
    request: &RequestView<'_>,
    out: &mut Vec<u8>,
) {
    let mut path = Vec::new();
    rewrite_path(&redirect.path, matched, request.path, &mut path);
    // A query that the configuration brings along is not stripped.
    let keeps_query = matches!(&redirect.path, PathRewrite::Full(full) if full.contains('?'));
    if redirect.strip_query && !keeps_query {
        path.truncate(split_query(&path).0.len());
    }
    let scheme = redirect.scheme.as_ref().map_or(request.scheme, |scheme| scheme.as_bytes());
    out.clear();
    out.extend_from_slice(scheme);
    out.extend_from_slice(b"://");
    match &redirect.host {
        Some(host) => out.extend_from_slice(host.as_bytes()),
        None => out.extend_from_slice(redirect_host(request, scheme, redirect.port.is_some())),
    }
    if let Some(port) = redirect.port {
        out.push(b':');
        push_decimal(u64::from(port), out);
    }
    out.extend_from_slice(&path);
}

/// Writes the `location` for [`super::NoRoute::TlsRequired`] into `out` (cleared first).
pub fn tls_location(request: &RequestView<'_>, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(b"https://");
    out.extend_from_slice(request.authority);
    out.extend_from_slice(request.path);
}

/// The host asked for; without port when another one comes, or when the scheme changes and it was the old one's default.
fn redirect_host<'r>(request: &RequestView<'r>, new_scheme: &[u8], new_port: bool) -> &'r [u8] {
    let (host, Some(port)) = host::split_port(request.authority) else { return request.authority };
    let was_default = matches!((request.scheme, port), (b"http", 80) | (b"https", 443));
    if new_port || (was_default && new_scheme != request.scheme) { host } else { request.authority }
}

/// How much of the path a prefix rewrite replaces.
fn matched_len(matched: &PathMatch, path: &[u8]) -> usize {
    match matched {
        PathMatch::Prefix { value, .. } | PathMatch::SeparatedPrefix { value, .. } => {
            value.len().min(path.len())
        }
        PathMatch::Connect | PathMatch::Exact { .. } | PathMatch::Regex(_) => path.len(),
    }
}

fn substitute(substitution: &RegexSubstitution, input: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&substitution.pattern.replace_all(input, substitution.replacement.as_slice()));
}
