//! Comparisons, one per file.

mod binary;
pub mod capture;
pub mod compare;
mod progress;
mod rounds;

use binary::find_culvert;
use progress::{progress, seconds};
