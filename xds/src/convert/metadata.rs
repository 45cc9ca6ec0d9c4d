//! `google.protobuf.Struct` and `config.core.v3.Metadata`.

use std::sync::Arc;

use culvert_model::{Metadata, Struct, Value};
use envoy_types::pb::{
    envoy::config::core::v3 as pb,
    google::protobuf::{self, value::Kind},
};

/// A struct.
pub(super) fn structure(message: &protobuf::Struct) -> Struct {
    message.fields.iter().map(|(key, value)| (key.clone(), self::value(value))).collect()
}

fn value(message: &protobuf::Value) -> Value {
    match message.kind.as_ref() {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(number)) => Value::Number(*number),
        Some(Kind::StringValue(text)) => Value::String(text.as_str().into()),
        Some(Kind::BoolValue(value)) => Value::Bool(*value),
        Some(Kind::StructValue(inner)) => Value::Struct(Arc::new(structure(inner))),
        Some(Kind::ListValue(list)) => Value::List(list.values.iter().map(value).collect()),
    }
}

/// `filter_metadata`; `None` when there is none.
pub(super) fn metadata(message: Option<&pb::Metadata>) -> Option<Metadata> {
    let fields = &message?.filter_metadata;
    let metadata = fields.iter().map(|(name, value)| (name.clone(), structure(value))).collect();
    (!fields.is_empty()).then_some(Metadata(metadata))
}
