//! Comparisons, one per file.

pub mod capture;
