//! Envoy's own constraints, which its .proto files carry as `validate.rules` options.

mod bounds;
mod compile;
mod text;

use bounds::Bounds;
use prost_reflect::{DynamicMessage, FieldDescriptor, ReflectMessage as _, Value};
use text::TextRule;

pub(crate) use compile::{compile, required_oneofs};

use crate::at::At;

/// What a field has to satisfy.
#[derive(Debug)]
pub(crate) struct Rule {
    /// The message has to be there.
    required: bool,
    /// The message is not looked into.
    pub(crate) skip: bool,
    kind: RuleKind,
}

#[derive(Debug)]
enum RuleKind {
    Any {
        in_: Vec<String>,
        not_in: Vec<String>,
    },
    Bool(bool),
    Bytes {
        min: Option<u64>,
        max: Option<u64>,
    },
    Duration(Bounds<i128>),
    Enum {
        defined_only: bool,
        in_: Vec<i32>,
        not_in: Vec<i32>,
    },
    Float(Bounds<f64>),
    Integer(Bounds<i128>),
    List {
        min: Option<u64>,
        max: Option<u64>,
        unique: bool,
        ignore_empty: bool,
        items: Option<Box<Rule>>,
    },
    Map {
        min: Option<u64>,
        max: Option<u64>,
        ignore_empty: bool,
        keys: Option<Box<Rule>>,
        values: Option<Box<Rule>>,
    },
    None,
    Text(TextRule),
}

/// Checks `field` of `message`, set or not. `at` is the field.
pub(crate) fn check(at: &At<'_>, rule: &Rule, message: &DynamicMessage, field: &FieldDescriptor) {
    let present = message.has_field(field);
    // `required` on a member of a oneof asks for a value where that member was chosen.
    if rule.required && !present && field.containing_oneof().is_none() {
        at.error::<()>("value is required");
        return;
    }
    // A member of a oneof that was not chosen, or a message that is not there, has nothing to satisfy.
    if !present && field.supports_presence() {
        return;
    }
    check_value(at, rule, &message.get_field(field), field);
}

fn check_value(at: &At<'_>, rule: &Rule, value: &Value, field: &FieldDescriptor) {
    match (&rule.kind, value) {
        (RuleKind::List { min, max, unique, ignore_empty, items }, Value::List(values)) => {
            if *ignore_empty && values.is_empty() {
                return;
            }
            check_count(at, *min, *max, values.len(), "item(s)");
            if *unique && (1..values.len()).any(|i| values[..i].contains(&values[i])) {
                at.error::<()>("repeated value must contain unique items");
            }
            if let Some(rule) = items {
                values
                    .iter()
                    .enumerate()
                    .for_each(|(i, value)| check_value(&at.index(i), rule, value, field));
            }
        }
        (RuleKind::Map { min, max, ignore_empty, keys, values }, Value::Map(map)) => {
            if *ignore_empty && map.is_empty() {
                return;
            }
            check_count(at, *min, *max, map.len(), "pair(s)");
            for (key, value) in map {
                let shown = key.as_str().map_or_else(|| format!("{key:?}"), str::to_owned);
                let at = at.key(&shown);
                if let Some(rule) = keys {
                    check_value(&at, rule, &Value::from(key.clone()), field);
                }
                if let Some(rule) = values {
                    check_value(&at, rule, value, field);
                }
            }
        }
        (_, value) => {
            if let Err(reason) = check_one(rule, value, field) {
                at.error::<()>(reason);
            }
        }
    }
}

fn check_count(at: &At<'_>, min: Option<u64>, max: Option<u64>, count: usize, what: &str) {
    if let Some(min) = min.filter(|min| (count as u64) < *min) {
        at.error::<()>(format!("value must contain at least {min} {what}"));
    }
    if let Some(max) = max.filter(|max| (count as u64) > *max) {
        at.error::<()>(format!("value must contain no more than {max} {what}"));
    }
}

fn is_any(message: &DynamicMessage) -> bool {
    message.descriptor().full_name() == "google.protobuf.Any"
}

fn check_one(rule: &Rule, value: &Value, field: &FieldDescriptor) -> Result<(), String> {
    match (&rule.kind, value) {
        // Envoy has such rules for other messages too, of which only `required` means anything.
        (RuleKind::Any { in_, not_in }, Value::Message(any)) if is_any(any) => {
            let url = any
                .get_field_by_number(1)
                .and_then(|url| url.as_str().map(str::to_owned))
                .unwrap_or_default();
            if url.is_empty() && rule.required {
                return Err("value is required".to_owned());
            }
            if (!in_.is_empty() && !in_.contains(&url)) || not_in.contains(&url) {
                return Err(format!("type URL {url:?} is not allowed"));
            }
            Ok(())
        }
        (RuleKind::Duration(bounds), Value::Message(duration)) => bounds.check(nanos(duration), show_nanos),
        // A wrapper is checked by what it wraps.
        (RuleKind::None, _) => Ok(()),
        (_, Value::Message(wrapper)) => match wrapper.get_field_by_number(1) {
            Some(inner) => check_one(rule, &inner, field),
            None => Ok(()),
        },
        (RuleKind::Bool(constant), Value::Bool(value)) if value != constant => {
            Err(format!("value must equal {constant}"))
        }
        (RuleKind::Bytes { min, max }, Value::Bytes(bytes)) => {
            text::check_length(*min, *max, bytes.len(), "bytes")
        }
        (RuleKind::Enum { defined_only, in_, not_in }, Value::EnumNumber(number)) => {
            let kind = field.kind();
            let defined = kind.as_enum().is_none_or(|descriptor| descriptor.get_value(*number).is_some());
            if *defined_only && !defined {
                return Err("value must be one of the defined enum values".to_owned());
            }
            if (!in_.is_empty() && !in_.contains(number)) || not_in.contains(number) {
                return Err("enum value is not allowed".to_owned());
            }
            Ok(())
        }
        (RuleKind::Float(bounds), Value::F32(value)) => bounds.check(f64::from(*value), |v| v.to_string()),
        (RuleKind::Float(bounds), Value::F64(value)) => bounds.check(*value, |v| v.to_string()),
        (RuleKind::Integer(bounds), value) => match integer(value) {
            Some(value) => bounds.check(value, |v| v.to_string()),
            None => Ok(()),
        },
        (RuleKind::Text(rule), Value::String(text)) => rule.check(text),
        _ => Ok(()),
    }
}

fn integer(value: &Value) -> Option<i128> {
    match value {
        Value::I32(value) => Some((*value).into()),
        Value::I64(value) => Some((*value).into()),
        Value::U32(value) => Some((*value).into()),
        Value::U64(value) => Some((*value).into()),
        _ => None,
    }
}

fn nanos(duration: &DynamicMessage) -> i128 {
    let part = |number| duration.get_field_by_number(number).as_deref().and_then(integer).unwrap_or_default();
    part(1) * 1_000_000_000 + part(2)
}

fn show_nanos(nanos: i128) -> String {
    let (whole, fraction) = (nanos / 1_000_000_000, (nanos % 1_000_000_000).abs());
    match fraction {
        0 => format!("{whole}s"),
        _ => format!("{whole}.{fraction:09}").trim_end_matches('0').to_owned() + "s",
    }
}

#[cfg(test)]
mod tests;
