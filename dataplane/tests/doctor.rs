//! `culvert doctor` by the whole binary. Needs root.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value as Json;

fn doctor(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
    command.arg("doctor").args(arguments);
    command
}

fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn json(output: &str) -> Json {
    serde_json::from_str(output).unwrap_or_else(|e| panic!("{e}: {output}"))
}

fn status<'a>(report: &'a Json, group: &str, key: &str) -> &'a str {
    report["findings"][group][key]["status"].as_str().unwrap_or_else(|| panic!("{group}.{key}: {report:#}"))
}

/// A copy of the binary that every user may run, removed when dropped.
struct ForAll(tempfile::TempDir);

impl ForAll {
    fn new() -> Self {
        use fs::Permissions;
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_culvert"), dir.path().join("culvert")).unwrap();
        Self(dir)
    }

    /// The doctor as user nobody, without any group or capability.
    fn doctor(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.0.path().join("culvert"));
        command.arg("doctor").args(arguments).current_dir("/").gid(65_534).uid(65_534);
        command
    }
}

/// Cgroups, mounts, pins, namespaces: what an examination could leave behind.
fn traces() -> BTreeSet<PathBuf> {
    let mut found: BTreeSet<PathBuf> = BTreeSet::new();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for mount in mounts.lines() {
        let fields: Vec<&str> = mount.split(' ').collect();
        if mount.contains(" - cgroup2 ") || mount.contains(" - bpf ") {
            let entries = fs::read_dir(fields[4]).unwrap().flatten().map(|entry| entry.path());
            found.extend(entries.filter(|path| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                name.starts_with("culvert-probe-") || name.starts_with("culvert-rehearsal")
            }));
            found.insert(Path::new("mounted").join(fields[4].trim_start_matches('/')));
        }
    }
    found
}

#[test]
fn root_is_told_everything() {
    let (code, output, error) = run(&mut doctor(&["--json"]));
    assert_eq!((code, error.as_str()), (0, ""), "{output}");
    let report = json(&output);
    assert_eq!(report["schema"], 1);
    assert_eq!(report["serves"], true);
    assert_eq!(report["capture"]["asked"], "auto");
    assert_eq!(report["capture"]["modes"]["none"]["serves"], true);
    for key in ["connect4", "connect6", "getpeername4", "getpeername6", "sock_ops", "sk_lookup", "sk_msg"] {
        let finding = &report["findings"]["programs"][key];
        assert_eq!(finding["found"], "loads and attaches", "{key}: {finding}");
    }
    assert_eq!(
        report["findings"]["capture"]["ebpf"]["found"], "loaded, attached, and a connection captured",
        "{report:#}"
    );
    assert_eq!(status(&report, "capture", "iptables"), "ok");
    assert_eq!(status(&report, "helpers", "connect.sk_storage_get"), "ok");
    assert_eq!(status(&report, "maps", "sk_storage"), "ok");
    assert_eq!(status(&report, "filesystems", "cgroup"), "ok");
    assert_ne!(status(&report, "others", "connect4"), "unknown");
    assert!(report["findings"]["others"]["sockmaps"]["found"].as_str().unwrap().contains("cannot be asked"));
    // Where splicing is sound, which other tests ask too, every property of it was tested.
    let failed =
        report["findings"]["splice"].as_object().unwrap().iter().find(|(_, it)| it["status"] != "ok");
    assert_eq!(report["splice"]["auto"], "off");
    assert_eq!(report["splice"]["failed"].is_null(), failed.is_none());
    assert_ne!(status(&report, "splice", "setup"), "missing");
    // Whatever is not in order says what that costs.
    for (group, findings) in report["findings"].as_object().unwrap() {
        for (key, finding) in findings.as_object().unwrap() {
            let told = finding["status"] == "ok" || finding["cost"] != "";
            assert!(told && finding["purpose"] != "", "{group}.{key}: {finding}");
        }
    }
}

#[test]
fn the_table_has_a_verdict_on_every_line() {
    let (code, output, _) = run(&mut doctor(&["--capture", "ebpf"]));
    assert_eq!(code, 0, "{output}");
    for line in output.lines().filter(|line| line.starts_with("  ")) {
        let first = line.split_ascii_whitespace().next().unwrap();
        assert!(["ok", "degraded", "unknown", "missing", "cost:"].contains(&first), "{line}");
    }
    assert!(output.contains("\nverdict\n"), "{output}");
    assert!(output.contains("Culvert can use --capture ebpf and "), "{output}");
}

#[test]
fn nothing_is_left_behind() {
    let before = traces();
    let (code, ..) = run(&mut doctor(&[]));
    assert_eq!(code, 0);
    // Other tests of this process may be at it in this moment: theirs go too.
    let gone = || {
        let left: Vec<PathBuf> = traces().difference(&before).cloned().collect();
        left.is_empty()
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while !gone() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
    }
    assert!(gone(), "{:?}", traces());
}

#[test]
fn without_privilege_it_says_what_could_not_be_asked() {
    let copy = ForAll::new();
    let (code, output, error) = run(&mut copy.doctor(&["--json"]));
    assert_eq!(code, 1, "{output}");
    assert!(error.starts_with("culvert: cannot take over pods: --capture ebpf lacks "), "{error}");
    let report = json(&output);
    assert_eq!(report["serves"], false);
    assert_eq!(report["capture"]["chosen"], Json::Null);
    assert_eq!(status(&report, "kernel", "capabilities"), "missing");
    for (group, key) in
        [("programs", "connect4"), ("helpers", "sk_msg.msg_redirect_hash"), ("capture", "ebpf")]
    {
        assert_eq!(status(&report, group, key), "unknown", "{report:#}");
    }
    let found = report["findings"]["programs"]["connect4"]["found"].as_str().unwrap();
    assert!(found.contains("lacks capabilities"), "{found}");

    assert_eq!(report["splice"]["auto"], "off");
    assert_eq!(report["splice"]["failed"], "setup");

    let (code, ..) = run(&mut copy.doctor(&["--capture", "none"]));
    assert_eq!(code, 0, "ordinary listeners need no privilege");
}

#[test]
fn a_pin_directory_that_cannot_be_used_is_named() {
    let (code, output, error) =
        run(&mut doctor(&["--capture", "ebpf", "--json", "--bpf-dir", "/var/culvert"]));
    assert_eq!(code, 1);
    assert_eq!(error, "culvert: cannot serve with --capture ebpf: missing filesystems.bpffs\n");
    assert_eq!(json(&output)["capture"]["modes"]["iptables"]["serves"], true);
}

#[test]
fn a_container_without_io_uring_is_recognised() {
    let mut command = Command::new("python3");
    command.args(["-c", FORBID_IO_URING, env!("CARGO_BIN_EXE_culvert"), "doctor", "--json"]);
    let (code, output, error) = run(&mut command);
    assert_eq!(code, 0, "{output}{error}");
    let report = json(&output);
    assert_eq!(report["io"]["tier"], "epoll");
    assert!(report["io"]["reason"].as_str().unwrap().contains("seccomp"), "{}", report["io"]);
    assert_eq!(status(&report, "io", "driver"), "degraded");
    assert_eq!(status(&report, "kernel", "seccomp"), "degraded");
}

/// Installs a filter such as container engines do, under which the three calls of io_uring (425 to 427 on all machines)
/// answer EPERM, and becomes the command that its arguments name.
const FORBID_IO_URING: &str = "
import ctypes, os, struct, sys
def op(code, k, jt=0, jf=0): return struct.pack('HBBI', code, jt, jf, k)
code = op(0x20, 0) + op(0x35, 425, 0, 1) + op(0x35, 428, 0, 1) + op(6, 0x7fff0000) + op(6, 0x00050001)
code = ctypes.create_string_buffer(code, len(code))
program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', len(code) // 8, ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0): sys.exit('prctl: %d' % ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
";
