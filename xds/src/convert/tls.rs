//! `extensions.transport_sockets.tls.v3`.

use culvert_model::Secret;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;

use crate::at::At;

/// A secret.
pub(crate) fn secret(at: &At<'_>, _: &pb::Secret) -> Option<Secret> {
    at.unsupported("secrets are not supported")
}
