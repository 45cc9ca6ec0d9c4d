//! `service.runtime.v3`: layers of the runtime.

use std::collections::BTreeMap;

use envoy_types::pb::{
    envoy::service::runtime::v3 as pb,
    google::protobuf::{Struct, value::Kind},
};

use crate::at::At;

/// The values of a layer, nested structures as dotted keys.
pub(crate) fn runtime_layer(_: &At<'_>, message: &pb::Runtime) -> Option<BTreeMap<String, String>> {
    let mut values = BTreeMap::new();
    if let Some(layer) = &message.layer {
        flatten("", layer, &mut values);
    }
    Some(values)
}

fn flatten(prefix: &str, values: &Struct, flat: &mut BTreeMap<String, String>) {
    for (key, value) in &values.fields {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        let text = match value.kind.as_ref() {
            Some(Kind::StructValue(inner)) => {
                flatten(&key, inner, flat);
                continue;
            }
            Some(Kind::BoolValue(value)) => value.to_string(),
            Some(Kind::NumberValue(value)) => value.to_string(),
            Some(Kind::StringValue(value)) => value.clone(),
            Some(Kind::ListValue(_) | Kind::NullValue(_)) | None => continue,
        };
        flat.insert(key, text);
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf::Value;

    use super::*;

    #[test]
    fn nested_values_have_dotted_keys() {
        let value = |kind| Value { kind: Some(kind) };
        let of = |fields: Vec<(&str, Value)>| Struct {
            fields: fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        };
        let inner = of(vec![("max", value(Kind::NumberValue(5.0))), ("on", value(Kind::BoolValue(true)))]);
        let layer = of(vec![
            ("a", value(Kind::StructValue(inner))),
            ("b.c", value(Kind::StringValue("x".to_owned()))),
        ]);
        let mut flat = BTreeMap::new();
        flatten("", &layer, &mut flat);
        let flat: Vec<_> = flat.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(flat, [("a.max", "5"), ("a.on", "true"), ("b.c", "x")]);
    }
}
