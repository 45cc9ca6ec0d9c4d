//! The whole of eBPF capture, for one pod that exists for a moment.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd as _,
    path::Path,
    time::Duration,
};

use socket2::{Domain, SockAddr};

use super::{Finding, Group, Need, Site, Status};
use crate::{
    Capture, CaptureConfig, Error, InboundListener, PodSpec, netns::netns_cookie, probe::probe,
    sandbox::ProbeCgroup,
};

/// A destination that nobody has (RFC 5737).
const DESTINATION: ([u8; 4], u16) = ([192, 0, 2, 1], 80);
/// Long enough for a connection within the kernel.
const PATIENCE: Duration = Duration::from_secs(2);

const PURPOSE: &str = "Culvert's own programs, loaded, attached and used by a pod made for it";
const COST: &str = "no eBPF capture; --capture iptables remains";

pub(super) fn examine(site: &Site<'_>) -> Vec<Finding> {
    let outcome = match (site.cgroup, &site.netns, &site.bpffs) {
        (Ok(cgroup), Ok(netns), Ok(bpffs)) => rehearse(cgroup, netns.as_fd(), bpffs),
        (Err(why), ..) | (_, Err(why), _) | (.., Err(why)) => {
            // The next best: whether everything that is needed is there, one by one.
            match probe() {
                Ok(()) => Ok((Status::Ok, format!("all there; not rehearsed: {why}"))),
                Err(error) => Err(error),
            }
        }
    };
    let (status, found) = outcome.unwrap_or_else(|error| {
        let unasked = matches!(error, Error::Privilege { .. }) && !site.denial.may_use_bpf();
        (if unasked { Status::Unknown } else { Status::Missing }, error.to_string())
    });
    vec![Finding::new(Group::Capture, "ebpf", status, found).meaning(PURPOSE, COST).needed(Need::Ebpf)]
}

fn rehearse(
    cgroup: &ProbeCgroup,
    netns: std::os::fd::BorrowedFd<'_>,
    bpffs: &Path,
) -> Result<(Status, String), Error> {
    let config =
        CaptureConfig { pin_dir: bpffs.join("culvert-rehearsal"), cgroup: Some(cgroup.path().to_owned()) };
    let mut capture = Capture::open(config)?;
    let outcome = captured(&mut capture, cgroup, netns);
    let removed = capture.uninstall();
    let outcome = outcome?;
    removed?;
    Ok(match outcome {
        Ok(()) => (Status::Ok, "loaded, attached, and a connection captured".to_owned()),
        Err(error) => (Status::Missing, format!("loaded and attached, but {error}")),
    })
}

/// Enrols a pod and lets it connect.
fn captured(
    capture: &mut Capture,
    cgroup: &ProbeCgroup,
    netns: std::os::fd::BorrowedFd<'_>,
) -> Result<io::Result<()>, Error> {
    let error = |source| Error::Netns { operation: "listening in it", source };
    let outbound = TcpListener::bind(("127.0.0.1", 0)).map_err(error)?;
    let inbound = TcpListener::bind(("127.0.0.1", 0)).map_err(error)?;
    let port = |listener: &TcpListener| Ok(listener.local_addr().map_err(error)?.port());
    let cookie = netns_cookie(netns)?;
    capture.enrol(&PodSpec {
        name: "rehearsal".to_owned(),
        netns,
        cookie,
        outbound_port: port(&outbound)?,
        inbound_port: Some(port(&inbound)?),
        inbound_listener: InboundListener { v4: Some(inbound.as_fd()), v6: None },
        strict: true,
        addresses: Vec::new(),
    })?;
    Ok(connect(cgroup, &outbound, capture, cookie))
}

fn connect(cgroup: &ProbeCgroup, outbound: &TcpListener, capture: &Capture, cookie: u64) -> io::Result<()> {
    let destination = SocketAddr::from(DESTINATION);
    let socket = cgroup.sockets(Domain::IPV4, 1)?.pop().ok_or_else(|| io::Error::other("no socket"))?;
    let unturned = |e: io::Error| io::Error::other(format!("the connection was not turned: {e}"));
    socket.connect_timeout(&SockAddr::from(destination), PATIENCE).map_err(unturned)?;
    outbound.set_nonblocking(true)?;
    let (_accepted, peer) = outbound.accept().map_err(unturned)?;
    match capture.orig_dst().take(cookie, peer) {
        Some(found) if found == destination => Ok(()),
        found => Err(io::Error::other(format!("its destination was recorded as {found:?}"))),
    }
}
