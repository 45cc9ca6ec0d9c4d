//! Responses as they come on the wire. Unlike the generated messages these keep the bytes of resources as parts of the
//! buffer they were received in: a response of 50 MB is neither copied nor decoded here.

use prost::bytes::Bytes;

/// `google.protobuf.Any`
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Any {
    #[prost(string, tag = "1")]
    pub(crate) type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) value: Bytes,
}

/// `config.core.v3.ControlPlane`
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Identifier {
    #[prost(string, tag = "1")]
    pub(crate) identifier: String,
}

/// `service.discovery.v3.DiscoveryResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DiscoveryResponse {
    #[prost(string, tag = "1")]
    pub(crate) version_info: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) resources: Vec<Any>,
    #[prost(string, tag = "4")]
    pub(crate) type_url: String,
    #[prost(string, tag = "5")]
    pub(crate) nonce: String,
    #[prost(message, optional, tag = "6")]
    pub(crate) control_plane: Option<Identifier>,
}

/// `service.discovery.v3.DeltaDiscoveryResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DeltaDiscoveryResponse {
    #[prost(string, tag = "1")]
    pub(crate) system_version_info: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) resources: Vec<Resource>,
    #[prost(string, tag = "4")]
    pub(crate) type_url: String,
    #[prost(string, tag = "5")]
    pub(crate) nonce: String,
    #[prost(string, repeated, tag = "6")]
    pub(crate) removed_resources: Vec<String>,
    #[prost(message, optional, tag = "7")]
    pub(crate) control_plane: Option<Identifier>,
    #[prost(message, repeated, tag = "8")]
    pub(crate) removed_resource_names: Vec<ResourceName>,
}

/// `service.discovery.v3.Resource`
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Resource {
    #[prost(string, tag = "1")]
    pub(crate) version: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) resource: Option<Any>,
    #[prost(string, tag = "3")]
    pub(crate) name: String,
    #[prost(string, repeated, tag = "4")]
    pub(crate) aliases: Vec<String>,
    #[prost(message, optional, tag = "6")]
    pub(crate) ttl: Option<Duration>,
    #[prost(message, optional, tag = "8")]
    pub(crate) resource_name: Option<ResourceName>,
}

/// `service.discovery.v3.ResourceName`
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ResourceName {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

/// `google.protobuf.Duration`
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Duration {
    #[prost(int64, tag = "1")]
    pub(crate) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(crate) nanos: i32,
}
