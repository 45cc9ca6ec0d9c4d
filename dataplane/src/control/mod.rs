//! The control thread: configuration, snapshots, DNS, listener sockets, pods, admin. Never on the path of a request.

pub mod dns;
pub mod snapshot;
pub mod sockets;
