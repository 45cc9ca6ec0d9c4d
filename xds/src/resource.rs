//! Resources: what control planes and files deliver.

use std::fmt;

use prost::{
    bytes::Bytes,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
use prost_reflect::{DynamicMessage, MessageDescriptor};

use crate::{
    Error, Note,
    at::{At, Sink},
    decode, descriptor,
    remote::ResourceType,
    walk,
};

/// Types of resources, in the order in which changes of them are applied: what is referred to comes first.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Kind {
    /// RTDS: `service.runtime.v3.Runtime`
    Runtime,
    /// CDS: `config.cluster.v3.Cluster`
    Cluster,
    /// EDS: `config.endpoint.v3.ClusterLoadAssignment`
    LoadAssignment,
    /// SDS: `extensions.transport_sockets.tls.v3.Secret`
    Secret,
    /// LDS: `config.listener.v3.Listener`
    Listener,
    /// ECDS: `config.core.v3.TypedExtensionConfig`
    ExtensionConfig,
    /// SRDS: `config.route.v3.ScopedRouteConfiguration`
    ScopedRoute,
    /// RDS: `config.route.v3.RouteConfiguration`
    RouteConfiguration,
    /// VHDS: `config.route.v3.VirtualHost`
    VirtualHost,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 9] = [
        Self::Runtime,
        Self::Cluster,
        Self::LoadAssignment,
        Self::Secret,
        Self::Listener,
        Self::ExtensionConfig,
        Self::ScopedRoute,
        Self::RouteConfiguration,
        Self::VirtualHost,
    ];

    /// The discovery service, as people and Envoy's `/init_dump` call it.
    pub(crate) fn service(self) -> &'static str {
        match self {
            Self::Cluster => "CDS",
            Self::ExtensionConfig => "ECDS",
            Self::Listener => "LDS",
            Self::LoadAssignment => "EDS",
            Self::RouteConfiguration => "RDS",
            Self::Runtime => "RTDS",
            Self::ScopedRoute => "SRDS",
            Self::Secret => "SDS",
            Self::VirtualHost => "VHDS",
        }
    }

    /// Full name of the message.
    pub(crate) fn message_name(self) -> &'static str {
        match self {
            Self::Cluster => "envoy.config.cluster.v3.Cluster",
            Self::LoadAssignment => "envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "envoy.config.listener.v3.Listener",
            Self::RouteConfiguration => "envoy.config.route.v3.RouteConfiguration",
            Self::ExtensionConfig => "envoy.config.core.v3.TypedExtensionConfig",
            Self::Runtime => "envoy.service.runtime.v3.Runtime",
            Self::ScopedRoute => "envoy.config.route.v3.ScopedRouteConfiguration",
            Self::Secret => "envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::VirtualHost => "envoy.config.route.v3.VirtualHost",
        }
    }

    /// The type of the message called `name`.
    pub(crate) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.message_name() == name)
    }

    pub(crate) fn descriptor(self) -> Option<MessageDescriptor> {
        descriptor::message(self.message_name())
    }

    /// Where a resource has its name.
    fn name_field(self) -> &'static str {
        match self {
            Self::LoadAssignment => "cluster_name",
            _ => "name",
        }
    }

    /// `listener "a"`: how errors call a resource.
    pub(crate) fn title(self, name: &str) -> String {
        format!("{self} {name:?}")
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::LoadAssignment => "load assignment",
            Self::Listener => "listener",
            Self::RouteConfiguration => "route configuration",
            Self::ExtensionConfig => "extension configuration",
            Self::Runtime => "runtime layer",
            Self::ScopedRoute => "scoped route configuration",
            Self::Secret => "secret",
            Self::VirtualHost => "virtual host",
        })
    }
}

impl From<Kind> for ResourceType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Cluster => Self::Cluster,
            Kind::ExtensionConfig => Self::ExtensionConfig,
            Kind::Listener => Self::Listener,
            Kind::LoadAssignment => Self::LoadAssignment,
            Kind::RouteConfiguration => Self::RouteConfiguration,
            Kind::Runtime => Self::Runtime,
            Kind::ScopedRoute => Self::ScopedRoute,
            Kind::Secret => Self::Secret,
            Kind::VirtualHost => Self::VirtualHost,
        }
    }
}

impl From<ResourceType> for Kind {
    fn from(resource_type: ResourceType) -> Self {
        match resource_type {
            ResourceType::Cluster => Self::Cluster,
            ResourceType::ExtensionConfig => Self::ExtensionConfig,
            ResourceType::Listener => Self::Listener,
            ResourceType::LoadAssignment => Self::LoadAssignment,
            ResourceType::RouteConfiguration => Self::RouteConfiguration,
            ResourceType::Runtime => Self::Runtime,
            ResourceType::ScopedRoute => Self::ScopedRoute,
            ResourceType::Secret => Self::Secret,
            ResourceType::VirtualHost => Self::VirtualHost,
        }
    }
}

/// A resource as it came. Two that are equal mean the same.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Resource {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    /// In canonical form.
    pub(crate) bytes: Bytes,
}

impl Resource {
    pub(crate) fn new(kind: Kind, message: &DynamicMessage) -> Self {
        Self { kind, name: name(kind, message), bytes: decode::canonical(message).into_boxed_slice().into() }
    }

    /// The message again; `None` cannot happen for bytes that this crate wrote.
    pub(crate) fn message(&self) -> Option<DynamicMessage> {
        DynamicMessage::decode(self.kind.descriptor()?, self.bytes.clone()).ok()
    }

    /// Checks the resource and converts it from its message `P`; `message` is what its bytes mean, where that is at
    /// hand.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(crate) fn convert_message<P, T>(
        &self,
        message: Option<&DynamicMessage>,
        convert: impl FnOnce(&At<'_>, &P) -> Option<T>,
    ) -> Result<(T, Vec<Note>), Vec<Error>>
    where
        P: prost::Message + Default,
    {
        let sink = Sink::new(self.kind.title(&self.name));
        let root = sink.root();
        let decoded = if message.is_some() { None } else { self.message() };
        let converted = match message.or(decoded.as_ref()) {
            None => root.error("does not decode"),
            Some(message) => {
                walk::walk(&root, message);
                match P::decode(self.bytes.clone()) {
                    _ if sink.has_errors() => None,
                    Ok(typed) => convert(&root, &typed),
                    Err(e) => root.error(e.to_string()),
                }
            }
        };
        let (mut errors, notes) = sink.into_parts();
        match converted {
            Some(converted) if errors.is_empty() => Ok((converted, notes)),
            _ => {
                if errors.is_empty() {
                    // A converter that gave up without a word would be a mistake, and must not pass for success.
                    let resource = self.kind.title(&self.name);
                    errors.push(Error::invalid(resource, "", "not supported"));
                }
                Err(errors)
            }
        }
    }
}

/// The field with number 1 of an encoded message, a string, as the name of every resource is; empty when it is missing.
/// `None` for bytes that are no message.
pub(crate) fn first_string(mut bytes: &[u8]) -> Option<&str> {
    let mut found = "";
    while !bytes.is_empty() {
        let (number, wire_type) = decode_key(&mut bytes).ok()?;
        if number == 1 && wire_type == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut bytes).ok()?).ok()?;
            let (text, rest) = bytes.split_at_checked(length)?;
            found = std::str::from_utf8(text).ok()?;
            bytes = rest;
        } else {
            skip_field(wire_type, number, &mut bytes, DecodeContext::default()).ok()?;
        }
    }
    Some(found)
}

/// The name of a resource; that of a listener without one is its address.
fn name(kind: Kind, message: &DynamicMessage) -> String {
    let text = |value: Option<std::borrow::Cow<'_, prost_reflect::Value>>| {
        value.and_then(|value| value.as_str().map(str::to_owned)).filter(|text| !text.is_empty())
    };
    if let Some(name) = text(message.get_field_by_name(kind.name_field())) {
        return name;
    }
    address(message).unwrap_or_default()
}

fn address(listener: &DynamicMessage) -> Option<String> {
    let address = listener.get_field_by_name("address")?;
    let address = address.as_message()?;
    if address.has_field_by_name("pipe") {
        let pipe = address.get_field_by_name("pipe")?;
        return Some(pipe.as_message()?.get_field_by_name("path")?.as_str()?.to_owned());
    }
    let socket = address.get_field_by_name("socket_address")?;
    let socket = socket.as_message()?;
    let host = socket.get_field_by_name("address")?.as_str()?.to_owned();
    let port = socket.get_field_by_name("port_value")?.as_u32()?;
    Some(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
}
