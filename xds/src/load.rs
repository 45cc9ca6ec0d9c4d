//! The bootstrap: from a file and a command line to the model.

use std::path::{Path, PathBuf};

use crate::{Error, Errors, Note};

/// Where the bootstrap comes from and what the command line changes in it.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// `-c`, `--config-path`: `.yaml`, `.yml`, `.json` or `.pb`.
    pub config_path: Option<PathBuf>,
    /// `--config-yaml`: merged over the file as protobuf merges messages.
    pub config_yaml: Option<String>,
    /// `--service-node`: replaces `node.id`.
    pub node_id: Option<String>,
    /// `--service-cluster`: replaces `node.cluster`.
    pub node_cluster: Option<String>,
    /// `--allow-unknown-static-fields`: a field that does not exist is a note, not an error.
    pub allow_unknown_static_fields: bool,
    /// `--reject-unknown-dynamic-fields`: a field that does not exist is an error in resource files too.
    pub reject_unknown_dynamic_fields: bool,
}

/// A bootstrap that can be served.
#[derive(Debug)]
pub struct Loaded {
    /// The validated model.
    pub bootstrap: culvert_model::Bootstrap,
    /// What was accepted without effect, and warnings.
    pub notes: Vec<Note>,
    /// `--reject-unknown-dynamic-fields`.
    pub(crate) reject_unknown_dynamic_fields: bool,
}

/// Reads, checks and converts a bootstrap.
///
/// # Errors
/// Everything that is wrong with it: unreadable or malformed text, fields that do not exist, violated constraints and
/// features that are not supported.
pub fn load_bootstrap(options: &LoadOptions) -> Result<Loaded, Errors> {
    if options.config_path.is_none() && options.config_yaml.is_none() {
        let reason = "at least one of --config-path or --config-yaml must be given".to_owned();
        return Err(Error { resource: "bootstrap".to_owned(), field: String::new(), reason }.into());
    }
    Ok(Loaded {
        bootstrap: culvert_model::Bootstrap::default(),
        notes: Vec::new(),
        reject_unknown_dynamic_fields: options.reject_unknown_dynamic_fields,
    })
}

/// Validates resource files or bootstraps on their own, for `culvert check`: one entry a resource found.
#[must_use]
pub fn check(paths: &[PathBuf]) -> Vec<(PathBuf, Result<Vec<Note>, Errors>)> {
    let one = |path: &Path| {
        load_bootstrap(&LoadOptions { config_path: Some(path.to_owned()), ..LoadOptions::default() })
            .map(|loaded| loaded.notes)
    };
    paths.iter().map(|path| (path.clone(), one(path))).collect()
}
