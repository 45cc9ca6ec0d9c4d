//! Sans-IO codecs and decisions: HTTP/1.1 framing, path hygiene, routing and balancing.
//!
//! Nothing here knows a socket, a clock or a thread: bytes and numbers go in, decisions come out, and the same input
//! always gives the same output. Randomness is an argument. Everything that reads bytes from the network is fuzzed
//! (`fuzz/`) and split-invariant: how the bytes were cut into reads never changes the result.
//!
//! Map: [`Headers`], [`RequestHead`] and [`ResponseHead`] are the recyclable message heads; [`h1`] and [`h3`] are
//! the wire, as [`h2`] is as far as it is watched;
//! [`path`] and [`host`] are what the connection manager does before routing; [`route`] picks a route and applies
//! what it says; [`balance`] picks an endpoint; [`chain`] picks a connection's filter chain;
//! [`rbac`] says who may pass; [`bucket`] says how often; [`filter`] is what HTTP filters decide; [`health`] says what checks
//! make of an endpoint, [`outlier`] what its answers make of it,
//! [`retry`] whether a request is tried again; [`trace`] whether it is traced.
#![forbid(unsafe_code)]

pub mod balance;
pub mod bucket;
pub mod chain;
pub mod detect;
pub mod filter;
pub mod h1;
pub mod h2;
pub mod h3;
pub mod hash;
pub mod health;
pub mod host;
pub mod outlier;
pub mod path;
pub mod rbac;
pub mod retry;
pub mod route;
pub mod trace;
pub mod tree;

mod head;
mod headers;
mod huffman;
mod prefixes;

pub use head::{Method, RequestHead, ResponseHead, Scheme, Version};
pub use headers::{Headers, Iter, Joined};
