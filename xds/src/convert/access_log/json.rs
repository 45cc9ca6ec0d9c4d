//! `json_format`: a structure of format strings.

use culvert_model::JsonTemplate;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};

use crate::{at::At, format};

/// The object at the root, or one in it. Members are ordered as Envoy writes them.
pub(super) fn object(at: &At<'_>, object: &Struct) -> Option<JsonTemplate> {
    let mut members: Vec<_> = object.fields.iter().collect();
    members.sort_unstable_by_key(|(name, _)| *name);
    let converted: Vec<_> = members
        .into_iter()
        .map(|(name, member)| Some((name.clone(), value(&at.key(name), member)?)))
        .collect();
    Some(JsonTemplate::Object(converted.into_iter().collect::<Option<_>>()?))
}

fn value(at: &At<'_>, given: &Value) -> Option<JsonTemplate> {
    Some(match given.kind.as_ref() {
        None | Some(Kind::NullValue(_)) => JsonTemplate::Null,
        Some(Kind::BoolValue(value)) => JsonTemplate::Literal(value.to_string()),
        Some(Kind::ListValue(list)) => {
            let converted: Vec<_> =
                list.values.iter().enumerate().map(|(i, member)| value(&at.index(i), member)).collect();
            JsonTemplate::List(converted.into_iter().collect::<Option<_>>()?)
        }
        Some(Kind::NumberValue(value)) => JsonTemplate::Literal(number(*value)),
        Some(Kind::StringValue(text)) => JsonTemplate::Value(format::format(at, text)?),
        Some(Kind::StructValue(inner)) => object(at, inner)?,
    })
}

/// As Envoy writes it: whole numbers without a fraction, large ones as `1e+20`.
fn number(value: f64) -> String {
    if !value.is_finite() {
        return "null".to_owned();
    }
    if value.abs() < 1e15 {
        return value.to_string();
    }
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) if !exponent.starts_with('-') => format!("{mantissa}e+{exponent}"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_envoy_does() {
        for (value, text) in [(3.0, "3"), (1.5, "1.5"), (1e20, "1e+20"), (-2.0, "-2"), (f64::NAN, "null")] {
            assert_eq!(number(value), text);
        }
    }
}
