//! TLS clients and servers of a test's own, on rustls and blocking sockets.

use std::{
    io::{self, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

use crate::{
    pki::{Ca, Identity},
    support::upstream::Upstream,
};

pub type ClientStream = StreamOwned<ClientConnection, TcpStream>;
pub type ServerStream = StreamOwned<ServerConnection, TcpStream>;

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn roots(ca: &Ca) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).expect("PEM")).expect("a root");
    Arc::new(roots)
}

fn parts(identity: &Identity) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain =
        CertificateDer::pem_slice_iter(identity.chain.as_bytes()).map(|it| it.expect("PEM")).collect();
    (chain, PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).expect("a key"))
}

/// What clients trust, and who they are.
pub fn client_config(
    ca: &Ca,
    identity: Option<&Identity>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots(ca));
    match identity {
        Some(identity) => {
            let (chain, key) = parts(identity);
            builder.with_client_auth_cert(chain, key).expect("an identity")
        }
        None => builder.with_no_client_auth(),
    }
}

/// A client's connection; the handshake is done.
pub fn connect(config: &Arc<ClientConfig>, port: u16, name: &str) -> io::Result<ClientStream> {
    let socket = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let connection = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// Sends a GET and reads the answer, which has a content-length. Its head and body.
pub fn get(
    stream: &mut (impl io::Read + io::Write),
    path: &str,
    headers: &str,
) -> io::Result<(String, Vec<u8>)> {
    write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\n{headers}\r\n")?;
    stream.flush()?;
    response(stream)
}

/// Reads an answer that has a content-length.
pub fn response(stream: &mut impl io::Read) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if let Some(at) = bytes.windows(4).position(|it| it == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..at + 4]).into_owned();
            let length = head
                .lines()
                .find_map(|line| {
                    line.to_ascii_lowercase().strip_prefix("content-length: ")?.trim().parse().ok()
                })
                .unwrap_or(0);
            if bytes.len() >= at + 4 + length {
                return Ok((head, bytes[at + 4..at + 4 + length].to_vec()));
            }
        }
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&buffer[..count]);
    }
}

/// A server that runs `serve` on each connection whose handshake succeeds. `clients` asks for certificates.
pub fn server(
    identity: &Identity,
    clients: Option<&Ca>,
    alpn: &[&str],
    serve: impl Fn(ServerStream) + Clone + Send + 'static,
) -> Upstream {
    let config = server_config(identity, clients, alpn);
    Upstream::start(move |socket| {
        let mut stream =
            StreamOwned::new(ServerConnection::new(config.clone()).expect("a connection"), socket);
        while stream.conn.is_handshaking() {
            if stream.conn.complete_io(&mut stream.sock).is_err() {
                return;
            }
        }
        serve(stream);
    })
}

/// Who a server is. `clients` asks for certificates.
pub fn server_config(identity: &Identity, clients: Option<&Ca>, alpn: &[&str]) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions");
    let builder = match clients {
        Some(ca) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca), provider());
            builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
        }
        None => builder.with_no_client_auth(),
    };
    let (chain, key) = parts(identity);
    let mut config = builder.with_single_cert(chain, key).expect("an identity");
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// Takes connections with mutual TLS and HTTP/2, and passes what is in them on.
pub struct Front {
    pub address: SocketAddr,
    refused: Arc<AtomicUsize>,
}

impl Front {
    /// Clients need a certificate of `clients`. It lasts as long as the process.
    pub fn start(identity: &Identity, clients: &Ca, target: SocketAddr) -> Self {
        let acceptor = tokio_rustls::TlsAcceptor::from(server_config(identity, Some(clients), &["h2"]));
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        listener.set_nonblocking(true).expect("non-blocking");
        let address = listener.local_addr().expect("an address");
        let refused = Arc::new(AtomicUsize::new(0));
        let count = refused.clone();
        thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("listens");
                while let Ok((socket, _)) = listener.accept().await {
                    let (acceptor, count) = (acceptor.clone(), count.clone());
                    tokio::spawn(async move {
                        let Ok(mut inside) = acceptor.accept(socket).await else {
                            count.fetch_add(1, Ordering::SeqCst);
                            return;
                        };
                        let mut behind = tokio::net::TcpStream::connect(target).await.expect("connected");
                        let _ = tokio::io::copy_bidirectional(&mut inside, &mut behind).await;
                    });
                }
            });
        });
        Self { address, refused }
    }

    /// How many handshakes have failed.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }
}

/// Answers every request with its SNI and head.
pub fn mirror(mut stream: ServerStream) {
    while let Some((head, _)) = request(&mut stream) {
        let body = format!("sni={}\n{head}", stream.conn.server_name().unwrap_or("-"));
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).and_then(|()| stream.flush()).is_err() {
            return;
        }
    }
}

/// Reads a request with content-length or none.
pub fn request(stream: &mut impl io::Read) -> Option<(String, Vec<u8>)> {
    response(stream).ok()
}
