//! A control plane, polite and hostile, and the whole binary under traffic. What is asked of every case: no request fails
//! that would not have failed on the last good configuration.
//!
//! Comments that begin with "Envoy:" say what Envoy 1.40 does in the same place, where that was tried. The cases run
//! against any proxy that takes Envoy's flags: name it in `CULVERT_TEST_BINARY`.

#![allow(dead_code, unreachable_pub, missing_docs)]

#[path = "support/control_plane.rs"]
mod control_plane;
mod support;

#[path = "xds/apply.rs"]
mod apply;
#[path = "xds/churn.rs"]
mod churn;
#[path = "xds/counters.rs"]
mod counters;
#[path = "xds/discovery.rs"]
mod discovery;
#[path = "xds/extensions.rs"]
mod extensions;
#[path = "xds/hostile.rs"]
mod hostile;
#[path = "xds/protocol.rs"]
mod protocol;
#[path = "xds/removal.rs"]
mod removal;
#[path = "xds/rest.rs"]
mod rest;
#[path = "xds/scene.rs"]
mod scene;
#[path = "xds/size.rs"]
mod size;
#[path = "xds/transport.rs"]
mod transport;
#[path = "xds/warming.rs"]
mod warming;
