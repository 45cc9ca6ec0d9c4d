//! Header changes of a route.

use std::ops::Range;

use culvert_model::{AppendAction, FormatPart, HeaderMutations, HeaderValueOption, WeightedCluster};
use smallvec::SmallVec;

use crate::{
    Headers,
    route::{Match, Table},
};

/// Supplies what a header value's substitutions stand for.
pub trait Formatter {
    /// Appends the value of `part` to `out`; nothing when it has none. Never called for [`FormatPart::Text`].
    /// `headers` is the list being changed: the request's for request changes, the response's for response changes.
    fn write(&self, part: &FormatPart, headers: &Headers, out: &mut Vec<u8>);
}

/// The header changes that apply to one request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mutations<'a> {
    /// In the order they are applied; `None` where there is nothing to do.
    levels: [Option<&'a HeaderMutations>; 4],
}

impl<'a> Mutations<'a> {
    /// Collects the levels of a match: weighted cluster, route, virtual host, route configuration. That is also the
    /// order in which they are applied, so that the last, the least specific, has the last word; with
    /// `most_specific_header_mutations_wins` it is reversed.
    #[must_use]
    pub fn new(table: &'a Table, matched: &Match<'a>, cluster: Option<&'a WeightedCluster>) -> Self {
        let config = table.config();
        let mut levels = [
            cluster.map(|cluster| &cluster.headers),
            Some(&matched.route.headers),
            Some(&matched.vhost.headers),
            Some(&config.headers),
        ]
        .map(|level| level.filter(|mutations| !mutations.is_empty()));
        if config.most_specific_wins {
            levels.reverse();
        }
        Self { levels }
    }

    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.levels.iter().all(Option::is_none)
    }

    /// Applies the request changes. `scratch` is cleared and used.
    pub fn apply_to_request(&self, headers: &mut Headers, formatter: &impl Formatter, scratch: &mut Vec<u8>) {
        for level in self.levels.iter().flatten() {
            apply(&level.request_remove, &level.request_add, headers, formatter, scratch);
        }
    }

    /// Applies the response changes. `scratch` is cleared and used.
    pub fn apply_to_response(
        &self,
        headers: &mut Headers,
        formatter: &impl Formatter,
        scratch: &mut Vec<u8>,
    ) {
        for level in self.levels.iter().flatten() {
            apply(&level.response_remove, &level.response_add, headers, formatter, scratch);
        }
    }
}

/// Makes one change. `scratch` is cleared and used.
pub fn change_header(
    option: &HeaderValueOption,
    headers: &mut Headers,
    formatter: &impl Formatter,
    scratch: &mut Vec<u8>,
) {
    apply(&[], std::slice::from_ref(option), headers, formatter, scratch);
}

/// One change that is to be made, with its value's place in the scratch memory.
struct Change<'a> {
    option: &'a HeaderValueOption,
    value: Range<usize>,
    overwrites: bool,
}

/// Envoy's `HeaderParser::evaluateHeaders`: removals first; then every value and condition is settled against what is
/// there now; then overwrites, then additions.
fn apply(
    remove: &[String],
    add: &[HeaderValueOption],
    headers: &mut Headers,
    formatter: &impl Formatter,
    scratch: &mut Vec<u8>,
) {
    for name in remove {
        headers.remove(name);
    }
    scratch.clear();
    let mut changes = SmallVec::<[Change<'_>; 8]>::new();
    for option in add {
        let start = scratch.len();
        for part in &option.value {
            match part {
                FormatPart::Text(text) => scratch.extend_from_slice(text.as_bytes()),
                part => formatter.write(part, headers, scratch),
            }
        }
        let exists = || headers.contains(&option.name);
        let overwrites = match option.action {
            AppendAction::Append => false,
            AppendAction::AddIfAbsent if !exists() => false,
            AppendAction::OverwriteIfExists if exists() => true,
            AppendAction::OverwriteOrAdd => true,
            AppendAction::AddIfAbsent | AppendAction::OverwriteIfExists => continue,
        };
        if scratch.len() > start || option.keep_empty {
            changes.push(Change { option, value: start..scratch.len(), overwrites });
        }
    }
    for change in changes.iter().filter(|change| change.overwrites) {
        headers.remove(&change.option.name);
        headers.push(&change.option.name, &scratch[change.value.clone()]);
    }
    for change in changes.iter().filter(|change| !change.overwrites) {
        headers.push(&change.option.name, &scratch[change.value.clone()]);
    }
}
