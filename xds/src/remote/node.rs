//! What Culvert says about itself.

use envoy_types::pb::envoy::{
    config::core::v3::{BuildVersion, Node, node::UserAgentVersionType},
    r#type::v3::SemanticVersion,
};
use prost::Message as _;

/// What control planes look for to tell what a client can do.
const FEATURES: [&str; 3] = [
    "envoy.lb.does_not_support_overprovisioning",
    "envoy.lrs.supports_send_all_clusters",
    "xds.config.resource-in-sotw",
];

/// A bootstrap, of which only the node is read.
#[derive(Clone, PartialEq, prost::Message)]
struct Bootstrap {
    #[prost(message, optional, tag = "1")]
    node: Option<Node>,
}

/// The node of a bootstrap on the wire, completed.
pub(crate) fn of_bootstrap(bytes: &[u8]) -> Node {
    // What cannot be read has not become a bootstrap.
    let bootstrap = Bootstrap::decode(bytes).unwrap_or_default();
    complete(bootstrap.node.unwrap_or_default())
}

/// Completes the node of a bootstrap as Envoy does. Control planes recognise data planes of Envoy's kind by
/// `user_agent_name`; the version beside it is Culvert's.
fn complete(mut node: Node) -> Node {
    let mut parts = env!("CARGO_PKG_VERSION").split('.').map(|part| part.parse().unwrap_or_default());
    let mut part = || parts.next().unwrap_or_default();
    let version = SemanticVersion { major_number: part(), minor_number: part(), patch: part() };
    "envoy".clone_into(&mut node.user_agent_name);
    node.user_agent_version_type = Some(UserAgentVersionType::UserAgentBuildVersion(BuildVersion {
        version: Some(version),
        metadata: None,
    }));
    node.client_features = FEATURES.map(str::to_owned).into();
    node
}
