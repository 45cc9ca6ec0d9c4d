//! From text and from the wire to messages.
//!
//! The JSON mapping is proto3's with what Envoy tolerates on top (measured on 1.40): one value where a list is
//! expected, `{seconds: 1}` for a duration and `{value: 1}` for a wrapper, enum names in any case, YAML 1.1 booleans,
//! and extensions wrapped in a `TypedStruct`.

mod any;
mod json;
mod scalar;
mod wellknown;
mod wire;
mod yaml;

pub(crate) use any::{open, type_name};
pub(crate) use json::{UnknownFields, decode};
pub(crate) use wellknown::struct_to_json;
pub(crate) use wire::{canonical, from_wire};
pub(crate) use yaml::{Syntax, parse, parse_all};
