//! The tables against the descriptors.

use prost_reflect::{FieldDescriptor, Kind};

use super::*;
use crate::descriptor;

fn every_table() -> Vec<&'static Table> {
    let mut tables: Vec<_> = families().collect();
    let nested: Vec<_> =
        tables.iter().flat_map(|table| table.used_as.iter().map(|(_, table)| *table)).collect();
    tables.extend(nested);
    tables
}

fn listed(table: &Table) -> Vec<&'static str> {
    let mut names = table.used.to_vec();
    names.extend(table.used_as.iter().map(|(name, _)| name));
    names.extend(table.no_effect.iter().map(|(name, _)| name));
    names.extend(table.only_off);
    names.extend(table.refused.iter().map(|(name, _)| name));
    names
}

#[test]
fn every_listed_field_exists_once() {
    for table in every_table() {
        let message =
            descriptor::message(table.message).unwrap_or_else(|| panic!("no message {}", table.message));
        let mut names = listed(table);
        for name in &names {
            assert!(message.get_field_by_name(name).is_some(), "{} has no field {name}", table.message);
        }
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "{} lists a field twice", table.message);
    }
}

#[test]
fn every_message_has_one_table() {
    let mut names: Vec<_> = families().map(|table| table.message).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
}

/// What a field holds, with maps looked through.
fn value_kind(field: &FieldDescriptor) -> Kind {
    match field.kind() {
        Kind::Message(entry) if entry.is_map_entry() => entry.map_entry_value_field().kind(),
        kind => kind,
    }
}

#[test]
fn messages_of_used_fields_have_tables() {
    for table in every_table() {
        let message = descriptor::message(table.message).unwrap();
        for name in table.used {
            let Kind::Message(inner) = value_kind(&message.get_field_by_name(name).unwrap()) else {
                continue;
            };
            if !inner.full_name().starts_with("google.protobuf.") {
                let found = super::table(inner.full_name()).is_some();
                assert!(found, "{}.{name} promises {}, which has no table", table.message, inner.full_name());
            }
        }
        for (name, inner) in table.used_as {
            let kind = value_kind(&message.get_field_by_name(name).unwrap());
            assert_eq!(kind.as_message().unwrap().full_name(), inner.message, "{}.{name}", table.message);
        }
    }
}

#[test]
fn reasons_are_sentences_without_stop() {
    for table in every_table() {
        for (name, reason) in table.no_effect.iter().chain(table.refused) {
            assert!(!reason.is_empty() && !reason.ends_with('.'), "{}.{name}", table.message);
        }
    }
}
