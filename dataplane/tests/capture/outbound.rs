//! Connections that a pod makes: programs that know nothing of a proxy, and what is let pass.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
};

use culvert_bpf::PROXY_MARK;
use socket2::{Domain, Socket, Type};

use crate::support::{
    client::Client,
    culvert::{PATIENCE, cluster},
    mesh::{Bootstrap, Mesh, Variant, enrolled, is_proxied, to_cluster},
    netns::{Pod, Seen, canonical},
};

tests!(ebpf, iptables: curl_needs_no_setting, nc_needs_no_setting, servers_that_speak_first_are_heard,
    the_application_sees_the_destination_it_meant, dialling_the_listener_itself_is_reset, what_is_excluded_passes_by);

/// A service address without anybody behind it.
const NOWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 96, 0, 10), 9080);

/// A client that is captured and a server that is not.
fn client_and_server(variant: Variant) -> (Mesh, Pod, Pod) {
    let mut mesh = Mesh::new(variant);
    let (client, server) = (mesh.world.pod("client"), mesh.world.pod("server"));
    (mesh, client, server)
}

fn captured(client: &Pod) -> [String; 1] {
    [enrolled(client, "policy: strict, inbound: off")]
}

fn curl_needs_no_setting(variant: Variant) {
    let (mesh, client, server) = client_and_server(variant);
    let app = server.app();
    let routes = to_cluster("service")
        + "\n  request_headers_to_add: [{header: {key: x-meant, value: \"%DOWNSTREAM_LOCAL_ADDRESS%\"}}]";
    let bootstrap =
        Bootstrap::default().http("outbound", "OUTBOUND", &routes).cluster(&cluster("service", &[app.v4]));
    let culvert = mesh.start(&bootstrap, &captured(&client));
    let urls = [
        (format!("http://{}/page", app.v4), app.v4),
        (format!("http://{}/page", app.v6), app.v6),
        // Only the proxy knows where this is.
        ("http://reviews:9080/page".to_owned(), NOWHERE.into()),
    ];
    for (url, meant) in &urls {
        let resolve = format!("reviews:9080:{}", NOWHERE.0);
        let answer = client.run(&["curl", "-sSig", "--max-time", "30", "--resolve", &resolve, url]);
        let (head, body) = answer.split_once("\r\n\r\n").expect("a response");
        assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(
            head.contains("\r\nserver: envoy") && head.contains("\r\nx-envoy-upstream-service-time: "),
            "{answer}"
        );
        let seen = Seen::in_text(body);
        assert_eq!(seen.by, "server");
        assert_eq!(seen.peer.ip(), client.v4, "the proxy dials from the pod's own address");
        assert!(seen.head.contains("x-request-id: "), "{}", seen.head);
        assert!(seen.head.contains(&format!("x-meant: {meant}\r\n")), "{}", seen.head);
    }
    assert_eq!(culvert.stat("culvert.capture.captured_outbound"), 3);
    assert_eq!(culvert.stat("culvert.capture.no_original_dst"), 0);
    assert_eq!(culvert.stat("http.outbound.downstream_rq_2xx"), 3);

    let pods = mesh.pods();
    let [report] = &pods[..] else { panic!("one pod: {pods:?}") };
    assert_eq!((report.name.as_str(), report.mode.to_string().as_str()), ("client", variant.mode));
    assert_eq!((report.outbound.as_deref(), report.inbound.as_deref()), (Some("outbound"), None));
    assert_eq!((report.counters.captured, report.counters.refused), (3, 0));
    assert!(report.addresses.contains(&client.v4.into()) && report.addresses.contains(&client.v6.into()));
    assert!(mesh.pod(&["list"]).unwrap().contains("captured 3"));
}

fn opaque(to: SocketAddr) -> Bootstrap {
    Bootstrap::default().tcp("outbound", "OUTBOUND", "service").cluster(&cluster("service", &[to]))
}

fn nc_needs_no_setting(variant: Variant) {
    let (mesh, client, server) = client_and_server(variant);
    let shouting = server.serve("[::]:0", |mut stream| {
        let mut bytes = Vec::new();
        // All of it: the client's end of sending has to come through, and the answer after it.
        stream.read_to_end(&mut bytes).unwrap();
        bytes.make_ascii_uppercase();
        stream.write_all(&bytes).unwrap();
    });
    let culvert = mesh.start(&opaque(shouting.v4), &captured(&client));
    for address in [client_view(shouting.v4), client_view(shouting.v6), client_view(NOWHERE.into())] {
        let [host, port] = &address;
        assert_eq!(client.run_with(&["nc", "-N", "-w", "30", host, port], "hello there"), "HELLO THERE");
    }
    // More than fits into any buffer on the way.
    let text = "all work and no play makes jack a dull boy\n".repeat(100_000);
    let [host, port] = client_view(shouting.v4);
    assert_eq!(client.run_with(&["nc", "-N", "-w", "30", &host, &port], &text), text.to_uppercase());
    assert_eq!(culvert.stat("tcp.outbound.downstream_cx_total"), 4);
    assert_eq!(culvert.stat("culvert.capture.captured_outbound"), 4);
    assert_eq!(mesh.counters(&client).captured, 4);
}

fn client_view(address: SocketAddr) -> [String; 2] {
    [address.ip().to_string(), address.port().to_string()]
}

fn servers_that_speak_first_are_heard(variant: Variant) {
    let (mesh, client, server) = client_and_server(variant);
    let mail = server.serve("[::]:0", |mut stream| {
        stream.write_all(b"220 ready\r\n").unwrap();
        let mut line = [0; 6];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"QUIT\r\n");
        stream.write_all(b"221 bye\r\n").unwrap();
    });
    let _culvert = mesh.start(&opaque(mail.v4), &captured(&client));
    for to in [mail.v4, mail.v6] {
        let mut talk = client.client(to);
        assert_eq!(talk.until(b"\r\n").unwrap(), b"220 ready\r\n");
        talk.send("QUIT\r\n");
        assert_eq!(talk.rest().unwrap(), b"221 bye\r\n");
    }
}

fn the_application_sees_the_destination_it_meant(variant: Variant) {
    let (mesh, client, server) = client_and_server(variant);
    let app = server.app();
    let culvert = mesh.start(&Bootstrap::of_service(&app), &captured(&client));
    let mapped = SocketAddr::new(Ipv4Addr::to_ipv6_mapped(&server.v4).into(), app.port);
    for to in [app.v4, app.v6, mapped, NOWHERE.into()] {
        let stream = client.connect(to);
        assert_eq!(stream.peer_addr().unwrap(), to, "getpeername");
        let mut talk = Client::over(stream);
        let response = talk.get("/");
        assert!(is_proxied(&response), "{to}: {response:?}");
        assert_eq!(talk.stream.peer_addr().unwrap(), to, "getpeername, later");
        // Its own end is an address of the pod.
        let own = canonical(talk.stream.local_addr().unwrap()).ip();
        assert!(own.is_loopback() || own == client.v4 || own == client.v6, "{own}");
    }
    assert_eq!(culvert.stat("culvert.capture.captured_outbound"), 4);
}

fn dialling_the_listener_itself_is_reset(variant: Variant) {
    let (mesh, client, server) = client_and_server(variant);
    let app = server.app();
    let bootstrap = Bootstrap::of_service(&app);
    let pods = [enrolled(&client, "policy: strict"), enrolled(&server, "policy: strict")];
    let culvert = mesh.start(&bootstrap, &pods);
    let own = SocketAddr::from((client.v4, 15006));
    let dialled: [(&Pod, SocketAddr); 6] = [
        (&client, ([127, 0, 0, 1], 15001).into()),
        (&client, "[::1]:15001".parse().unwrap()),
        (&client, ([127, 0, 0, 1], 15006).into()),
        (&client, own),
        // Captured on its way out, this would be an ordinary request; so it is made by the proxy's own mark.
        (&server, own),
        (&server, (client.v6, 15006).into()),
    ];
    for (n, (pod, to)) in dialled.into_iter().enumerate() {
        assert_reset(if pod.name == "server" { connect_marked(pod, to) } else { pod.try_connect(to) }, to);
        assert_eq!(culvert.stat("culvert.capture.no_original_dst"), n as u64 + 1, "{to}");
    }
    assert_eq!(mesh.counters(&client).no_original_dst, 6);
    assert_eq!(
        (app.accepted(), culvert.stat("culvert.capture.captured_outbound")),
        (0, 0),
        "nothing went on"
    );
    assert!(is_proxied(&client.get(app.v4)), "it serves on");
}

/// A request gets no answer, only a reset; it may come before `connect` returns.
fn assert_reset(connected: io::Result<TcpStream>, to: SocketAddr) {
    let read = connected.and_then(|mut stream| {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")?;
        stream.read(&mut [0; 64])
    });
    let error = read.expect_err(&format!("{to}: reset, not closed or answered")).kind();
    assert!(matches!(error, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{to}: {error}");
}

/// As the proxy itself connects.
fn connect_marked(pod: &Pod, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = pod.inside(|| Socket::new(Domain::for_address(to), Type::STREAM, None))?;
    socket.set_mark(PROXY_MARK)?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

fn what_is_excluded_passes_by(variant: Variant) {
    let (mut mesh, client, server) = client_and_server(variant);
    let (other, outsider) = (mesh.world.pod("other"), mesh.world.pod("outsider"));
    let (app, by_port, by_net) = (server.app(), server.app(), other.app());
    let (own, local) = (client.app(), client.app_on("127.0.0.1:0", "local"));
    let exclusions = format!(
        "exclude_outbound_cidrs: [{}/32, {}/128]\nexclude_outbound_ports: [{}]\nexclude_inbound_ports: [{}]",
        other.v4, other.v6, by_port.port, own.port
    );
    let bootstrap = Bootstrap::of_service(&app).exclusions(&exclusions);
    let culvert = mesh.start(&bootstrap, &[enrolled(&client, "policy: strict")]);

    let assert_direct = |from: &Pod, to: SocketAddr, by: &str| {
        let response = from.get(to);
        assert!(!is_proxied(&response), "{} to {to}: {response:?}", from.name);
        assert_eq!(Seen::from(&response).by, by, "{} to {to}", from.name);
    };
    for to in [by_port.v4, by_port.v6] {
        assert_direct(&client, to, "server");
    }
    for to in [by_net.v4, by_net.v6] {
        assert_direct(&client, to, "other");
    }
    // The pod's own loopback and own addresses.
    assert_direct(&client, ([127, 0, 0, 1], local.port).into(), "local");
    for to in [own.v4, own.v6] {
        assert_direct(&client, to, "client");
    }
    // To the pod.
    for to in [own.v4, own.v6] {
        assert_direct(&outsider, to, "client");
    }
    // By its mark.
    for to in [app.v4, app.v6] {
        let response = Client::over(connect_marked(&client, to).unwrap()).get("/");
        assert!(!is_proxied(&response) && Seen::from(&response).by == "server", "{response:?}");
    }
    let counts = || {
        let stat = |name: &str| culvert.stat(&format!("culvert.capture.{name}"));
        (stat("captured_outbound"), stat("captured_inbound"), stat("no_original_dst"))
    };
    assert_eq!(counts(), (0, 0, 0));
    assert_eq!(mesh.counters(&client).captured, 0);
    assert!(mesh.counters(&client).bypassed >= 6, "{:?}", mesh.counters(&client));
    // Everything else is captured all the while.
    for to in [app.v4, app.v6] {
        assert!(is_proxied(&client.get(to)));
    }
    assert_eq!(counts(), (2, 0, 0));
}
