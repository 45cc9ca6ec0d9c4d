//! One pass over a message that decides whether it may be converted: Envoy's constraints, and the support tables.

use prost_reflect::{DynamicMessage, Kind, ReflectMessage as _, Value};

use crate::{
    NoteKind,
    at::At,
    decode, descriptor, rules,
    schema::{FieldSchema, Schema},
    support::{self, Support, Table},
};

const HTTP_FILTER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";
const FILTER_CONFIG: &str = "envoy.config.route.v3.FilterConfig";
const LB_POLICY: &str = "envoy.config.cluster.v3.LoadBalancingPolicy";

/// Checks a message that takes effect. Everything that is wrong with it is left at `at`.
pub(crate) fn walk(at: &At<'_>, message: &DynamicMessage) {
    let schema = Schema::of(&message.descriptor());
    match schema.table {
        Some(table) => visit(at, message, &schema, Promise::Table(table)),
        None => unsupported(at, message),
    }
}

/// What was promised about the message that is visited.
#[derive(Clone, Copy)]
enum Promise {
    /// It was accepted without effect, or refused already: only Envoy's constraints apply.
    Nothing,
    Table(&'static Table),
}

fn visit(at: &At<'_>, message: &DynamicMessage, schema: &Schema, promise: Promise) {
    for unknown in message.unknown_fields() {
        at.note(NoteKind::UnknownField, format!("field number {}", unknown.number()));
    }
    for oneof in &schema.required_oneofs {
        if !oneof.fields().any(|field| message.has_field(&field)) {
            let members: Vec<_> = oneof.fields().map(|field| field.name().to_owned()).collect();
            at.field(oneof.name()).error::<()>(format!("one of {} is required", members.join(", ")));
        }
    }
    for field in &schema.fields {
        let name = field.descriptor.name();
        let at = at.field(name);
        if let Some(rule) = &field.rule {
            rules::check(&at, rule, message, &field.descriptor);
        }
        if message.has_field(&field.descriptor) {
            let value = message.get_field(&field.descriptor);
            visit_field(&at, message, field, &value, promise);
        }
    }
}

fn visit_field(at: &At<'_>, message: &DynamicMessage, field: &FieldSchema, value: &Value, promise: Promise) {
    let below = match promise {
        Promise::Nothing => Below::Nothing,
        Promise::Table(table) => match table.support(field.descriptor.name()) {
            Support::Used(Some(table)) => Below::As(table),
            Support::Used(None) => Below::ByType,
            Support::NoEffect(reason) => {
                at.note(NoteKind::NoEffect, reason);
                Below::Nothing
            }
            Support::OnlyOff if is_off(value) => Below::Nothing,
            Support::OnlyOff => {
                at.unsupported::<()>(format!(
                    "{} is not supported; only the default is",
                    shown(&field.descriptor.kind(), value)
                ));
                Below::Nothing
            }
            Support::Refused(reason) => {
                at.unsupported::<()>(reason.unwrap_or("not supported"));
                Below::Nothing
            }
        },
    };
    // Where Envoy has a rule for an enum it is this one.
    if !matches!(below, Below::Nothing) && field.rule.is_none() {
        check_enum(at, &field.descriptor.kind(), value);
    }
    if field.deprecated && matches!(promise, Promise::Table(_)) {
        at.note(NoteKind::Warning, "deprecated");
    }
    if field.rule.as_ref().is_some_and(|rule| rule.skip) {
        return;
    }
    let name = message.descriptor();
    match (name.full_name(), field.descriptor.name()) {
        (HTTP_FILTER, "typed_config")
            if !matches!(below, Below::Nothing) && is_passed_over(at, message, value) => {}
        (FILTER_CONFIG, "config")
            if !matches!(below, Below::Nothing) && is_override_passed_over(at, message, value) => {}
        (LB_POLICY, "policies") if !matches!(below, Below::Nothing) => visit_policies(at, value),
        _ => visit_value(at, value, below),
    }
}

/// What was promised about the messages in a field.
#[derive(Clone, Copy)]
enum Below {
    As(&'static Table),
    ByType,
    Nothing,
}

fn visit_value(at: &At<'_>, value: &Value, below: Below) {
    match value {
        Value::Message(message) => visit_message(at, message, below),
        Value::List(values) => {
            for (index, value) in values.iter().enumerate() {
                visit_value(&at.index(index), value, below);
            }
        }
        Value::Map(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            for (key, value) in entries {
                let shown = key.as_str().map_or_else(|| format!("{key:?}"), str::to_owned);
                visit_value(&at.key(&shown), value, below);
            }
        }
        _ => {}
    }
}

fn visit_message(at: &At<'_>, message: &DynamicMessage, below: Below) {
    let descriptor = message.descriptor();
    if descriptor.full_name() == "google.protobuf.Any" {
        return visit_any(at, message, below);
    }
    if descriptor.full_name().starts_with("google.protobuf.") {
        return;
    }
    let schema = Schema::of(&descriptor);
    let promise = match (below, schema.table) {
        (Below::Nothing, _) => Promise::Nothing,
        (Below::As(table), _) | (Below::ByType, Some(table)) => Promise::Table(table),
        // A table that promises a message without one is a mistake in the tables, which a test finds.
        (Below::ByType, None) => return unsupported(at, message),
    };
    visit(at, message, &schema, promise);
}

fn visit_any(at: &At<'_>, any: &DynamicMessage, below: Below) {
    let url = any.get_field_by_number(1);
    let url = url.as_deref().and_then(Value::as_str).unwrap_or_default();
    let name = decode::type_name(url);
    // What is not supported is not worth looking up. Wrappers and the like mean themselves.
    let is_plain = name.starts_with("google.protobuf.");
    if matches!(below, Below::ByType)
        && !is_plain
        && support::table(name).is_none()
        && descriptor::exists(name)
    {
        at.unsupported::<()>(format!("{name} is not supported"));
        return;
    }
    let Some(inner) = decode::open(any) else {
        if matches!(below, Below::Nothing) {
            return;
        }
        at.error::<()>(match url {
            "" => "an extension without a type".to_owned(),
            url => format!("unknown extension type {url:?}, or not a message of that type"),
        });
        return;
    };
    visit_message(at, &inner, below);
}

fn unsupported(at: &At<'_>, message: &DynamicMessage) {
    at.unsupported::<()>(format!("{} is not supported", message.descriptor().full_name()));
}

/// An HTTP filter that is not supported is passed over where its absence was allowed for: it is optional, or disabled.
/// Requests of a route that enables it nevertheless are refused.
fn is_passed_over(at: &At<'_>, filter: &DynamicMessage, config: &Value) -> bool {
    let flag = |name| filter.get_field_by_name(name).is_some_and(|value| value.as_bool() == Some(true));
    let Value::Message(any) = config else { return false };
    let inner = decode::open(any);
    if inner.as_ref().is_some_and(|inner| Schema::of(&inner.descriptor()).table.is_some()) {
        return false;
    }
    let name = inner.map_or_else(|| "unknown".to_owned(), |inner| inner.descriptor().full_name().to_owned());
    if flag("disabled") {
        at.note(NoteKind::NoEffect, format!("{name} is not supported, and disabled"));
        return true;
    }
    if flag("is_optional") {
        at.note(NoteKind::NoEffect, format!("{name} is not supported, and optional"));
        return true;
    }
    false
}

/// What a route says about a filter is not looked at where it turns the filter on or off and says nothing else, or where
/// it is optional and not supported.
fn is_override_passed_over(at: &At<'_>, filter: &DynamicMessage, config: &Value) -> bool {
    let flag = |name| filter.get_field_by_name(name).is_some_and(|value| value.as_bool() == Some(true));
    let Value::Message(any) = config else { return false };
    let url = any.get_field_by_number(1);
    if flag("disabled") || url.as_deref().and_then(Value::as_str).unwrap_or_default().is_empty() {
        return true;
    }
    let inner = decode::open(any);
    if !flag("is_optional") || inner.as_ref().is_some_and(|it| Schema::of(&it.descriptor()).table.is_some()) {
        return false;
    }
    let name = inner.map_or_else(|| "unknown".to_owned(), |inner| inner.descriptor().full_name().to_owned());
    at.note(NoteKind::NoEffect, format!("{name} is not supported, and optional"));
    true
}

/// Of a list of load-balancing policies the first one that is supported is used.
fn visit_policies(at: &At<'_>, policies: &Value) {
    let Value::List(policies) = policies else { return };
    let mut unsupported = Vec::new();
    for (index, policy) in policies.iter().enumerate() {
        let name = extension_of(policy);
        if name.as_ref().is_some_and(|(_, supported)| *supported) {
            visit_value(&at.index(index), policy, Below::ByType);
            for name in &unsupported {
                at.note(NoteKind::NoEffect, format!("{name} is not supported; policy {index} is used"));
            }
            return;
        }
        unsupported.push(name.map_or_else(|| "a policy without a type".to_owned(), |(name, _)| name));
    }
    match unsupported.is_empty() {
        true => at.error::<()>("no policy"),
        false => at.unsupported::<()>(format!("not supported: {}", unsupported.join(", "))),
    };
}

/// Name of the extension in a `LoadBalancingPolicy.Policy`, and whether it is supported.
fn extension_of(policy: &Value) -> Option<(String, bool)> {
    let extension = policy.as_message()?.get_field_by_name("typed_extension_config")?;
    let any = extension.as_message()?.get_field_by_name("typed_config")?;
    let descriptor = decode::open(any.as_message()?)?.descriptor();
    Some((descriptor.full_name().to_owned(), Schema::of(&descriptor).table.is_some()))
}

/// A number that an enum does not have must not pass for its default.
fn check_enum(at: &At<'_>, kind: &Kind, value: &Value) {
    if let (Kind::Enum(descriptor), Value::EnumNumber(number)) = (kind, value)
        && descriptor.get_value(*number).is_none()
    {
        at.unsupported::<()>(format!("{number} is not a value of {}", descriptor.full_name()));
    }
}

/// False, zero or empty, wrapped or not.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Bool(value) => !value,
        Value::EnumNumber(value) => *value == 0,
        Value::Message(message) => message.fields().all(|(_, value)| is_off(value)),
        Value::I32(value) => *value == 0,
        Value::I64(value) => *value == 0,
        Value::U32(value) => *value == 0,
        Value::U64(value) => *value == 0,
        _ => false,
    }
}

/// A value as it can be written into a sentence.
fn shown(kind: &Kind, value: &Value) -> String {
    match (kind, value) {
        (_, Value::Bool(value)) => value.to_string(),
        (Kind::Enum(descriptor), Value::EnumNumber(number)) => {
            descriptor.get_value(*number).map_or_else(|| number.to_string(), |value| value.name().to_owned())
        }
        (_, Value::Message(message)) => match message.get_field_by_name("value").as_deref() {
            Some(Value::Bool(value)) => value.to_string(),
            _ => "it".to_owned(),
        },
        _ => "it".to_owned(),
    }
}
