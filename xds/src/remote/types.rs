//! What goes in and out of the transport.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
    time::Instant,
};

use culvert_model::SourceSpecifier;
use prost::bytes::Bytes;

/// What a subscription is for.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ResourceType {
    /// CDS, `config.cluster.v3.Cluster`
    Cluster,
    /// EDS, `config.endpoint.v3.ClusterLoadAssignment`
    LoadAssignment,
    /// LDS, `config.listener.v3.Listener`
    Listener,
    /// SRDS, `config.route.v3.ScopedRouteConfiguration`
    ScopedRoute,
    /// RDS, `config.route.v3.RouteConfiguration`
    RouteConfiguration,
    /// VHDS, `config.route.v3.VirtualHost`: delta only.
    VirtualHost,
    /// SDS, `extensions.transport_sockets.tls.v3.Secret`
    Secret,
    /// ECDS, `config.core.v3.TypedExtensionConfig`
    ExtensionConfig,
    /// RTDS, `service.runtime.v3.Runtime`
    Runtime,
}

impl ResourceType {
    /// All of them, in the order in which their first requests go out on a stream.
    pub const ALL: [Self; 9] = [
        Self::Cluster,
        Self::LoadAssignment,
        Self::Listener,
        Self::ScopedRoute,
        Self::RouteConfiguration,
        Self::VirtualHost,
        Self::Secret,
        Self::ExtensionConfig,
        Self::Runtime,
    ];

    /// Full name of the message.
    #[must_use]
    pub fn message_name(self) -> &'static str {
        match self {
            Self::Cluster => "envoy.config.cluster.v3.Cluster",
            Self::LoadAssignment => "envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "envoy.config.listener.v3.Listener",
            Self::ScopedRoute => "envoy.config.route.v3.ScopedRouteConfiguration",
            Self::RouteConfiguration => "envoy.config.route.v3.RouteConfiguration",
            Self::VirtualHost => "envoy.config.route.v3.VirtualHost",
            Self::Secret => "envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::ExtensionConfig => "envoy.config.core.v3.TypedExtensionConfig",
            Self::Runtime => "envoy.service.runtime.v3.Runtime",
        }
    }

    /// `type_url` of requests and resources.
    #[must_use]
    pub fn type_url(self) -> String {
        format!("type.googleapis.com/{}", self.message_name())
    }

    /// The type that `type_url` names, whatever stands before the slash.
    #[must_use]
    pub fn of(type_url: &str) -> Option<Self> {
        let name = type_url.rsplit('/').next().unwrap_or(type_url);
        Self::ALL.into_iter().find(|resource_type| resource_type.message_name() == name)
    }

    /// Whether a state-of-the-world response holds all resources, so that one that is missing is gone.
    #[must_use]
    pub fn is_full_state(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener | Self::ScopedRoute)
    }

    /// Service and methods of a stream of its own: state of the world, delta.
    pub(super) fn methods(self) -> (Option<&'static str>, &'static str) {
        match self {
            Self::Cluster => (
                Some("/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters"),
                "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters",
            ),
            Self::LoadAssignment => (
                Some("/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints"),
                "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints",
            ),
            Self::Listener => (
                Some("/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners"),
                "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners",
            ),
            Self::ScopedRoute => (
                Some("/envoy.service.route.v3.ScopedRoutesDiscoveryService/StreamScopedRoutes"),
                "/envoy.service.route.v3.ScopedRoutesDiscoveryService/DeltaScopedRoutes",
            ),
            Self::RouteConfiguration => (
                Some("/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes"),
                "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes",
            ),
            Self::VirtualHost => {
                (None, "/envoy.service.route.v3.VirtualHostDiscoveryService/DeltaVirtualHosts")
            }
            Self::Secret => (
                Some("/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"),
                "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
            ),
            Self::ExtensionConfig => (
                Some("/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs"),
                "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs",
            ),
            Self::Runtime => (
                Some("/envoy.service.runtime.v3.RuntimeDiscoveryService/StreamRuntime"),
                "/envoy.service.runtime.v3.RuntimeDiscoveryService/DeltaRuntime",
            ),
        }
    }

    /// Path of the REST method; `None` where Envoy has none.
    pub(super) fn rest_path(self) -> Option<&'static str> {
        match self {
            Self::Cluster => Some("/v3/discovery:clusters"),
            Self::LoadAssignment => Some("/v3/discovery:endpoints"),
            Self::Listener => Some("/v3/discovery:listeners"),
            Self::ScopedRoute => Some("/v3/discovery:scoped-routes"),
            Self::RouteConfiguration => Some("/v3/discovery:routes"),
            Self::VirtualHost => None,
            Self::Secret => Some("/v3/discovery:secrets"),
            Self::ExtensionConfig => Some("/v3/discovery:extension_configs"),
            Self::Runtime => Some("/v3/discovery:runtime"),
        }
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "CDS",
            Self::LoadAssignment => "EDS",
            Self::Listener => "LDS",
            Self::ScopedRoute => "SRDS",
            Self::RouteConfiguration => "RDS",
            Self::VirtualHost => "VHDS",
            Self::Secret => "SDS",
            Self::ExtensionConfig => "ECDS",
            Self::Runtime => "RTDS",
        })
    }
}

/// Which resources of a type are wanted from a source.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Interest {
    /// All that the control plane has for this node, as LDS and CDS ask.
    pub wildcard: bool,
    /// By name; beside a wildcard these are wanted as well.
    pub names: BTreeSet<String>,
}

/// Everything that is wanted, by where it comes from. Sources of kind `File` have no place in it.
pub type Wanted = BTreeMap<(SourceSpecifier, ResourceType), Arc<Interest>>;

/// Names a [`Delivery`] when it is answered.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct DeliveryId(pub(super) u64);

/// A response of a control plane.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// For [`super::Remote::answer`].
    pub id: DeliveryId,
    /// Where it came from, as it stands in [`Wanted`].
    pub source: SourceSpecifier,
    /// When it was received.
    pub arrived: Instant,
    /// What it holds.
    pub resource_type: ResourceType,
    /// `version_info`, of delta `system_version_info`.
    pub version: String,
    /// Whether `resources` are all there are, so that what is missing was removed: state of the world, LDS, CDS and
    /// SRDS. Otherwise what is missing stays as it was.
    pub full: bool,
    /// New and changed resources, as they came: the same name may come twice.
    pub resources: Vec<RemoteResource>,
    /// `removed_resources` of delta.
    pub removed: Vec<String>,
    /// Entries that are no resource of the type. The response has to be refused, and names them in the reason; what
    /// has the name of one of them stays as it was.
    pub broken: Vec<Broken>,
}

/// A resource as it came.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RemoteResource {
    /// `Resource.name`; empty where the response wraps none around the resource.
    pub name: String,
    /// `Resource.aliases`, of VHDS.
    pub aliases: Vec<String>,
    /// `Resource.version`
    pub version: String,
    /// `Resource.ttl`: the resource is removed unless it is heard of again within this time.
    pub ttl: Option<Duration>,
    /// The resource; `None` in a heartbeat, which only renews the time to live of the resource called `name`.
    pub body: Option<Body>,
}

/// An `Any`. Its bytes are a part of the response they came in, and keep it alive.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Body {
    /// `type_url`
    pub type_url: String,
    /// `value`
    pub value: Bytes,
}

/// An entry of a response that cannot be read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Broken {
    /// Its name, where that much can be read.
    pub name: Option<String>,
    /// What is wrong with it.
    pub reason: String,
}

/// What happened at a source.
#[derive(Clone, Debug)]
pub enum Event {
    /// A stream stands.
    Connected {
        /// To which control plane.
        source: SourceSpecifier,
        /// What it carries.
        types: Vec<ResourceType>,
    },
    /// A stream could not be opened, or ended, or a poll failed. It is tried again; nothing that was delivered is
    /// affected.
    Failed {
        /// Which control plane.
        source: SourceSpecifier,
        /// What is not updated now.
        types: Vec<ResourceType>,
        /// Why.
        error: String,
    },
    /// A request went out: Envoy counts these as `update_attempt`.
    Requested {
        /// To which control plane.
        source: SourceSpecifier,
        /// For what.
        resource_type: ResourceType,
    },
    /// Resources came. Every delivery has to be answered, soon: nothing more is read from its stream before.
    Response(Delivery),
}

/// What Envoy counts per control plane (`control_plane.*` below the prefix of each subscription).
#[derive(Debug, Default)]
pub struct ControlPlane {
    /// `connected_state` gauge: 1 while the stream stands.
    pub connected_state: AtomicU64,
    /// `rate_limit_enforced`: times a request had to wait for a token.
    pub rate_limit_enforced: AtomicU64,
    /// `pending_requests` gauge: types whose request waits for a token.
    pub pending_requests: AtomicU64,
    identifier: Mutex<String>,
}

impl ControlPlane {
    /// `identifier`: what the control plane calls itself; empty when it has not said.
    #[must_use]
    pub fn identifier(&self) -> String {
        self.identifier.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn identify(&self, identifier: &str) {
        let mut known = self.identifier.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != identifier {
            identifier.clone_into(&mut known);
        }
    }

    pub(super) fn set_connected(&self, connected: bool) {
        self.connected_state.store(u64::from(connected), Ordering::Relaxed);
    }
}
