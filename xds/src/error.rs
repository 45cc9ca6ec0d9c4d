//! What can be wrong with a configuration, and what is worth saying about one that is right.

use std::fmt;

/// One reason why a resource was refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Error {
    /// Kind and name, such as `listener "ingress"`; `bootstrap` for what belongs to no resource.
    pub resource: String,
    /// Path of the guilty field below the resource in snake_case, such as `filter_chains[0].filters[1].name`; may be
    /// empty.
    pub field: String,
    /// Whose fault it is.
    pub kind: ErrorKind,
    /// Why, without a final full stop.
    pub reason: String,
}

/// Who is at fault when a configuration is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ErrorKind {
    /// The configuration: Envoy would refuse it too, or should.
    Invalid,
    /// Culvert: it does not do what a valid configuration asks for.
    Unsupported,
}

impl Error {
    pub(crate) fn invalid(resource: impl Into<String>, field: &str, reason: impl Into<String>) -> Self {
        let (resource, field, reason) = (resource.into(), field.to_owned(), reason.into());
        Self { resource, field, kind: ErrorKind::Invalid, reason }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.resource)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Error {}

/// All that is wrong with a configuration: never empty. Displayed one a line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Errors(Vec<Error>);

impl Errors {
    /// Whether all that is wrong is that something is not supported.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        self.0.iter().all(|error| error.kind == ErrorKind::Unsupported)
    }

    /// The errors, in configuration order.
    #[must_use]
    pub fn as_slice(&self) -> &[Error] {
        &self.0
    }
}

impl From<Error> for Errors {
    fn from(error: Error) -> Self {
        Self(vec![error])
    }
}

impl From<Vec<Error>> for Errors {
    fn from(errors: Vec<Error>) -> Self {
        Self(errors)
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// Something to tell about a configuration that was accepted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Note {
    /// See [`Error::resource`].
    pub resource: String,
    /// See [`Error::field`].
    pub field: String,
    /// What sort of remark it is.
    pub kind: NoteKind,
    /// The remark, without a final full stop.
    pub text: String,
}

/// Sorts of [`Note`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NoteKind {
    /// The field was accepted and does nothing; the text says why that is harmless.
    NoEffect,
    /// The field does not exist in the message and was left out, as the caller or Envoy's rules for dynamic resources
    /// allow.
    UnknownField,
    /// It works, and there is a reason to change it (a deprecated field, for example).
    Warning,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.resource)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        match self.kind {
            NoteKind::NoEffect => write!(f, "accepted, no effect: {}", self.text),
            NoteKind::UnknownField => write!(f, "unknown field left out: {}", self.text),
            NoteKind::Warning => write!(f, "warning: {}", self.text),
        }
    }
}
