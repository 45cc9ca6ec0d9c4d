//! Time as the loop sees it: one clock read a turn, and timers that cost nothing to push back.

mod wheel;

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

pub(crate) use wheel::Wheel;

use crate::context;

/// The time at the start of the current turn; the clock itself outside of a runtime.
#[inline]
pub fn now() -> Instant {
    context::try_with(crate::inner::Core::now).unwrap_or_else(Instant::now)
}

/// A moment as the time since 1970, to within what the system's clock was set by in the last second. Reads no clock inside
/// of a runtime.
pub fn since_1970(moment: Instant) -> Duration {
    let clock = context::try_with(crate::inner::Core::wall_clock);
    clock.unwrap_or_else(WallClock::read).at(moment)
}

/// What the system's clock said at a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WallClock {
    at: Instant,
    since_1970: Duration,
}

/// How long a [`WallClock`] is good for.
const WALL_CLOCK_LIFE: Duration = Duration::from_secs(1);

impl WallClock {
    pub(crate) fn read() -> Self {
        Self::read_at(Instant::now())
    }

    /// Reads it at `now`.
    pub(crate) fn read_at(now: Instant) -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { at: now, since_1970 }
    }

    pub(crate) fn is_old(self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) >= WALL_CLOCK_LIFE
    }

    fn at(self, moment: Instant) -> Duration {
        match moment.checked_duration_since(self.at) {
            Some(later) => self.since_1970 + later,
            None => self.since_1970.saturating_sub(self.at - moment),
        }
    }
}

/// Waits for `duration`, to within about a millisecond, never less.
pub async fn sleep(duration: Duration) {
    let mut timer = Timer::new();
    timer.set(now() + duration);
    poll_fn(|cx| timer.poll_expired(cx)).await;
}

/// A deadline that can be moved at any time.
///
/// Moving it later, as idle timeouts do with each request, only stores the new deadline: the wheel's entry stays where
/// it is and moves itself when it comes up too early. A timer that was never set holds no entry.
#[derive(Debug, Default)]
pub struct Timer {
    entry: Option<u32>,
}

impl Timer {
    /// A timer that is not set.
    pub const fn new() -> Self {
        Self { entry: None }
    }

    /// Sets or moves the deadline.
    ///
    /// # Panics
    /// When called outside of `Runtime::block_on`.
    pub fn set(&mut self, deadline: Instant) {
        context::with(|core| {
            let mut wheel = core.wheel();
            let entry = *self.entry.get_or_insert_with(|| wheel.insert());
            wheel.set(entry, deadline);
        });
    }

    /// Forgets the deadline.
    pub fn clear(&mut self) {
        if let Some(entry) = self.entry {
            context::try_with(|core| core.wheel().clear(entry));
        }
    }

    /// Whether there is a deadline that has not been reported by [`Timer::poll_expired`].
    pub fn is_set(&self) -> bool {
        self.entry.is_some_and(|entry| context::try_with(|core| core.wheel().is_set(entry)) == Some(true))
    }

    /// Ready once for each deadline that passes, after which the timer is no longer set. A timer that is not set is
    /// pending, and wakes its task after it has been set.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        context::with(|core| {
            let mut wheel = core.wheel();
            let entry = *self.entry.get_or_insert_with(|| wheel.insert());
            wheel.poll(entry, core.now(), cx)
        })
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(entry) = self.entry {
            // The waker is dropped outside of the wheel's borrow.
            drop(context::try_with(|core| core.wheel().remove(entry)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_runs_with_the_other_one() {
        let now = Instant::now();
        let clock = WallClock::read_at(now);
        let hour = Duration::from_secs(3_600);
        assert_eq!(clock.at(now + hour) - clock.at(now), hour);
        assert_eq!(clock.at(now) - clock.at(now - hour), hour);
        assert!(clock.at(now) > Duration::from_secs(1_700_000_000));
        assert!(!clock.is_old(now + WALL_CLOCK_LIFE / 2) && clock.is_old(now + WALL_CLOCK_LIFE));
    }
}
