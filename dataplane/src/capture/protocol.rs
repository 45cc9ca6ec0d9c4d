//! What `culvert pod` and a running culvert say to each other: one JSON object a line, each request answered by one.

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::capture::{CaptureMode, PodSpec, Policy};

/// What an operator asks of the pod set.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Take over a pod's traffic.
    Add {
        /// The pod.
        pod: PodSpec,
    },
    /// Report all pods.
    List {},
    /// Give a pod its traffic back.
    Remove {
        /// Its name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Its network namespace, where the name is not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        netns: Option<PathBuf>,
    },
    /// Put right what the kernel holds for one pod or for all, and clear what dead instances left.
    Repair {
        /// `None`: all pods.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "result", rename_all = "lowercase")]
pub enum Response {
    /// Nothing was done, or not all of it.
    Error {
        /// For a person.
        message: String,
    },
    /// Done.
    Ok {
        /// What was done, a line each.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        messages: Vec<String>,
        /// The pods asked for; of `add` and `repair`, those that were changed.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pods: Vec<PodReport>,
    },
}

/// A pod as `culvert pod list` shows it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PodReport {
    /// Unique.
    pub name: String,
    /// The path it was enrolled by.
    pub netns: PathBuf,
    /// As given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// `SO_NETNS_COOKIE`: what the eBPF programs know the pod by.
    pub netns_cookie: u64,
    /// How it is captured.
    pub mode: CaptureMode,
    /// What happens without a proxy.
    pub policy: Policy,
    /// The listener its outbound connections enter; `None` when they are not captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound: Option<String>,
    /// The listener its inbound connections enter; `None` when they are not captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound: Option<String>,
    /// Given, or found in the namespace.
    pub addresses: Vec<IpAddr>,
    /// Whether it allows direct connections.
    #[serde(default)]
    pub direct: bool,
    /// Why the pod waits, when it is known but not captured yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<String>,
    /// Since it was enrolled.
    pub counters: PodCounters,
}

/// What happened to a pod's connections since it was enrolled.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct PodCounters {
    /// Turned to an in-pod listener.
    pub captured: u64,
    /// Let pass because they are excluded, or because nothing listened and the pod is permissive.
    pub bypassed: u64,
    /// Refused because nothing listened and the pod is strict.
    pub refused: u64,
    /// Made to an in-pod listener by a process of the pod itself: no original destination, reset.
    pub no_original_dst: u64,
    /// Made directly to another pod of the node, or by one to this pod.
    #[serde(default)]
    pub direct: u64,
    /// Of which culvert's end was spliced to the other one.
    #[serde(default)]
    pub spliced: u64,
    /// Returned from splicing to TCP: a slow reader, or an option of the application's. Each time counts.
    #[serde(default)]
    pub splice_fell_back: u64,
    /// Bytes that culvert received without TCP; of connections that have ended.
    #[serde(default)]
    pub spliced_bytes_in: u64,
    /// Bytes that culvert sent to applications without TCP; of connections that have ended.
    #[serde(default)]
    pub spliced_bytes_out: u64,
}

impl Response {
    /// Done, with lines about what was done.
    pub fn messages(messages: Vec<String>) -> Self {
        Self::Ok { messages, pods: Vec::new() }
    }

    /// Done; these are the pods.
    pub fn pods(pods: Vec<PodReport>) -> Self {
        Self::Ok { messages: Vec::new(), pods }
    }

    /// Not done.
    pub fn error(error: impl ToString) -> Self {
        Self::Error { message: error.to_string() }
    }
}
