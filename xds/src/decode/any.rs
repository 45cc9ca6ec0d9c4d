//! `google.protobuf.Any`: extensions.

use prost_reflect::{DynamicMessage, MessageDescriptor, ReflectMessage as _, Value};
use serde_json::Value as Json;

use super::{canonical, json, json::UnknownFields, struct_to_json, wellknown};
use crate::{at::At, descriptor};

/// The message name in a type URL: what follows the last slash.
pub(crate) fn type_name(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}

/// Reads an `Any` from its JSON form: `@type` beside the fields of the message, or beside `value` for messages with a
/// JSON form of their own. A `TypedStruct` is replaced by the message it stands for.
pub(super) fn decode(
    at: &At<'_>,
    descriptor: &MessageDescriptor,
    json: &Json,
    unknown: UnknownFields,
) -> Option<DynamicMessage> {
    let Json::Object(entries) = json else {
        return at.error("expected a message with @type");
    };
    let url = match entries.get("@type") {
        Some(Json::String(url)) => url,
        Some(_) => return at.error("@type has to be a string"),
        None if entries.is_empty() => return Some(DynamicMessage::new(descriptor.clone())),
        None => return at.error("@type is missing"),
    };
    if url.split_once('/').is_none_or(|(host, name)| host.is_empty() || name.is_empty()) {
        return at.error(format!("@type must contain at least one / and a nonempty host: {url:?}"));
    }
    let Some(message) = descriptor::message(type_name(url)) else {
        return at.unsupported(format!("unknown extension type {url:?}"));
    };
    let inner = if wellknown::is_special(&message) {
        json::decode(at, &message, entries.get("value").unwrap_or(&Json::Null), unknown)?
    } else {
        json::decode_fields(at, &message, entries, Some("@type"), unknown)?
    };
    if is_typed_struct(&message) {
        let inner = unwrap_typed_struct(at, &inner, unknown)?;
        return Some(pack(
            descriptor,
            &format!("type.googleapis.com/{}", inner.descriptor().full_name()),
            &inner,
        ));
    }
    Some(pack(descriptor, url, &inner))
}

/// The message in an `Any`; `None` when there is none of that type, or it does not decode. Extensions wrapped in a
/// `TypedStruct` were unwrapped when the `Any` came in.
pub(crate) fn open(any: &DynamicMessage) -> Option<DynamicMessage> {
    let (url, bytes) = parts(any)?;
    DynamicMessage::decode(descriptor::message(type_name(&url))?, bytes.as_slice()).ok()
}

/// Type URL and value.
pub(super) fn parts(any: &DynamicMessage) -> Option<(String, Vec<u8>)> {
    let url = any.get_field_by_number(1)?.as_str()?.to_owned();
    let bytes = any.get_field_by_number(2)?.as_bytes()?.to_vec();
    Some((url, bytes))
}

pub(super) fn is_typed_struct(descriptor: &MessageDescriptor) -> bool {
    matches!(descriptor.full_name(), "xds.type.v3.TypedStruct" | "udpa.type.v1.TypedStruct")
}

/// The message that a `TypedStruct` stands for.
pub(super) fn unwrap_typed_struct(
    at: &At<'_>,
    typed: &DynamicMessage,
    unknown: UnknownFields,
) -> Option<DynamicMessage> {
    let url = typed.get_field_by_number(1)?.as_str()?.to_owned();
    let Some(message) = descriptor::message(type_name(&url)) else {
        return at.unsupported(format!("unknown extension type {url:?}"));
    };
    let value = typed.get_field_by_number(2)?;
    let fields = value.as_message().map_or_else(|| Json::Object(serde_json::Map::new()), struct_to_json);
    let at = at.field("value");
    json::decode(&at, &message, &fields, unknown)
}

pub(super) fn pack(descriptor: &MessageDescriptor, url: &str, message: &DynamicMessage) -> DynamicMessage {
    let mut any = DynamicMessage::new(descriptor.clone());
    any.set_field_by_number(1, Value::String(url.to_owned()));
    any.set_field_by_number(2, Value::Bytes(canonical(message).into()));
    any
}
