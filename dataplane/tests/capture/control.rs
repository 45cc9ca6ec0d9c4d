//! Pods that come and go while culvert runs, and what is left when it stops.

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    client::Client,
    load::{Load, between},
    mesh::{Bootstrap, Mesh, Variant, enrolled, is_proxied, wait_for},
    netns::{App, Pod, Seen},
};

tests!(ebpf, iptables: pods_come_and_go, open_connections_outlive_a_removal, connections_under_way_are_left_alone, what_is_wrong_with_a_pod_is_said, what_was_broken_is_repaired,
    repairing_what_works_disturbs_nothing,
    stopping_leaves_strict_pods_closed, nothing_is_left_behind);
tests!(ebpf: coming_and_going_loses_no_request, stopping_leaves_permissive_pods_direct);

fn setup(variant: Variant) -> (Mesh, Pod, Pod, App) {
    let mut mesh = Mesh::new(variant);
    let (client, server) = (mesh.world.pod("client"), mesh.world.pod("server"));
    let app = server.app();
    (mesh, client, server, app)
}

fn assert_proxied(pod: &Pod, to: SocketAddr) {
    let response = pod.get(to);
    assert!(is_proxied(&response) && response.status == 200, "{response:?}");
}

fn assert_direct(pod: &Pod, to: SocketAddr) {
    let response = pod.get(to);
    assert!(!is_proxied(&response), "{response:?}");
    let own: IpAddr = if to.is_ipv4() { pod.v4.into() } else { pod.v6.into() };
    assert_eq!(Seen::from(&response).peer.ip(), own);
}

fn pods_come_and_go(variant: Variant) {
    let (mesh, client, _server, app) = setup(variant);
    let bootstrap = Bootstrap::of_service(&app).tcp("opaque", "UNSPECIFIED", "service");
    let culvert = mesh.start_with(&bootstrap, &[]);
    assert_eq!(mesh.socket_mode(), 0o600);
    assert!(mesh.pods().is_empty());
    assert_direct(&client, app.v4);

    let netns = client.path().display().to_string();
    let add = ["add", "--netns", &netns, "--name", "client", "--inbound", "off"];
    let captured = || culvert.stat("culvert.capture.captured_outbound");
    for (by_name, keeps_nat) in [(true, false), (false, true)] {
        if keeps_nat {
            let own = "iptables-nft -t nat -A OUTPUT -p tcp -d 192.0.2.1 -j DNAT --to-destination 192.0.2.2";
            client.run(&own.split(' ').collect::<Vec<_>>());
        }
        let before = captured();
        assert!(mesh.pod(&add).unwrap().starts_with("client\t"));
        assert_proxied(&client, app.v4);
        mesh.pod(&add).expect("adding it again just as it is changes nothing");
        assert_proxied(&client, app.v6);
        let mut open = client.client(app.v4);
        assert!(is_proxied(&open.get("/")));
        assert_eq!(captured() - before, 3);
        assert_eq!(mesh.counters(&client).captured, 3, "counted since it was added");

        let which: &[&str] = if by_name { &["client"] } else { &["--netns", &netns] };
        assert_eq!(mesh.pod(&[&["remove"], which].concat()).unwrap(), "pod client: removed\n");
        assert!(mesh.pods().is_empty());
        assert_direct(&client, app.v4);
        assert_direct(&client, app.v6);
        // Also when culvert has looked after what it left in the meantime, as it does every second.
        for _ in 0..4 {
            assert!(is_proxied(&open.get("/")), "open connections go on");
            thread::sleep(Duration::from_millis(400));
        }
        wait_for("nothing is kept for a pod that is gone", || {
            culvert.stat("cluster.service.upstream_cx_active") == 0
        });
        assert_eq!(captured() - before, 3);
    }

    // By a listener that is named, and speaks no HTTP.
    assert!(mesh.pod(&[&add[..], &["--outbound", "opaque"]].concat()).unwrap().contains("outbound opaque"));
    assert_direct(&client, app.v4);
    assert_eq!((mesh.counters(&client).captured, culvert.stat("tcp.opaque.downstream_cx_total")), (1, 1));
}

fn open_connections_outlive_a_removal(variant: Variant) {
    let (mesh, client, server, app) = setup(variant);
    let _culvert = mesh.start_with(&Bootstrap::of_service(&app), &[]);
    let before = server.footprint();
    let netns = server.path().display().to_string();
    mesh.pod(&["add", "--netns", &netns, "--name", "server", "--outbound", "off"]).unwrap();
    let mut open = client.client(app.v4);
    let ask = |open: &mut Client| {
        let response = open.get("/");
        assert!(is_proxied(&response), "{response:?}");
        assert_eq!(Seen::from(&response).peer.ip(), client.v4, "the client's own address");
    };
    ask(&mut open);
    mesh.pod(&["remove", "server"]).unwrap();
    for _ in 0..4 {
        ask(&mut open);
        thread::sleep(Duration::from_millis(400));
    }
    assert_ne!(server.footprint(), before, "what carries them is still there");
    // Captured again and removed again while they are open.
    mesh.pod(&["add", "--netns", &netns, "--name", "again", "--outbound", "off"]).unwrap();
    ask(&mut open);
    mesh.pod(&["remove", "again"]).unwrap();
    ask(&mut open);
    drop(open);
    wait_for("nothing to be left", || server.footprint() == before);
}

fn coming_and_going_loses_no_request(variant: Variant) {
    let (mut mesh, client, server, app) = setup(variant);
    let outsider = mesh.world.pod("outsider");
    let _culvert = mesh.start_with(&Bootstrap::of_service(&app), &[]);
    let start = Instant::now();
    let loads = [&client, &outsider].map(|pod| Load::start(2, pod, app.v4));
    for policy in ["strict", "permissive", "strict"] {
        for pod in [&client, &server] {
            let netns = pod.path().display().to_string();
            mesh.pod(&["add", "--netns", &netns, "--name", &pod.name, "--policy", policy]).unwrap();
            loads.iter().for_each(|load| load.wait_for(10));
        }
        for pod in [&client, &server] {
            mesh.pod(&["remove", &pod.name]).unwrap();
            loads.iter().for_each(|load| load.wait_for(10));
        }
    }
    let end = Instant::now();
    for load in loads {
        let attempts = load.stop();
        let of_load = between(&attempts, start, end);
        assert!(of_load.iter().any(|attempt| attempt.result.as_ref().is_ok_and(is_proxied)));
        for attempt in of_load {
            assert!(
                attempt.result.as_ref().is_ok_and(|response| response.status == 200),
                "{:?}",
                attempt.result
            );
        }
    }
}

fn connections_under_way_are_left_alone(variant: Variant) {
    let (mut mesh, client, server, app) = setup(variant);
    let outsider = mesh.world.pod("outsider");
    let _culvert = mesh.start_with(&Bootstrap::of_service(&app), &[]);
    let mut open = [&client, &outsider, &server]
        .map(|pod| [pod.client(app.v4), pod.client(app.v6)])
        .into_iter()
        .flatten()
        .collect::<Vec<_>>();
    let mut ask = || {
        for talk in &mut open {
            let response = talk.get("/");
            assert!(!is_proxied(&response) && response.status == 200, "{response:?}");
        }
    };
    ask();
    for pod in [&client, &server] {
        let netns = pod.path().display().to_string();
        mesh.pod(&["add", "--netns", &netns, "--name", &pod.name]).unwrap();
        ask();
    }
    assert_proxied(&client, app.v4);
    assert_proxied(&outsider, app.v4);
    ask();
    for pod in [&client, &server] {
        mesh.pod(&["remove", &pod.name]).unwrap();
        ask();
    }
}

fn what_is_wrong_with_a_pod_is_said(variant: Variant) {
    let (mesh, client, server, app) = setup(variant);
    let _culvert = mesh.start(&Bootstrap::of_service(&app), &[enrolled(&client, "policy: strict")]);
    let (taken, free) = (client.path().display().to_string(), server.path().display().to_string());
    let own = "/proc/self/ns/net";
    let cases: [(&[&str], &str); 8] = [
        (
            &["add", "--netns", "/run/netns/none", "--name", "x"],
            "pod x: netns: cannot open /run/netns/none: no such",
        ),
        (
            &["add", "--netns", own, "--name", "x"],
            "pod x: netns: /proc/self/ns/net is the host's network namespace",
        ),
        (
            &["add", "--netns", &taken, "--name", "x"],
            "pod x: netns: this is the network namespace of pod client",
        ),
        (
            &["add", "--netns", &free, "--name", "client"],
            "pod client: a pod of this name is enrolled already",
        ),
        (
            &["add", "--netns", &free, "--name", "x", "--outbound", "y"],
            "pod x: outbound: no listener is called \"y\"",
        ),
        (
            &["add", "--netns", &free, "--name", "x", "--cgroup", "/etc"],
            "pod x: cgroup: /etc is not a directory of a",
        ),
        (&["remove", "x"], "pod x: not enrolled"),
        (&["repair", "x"], "pod x: not enrolled"),
    ];
    for (arguments, reason) in cases {
        let said = mesh.pod(arguments).expect_err("refused");
        assert!(said.starts_with(&format!("culvert: {reason}")), "{arguments:?}: {said}");
    }
    if !variant.is_ebpf() {
        let said = mesh.pod(&["add", "--netns", &free, "--name", "x", "--policy", "permissive"]).unwrap_err();
        assert!(said.contains("pod x: policy: permissive needs --capture ebpf"), "{said}");
    }
    assert_eq!(mesh.pods().len(), 1, "{:?}", mesh.pods());
    assert_proxied(&client, app.v4);
    assert_direct(&server, app.v4);
}

fn what_was_broken_is_repaired(variant: Variant) {
    let (mesh, client, _server, app) = setup(variant);
    let _culvert = mesh.start(&Bootstrap::of_service(&app), &[enrolled(&client, "policy: strict")]);
    if variant.is_ebpf() {
        for pin in fs::read_dir(mesh.world.bpf_dir.join("links")).unwrap() {
            fs::remove_file(pin.unwrap().path()).unwrap();
        }
    } else {
        for program in ["iptables-nft", "ip6tables-nft"] {
            client.run(&[program, "-t", "nat", "-F", "OUTPUT"]);
        }
    }
    // What was pinned is detached a moment after its pin is gone.
    wait_for("the damage", || !is_proxied(&client.get(app.v4)));
    // What is missing of the pod, then of all that pods share.
    if !variant.is_ebpf() {
        mesh.pod(&["repair", "client"]).unwrap();
        assert_proxied(&client, app.v6);
    }
    for _ in 0..2 {
        assert_eq!(mesh.pod(&["repair"]).unwrap(), "pod client: set up anew\n");
        assert_proxied(&client, app.v4);
        assert_proxied(&client, app.v6);
    }
}

fn repairing_what_works_disturbs_nothing(variant: Variant) {
    let (mut mesh, client, server, app) = setup(variant);
    let outsider = mesh.world.pod("outsider");
    let pods = [&client, &server].map(|pod| enrolled(pod, "policy: strict"));
    let _culvert = mesh.start(&Bootstrap::of_service(&app), &pods);
    let start = Instant::now();
    let loads = [&client, &outsider].map(|pod| Load::start(2, pod, app.v4));
    for arguments in [&["repair"][..], &["repair", "client"], &["repair", "server"], &["repair"]] {
        loads.iter().for_each(|load| load.wait_for(10));
        mesh.pod(arguments).unwrap();
    }
    loads.iter().for_each(|load| load.wait_for(30));
    let end = Instant::now();
    for load in loads {
        for attempt in between(&load.stop(), start, end) {
            assert!(attempt.result.as_ref().is_ok_and(is_proxied), "{:?}", attempt.result);
        }
    }
    assert!(
        mesh.counters(&client).captured >= 70,
        "counted since it was enrolled: {:?}",
        mesh.counters(&client)
    );
}

fn stopping_leaves_permissive_pods_direct(variant: Variant) {
    let (mut mesh, client, server, app) = setup(variant);
    let outsider = mesh.world.pod("outsider");
    let bootstrap = Bootstrap::of_service(&app);
    let pods = [&client, &server].map(|pod| enrolled(pod, "policy: permissive"));
    for _ in 0..2 {
        let mut culvert = mesh.start(&bootstrap, &pods);
        assert_proxied(&client, app.v4);
        assert_proxied(&outsider, app.v4);
        let loads = [&client, &outsider].map(|pod| Load::start(2, pod, app.v4));
        loads.iter().for_each(|load| load.wait_for(20));
        assert!(culvert.terminate().success());
        let stopped = Instant::now();
        loads.iter().for_each(|load| load.wait_for(40));
        let end = Instant::now();
        for load in loads {
            for attempt in between(&load.stop(), stopped, end) {
                assert!(
                    attempt.result.as_ref().is_ok_and(|response| !is_proxied(response)),
                    "{:?}",
                    attempt.result
                );
            }
        }
        assert!(!mesh.control_socket().exists());
    }
}

fn stopping_leaves_strict_pods_closed(variant: Variant) {
    let (mut mesh, client, server, app) = setup(variant);
    let outsider = mesh.world.pod("outsider");
    let bootstrap = Bootstrap::of_service(&app);
    let pods = [&client, &server].map(|pod| enrolled(pod, "policy: strict"));
    for _ in 0..2 {
        let mut culvert = mesh.start(&bootstrap, &pods);
        assert_proxied(&client, app.v4);
        assert_proxied(&outsider, app.v4);
        assert!(culvert.terminate().success());
        for (pod, to) in [(&client, app.v4), (&outsider, app.v4), (&client, app.v6), (&outsider, app.v6)] {
            assert_eq!(
                pod.try_get(to).unwrap_err().kind(),
                ErrorKind::ConnectionRefused,
                "{} to {to}",
                pod.name
            );
        }
    }
    // Whoever is no longer wanted is let go by the next start.
    let _culvert = mesh.start(&bootstrap, &pods[..1]);
    assert_direct(&outsider, app.v4);
    assert_proxied(&client, app.v4);
}

fn nothing_is_left_behind(variant: Variant) {
    let (mut mesh, client, server, app) = setup(variant);
    let own_rules = mesh.world.pod("rules");
    let other = own_rules.app();
    for command in [
        "iptables-nft -A INPUT -p tcp --dport 9 -j DROP",
        "iptables-nft -t nat -A OUTPUT -p tcp -d 192.0.2.1 -j DNAT --to-destination 192.0.2.2",
        "ip6tables-nft -t nat -A PREROUTING -p tcp -d 2001:db8::1 -j DNAT --to-destination 2001:db8::2",
        "ip rule add fwmark 7 lookup 77",
    ] {
        own_rules.run(&command.split(' ').collect::<Vec<_>>());
    }
    let everyone = [&client, &server, &own_rules];
    let before = everyone.map(Pod::footprint);
    assert!(before[2].contains("192.0.2.2") && before[2].contains("2001:db8::2"), "{}", before[2]);
    let use_it = || {
        for (pod, to) in [(&client, app.v4), (&client, app.v6), (&own_rules, app.v4), (&client, other.v4)] {
            pod.get(to);
        }
    };
    let bootstrap = Bootstrap::of_service(&app);
    let pods = everyone.map(|pod| enrolled(pod, "policy: strict"));

    // Removed, then stopped.
    let mut culvert = mesh.start(&bootstrap, &pods);
    use_it();
    let changed = everyone.map(Pod::footprint);
    assert!(
        before.iter().zip(&changed).all(|(before, changed)| before != changed),
        "there is something to remove"
    );
    for pod in everyone {
        mesh.pod(&["remove", &pod.name]).unwrap();
    }
    // Once the connections that were used have ended, which nobody is told of.
    let is_clean = || everyone.map(Pod::footprint) == before;
    wait_for("nothing to be left", is_clean);
    assert!(culvert.terminate().success());
    assert_eq!(everyone.map(Pod::footprint), before);

    // Stopped, started, and then no longer wanted.
    let mut culvert = mesh.start(&bootstrap, &pods);
    use_it();
    assert!(culvert.terminate().success());
    let mut culvert = mesh.start(&bootstrap, &pods);
    use_it();
    culvert.kill();
    let mut culvert = mesh.start(&bootstrap, &[]);
    assert_eq!(everyone.map(Pod::footprint), before);
    assert!(culvert.terminate().success());
    mesh.pod(&["repair"]).unwrap();
    assert_eq!(everyone.map(Pod::footprint), before);
    assert!(!mesh.world.bpf_dir.exists(), "nothing is pinned any more");
}
