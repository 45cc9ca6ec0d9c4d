//! A hierarchical timer wheel: six levels of 64 slots, the finest 2^20 ns (about 1 ms) wide.
//!
//! An entry sits in the level whose slot width fits its distance, and moves to a finer level as its time comes closer.
//! A deadline is rounded up to a tick, so nothing expires early. Deadlines beyond the wheel (about two years) are cut.

use std::{
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

const TICK_SHIFT: u32 = 20;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const LEVELS: usize = 6;
/// One slot less than a revolution of the coarsest level, so that an entry never lands in the slot the wheel is in.
const MAX_TICKS: u64 = (SLOTS as u64 - 1) << (SLOT_BITS * (LEVELS as u32 - 1));
const NONE: u32 = u32::MAX;

pub(crate) struct Wheel {
    origin: Instant,
    /// Every tick up to and including this one has been handled.
    elapsed: u64,
    occupied: [u64; LEVELS],
    heads: [[u32; SLOTS]; LEVELS],
    entries: Vec<Entry>,
    free: Vec<u32>,
    armed: usize,
}

impl Wheel {
    pub(crate) fn new(origin: Instant) -> Self {
        Self {
            origin,
            elapsed: 0,
            occupied: [0; LEVELS],
            heads: [[NONE; SLOTS]; LEVELS],
            entries: Vec::new(),
            free: Vec::new(),
            armed: 0,
        }
    }

    /// A new entry without a deadline.
    pub(crate) fn insert(&mut self) -> u32 {
        match self.free.pop() {
            Some(index) => index,
            None => {
                self.entries.push(Entry::default());
                self.entries.len() as u32 - 1
            }
        }
    }

    /// Forgets an entry; its waker is returned to be dropped.
    pub(crate) fn remove(&mut self, index: u32) -> Option<Waker> {
        self.unlink(index);
        let entry = std::mem::take(&mut self.entries[index as usize]);
        self.free.push(index);
        entry.waker
    }

    pub(crate) fn set(&mut self, index: u32, deadline: Instant) {
        let entry = &mut self.entries[index as usize];
        entry.deadline = Some(deadline);
        let tick = tick_of(self.origin, deadline);
        match entry.place {
            // It comes up early and moves itself.
            Some(place) if place.tick <= tick => {}
            _ => {
                self.unlink(index);
                self.link(index, tick);
            }
        }
    }

    pub(crate) fn clear(&mut self, index: u32) {
        // The entry stays in its slot, as it is likely to be set again; it leaves when it comes up.
        self.entries[index as usize].deadline = None;
    }

    pub(crate) fn is_set(&self, index: u32) -> bool {
        self.entries[index as usize].deadline.is_some()
    }

    pub(crate) fn poll(&mut self, index: u32, now: Instant, cx: &Context<'_>) -> Poll<()> {
        let entry = &mut self.entries[index as usize];
        if entry.deadline.is_some_and(|it| it <= now) {
            entry.deadline = None;
            return Poll::Ready(());
        }
        match &mut entry.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            empty => *empty = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Wakes whatever is due at `now`.
    pub(crate) fn expire(&mut self, now: Instant) {
        let target = (now.saturating_duration_since(self.origin).as_nanos() as u64) >> TICK_SHIFT;
        if self.armed == 0 {
            self.elapsed = self.elapsed.max(target);
            return;
        }
        while let Some((level, slot, start)) = self.next_slot() {
            if start > target {
                break;
            }
            self.elapsed = self.elapsed.max(start);
            self.empty_slot(level, slot);
        }
        self.elapsed = self.elapsed.max(target);
    }

    /// How long nothing happens after `now`; `None` when no entry is armed.
    pub(crate) fn next_wait(&self, now: Instant) -> Option<Duration> {
        if self.armed == 0 {
            return None;
        }
        let (_, _, start) = self.next_slot()?;
        let due = self.origin + Duration::from_nanos(start << TICK_SHIFT);
        Some(due.saturating_duration_since(now))
    }

    /// The slot that comes up next: its level, its index and its first tick. Coarser levels win ties, so that what they
    /// hold is sorted into finer ones first.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        let mut best: Option<(usize, usize, u64)> = None;
        for level in 0..LEVELS {
            if self.occupied[level] == 0 {
                continue;
            }
            let shift = SLOT_BITS * level as u32;
            let current = self.elapsed >> shift;
            let ahead =
                self.occupied[level].rotate_right((current & (SLOTS as u64 - 1)) as u32).trailing_zeros();
            let start = (current + u64::from(ahead)) << shift;
            let slot = ((current + u64::from(ahead)) & (SLOTS as u64 - 1)) as usize;
            if best.is_none_or(|(_, _, it)| start <= it) {
                best = Some((level, slot, start));
            }
        }
        best
    }

    fn empty_slot(&mut self, level: usize, slot: usize) {
        let mut index = std::mem::replace(&mut self.heads[level][slot], NONE);
        self.occupied[level] &= !(1 << slot);
        while index != NONE {
            let entry = &mut self.entries[index as usize];
            let next = entry.next;
            entry.place = None;
            self.armed -= 1;
            if let Some(deadline) = entry.deadline {
                let tick = tick_of(self.origin, deadline);
                if tick > self.elapsed {
                    self.link(index, tick);
                } else if let Some(waker) = &entry.waker {
                    waker.wake_by_ref();
                }
            }
            index = next;
        }
    }

    fn link(&mut self, index: u32, tick: u64) {
        // A tick that has passed is handled with the next one.
        let tick = tick.clamp(self.elapsed + 1, self.elapsed + MAX_TICKS);
        let level = level_for(self.elapsed, tick);
        let slot = (tick >> (SLOT_BITS * level as u32)) as usize & (SLOTS - 1);
        let head = self.heads[level][slot];
        if head != NONE {
            self.entries[head as usize].previous = index;
        }
        let entry = &mut self.entries[index as usize];
        entry.place = Some(Place { tick, level: level as u8, slot: slot as u8 });
        entry.next = head;
        entry.previous = NONE;
        self.heads[level][slot] = index;
        self.occupied[level] |= 1 << slot;
        self.armed += 1;
    }

    fn unlink(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        let Some(place) = entry.place.take() else { return };
        let (next, previous) = (entry.next, entry.previous);
        let (level, slot) = (usize::from(place.level), usize::from(place.slot));
        if previous == NONE {
            self.heads[level][slot] = next;
            if next == NONE {
                self.occupied[level] &= !(1 << slot);
            }
        } else {
            self.entries[previous as usize].next = next;
        }
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        self.armed -= 1;
    }
}

/// The first tick that does not begin before `deadline`.
fn tick_of(origin: Instant, deadline: Instant) -> u64 {
    let nanos = deadline.saturating_duration_since(origin).as_nanos().min(u128::from(u64::MAX >> 1)) as u64;
    (nanos + ((1 << TICK_SHIFT) - 1)) >> TICK_SHIFT
}

/// The finest level in whose current revolution `tick` lies: that of the highest bit in which it differs from `elapsed`.
fn level_for(elapsed: u64, tick: u64) -> usize {
    let differing = (elapsed ^ tick) | (SLOTS as u64 - 1);
    let highest = u64::BITS - 1 - differing.leading_zeros();
    ((highest / SLOT_BITS) as usize).min(LEVELS - 1)
}

#[derive(Clone, Copy)]
struct Place {
    tick: u64,
    level: u8,
    slot: u8,
}

struct Entry {
    deadline: Option<Instant>,
    place: Option<Place>,
    next: u32,
    previous: u32,
    waker: Option<Waker>,
}

impl Default for Entry {
    fn default() -> Self {
        Self { deadline: None, place: None, next: NONE, previous: NONE, waker: None }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::Wake,
    };

    use super::*;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counter() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        (Arc::clone(&count), Waker::from(count))
    }

    #[test]
    fn nothing_expires_early_and_everything_within_two_ticks() {
        let origin = Instant::now();
        let mut wheel = Wheel::new(origin);
        let (_, waker) = counter();
        let cx = Context::from_waker(&waker);
        let mut now = origin;
        let mut state = 7u64;
        for _ in 0..2000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let distance = Duration::from_micros(state >> (34 + state % 25));
            let entry = wheel.insert();
            let deadline = now + distance;
            wheel.set(entry, deadline);
            let mut steps = 0;
            while wheel.poll(entry, now, &cx).is_pending() {
                let wait = wheel.next_wait(now).unwrap();
                assert!(now + wait <= deadline + Duration::from_millis(2), "overslept {distance:?}");
                now += wait;
                wheel.expire(now);
                steps += 1;
                assert!(steps < 20);
            }
            assert!(now >= deadline);
            wheel.remove(entry);
        }
    }

    #[test]
    fn a_later_deadline_moves_nothing_until_the_entry_comes_up() {
        let origin = Instant::now();
        let mut wheel = Wheel::new(origin);
        let (count, waker) = counter();
        let cx = Context::from_waker(&waker);
        let entry = wheel.insert();
        wheel.set(entry, origin + Duration::from_millis(100));
        let first = wheel.next_wait(origin).unwrap();
        assert!(wheel.poll(entry, origin, &cx).is_pending());
        wheel.set(entry, origin + Duration::from_secs(100));
        assert_eq!(wheel.next_wait(origin).unwrap(), first);
        wheel.expire(origin + Duration::from_millis(200));
        assert_eq!(count.0.load(Ordering::Relaxed), 0, "woken by the deadline that was pushed back");
        assert!(wheel.next_wait(origin).unwrap() > Duration::from_secs(1));
        wheel.expire(origin + Duration::from_millis(100_010));
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn an_earlier_deadline_takes_effect() {
        let origin = Instant::now();
        let mut wheel = Wheel::new(origin);
        let (count, waker) = counter();
        let entry = wheel.insert();
        wheel.set(entry, origin + Duration::from_secs(60));
        wheel.set(entry, origin + Duration::from_millis(5));
        assert!(wheel.poll(entry, origin, &Context::from_waker(&waker)).is_pending());
        wheel.expire(origin + Duration::from_millis(7));
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_cleared_or_removed_entry_is_silent() {
        let origin = Instant::now();
        let mut wheel = Wheel::new(origin);
        let (count, waker) = counter();
        let entries: Vec<u32> = (0..3).map(|_| wheel.insert()).collect();
        for &entry in &entries {
            wheel.set(entry, origin + Duration::from_millis(5));
            assert!(wheel.poll(entry, origin, &Context::from_waker(&waker)).is_pending());
        }
        wheel.clear(entries[0]);
        wheel.remove(entries[1]);
        wheel.expire(origin + Duration::from_millis(7));
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert!(wheel.next_wait(origin).is_none());
    }

    #[test]
    fn long_jumps_expire_in_one_call() {
        let origin = Instant::now();
        let mut wheel = Wheel::new(origin);
        let (count, waker) = counter();
        for seconds in [1u64, 70, 5000, 400_000] {
            let entry = wheel.insert();
            wheel.set(entry, origin + Duration::from_secs(seconds));
            assert!(wheel.poll(entry, origin, &Context::from_waker(&waker)).is_pending());
        }
        wheel.expire(origin + Duration::from_secs(4000));
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        wheel.expire(origin + Duration::from_secs(500_000));
        assert_eq!(count.0.load(Ordering::Relaxed), 4);
    }
}
