//! Load over HTTP/2: the same schedule, window and counts as for HTTP/1.1, on the h2 crate and one thread of tokio.
//!
//! Each connection has as many lanes as it may have streams; a lane is one request at a time. In a closed loop a lane takes
//! its next request at once. In an open loop a pacer puts requests into a queue when they are due, from which any free lane
//! takes them: latency counts from when they were put there.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, Uri};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::{JoinSet, LocalSet};

use super::engine::timespec;
use super::meter::Meter;
use super::plan::{Http2Plan, Pacing, Plan};
use super::schedule::Schedule;
use super::tally::{Failure, Outcome, Tally, nanoseconds};

/// How long a connection that failed waits before it is made again.
const RETRY: Duration = Duration::from_millis(10);

/// How often the end of the run is looked for once its window is over.
const DRAIN_POLL: Duration = Duration::from_millis(2);

/// What a peer may send before it is read; large enough never to matter.
const WINDOW_BYTES: u32 = 16 << 20;

/// Runs a plan of HTTP/2 to its end.
pub(super) fn run(plan: &Plan, http2: &Http2Plan) -> io::Result<Outcome> {
    let template = template(http2)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = Rc::new(Run {
        plan: plan.clone(),
        http2: http2.clone(),
        template,
        body: Bytes::from(http2.body.clone()),
        state: RefCell::new(State {
            schedule: Schedule::new(plan, Instant::now()),
            tally: Tally::new(),
            queue: VecDeque::new(),
            outstanding: Vec::new(),
            in_window: false,
        }),
        changed: Notify::new(),
    });
    let mut meter = Meter::new(plan);
    LocalSet::new().block_on(&runtime, async {
        // Dropped at the end, and all that still goes on with it.
        let mut tasks = JoinSet::new();
        for _ in 0..plan.connections.max(1) {
            tasks.spawn_local(connection(Rc::clone(&run)));
        }
        if plan.pacing != Pacing::Closed {
            tasks.spawn_local(pace(Rc::clone(&run)));
        }
        direct(&run, &mut meter).await
    })?;
    run.finish(&meter)
}

struct Run {
    plan: Plan,
    http2: Http2Plan,
    /// Every request's head.
    template: Request<()>,
    body: Bytes,
    state: RefCell<State>,
    /// Told when the queue has something.
    changed: Notify,
}

struct State {
    schedule: Schedule,
    tally: Tally,
    /// Open loop: due and not yet taken.
    queue: VecDeque<Instant>,
    /// When the requests under way were due; few, so that a list does.
    outstanding: Vec<Instant>,
    in_window: bool,
}

/// Opens and closes the window, and returns when all is answered or the time is up.
async fn direct(run: &Run, meter: &mut Meter) -> io::Result<()> {
    let start = run.state.borrow().schedule.start;
    if !run.plan.warm_up.is_zero() {
        tokio::time::sleep_until((start + run.plan.warm_up).into()).await;
    }
    let opened = Instant::now();
    let end = opened + run.plan.duration;
    {
        let mut state = run.state.borrow_mut();
        state.schedule.window = Some(opened..end);
        state.in_window = true;
    }
    meter.start(opened)?;
    while Instant::now() < end {
        let sent_all = {
            let state = run.state.borrow();
            state.schedule.is_exhausted() && state.outstanding.is_empty() && state.queue.is_empty()
        };
        if sent_all {
            break;
        }
        let until_end = end.saturating_duration_since(Instant::now());
        // A wake now and then is only needed where the run may end early.
        let pause = if run.plan.requests_max.is_some() { until_end.min(DRAIN_POLL) } else { until_end };
        tokio::time::sleep(pause).await;
    }
    run.state.borrow_mut().in_window = false;
    meter.stop(Instant::now())?;
    let latest = end + run.plan.timeout;
    loop {
        {
            let state = run.state.borrow();
            let quiet = state.outstanding.is_empty()
                && state.queue.is_empty()
                && state.schedule.peek(Instant::now()).is_none();
            if quiet || Instant::now() >= latest {
                return Ok(());
            }
        }
        tokio::time::sleep(DRAIN_POLL).await;
    }
}

/// Puts requests into the queue when they are due. A timer of the kernel's: tokio's have a grain of a millisecond.
async fn pace(run: Rc<Run>) {
    let Ok(timer) = timer() else { return };
    loop {
        let upcoming = {
            let mut state = run.state.borrow_mut();
            let state = &mut *state;
            let now = Instant::now();
            while let Some(due) = state.schedule.next(now) {
                state.queue.push_back(due);
                run.changed.notify_one();
            }
            state.schedule.upcoming()
        };
        let Some(upcoming) = upcoming else { return };
        let wait = upcoming.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let setting = Itimerspec { it_interval: timespec(Duration::ZERO), it_value: timespec(wait) };
        if rustix::time::timerfd_settime(timer.get_ref(), TimerfdTimerFlags::empty(), &setting).is_err() {
            return;
        }
        match timer.readable().await {
            // Setting the timer again is all it takes to make it silent.
            Ok(mut guard) => guard.clear_ready(),
            Err(_) => return,
        }
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe, for descriptors that others may close: this one is owned"
)]
fn timer() -> io::Result<AsyncFd<std::os::fd::OwnedFd>> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    AsyncFd::new(rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?)
}

/// One connection after another, for ever.
async fn connection(run: Rc<Run>) {
    loop {
        let began = Instant::now();
        match tokio::time::timeout(run.plan.timeout, connect(&run)).await {
            Ok(Ok((send, tasks))) => {
                run.connected(began);
                lanes(&run, &send).await;
                drop(tasks);
            }
            Ok(Err(failure)) => run.could_not_connect(failure),
            Err(_) => run.could_not_connect(Failure::ConnectTimeout),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Connects; what the second holds keeps the connection going.
async fn connect(run: &Run) -> Result<(SendRequest<Bytes>, JoinSet<()>), Failure> {
    let stream = TcpStream::connect(run.plan.target).await.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure::ConnectRefused,
        _ => Failure::Connect,
    })?;
    let _ = stream.set_nodelay(true);
    let Some(tls) = &run.plan.tls else { return handshake(stream).await };
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(&tls.config));
    let stream = connector.connect(tls.name.clone(), stream).await.map_err(|_| Failure::Connect)?;
    handshake(stream).await
}

async fn handshake<S>(stream: S) -> Result<(SendRequest<Bytes>, JoinSet<()>), Failure>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES).enable_push(false);
    let (send, connection) = builder.handshake(stream).await.map_err(|error| classify(&error))?;
    let mut tasks = JoinSet::new();
    tasks.spawn_local(async move {
        // Its end shows in the requests.
        let _ = connection.await;
    });
    Ok((send, tasks))
}

/// Requests on all lanes of a connection, until it breaks.
async fn lanes(run: &Rc<Run>, send: &SendRequest<Bytes>) {
    let mut lanes = JoinSet::new();
    for _ in 0..run.http2.streams.max(1) {
        lanes.spawn_local(lane(Rc::clone(run), send.clone()));
    }
    while lanes.join_next().await.is_some() {}
}

async fn lane(run: Rc<Run>, send: SendRequest<Bytes>) {
    loop {
        // First that there is a connection, then a request for it.
        let Ok(ready) = send.clone().ready().await else { return };
        let due = run.take().await;
        let began = Instant::now();
        let result = match tokio::time::timeout(run.plan.timeout, exchange(&run, ready)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::Timeout),
        };
        run.done(due, began, result);
        if result.is_err() {
            return;
        }
    }
}

/// One request and its answer; the status.
async fn exchange(run: &Run, mut send: SendRequest<Bytes>) -> Result<u16, Failure> {
    let has_body = !run.body.is_empty();
    let named = |error: h2::Error| classify(&error);
    let (response, mut stream) = send.send_request(run.template.clone(), !has_body).map_err(named)?;
    if has_body {
        // h2 holds what the peer's window does not admit yet.
        stream.send_data(run.body.clone(), true).map_err(named)?;
    }
    let response = response.await.map_err(named)?;
    let status = response.status().as_u16();
    let without_body = response.headers().get("grpc-status").cloned();
    let mut body = response.into_body();
    let mut received = 0;
    while let Some(data) = body.data().await {
        let data = data.map_err(named)?;
        received += data.len() as u64;
        body.flow_control().release_capacity(data.len()).map_err(named)?;
    }
    run.received(received);
    if run.http2.grpc {
        let trailers = body.trailers().await.map_err(named)?;
        let code =
            trailers.as_ref().and_then(|trailers| trailers.get("grpc-status")).or(without_body.as_ref());
        if code.is_none_or(|code| code != "0") {
            return Err(Failure::Grpc);
        }
    }
    Ok(status)
}

impl Run {
    /// The next request that is due, now or later: when it is.
    async fn take(&self) -> Instant {
        loop {
            {
                let mut state = self.state.borrow_mut();
                let is_closed = self.plan.pacing == Pacing::Closed;
                let due =
                    if is_closed { state.schedule.next(Instant::now()) } else { state.queue.pop_front() };
                if let Some(due) = due {
                    state.outstanding.push(due);
                    return due;
                }
            }
            // A closed loop that is over stays so.
            self.changed.notified().await;
        }
    }

    fn done(&self, due: Instant, began: Instant, result: Result<u16, Failure>) {
        let now = Instant::now();
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if let Some(at) = state.outstanding.iter().position(|other| *other == due) {
            state.outstanding.swap_remove(at);
        }
        let measured = state.schedule.is_measured(due);
        let tally = &mut state.tally;
        tally.in_window += u64::from(state.in_window && result.is_ok());
        if !measured {
            return;
        }
        match result {
            Ok(status) => {
                tally.latency.saturating_record(nanoseconds(now - due));
                tally.service.saturating_record(nanoseconds(now - began));
                *tally.statuses.entry(status).or_default() += 1;
            }
            Err(failure) => {
                tally.failed(failure);
                if failure == Failure::Timeout {
                    tally.latency.saturating_record(nanoseconds(now - due));
                }
            }
        }
    }

    fn received(&self, bytes: u64) {
        let mut state = self.state.borrow_mut();
        if state.schedule.window.is_some() {
            state.tally.bytes_received += bytes;
        }
    }

    fn connected(&self, began: Instant) {
        let mut state = self.state.borrow_mut();
        if state.in_window {
            state.tally.connect.saturating_record(nanoseconds(began.elapsed()));
        }
    }

    /// A connection that cannot be made stands for the request it would have carried.
    fn could_not_connect(&self, failure: Failure) {
        let mut state = self.state.borrow_mut();
        let now = Instant::now();
        let is_due = self.plan.pacing != Pacing::Closed || state.schedule.next(now).is_some();
        if state.in_window && is_due {
            state.tally.failed(failure);
        }
    }

    /// Accounts for what is still unanswered.
    fn finish(&self, meter: &Meter) -> io::Result<Outcome> {
        let now = Instant::now();
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let mut waiting: Vec<Instant> = state.queue.drain(..).chain(state.outstanding.drain(..)).collect();
        if self.plan.pacing != Pacing::Closed {
            waiting.extend(std::iter::from_fn(|| state.schedule.next(now)));
        }
        for due in waiting.into_iter().filter(|due| state.schedule.is_measured(*due)) {
            state.tally.latency.saturating_record(nanoseconds(now - due));
            state.tally.failed(Failure::Unfinished);
        }
        let tally = std::mem::replace(&mut state.tally, Tally::new());
        Ok(tally.outcome(meter.usage()))
    }
}

/// The head of every request.
fn template(http2: &Http2Plan) -> io::Result<Request<()>> {
    let invalid = |error: &dyn std::fmt::Display| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("request: {error}"))
    };
    let uri: Uri = http2.uri.parse().map_err(|error| invalid(&error))?;
    let mut request =
        Request::builder().method(http2.method.as_str()).uri(uri).version(http::Version::HTTP_2);
    for (name, value) in &http2.headers {
        request = request.header(name, value);
    }
    request.body(()).map_err(|error| invalid(&error))
}

fn classify(error: &h2::Error) -> Failure {
    match error.get_io().map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => Failure::Reset,
        Some(_) => Failure::Closed,
        None if error.is_reset() => Failure::Reset,
        None if error.is_go_away() => Failure::Closed,
        None => Failure::Malformed,
    }
}
