//! Users and their passwords (`extensions.filters.http.basic_auth.v3`).

use std::{collections::BTreeMap, sync::Arc};

/// `extensions.filters.http.basic_auth.v3.BasicAuth`.
#[derive(Clone, Debug)]
pub struct BasicAuth {
    /// `users`
    pub users: Arc<BasicUsers>,
    /// `forward_username_header`: the header that tells the upstream who it is, unless empty.
    pub forward_username: String,
    /// `authentication_header`: where credentials are looked for; `authorization`.
    pub header: String,
    /// `allow_missing`: false.
    pub allow_missing: bool,
    /// `emit_dynamic_metadata`: false.
    pub emit_metadata: bool,
}

/// SHA-1 of passwords by user, of lines `user:{SHA}base64`.
pub type BasicUsers = BTreeMap<String, [u8; 20]>;
