//! The `date` header (RFC 9110 section 6.6.1), formatted once a second.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant, SystemTime},
};

use culvert_ring::time;

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
            let wall = SystemTime::now();
            let into_second = wall.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
            self.until.set(Some(now + Duration::from_nanos(1_000_000_000 - u64::from(into_second))));
            *self.text.borrow_mut() = httpdate::fmt_http_date(wall);
        }
        f(&self.text.borrow())
    }
}
