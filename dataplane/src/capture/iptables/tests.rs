use std::{
    io::{ErrorKind, Read},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
};

use socket2::SockRef;

use super::*;
use crate::capture::testing::TestNetns;

fn fd(netns: &TestNetns) -> OwnedFd {
    fs::File::open(netns.path()).unwrap().into()
}

fn rules() -> Rules {
    Rules {
        outbound_port: Some(15001),
        inbound_port: Some(15006),
        settings: CaptureSettings {
            exclude_outbound_cidrs: vec!["10.88.0.0/16".parse().unwrap(), "fd88::/16".parse().unwrap()],
            exclude_outbound_ports: vec![22],
            exclude_inbound_ports: vec![2222],
        },
    }
}

/// All rules of all variants, as an operator would look for traces.
fn traces(netns: &TestNetns) -> String {
    let mut all: String =
        ["iptables-save", "ip6tables-save"].iter().map(|program| netns.run(&[program])).collect();
    all += &netns.run(&["nft", "list", "ruleset"]);
    // The first and last line of a table carry the date.
    all.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")
}

#[test]
fn rules_leave_no_trace() {
    let netns = TestNetns::new("ipt-trace");
    let before = traces(&netns);
    assert_eq!(before, "");
    let plan = plan(fd(&netns).as_fd(), &rules()).unwrap();
    assert_eq!(traces(&netns), before, "planning must not change anything");
    install(fd(&netns).as_fd(), &plan, &rules()).unwrap();
    assert!(traces(&netns).contains("REDIRECT --to-ports 15001"));
    remove(fd(&netns).as_fd(), &plan).unwrap();
    assert_eq!(traces(&netns), before);
    // Nothing there any more: no error, nothing made.
    remove(fd(&netns).as_fd(), &plan).unwrap();
    assert_eq!(traces(&netns), before);
}

#[test]
fn rules_of_others_stay_as_they_were() {
    let netns = TestNetns::new("ipt-others");
    for command in ["iptables", "ip6tables"] {
        netns.run(&[command, "-t", "nat", "-N", "CULVERT_OUTPUT_2"]);
        netns.run(&[command, "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "9", "-j", "RETURN"]);
        netns.run(&[command, "-A", "INPUT", "-p", "tcp", "--dport", "9", "-j", "DROP"]);
    }
    let before = traces(&netns);
    let plan = plan(fd(&netns).as_fd(), &rules()).unwrap();
    install(fd(&netns).as_fd(), &plan, &rules()).unwrap();
    let installed = traces(&netns);
    install(fd(&netns).as_fd(), &plan, &rules()).unwrap();
    assert_eq!(traces(&netns), installed, "installing twice is installing once");
    remove(fd(&netns).as_fd(), &plan).unwrap();
    // In a table that stays, built-in chains may be made explicit; iptables shows them either way.
    let saved = |text: &str| text.split("table ip").next().unwrap().to_owned();
    assert_eq!(saved(&traces(&netns)), saved(&before));
}

#[test]
fn a_direction_can_be_turned_off_and_on() {
    let netns = TestNetns::new("ipt-dir");
    let plan = plan(fd(&netns).as_fd(), &rules()).unwrap();
    install(fd(&netns).as_fd(), &plan, &rules()).unwrap();
    install(fd(&netns).as_fd(), &plan, &Rules { inbound_port: None, ..rules() }).unwrap();
    let saved = netns.run(&["iptables-save"]);
    assert!(saved.contains("--to-ports 15001") && !saved.contains(INBOUND_CHAIN), "{saved}");
    install(fd(&netns).as_fd(), &plan, &Rules { outbound_port: None, ..rules() }).unwrap();
    let saved = netns.run(&["iptables-save"]);
    assert!(saved.contains("--to-ports 15006") && !saved.contains(OUTPUT_CHAIN), "{saved}");
}

#[test]
fn rules_without_a_record_are_found() {
    for variant in [Variant::Nft, Variant::Legacy] {
        let netns = TestNetns::new("ipt-purge");
        assert!(!purge(fd(&netns).as_fd()).unwrap());
        let plan = Plan { variant, fresh_v4: false, fresh_v6: false, has_v6: true };
        install(fd(&netns).as_fd(), &plan, &rules()).unwrap();
        assert!(purge(fd(&netns).as_fd()).unwrap(), "{variant}");
        for program in ["iptables", "ip6tables"] {
            let saved = netns.run(&[&format!("{program}-{variant}-save")]);
            assert!(!saved.contains("CULVERT"), "{variant}: {saved}");
        }
        assert!(!purge(fd(&netns).as_fd()).unwrap());
    }
}

#[test]
fn without_ipv6_only_ipv4_rules_are_made() {
    let netns = TestNetns::new("ipt-v4");
    netns.run(&["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"]);
    let plan = plan(fd(&netns).as_fd(), &rules()).unwrap();
    assert!(!plan.has_v6);
    install(fd(&netns).as_fd(), &plan, &rules()).unwrap();
    assert!(netns.run(&["iptables-save"]).contains(OUTPUT_CHAIN));
    assert_eq!(netns.run(&["ip6tables-save"]), "");
}

/// Connects from `client` through the rules and returns where the stand-in for the proxy says it was meant to go.
fn redirected(client: &TestNetns, listener: &TcpListener, to: &str) -> SocketAddr {
    let stream = client.inside(|| TcpStream::connect(to)).unwrap();
    let (accepted, peer) = listener.accept().unwrap();
    assert_eq!(peer.port(), stream.local_addr().unwrap().port());
    culvert_ring::net::original_dst(accepted.as_fd()).unwrap()
}

#[test]
fn connections_are_turned_and_remember_where_they_meant_to_go() {
    let (pod, peer) = TestNetns::pair("ipt-dst");
    let listen = |netns: &TestNetns, address: &str| netns.inside(|| TcpListener::bind(address)).unwrap();
    let (v4, v6) = (listen(&pod, "127.0.0.1:15001"), listen(&pod, "[::1]:15001"));
    let inbound = listen(&pod, "[::]:15006");
    let outside = listen(&peer, "[::]:22");
    let plan = plan(fd(&pod).as_fd(), &rules()).unwrap();
    install(fd(&pod).as_fd(), &plan, &rules()).unwrap();

    for (listener, to) in [(&v4, "10.77.0.2:80"), (&v6, "[fd77::2]:80"), (&v4, "[::ffff:10.77.0.2]:81")] {
        let expected: SocketAddr = to.parse().unwrap();
        let expected = SocketAddr::new(expected.ip().to_canonical(), expected.port());
        assert_eq!(redirected(&pod, listener, to), expected);
    }
    for to in ["10.77.0.1:8080", "[fd77::1]:8080"] {
        assert_eq!(redirected(&peer, &inbound, to), to.parse().unwrap());
    }

    // An excluded port goes where it says; loopback and the pod's own addresses too, where nothing listens.
    pod.inside(|| TcpStream::connect("10.77.0.2:22")).unwrap();
    outside.accept().unwrap();
    for to in ["127.0.0.1:80", "[::1]:80", "10.77.0.1:80"] {
        let error = pod.inside(|| TcpStream::connect(to)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
    }
    assert_eq!(counters(fd(&pod).as_fd(), &plan).unwrap(), RuleCounters { captured: 5, bypassed: 1 });

    // Without a proxy: refused, also what would have been served.
    let served = listen(&peer, "10.77.0.2:80");
    for listener in [v4, v6, inbound] {
        // Closing is not enough: a process that another test is just starting may still hold a copy.
        SockRef::from(&listener).shutdown(Shutdown::Both).unwrap();
    }
    let error = pod.inside(|| TcpStream::connect("10.77.0.2:80")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    remove(fd(&pod).as_fd(), &plan).unwrap();
    let mut stream = pod.inside(|| TcpStream::connect("10.77.0.2:80")).unwrap();
    drop(served.accept().unwrap());
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn marked_sockets_pass() {
    let (pod, peer) = TestNetns::pair("ipt-mark");
    let served = peer.inside(|| TcpListener::bind("10.77.0.2:80")).unwrap();
    let plan = plan(fd(&pod).as_fd(), &rules()).unwrap();
    install(fd(&pod).as_fd(), &plan, &rules()).unwrap();
    for mark in [0x539, 0x1539, 0x2539] {
        pod.inside(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_mark(mark).unwrap();
            socket.connect(&"10.77.0.2:80".parse::<SocketAddr>().unwrap().into()).unwrap();
        });
        served.accept().unwrap();
    }
}

#[test]
fn counters_are_read_from_our_chains_only() {
    let saved = "*nat\n:OUTPUT ACCEPT [9:9]\n[7:420] -A OUTPUT -p tcp -j CULVERT_OUTPUT\n\
                 [3:180] -A CULVERT_OUTPUT -o lo -j RETURN\n[2:120] -A CULVERT_OUTPUT -d 10.0.0.0/8 -j RETURN\n\
                 [1:60] -A CULVERT_OUTPUT -p tcp -m tcp --dport 22 -j RETURN\n\
                 [4:240] -A CULVERT_OUTPUT -p tcp -j REDIRECT --to-ports 15001\n\
                 [50:3000] -A SOMEONE -p tcp -j REDIRECT --to-ports 15001\n\
                 [6:360] -A CULVERT_INBOUND -p tcp -m addrtype --dst-type LOCAL -j REDIRECT --to-ports 15006\nCOMMIT\n";
    assert_eq!(parse_counters(saved), RuleCounters { captured: 10, bypassed: 3 });
    assert_eq!(parse_counters("[x] -A CULVERT_OUTPUT -d x\n[\n"), RuleCounters { captured: 0, bypassed: 0 });
}

#[test]
fn jumps_are_told_from_rules_that_look_like_them() {
    assert!(is_jump("-A OUTPUT -p tcp -j CULVERT_OUTPUT", "OUTPUT", "CULVERT_OUTPUT"));
    assert!(!is_jump("-A OUTPUT2 -p tcp -j CULVERT_OUTPUT", "OUTPUT", "CULVERT_OUTPUT"));
    assert!(!is_jump("-A OUTPUT -p tcp -j CULVERT_OUTPUT_2", "OUTPUT", "CULVERT_OUTPUT"));
    assert!(!is_jump(":OUTPUT ACCEPT [0:0]", "OUTPUT", "CULVERT_OUTPUT"));
}
