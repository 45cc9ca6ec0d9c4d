//! Messages of the JSON mapping.

use std::collections::HashMap;

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};
use serde_json::{Map, Value as Json};

use super::{any, scalar, wellknown};
use crate::{NoteKind, at::At};

/// What is done about a field that a message does not have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum UnknownFields {
    /// It is left out and noted.
    Note,
    /// It is an error.
    Refuse,
}

/// Reads a message of type `descriptor`. Errors are left at `at`; `None` when there were any in this message or below.
pub(crate) fn decode(
    at: &At<'_>,
    descriptor: &MessageDescriptor,
    json: &Json,
    unknown: UnknownFields,
) -> Option<DynamicMessage> {
    if let Some(special) = wellknown::decode(at, descriptor, json, unknown) {
        return special;
    }
    let Json::Object(entries) = json else {
        return at.error(format!("expected a message, not {}", scalar::brief(json)));
    };
    decode_fields(at, descriptor, entries, None, unknown)
}

/// Reads a message from its fields, of which `except` is none of them.
pub(super) fn decode_fields(
    at: &At<'_>,
    descriptor: &MessageDescriptor,
    entries: &Map<String, Json>,
    except: Option<&str>,
    unknown: UnknownFields,
) -> Option<DynamicMessage> {
    let mut message = DynamicMessage::new(descriptor.clone());
    let mut complete = true;
    for (key, value) in entries.iter().filter(|(key, _)| Some(key.as_str()) != except) {
        let found = descriptor.get_field_by_name(key).or_else(|| descriptor.get_field_by_json_name(key));
        let Some(field) = found else {
            complete &= unknown_field(at, key, descriptor, unknown);
            continue;
        };
        let at = at.field(field.name());
        if *value == Json::Null && !accepts_null(&field) {
            continue;
        }
        if let Some(other) = set_before(&message, &field) {
            at.error::<()>(format!("given beside {other}, of which there can be only one"));
            complete = false;
            continue;
        }
        match decode_field(&at, &field, value, unknown) {
            Some(value) => message.set_field(&field, value),
            None => complete = false,
        }
    }
    complete.then_some(message)
}

/// Whether the rest is worth having.
fn unknown_field(at: &At<'_>, key: &str, descriptor: &MessageDescriptor, unknown: UnknownFields) -> bool {
    match unknown {
        UnknownFields::Note => {
            at.note(NoteKind::UnknownField, format!("{} has no field {key}", descriptor.full_name()));
            true
        }
        UnknownFields::Refuse => {
            at.field(key).error::<()>(format!("unknown field of {}", descriptor.full_name()));
            false
        }
    }
}

/// What stands in the way of setting `field`: itself under its other name, or another member of its oneof.
fn set_before(message: &DynamicMessage, field: &FieldDescriptor) -> Option<String> {
    if message.has_field(field) {
        return Some("its other spelling".to_owned());
    }
    let oneof = field.containing_oneof()?;
    oneof.fields().find(|other| message.has_field(other)).map(|other| other.name().to_owned())
}

/// Only `google.protobuf.Value` has null as a value of its own.
fn accepts_null(field: &FieldDescriptor) -> bool {
    !field.is_list() && matches!(field.kind(), Kind::Message(m) if m.full_name() == "google.protobuf.Value")
}

fn decode_field(at: &At<'_>, field: &FieldDescriptor, json: &Json, unknown: UnknownFields) -> Option<Value> {
    if field.is_map() {
        return decode_map(at, field, json, unknown).map(Value::Map);
    }
    if !field.is_list() {
        return decode_one(at, &field.kind(), json, unknown);
    }
    let mut values = Vec::new();
    let complete = decode_elements(at, &field.kind(), json, unknown, &mut values);
    complete.then_some(Value::List(values))
}

/// Elements of a list, or of lists in it, or a single value that stands for a list of one. Whether all of them were
/// read.
fn decode_elements(
    at: &At<'_>,
    kind: &Kind,
    json: &Json,
    unknown: UnknownFields,
    values: &mut Vec<Value>,
) -> bool {
    match json {
        Json::Array(elements) => {
            let mut complete = true;
            for (index, element) in elements.iter().enumerate().filter(|(_, element)| **element != Json::Null)
            {
                complete &= decode_elements(&at.index(index), kind, element, unknown, values);
            }
            complete
        }
        single => match decode_one(at, kind, single, unknown) {
            Some(value) => {
                values.push(value);
                true
            }
            None => false,
        },
    }
}

fn decode_map(
    at: &At<'_>,
    field: &FieldDescriptor,
    json: &Json,
    unknown: UnknownFields,
) -> Option<HashMap<MapKey, Value>> {
    let Json::Object(entries) = json else {
        return at.error(format!("expected a map, not {}", scalar::brief(json)));
    };
    let kind = field.kind();
    let entry = kind.as_message()?;
    let mut map = HashMap::with_capacity(entries.len());
    let mut complete = true;
    for (key, value) in entries {
        let at = at.key(key);
        let decoded = scalar::decode(&entry.map_entry_key_field().kind(), &Json::String(key.clone()));
        let map_key = match decoded.map(Value::into_map_key) {
            Ok(Some(map_key)) => map_key,
            Ok(None) => return at.error("not a key"),
            Err(reason) => return at.error(reason),
        };
        if *value == Json::Null && !accepts_null(&entry.map_entry_value_field()) {
            continue;
        }
        match decode_one(&at, &entry.map_entry_value_field().kind(), value, unknown) {
            Some(value) => drop(map.insert(map_key, value)),
            None => complete = false,
        }
    }
    complete.then_some(map)
}

fn decode_one(at: &At<'_>, kind: &Kind, json: &Json, unknown: UnknownFields) -> Option<Value> {
    match kind {
        Kind::Message(descriptor) if descriptor.full_name() == "google.protobuf.Any" => {
            any::decode(at, descriptor, json, unknown).map(Value::Message)
        }
        Kind::Message(descriptor) => decode(at, descriptor, json, unknown).map(Value::Message),
        kind => match (kind, json) {
            // Unknown enum names count as unknown fields, as in Envoy: left out, the default stands.
            (Kind::Enum(_), Json::String(_)) if unknown == UnknownFields::Note => scalar::decode(kind, json)
                .map_err(|reason| at.note(NoteKind::UnknownField, reason))
                .ok()
                .or_else(|| Some(Value::default_value(kind))),
            _ => scalar::decode(kind, json).or_else(|reason| at.error(reason).ok_or(())).ok(),
        },
    }
}
