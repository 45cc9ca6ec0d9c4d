//! Reads Envoy's configuration: the bootstrap and the resources it points to.
//!
//! Text (YAML or JSON) or wire bytes become protobuf messages by reflection, are checked against Envoy's own
//! constraints and against the tables of what Culvert supports, and leave as [`culvert_model`] types, which are valid
//! by construction. What is not supported is refused by name; a field that is accepted takes effect or is reported in
//! the [`Note`]s.
//!
//! - [`load_bootstrap`] reads the bootstrap.
//! - [`ConfigStream`] follows the files it names and yields a new configuration when one changes in meaning.
//! - [`encode_message`] writes what a control plane sends.
//! - [`ConfigView`] is what the admin server reads: counters of the sources and `/config_dump`.
#![forbid(unsafe_code)]

mod addresses;
mod at;
mod check;
mod clock;
mod convert;
mod counters;
mod decode;
mod descriptor;
mod document;
mod dump;
mod encode;
mod error;
mod format;
mod load;
mod re2;
pub mod remote;
mod resource;
mod rules;
mod schema;
mod source;
mod store;
mod stream;
mod support;
mod walk;

pub use check::{CheckOptions, Checked, FieldPromise, Promise, Verdict, check, promises};
pub use counters::SourceCounters;
pub use descriptor::{release, release_unused};
pub use encode::encode_message;
pub use error::{Error, ErrorKind, Errors, Note, NoteKind};
pub use load::{LoadOptions, Loaded, load_bootstrap};
pub use stream::{Begun, Changes, ConfigStream, ConfigView, DumpQuery, Update, config_dump};
