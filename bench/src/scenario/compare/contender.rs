//! The rows: what stands between client and backend.

use serde::{Serialize, Serializer};

/// What requests pass through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Contender {
    /// Nothing: the client talks to the backend.
    None,
    /// `culvert-bench forwarder`: bytes without parsing, the floor.
    Forwarder,
    /// HAProxy.
    Haproxy,
    /// nginx.
    Nginx,
    /// Envoy as it comes.
    Envoy,
    /// Envoy on its own io_uring socket interface.
    EnvoyUring,
    /// Envoy on its own sockmap socket interface.
    EnvoySockmap,
    /// Culvert, `--io uring`.
    CulvertUring,
    /// Culvert, `--io epoll`.
    CulvertEpoll,
    /// A second Culvert like the first: how much of a difference is noise.
    Control,
}

impl Contender {
    /// In the order in which they are shown.
    pub const ALL: [Self; 10] = [
        Self::None,
        Self::Forwarder,
        Self::Haproxy,
        Self::Nginx,
        Self::Envoy,
        Self::EnvoyUring,
        Self::EnvoySockmap,
        Self::CulvertUring,
        Self::CulvertEpoll,
        Self::Control,
    ];

    /// Its name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Forwarder => "forwarder",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
            Self::EnvoyUring => "envoy-uring",
            Self::EnvoySockmap => "envoy-sockmap",
            Self::CulvertUring => "culvert-uring",
            Self::CulvertEpoll => "culvert-epoll",
            Self::Control => "control",
        }
    }

    /// What it is called in tables.
    pub fn label(self) -> &'static str {
        match self {
            Self::None => "no proxy",
            Self::Forwarder => "bare forwarder",
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
            Self::Envoy => "Envoy",
            Self::EnvoyUring => "Envoy, io_uring",
            Self::EnvoySockmap => "Envoy, sockmap",
            Self::CulvertUring => "Culvert, uring",
            Self::CulvertEpoll => "Culvert, epoll",
            Self::Control => "Culvert again (control)",
        }
    }

    /// Whether it is left out unless `--only` names it: not what people run.
    pub fn is_optional(self) -> bool {
        matches!(self, Self::EnvoyUring | Self::EnvoySockmap)
    }

    /// Whether it is Culvert.
    pub fn is_culvert(self) -> bool {
        matches!(self, Self::CulvertUring | Self::CulvertEpoll | Self::Control)
    }

    /// Whether it is Envoy, on whichever socket interface.
    pub fn is_envoy(self) -> bool {
        matches!(self, Self::Envoy | Self::EnvoyUring | Self::EnvoySockmap)
    }
}

impl Serialize for Contender {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
