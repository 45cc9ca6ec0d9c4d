//! Tasks, timers and messages from other threads.

mod common;

use std::{
    cell::{Cell, RefCell},
    future::{pending, poll_fn},
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use common::*;
use culvert_ring::{Runtime, RuntimeConfig, mailbox, stats, task, time};

on_both_drivers!(
    a_busy_task_does_not_stop_timers_and_sockets,
    a_full_mailbox_gives_the_message_back,
    a_mailbox_ends_when_its_senders_are_gone,
    a_panic_ends_only_its_task,
    what_comes_after_a_poll_runs_once_and_before_the_next_task,
    a_task_that_ended_can_be_woken_and_aborted,
    a_timer_that_is_pushed_back_fires_once,
    many_threads_send_to_one_mailbox,
    the_clock_stands_still_within_a_turn,
    timers_fire_in_order_and_never_early,
    wakes_from_other_threads_arrive,
);

async fn what_comes_after_a_poll_runs_once_and_before_the_next_task() {
    struct Note(Rc<RefCell<Vec<&'static str>>>);
    impl task::AfterPoll for Note {
        fn after_poll(&self) {
            self.0.borrow_mut().push("after");
        }
    }
    let order = Rc::new(RefCell::new(Vec::new()));
    let (first, second) = (Rc::clone(&order), Rc::clone(&order));
    task::spawn(async move {
        task::after_poll(Rc::new(Note(Rc::clone(&first))));
        first.borrow_mut().push("first");
    });
    task::spawn(async move { second.borrow_mut().push("second") });
    until(|| order.borrow().len() == 3).await;
    assert_eq!(*order.borrow(), ["first", "after", "second"]);
}

async fn timers_fire_in_order_and_never_early() {
    let order = Rc::new(RefCell::new(Vec::new()));
    let start = Instant::now();
    for delay in [30u64, 5, 70, 15, 1, 50] {
        let order = Rc::clone(&order);
        task::spawn(async move {
            time::sleep(Duration::from_millis(delay)).await;
            assert!(start.elapsed() >= Duration::from_millis(delay));
            order.borrow_mut().push(delay);
        });
    }
    until(|| order.borrow().len() == 6).await;
    assert_eq!(*order.borrow(), [1, 5, 15, 30, 50, 70]);
}

async fn a_timer_that_is_pushed_back_fires_once() {
    let mut timer = time::Timer::new();
    assert!(!timer.is_set());
    let start = time::now();
    for step in 1..=20 {
        timer.set(start + Duration::from_millis(10 + step));
    }
    assert!(timer.is_set());
    poll_fn(|cx| timer.poll_expired(cx)).await;
    assert!(start.elapsed() >= Duration::from_millis(30));
    assert!(!timer.is_set());
    assert!(poll_fn(|cx| Poll::Ready(timer.poll_expired(cx).is_pending())).await);
    timer.set(time::now() + Duration::from_secs(1000));
    timer.clear();
    assert!(!timer.is_set());
    timer.set(time::now());
    poll_fn(|cx| timer.poll_expired(cx)).await;
}

async fn the_clock_stands_still_within_a_turn() {
    let before = time::now();
    thread::sleep(Duration::from_millis(3));
    assert_eq!(time::now(), before);
    task::yield_now().await;
    assert!(time::now() >= before + Duration::from_millis(3));
}

async fn a_busy_task_does_not_stop_timers_and_sockets() {
    let busy = task::spawn(async {
        loop {
            task::yield_now().await;
        }
    });
    time::sleep(Duration::from_millis(5)).await;
    let stream = connect(std_echo()).await.unwrap();
    stream.send(b"ping");
    assert_eq!(read_exact(&stream, 4).await, b"ping");
    task::abort(busy);
    assert_eq!(stats().tasks, 0);
}

async fn a_panic_ends_only_its_task() {
    let (stream, peer) = pair().await;
    task::spawn(async move {
        let _stream = stream;
        panic!("on purpose");
    });
    let end = blocking(move || std::io::Read::read(&mut &peer, &mut [0; 1])).await;
    assert_eq!(end.unwrap(), 0, "the task's connection is closed");
    assert_eq!(stats().task_panics, 1);
    assert_eq!(stats().tasks, 0);
}

async fn a_task_that_ended_can_be_woken_and_aborted() {
    let waker: Rc<RefCell<Option<Waker>>> = Rc::default();
    let slot = Rc::clone(&waker);
    let first = task::spawn(poll_fn(move |cx| {
        *slot.borrow_mut() = Some(cx.waker().clone());
        Poll::Ready(())
    }));
    task::yield_now().await;
    let waker = waker.take().unwrap();
    let runs = Rc::new(Cell::new(0));
    let counted = Rc::clone(&runs);
    let second = task::spawn(poll_fn(move |_| {
        counted.set(counted.get() + 1);
        Poll::<()>::Pending
    }));
    task::yield_now().await;
    assert_ne!(first, second);
    waker.wake_by_ref();
    task::abort(first);
    task::yield_now().await;
    assert_eq!((runs.get(), stats().tasks), (1, 1));
    task::abort(second);
    waker.wake();
}

async fn wakes_from_other_threads_arrive() {
    for _ in 0..200 {
        let done = Arc::new(AtomicBool::new(false));
        let place: Arc<Mutex<Option<Waker>>> = Arc::default();
        let (theirs, flag) = (Arc::clone(&place), Arc::clone(&done));
        let thread = thread::spawn(move || {
            loop {
                if let Some(waker) = theirs.lock().unwrap().take() {
                    flag.store(true, Ordering::Release);
                    return waker.wake();
                }
                thread::yield_now();
            }
        });
        poll_fn(|cx| {
            if done.load(Ordering::Acquire) {
                return Poll::Ready(());
            }
            *place.lock().unwrap() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        thread.join().unwrap();
    }
}

async fn many_threads_send_to_one_mailbox() {
    const EACH: u64 = 5000;
    let (sender, mut receiver) = mailbox::channel(64);
    let threads: Vec<_> = (0..4u64)
        .map(|number| {
            let sender = sender.clone();
            thread::spawn(move || {
                for at in 0..EACH {
                    let mut message = number << 32 | at;
                    while let Err(back) = sender.try_send(message) {
                        message = back;
                        thread::yield_now();
                    }
                }
            })
        })
        .collect();
    drop(sender);
    let mut next = [0u64; 4];
    while let Some(message) = receiver.recv().await {
        let number = (message >> 32) as usize;
        assert_eq!(message & 0xffff_ffff, next[number], "in order from each sender");
        next[number] += 1;
    }
    assert_eq!(next, [EACH; 4]);
    for thread in threads {
        thread.join().unwrap();
    }
}

async fn a_full_mailbox_gives_the_message_back() {
    let (sender, mut receiver) = mailbox::channel(2);
    assert_eq!((sender.try_send(1), sender.try_send(2), sender.try_send(3)), (Ok(()), Ok(()), Err(3)));
    assert_eq!(receiver.recv().await, Some(1));
    assert_eq!(sender.try_send(4), Ok(()));
    assert_eq!((receiver.recv().await, receiver.recv().await), (Some(2), Some(4)));
}

async fn a_mailbox_ends_when_its_senders_are_gone() {
    let (sender, mut receiver) = mailbox::channel::<u8>(2);
    let last = sender.clone();
    drop(sender);
    let thread = thread::spawn(move || {
        thread::sleep(Duration::from_millis(5));
        last.try_send(9).unwrap();
    });
    assert_eq!(receiver.recv().await, Some(9));
    assert_eq!(receiver.recv().await, None);
    thread.join().unwrap();
}

#[test]
fn a_wake_handle_ends_a_wait_and_outlives_its_runtime() {
    for driver in [culvert_ring::DriverKind::Epoll, culvert_ring::DriverKind::Uring] {
        let mut runtime = Runtime::new(&RuntimeConfig { driver, ..RuntimeConfig::default() }).unwrap();
        let handle = runtime.wake_handle();
        let asleep = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&asleep);
        let remote = handle.clone();
        let thread = thread::spawn(move || {
            while !seen.load(Ordering::Acquire) {
                thread::yield_now();
            }
            remote.wake();
        });
        let mut polls = 0;
        runtime.block_on(poll_fn(|_| {
            polls += 1;
            asleep.store(true, Ordering::Release);
            if polls == 2 { Poll::Ready(()) } else { Poll::Pending }
        }));
        thread.join().unwrap();
        drop(runtime);
        handle.wake();
    }
}

#[test]
fn a_waker_outlives_its_runtime() {
    let mut runtime = Runtime::new(&RuntimeConfig::default()).unwrap();
    let waker = runtime.block_on(poll_fn(|cx| Poll::Ready(cx.waker().clone())));
    drop(runtime);
    waker.wake_by_ref();
    thread::spawn(move || waker.wake()).join().unwrap();
}

#[test]
fn tasks_go_on_in_the_next_block_on() {
    let mut runtime = Runtime::new(&RuntimeConfig::default()).unwrap();
    let ran = Rc::new(Cell::new(0));
    let counter = Rc::clone(&ran);
    runtime.block_on(async move {
        task::spawn(async move {
            loop {
                counter.set(counter.get() + 1);
                task::yield_now().await;
            }
        });
        task::yield_now().await;
    });
    let before = ran.get();
    runtime.block_on(task::yield_now());
    assert!(ran.get() > before);
    let counted = Rc::downgrade(&ran);
    drop(ran);
    drop(runtime);
    assert!(counted.upgrade().is_none(), "the runtime drops its tasks");
}

#[test]
fn a_runtime_inside_another_is_a_bug() {
    let nested = std::panic::catch_unwind(|| {
        let mut outer = Runtime::new(&RuntimeConfig::default()).unwrap();
        outer.block_on(async {
            let mut inner = Runtime::new(&RuntimeConfig::default()).unwrap();
            inner.block_on(pending::<()>());
        });
    });
    assert!(nested.is_err());
}
