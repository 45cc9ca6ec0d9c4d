//! Bytes between pods of one node skip TCP, and nobody can tell.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    thread,
};

use crate::support::{
    client::Client,
    culvert::{Culvert, cluster},
    mesh::{Bootstrap, Mesh, Variant, enrolled, is_proxied, wait_for},
    netns::{App, Pod, Seen},
    upstream::{ok, read_request},
};

tests!(ebpf: every_hop_of_a_request_skips_the_network, connections_for_one_request_do_not_enter,
    pods_and_listeners_may_opt_out, requests_and_bodies_are_the_same_either_way,
    opaque_streams_are_the_same_either_way, a_slow_client_loses_nothing, a_kill_leaves_nothing_behind);

/// Client and server, both captured.
struct Scene {
    mesh: Mesh,
    client: Pod,
    server: Pod,
}

impl Scene {
    fn new(variant: Variant) -> Self {
        let mut mesh = Mesh::new(variant);
        let (client, server) = (mesh.world.pod("client"), mesh.world.pod("server"));
        Self { mesh, client, server }
    }

    fn start(&self, splice: &str, bootstrap: &Bootstrap, fields: &str) -> Culvert {
        let pods = [&self.client, &self.server].map(|pod| enrolled(pod, &format!("policy: strict{fields}")));
        let path = self.mesh.world.dir.path().join("pods.yaml");
        fs::write(&path, format!("pods:\n{}", pods.concat())).unwrap();
        self.mesh.start_with(bootstrap, &["--splice", splice, "--pods", &path.display().to_string()])
    }
}

/// Outbound and inbound listeners that pass bytes on.
fn opaque(app: &App) -> Bootstrap {
    Bootstrap::default()
        .tcp("outbound", "OUTBOUND", "service")
        .tcp("inbound", "INBOUND", "app")
        .cluster(&cluster("service", &[app.v4]))
        .cluster(&cluster("app", &[([127, 0, 0, 1], app.port).into()]))
}

/// Packets received by all devices of a pod.
fn packets(pod: &Pod) -> u64 {
    let text = pod.inside(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    let counts = text
        .lines()
        .filter_map(|line| line.split_once(':')?.1.split_whitespace().nth(1)?.parse::<u64>().ok());
    counts.sum::<u64>()
}

fn bytes_of(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| random.u8(..)).collect()
}

fn every_hop_of_a_request_skips_the_network(variant: Variant) {
    let scene = Scene::new(variant);
    let app = scene.server.app();
    let culvert = scene.start("on", &Bootstrap::of_service(&app), "");
    let mut talk = scene.client.client(app.v4);
    let mut ask = |requests: usize| {
        for _ in 0..requests {
            let response = talk.get("/");
            assert!(is_proxied(&response), "{response:?}");
            assert_eq!(Seen::from(&response).peer.ip(), scene.client.v4, "the address survives");
        }
    };
    ask(10);
    let before = packets(&scene.client) + packets(&scene.server);
    let redirected = culvert.stat("culvert.splice.rx_bytes_total");
    ask(300);
    let went = packets(&scene.client) + packets(&scene.server) - before;
    assert!(went < 300, "{went} packets for 300 requests over three hops");
    // To the first proxy, from it to the second and back, and from the application: four ways of at least 30 bytes.
    assert!(culvert.stat("culvert.splice.rx_bytes_total") - redirected > 300 * 4 * 30);
    assert!(culvert.stat("culvert.splice.tx_bytes_total") > 300 * 2 * 30);
    assert_eq!(culvert.stat("culvert.splice.cx_active"), 4);
    assert_eq!(culvert.stat("culvert.splice.fallback_miscount"), 0);
    assert_eq!([&scene.client, &scene.server].map(|pod| scene.mesh.counters(pod).spliced), [2, 2]);
    drop(talk);
    wait_for("the end of the client's connection", || culvert.stat("culvert.splice.cx_active") < 4);
    assert!(scene.mesh.counters(&scene.client).spliced_bytes_in > 300 * 30);
}

fn connections_for_one_request_do_not_enter(variant: Variant) {
    let scene = Scene::new(variant);
    let app = scene.server.app();
    let culvert = scene.start("on", &Bootstrap::of_service(&app), "");
    assert!(is_proxied(&scene.client.get(app.v4)));
    assert_eq!(culvert.stat("culvert.splice.cx_total"), 0);
}

fn pods_and_listeners_may_opt_out(variant: Variant) {
    let scene = Scene::new(variant);
    let app = scene.server.app();
    let bootstrap = Bootstrap::of_service(&app);
    let ask = |requests: usize| {
        let mut talk = scene.client.client(app.v4);
        (0..requests).for_each(|_| assert!(is_proxied(&talk.get("/"))));
    };
    for mode in ["off", "auto"] {
        // Until a self-test says otherwise.
        let culvert = scene.start(mode, &bootstrap, "");
        ask(5);
        assert_eq!(culvert.stat("culvert.splice.cx_total"), 0, "--splice {mode}");
    }
    let culvert = scene.start("on", &bootstrap, ", splice: false");
    ask(5);
    assert_eq!(culvert.stat("culvert.splice.cx_total"), 0, "pods");
    drop(culvert);
    let own = "{filter_metadata: {culvert: {splice: false}}}";
    let culvert =
        scene.start("on", &bootstrap.clone().metadata("outbound", own).metadata("inbound", own), "");
    ask(5);
    // What the proxies make themselves is not the listeners'.
    let made = culvert.stat("culvert.splice.cx_total");
    drop(culvert);
    let culvert = scene.start("on", &bootstrap, "");
    ask(5);
    assert_eq!(culvert.stat("culvert.splice.cx_total"), made + 2, "listeners");
}

/// Requests with bodies of many sizes on one connection; the answers.
fn exchange(scene: &Scene, app: &App) -> Vec<(u16, Vec<u8>)> {
    let mut client: Client = scene.client.client(app.v4);
    let lens = [0, 1, 10, 1000, 4096, 16_384, 65_536, 100_000, 262_144, 300_000, 1_000_000, 5, 700, 20];
    let mut answers = Vec::new();
    for (seed, len) in lens.into_iter().chain(lens).chain([17; 100]).enumerate() {
        let body = bytes_of(seed as u64, len);
        let head = format!("POST /{seed} HTTP/1.1\r\nhost: test\r\ncontent-length: {len}\r\n\r\n");
        client.send([head.as_bytes(), &body].concat());
        let response = client.response("POST");
        assert!(response.body == body, "request {seed} of {len} bytes");
        answers.push((response.status, response.body));
    }
    // Two at once.
    client.send("GET /a HTTP/1.1\r\nhost: test\r\n\r\nGET /b HTTP/1.1\r\nhost: test\r\n\r\n");
    answers.extend((0..2).map(|_| client.response("GET")).map(|response| (response.status, response.body)));
    answers
}

fn requests_and_bodies_are_the_same_either_way(variant: Variant) {
    let scene = Scene::new(variant);
    let app = scene.server.serve("[::]:0", |mut stream| {
        while let Some((_, body)) = read_request(&mut stream) {
            if stream.write_all(&ok(&body)).is_err() {
                return;
            }
        }
    });
    let bootstrap = Bootstrap::of_service(&app);
    let culvert = scene.start("off", &bootstrap, "");
    let plain = exchange(&scene, &app);
    drop(culvert);
    let culvert = scene.start("on", &bootstrap, "");
    assert!(exchange(&scene, &app) == plain);
    assert!(culvert.stat("culvert.splice.rx_bytes_total") > 100_000);
    assert_eq!(culvert.stat("culvert.splice.fallback_miscount"), 0);
}

/// Talks in both directions at once in pieces of random sizes, then ends them in this order; what each end has read.
fn talk(scene: &Scene, app: &App, seed: u64, client_first: bool) -> (Vec<u8>, Vec<u8>) {
    let mut stream = scene.client.connect(app.v4);
    let sent = bytes_of(seed, 2_000_000);
    // The server is told how the conversation goes.
    let mut random = fastrand::Rng::with_seed(seed);
    stream.write_all(&[u8::from(client_first)]).unwrap();
    thread::scope(|scope| {
        let mut reader = stream.try_clone().unwrap();
        let read = scope.spawn(move || {
            let mut all = Vec::new();
            read_all(&mut reader, &mut all);
            all
        });
        let mut write = |bytes: &[u8]| {
            let mut rest = bytes;
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(random.usize(1..20_000)));
                stream.write_all(now).unwrap();
                rest = later;
            }
            stream.shutdown(Shutdown::Write).unwrap();
        };
        if client_first {
            write(&sent);
            (sent.clone(), read.join().unwrap())
        } else {
            let read = read.join().unwrap();
            write(&sent);
            (sent.clone(), read)
        }
    })
}

/// Reads to the end, or until the connection fails. The kernel wakes a reader of a spliced socket for nothing now and then,
/// and it is told that nothing is there.
fn read_all(stream: &mut TcpStream, all: &mut Vec<u8>) {
    while stream.read_to_end(all).is_err_and(|e| e.kind() == ErrorKind::WouldBlock) {}
}

/// Sends back what it reads when the other end has finished, or a text of its own before that.
fn converse(mut stream: TcpStream) {
    let mut first = [0];
    let mut all = Vec::new();
    while let Err(error) = stream.read_exact(&mut first) {
        if error.kind() != ErrorKind::WouldBlock {
            return;
        }
    }
    if first == [1] {
        read_all(&mut stream, &mut all);
        let _ = stream.write_all(&all);
        return;
    }
    for chunk in bytes_of(1, 1_500_000).chunks(7_000) {
        if stream.write_all(chunk).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    read_all(&mut stream, &mut all);
}

fn opaque_streams_are_the_same_either_way(variant: Variant) {
    let scene = Scene::new(variant);
    let app = scene.server.serve("[::]:0", converse);
    for splice in ["off", "on"] {
        let culvert = scene.start(splice, &opaque(&app), "");
        for seed in 0..4 {
            let (sent, read) = talk(&scene, &app, seed, true);
            assert!(read == sent, "splice {splice}, seed {seed}, the client ends first");
            let (_, read) = talk(&scene, &app, seed, false);
            assert!(read == bytes_of(1, 1_500_000), "splice {splice}, seed {seed}, the server ends first");
        }
        let redirected = culvert.stat("culvert.splice.rx_bytes_total");
        assert_eq!(redirected > 0, splice == "on", "{redirected}");
        assert_eq!(culvert.stat("culvert.splice.fallback_miscount"), 0);
    }
}

fn a_slow_client_loses_nothing(variant: Variant) {
    const LEN: usize = 20 << 20;
    let scene = Scene::new(variant);
    let app = scene.server.serve("[::]:0", |mut stream| {
        let mut name = [0; 4];
        // Some rounds, so that all sockets enter; then much at once, and the end.
        for _ in 0..5 {
            if stream.read_exact(&mut name).is_err() || stream.write_all(&name).is_err() {
                return;
            }
        }
        for chunk in bytes_of(9, LEN).chunks(9_000) {
            if stream.write_all(chunk).is_err() {
                return;
            }
        }
    });
    let culvert = scene.start("on", &opaque(&app), "");
    let mut stream = scene.client.connect(app.v4);
    let mut answer = [0; 4];
    for _ in 0..5 {
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut answer).unwrap();
    }
    // Nothing is read until all that can wait somewhere does.
    wait_for("the way to fill up", || {
        let before = culvert.stat("tcp.outbound.downstream_cx_tx_bytes_total");
        thread::sleep(std::time::Duration::from_millis(100));
        let now = culvert.stat("tcp.outbound.downstream_cx_tx_bytes_total");
        now > 300_000 && now == before
    });
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert!(all == bytes_of(9, LEN));
    assert_eq!(culvert.stat("culvert.splice.fallback_miscount"), 0);
    assert!(culvert.stat("culvert.splice.fallback_limit") > 0);
    // Most of it stayed within the limit, wherever it was slow.
    assert!(culvert.stat("culvert.splice.tx_bytes_total") < LEN as u64);
}

fn a_kill_leaves_nothing_behind(variant: Variant) {
    let scene = Scene::new(variant);
    let app = scene.server.app();
    let bootstrap = Bootstrap::of_service(&app);
    for _ in 0..2 {
        let mut culvert = scene.start("on", &bootstrap, "");
        let mut talk = scene.client.client(app.v4);
        (0..20).for_each(|_| assert!(is_proxied(&talk.get("/"))));
        assert_eq!(culvert.stat("culvert.splice.cx_active"), 4);
        culvert.kill();
        // Connections end; they do not stand still.
        assert!(talk.try_get("/").is_err());
    }
    let culvert = scene.start("on", &bootstrap, "");
    let mut clients: Vec<Client> = (0..20).map(|_| scene.client.client(app.v4)).collect();
    for _ in 0..5 {
        clients.iter_mut().for_each(|client| assert!(is_proxied(&client.get("/"))));
    }
    // An application that is gone in the middle of a request.
    clients.iter_mut().take(10).for_each(|client| client.send("GET / HTTP/1.1\r\nhost: te"));
    clients.drain(..10);
    clients.iter_mut().for_each(|client| assert!(is_proxied(&client.get("/"))));
    drop(clients);
    wait_for("the ends of all connections", || culvert.stat("culvert.splice.cx_active") <= 40);
    assert!(is_proxied(&scene.client.get(app.v4)));
}
