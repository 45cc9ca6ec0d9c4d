//! Free-form data (`google.protobuf.Struct`, `config.core.v3.Metadata`).

use std::{collections::BTreeMap, sync::Arc};

/// `google.protobuf.Struct`.
pub type Struct = BTreeMap<String, Value>;

/// `google.protobuf.Value`. Shared when cloned.
#[derive(Clone, Debug, Default)]
pub enum Value {
    /// `null_value`
    #[default]
    Null,
    /// `bool_value`
    Bool(bool),
    /// `number_value`
    Number(f64),
    /// `string_value`
    String(Arc<str>),
    /// `list_value`
    List(Arc<[Self]>),
    /// `struct_value`
    Struct(Arc<Struct>),
}

/// Numbers are compared by their bits, so that a value equals itself.
impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Number(a), Self::Number(b)) => a.to_bits() == b.to_bits(),
            (Self::String(a), Self::String(b)) => a == b,
            (Self::List(a), Self::List(b)) => a == b,
            (Self::Struct(a), Self::Struct(b)) => a == b,
            _ => false,
        }
    }
}

impl Eq for Value {}

/// `config.core.v3.Metadata.filter_metadata`: structs by namespace.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Metadata(pub BTreeMap<String, Struct>);

impl Metadata {
    /// The value at a path below a namespace.
    #[must_use]
    pub fn get<'a>(&self, namespace: &str, path: impl IntoIterator<Item = &'a str>) -> Option<&Value> {
        let mut path = path.into_iter();
        let mut value = self.0.get(namespace)?.get(path.next()?)?;
        for key in path {
            let Value::Struct(inner) = value else { return None };
            value = inner.get(key)?;
        }
        Some(value)
    }
}
