//! What Culvert says about itself.

use envoy_types::pb::envoy::{
    config::core::v3::{BuildVersion, Node, node::UserAgentVersionType},
    r#type::v3::SemanticVersion,
};
use prost::Message as _;

/// What control planes look for to tell what a client can do: it leaves overprovisioning factors alone, and reads
/// resources in wrappers of their own also in state of the world.
const FEATURES: [&str; 2] = ["envoy.lb.does_not_support_overprovisioning", "xds.config.resource-in-sotw"];

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

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf::Struct;

    use super::*;

    #[test]
    fn what_the_bootstrap_says_is_kept() {
        let node = Node {
            id: "a".to_owned(),
            cluster: "b".to_owned(),
            metadata: Some(Struct::default()),
            user_agent_name: "mine".to_owned(),
            ..Node::default()
        };
        let told = of_bootstrap(&Bootstrap { node: Some(node) }.encode_to_vec());
        assert_eq!((told.id.as_str(), told.cluster.as_str()), ("a", "b"));
        assert!(told.metadata.is_some());
        assert_eq!(told.user_agent_name, "envoy");
        let Some(UserAgentVersionType::UserAgentBuildVersion(build)) = told.user_agent_version_type else {
            panic!("no version")
        };
        let version = build.version.unwrap();
        let version = format!("{}.{}.{}", version.major_number, version.minor_number, version.patch);
        assert_eq!(version, env!("CARGO_PKG_VERSION"));
        assert_eq!(told.client_features, FEATURES);
    }
}
