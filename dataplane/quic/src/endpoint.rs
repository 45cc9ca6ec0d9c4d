//! An endpoint: the handle of the task that drives a socket and its connections.

use std::{
    any::Any,
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use culvert_ring::{UdpSocket, task, time};
use quinn_proto::{ClientConfig, ConnectionError, ServerConfig, VarInt};
use thiserror::Error;

use crate::{Config, Connection, EndpointStats, connection::Conn, driver::Driver, driver::Shared};

/// Why a connection could not be made.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConnectError {
    /// What was asked for is not possible: the name or the address is none.
    #[error(transparent)]
    Config(#[from] quinn_proto::ConnectError),
    /// The handshake failed.
    #[error(transparent)]
    Handshake(#[from] ConnectionError),
}

/// How a client is accepted.
pub struct Accept {
    /// The configuration.
    pub config: Arc<ServerConfig>,
    /// What [`Connection::note`] returns: the reason of the choice.
    pub note: Rc<dyn Any>,
}

/// A UDP socket of the current worker and the connections on it, accepted and made. All methods must be called inside the
/// runtime it was made in.
///
/// When it is dropped, nothing is accepted any more; connections in use go on until they are dropped or closed.
#[derive(Debug)]
pub struct Endpoint {
    shared: Rc<Shared>,
}

impl Endpoint {
    /// Takes over a UDP socket, such as [`culvert_ring::net::udp_socket`] makes. Without a server configuration it only
    /// connects.
    ///
    /// # Errors
    /// When the descriptor cannot be made non-blocking.
    pub fn bind(socket: OwnedFd, config: Config, server: Option<Arc<ServerConfig>>) -> io::Result<Self> {
        let shared = Shared::new(UdpSocket::from_fd(socket)?, config, server);
        task::spawn(Driver::new(Rc::clone(&shared)));
        Ok(Self { shared })
    }

    /// Makes the connections of the future with another configuration, such as one with new certificates; those that are
    /// there are left alone. `None` refuses clients from now on.
    pub fn set_server(&self, server: Option<Arc<ServerConfig>>) {
        self.shared.set_server(server);
    }

    /// Has `acceptor` choose what each client of the future is accepted with, by its address and the own one that it speaks
    /// to; `None` refuses it. The configuration of [`Endpoint::bind`] is then good for Retry alone.
    pub fn set_acceptor(&self, acceptor: impl Fn(SocketAddr, Option<IpAddr>) -> Option<Accept> + 'static) {
        self.shared.set_acceptor(Rc::new(acceptor));
    }

    /// Connects to a server, which is to show a certificate for `name` as the configuration sees it.
    ///
    /// # Errors
    /// A name or address that is none, or why the handshake failed. Nothing gives up before the idle timeout of the
    /// configuration; dropping the future does.
    pub async fn connect(
        &self,
        config: ClientConfig,
        addr: SocketAddr,
        name: &str,
    ) -> Result<Connection, ConnectError> {
        let connection = self.start(config, addr, name)?;
        connection.established().await?;
        Ok(connection)
    }

    /// Begins to connect; [`Connection::established`] tells the outcome.
    ///
    /// # Errors
    /// A name or address that is none.
    pub fn start(
        &self,
        config: ClientConfig,
        addr: SocketAddr,
        name: &str,
    ) -> Result<Connection, ConnectError> {
        let (handle, proto) = self.shared.proto().connect(time::now(), config, addr, name)?;
        self.shared.count(|it| it.initiated += 1);
        let conn = Conn::new(&self.shared, handle, proto);
        let connection = Connection::new(&conn);
        self.shared.insert(handle, &conn);
        Ok(connection)
    }

    /// The next client, whose handshake is not complete yet: see [`Connection::established`].
    pub fn poll_accept(&self, cx: &Context<'_>) -> Poll<Connection> {
        self.shared.poll_accept(cx)
    }

    /// Waits for the next client.
    pub async fn accept(&self) -> Connection {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// Goes on with another socket, as when the host's address has changed. Peers allow it or not; connections that they do
    /// not move end by their idle timeouts.
    ///
    /// # Errors
    /// When the descriptor cannot be made non-blocking.
    pub fn rebind(&self, socket: OwnedFd) -> io::Result<()> {
        self.shared.rebind(UdpSocket::from_fd(socket)?);
        Ok(())
    }

    /// Closes every connection.
    pub fn close(&self, code: VarInt, reason: &[u8]) {
        for conn in self.shared.connections() {
            conn.close(code, Bytes::copy_from_slice(reason));
        }
    }

    /// Waits until no connection is left. Closed ones stay for three round-trip times or so, to tell peers that have not
    /// heard.
    pub async fn idle(&self) {
        poll_fn(|cx| self.shared.poll_idle(cx)).await;
    }

    /// The address of the socket.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared.local_addr()
    }

    /// What it has done so far.
    pub fn stats(&self) -> EndpointStats {
        self.shared.stats()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.shared.shut();
    }
}
