//! The program as it is run: placement of processes, and comparisons that leave nothing behind. Needs root; without,
//! there is nothing to test.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use culvert_bench::lab::{Cgroup, NetNs, cgroup, require_root};

const BENCH: &str = env!("CARGO_BIN_EXE_culvert-bench");

#[test]
fn exec_places_a_command_before_it_runs() {
    if require_root().is_err() {
        return;
    }
    let (group, netns) =
        (Cgroup::create("exec-test").expect("cgroup"), NetNs::create("exec").expect("netns"));
    let output = Command::new(BENCH)
        .args(["exec", "--cpus", "0", "--cgroup"])
        .arg(group.path())
        .arg("--netns")
        .arg(netns.path())
        .args([
            "--",
            "sh",
            "-c",
            "cat /proc/self/cgroup; ip -o link; grep Cpus_allowed_list /proc/self/status",
        ])
        .output()
        .expect("exec");
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    let name = group.path().file_name().and_then(|name| name.to_str()).expect("name");
    assert!(text.contains(&format!("0::/{name}\n")), "{text}");
    assert!(text.contains("lo:") && text.matches("mtu").count() == 1, "{text}");
    assert!(text.contains("Cpus_allowed_list:\t0\n"), "{text}");

    for wrong in [["--netns", "/none/such"], ["--cgroup", "/none/such"], ["--cpus", "4095"]] {
        let output = Command::new(BENCH).arg("exec").args(wrong).args(["--", "true"]).output().expect("exec");
        assert!(!output.status.success(), "{wrong:?}");
        assert!(said(&output).contains(wrong[1]), "{wrong:?}: {}", said(&output));
    }
}

#[test]
fn a_comparison_without_mesh_ends_with_table_and_json_and_leaves_nothing() {
    if require_root().is_err() {
        return;
    }
    let json = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("capture-{}.json", std::process::id()));
    let child = capture(&["--modes", "none", "--rounds", "2", "--seconds", "0.1", "--json", path(&json)]);
    let pid = child.id();
    let output = child.wait_with_output().expect("wait");
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("no mesh (control) / no mesh"), "{text}");
    let result: serde_json::Value = serde_json::from_slice(&fs::read(&json).expect("json")).expect("json");
    fs::remove_file(&json).expect("remove");
    for row in 0..2 {
        let values = &result["rows"][row]["values"];
        for metric in ["latency_p50_us", "request_cpu_us", "connections_per_second", "connection_cpu_us"] {
            assert!(
                values[metric]["median"].as_f64().is_some_and(|median| median > 0.0),
                "{metric}: {values}"
            );
        }
        assert_eq!(result["rows"][row]["failed"], 0, "{result}");
    }
    assert_eq!(remains(pid), Vec::<PathBuf>::new());
}

#[test]
fn a_signal_ends_a_comparison_and_removes_its_pods() {
    if require_root().is_err() {
        return;
    }
    let child = capture(&["--modes", "none", "--rounds", "1000"]);
    let pid = child.id();
    wait_for("pods", || remains(pid).len() >= 3);
    signal(&child, "INT");
    let output = child.wait_with_output().expect("wait");
    assert!(!output.status.success());
    assert!(said(&output).contains("interrupted"), "{}", said(&output));
    assert_eq!(remains(pid), Vec::<PathBuf>::new());
}

#[test]
fn what_a_killed_comparison_leaves_is_removed_by_the_next() {
    if require_root().is_err() {
        return;
    }
    let mut child = capture(&["--modes", "none", "--rounds", "1000"]);
    let pid = child.id();
    wait_for("pods", || remains(pid).len() >= 3);
    child.kill().expect("kill");
    child.wait().expect("wait");
    // Other tests sweep too: all that matters is that nothing stays.
    let next = capture(&["--modes", "none", "--rounds", "1", "--seconds", "0.05"]);
    let output = next.wait_with_output().expect("wait");
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(remains(pid), Vec::<PathBuf>::new());
}

#[test]
fn a_culvert_that_does_not_start_or_capture_is_an_error_that_says_so() {
    if require_root().is_err() {
        return;
    }
    let fails = script("echo 'no such feature' >&2; exit 3");
    // Ready, but not in anybody's way.
    let idles = script(&format!(
        "port=$(sed -n 's/.*\"port_value\": \\([0-9]*\\).*/\\1/p' \"$2\" | head -n 1)\n\
         exec {BENCH} upstream --listen 127.0.0.1:$port"
    ));
    for (culvert, expected) in [(&fails, "no such feature"), (&idles, "only 0 of 50 requests were captured")]
    {
        let child = capture(&["--modes", "iptables", "--rounds", "1", "--culvert", path(culvert)]);
        let pid = child.id();
        let output = child.wait_with_output().expect("wait");
        assert!(!output.status.success());
        assert!(said(&output).contains(expected) && said(&output).contains("iptables"), "{}", said(&output));
        assert_eq!(remains(pid), Vec::<PathBuf>::new());
        fs::remove_file(culvert).expect("remove");
    }
    let output = capture(&["--culvert", "/none/such"]).wait_with_output().expect("wait");
    assert!(!output.status.success() && said(&output).contains("/none/such"), "{}", said(&output));
}

fn capture(arguments: &[&str]) -> Child {
    let mut command = Command::new(BENCH);
    command.arg("capture").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("culvert-bench")
}

/// Everything on this machine that carries the name of a run.
fn remains(pid: u32) -> Vec<PathBuf> {
    let mount = cgroup::mount_point().expect("cgroup2");
    let directories = [mount.as_path(), Path::new("/run"), Path::new("/run/netns"), Path::new("/sys/fs/bpf")];
    let entries = directories.into_iter().flat_map(|path| fs::read_dir(path).into_iter().flatten().flatten());
    let name_of = |path: &PathBuf| path.file_name().and_then(|name| name.to_str().map(str::to_owned));
    let prefixes = [format!("culvert-bench-{pid}-"), format!("cvb-{pid}-")];
    let is_own =
        |path: &PathBuf| name_of(path).is_some_and(|name| prefixes.iter().any(|p| name.starts_with(p)));
    entries.map(|entry| entry.path()).filter(is_own).collect()
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_there() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().expect("kill");
    assert!(status.success());
}

/// An executable shell script of its own name.
fn script(text: &str) -> PathBuf {
    let name = format!("culvert-{}-{}", std::process::id(), text.len());
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut file = fs::File::create(&path).expect("script");
    write!(file, "#!/bin/sh\n{text}\n").expect("script");
    file.set_permissions(fs::Permissions::from_mode(0o755)).expect("script");
    path
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
