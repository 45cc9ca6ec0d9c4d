//! Culvert is killed and started again while a thousand connections idle and two hundred are busy.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use aya::{maps::MapInfo, programs::loaded_programs};

use crate::support::{
    client::Client,
    mesh::{Bootstrap, Mesh, Variant, enrolled, is_proxied, wait_for},
    netns::Pod,
};

tests!(ebpf: captured_pods_recover_by_themselves);

const IDLE: usize = 1000;
const BUSY: usize = 200;
/// Between two requests of a busy connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Keep-alive connections that are never without a request for long. A connection that ends is replaced, as any
/// client's would be.
struct Crowd {
    stop: Arc<AtomicBool>,
    /// Requests answered through culvert, by connection.
    captured: Arc<[AtomicUsize]>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Crowd {
    fn start(from: &Pod, to: SocketAddr) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let captured: Arc<[AtomicUsize]> = (0..BUSY).map(|_| AtomicUsize::new(0)).collect();
        let threads = (0..BUSY).map(|index| {
            let (stop, captured, from) = (stop.clone(), captured.clone(), from.clone());
            thread::spawn(move || {
                let mut client = None;
                while !stop.load(Ordering::SeqCst) {
                    match ask(&mut client, &from, to) {
                        Ok(true) => _ = captured[index].fetch_add(1, Ordering::SeqCst),
                        // Past culvert, which is dead: the connection stays what it is, so another one is tried.
                        Ok(false) | Err(_) => client = None,
                    }
                    thread::sleep(PAUSE);
                }
            })
        });
        let threads = threads.collect();
        Self { stop, captured, threads }
    }

    /// Waits until each of them has been answered through culvert twice from now on.
    fn all_captured(&self) {
        let counts = || self.captured.iter().map(|count| count.load(Ordering::SeqCst));
        let before: Vec<usize> = counts().collect();
        wait_for("every busy connection to be answered", || {
            counts().zip(&before).all(|(now, before)| now >= before + 2)
        });
    }

    fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.into_iter().for_each(|it| it.join().expect("a busy client"));
    }
}

/// One request, on the connection that is there or a new one. Whether culvert answered.
fn ask(client: &mut Option<Client>, from: &Pod, to: SocketAddr) -> io::Result<bool> {
    if client.is_none() {
        *client = Some(Client::over(from.try_connect(to)?));
    }
    let response = client.as_mut().expect("a connection").try_get("/")?;
    Ok(response.status == 200 && is_proxied(&response))
}

/// The programs that use a map of this instance, with their names, how many there are of each.
fn programs(mesh: &Mesh) -> BTreeMap<String, usize> {
    let maps = std::fs::read_dir(mesh.world.bpf_dir.join("maps")).expect("pinned maps");
    let own: Vec<u32> = maps
        .map(|entry| MapInfo::from_pin(entry.expect("a pinned map").path()).expect("a map").id())
        .collect();
    let mut found = BTreeMap::new();
    // Programs of others come and go meanwhile.
    for program in loaded_programs().flatten() {
        let used = program.map_ids().ok().flatten().unwrap_or_default();
        if used.iter().any(|id| own.contains(id)) {
            *found.entry(program.name_as_str().unwrap_or_default().to_owned()).or_default() += 1;
        }
    }
    found
}

/// The pins, with the identity of each map.
fn maps(mesh: &Mesh) -> BTreeMap<String, u32> {
    let maps = std::fs::read_dir(mesh.world.bpf_dir.join("maps")).expect("pinned maps");
    maps.map(|entry| {
        let entry = entry.expect("a pinned map");
        let id = MapInfo::from_pin(entry.path()).expect("a map").id();
        (entry.file_name().into_string().expect("a name"), id)
    })
    .collect()
}

fn captured_pods_recover_by_themselves(variant: Variant) {
    let mut mesh = Mesh::new(variant);
    let (client, server) = (mesh.world.pod("client"), mesh.world.pod("server"));
    let app = server.app();
    let bootstrap = Bootstrap::of_service(&app);
    let pods = [&client, &server].map(|pod| enrolled(pod, "policy: permissive"));
    let mut culvert = mesh.start(&bootstrap, &pods);
    let mut idle: Vec<Option<Client>> = (0..IDLE).map(|_| None).collect();
    for connection in &mut idle {
        assert!(ask(connection, &client, app.v4).expect("an answer"));
    }
    let crowd = Crowd::start(&client, app.v4);
    crowd.all_captured();
    let (programs_before, maps_before) = (programs(&mesh), maps(&mesh));
    assert!(programs_before.len() >= 6, "{programs_before:?}");

    culvert.kill();
    let culvert = mesh.start(&bootstrap, &pods);
    crowd.all_captured();
    for connection in &mut idle {
        let first = ask(connection, &client, app.v4);
        assert!(first.is_err(), "its proxy is dead: {first:?}");
        *connection = None;
        assert!(ask(connection, &client, app.v4).expect("an answer"));
    }
    // The maps are the same ones; programs that were replaced are freed a moment later.
    assert_eq!(maps(&mesh), maps_before);
    wait_for("the old programs to go", || programs(&mesh) == programs_before);
    crowd.stop();
    // A busy one may have gone past culvert once more while it started, as far as the server's pod.
    assert!(culvert.stat("culvert.capture.captured_outbound") >= IDLE as u64);
}
