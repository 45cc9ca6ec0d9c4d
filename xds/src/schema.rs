//! What is known about a message type, put together at its first use.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, PoisonError, RwLock},
};

use prost_reflect::{FieldDescriptor, MessageDescriptor, OneofDescriptor};

use crate::{
    rules::{self, Rule},
    support::{self, Table},
};

/// A message type.
#[derive(Debug)]
pub(crate) struct Schema {
    /// By number.
    pub(crate) fields: Vec<FieldSchema>,
    /// Oneofs of which one member has to be set.
    pub(crate) required_oneofs: Vec<OneofDescriptor>,
    /// What is promised about its fields; `None` when the message is not supported anywhere.
    pub(crate) table: Option<&'static Table>,
}

/// A field of a message type.
#[derive(Debug)]
pub(crate) struct FieldSchema {
    pub(crate) descriptor: FieldDescriptor,
    /// Envoy's constraint.
    pub(crate) rule: Option<Rule>,
    /// Envoy warns when it is used.
    pub(crate) deprecated: bool,
    /// Not to be shown (`udpa.annotations.sensitive`).
    pub(crate) sensitive: bool,
}

static KNOWN: LazyLock<RwLock<HashMap<String, Arc<Schema>>>> = LazyLock::new(RwLock::default);

/// Forgets all schemas, which keep descriptors in memory.
pub(crate) fn forget() {
    *KNOWN.write().unwrap_or_else(PoisonError::into_inner) = HashMap::new();
}

impl Schema {
    /// The schema of `message`.
    pub(crate) fn of(message: &MessageDescriptor) -> Arc<Self> {
        // A schema is inserted whole, so that a panic elsewhere cannot have left half of one.
        if let Some(known) = KNOWN.read().unwrap_or_else(PoisonError::into_inner).get(message.full_name()) {
            return known.clone();
        }
        let schema = Arc::new(Self::new(message));
        KNOWN
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(message.full_name().to_owned(), schema.clone());
        schema
    }

    fn new(message: &MessageDescriptor) -> Self {
        let sensitive = message.parent_pool().get_extension_by_name("udpa.annotations.sensitive");
        let mut fields: Vec<_> = message
            .fields()
            .map(|field| {
                let options = field.options();
                let flag = |value: Option<bool>| value.unwrap_or_default();
                FieldSchema {
                    rule: rules::compile(&field),
                    deprecated: flag(
                        options.get_field_by_name("deprecated").and_then(|value| value.as_bool()),
                    ),
                    sensitive: flag(
                        sensitive.as_ref().and_then(|name| options.get_extension(name).as_bool()),
                    ),
                    descriptor: field,
                }
            })
            .collect();
        fields.sort_by_key(|field| field.descriptor.number());
        Self {
            fields,
            required_oneofs: rules::required_oneofs(message),
            table: support::table(message.full_name()),
        }
    }
}
