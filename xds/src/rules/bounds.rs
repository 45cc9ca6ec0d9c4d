//! Ranges of numbers and durations.

use std::fmt::Debug;

/// `const`, `lt`, `lte`, `gt`, `gte`, `in` and `not_in`.
#[derive(Debug)]
pub(super) struct Bounds<T> {
    pub(super) constant: Option<T>,
    /// Upper end, and whether it is part of the range.
    pub(super) upper: Option<(T, bool)>,
    /// Lower end, and whether it is part of the range.
    pub(super) lower: Option<(T, bool)>,
    pub(super) in_: Vec<T>,
    pub(super) not_in: Vec<T>,
    /// Zero passes.
    pub(super) ignore_empty: bool,
}

impl<T: Copy + Debug + Default + PartialOrd> Bounds<T> {
    /// # Errors
    /// Which end was missed, with `show` to write it.
    pub(super) fn check(&self, value: T, show: impl Fn(T) -> String) -> Result<(), String> {
        if self.ignore_empty && value == T::default() {
            return Ok(());
        }
        if let Some(constant) = self.constant.filter(|constant| *constant != value) {
            return Err(format!("value must equal {}", show(constant)));
        }
        let below = self.lower.is_some_and(|(end, within)| !(value > end || within && value == end));
        let above = self.upper.is_some_and(|(end, within)| !(value < end || within && value == end));
        let outside = match (self.lower, self.upper) {
            // Ends in reverse order exclude what is between them.
            (Some((low, _)), Some((high, _))) if low > high => below && above,
            _ => below || above,
        };
        if outside {
            return Err(self.expectation(show));
        }
        if (!self.in_.is_empty() && !self.in_.contains(&value)) || self.not_in.contains(&value) {
            return Err("value is not allowed".to_owned());
        }
        Ok(())
    }

    fn expectation(&self, show: impl Fn(T) -> String) -> String {
        match (self.lower, self.upper) {
            (Some((low, low_in)), Some((high, high_in))) => {
                let (open, close) = (if low_in { '[' } else { '(' }, if high_in { ']' } else { ')' });
                let side = if low > high { "outside" } else { "inside" };
                format!("value must be {side} range {open}{}, {}{close}", show(low), show(high))
            }
            (Some((low, true)), None) => format!("value must be greater than or equal to {}", show(low)),
            (Some((low, false)), None) => format!("value must be greater than {}", show(low)),
            (None, Some((high, true))) => format!("value must be less than or equal to {}", show(high)),
            (None, Some((high, false))) => format!("value must be less than {}", show(high)),
            (None, None) => "value is not allowed".to_owned(),
        }
    }
}
