//! What the first bytes of a connection say: TLS, HTTP, a PROXY header.
//!
//! Each parser is shown all bytes so far, and says when it has seen enough.

mod http;
mod proxy;
mod tls;

pub use http::{Http, http};
pub use proxy::{Proxy, ProxyHeader, ProxyVersion, ProxyVersions, proxy, write_proxy};
pub use tls::{Hello, Tls, tls};
