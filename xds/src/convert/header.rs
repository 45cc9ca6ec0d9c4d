//! Header changes.

use culvert_model::{AppendAction, HeaderMutations, HeaderValueOption};
use envoy_types::pb::envoy::config::core::v3::{self as pb, header_value_option::HeaderAppendAction};

use crate::{at::At, format};

/// The four fields that every level of routes has. `at` is the message they are in.
pub(super) fn mutations(
    at: &At<'_>,
    request_add: &[pb::HeaderValueOption],
    request_remove: &[String],
    response_add: &[pb::HeaderValueOption],
    response_remove: &[String],
) -> Option<HeaderMutations> {
    let request_add = additions(&at.field("request_headers_to_add"), request_add);
    let request_remove = removals(&at.field("request_headers_to_remove"), request_remove);
    let response_add = additions(&at.field("response_headers_to_add"), response_add);
    let response_remove = removals(&at.field("response_headers_to_remove"), response_remove);
    Some(HeaderMutations {
        request_add: request_add?,
        request_remove: request_remove?,
        response_add: response_add?,
        response_remove: response_remove?,
    })
}

pub(super) fn additions(at: &At<'_>, options: &[pb::HeaderValueOption]) -> Option<Vec<HeaderValueOption>> {
    let converted: Vec<_> =
        options.iter().enumerate().map(|(i, option)| addition(&at.index(i), option)).collect();
    converted.into_iter().collect()
}

pub(super) fn addition(at: &At<'_>, option: &pb::HeaderValueOption) -> Option<HeaderValueOption> {
    let header = option.header.as_ref()?;
    let at_header = at.field("header");
    let name = header.key.to_ascii_lowercase();
    if name.starts_with(':') || name == "host" {
        return at_header.field("key").error(":-prefixed or host headers may not be modified");
    }
    let value = match (header.value.is_empty(), header.raw_value.is_empty()) {
        (false, false) => return at_header.error("only one of value and raw_value can be given"),
        (_, true) => format::format(&at_header.field("value"), &header.value)?,
        (true, false) => {
            let Ok(text) = std::str::from_utf8(&header.raw_value) else {
                return at_header
                    .field("raw_value")
                    .unsupported("values that are not UTF-8 are not supported");
            };
            format::format(&at_header.field("raw_value"), text)?
        }
    };
    let action = match (option.append.as_ref(), option.append_action()) {
        (Some(_), HeaderAppendAction::AddIfAbsent)
        | (Some(_), HeaderAppendAction::OverwriteIfExists)
        | (Some(_), HeaderAppendAction::OverwriteIfExistsOrAdd) => {
            return at.error("both append and append_action are set");
        }
        (Some(append), HeaderAppendAction::AppendIfExistsOrAdd) if !append.value => {
            AppendAction::OverwriteOrAdd
        }
        (_, HeaderAppendAction::AppendIfExistsOrAdd) => AppendAction::Append,
        (None, HeaderAppendAction::AddIfAbsent) => AppendAction::AddIfAbsent,
        (None, HeaderAppendAction::OverwriteIfExists) => AppendAction::OverwriteIfExists,
        (None, HeaderAppendAction::OverwriteIfExistsOrAdd) => AppendAction::OverwriteOrAdd,
    };
    Some(HeaderValueOption { name, value, action, keep_empty: option.keep_empty_value })
}

pub(super) fn removals(at: &At<'_>, names: &[String]) -> Option<Vec<String>> {
    let mut lower = Vec::with_capacity(names.len());
    for (index, name) in names.iter().enumerate() {
        lower.push(removal(&at.index(index), name)?);
    }
    Some(lower)
}

/// The name of a header to remove, in lower case.
pub(super) fn removal(at: &At<'_>, name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    if name.starts_with(':') || name == "host" {
        return at.error(":-prefixed or host headers may not be removed");
    }
    Some(name)
}
