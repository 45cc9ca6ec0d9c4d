//! Culvert's data plane: it takes over pods' traffic, proxies it on pinned workers, and is configured like Envoy.
//!
//! A request walks down this list and its response walks back up; a room calls the next one and is not called by it.
//!
//!  1. [`capture`]: a pod's connect is turned to the in-pod listener; its original destination is on record.
//!  2. [`worker`]: one pinned thread each: its loop, its mailbox from control, what its tasks share.
//!  3. [`listener`]: accept, original destination, filter chain.
//!  4. [`tls`]: the only room that knows rustls: identity, handshake, secrets.
//!  5. [`http`]: the connection manager: hygiene, routing, forwarding; [`http::codec`] alone knows the wire.
//!  6. [`upstream`]: cluster, balancing, limits, connection pools.
//!  7. [`tcp`]: the same journey for opaque bytes.
//!  8. [`observe`]: what every room reports to; read by control, never waited for.
//!  9. [`control`]: configuration, snapshots, DNS, admin, pods; never on the path above.
//!
//! Workers run on a [`snapshot`]: an immutable, compiled form of the configuration.
#![forbid(unsafe_code)]

pub mod capture;
pub mod cli;
pub mod control;
pub mod doctor;
#[cfg(feature = "seeded-faults")]
mod faults;
pub mod http;
pub mod listener;
pub mod logging;
pub mod observe;
pub mod snapshot;
pub mod tcp;
pub mod tls;
pub mod top;
pub mod upstream;
pub mod worker;
