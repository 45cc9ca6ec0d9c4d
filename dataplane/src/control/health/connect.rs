//! Connections for checks, made as the cluster's own are.

use std::{io, net::SocketAddr, os::fd::AsFd as _};

use culvert_bpf::PROXY_MARK;
use culvert_model::{Address, HealthCheck};
use culvert_ring::net;
use culvert_xds::remote::Io;
use tokio::net::{TcpSocket, UnixStream};

use super::session::Session;
use crate::{
    control::dialer::{ends, secure, socket_path},
    upstream::{Via, socket_for},
};

/// Connects to where `session`'s host is checked. `http2`: whether HTTP/2 is what will be spoken.
///
/// # Errors
/// Those of the kernel, and of the handshake.
pub(super) async fn connect(session: &Session, check: &HealthCheck, http2: bool) -> io::Result<Box<dyn Io>> {
    let endpoint = &session.host.endpoint;
    let (stream, ends): (Box<dyn Io>, _) = match place(session, check) {
        Address::Ip(address) => {
            let stream = connect_tcp(session, address).await?;
            let ends = ends(&stream);
            (Box::new(stream), ends)
        }
        Address::Pipe { path, .. } => (Box::new(UnixStream::connect(socket_path(&path)).await?), None),
    };
    secure(stream, &session.config, endpoint, &session.context.contexts, ends, |protocols| {
        if !check.alpn.is_empty() {
            *protocols = check.alpn.iter().map(|name| name.clone().into_bytes()).collect();
        } else if http2 && protocols.is_empty() {
            protocols.push(b"h2".to_vec());
        }
    })
    .await
}

/// Where the host is checked: its own address, with what `health_check_config` and `alt_port` say instead.
fn place(session: &Session, check: &HealthCheck) -> Address {
    let endpoint = &session.host.endpoint;
    let own = endpoint.check.as_deref();
    let address = match own.and_then(|own| own.address) {
        Some(address) => Address::Ip(address),
        None => endpoint.address.clone(),
    };
    let port = own.and_then(|own| own.port).or(check.alt_port);
    match (address, port) {
        (Address::Ip(address), Some(port)) => Address::Ip(SocketAddr::new(address.ip(), port)),
        (address, _) => address,
    }
}

async fn connect_tcp(session: &Session, address: SocketAddr) -> io::Result<tokio::net::TcpStream> {
    let (socket, _) = socket_for(&Address::Ip(address), &session.config, &Via::default())?;
    if session.context.marked {
        net::set_mark(socket.as_fd(), PROXY_MARK)?;
    }
    TcpSocket::from_std_stream(socket.into()).connect(address).await
}
