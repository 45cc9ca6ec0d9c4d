//! Resource files: how they are read and how changes of them are noticed.

mod file;
mod interest;
mod watch;

pub(crate) use file::{Batch, FileError, read, resource};
pub(crate) use watch::Watcher;
