//! The `date` header (RFC 9110 section 6.6.1), formatted once a second.

use std::{
    cell::{Cell, RefCell},
    fmt::Write as _,
    time::{Duration, Instant, SystemTime},
};

use culvert_ring::time;
use httpdate::HttpDate;

/// The current date as an HTTP header value.
#[derive(Default)]
pub struct Date {
    text: RefCell<String>,
    until: Cell<Option<Instant>>,
}

impl Date {
    /// Calls `f` with the current date.
    pub fn with<R>(&self, f: impl FnOnce(&str) -> R) -> R {
        let now = time::now();
        if self.until.get().is_none_or(|until| now >= until) {
            let wall = time::since_1970(now);
            self.until.set(Some(now + Duration::from_nanos(1_000_000_000 - u64::from(wall.subsec_nanos()))));
            let mut text = self.text.borrow_mut();
            text.clear();
            // Writing to a string cannot fail.
            let _ = write!(text, "{}", HttpDate::from(SystemTime::UNIX_EPOCH + wall));
        }
        f(&self.text.borrow())
    }
}
