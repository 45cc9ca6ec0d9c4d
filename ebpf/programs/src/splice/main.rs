//! The eBPF programs that splice the two ends of a connection inside a node together: bytes go from one socket's `sendmsg`
//! into the other's receive queue, past TCP and IP.
//!
//! One end always is a socket of the proxy, which knows how much it has read and finds out how much the application has;
//! it publishes both in `SLOTS`. What has been sent is known exactly from the socket itself: see [`message`]. With both, a
//! direction never has more than a limit in flight, and changes between TCP and redirection only where bytes cannot
//! overtake each other.
//!
//!  * `splice_ops` ([`enter`]) puts the sockets of applications into `SPLICE` before they can send; the proxy puts in its
//!    own;
//!  * `splice_message` ([`message`]) decides for every message how it goes;
//!  * `splice_pass` is a verdict that does nothing: some kernels count bytes for FIONREAD only where there is one;
//!  * `splice_option` ([`option`]) sees socket options that redirected bytes do not obey.
//!
//! This is an object of its own, because the kernel may lack what it needs and still capture.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
#[allow(dead_code, reason = "shared with the other object")]
#[path = "../context.rs"]
mod context;
#[cfg(target_arch = "bpf")]
mod enter;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod message;
#[cfg(target_arch = "bpf")]
#[path = "../object.rs"]
mod object;
#[cfg(target_arch = "bpf")]
mod option;
#[cfg(target_arch = "bpf")]
mod tcp;

/// The programs exist for the BPF target only; this lets tools that compile the whole workspace for the host pass.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
