//! Requests that other sites have browsers make (`extensions.filters.http.csrf.v3`).

use crate::{Fraction, StringMatcher};

/// `extensions.filters.http.csrf.v3.CsrfPolicy`.
#[derive(Clone, Debug)]
pub struct CsrfPolicy {
    /// `filter_enabled`
    pub enabled: Fraction,
    /// `shadow_enabled`: what is not enabled but this is counted.
    pub shadow: Fraction,
    /// `additional_origins`: hosts with port that may ask besides the one that is asked.
    pub origins: Vec<StringMatcher>,
}
