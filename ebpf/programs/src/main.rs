//! The eBPF programs that take over the traffic of pods.
//!
//! A captured outbound connection passes through three of them, in this order:
//!  1. `connect4`/`connect6` ([`outbound`]) turn the dialled address to the in-pod listener and leave the original
//!     one in the socket's storage;
//!  2. `sock_ops` ([`record`]) copies it from there into `ORIG_DST` under the connection's tuple, before the SYN
//!     leaves, for the accepting proxy to take;
//!  3. `getpeername4`/`getpeername6` ([`outbound`]) show it to the application.
//!
//! An inbound one meets `pod_lookup` ([`inbound`]), once per connection, which hands it to the in-pod listener.
//!
//! A connection that needs no proxy goes directly to a pod of the node ([`direct`]): the connect is turned to the endpoint,
//! and `pod_lookup` of its pod lets it pass.
//!
//! Everything is keyed by the network namespace's cookie: a connection of a namespace that is not in `PODS` costs
//! one hash lookup and is left alone.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod context;
#[cfg(target_arch = "bpf")]
mod direct;
#[cfg(target_arch = "bpf")]
mod inbound;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod object;
#[cfg(target_arch = "bpf")]
mod outbound;
#[cfg(target_arch = "bpf")]
mod record;
#[cfg(target_arch = "bpf")]
mod say;

/// The programs exist for the BPF target only; this lets tools that compile the whole workspace for the host pass.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
