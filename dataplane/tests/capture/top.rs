//! `culvert top`, asked of a culvert that captures.

use std::{process::Stdio, time::Instant};

use crate::support::{
    culvert::{PATIENCE, binary},
    mesh::{Bootstrap, Mesh, Variant, enrolled},
};

tests!(ebpf, iptables: what_pods_do_is_shown);

/// The words of the line that begins with a pod's name.
fn line<'t>(table: &'t str, pod: &str) -> Vec<&'t str> {
    let words = |line: &'t str| line.split_whitespace().collect::<Vec<_>>();
    let found = table.lines().map(words).find(|words| words.first() == Some(&pod));
    found.unwrap_or_else(|| panic!("no pod {pod}:\n{table}"))
}

fn what_pods_do_is_shown(variant: Variant) {
    let mut mesh = Mesh::new(variant);
    let (client, server) = (mesh.world.pod("client"), mesh.world.pod("server"));
    let app = server.app();
    let error = mesh.ask(&["top"]).expect_err("nobody is there");
    assert!(error.starts_with("culvert: no culvert is running"), "{error}");

    let bootstrap = Bootstrap::of_service(&app);
    let mut culvert = mesh.start(&bootstrap, &[&client, &server].map(|pod| enrolled(pod, "policy: strict")));
    for _ in 0..3 {
        client.get(app.v4);
    }
    let once = mesh.ask(&["top", "--count", "1"]).expect("a table");
    assert!(once.starts_with("culvert top: 2 pods, 0 of them waiting"), "{once}");
    // The client's three connections, each of which the proxy may have passed on over one and the same.
    assert_eq!(line(&once, "client")[1..5], [variant.mode, "strict", "3", "-"], "{once}");

    // One table after the other where the output is no terminal: the second has rates.
    let twice = mesh.ask(&["top", "-n", "2", "-d", "0.1", "--sort", "name"]).expect("two tables");
    assert!(!twice.contains('\x1b'), "{twice:?}");
    let (_, second) = twice.rsplit_once("culvert top: ").expect("a second table");
    assert_eq!(line(second, "client")[3..5], ["3", "0.0"], "{second}");

    // In a terminal it runs until interrupted, and gives the screen back. It says so when culvert has gone.
    let socket = mesh.control_socket().display().to_string();
    let shown = mesh.world.dir.path().join("typescript");
    // A shell that does not replace itself by its last command would keep the signal below to itself.
    let top = format!("exec {} top -d 0.1 --control-socket {socket}", binary().display());
    let mut script = std::process::Command::new("script");
    script.args(["--quiet", "--flush", "--return", "--command", &top]).arg(&shown);
    let mut terminal = script.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("script(1) is there");
    let until = Instant::now() + PATIENCE;
    let wait_for = |what: &str| {
        while !std::fs::read_to_string(&shown).is_ok_and(|text| text.contains(what)) {
            assert!(Instant::now() < until, "{what} is not shown");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    wait_for("culvert top: 2 pods");
    assert!(culvert.terminate().success());
    wait_for("not current: no culvert is running");
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", terminal.id()));
    for child in children.expect("its children").split_whitespace() {
        let pid = rustix::process::Pid::from_raw(child.parse().expect("a process id")).expect("a process id");
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("interrupted");
    }
    assert!(terminal.wait().expect("its end").success());
    let text = std::fs::read_to_string(&shown).expect("what was shown");
    assert!(text.contains("\x1b[?1049h") && text.contains("\x1b[?1049l"), "{text:?}");
}
