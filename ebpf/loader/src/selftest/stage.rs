//! Where it happens: a pod of its own, captured and spliced by the programs that serve.

use std::{
    cell::RefCell,
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use culvert_bpf_common::PROXY_MARK;
use socket2::{Domain, SockAddr, Socket};

use super::pair::Pair;
use crate::{
    Capture, CaptureConfig, Diag, InboundListener, PodSpec, SlotPool, Splice, SpliceConfig,
    cgroup::Cgroup,
    netns::netns_cookie,
    sandbox::{self, ProbeCgroup},
};

/// A destination that nobody has (RFC 5737): connects to it are captured.
const DESTINATION: ([u8; 4], u16) = ([192, 0, 2, 1], 80);
/// Sockets of applications that the checks may use together.
const SOCKETS: usize = 48;

/// When it has to be over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    end: Instant,
    step: Duration,
}

impl Deadline {
    /// A quarter of it is what a single step may take.
    pub(super) fn after(time: Duration) -> Self {
        Self { end: Instant::now() + time, step: time / 4 }
    }

    pub(super) fn is_over(self) -> bool {
        Instant::now() >= self.end
    }

    /// The time that one step may take. That something does not happen is known no earlier.
    pub(super) fn step(self) -> Duration {
        self.end.saturating_duration_since(Instant::now()).min(self.step)
    }
}

/// A cgroup for applications, in this one or in the root of the hierarchy.
///
/// # Errors
/// Why none can be made.
pub(super) fn cgroup(parent: Option<&Path>) -> Result<ProbeCgroup, String> {
    let parent = Cgroup::find(parent).map_err(text)?;
    ProbeCgroup::create(&parent).map_err(|e| format!("a cgroup in {}: {e}", parent.display()))
}

/// The pod.
pub(super) struct Stage<'a> {
    pub(super) splice: Splice,
    pub(super) cookie: u64,
    /// The limit that is promised, whatever the programs were told.
    pub(super) limit: u64,
    pub(super) deadline: Deadline,
    pub(super) diag: Diag,
    pub(super) pool: SlotPool,
    outbound: &'a TcpListener,
    /// Of the pod's cgroup, to be used once each.
    sockets: RefCell<Vec<Socket>>,
}

impl Stage<'_> {
    /// Sets it up, runs `f`, and takes everything away again.
    ///
    /// # Errors
    /// What could not be set up.
    pub(super) fn with(
        cgroup: &ProbeCgroup,
        config: SpliceConfig,
        limit: u64,
        deadline: Deadline,
        f: impl FnOnce(&Stage<'_>) + Send,
    ) -> Result<(), String> {
        let inside = |sandbox: &sandbox::Sandbox| {
            let pin_dir = sandbox.bpffs.clone()?.join("culvert-selftest");
            let netns = sandbox::own_netns().map_err(text)?;
            let mut capture =
                Capture::open(CaptureConfig { pin_dir, cgroup: Some(cgroup.path().to_owned()) })
                    .map_err(text)?;
            let outcome = play(&mut capture, cgroup, &netns, config, limit, deadline, f);
            let removed = capture.uninstall().map_err(text);
            outcome.and(removed)
        };
        sandbox::run(inside).map_err(|e| format!("namespaces for the test: {e}"))?
    }

    /// A captured connection of an application, and the proxy's end of it.
    pub(super) fn captured(&self) -> io::Result<Pair> {
        let app = self.socket()?;
        app.connect_timeout(&SockAddr::from(SocketAddr::from(DESTINATION)), self.patience())?;
        let proxy = self.accept(self.outbound)?;
        Pair::new(app, proxy, self.cookie, false)
    }

    /// A connection that the proxy makes to an application.
    pub(super) fn dialled(&self) -> io::Result<Pair> {
        let server = self.socket()?;
        server.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0))))?;
        server.listen(1)?;
        let server: TcpListener = server.into();
        let proxy = self.socket()?;
        proxy.set_mark(PROXY_MARK)?;
        proxy.connect_timeout(&SockAddr::from(server.local_addr()?), self.patience())?;
        let app = self.accept(&server)?;
        Pair::new(app, proxy, self.cookie, true)
    }

    fn accept(&self, listener: &TcpListener) -> io::Result<Socket> {
        listener.set_nonblocking(true)?;
        super::pair::wait(listener.as_fd(), libc::POLLIN, self.patience(), "a connection")?;
        Ok(listener.accept()?.0.into())
    }

    /// At least a moment: a timeout of nothing would mean none at all.
    fn patience(&self) -> Duration {
        self.deadline.step().max(Duration::from_millis(1))
    }

    fn socket(&self) -> io::Result<Socket> {
        self.sockets.borrow_mut().pop().ok_or_else(|| io::Error::other("no socket is left for the check"))
    }
}

fn play(
    capture: &mut Capture,
    cgroup: &ProbeCgroup,
    netns: &OwnedFd,
    config: SpliceConfig,
    limit: u64,
    deadline: Deadline,
    f: impl FnOnce(&Stage<'_>),
) -> Result<(), String> {
    let outbound = TcpListener::bind(("127.0.0.1", 0)).map_err(text)?;
    let cookie = netns_cookie(netns.as_fd()).map_err(text)?;
    let pod = PodSpec {
        name: "selftest".to_owned(),
        netns: netns.as_fd(),
        cookie,
        outbound_port: outbound.local_addr().map_err(text)?.port(),
        inbound_port: None,
        inbound_listener: InboundListener { v4: None, v6: None },
        strict: true,
        addresses: Vec::new(),
    };
    capture.enrol(&pod).map_err(text)?;
    let splice = capture.splice(config).map_err(text)?;
    splice.add_pod(cookie).map_err(text)?;
    let sockets = RefCell::new(cgroup.sockets(Domain::IPV4, SOCKETS).map_err(text)?);
    let (pool, diag) = (splice.slots(), Diag::open(netns.as_fd()).map_err(text)?);
    f(&Stage { splice, cookie, limit, deadline, diag, pool, outbound: &outbound, sockets });
    Ok(())
}

fn text(error: impl ToString) -> String {
    error.to_string()
}
