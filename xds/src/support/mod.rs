//! What Culvert does with each field of each message: the promise behind "accepted".
//!
//! A table names, for one message, the fields that take effect, those that are accepted without effect (with the
//! reason why that is harmless, which `--mode validate` prints) and those that are refused for a reason of their own.
//! A field that no table names is refused. A message of an extension is supported when it has a table here.

mod access_log;
mod bootstrap;
mod callout;
mod cluster;
mod core;
mod endpoint;
mod health;
mod http;
mod http_filter;
mod listener;
mod matcher;
mod network;
mod rbac;
mod route;
mod runtime;
mod tls;
mod tracing;

/// What is promised about a field.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Support {
    /// Accepted; the reason why nothing happens.
    NoEffect(&'static str),
    /// Accepted when it is false, zero or empty, which is what Culvert does anyway.
    OnlyOff,
    /// Not accepted; the reason, or `None` for "not supported".
    Refused(Option<&'static str>),
    /// Takes effect. A message is looked into with this table, or with the one of its type.
    Used(Option<&'static Table>),
}

/// The fields of one message.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Table {
    /// Full name of the message.
    pub(crate) message: &'static str,
    /// Fields that take effect.
    pub(crate) used: &'static [&'static str],
    /// Fields that take effect, whose message means something else here than elsewhere.
    pub(crate) used_as: &'static [(&'static str, &'static Self)],
    /// Fields that are accepted without effect, and why that is harmless.
    pub(crate) no_effect: &'static [(&'static str, &'static str)],
    /// Fields that may only say what Culvert does anyway: false, zero or empty.
    pub(crate) only_off: &'static [&'static str],
    /// Fields that are refused with a reason.
    pub(crate) refused: &'static [(&'static str, &'static str)],
}

impl Table {
    /// A table of which only `message` is set, to be completed by struct update.
    const fn of(message: &'static str) -> Self {
        Self { message, used: &[], used_as: &[], no_effect: &[], only_off: &[], refused: &[] }
    }

    /// What is promised about `field`.
    pub(crate) fn support(&self, field: &str) -> Support {
        if self.used.contains(&field) {
            return Support::Used(None);
        }
        if let Some((_, table)) = self.used_as.iter().find(|(name, _)| *name == field) {
            return Support::Used(Some(table));
        }
        if let Some((_, reason)) = self.no_effect.iter().find(|(name, _)| *name == field) {
            return Support::NoEffect(reason);
        }
        if self.only_off.contains(&field) {
            return Support::OnlyOff;
        }
        Support::Refused(self.refused.iter().find(|(name, _)| *name == field).map(|(_, reason)| *reason))
    }
}

/// The table of the message called `name`.
pub(crate) fn table(name: &str) -> Option<&'static Table> {
    families().find(|table| table.message == name)
}

/// What is promised about a field that can be set.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Promise {
    /// It is accepted and takes effect.
    Used,
    /// It is accepted; why nothing happens.
    NoEffect(&'static str),
    /// It is accepted when it says what is done anyway: false, zero or empty.
    OnlyOff,
}

/// A field that is accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FieldPromise {
    /// Full name of the message.
    pub message: &'static str,
    /// Name of the field.
    pub field: &'static str,
    /// What is promised.
    pub promise: Promise,
}

/// Every field that is accepted, by message; any other is refused.
#[must_use]
pub fn promises() -> Vec<FieldPromise> {
    let mut promises = Vec::new();
    for table in families().flat_map(|table| {
        let nested = table.used_as.iter().map(|(_, nested)| *nested);
        std::iter::once(table).chain(nested.filter(|nested| self::table(nested.message).is_none()))
    }) {
        let used = table.used.iter().chain(table.used_as.iter().map(|(name, _)| name));
        let all = used
            .map(|name| (*name, Promise::Used))
            .chain(table.no_effect.iter().map(|(name, reason)| (*name, Promise::NoEffect(reason))))
            .chain(table.only_off.iter().map(|name| (*name, Promise::OnlyOff)));
        promises.extend(all.map(|(field, promise)| FieldPromise { message: table.message, field, promise }));
    }
    promises.sort_by_key(|promise| (promise.message, promise.field));
    promises.dedup();
    promises
}

/// Full names of the messages that have tables.
pub(crate) fn messages() -> impl Iterator<Item = &'static str> {
    families().map(|table| table.message)
}

fn families() -> impl Iterator<Item = &'static Table> {
    [
        access_log::TABLES,
        bootstrap::TABLES,
        callout::TABLES,
        cluster::TABLES,
        core::TABLES,
        endpoint::TABLES,
        health::TABLES,
        http::TABLES,
        http_filter::TABLES,
        listener::TABLES,
        matcher::TABLES,
        network::TABLES,
        rbac::TABLES,
        route::TABLES,
        runtime::TABLES,
        tls::TABLES,
        tracing::TABLES,
    ]
    .into_iter()
    .flatten()
}

#[cfg(test)]
mod effect;
#[cfg(test)]
mod tests;
