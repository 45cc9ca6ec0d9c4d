//! Memory for bytes on the way: receive buffers that are leased out, and the chunks a socket sends.

mod chunk;
mod lease;
mod pool;

pub use chunk::Chunk;
pub use lease::Lease;
pub(crate) use pool::{Blank, Class, Mapping, Pool};
