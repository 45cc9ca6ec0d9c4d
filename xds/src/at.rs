//! Where in a resource the work is, and where what is found there goes.

use std::{
    cell::RefCell,
    fmt::{self, Write as _},
};

use crate::{Error, ErrorKind, Note, NoteKind};

/// Collects the findings of one pass over one resource.
#[derive(Debug)]
pub(crate) struct Sink {
    resource: String,
    errors: RefCell<Vec<Error>>,
    notes: RefCell<Vec<Note>>,
}

impl Sink {
    /// `resource` names kind and name: `listener "a"`.
    pub(crate) fn new(resource: impl Into<String>) -> Self {
        Self { resource: resource.into(), errors: RefCell::default(), notes: RefCell::default() }
    }

    /// The root of the resource.
    pub(crate) fn root(&self) -> At<'_> {
        At { parent: None, segment: Segment::Root, sink: self }
    }

    pub(crate) fn has_errors(&self) -> bool {
        !self.errors.borrow().is_empty()
    }

    /// Errors and notes, in the order they were found.
    pub(crate) fn into_parts(self) -> (Vec<Error>, Vec<Note>) {
        (self.errors.into_inner(), self.notes.into_inner())
    }
}

/// A place in a resource: a list on the stack that is rendered only when there is something to report.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    parent: Option<&'a Self>,
    segment: Segment<'a>,
    sink: &'a Sink,
}

#[derive(Clone, Copy)]
enum Segment<'a> {
    Field(&'a str),
    Index(usize),
    Key(&'a str),
    Root,
}

impl<'a> At<'a> {
    /// The field `name` of this message.
    pub(crate) fn field<'b>(&'b self, name: &'b str) -> At<'b> {
        At { parent: Some(self), segment: Segment::Field(name), sink: self.sink }
    }

    /// Element `index` of this repeated field.
    pub(crate) fn index(&self, index: usize) -> At<'_> {
        At { parent: Some(self), segment: Segment::Index(index), sink: self.sink }
    }

    /// Value `key` of this map.
    pub(crate) fn key<'b>(&'b self, key: &'b str) -> At<'b> {
        At { parent: Some(self), segment: Segment::Key(key), sink: self.sink }
    }

    /// Reports that this place makes the resource invalid. Returns `None`, for `return at.error(...)`.
    pub(crate) fn error<T>(&self, reason: impl Into<String>) -> Option<T> {
        self.report(ErrorKind::Invalid, reason.into())
    }

    /// Reports that what is asked for here is not supported. Returns `None`.
    pub(crate) fn unsupported<T>(&self, reason: impl Into<String>) -> Option<T> {
        self.report(ErrorKind::Unsupported, reason.into())
    }

    fn report<T>(&self, kind: ErrorKind, reason: String) -> Option<T> {
        let (resource, field) = (self.sink.resource.clone(), self.to_string());
        self.sink.errors.borrow_mut().push(Error { resource, field, kind, reason });
        None
    }

    /// Reports something worth saying.
    pub(crate) fn note(&self, kind: NoteKind, text: impl Into<String>) {
        self.sink.notes.borrow_mut().push(Note {
            resource: self.sink.resource.clone(),
            field: self.to_string(),
            kind,
            text: text.into(),
        });
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chain = Vec::new();
        let mut next = Some(self);
        while let Some(at) = next {
            chain.push(at.segment);
            next = at.parent;
        }
        let mut first = true;
        for segment in chain.into_iter().rev() {
            match segment {
                Segment::Field(name) => {
                    if !first {
                        f.write_char('.')?;
                    }
                    f.write_str(name)?;
                }
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Key(key) => write!(f, "[{key:?}]")?,
                Segment::Root => continue,
            }
            first = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_rendered_as_it_would_be_written() {
        let sink = Sink::new("listener \"a\"");
        let root = sink.root();
        let chains = root.field("filter_chains");
        let chain = chains.index(0);
        let options = chain.field("options");
        assert_eq!(options.key("b").field("c").to_string(), "filter_chains[0].options[\"b\"].c");
        options.error::<()>("bad");
        let (errors, _) = sink.into_parts();
        assert_eq!(errors[0].to_string(), "listener \"a\": filter_chains[0].options: bad");
    }
}
