//! The runtime (`config.bootstrap.v3.LayeredRuntime`).

use std::{collections::BTreeMap, sync::Arc};

use crate::ConfigSource;

/// `config.bootstrap.v3.RuntimeLayer`.
#[derive(Clone, Debug)]
pub struct RuntimeLayer {
    /// `name`
    pub name: String,
    /// `layer_specifier`
    pub kind: RuntimeLayerKind,
}

/// `RuntimeLayer.layer_specifier`.
#[derive(Clone, Debug)]
pub enum RuntimeLayerKind {
    /// `admin_layer`: changed by `/runtime_modify`.
    Admin,
    /// `rtds_layer`
    Rtds {
        /// `name` of the resource.
        name: String,
        /// `rtds_config`
        source: ConfigSource,
    },
    /// `static_layer`, with nested structures as dotted keys.
    Static(Arc<BTreeMap<String, String>>),
}
