//! Bounded queues from other threads into a worker.
//!
//! The queue is lock-free. A sender wakes the receiving task only when that is waiting, so a burst costs one wake.

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use crossbeam_queue::ArrayQueue;

/// A queue for at most `capacity` messages (at least one). The receiver is bound to no runtime: it is woken wherever it
/// is polled.
pub fn channel<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(capacity.max(1)),
        waiting: AtomicBool::new(false),
        senders: AtomicUsize::new(1),
        waker: Mutex::new(None),
    });
    (Sender { shared: Arc::clone(&shared) }, Receiver { shared })
}

/// The sending end; any thread may have one.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T: Send> Sender<T> {
    /// Queues a message.
    ///
    /// # Errors
    /// The message, when the queue is full.
    pub fn try_send(&self, message: T) -> Result<(), T> {
        self.shared.queue.push(message)?;
        self.shared.notify();
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.shared.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.notify();
        }
    }
}

/// The receiving end.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
}

impl<T: Send> Receiver<T> {
    /// The next message; `None` when all senders are gone and everything was received.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(message) = self.shared.queue.pop() {
            return Poll::Ready(Some(message));
        }
        self.shared.wait(cx.waker());
        // Again: what came before the waker was stored woke nobody.
        let closed = self.shared.senders.load(Ordering::Acquire) == 0;
        match self.shared.queue.pop() {
            Some(message) => Poll::Ready(Some(message)),
            None if closed => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    /// Waits for the next message, like [`Receiver::poll_recv`].
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }
}

struct Shared<T> {
    queue: ArrayQueue<T>,
    waiting: AtomicBool,
    senders: AtomicUsize,
    waker: Mutex<Option<Waker>>,
}

impl<T> Shared<T> {
    fn wait(&self, waker: &Waker) {
        let mut place = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *place {
            Some(old) => old.clone_from(waker),
            empty => *empty = Some(waker.clone()),
        }
        drop(place);
        self.waiting.store(true, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    fn notify(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) && self.waiting.swap(false, Ordering::SeqCst) {
            let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}
