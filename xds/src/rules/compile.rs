//! From descriptor options to rules.

use envoy_types::pb::{
    google::protobuf::Duration,
    validate::{self as pb, FieldRules, field_rules::Type, string_rules::WellKnown},
};
use prost_reflect::{FieldDescriptor, MessageDescriptor, OneofDescriptor};

use super::{
    Rule, RuleKind,
    bounds::Bounds,
    text::{HeaderText, TextRule},
};

/// The rules of a field; `None` when it has none.
pub(crate) fn compile(field: &FieldDescriptor) -> Option<Rule> {
    let extension = field.parent_pool().get_extension_by_name("validate.rules")?;
    let options = field.options();
    if !options.has_extension(&extension) {
        return None;
    }
    let rules = options.get_extension(&extension).as_message()?.transcode_to::<FieldRules>().ok()?;
    Some(rule(rules))
}

/// The oneofs of a message of which one member has to be set.
pub(crate) fn required_oneofs(message: &MessageDescriptor) -> Vec<OneofDescriptor> {
    let Some(extension) = message.parent_pool().get_extension_by_name("validate.required") else {
        return Vec::new();
    };
    let required =
        |oneof: &OneofDescriptor| oneof.options().get_extension(&extension).as_bool() == Some(true);
    message.oneofs().filter(required).collect()
}

/// Numeric rules differ in their type only.
macro_rules! bounds {
    ($rules:expr, $number:ty) => {{
        let rules = $rules;
        let upper = rules.lt.map(|v| (v as $number, false)).or(rules.lte.map(|v| (v as $number, true)));
        let lower = rules.gt.map(|v| (v as $number, false)).or(rules.gte.map(|v| (v as $number, true)));
        Bounds {
            constant: rules.r#const.map(|v| v as $number),
            upper,
            lower,
            in_: rules.r#in.into_iter().map(|v| v as $number).collect(),
            not_in: rules.not_in.into_iter().map(|v| v as $number).collect(),
            ignore_empty: rules.ignore_empty.unwrap_or_default(),
        }
    }};
}

fn rule(rules: FieldRules) -> Rule {
    let message = rules.message.unwrap_or_default();
    let mut required = message.required.unwrap_or_default();
    let kind = match rules.r#type {
        None | Some(Type::Timestamp(_)) => RuleKind::None,
        Some(Type::Float(r)) => RuleKind::Float(bounds!(r, f64)),
        Some(Type::Double(r)) => RuleKind::Float(bounds!(r, f64)),
        Some(Type::Int32(r)) => RuleKind::Integer(bounds!(r, i128)),
        Some(Type::Int64(r)) => RuleKind::Integer(bounds!(r, i128)),
        Some(Type::Uint32(r)) => RuleKind::Integer(bounds!(r, i128)),
        Some(Type::Uint64(r)) => RuleKind::Integer(bounds!(r, i128)),
        Some(Type::Sint32(r)) => RuleKind::Integer(bounds!(r, i128)),
        Some(Type::Sint64(r)) => RuleKind::Integer(bounds!(r, i128)),
        Some(Type::Fixed32(r)) => RuleKind::Integer(bounds!(r, i128)),
        Some(Type::Fixed64(r)) => RuleKind::Integer(bounds!(r, i128)),
        Some(Type::Sfixed32(r)) => RuleKind::Integer(bounds!(r, i128)),
        Some(Type::Sfixed64(r)) => RuleKind::Integer(bounds!(r, i128)),
        Some(Type::Bool(r)) => r.r#const.map_or(RuleKind::None, RuleKind::Bool),
        Some(Type::String(r)) => RuleKind::Text(text(r)),
        Some(Type::Bytes(r)) => RuleKind::Bytes { min: r.min_len, max: r.max_len },
        Some(Type::Enum(r)) => {
            RuleKind::Enum { defined_only: r.defined_only.unwrap_or_default(), in_: r.r#in, not_in: r.not_in }
        }
        Some(Type::Repeated(r)) => RuleKind::List {
            min: r.min_items,
            max: r.max_items,
            unique: r.unique.unwrap_or_default(),
            ignore_empty: r.ignore_empty.unwrap_or_default(),
            items: r.items.map(|rules| Box::new(rule(*rules))),
        },
        Some(Type::Map(r)) => RuleKind::Map {
            min: r.min_pairs,
            max: r.max_pairs,
            ignore_empty: r.ignore_empty.unwrap_or_default(),
            keys: r.keys.map(|rules| Box::new(rule(*rules))),
            values: r.values.map(|rules| Box::new(rule(*rules))),
        },
        Some(Type::Any(r)) => {
            required |= r.required.unwrap_or_default();
            RuleKind::Any { in_: r.r#in, not_in: r.not_in }
        }
        Some(Type::Duration(r)) => {
            required |= r.required.unwrap_or_default();
            RuleKind::Duration(duration(r))
        }
    };
    Rule { required, skip: message.skip.unwrap_or_default(), kind }
}

fn duration(rules: pb::DurationRules) -> Bounds<i128> {
    let nanos = |d: Duration| i128::from(d.seconds) * 1_000_000_000 + i128::from(d.nanos);
    let end = |exclusive: Option<Duration>, inclusive: Option<Duration>| match exclusive {
        Some(end) => Some((nanos(end), false)),
        None => inclusive.map(|end| (nanos(end), true)),
    };
    Bounds {
        constant: rules.r#const.map(nanos),
        upper: end(rules.lt, rules.lte),
        lower: end(rules.gt, rules.gte),
        in_: rules.r#in.into_iter().map(nanos).collect(),
        not_in: rules.not_in.into_iter().map(nanos).collect(),
        ignore_empty: false,
    }
}

fn text(rules: pb::StringRules) -> TextRule {
    let strict = rules.strict.unwrap_or(true);
    let header = match rules.well_known {
        Some(WellKnown::WellKnownRegex(regex)) => match pb::KnownRegex::try_from(regex) {
            Ok(pb::KnownRegex::HttpHeaderName | pb::KnownRegex::HttpHeaderValue) if !strict => {
                Some(HeaderText::Loose)
            }
            Ok(pb::KnownRegex::HttpHeaderName) => Some(HeaderText::Name),
            Ok(pb::KnownRegex::HttpHeaderValue) => Some(HeaderText::Value),
            _ => None,
        },
        _ => None,
    };
    TextRule {
        min_chars: rules.min_len.or(rules.len),
        max_chars: rules.max_len.or(rules.len),
        min_bytes: rules.min_bytes.or(rules.len_bytes),
        max_bytes: rules.max_bytes.or(rules.len_bytes),
        pattern: rules.pattern.and_then(|pattern| regex::Regex::new(&pattern).ok()),
        prefix: rules.prefix,
        suffix: rules.suffix,
        in_: rules.r#in,
        header,
        ignore_empty: rules.ignore_empty.unwrap_or_default(),
    }
}
