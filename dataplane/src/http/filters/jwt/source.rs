//! Where keys come from: the configuration, or a server, asked ahead of requests or by the first that needs them.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::{Rc, Weak},
    sync::Arc,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use culvert_model::{JwksSource, RemoteJwks};
use culvert_proto::{Headers, Method};
use culvert_ring::{task, time};

use super::{keys::Keys, token::Fault};
use crate::{
    http::callout::{self, Caller, Question},
    observe::stats::JwtStats,
    upstream::Via,
    worker::Worker,
};

/// The keys of one provider, on one worker.
pub(super) enum Source {
    Local(Result<Rc<Keys>, Fault>),
    Remote(Rc<Remote>),
}

/// Keys of a server.
pub(super) struct Remote {
    config: Arc<RemoteJwks>,
    stats: Arc<JwtStats>,
    keys: RefCell<Option<Rc<Keys>>>,
    /// `None`: for as long as there are no others.
    fresh_until: Cell<Option<Instant>>,
    fetching: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Source {
    pub(super) fn new(source: &JwksSource, stats: &Arc<JwtStats>, worker: &Worker) -> Self {
        let config = match source {
            JwksSource::Local(text) => return Self::Local(Keys::parse(text.as_bytes()).map(Rc::new)),
            JwksSource::Remote(config) => config.clone(),
        };
        let remote = Rc::new(Remote {
            config,
            stats: stats.clone(),
            keys: RefCell::default(),
            fresh_until: Cell::default(),
            fetching: Cell::default(),
            waiting: RefCell::default(),
        });
        if remote.config.ahead.is_some() {
            task::spawn(keep_fresh(Rc::downgrade(&remote), worker.handle()));
        }
        Self::Remote(remote)
    }

    /// The keys, after a while if they have to be fetched.
    ///
    /// # Errors
    /// There are none.
    pub(super) async fn keys(&self, worker: &Rc<Worker>) -> Result<Rc<Keys>, Fault> {
        match self {
            Self::Local(keys) => keys.clone(),
            Self::Remote(remote) => remote.keys(worker).await,
        }
    }
}

impl Remote {
    async fn keys(self: &Rc<Self>, worker: &Rc<Worker>) -> Result<Rc<Keys>, Fault> {
        if let Some(keys) = self.fresh() {
            return Ok(keys);
        }
        if !self.fetching.get() {
            // It goes on when the request does not: others may wait for it.
            let (remote, worker) = (self.clone(), worker.clone());
            task::spawn(async move {
                remote.fetch(&worker).await;
            });
            self.fetching.set(true);
        }
        poll_fn(|cx| {
            if !self.fetching.get() {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
        self.fresh().ok_or(Fault::Fetch)
    }

    fn fresh(&self) -> Option<Rc<Keys>> {
        let stale = self.fresh_until.get().is_some_and(|until| time::now() >= until);
        self.keys.borrow().clone().filter(|_| !stale)
    }

    /// Fetches the keys. Those from before stay when it fails.
    async fn fetch(&self, worker: &Worker) -> bool {
        self.fetching.set(true);
        let fetching = Fetching(self);
        let uri = &self.config.uri;
        let mut headers = Headers::new();
        headers.push("x-envoy-internal", "true");
        let question = Question {
            cluster: &uri.cluster,
            method: Method::Get,
            path: uri.path.as_bytes(),
            authority: uri.authority.as_bytes(),
            headers,
            body: (&b""[..]).into(),
            timeout: Some(Some(uri.timeout).filter(|timeout| !timeout.is_zero()).unwrap_or(FETCH_MAX)),
            retry: self.config.retry.as_ref(),
        };
        let caller = Caller { worker, via: Via::default() };
        let answer = callout::ask(&caller, &question).await.ok();
        let answer = answer.filter(|answer| answer.status == 200);
        let keys = answer.and_then(|answer| Keys::parse(&answer.body).ok());
        let fetched = keys.is_some();
        if let Some(keys) = keys {
            self.stats.jwks_fetch_success.inc();
            self.keys.replace(Some(Rc::new(keys)));
            let until = self.config.ahead.is_none().then(|| time::now() + self.config.cache);
            self.fresh_until.set(until);
        } else {
            self.stats.jwks_fetch_failed.inc();
        }
        drop(fetching);
        fetched
    }
}

/// A server that fails is not asked more often, whatever the configuration says: the worker has other things to do.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest that keys are waited for where the configuration sets no limit.
const FETCH_MAX: Duration = Duration::from_secs(30);

/// Ends the wait of all requests when the fetch does, however that comes about.
struct Fetching<'r>(&'r Remote);

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.0.fetching.set(false);
        for waker in self.0.waiting.take() {
            waker.wake();
        }
    }
}

/// Fetches keys ahead of requests, for as long as there is somebody to use them.
async fn keep_fresh(remote: Weak<Remote>, worker: Weak<Worker>) {
    loop {
        let pause = {
            let (Some(remote), Some(worker)) = (remote.upgrade(), worker.upgrade()) else { return };
            let again = remote.config.ahead.unwrap_or_default();
            if remote.fetch(&worker).await { remote.config.cache } else { again }
        };
        time::sleep(pause.max(PAUSE_MIN)).await;
    }
}
