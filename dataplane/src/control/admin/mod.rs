//! The admin server: Envoy's endpoints, names, status codes and shapes, on the bootstrap's `admin.address`.
//!
//! It runs on the control thread and sees the rest of the program through [`Backend`] alone. Requests are bounded in
//! size and time, and a new connection displaces the oldest when there are too many, so that no client can keep others
//! out. Whatever changes something needs POST.

mod backend;
mod clusters;
mod config_dump;
mod endpoints;
mod home;
mod info;
mod listeners;
mod logging;
mod query;
mod reply;
mod server;
mod stall;
mod stats;

pub use backend::{
    Backend, CircuitLimits, ClusterView, DrainRequest, DrainScope, HealthFlags, HostAddress, HostView,
    ListenerView, LocalityView, ServerInfo, ServerState,
};
pub use info::Memory;
pub use server::{Admin, AdminError, Listen};
