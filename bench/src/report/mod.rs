//! Turning measurements into claims: robust figures with their uncertainty, the machine they come from, tables.

pub mod machine;
pub mod stats;
pub mod table;

pub use machine::Machine;
pub use stats::Summary;
