//! From a request to a route, and from a route to what is sent.
//!
//! [`Table::route`] finds the route; [`pick_cluster`] chooses among weighted clusters, [`request_hash`] what they hash by; [`rewrite_path`],
//! [`rewrite_host`], [`redirect_location`] and [`Mutations`] apply what the route says. [`Scopes`] choose the table.

mod candidates;
mod counted;
mod domains;
mod hash;
mod matcher;
mod mutate;
mod overrides;
mod rewrite;
mod scope;
mod table;
mod trie;
mod weighted;

pub use candidates::request_matches;
pub use counted::VirtualClusterMatch;
pub use hash::{HashContext, cookie_text, ip_hash, request_hash, set_cookie};
pub use matcher::{header_matches, response_header_matches, string_matches};
pub(crate) use matcher::{query_matches, query_value};
pub use mutate::{Formatter, Mutations, change_header};
pub use overrides::{Override, Place};
pub use rewrite::{redirect_location, rewrite_host, rewrite_path, tls_location};
pub use scope::Scopes;
pub use table::{Match, NoRoute, Table};
pub use weighted::pick_cluster;

use crate::{Headers, RequestHead};

/// What routing looks at.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// Method.
    pub method: &'a [u8],
    /// `http` or `https`, after what `x-forwarded-proto` says.
    pub scheme: &'a [u8],
    /// Host and port as requested.
    pub authority: &'a [u8],
    /// Path and query; empty for CONNECT.
    pub path: &'a [u8],
    /// The fields, without `host`.
    pub headers: &'a Headers,
}

impl RequestHead {
    /// What routing looks at.
    #[must_use]
    pub fn view(&self) -> RequestView<'_> {
        RequestView {
            method: self.method.as_bytes(),
            scheme: self.scheme.as_str().as_bytes(),
            authority: self.authority(),
            path: self.path(),
            headers: &self.headers,
        }
    }
}
