//! The runtime of one worker thread.

use std::{
    io,
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use crate::{config::RuntimeConfig, context, inner::Core, task::TaskId, wake::WakeHandle};

/// How long the end of a runtime waits for what was queued to be sent.
const PATIENCE: Duration = Duration::from_secs(1);

/// A single-threaded executor with its driver, buffers and timers. It stays on the thread that made it.
pub struct Runtime {
    core: Box<Core>,
}

impl Runtime {
    /// Makes a runtime for the current thread.
    ///
    /// # Errors
    /// What the kernel refused: the ring, the epoll instance, memory or descriptors.
    pub fn new(config: &RuntimeConfig) -> io::Result<Self> {
        Ok(Self { core: Box::new(Core::new(config)?) })
    }

    /// A handle that makes this runtime take a turn, from any thread.
    pub fn wake_handle(&self) -> WakeHandle {
        WakeHandle::new(Arc::clone(self.core.shared()))
    }

    /// Runs `main` and all spawned tasks until `main` is done. Other tasks stay, and go on with the next call.
    ///
    /// # Panics
    /// Inside another runtime, when `main` panics, and when the kernel refuses to wait for I/O at all.
    pub fn block_on<F: Future>(&mut self, main: F) -> F::Output {
        assert!(!context::is_inside(), "a runtime cannot run inside another on the same thread");
        let core = &*self.core;
        let _entered = context::enter(core);
        let waker = TaskId::main(core.id()).waker();
        let mut cx = Context::from_waker(&waker);
        let mut main = pin!(main);
        core.wake_main();
        loop {
            if core.take_main_woken() {
                let outcome = main.as_mut().poll(&mut cx);
                if let Poll::Ready(output) = outcome {
                    core.flush_eagerly();
                    core.io().flush();
                    return output;
                }
                core.flush_eagerly();
            }
            core.run_ready();
            if let Err(error) = core.turn() {
                // Nothing can be received or sent any more; the process is to be restarted.
                panic!("the I/O driver cannot wait: {error}");
            }
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _entered = context::enter(&self.core);
        self.core.finish(PATIENCE);
    }
}
