//! What filters find out about a request, for those that come after them: dynamic metadata.

use std::sync::Arc;

use culvert_model::{Metadata, Struct, Value};
use envoy_types::pb::google::protobuf::{self, value::Kind};

/// The dynamic metadata of one request. Owns no memory until there is some.
#[derive(Default)]
pub(super) struct DynamicMetadata(Option<Box<Metadata>>);

impl DynamicMetadata {
    /// All of it.
    pub(super) fn get(&self) -> Option<&Metadata> {
        self.0.as_deref()
    }

    /// Adds `values` to a namespace: structs are merged, lists appended, and anything else replaced, as Envoy does.
    pub(super) fn merge(&mut self, namespace: &str, values: Struct) {
        let metadata = self.0.get_or_insert_default();
        merge(metadata.0.entry(namespace.to_owned()).or_default(), values);
    }
}

fn merge(known: &mut Struct, values: Struct) {
    for (key, value) in values {
        match (known.get_mut(&key), value) {
            (Some(Value::Struct(inner)), Value::Struct(more)) => {
                merge(Arc::make_mut(inner), Arc::unwrap_or_clone(more));
            }
            (Some(Value::List(list)), Value::List(more)) => {
                *list = list.iter().chain(more.iter()).cloned().collect();
            }
            (_, value) => drop(known.insert(key, value)),
        }
    }
}

/// A struct as it is on the wire.
pub(super) fn to_proto(values: &Struct) -> protobuf::Struct {
    let field = |(key, value): (&String, &Value)| (key.clone(), value_to_proto(value));
    protobuf::Struct { fields: values.iter().map(field).collect() }
}

fn value_to_proto(value: &Value) -> protobuf::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(it) => Kind::BoolValue(*it),
        Value::Number(it) => Kind::NumberValue(*it),
        Value::String(it) => Kind::StringValue(it.to_string()),
        Value::List(list) => {
            Kind::ListValue(protobuf::ListValue { values: list.iter().map(value_to_proto).collect() })
        }
        Value::Struct(inner) => Kind::StructValue(to_proto(inner)),
    };
    protobuf::Value { kind: Some(kind) }
}

/// A struct from the wire.
pub(super) fn from_proto(message: &protobuf::Struct) -> Struct {
    message.fields.iter().map(|(key, value)| (key.clone(), value_from_proto(value))).collect()
}

fn value_from_proto(value: &protobuf::Value) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(it)) => Value::Bool(*it),
        Some(Kind::NumberValue(it)) => Value::Number(*it),
        Some(Kind::StringValue(it)) => Value::String(it.as_str().into()),
        Some(Kind::ListValue(list)) => Value::List(list.values.iter().map(value_from_proto).collect()),
        Some(Kind::StructValue(inner)) => Value::Struct(Arc::new(from_proto(inner))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_are_merged_and_the_rest_replaced() {
        let text = |text: &str| Value::String(text.into());
        let one = |key: &str, value: Value| Struct::from([(key.to_owned(), value)]);
        let mut metadata = DynamicMetadata::default();
        assert!(metadata.get().is_none());
        metadata.merge("n", one("s", Value::Struct(Arc::new(one("a", text("1"))))));
        metadata.merge("n", one("s", Value::Struct(Arc::new(one("b", text("2"))))));
        metadata.merge("n", one("l", Value::List([text("x")].into())));
        metadata.merge("n", one("l", Value::List([text("y")].into())));
        metadata.merge("n", one("t", text("old")));
        metadata.merge("n", one("t", text("new")));
        let known = metadata.get().unwrap();
        assert_eq!(known.get("n", ["s", "a"]), Some(&text("1")));
        assert_eq!(known.get("n", ["s", "b"]), Some(&text("2")));
        assert_eq!(known.get("n", ["l"]), Some(&Value::List([text("x"), text("y")].into())));
        assert_eq!(known.get("n", ["t"]), Some(&text("new")));
        let values = &known.0["n"];
        assert_eq!(from_proto(&to_proto(values)), *values);
    }
}
