//! What the integration tests share: a culvert process, upstreams that do as they are told, a client on
//! raw sockets; pods with applications, and a culvert that captures them.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod client;
pub mod culvert;
pub mod dns;
pub mod gone;
pub mod load;
pub mod mesh;
pub mod netns;
pub mod said;
pub mod skip;
pub mod upstream;

/// Both I/O drivers; every test of the request path runs on each.
pub const DRIVERS: [&str; 2] = ["uring", "epoll"];

/// Whether the long versions of the tests are wanted (`scripts/test --full`).
pub fn full() -> bool {
    std::env::var_os("CULVERT_FULL").is_some_and(|value| value == "1")
}
