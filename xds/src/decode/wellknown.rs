//! Messages of the protobuf library that have a JSON form of their own.

use prost_reflect::{DynamicMessage, MessageDescriptor, Value};
use serde_json::{Map, Value as Json};

use super::{json::UnknownFields, scalar};
use crate::at::At;

/// Longest duration that protobuf allows: about 10,000 years.
const SECONDS_MAX: i64 = 315_576_000_000;

/// Whether the message is written in JSON as something else than an object of its fields.
pub(super) fn is_special(descriptor: &MessageDescriptor) -> bool {
    matches!(
        descriptor.full_name().strip_prefix("google.protobuf."),
        Some(
            "Any"
                | "BoolValue"
                | "BytesValue"
                | "DoubleValue"
                | "Duration"
                | "FieldMask"
                | "FloatValue"
                | "Int32Value"
                | "Int64Value"
                | "ListValue"
                | "StringValue"
                | "Struct"
                | "Timestamp"
                | "UInt32Value"
                | "UInt64Value"
                | "Value"
        )
    )
}

/// Reads a message with a JSON form of its own; `None` for any other.
pub(super) fn decode(
    at: &At<'_>,
    descriptor: &MessageDescriptor,
    json: &Json,
    unknown: UnknownFields,
) -> Option<Option<DynamicMessage>> {
    let name = descriptor.full_name().strip_prefix("google.protobuf.")?;
    Some(match name {
        "Any" => super::any::decode(at, descriptor, json, unknown),
        "BoolValue" | "BytesValue" | "DoubleValue" | "FloatValue" | "Int32Value" | "Int64Value"
        | "StringValue" | "UInt32Value" | "UInt64Value" => wrapper(at, descriptor, json),
        // The object form, `{seconds: 1}`, is read as any other message.
        "Duration" if !json.is_object() => duration(at, descriptor, json),
        "FieldMask" | "Timestamp" if !json.is_object() => {
            match DynamicMessage::deserialize(descriptor.clone(), json) {
                Ok(message) => Some(message),
                Err(e) => at.error(e.to_string()),
            }
        }
        "ListValue" => match json {
            Json::Array(values) => list_value(descriptor, values),
            _ => at.error(format!("expected a list, not {}", scalar::brief(json))),
        },
        "Struct" => match json {
            Json::Object(fields) => struct_value(descriptor, fields),
            _ => at.error(format!("expected an object, not {}", scalar::brief(json))),
        },
        "Value" => value(descriptor, json),
        _ => return None,
    })
}

fn wrapper(at: &At<'_>, descriptor: &MessageDescriptor, json: &Json) -> Option<DynamicMessage> {
    let field = descriptor.get_field_by_name("value")?;
    let inner = match json {
        Json::Object(fields) if fields.keys().all(|key| key == "value") => {
            fields.get("value").unwrap_or(&Json::Null)
        }
        other => other,
    };
    let mut message = DynamicMessage::new(descriptor.clone());
    if *inner == Json::Null {
        return Some(message);
    }
    match scalar::decode(&field.kind(), inner) {
        Ok(value) => message.set_field(&field, value),
        Err(reason) => return at.error(reason),
    }
    Some(message)
}

fn duration(at: &At<'_>, descriptor: &MessageDescriptor, json: &Json) -> Option<DynamicMessage> {
    let parsed = json.as_str().and_then(parse_duration);
    let Some((seconds, nanos)) = parsed else {
        return at.error(format!("expected a duration such as \"0.25s\", not {}", scalar::brief(json)));
    };
    let mut message = DynamicMessage::new(descriptor.clone());
    message.set_field_by_name("seconds", Value::I64(seconds));
    message.set_field_by_name("nanos", Value::I32(nanos));
    Some(message)
}

/// `-?[0-9]+(\.[0-9]{1,9})?s`
fn parse_duration(text: &str) -> Option<(i64, i32)> {
    let text = text.strip_suffix('s')?;
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let seconds: i64 = whole.parse().ok().filter(|seconds| *seconds <= SECONDS_MAX)?;
    let nanos: i32 = format!("{fraction:0<9}").parse().ok()?;
    Some((sign * seconds, sign as i32 * nanos))
}

fn struct_value(descriptor: &MessageDescriptor, fields: &Map<String, Json>) -> Option<DynamicMessage> {
    let field = descriptor.get_field_by_name("fields")?;
    let kind = field.kind();
    let value_kind = kind.as_message()?.map_entry_value_field().kind();
    let value_descriptor = value_kind.as_message()?;
    let mut message = DynamicMessage::new(descriptor.clone());
    let mut map = std::collections::HashMap::with_capacity(fields.len());
    for (key, json) in fields {
        let inner = value(value_descriptor, json)?;
        map.insert(prost_reflect::MapKey::String(key.clone()), Value::Message(inner));
    }
    message.set_field(&field, Value::Map(map));
    Some(message)
}

fn list_value(descriptor: &MessageDescriptor, values: &[Json]) -> Option<DynamicMessage> {
    let field = descriptor.get_field_by_name("values")?;
    let kind = field.kind();
    let mut list = Vec::with_capacity(values.len());
    for json in values {
        list.push(Value::Message(value(kind.as_message()?, json)?));
    }
    let mut message = DynamicMessage::new(descriptor.clone());
    message.set_field(&field, Value::List(list));
    Some(message)
}

fn value(descriptor: &MessageDescriptor, json: &Json) -> Option<DynamicMessage> {
    let nested =
        |name: &str| descriptor.get_field_by_name(name).and_then(|field| field.kind().as_message().cloned());
    let (name, inner) = match json {
        Json::Null => ("null_value", Value::EnumNumber(0)),
        Json::Bool(value) => ("bool_value", Value::Bool(*value)),
        Json::Number(number) => ("number_value", Value::F64(number.as_f64()?)),
        Json::String(text) => ("string_value", Value::String(text.clone())),
        Json::Array(values) => ("list_value", Value::Message(list_value(&nested("list_value")?, values)?)),
        Json::Object(fields) => {
            ("struct_value", Value::Message(struct_value(&nested("struct_value")?, fields)?))
        }
    };
    let mut message = DynamicMessage::new(descriptor.clone());
    message.set_field_by_name(name, inner);
    Some(message)
}

/// A `google.protobuf.Struct`, `Value` or `ListValue` as JSON.
pub(crate) fn struct_to_json(message: &DynamicMessage) -> Json {
    serde_json::to_value(message).unwrap_or(Json::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, value) in [
            ("0s", (0, 0)),
            ("1s", (1, 0)),
            ("0.25s", (0, 250_000_000)),
            ("-1.000000001s", (-1, -1)),
            ("315576000000s", (SECONDS_MAX, 0)),
        ] {
            assert_eq!(parse_duration(text), Some(value), "{text}");
        }
        for bad in
            ["1", "1ms", "+1s", ".5s", "1.s", "0.0000000001s", "s", "-s", "1 s", "315576000001s", "1e3s"]
        {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
