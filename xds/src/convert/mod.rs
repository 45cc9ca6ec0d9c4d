//! From messages that passed the walk to the model.
//!
//! A converter takes a message and where it is, and returns `None` when it left an error there. It reports all it can
//! find: fields are converted first and put together last.

// Control planes still send deprecated fields, so they are read.
#![expect(deprecated)]

mod access_log;
mod basic_auth;
mod bootstrap;
mod call;
mod cluster;
mod cluster_balance;
mod cluster_dns;
mod cluster_options;
mod compressor;
mod connection_matcher;
mod core;
mod endpoint;
mod ext_authz;
mod filter_chain;
mod hash_policy;
mod header;
mod health_check;
mod http;
mod http2;
mod http_filter;
mod jwt;
mod listener;
mod listener_filter;
mod matcher;
mod material;
mod metadata;
mod mirror;
mod network;
mod outlier;
mod rate_limit;
mod rbac;
mod retry;
mod route;
mod route_action;
mod runtime;
mod scope;
mod stats;
mod subset;
mod tcp;
mod tls;
mod tracing;

use envoy_types::pb::google::protobuf::Any;

pub(crate) use bootstrap::{Settings, settings};
pub(crate) use cluster::cluster;
pub(crate) use endpoint::load_assignment;
pub(crate) use http_filter::extension;
pub(crate) use listener::listener;
pub(crate) use material::NOT_PEM;
pub(crate) use route::{Clusters, route_configuration};
pub(crate) use runtime::runtime_layer;
pub(crate) use scope::{discovered_host, scoped_route};
pub(crate) use tls::secret;

use crate::decode;

/// The message in `any` when it is a `T`.
fn unpack<T: prost::Message + prost::Name + Default>(any: &Any) -> Option<T> {
    if decode::type_name(&any.type_url) != T::full_name() {
        return None;
    }
    T::decode(any.value.as_slice()).ok()
}

/// What an extension is called in messages to people.
fn extension_name(any: Option<&Any>) -> &str {
    any.map_or("nothing", |any| decode::type_name(&any.type_url))
}
