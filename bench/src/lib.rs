//! Load generator, upstreams, and comparisons for Culvert.
//!
//! - [`load`]: an HTTP/1.1 load generator, closed loop or open loop, cheap enough to share a machine with what it measures;
//! - [`upstream`]: an HTTP/1.1 server with a few predictable paths;
//! - [`forwarder`]: a byte forwarder without parsing, the floor for any proxy;
//! - [`lab`]: pods made of network namespaces, veth pairs and cgroups;
//! - [`report`]: medians, intervals, plain-text tables and machine facts;
//! - [`scenario`]: comparisons built from the above, one per file.

#![forbid(unsafe_code)]

pub mod forwarder;
pub mod lab;
pub mod load;
pub mod report;
pub mod scenario;
pub mod upstream;
pub mod wire;
