//! Messages on the wire.
//!
//! Two messages mean the same when their canonical bytes are equal: fields in order of their numbers, maps sorted by
//! key, and the messages in `Any`s written by the same rules.

use prost::{
    bytes::BufMut,
    encoding::{WireType, encode_key, encode_varint},
};
use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage as _, Value,
};

use super::{any, json::UnknownFields};
use crate::at::At;

/// Extensions in extensions: each one is decoded on its own, so that the decoder's limit does not bound them.
const DEPTH_MAX: usize = 16;

/// Reads a message from the wire, with extensions that came as `TypedStruct` unwrapped.
pub(crate) fn from_wire(
    at: &At<'_>,
    descriptor: &MessageDescriptor,
    bytes: &[u8],
    unknown: UnknownFields,
) -> Option<DynamicMessage> {
    let mut message = match DynamicMessage::decode(descriptor.clone(), bytes) {
        Ok(message) => message,
        Err(e) => return at.error(e.to_string()),
    };
    unwrap_below(at, &mut message, unknown, 0)?;
    Some(message)
}

/// Replaces every `TypedStruct` in an `Any`. `depth` counts the `Any`s around the message.
fn unwrap_below(
    at: &At<'_>,
    message: &mut DynamicMessage,
    unknown: UnknownFields,
    depth: usize,
) -> Option<()> {
    let descriptor = message.descriptor();
    if descriptor.full_name() == "google.protobuf.Any" {
        if depth == DEPTH_MAX {
            return at.error("extensions are nested too deeply");
        }
        // What does not open is left as it is; whoever needs the extension says what is wrong with it.
        let Some(mut inner) = any::open(message) else { return Some(()) };
        if any::is_typed_struct(&inner.descriptor()) {
            inner = any::unwrap_typed_struct(at, &inner, unknown)?;
            let url = format!("type.googleapis.com/{}", inner.descriptor().full_name());
            *message = any::pack(&descriptor, &url, &inner);
            return Some(());
        }
        unwrap_below(at, &mut inner, unknown, depth + 1)?;
        let (url, _) = any::parts(message)?;
        *message = any::pack(&descriptor, &url, &inner);
        return Some(());
    }
    for (field, value) in message.fields_mut() {
        let at = at.field(field.name());
        match value {
            Value::Message(inner) => unwrap_below(&at, inner, unknown, depth)?,
            Value::List(values) => {
                for (index, inner) in values.iter_mut().enumerate() {
                    if let Value::Message(inner) = inner {
                        unwrap_below(&at.index(index), inner, unknown, depth)?;
                    }
                }
            }
            Value::Map(map) => {
                for inner in map.values_mut() {
                    if let Value::Message(inner) = inner {
                        unwrap_below(&at, inner, unknown, depth)?;
                    }
                }
            }
            _ => {}
        }
    }
    Some(())
}

/// The bytes of a message in their canonical order.
pub(crate) fn canonical(message: &DynamicMessage) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_message(message, &mut bytes);
    bytes
}

fn write_message(message: &DynamicMessage, out: &mut Vec<u8>) {
    for (field, value) in message.fields() {
        match value {
            Value::List(values) if field.is_packed() => {
                let mut packed = Vec::new();
                values.iter().for_each(|value| write_scalar(&field.kind(), value, &mut packed));
                write_delimited(field.number(), &packed, out);
            }
            Value::List(values) => {
                values.iter().for_each(|value| write_field(field.number(), &field.kind(), value, out));
            }
            Value::Map(map) => write_map(&field, map, out),
            value => write_field(field.number(), &field.kind(), value, out),
        }
    }
}

fn write_map(field: &FieldDescriptor, map: &std::collections::HashMap<MapKey, Value>, out: &mut Vec<u8>) {
    let kind = field.kind();
    let Some(entry) = kind.as_message() else { return };
    let (key_kind, value_kind) = (entry.map_entry_key_field().kind(), entry.map_entry_value_field().kind());
    let mut entries: Vec<_> = map
        .iter()
        .map(|(key, value)| {
            let mut bytes = Vec::new();
            write_field(1, &key_kind, &Value::from(key.clone()), &mut bytes);
            write_field(2, &value_kind, value, &mut bytes);
            bytes
        })
        .collect();
    // Keys come first in their entries, so that this sorts by key, if not in an order a person would choose.
    entries.sort_unstable();
    entries.iter().for_each(|entry| write_delimited(field.number(), entry, out));
}

fn write_field(number: u32, kind: &Kind, value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Message(message) => {
            encode_key(number, WireType::LengthDelimited, out);
            let start = out.len();
            write_message(message, out);
            let mut length = Vec::new();
            encode_varint((out.len() - start) as u64, &mut length);
            drop(out.splice(start..start, length));
        }
        Value::String(text) => write_delimited(number, text.as_bytes(), out),
        Value::Bytes(bytes) => write_delimited(number, bytes, out),
        value => {
            encode_key(number, kind.wire_type(), out);
            write_scalar(kind, value, out);
        }
    }
}

fn write_delimited(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.put_slice(bytes);
}

fn write_scalar(kind: &Kind, value: &Value, out: &mut Vec<u8>) {
    match (kind, value) {
        (_, Value::Bool(value)) => encode_varint(u64::from(*value), out),
        (Kind::Sint32, Value::I32(value)) => {
            encode_varint(u64::from(((value << 1) ^ (value >> 31)) as u32), out);
        }
        (Kind::Sint64, Value::I64(value)) => encode_varint(((value << 1) ^ (value >> 63)) as u64, out),
        (Kind::Sfixed32, Value::I32(value)) => out.put_i32_le(*value),
        (Kind::Sfixed64, Value::I64(value)) => out.put_i64_le(*value),
        (Kind::Fixed32, Value::U32(value)) => out.put_u32_le(*value),
        (Kind::Fixed64, Value::U64(value)) => out.put_u64_le(*value),
        (_, Value::I32(value) | Value::EnumNumber(value)) => encode_varint(i64::from(*value) as u64, out),
        (_, Value::I64(value)) => encode_varint(*value as u64, out),
        (_, Value::U32(value)) => encode_varint(u64::from(*value), out),
        (_, Value::U64(value)) => encode_varint(*value, out),
        (_, Value::F32(value)) => out.put_f32_le(*value),
        (_, Value::F64(value)) => out.put_f64_le(*value),
        // Lists, maps, strings, bytes and messages are not scalars; their writers are above.
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::{at::Sink, decode, descriptor};

    fn message(name: &str, json: serde_json::Value) -> DynamicMessage {
        let sink = Sink::new("test");
        let message =
            decode::decode(&sink.root(), &descriptor::message(name).unwrap(), &json, UnknownFields::Refuse);
        let (errors, _) = sink.into_parts();
        message.unwrap_or_else(|| panic!("{errors:?}"))
    }

    #[test]
    fn canonical_bytes_decode_to_the_same_message() {
        let cluster = message(
            "envoy.config.cluster.v3.Cluster",
            serde_json::json!({
                "name": "a", "type": "STRICT_DNS", "connect_timeout": "-0.25s", "lrs_report_endpoint_metrics": ["a", "b"],
                "metadata": {"filter_metadata": {"x": {"n": -1.5, "t": true, "z": null}, "y": {}, "culvert": {"s": ["q"]}}},
                "common_lb_config": {"healthy_panic_threshold": {"value": 12.5}},
                "circuit_breakers": {"thresholds": [{"max_retries": 7}, {"priority": "HIGH", "track_remaining": true}]},
            }),
        );
        let bytes = canonical(&cluster);
        let again = DynamicMessage::decode(cluster.descriptor(), bytes.as_slice()).unwrap();
        assert_eq!(canonical(&again), bytes);
        assert_eq!(serde_json::to_value(&again).unwrap(), serde_json::to_value(&cluster).unwrap());
        assert_eq!(bytes.len(), cluster.encoded_len());
    }

    #[test]
    fn nesting_is_bounded() {
        let descriptor = descriptor::message("google.protobuf.Any").unwrap();
        let mut any = DynamicMessage::new(descriptor.clone());
        for depth in 0..100_000 {
            let mut outer = DynamicMessage::new(descriptor.clone());
            outer.set_field_by_number(1, Value::String("x/google.protobuf.Any".to_owned()));
            outer.set_field_by_number(2, Value::Bytes(any.encode_to_vec().into()));
            any = outer;
            if depth == 10 || depth == 20 || any.encoded_len() > 100_000 {
                let sink = Sink::new("test");
                let read = from_wire(&sink.root(), &descriptor, &any.encode_to_vec(), UnknownFields::Refuse);
                assert_eq!(read.is_some(), depth == 10);
            }
            if any.encoded_len() > 100_000 {
                return;
            }
        }
        panic!("not deep enough");
    }

    #[test]
    fn map_order_does_not_show() {
        let keys: Vec<String> = (0..50).map(|i| format!("key-{i}")).collect();
        let tree = |keys: &[String]| {
            let map: serde_json::Map<_, _> =
                keys.iter().map(|key| (key.clone(), serde_json::json!({"inner": key}))).collect();
            canonical(&message(
                "envoy.config.core.v3.Metadata",
                serde_json::json!({ "filter_metadata": map }),
            ))
        };
        let reversed: Vec<String> = keys.iter().rev().cloned().collect();
        assert_eq!(tree(&keys), tree(&reversed));
    }

    #[test]
    fn typed_struct_from_the_wire_is_unwrapped() {
        let filter = serde_json::json!({
            "name": "router",
            "typed_config": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {}},
        });
        let mut filter =
            message("envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter", filter);
        let typed = message(
            "udpa.type.v1.TypedStruct",
            serde_json::json!({
                "type_url": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                "value": {"suppressEnvoyHeaders": true},
            }),
        );
        let any = filter.get_field_by_name_mut("typed_config").unwrap().as_message_mut().unwrap();
        *any = any::pack(&any.descriptor(), "type.googleapis.com/udpa.type.v1.TypedStruct", &typed);
        let sink = Sink::new("test");
        let read =
            from_wire(&sink.root(), &filter.descriptor(), &filter.encode_to_vec(), UnknownFields::Refuse)
                .unwrap();
        let router =
            any::open(read.get_field_by_name("typed_config").unwrap().as_message().unwrap()).unwrap();
        assert_eq!(router.descriptor().full_name(), "envoy.extensions.filters.http.router.v3.Router");
        assert_eq!(router.get_field_by_name("suppress_envoy_headers").unwrap().as_bool(), Some(true));
    }
}
