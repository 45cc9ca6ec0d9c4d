//! Culvert is killed under load, and started again.

use std::{io::ErrorKind, time::Instant};

use crate::support::{
    culvert::Culvert,
    load::{Attempt, Load, between},
    mesh::{Bootstrap, Mesh, Variant, enrolled, is_proxied, wait_for},
    netns::{App, Pod, Seen},
};

tests!(ebpf: permissive_pods_are_reached_directly);
tests!(ebpf, iptables: strict_pods_are_refused_until_the_next_start, repair_gives_back_what_a_dead_one_took);

/// Client and server, both captured with this policy, and somebody outside.
struct Scene {
    mesh: Mesh,
    client: Pod,
    server: Pod,
    outsider: Pod,
    app: App,
    bootstrap: Bootstrap,
    pods: [String; 2],
}

fn scene(variant: Variant, policy: &str) -> Scene {
    let mut mesh = Mesh::new(variant);
    let (client, server) = (mesh.world.pod("client"), mesh.world.pod("server"));
    let outsider = mesh.world.pod("outsider");
    let app = server.app();
    let bootstrap = Bootstrap::of_service(&app);
    let pods = [&client, &server].map(|pod| enrolled(pod, &format!("policy: {policy}")));
    Scene { mesh, client, server, outsider, app, bootstrap, pods }
}

fn is_direct(attempt: &Attempt) -> bool {
    attempt.result.as_ref().is_ok_and(|response| response.status == 200 && !is_proxied(response))
}

fn is_captured(attempt: &Attempt) -> bool {
    attempt.result.as_ref().is_ok_and(|response| response.status == 200 && is_proxied(response))
}

fn is_refused(attempt: &Attempt) -> bool {
    attempt.result.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// The proxy's own answer: the pod behind it is not captured yet, and strict.
fn is_unavailable(attempt: &Attempt) -> bool {
    attempt.result.as_ref().is_ok_and(|response| response.status == 503)
}

fn is_reset(attempt: &Attempt) -> bool {
    attempt.result.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

/// What happened, and when.
struct Times {
    live: Instant,
    killed: Instant,
    reaped: Instant,
    restarted: Instant,
    live_again: Instant,
    end: Instant,
}

/// Kills culvert and starts it again under these loads, with enough requests in each phase. What came of them.
fn kill_and_restart(
    scene: &Scene,
    loads: Vec<Load>,
    meanwhile: impl Fn(),
) -> (Times, Vec<Vec<Attempt>>, Culvert) {
    let sent = |requests: usize| loads.iter().for_each(|load| load.wait_for(requests));
    let mut culvert = scene.mesh.start(&scene.bootstrap, &scene.pods);
    let live = Instant::now();
    sent(30);
    let killed = Instant::now();
    culvert.kill();
    let reaped = Instant::now();
    sent(100);
    meanwhile();
    let restarted = Instant::now();
    let culvert = scene.mesh.start(&scene.bootstrap, &scene.pods);
    let live_again = Instant::now();
    sent(30);
    let end = Instant::now();
    let attempts = loads.into_iter().map(Load::stop).collect();
    let pods = scene.mesh.pods();
    assert!(pods.len() == 2 && pods.iter().all(|pod| pod.pending.is_none()), "no pod needs repair: {pods:?}");
    (Times { live, killed, reaped, restarted, live_again, end }, attempts, culvert)
}

/// That all attempts that fell between two moments were like this.
fn assert_all(
    attempts: &[Attempt],
    from: Instant,
    to: Instant,
    what: &str,
    holds: impl Fn(&Attempt) -> bool,
) {
    let some = between(attempts, from, to);
    let others: Vec<_> = some.iter().filter(|attempt| !holds(attempt)).collect();
    let first = others.first().map(|attempt| (attempt.started - from, attempt.ended - from, &attempt.result));
    assert!(others.is_empty(), "{} of {} are not {what}, the first: {first:?}", others.len(), some.len());
}

/// That attempts were like this after the kill, all from the first one on. The kernel may close the dead process's
/// listeners a moment after the process is reaped; who meets one of them is reset.
fn assert_settles(attempts: &[Attempt], times: &Times, what: &str, holds: impl Fn(&Attempt) -> bool) {
    let after = attempts.iter().filter(|it| it.started > times.killed && holds(it));
    let first = after.min_by_key(|it| it.started).unwrap_or_else(|| panic!("no attempt is {what}"));
    println!(
        "{what} {:?} after the kill; reaped after {:?}",
        first.ended - times.killed,
        times.reaped - times.killed
    );
    let (first, restarted) = (first.started, times.restarted);
    assert_all(attempts, times.reaped, restarted, "reset at worst", |it| is_reset(it) || holds(it));
    assert_all(attempts, first, restarted, what, |it| it.started < first || holds(it));
}

fn permissive_pods_are_reached_directly(variant: Variant) {
    let scene = scene(variant, "permissive");
    let Scene { client, server, outsider, app, .. } = &scene;
    let loads = vec![Load::start(2, client, app.v4), Load::start(2, outsider, app.v4)];
    let (times, all, culvert) = kill_and_restart(&scene, loads, || {
        for pod in [client, outsider] {
            let response = pod.get(app.v6);
            assert!(!is_proxied(&response));
            assert_eq!(Seen::from(&response).peer.ip(), pod.v6);
        }
    });
    for attempts in &all {
        assert_all(attempts, times.live, times.killed, "captured", is_captured);
        assert_settles(attempts, &times, "direct", is_direct);
        // While it starts a connection may go either way, but not fail.
        assert_all(attempts, times.restarted, times.end, "answered", |it| is_direct(it) || is_captured(it));
        assert_all(attempts, times.live_again, times.end, "captured again", is_captured);
    }
    assert!(culvert.stat("culvert.capture.captured_outbound") >= 30);
    assert!(scene.mesh.counters(server).captured >= 60);
}

fn strict_pods_are_refused_until_the_next_start(variant: Variant) {
    let scene = scene(variant, "strict");
    let Scene { client, outsider, app, .. } = &scene;
    let loads = vec![Load::start(2, client, app.v4), Load::start(2, outsider, app.v4)];
    let (times, all, culvert) = kill_and_restart(&scene, loads, || {
        for pod in [client, outsider] {
            assert_eq!(pod.try_get(app.v6).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
    });
    for attempts in &all {
        assert_all(attempts, times.live, times.killed, "captured", is_captured);
        assert_settles(attempts, &times, "refused", is_refused);
        // Never past the proxy.
        assert_all(attempts, times.killed, times.end, "captured or not at all", |it| !is_direct(it));
        assert_all(attempts, times.restarted, times.end, "captured or refused", |it| {
            is_refused(it) || is_captured(it) || is_unavailable(it)
        });
        assert_all(attempts, times.live_again, times.end, "captured again", is_captured);
    }
    assert!(culvert.stat("culvert.capture.captured_outbound") >= 30);
}

fn repair_gives_back_what_a_dead_one_took(variant: Variant) {
    let Scene { mesh, client, server, outsider, app, bootstrap, pods } = scene(variant, "strict");
    let before = [client.footprint(), server.footprint()];
    let mut culvert = mesh.start(&bootstrap, &pods);
    assert!(is_proxied(&client.get(app.v4)));
    culvert.kill();
    for pod in [&client, &outsider] {
        wait_for("the refusal", || {
            pod.try_get(app.v4).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
        });
    }
    // One pod first: the other stays closed.
    let said = mesh.pod(&["repair", "client"]).unwrap();
    assert!(said.contains("pod client: its traffic is its own again"), "{said}");
    assert_eq!(
        client.try_get(app.v4).unwrap_err().kind(),
        ErrorKind::ConnectionRefused,
        "by the server's pod"
    );
    let other = client.app();
    assert!(!is_proxied(&outsider.get(other.v4)));
    let said = mesh.pod(&["repair"]).unwrap();
    assert!(said.contains("pod server: "), "{said}");
    for (pod, to) in [(&client, app.v4), (&client, app.v6), (&outsider, app.v4), (&outsider, app.v6)] {
        let response = pod.get(to);
        assert!(!is_proxied(&response));
        assert_eq!(Seen::from(&response).by, "server");
    }
    assert_eq!([client.footprint(), server.footprint()], before);
    assert!(!mesh.world.bpf_dir.exists(), "nothing is pinned any more");
    // There is nothing left to do, and the next start takes over as if nothing had been.
    assert_eq!(mesh.pod(&["repair"]).unwrap(), "");
    let _culvert = mesh.start(&bootstrap, &pods);
    assert!(is_proxied(&client.get(app.v4)));
}
