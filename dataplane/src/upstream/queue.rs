//! Requests that wait for a connection to a host, in the order in which they came.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

use culvert_model::RoutePriority;
use culvert_ring::time;

use crate::upstream::{Host, Lent, PoolKey};

/// How often a waiting request looks for a place by itself: one may have become free on another host or worker, which
/// nobody here is told of.
const WAIT_AGAIN: Duration = Duration::from_millis(50);

/// Those who wait for a connection to a host. Who is told of something stays at its place until it has a connection.
#[derive(Default)]
pub(super) struct Queue(RefCell<VecDeque<Rc<Waiter>>>);

/// What a waiting request can make use of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Takes {
    /// A connection of HTTP/1 of its pool that another request had.
    pub(super) used: bool,
    /// A stream on a connection of its pool.
    pub(super) stream: bool,
    /// The place of a connection that is closed, or idle.
    pub(super) place: bool,
}

/// What has become free.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Freed {
    Place,
    Stream,
}

/// A request that waits.
pub(super) struct Waiter {
    key: RefCell<PoolKey>,
    takes: Cell<Takes>,
    given: RefCell<Given>,
    waker: RefCell<Option<Waker>>,
}

pub(super) enum Given {
    Connection(Box<Lent>),
    Nothing,
    /// It may look again.
    Permission(Freed),
}

impl Waiter {
    /// Whether it is of this priority, and was given nothing yet.
    fn waits(&self, priority: RoutePriority) -> bool {
        self.key.borrow().priority == priority && matches!(*self.given.borrow(), Given::Nothing)
    }

    pub(super) fn give(&self, given: Given) {
        *self.given.borrow_mut() = given;
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Host {
    /// Has the first of those look again who can make use of what became free: of a place all of a priority, of a stream
    /// those of its pool. Whether there was one.
    pub(super) fn wake_for(&self, freed: Freed, priority: RoutePriority, key: Option<&PoolKey>) -> bool {
        let fits = |waiter: &&Rc<Waiter>| {
            let takes = waiter.takes.get();
            let takes = match freed {
                Freed::Place => takes.place,
                Freed::Stream => takes.stream,
            };
            takes && waiter.waits(priority) && key.is_none_or(|key| *waiter.key.borrow() == *key)
        };
        let waiter = self.waiters.0.borrow().iter().find(fits).cloned();
        if let Some(waiter) = &waiter {
            waiter.give(Given::Permission(freed));
        }
        waiter.is_some()
    }

    /// Who is to have a connection of HTTP/1 that a request of this pool is through with.
    pub(super) fn waiter_for(&self, key: &PoolKey) -> Option<Rc<Waiter>> {
        let waiters = self.waiters.0.borrow();
        let mut waiting = waiters.iter().filter(|it| it.takes.get().place && it.waits(key.priority));
        let mut of_pool = waiting.clone().filter(|waiter| *waiter.key.borrow() == *key);
        // One of the same pool that needs a new connection has its turn as well.
        let first = waiting.next()?;
        if *first.key.borrow() == *key && !first.takes.get().used {
            return None;
        }
        of_pool.find(|waiter| waiter.takes.get().used).cloned()
    }

    /// Whether anybody waits for a place among the connections of a priority.
    pub(super) fn is_awaited(&self, priority: RoutePriority) -> bool {
        let waits = |waiter: &Rc<Waiter>| waiter.takes.get().place && waiter.waits(priority);
        self.waiters.0.borrow().iter().any(waits)
    }
}

/// A request in the queue; it leaves the queue when dropped.
pub(super) struct Waiting {
    host: Rc<Host>,
    waiter: Rc<Waiter>,
}

/// Waits for a connection to be given back or closed. `None` when it is worth to look again. `waiting` is its place in the
/// queue, which it keeps until that is dropped.
pub(super) async fn wait_turn(
    waiting: &mut Option<Waiting>,
    host: &Rc<Host>,
    key: &PoolKey,
    takes: Takes,
) -> Option<Box<Lent>> {
    let waiting = waiting.get_or_insert_with(|| Waiting::join(host, key, takes));
    let waiter = &waiting.waiter;
    waiter.takes.set(takes);
    if *waiter.key.borrow() != *key {
        *waiter.key.borrow_mut() = key.clone();
    }
    let mut again = time::Timer::new();
    again.set(time::now() + WAIT_AGAIN);
    poll_fn(|cx| match waiter.given.replace(Given::Nothing) {
        Given::Nothing => {
            *waiter.waker.borrow_mut() = Some(cx.waker().clone());
            again.poll_expired(cx).map(|()| None)
        }
        Given::Permission(_) => Poll::Ready(None),
        Given::Connection(lent) => Poll::Ready(Some(lent)),
    })
    .await
}

impl Waiting {
    fn join(host: &Rc<Host>, key: &PoolKey, takes: Takes) -> Self {
        let waiter = Rc::new(Waiter {
            key: RefCell::new(key.clone()),
            takes: Cell::new(takes),
            given: RefCell::new(Given::Nothing),
            waker: RefCell::new(None),
        });
        host.waiters.0.borrow_mut().push_back(waiter.clone());
        Self { host: host.clone(), waiter }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.host.waiters.0.borrow_mut().retain(|waiter| !Rc::ptr_eq(waiter, &self.waiter));
        // What it was given and did not take is the next one's. A connection passes its place on by being closed.
        if let Given::Permission(freed) = self.waiter.given.replace(Given::Nothing) {
            let key = self.waiter.key.borrow().clone();
            self.host.wake_for(freed, key.priority, Some(&key).filter(|_| freed == Freed::Stream));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Arc};

    use super::*;
    use crate::{
        snapshot::HostState,
        upstream::{Via, original_dst::plain},
    };

    const USED: Takes = Takes { used: true, stream: false, place: true };
    const STREAM: Takes = Takes { used: false, stream: true, place: true };
    const STREAM_ALONE: Takes = Takes { used: false, stream: true, place: false };

    fn host() -> Rc<Host> {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        Rc::new(Host::new(plain(address, (None, None), Arc::new(HostState::new(1))), 0))
    }

    fn key(host: &Host, priority: RoutePriority) -> PoolKey {
        PoolKey::new(host, &Via { priority, ..Via::default() })
    }

    fn is_told(waiting: &Waiting) -> bool {
        matches!(*waiting.waiter.given.borrow(), Given::Permission(_))
    }

    #[test]
    fn who_cannot_use_a_stream_is_not_told_of_it() {
        let host = host();
        let key = key(&host, RoutePriority::Default);
        let mut other = key.clone();
        other.pod = 7;
        let waiting =
            [(&key, USED), (&other, STREAM), (&key, STREAM)].map(|(key, it)| Waiting::join(&host, key, it));
        assert!(host.wake_for(Freed::Stream, RoutePriority::Default, Some(&key)));
        assert_eq!(waiting.each_ref().map(is_told), [false, false, true]);
        assert!(!host.wake_for(Freed::Stream, RoutePriority::Default, Some(&key)), "nobody else can use it");
        assert!(!host.wake_for(Freed::Place, RoutePriority::High, None), "another priority");
        // It goes, and leaves what it was told of to nobody.
        let [used, stream, first] = waiting;
        drop(first);
        assert!(!is_told(&used) && !is_told(&stream));
    }

    #[test]
    fn places_go_round_in_order() {
        let host = host();
        let key = key(&host, RoutePriority::Default);
        let [alone, first, second] = [STREAM_ALONE, USED, STREAM].map(|it| Waiting::join(&host, &key, it));
        for told in [[false, true, false], [false, true, true]] {
            assert!(host.wake_for(Freed::Place, RoutePriority::Default, None));
            assert_eq!([&alone, &first, &second].map(is_told), told);
        }
        // Who was told and looks in vain is the next one again.
        second.waiter.given.replace(Given::Nothing);
        first.waiter.given.replace(Given::Nothing);
        assert!(host.wake_for(Freed::Place, RoutePriority::Default, None));
        assert!(is_told(&first) && !is_told(&second));
        // What it does not take is the next one's.
        drop(first);
        assert!(is_told(&second));
        assert!(host.waiter_for(&key).is_none() && !host.is_awaited(RoutePriority::Default));
        drop((alone, second));
        assert_eq!(host.waiters.0.borrow().len(), 0);
    }
}
