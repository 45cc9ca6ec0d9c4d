//! The validated configuration model: what the data plane runs on.
//!
//! Every type here is *already valid*: regular expressions are compiled, defaults are applied, weights are
//! non-zero sums, names are resolved or known to be resolvable. Producing it from Envoy's protobuf messages is the
//! job of `culvert-xds`; nothing here knows about protobuf, files or sockets, so that the decision code in
//! `culvert-proto` can be built and fuzzed alone.
//!
//! Types are named after the Envoy message they come from; each field names its source where the names differ.
#![forbid(unsafe_code)]

mod access_log;
mod balance;
mod basic_auth;
mod call;
mod cluster;
mod compressor;
mod csrf;
mod endpoint;
mod ext_authz;
mod extension;
mod hash;
mod hash_policy;
mod health;
mod http;
mod http2;
mod http3;
mod http_filter;
mod jwt;
mod listener;
mod matcher;
mod metadata;
mod mirror;
mod network;
mod outlier;
mod rate_limit;
mod rbac;
mod retry;
mod route;
mod runtime;
mod source;
mod stats;
mod subset;
mod tls;
mod tracing;

pub use access_log::*;
pub use balance::*;
pub use basic_auth::*;
pub use call::*;
pub use cluster::*;
pub use compressor::*;
pub use csrf::*;
pub use endpoint::*;
pub use ext_authz::*;
pub use extension::*;
pub use hash::xxh64;
pub use hash_policy::*;
pub use health::*;
pub use http::*;
pub use http_filter::*;
pub use http2::Http2Options;
pub use http3::{Http3Options, QuicListener, QuicOptions};
pub use jwt::*;
pub use listener::*;
pub use matcher::*;
pub use metadata::*;
pub use mirror::*;
pub use network::*;
pub use outlier::*;
pub use rate_limit::*;
pub use rbac::*;
pub use retry::*;
pub use route::*;
pub use runtime::*;
pub use source::*;
pub use stats::*;
pub use subset::*;
pub use tls::*;
pub use tracing::*;
