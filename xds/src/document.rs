//! A bootstrap on its way in, with its resources apart from the rest.
//!
//! The trees that a text goes through take many times its size. A bootstrap with thousands of clusters is therefore
//! never read as one tree: its resources stay text until their turn comes, one after the other.

mod split;

use prost_reflect::{DynamicMessage, Value};
use serde::de::IgnoredAny;
use serde_json::{Map, Value as Json};

use crate::{
    Error, Note,
    at::Sink,
    decode::{self, Syntax, UnknownFields},
    resource::{Kind, Resource},
};

/// Where `static_resources` has its resources.
pub(crate) const RESOURCES: [(&str, Kind); 2] = [("listeners", Kind::Listener), ("clusters", Kind::Cluster)];

/// A bootstrap as text.
#[derive(Debug)]
pub(crate) struct Document<'a> {
    /// All but the resources.
    pub(crate) rest: Json,
    /// The resources in their order.
    pub(crate) parts: Vec<Part<'a>>,
}

/// A resource that was not read yet.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    pub(crate) kind: Kind,
    /// Among those of its kind in its document.
    index: usize,
    form: Form<'a>,
}

#[derive(Debug)]
enum Form<'a> {
    Message(DynamicMessage),
    Text(&'a str),
    Tree(Json),
}

/// Why a resource could not be read.
#[derive(Debug)]
pub(crate) struct Unreadable {
    /// As far as it could be told.
    pub(crate) name: String,
    pub(crate) errors: Vec<Error>,
}

impl<'a> Document<'a> {
    /// Takes a text apart.
    ///
    /// # Errors
    /// The parser's message, with line and column.
    pub(crate) fn parse(text: &'a str, syntax: Syntax) -> Result<Self, String> {
        let parts = match syntax {
            Syntax::Json => Self::from_json(text),
            Syntax::Yaml => None,
        };
        // What does not come apart is no object, or has something wrong that the parser can put into words.
        let document = match parts {
            Some(document) => document,
            None => Self::from_tree(decode::parse(text, syntax)?),
        };
        Ok(document.counted())
    }

    fn from_json(text: &'a str) -> Option<Self> {
        let mut rest = Map::new();
        let mut parts: Vec<Part<'a>> = Vec::new();
        for (key, value) in split::members(text)? {
            let value = match is_static(&key) && value.starts_with('{') {
                true => {
                    // The last one counts where a key is given twice.
                    parts.clear();
                    let mut inner = Map::new();
                    for (key, value) in split::members(value)? {
                        match kind_of(&key) {
                            Some(kind) => {
                                parts.retain(|part| part.kind != kind);
                                texts(kind, value, &mut parts)?;
                            }
                            None => drop(inner.insert(key, serde_json::from_str(value).ok()?)),
                        }
                    }
                    Json::Object(inner)
                }
                false => serde_json::from_str(value).ok()?,
            };
            rest.insert(key, value);
        }
        Some(Self { rest: Json::Object(rest), parts })
    }

    fn from_tree(mut tree: Json) -> Self {
        let mut parts = Vec::new();
        for (_, value) in tree.as_object_mut().into_iter().flatten().filter(|(key, _)| is_static(key)) {
            let Json::Object(fields) = value else { continue };
            for (name, kind) in RESOURCES {
                if let Some(value) = fields.get_mut(name) {
                    trees(kind, value.take(), &mut parts);
                }
            }
        }
        // An empty document is an empty message.
        let rest = if tree.is_null() { Json::Object(Map::new()) } else { tree };
        Self { rest, parts }
    }

    fn counted(mut self) -> Self {
        for (_, kind) in RESOURCES {
            let of_kind = self.parts.iter_mut().filter(|part| part.kind == kind);
            of_kind.enumerate().for_each(|(index, part)| part.index = index);
        }
        self
    }
}

impl Part<'static> {
    /// Takes the resources out of a bootstrap.
    pub(crate) fn take(bootstrap: &mut DynamicMessage) -> Vec<Self> {
        let mut parts = Vec::new();
        if !bootstrap.has_field_by_name("static_resources") {
            return parts;
        }
        let Some(Value::Message(resources)) = bootstrap.get_field_by_name_mut("static_resources") else {
            return parts;
        };
        for (name, kind) in RESOURCES {
            let Some(Value::List(values)) = resources.take_field_by_name(name) else { continue };
            let messages = values.into_iter().filter_map(|value| match value {
                Value::Message(message) => Some(message),
                _ => None,
            });
            let part = |(index, message)| Part { kind, index, form: Form::Message(message) };
            parts.extend(messages.enumerate().map(part));
        }
        parts
    }
}

impl Part<'_> {
    /// Reads the resource.
    ///
    /// # Errors
    /// Everything that is wrong with its text.
    pub(crate) fn read(
        self,
        unknown: UnknownFields,
        notes: &mut Vec<Note>,
    ) -> Result<(Resource, DynamicMessage), Unreadable> {
        let unreadable = |name: &str, errors| Unreadable { name: name.to_owned(), errors };
        let tree = match self.form {
            Form::Message(message) => return Ok((Resource::new(self.kind, &message), message)),
            Form::Tree(tree) => tree,
            Form::Text(text) => serde_json::from_str(text).map_err(|e| {
                let reason = format!("invalid JSON: {e}");
                unreadable("", vec![Error::invalid("bootstrap", "static_resources", reason)])
            })?,
        };
        let name = tree.get("name").and_then(Json::as_str).unwrap_or_default();
        let field = RESOURCES.iter().find(|(_, kind)| *kind == self.kind).map_or("", |(field, _)| field);
        // A resource without a name is called by its place.
        let sink = Sink::new(if name.is_empty() { "bootstrap".to_owned() } else { self.kind.title(name) });
        let root = sink.root();
        let resources = root.field("static_resources");
        let list = resources.field(field);
        let element = list.index(self.index);
        let at = if name.is_empty() { element } else { root };
        let descriptor = self.kind.descriptor();
        let message = descriptor.and_then(|descriptor| decode::decode(&at, &descriptor, &tree, unknown));
        let (mut errors, more) = sink.into_parts();
        notes.extend(more);
        match message {
            Some(message) if errors.is_empty() => Ok((Resource::new(self.kind, &message), message)),
            _ => {
                if errors.is_empty() {
                    errors.push(Error::invalid(self.kind.title(name), "", "does not decode"));
                }
                Err(unreadable(name, errors))
            }
        }
    }
}

fn is_static(key: &str) -> bool {
    matches!(key, "static_resources" | "staticResources")
}

fn kind_of(key: &str) -> Option<Kind> {
    RESOURCES.iter().find(|(name, _)| *name == key).map(|(_, kind)| *kind)
}

/// A list, lists in it, or one value that stands for a list of one.
fn texts<'a>(kind: Kind, text: &'a str, parts: &mut Vec<Part<'a>>) -> Option<()> {
    if text.starts_with('[') {
        return split::elements(text)?.into_iter().try_for_each(|element| texts(kind, element, parts));
    }
    // The parser tells the place of a mistake in the whole text only.
    serde_json::from_str::<IgnoredAny>(text).ok()?;
    if text != "null" {
        parts.push(Part { kind, index: 0, form: Form::Text(text) });
    }
    Some(())
}

fn trees(kind: Kind, tree: Json, parts: &mut Vec<Part<'_>>) {
    match tree {
        Json::Array(elements) => elements.into_iter().for_each(|element| trees(kind, element, parts)),
        Json::Null => {}
        tree => parts.push(Part { kind, index: 0, form: Form::Tree(tree) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"admin": {}, "static_resources": {"clusters": [{"name": "a"}, null, [{"name": "b"}]],
        "listeners": {"name": "l"}, "secrets": [1]}}"#;

    #[test]
    fn json_and_yaml_come_apart_alike() {
        for syntax in [Syntax::Json, Syntax::Yaml] {
            let document = Document::parse(TEXT, syntax).unwrap();
            let mut found = Vec::new();
            for part in document.parts {
                let (kind, index) = (part.kind, part.index);
                let (resource, _) = part.read(UnknownFields::Refuse, &mut Vec::new()).unwrap();
                found.push((kind, index, resource.name));
            }
            found.sort();
            let expected = [(Kind::Cluster, 0, "a"), (Kind::Cluster, 1, "b"), (Kind::Listener, 0, "l")];
            let expected = expected.map(|(kind, index, name)| (kind, index, name.to_owned()));
            assert_eq!(found, expected, "{syntax:?}");
            assert_eq!(document.rest["static_resources"]["secrets"][0], 1);
            assert!(document.rest["static_resources"]["clusters"].is_null());
        }
    }

    #[test]
    fn errors_name_the_resource_or_its_place() {
        let error = |text: &str| {
            let document = Document::parse(text, Syntax::Json).unwrap();
            let part = document.parts.into_iter().next_back().unwrap();
            part.read(UnknownFields::Refuse, &mut Vec::new()).unwrap_err().errors[0].to_string()
        };
        let named = error(r#"{"staticResources": {"clusters": [{"name": "a", "x": 1}]}}"#);
        assert_eq!(named, "cluster \"a\": x: unknown field of envoy.config.cluster.v3.Cluster");
        let unnamed = error(r#"{"static_resources": {"clusters": [{}, {"x": 1}]}}"#);
        assert!(unnamed.starts_with("bootstrap: static_resources.clusters[1].x: unknown field"), "{unnamed}");
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for text in ["{", r#"{"static_resources": {"clusters": [}}"#, r#"{"a": 1} x"#, ""] {
            assert!(Document::parse(text, Syntax::Json).unwrap_err().starts_with("invalid JSON: "), "{text}");
        }
        assert!(Document::parse("[1]", Syntax::Json).unwrap().rest.is_array());
        assert!(Document::parse("", Syntax::Yaml).unwrap().rest.is_object());
    }
}
