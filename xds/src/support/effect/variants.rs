//! A message with one field changed, for every field and in many ways.

use prost_reflect::{Cardinality, DynamicMessage, FieldDescriptor, Kind, ReflectMessage as _, Value};

use super::Place;
use crate::{
    decode, descriptor,
    support::{Support, Table, table},
};

/// Calls `visit` with every variant of `message`, of which `table` says what is used, and with the places on the way to
/// what is different in it, the innermost first.
pub(super) fn of(
    message: &DynamicMessage,
    table: &'static Table,
    visit: &mut dyn FnMut(&mut Vec<Place>, DynamicMessage),
) {
    let used = table.used.iter().chain(table.used_as.iter().map(|(name, _)| name));
    for name in used {
        let Some(field) = message.descriptor().get_field_by_name(name) else { continue };
        let place = (table.message, *name);
        let present = message.has_field(&field);
        if present {
            let mut without = message.clone();
            without.clear_field(&field);
            visit(&mut vec![place], without);
        }
        for value in others(&field, present.then(|| message.get_field(&field).into_owned())) {
            let mut changed = message.clone();
            changed.set_field(&field, value);
            visit(&mut vec![place], changed);
        }
        if present {
            let nested = match table.support(name) {
                Support::Used(nested) => nested,
                _ => None,
            };
            below(&message.get_field(&field), nested, &mut |places, value| {
                let mut changed = message.clone();
                changed.set_field(&field, value);
                places.push(place);
                visit(places, changed);
            });
        }
    }
}

/// Every variant of the messages in a value.
fn below(value: &Value, nested: Option<&'static Table>, visit: &mut dyn FnMut(&mut Vec<Place>, Value)) {
    match value {
        Value::Message(message) => {
            let name = message.descriptor().full_name().to_owned();
            if name == "google.protobuf.Any" {
                return in_any(message, nested, visit);
            }
            if let Some(table) = nested.or_else(|| table(&name)) {
                of(message, table, &mut |places, changed| visit(places, Value::Message(changed)));
            }
        }
        Value::List(values) => {
            for (index, value) in values.iter().enumerate() {
                below(value, nested, &mut |places, changed| {
                    let mut values = values.clone();
                    values[index] = changed;
                    visit(places, Value::List(values));
                });
            }
        }
        Value::Map(map) => {
            for (key, value) in map {
                below(value, nested, &mut |places, changed| {
                    let mut map = map.clone();
                    map.insert(key.clone(), changed);
                    visit(places, Value::Map(map));
                });
            }
        }
        _ => {}
    }
}

fn in_any(
    any: &DynamicMessage,
    nested: Option<&'static Table>,
    visit: &mut dyn FnMut(&mut Vec<Place>, Value),
) {
    let Some(inner) = decode::open(any) else { return };
    below(&Value::Message(inner), nested, &mut |places, changed| {
        let mut any = any.clone();
        let changed = changed.as_message().map(decode::canonical).unwrap_or_default();
        any.set_field_by_name("value", Value::Bytes(changed.into()));
        visit(places, Value::Message(any));
    });
}

/// Values for a field that it does not have, some of which ought to be valid.
fn others(field: &FieldDescriptor, now: Option<Value>) -> Vec<Value> {
    if field.is_map() {
        return Vec::new();
    }
    if field.cardinality() == Cardinality::Repeated {
        return match now {
            Some(Value::List(mut values)) => {
                let (more, mut less) = (values.last().cloned(), values.clone());
                less.pop();
                values.extend(more);
                let mut texts = less.clone();
                texts.push(Value::String("other".to_owned()));
                let is_text = matches!(field.kind(), Kind::String);
                let mut lists = vec![Value::List(values), Value::List(less)];
                lists.extend(is_text.then_some(Value::List(texts)));
                lists
            }
            _ => singular(&field.kind(), None).into_iter().map(|value| Value::List(vec![value])).collect(),
        };
    }
    singular(&field.kind(), now.as_ref()).into_iter().filter(|value| Some(value) != now.as_ref()).collect()
}

fn singular(kind: &Kind, now: Option<&Value>) -> Vec<Value> {
    match kind {
        Kind::Bool => vec![Value::Bool(true), Value::Bool(false)],
        Kind::String => texts(now.and_then(Value::as_str)),
        Kind::Bytes => vec![Value::Bytes("some".into())],
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => [1, 7, 200].map(Value::I32).to_vec(),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => [1, 7, 200].map(Value::I64).to_vec(),
        Kind::Uint32 | Kind::Fixed32 => [1, 7, 200, 404, 5_000, 100_000].map(Value::U32).to_vec(),
        Kind::Uint64 | Kind::Fixed64 => [1, 7, 200, 5_000, 100_000].map(Value::U64).to_vec(),
        Kind::Float => [0.5, 3.0].map(Value::F32).to_vec(),
        Kind::Double => [0.5, 3.0].map(Value::F64).to_vec(),
        Kind::Enum(descriptor) => {
            descriptor.values().map(|value| Value::EnumNumber(value.number())).collect()
        }
        Kind::Message(message) => messages(message.full_name()),
    }
}

fn texts(now: Option<&str>) -> Vec<Value> {
    let mut texts: Vec<_> =
        ["some", "/some", "some.example", "127.0.0.7", "::7", "HOME", "f00d"].map(str::to_owned).into();
    texts.extend(now.map(|now| format!("{now}x")));
    texts.into_iter().map(Value::String).collect()
}

/// Messages that are values: wrappers, times, and whatever means something when it is empty.
fn messages(name: &str) -> Vec<Value> {
    let Some(descriptor) = descriptor::message(name) else { return Vec::new() };
    let empty = DynamicMessage::new(descriptor.clone());
    let with = |field: &str, value: Value| {
        let mut message = empty.clone();
        message.set_field_by_name(field, value);
        Value::Message(message)
    };
    match name {
        "google.protobuf.Duration" => {
            [1, 7, 700].map(|seconds| with("seconds", Value::I64(seconds))).to_vec()
        }
        "google.protobuf.Timestamp" => vec![with("seconds", Value::I64(4_000_000_000))],
        "envoy.type.v3.Percent" => [0.0, 7.0, 70.0].map(|value| with("value", Value::F64(value))).to_vec(),
        "xds.core.v3.TypedExtensionConfig" => extensions(&empty),
        _ if name.starts_with("google.protobuf.") && name.ends_with("Value") => {
            match descriptor.get_field_by_name("value") {
                Some(value) => {
                    singular(&value.kind(), None).into_iter().map(|value| with("value", value)).collect()
                }
                None => Vec::new(),
            }
        }
        _ => vec![Value::Message(empty)],
    }
}

/// Extensions of matchers: what is looked at, and where that leads.
fn extensions(empty: &DynamicMessage) -> Vec<Value> {
    let input = "envoy.extensions.matching.common_inputs.network.v3.SourcePortInput";
    let mut chain = DynamicMessage::new(descriptor::message("google.protobuf.StringValue").unwrap());
    chain.set_field_by_name("value", Value::String("two".to_owned()));
    let input = DynamicMessage::new(descriptor::message(input).unwrap());
    let extension = |inner: &DynamicMessage| {
        let mut any = DynamicMessage::new(descriptor::message("google.protobuf.Any").unwrap());
        let url = format!("type.googleapis.com/{}", inner.descriptor().full_name());
        any.set_field_by_name("type_url", Value::String(url));
        any.set_field_by_name("value", Value::Bytes(decode::canonical(inner).into()));
        let mut extension = empty.clone();
        extension.set_field_by_name("name", Value::String("some".to_owned()));
        extension.set_field_by_name("typed_config", Value::Message(any));
        Value::Message(extension)
    };
    vec![extension(&input), extension(&chain)]
}
