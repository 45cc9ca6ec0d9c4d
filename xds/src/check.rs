//! Files on their own, for `culvert check`.

mod documents;
mod feature;

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
};

use documents::Document;
use prost_reflect::DynamicMessage;
use serde_json::Value as Json;

pub use crate::support::{FieldPromise, Promise, promises};
use crate::{
    Error, ErrorKind, LoadOptions, Note, NoteKind,
    at::Sink,
    convert::{Clusters, NOT_PEM},
    decode::{self, UnknownFields},
    descriptor,
    load::examine,
    resource::{Kind, Resource},
    source,
    store::Value,
};

/// What is to be made of fields that do not exist.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// In bootstraps they are notes, not errors.
    pub allow_unknown_static_fields: bool,
    /// In resources they are errors, not notes.
    pub reject_unknown_dynamic_fields: bool,
    /// Certificates and keys that are no PEM at all are errors. Without it they are notes: what is checked is often a
    /// dump or an example, whose secrets were replaced.
    pub strict_secrets: bool,
}

/// What became of one resource.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Where it was found.
    pub file: PathBuf,
    /// `listener`, `cluster`, ...; `bootstrap` for what belongs to no resource of one, `file` where it was not found
    /// out what there is.
    pub kind: String,
    /// Its name; may be empty.
    pub name: String,
    /// All that is wrong with it; nothing when it is accepted.
    pub errors: Vec<Error>,
    /// What is accepted without effect, unknown fields, warnings.
    pub notes: Vec<Note>,
}

/// What is said about a resource in a word.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Verdict {
    /// It can be served.
    Accepted,
    /// It is valid and asks for something that is not supported.
    Refused,
    /// It is not valid.
    Invalid,
}

impl Checked {
    /// The worst there is to say.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let verdict = |error: &Error| match error.kind {
            ErrorKind::Invalid => Verdict::Invalid,
            ErrorKind::Unsupported => Verdict::Refused,
        };
        self.errors.iter().map(verdict).max().unwrap_or(Verdict::Accepted)
    }

    /// Takes errors of what is no PEM for remarks.
    fn pass_placeholders(&mut self) {
        let (placeholders, errors) = self.errors.drain(..).partition(|error| error.reason == NOT_PEM);
        self.errors = errors;
        let note = |error: Error| Note {
            resource: error.resource,
            field: error.field,
            kind: NoteKind::Warning,
            text: error.reason,
        };
        self.notes.extend(Vec::into_iter(placeholders).map(note));
    }

    /// `listener "a"`.
    #[must_use]
    pub fn title(&self) -> String {
        if self.name.is_empty() { self.kind.clone() } else { format!("{} {:?}", self.kind, self.name) }
    }
}

impl Error {
    /// What is not supported, in as few words as will do to count refusals: the extension, or the field.
    #[must_use]
    pub fn feature(&self) -> String {
        feature::feature(self)
    }
}

/// Validates bootstraps and resource files: one entry for each resource, for each bootstrap, and for each file that
/// cannot be read.
///
/// Files whose names differ in their part only (`NAME.clusters.yaml`, `NAME.listeners.yaml`, ...) are one snapshot:
/// inline routes have to lead to its clusters. In other resource files the clusters that routes name are taken to
/// exist.
#[must_use]
pub fn check(paths: &[PathBuf], options: CheckOptions) -> Vec<Checked> {
    let mut snapshots = Snapshots::default();
    let read: Vec<_> = paths.iter().map(|path| (path, documents::read(path))).collect();
    for (path, documents) in &read {
        snapshots.add(path, documents.as_deref().unwrap_or_default());
    }
    let mut checked = Vec::new();
    for (path, documents) in read {
        let start = checked.len();
        match documents {
            Ok(documents) => {
                let alone = documents.len() == 1;
                for document in documents {
                    checked.extend(one(path, document, alone, &snapshots, options));
                }
            }
            Err(reason) => checked.push(whole(Error::invalid("file", "", reason))),
        }
        checked[start..].iter_mut().for_each(|entry| entry.file.clone_from(path));
    }
    if !options.strict_secrets {
        checked.iter_mut().for_each(Checked::pass_placeholders);
    }
    checked
}

/// What the files of snapshots bring, by directory and stem.
#[derive(Default)]
struct Snapshots(BTreeMap<(PathBuf, String), BTreeMap<Kind, HashSet<String>>>);

impl Snapshots {
    fn key(path: &Path) -> Option<((PathBuf, String), Kind)> {
        let (stem, kind) = documents::part(path)?;
        Some(((path.parent().unwrap_or_else(|| Path::new("")).to_owned(), stem), kind))
    }

    fn add(&mut self, path: &Path, documents: &[Document]) {
        let Some((key, kind)) = Self::key(path) else { return };
        let names = self.0.entry(key).or_default().entry(kind).or_default();
        names.extend(documents.iter().filter_map(|document| match document {
            Document::Resource(_, tree) | Document::Typed(tree) => Some(name_of(tree)),
            _ => None,
        }));
    }

    /// Names of the resources of `kind` in the snapshot that `path` belongs to; `None` when no file brings any.
    fn names(&self, path: &Path, kind: Kind) -> Option<&HashSet<String>> {
        self.0.get(&Self::key(path)?.0)?.get(&kind)
    }
}

fn name_of(tree: &Json) -> String {
    let name = ["name", "cluster_name", "clusterName"].iter().find_map(|key| tree.get(key)?.as_str());
    name.unwrap_or_default().to_owned()
}

fn one(
    path: &Path,
    document: Document,
    alone: bool,
    snapshots: &Snapshots,
    options: CheckOptions,
) -> Vec<Checked> {
    let unknown = match options.reject_unknown_dynamic_fields {
        true => UnknownFields::Refuse,
        false => UnknownFields::Note,
    };
    match document {
        Document::Bootstrap(tree) => bootstrap(path, (!alone).then_some(tree), options),
        Document::Resource(kind, tree) => {
            let name = name_of(&tree);
            let sink = Sink::new(kind.title(&name));
            let message = kind
                .descriptor()
                .and_then(|descriptor| decode::decode(&sink.root(), &descriptor, &tree, unknown));
            let resource = message.map(|message| (Resource::new(kind, &message), message));
            vec![resource_of(path, sink, kind.to_string(), name, resource, snapshots)]
        }
        Document::Typed(tree) => {
            let named = tree.get("@type").and_then(Json::as_str).map(decode::type_name).and_then(Kind::of);
            let kind = named.map_or_else(|| "resource".to_owned(), |kind| kind.to_string());
            let name = name_of(&tree);
            let title = if name.is_empty() { kind.clone() } else { format!("{kind} {name:?}") };
            let sink = Sink::new(title);
            let any = descriptor::message("google.protobuf.Any");
            let any = any.and_then(|any| decode::decode(&sink.root(), &any, &tree, unknown));
            let resource = any.and_then(|any| source::resource(&sink.root(), &any));
            let (kind, name) = match &resource {
                Some((resource, _)) => (resource.kind.to_string(), resource.name.clone()),
                None => (kind, name),
            };
            vec![resource_of(path, sink, kind, name, resource, snapshots)]
        }
        Document::Foreign => {
            let reason = "neither a bootstrap nor resources of Envoy's";
            let error = Error { kind: ErrorKind::Unsupported, ..Error::invalid("file", "", reason) };
            vec![whole(error)]
        }
    }
}

/// An entry for a whole file.
fn whole(error: Error) -> Checked {
    Checked {
        file: PathBuf::new(),
        kind: "file".to_owned(),
        name: String::new(),
        errors: vec![error],
        notes: Vec::new(),
    }
}

/// A bootstrap: one entry for itself and one for each resource in it.
fn bootstrap(path: &Path, tree: Option<Json>, options: CheckOptions) -> Vec<Checked> {
    let examined = examine(&LoadOptions {
        config_path: tree.is_none().then(|| path.to_owned()),
        config_yaml: tree.map(|tree| tree.to_string()),
        allow_unknown_static_fields: options.allow_unknown_static_fields,
        ..LoadOptions::default()
    });
    let entry = |kind: &str, name: &str| Checked {
        file: PathBuf::new(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        errors: Vec::new(),
        notes: Vec::new(),
    };
    let mut entries = vec![entry("bootstrap", "")];
    entries.extend(examined.resources.iter().map(|(kind, name)| entry(&kind.to_string(), name)));
    let index: BTreeMap<_, _> = entries.iter().enumerate().map(|(i, entry)| (entry.title(), i)).collect();
    let at = |resource: &str| index.get(resource.trim_start_matches("--config-yaml: ")).copied().unwrap_or(0);
    for error in examined.errors {
        entries[at(&error.resource)].errors.push(error);
    }
    for note in examined.notes {
        entries[at(&note.resource)].notes.push(note);
    }
    entries
}

fn resource_of(
    path: &Path,
    sink: Sink,
    kind: String,
    name: String,
    read: Option<(Resource, DynamicMessage)>,
    snapshots: &Snapshots,
) -> Checked {
    let (mut errors, mut notes) = sink.into_parts();
    if let Some((resource, message)) = read.filter(|_| errors.is_empty()) {
        match convert(&resource, &message, path, snapshots) {
            Ok(more) => notes.extend(more),
            Err(found) => errors = found,
        }
    } else if errors.is_empty() {
        errors.push(Error::invalid(kind.clone(), "", "does not decode"));
    }
    Checked { file: PathBuf::new(), kind, name, errors, notes }
}

fn convert(
    resource: &Resource,
    message: &DynamicMessage,
    path: &Path,
    snapshots: &Snapshots,
) -> Result<Vec<Note>, Vec<Error>> {
    let known = snapshots.names(path, Kind::Cluster);
    let exists = |name: &str| known.is_none_or(|names| names.contains(name));
    let clusters = Clusters { exists: &exists, validate: true };
    let clusters = Clusters { validate: resource.kind != Kind::RouteConfiguration, ..clusters };
    let (value, mut notes) = Value::convert(resource, Some(message), &clusters)?;
    value.needs(|need| {
        // Whoever takes all there are names none.
        let Some(name) = need.name else { return };
        let names = snapshots.names(path, need.kind);
        if names.is_some_and(|names| !names.contains(name)) {
            notes.push(Note {
                resource: resource.kind.title(&resource.name),
                field: String::new(),
                kind: NoteKind::Warning,
                text: format!("there is no {} in this snapshot", need.kind.title(name)),
            });
        }
    });
    Ok(notes)
}

#[cfg(test)]
mod tests;
