//! `service.runtime.v3`.

use super::Table;

pub(super) const TABLES: &[Table] =
    &[Table { used: &["layer", "name"], ..Table::of("envoy.service.runtime.v3.Runtime") }];
