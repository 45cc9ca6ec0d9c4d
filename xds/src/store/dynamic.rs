//! A resource that comes from a source, with its history.

use std::{
    collections::{HashMap, HashSet},
    time::SystemTime,
};

use crate::{
    Error,
    resource::{Kind, Resource},
    source::Batch,
};

/// A resource by its name.
#[derive(Clone, Debug)]
pub(crate) struct Dynamic<T> {
    pub(crate) name: String,
    /// What serves.
    pub(crate) active: Option<Held<T>>,
    /// What will serve when what it needs is there.
    pub(crate) warming: Option<Held<T>>,
    /// The last version, when it was refused.
    pub(crate) failure: Option<Failure>,
}

/// A version of a resource that was accepted.
#[derive(Clone, Debug)]
pub(crate) struct Held<T> {
    pub(crate) resource: Resource,
    pub(crate) value: T,
    /// `version_info` it came with.
    pub(crate) version: String,
    pub(crate) updated: SystemTime,
}

/// A version of a resource that was refused.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) resource: Resource,
    pub(crate) version: String,
    pub(crate) attempted: SystemTime,
    /// Why, one reason a line.
    pub(crate) details: String,
}

impl<T> Dynamic<T> {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), active: None, warming: None, failure: None }
    }

    /// The version accepted last.
    pub(crate) fn latest(&self) -> Option<&Held<T>> {
        self.warming.as_ref().or(self.active.as_ref())
    }

    /// Whether there is a version that serves or will.
    pub(crate) fn is_there(&self) -> bool {
        self.latest().is_some()
    }

    /// Takes a version that waits until it is promoted. Returns whether it is news.
    fn update(
        &mut self,
        resource: &Resource,
        version: &str,
        time: SystemTime,
        convert: impl FnOnce(&Resource) -> Result<T, Vec<Error>>,
    ) -> Result<bool, Vec<Error>> {
        if self.latest().is_some_and(|held| held.resource == *resource) {
            self.failure = None;
            return Ok(false);
        }
        if self.warming.is_some() && self.active.as_ref().is_some_and(|held| held.resource == *resource) {
            // Back to what still serves.
            self.warming = None;
            self.failure = None;
            return Ok(true);
        }
        match convert(resource) {
            Ok(value) => {
                let version = version.to_owned();
                self.warming = Some(Held { resource: resource.clone(), value, version, updated: time });
                self.failure = None;
                Ok(true)
            }
            Err(errors) => {
                let details = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
                let version = version.to_owned();
                self.failure =
                    Some(Failure { resource: resource.clone(), version, attempted: time, details });
                Err(errors)
            }
        }
    }

    /// Takes a version that serves at once.
    pub(super) fn update_now(
        &mut self,
        resource: &Resource,
        version: &str,
        time: SystemTime,
        convert: impl FnOnce(&Resource) -> Result<T, Vec<Error>>,
    ) -> Result<bool, Vec<Error>> {
        let changed = self.update(resource, version, time, convert)?;
        self.promote();
        Ok(changed)
    }

    /// What was waiting serves now.
    pub(super) fn promote(&mut self) {
        if let Some(warm) = self.warming.take() {
            self.active = Some(warm);
        }
    }
}

/// Replaces all resources of a type by those of a batch. Each one stands for itself: those that `convert` refuses keep
/// their last version, and their errors are returned beside whether anything changed.
///
/// # Errors
/// The batch as a whole is wrong; nothing has changed.
pub(super) fn replace<T>(
    entries: &mut Vec<Dynamic<T>>,
    kind: Kind,
    batch: &Batch,
    time: SystemTime,
    mut convert: impl FnMut(&Resource, &[Dynamic<T>]) -> Result<T, Vec<Error>>,
) -> Result<(bool, Vec<Error>), Vec<Error>> {
    check(kind, batch)?;
    let order: Vec<String> = entries.iter().map(|entry| entry.name.clone()).collect();
    let mut old: HashMap<String, Dynamic<T>> =
        entries.drain(..).map(|entry| (entry.name.clone(), entry)).collect();
    let mut errors = Vec::new();
    let mut changed = false;
    for resource in &batch.resources {
        let mut entry = old.remove(&resource.name).unwrap_or_else(|| Dynamic::new(&resource.name));
        match entry.update(resource, &batch.version, time, |resource| convert(resource, entries)) {
            Ok(news) => changed |= news,
            Err(more) => errors.extend(more),
        }
        entries.push(entry);
    }
    changed |= old.values().any(Dynamic::is_there);
    changed |= order.iter().ne(entries.iter().map(|entry| &entry.name));
    Ok((changed, errors))
}

/// Resources of a batch by name, for sources that stand for one of them each.
#[derive(Debug)]
pub(super) struct Index<'a> {
    kind: Kind,
    /// Errors when the batch as a whole is wrong.
    resources: Result<HashMap<&'a str, &'a Resource>, Vec<Error>>,
}

impl<'a> Index<'a> {
    pub(super) fn new(kind: Kind, batch: &'a Batch) -> Self {
        let by_name = || batch.resources.iter().map(|resource| (resource.name.as_str(), resource)).collect();
        Self { kind, resources: check(kind, batch).map(|()| by_name()) }
    }

    /// The resource called `name`; `None` when there are no resources at all, which says nothing.
    ///
    /// # Errors
    /// The batch as a whole is wrong, or has other resources only.
    pub(super) fn pick(&self, name: &str) -> Result<Option<&'a Resource>, Refusal> {
        let resources = self.resources.as_ref().map_err(|errors| Refusal::Invalid(errors.clone()))?;
        let found = resources.get(name).copied();
        if found.is_none() && !resources.is_empty() {
            let resource = self.kind.title(name);
            let reason = format!("not among the {} resources", resources.len());
            return Err(Refusal::Missing(Error::invalid(resource, "", reason)));
        }
        Ok(found)
    }
}

/// Why a source did not bring what it should.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It is wrong, or a part of it.
    Invalid(Vec<Error>),
    /// It has other resources only, and may have the one in question later.
    Missing(Error),
}

impl From<Vec<Error>> for Refusal {
    fn from(errors: Vec<Error>) -> Self {
        Self::Invalid(errors)
    }
}

/// Resources are of one type and have different names.
fn check(kind: Kind, batch: &Batch) -> Result<(), Vec<Error>> {
    let mut names = HashSet::new();
    let mut errors = Vec::new();
    for resource in &batch.resources {
        let title = resource.kind.title(&resource.name);
        if resource.kind != kind {
            let reason = format!("a {kind} was expected");
            errors.push(Error::invalid(title, "", reason));
        } else if !names.insert(&resource.name) {
            let reason = format!("duplicate {kind}");
            errors.push(Error::invalid(title, "", reason));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}
