//! Updates: what stays, what drains, and what is cut.

use std::{
    fs,
    io::{Read as _, Write as _},
};

use crate::support::{
    DRIVERS,
    culvert::{Culvert, free_port, indent, put},
};
use crate::{Three, chain, connect, listener, who};

/// A culvert whose listeners come from `lds.yaml`.
pub(crate) fn start(driver: &str, three: &Three, listeners: &[String], flags: &[&str]) -> Culvert {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lds.yaml");
    fs::write(&path, resources(listeners)).unwrap();
    let text = format!(
        "node: {{id: test, cluster: tests}}\nadmin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: \
         0}}}}}}\ndynamic_resources:\n  lds_config: {{path_config_source: {{path: {}}}}}\nstatic_resources:\n  \
         clusters:\n{}",
        path.display(),
        indent(&three.clusters(), 2)
    );
    Culvert::start_in(dir, driver, 0, &text, flags)
}

fn resources(listeners: &[String]) -> String {
    let typed = |listener: &String| {
        format!(
            "{{\"@type\": type.googleapis.com/envoy.config.listener.v3.Listener, {}",
            listener.trim_start_matches('{')
        )
    };
    format!("resources: [{}]\n", listeners.iter().map(typed).collect::<Vec<_>>().join(", "))
}

pub(crate) fn update(culvert: &Culvert, listeners: &[String]) {
    put(&culvert.dir.path().join("lds.yaml"), &resources(listeners));
}

fn alive(stream: &mut std::net::TcpStream) -> bool {
    let mut echo = [0];
    stream.write_all(b"?").is_ok() && stream.read_exact(&mut echo).is_ok() && &echo == b"?"
}

#[test]
fn only_what_changed_drains_and_is_cut_in_the_end() {
    let three = Three::start();
    for driver in DRIVERS {
        let port = free_port();
        let from = |ip: &str| {
            format!(
                "filter_chain_match: {{source_prefix_ranges: [{{address_prefix: {ip}, prefix_len: 32}}]}}"
            )
        };
        let (kept, other) = (from("127.0.0.1"), from("127.0.0.2"));
        let fields = |second: &str| {
            let chains = [chain("a", &kept), chain(second, &other)];
            listener("l", port, &format!("filter_chains: [{}]", chains.join(", ")))
        };
        let culvert = start(driver, &three, &[fields("b")], &["--drain-time-s", "1"]);
        let second = || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
            socket.connect(&std::net::SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
            let stream = std::net::TcpStream::from(socket);
            stream.set_read_timeout(Some(crate::PATIENCE)).unwrap();
            stream
        };
        let (mut stays, mut goes) = (connect(port), second());
        assert_eq!((who(&mut stays), who(&mut goes)), ("a".to_owned(), "b".to_owned()));
        // The same in other words changes nothing.
        put(&culvert.dir.path().join("lds.yaml"), &(resources(&[fields("b")]) + "\n# again\n"));
        update(&culvert, &[fields("c")]);
        culvert.wait_until("the update", |c| c.stat("listener_manager.listener_in_place_updated") == 1);
        assert_eq!(culvert.stat("listener_manager.listener_modified"), 1);
        culvert.wait_until("the new chain", |_| who(&mut second()) == "c");
        // The end of the drain time: the connection of the chain that is gone is cut, the other one is not.
        assert_eq!(goes.read(&mut [0]).unwrap_or(0), 0);
        assert!(alive(&mut stays));
        culvert.wait_until("no draining", |c| c.stat("listener_manager.total_filter_chains_draining") == 0);
        // Another change of the listener makes a new one, and the old one drains as a whole.
        let changed = fields("c").replace("stat_prefix: l", "stat_prefix: l, tcp_backlog_size: 99");
        update(&culvert, std::slice::from_ref(&changed));
        culvert.wait_until("the update", |c| c.stat("listener_manager.listener_modified") == 2);
        assert_eq!(culvert.stat("listener_manager.listener_in_place_updated"), 1);
        assert_eq!(stays.read(&mut [0]).unwrap_or(0), 0);
        assert_eq!(who(&mut connect(port)), "a");
        // Removed: nobody listens, and what is open ends.
        let mut last = connect(port);
        assert_eq!(who(&mut last), "a");
        update(&culvert, &[]);
        assert_eq!(last.read(&mut [0]).unwrap_or(0), 0);
    }
}
