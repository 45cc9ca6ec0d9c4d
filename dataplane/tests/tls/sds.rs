//! Secrets from a control plane and from files, and what becomes of them on connections.

use std::{
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{
    VERSIONS,
    control_plane::{ControlPlane, Kind, Resource},
    downstream, own, peer,
    pki::{Ca, Identity, Leaf, put},
    quoted,
    rotation::shown,
    support::{
        DRIVERS,
        client::Client,
        culvert::{Culvert, cluster, free_port, indent},
        full,
        upstream::{Upstream, ok},
    },
    trusting, upstream, with_socket,
};

/// Most that memory may grow while certificates rotate, in KB.
const GROWTH_KB_MAX: u64 = 8 << 10;

/// Nobody waits long for what is held back.
const ADS: &str = "sds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 1s}";

fn leaf(serial: u64) -> Leaf<'static> {
    Leaf { dns: &["a.test"], serial, ..Leaf::default() }
}

fn secret(name: &str, identity: &Identity) -> Resource {
    let yaml = format!(
        "name: {name}\ntls_certificate:\n  certificate_chain: {{inline_string: {}}}\n  private_key: {{inline_string: {}}}\n",
        quoted(&identity.chain),
        quoted(&identity.key)
    );
    Resource::new(Kind::Secret, name, &yaml)
}

fn bundle(name: &str, ca: &Ca) -> Resource {
    let yaml = format!(
        "name: {name}\nvalidation_context:\n  trusted_ca: {{inline_string: {}}}\n",
        quoted(&ca.pem())
    );
    Resource::new(Kind::Secret, name, &yaml)
}

/// A bootstrap that takes everything from the control plane at `plane`, which is reached with this transport socket.
fn bootstrap(api: &str, plane: SocketAddr, socket: &str, patience: &str) -> String {
    let source = format!("{{ads: {{}}, resource_api_version: V3, initial_fetch_timeout: {patience}}}");
    let xds = cluster("xds", &[plane]) + "  http2_protocol_options: {}\n" + &indent(socket, 2);
    format!(
        "node: {{id: test, cluster: tests}}\nadmin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: \
         0}}}}}}\ndynamic_resources:\n  ads_config: {{api_type: {api}, transport_api_version: V3, grpc_services: \
         [{{envoy_grpc: {{cluster_name: xds}}}}]}}\n  cds_config: {source}\n  lds_config: {source}\nstatic_resources:\n  \
         clusters:\n{}",
        indent(&xds, 2)
    )
}

/// A listener in front of the cluster `up`.
fn listener(port: u16, socket: &str) -> Resource {
    let yaml = format!(
        "name: ingress\naddress: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}\nfilter_chains:\n- name: \
         only\n{}  filters:\n  - name: hcm\n    typed_config:\n      \"@type\": \
         type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n      \
         stat_prefix: ingress\n      route_config: {{virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: \
         {{prefix: /}}, route: {{cluster: up}}}}]}}]}}\n      http_filters: [{{name: router, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]\n",
        indent(socket, 2)
    );
    Resource::new(Kind::Listener, "ingress", &yaml)
}

/// The cluster `up`, whose connections serve three requests each.
fn up(at: SocketAddr, socket: &str) -> Resource {
    let yaml = format!(
        "{}  max_requests_per_connection: 3\n{}",
        cluster("up", &[at]).replacen("- name", "  name", 1),
        indent(socket, 2)
    );
    Resource::new(Kind::Cluster, "up", &yaml)
}

/// Answers with the serial number in the client's certificate.
fn who(server: &Identity, clients: &Ca) -> Upstream {
    peer::server(server, Some(clients), &[], |mut stream| {
        while peer::request(&mut stream).is_some() {
            let chain = stream.conn.peer_certificates().expect("a certificate");
            let (_, leaf) = X509Certificate::from_der(&chain[0]).expect("DER");
            let serial = leaf.serial.to_string();
            if stream.write_all(&ok(serial.as_bytes())).and_then(|()| stream.flush()).is_err() {
                return;
            }
        }
    })
}

/// A culvert with mutual TLS on both sides, all of whose secrets come from a control plane.
struct Mesh {
    culvert: Culvert,
    plane: ControlPlane,
    port: u16,
    ca: Ca,
}

impl Mesh {
    /// `secrets` are there from the beginning.
    fn start(driver: &str, api: &str, ca: Ca, secrets: impl FnOnce(&Ca) -> Vec<Resource>) -> Self {
        let plane = ControlPlane::start();
        let port = free_port();
        let backend = who(&ca.issue(&leaf(100)), &ca);
        let to_clients = format!(
            "tls_certificate_sds_secret_configs: [{{name: server, {ADS}}}]\nvalidation_context_sds_secret_config: {{name: \
             ca, {ADS}}}\n"
        );
        let to_servers = format!(
            "tls_certificate_sds_secret_configs: [{{name: client, {ADS}}}]\ncombined_validation_context:\n  \
             default_validation_context: {{match_typed_subject_alt_names: [{{san_type: DNS, matcher: {{exact: \
             a.test}}}}]}}\n  validation_context_sds_secret_config: {{name: ca, {ADS}}}\n"
        );
        plane.put([
            up(backend.address, &upstream(&to_servers, "sni: a.test\n")),
            listener(port, &downstream(&to_clients, "require_client_certificate: true\n")),
        ]);
        plane.put(secrets(&ca));
        let culvert = Culvert::start(driver, 0, &bootstrap(api, plane.address, "", "15s"));
        Self { culvert, plane, port, ca }
    }

    fn all(ca: &Ca) -> Vec<Resource> {
        vec![secret("server", &ca.issue(&leaf(1))), secret("client", &ca.issue(&leaf(2))), bundle("ca", ca)]
    }

    /// What a client with this certificate is told, and by whom: the serial numbers of both certificates.
    fn ask(&self, trusted: &Ca, client: &Identity) -> std::io::Result<(Vec<u8>, String)> {
        let config = Arc::new(peer::client_config(trusted, Some(client), &VERSIONS));
        let mut client = peer::connect(&config, self.port, "a.test")?;
        let (head, body) = peer::get(&mut client, "/", "")?;
        // A client's side and an upstream's take a new bundle over one after the other.
        if !head.starts_with("HTTP/1.1 200") {
            return Err(std::io::Error::other(head));
        }
        Ok((shown(&client), String::from_utf8(body).expect("text")))
    }

    fn ready(self) -> Self {
        let client = self.ca.issue(&leaf(9));
        self.culvert.wait_until("it serves", |_| self.ask(&self.ca, &client).is_ok());
        self
    }
}

#[test]
fn every_secret_comes_from_the_control_plane() {
    for (driver, api) in [(DRIVERS[0], "GRPC"), (DRIVERS[1], "DELTA_GRPC")] {
        let mesh = Mesh::start(driver, api, Ca::new("ca"), Mesh::all).ready();
        let client = mesh.ca.issue(&leaf(9));
        assert_eq!(mesh.ask(&mesh.ca, &client).expect("an answer"), (vec![1], "2".to_owned()));
        let other = Ca::new("other");
        assert!(mesh.ask(&mesh.ca, &other.issue(&leaf(9))).is_err(), "a stranger is not served");
        let scope = format!("listener.127.0.0.1_{}", mesh.port);
        assert!(mesh.culvert.stat(&format!("{scope}.ssl.fail_verify_error")) >= 1);
        assert!(mesh.culvert.stat(&format!("{scope}.ssl.sigalgs.ecdsa_secp256r1_sha256")) >= 1);
        assert!(mesh.culvert.stat("cluster.up.ssl.sigalgs.ecdsa_secp256r1_sha256") >= 1);
        // When they end is shown by the name of their secret.
        let end = |name: &str| mesh.culvert.stat(&format!("{name}.expiration_unix_time_seconds"));
        let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
        for name in ["cluster.up.ssl.certificate.client", "cluster.up.ssl.certificate.ca"] {
            assert!(end(name) > now, "{name}");
        }
        assert!(end(&format!("{scope}.ssl.certificate.server")) > now);
        // Another authority: whoever it does not know is not served any more, and upstreams it does not know are no use.
        mesh.plane.put([bundle("ca", &other)]);
        mesh.culvert.wait_until("the bundle is used", |_| mesh.ask(&mesh.ca, &client).is_err());
        mesh.plane.put([bundle("ca", &mesh.ca)]);
        mesh.culvert.wait_until("it is back", |_| mesh.ask(&mesh.ca, &client).is_ok());
        // What cannot be used is refused by name, and changes nothing.
        let before = mesh.plane.count();
        let torn = Identity { key: other.issue(&leaf(3)).key, ..mesh.ca.issue(&leaf(3)) };
        mesh.plane.put([secret("server", &torn)]);
        let error = mesh.plane.wait_for_nack(Kind::Secret, before).error.expect("an error");
        assert!(
            error.contains(
                "secret \"server\": tls_certificate.private_key: it does not belong to the certificate"
            ),
            "{error}"
        );
        assert_eq!(mesh.ask(&mesh.ca, &client).expect("an answer").0, [1]);
        mesh.plane.put([secret("server", &mesh.ca.issue(&leaf(4)))]);
        mesh.culvert.wait_until("the next one is taken", |_| {
            mesh.ask(&mesh.ca, &client).is_ok_and(|(serial, _)| serial == [4])
        });
    }
}

#[test]
fn nobody_is_served_before_the_secrets_have_come() {
    for driver in DRIVERS {
        let mesh = Mesh::start(driver, "GRPC", Ca::new("ca"), |ca| vec![bundle("ca", ca)]);
        let client = mesh.ca.issue(&leaf(9));
        mesh.plane.wait_for("the secrets", 0, |seen| {
            seen.kind == Some(Kind::Secret) && seen.names.contains(&"client".to_owned())
        });
        assert!(mesh.ask(&mesh.ca, &client).is_err());
        mesh.plane.put(Mesh::all(&mesh.ca));
        let mesh = mesh.ready();
        assert_eq!(mesh.ask(&mesh.ca, &client).expect("an answer"), (vec![1], "2".to_owned()));
    }
}

/// Both certificates change all the time, and no request notices. With `CULVERT_FULL=1` once a second for a minute.
#[test]
fn certificates_rotate_on_both_sides_under_load_without_a_failed_request() {
    let (rounds, pause) = if full() { (60, 1_000) } else { (6, 100) };
    for driver in DRIVERS {
        let mesh = Mesh::start(driver, "DELTA_GRPC", Ca::new("ca"), Mesh::all).ready();
        let client = mesh.ca.issue(&leaf(9));
        let (done, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let load: Vec<_> = (0..3)
            .map(|_| {
                let config = Arc::new(peer::client_config(&mesh.ca, Some(&client), &VERSIONS));
                let (done, served, port) = (done.clone(), served.clone(), mesh.port);
                thread::spawn(move || {
                    while !done.load(Ordering::SeqCst) {
                        let mut client = peer::connect(&config, port, "a.test").expect("a connection");
                        for _ in 0..5 {
                            let (head, _) = peer::get(&mut client, "/", "").expect("an answer");
                            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
                            served.fetch_add(1, Ordering::SeqCst);
                        }
                        thread::sleep(Duration::from_millis(5));
                    }
                })
            })
            .collect();
        let mut resident = 0;
        for round in 0..rounds {
            let serial = 10 + round;
            mesh.plane.put([
                secret("server", &mesh.ca.issue(&leaf(serial))),
                secret("client", &mesh.ca.issue(&leaf(serial))),
            ]);
            mesh.culvert.wait_until("both are used", |_| {
                mesh.ask(&mesh.ca, &client)
                    .is_ok_and(|(server, client)| server == [serial as u8] && client == serial.to_string())
            });
            if round == rounds / 6 {
                resident = mesh.culvert.resident_kb();
            }
            thread::sleep(Duration::from_millis(pause));
        }
        let grown = mesh.culvert.resident_kb().saturating_sub(resident);
        done.store(true, Ordering::SeqCst);
        load.into_iter().for_each(|thread| thread.join().expect("no failed request"));
        assert!(served.load(Ordering::SeqCst) > 10 * rounds as usize);
        assert_eq!(mesh.culvert.stat("http.ingress.downstream_rq_5xx"), 0);
        assert_eq!(mesh.culvert.stat("sds.server.update_rejected"), 0);
        assert!(grown < GROWTH_KB_MAX, "{driver}: {grown} KB more");
    }
}

#[test]
fn the_control_plane_is_reached_with_mutual_tls() {
    let ca = Ca::new("ca");
    let server = ca.issue(&Leaf { dns: &["plane.test"], ..Leaf::default() });
    let client = ca.issue(&leaf(5));
    let context = "sni: plane.test\nauto_sni_san_validation: true\n";
    let backend = Upstream::mirror();
    for (driver, api) in [(DRIVERS[0], "GRPC"), (DRIVERS[1], "DELTA_GRPC")] {
        let plane = ControlPlane::start();
        let front = peer::Front::start(&server, &ca, plane.address);
        let port = free_port();
        plane.put([up(backend.address, ""), listener(port, "")]);
        let socket = upstream(&(own(&client) + &trusting(&ca, "")), context);
        let culvert = Culvert::start(driver, 0, &bootstrap(api, front.address, &socket, "15s"));
        culvert.wait_until("it serves", |_| {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok_and(|stream| {
                Client::over(stream).try_get("/").is_ok_and(|answer| answer.status == 200)
            })
        });
        assert_eq!(culvert.stat("control_plane.connected_state"), 1);
    }
    // Without a certificate, or with a server of another name, nothing is said.
    let other = context.replace("plane.test", "other.test");
    for (common, more) in [(trusting(&ca, ""), context), (own(&client) + &trusting(&ca, ""), &other)] {
        let plane = ControlPlane::start();
        let front = peer::Front::start(&server, &ca, plane.address);
        let config = bootstrap("GRPC", front.address, &upstream(&common, more), "0.3s");
        let culvert = Culvert::start("auto", 0, &config);
        culvert.wait_until("it was refused", |_| front.refused() > 1);
        assert_eq!((plane.count(), culvert.stat("control_plane.connected_state")), (0, 0));
    }
}

/// As Envoy Gateway starts its proxies. There is no first configuration without them: what is told of the control plane
/// comes from it.
#[test]
fn the_control_plane_is_reached_with_secrets_from_files() {
    let ca = Ca::new("ca");
    let server = ca.issue(&Leaf { dns: &["plane.test"], ..Leaf::default() });
    let backend = Upstream::mirror();
    for (driver, api) in [(DRIVERS[0], "GRPC"), (DRIVERS[1], "DELTA_GRPC")] {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path();
        let plane = ControlPlane::start();
        let front = peer::Front::start(&server, &ca, plane.address);
        let port = free_port();
        plane.put([up(backend.address, ""), listener(port, "")]);
        let source = |name: &str| format!("{{path_config_source: {{path: {}/{name}.yaml}}}}", path.display());
        let common = format!(
            "tls_certificate_sds_secret_configs: [{{name: own, sds_config: {}}}]\nvalidation_context_sds_secret_config: \
             {{name: ca, sds_config: {}}}\n",
            source("own"),
            source("ca")
        );
        let write = |name: &str, what: &str| {
            let file = format!(
                "resources:\n- \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  name: \
                 {name}\n{}",
                indent(what, 2)
            );
            put(&path.join(format!("{name}.yaml")), &file);
        };
        let client = ca.issue(&leaf(5));
        // The certificate's own files come late.
        let own = format!(
            "tls_certificate:\n  certificate_chain: {{filename: {0}/late.crt}}\n  private_key: {{filename: {0}/late.key}}\n",
            path.display()
        );
        write("own", &own);
        write(
            "ca",
            &format!("validation_context: {{trusted_ca: {{inline_string: {}}}}}\n", quoted(&ca.pem())),
        );
        let config = bootstrap(api, front.address, &upstream(&common, "sni: plane.test\n"), "0s");
        let its = tempfile::tempdir().expect("a directory");
        let culvert = Culvert::launch_in(its, driver, 0, &config, &[]);
        thread::sleep(Duration::from_millis(500));
        assert_eq!(plane.count(), 0, "without a certificate nothing is said");
        client.write(path, "late");
        culvert.wait_until("it serves", |_| {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok_and(|stream| {
                Client::over(stream).try_get("/").is_ok_and(|answer| answer.status == 200)
            })
        });
    }
}

/// As Kubernetes mounts secrets: what files are is changed by moving a link to a directory.
#[test]
fn secret_files_are_followed_where_their_directory_is_watched() {
    let ca = Ca::new("ca");
    let backend = Upstream::mirror();
    let place = |dir: &Path, serial: u64| {
        let version = dir.join(format!("v{serial}"));
        std::fs::create_dir(&version).expect("a directory");
        ca.issue(&leaf(serial)).write(&version, "tls");
        std::fs::copy(version.join("tls.crt"), version.join("cert.pem")).expect("copied");
        let link = dir.join("..new");
        symlink(&version, &link).expect("a link");
        std::fs::rename(link, dir.join("..data")).expect("moved");
    };
    for driver in DRIVERS {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path();
        place(path, 1);
        for name in ["cert.pem", "tls.key"] {
            symlink(Path::new("..data").join(name), path.join(name)).expect("a link");
        }
        let sds = |serial: u64| {
            let inline = ca.issue(&leaf(serial));
            format!(
                "resources:\n- \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  name: \
                 files\n  tls_certificate:\n    certificate_chain: {{filename: {0}/cert.pem}}\n    private_key: \
                 {{filename: {0}/tls.key}}\n    watched_directory: {{path: {0}}}\n- \"@type\": \
                 type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  name: inline\n  \
                 tls_certificate:\n    certificate_chain: {{inline_string: {1}}}\n    private_key: {{inline_string: {2}}}\n",
                path.display(),
                quoted(&inline.chain),
                quoted(&inline.key)
            )
        };
        put(&path.join("sds.yaml"), &sds(50));
        for name in ["files", "inline"] {
            let common = format!(
                "tls_certificate_sds_secret_configs: [{{name: {name}, sds_config: {{path_config_source: {{path: \
                 {0}/sds.yaml, watched_directory: {{path: {0}}}}}}}}}]\n",
                path.display()
            );
            let (admin, port, config) =
                with_socket("", &cluster("up", &[backend.address]), &downstream(&common, ""));
            let culvert = Culvert::start(driver, admin, &config);
            let serial = || {
                let client = Arc::new(peer::client_config(&ca, None, &VERSIONS));
                peer::connect(&client, port, "a.test").map(|client| shown(&client)).unwrap_or_default()
            };
            match name {
                "files" => {
                    culvert.wait_until("the first is shown", |_| serial() == [1]);
                    place(path, 2);
                    culvert.wait_until("the second is shown", |_| serial() == [2]);
                }
                _ => {
                    culvert.wait_until("the first is shown", |_| serial() == [50]);
                    put(&path.join("sds.yaml"), &sds(51));
                    culvert.wait_until("the second is shown", |_| serial() == [51]);
                }
            }
        }
    }
}
