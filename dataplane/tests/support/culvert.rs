//! A culvert process of a test's own.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const ADMIN_ADDRESS: &str = "admin-address";

/// How long anything may take before a test gives up. A guard against hanging, not a measure: the machine may be busy, and
/// virtual.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A running culvert. Killed when dropped.
pub struct Culvert {
    child: Child,
    /// Where its files are.
    pub dir: tempfile::TempDir,
    /// Where its admin server listens.
    pub admin: SocketAddr,
    log: Arc<Mutex<String>>,
}

/// A port nobody uses, and that the kernel gives to nobody: of those it gives to connections, one that is free now may be
/// taken in the next moment. Each test process begins at a place of its own.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(7_919);
    (0..FREE_PORTS.len())
        .map(|_| begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % FREE_PORTS.len() as u32)
        .map(|place| FREE_PORTS.start + place as u16)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

/// Below `net.ipv4.ip_local_port_range`.
const FREE_PORTS: Range<u16> = 16_000..32_000;

/// The bootstrap of most tests: one listener on `port` with these routes (a YAML list), these clusters (a YAML list).
pub fn bootstrap(admin: u16, port: u16, manager: &str, routes: &str, clusters: &str) -> String {
    format!(
        r#"
node: {{id: test, cluster: tests}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
static_resources:
  listeners:
  - name: ingress
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
{manager}
          route_config:
            name: local
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
{routes}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
{clusters}
"#,
        manager = indent(manager, 10),
        routes = indent(routes, 14),
        clusters = indent(clusters, 2),
    )
}

/// A STATIC cluster with these endpoints.
pub fn cluster(name: &str, endpoints: &[SocketAddr]) -> String {
    let endpoints: String = endpoints
        .iter()
        .map(|at| {
            format!(
                "    - endpoint: {{address: {{socket_address: {{address: \"{}\", port_value: {}}}}}}}\n",
                at.ip(),
                at.port()
            )
        })
        .collect();
    format!(
        "- name: {name}\n  type: STATIC\n  connect_timeout: 2s\n  load_assignment:\n    cluster_name: {name}\n    \
         endpoints:\n    - lb_endpoints:\n{}",
        indent(&endpoints, 2)
    )
}

/// Replaces a file that is watched, in one step.
pub fn put(path: &Path, text: &str) {
    let fresh = path.with_extension("new");
    fs::write(&fresh, text).expect("written");
    fs::rename(fresh, path).expect("renamed");
}

/// Moves every line to the right by this many blanks.
pub fn indent(text: &str, by: usize) -> String {
    let pad = " ".repeat(by);
    text.lines().map(|line| format!("{pad}{line}\n")).collect()
}

impl Culvert {
    /// Starts the binary under test with a bootstrap and waits until it is live. `admin`: as in the bootstrap.
    pub fn start(driver: &str, admin: u16, bootstrap: &str) -> Self {
        Self::start_with(driver, admin, bootstrap, &[])
    }

    /// As [`Culvert::start`], with further flags.
    pub fn start_with(driver: &str, admin: u16, bootstrap: &str, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self::start_in(dir, driver, admin, bootstrap, flags)
    }

    /// As [`Culvert::start_with`], in a directory that has files already.
    pub fn start_in(
        dir: tempfile::TempDir,
        driver: &str,
        admin: u16,
        bootstrap: &str,
        flags: &[&str],
    ) -> Self {
        let mut culvert = Self::launch_in(dir, driver, admin, bootstrap, flags);
        culvert.wait_live();
        culvert
    }

    /// As [`Culvert::start_in`], not waiting for it to be live.
    pub fn launch_in(
        dir: tempfile::TempDir,
        driver: &str,
        admin: u16,
        bootstrap: &str,
        flags: &[&str],
    ) -> Self {
        let path = dir.path().join("bootstrap.yaml");
        fs::write(&path, bootstrap).expect("bootstrap written");
        let mut child = command(&path)
            .args(["--io", driver])
            .arg("--admin-address-path")
            .arg(dir.path().join(ADMIN_ADDRESS))
            .args(if flags.contains(&"--concurrency") { &[][..] } else { &["--concurrency", "2"][..] })
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .expect("culvert starts");
        let log = Arc::new(Mutex::new(String::new()));
        let (kept, stderr) = (log.clone(), child.stderr.take().expect("its log"));
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut kept = kept.lock().expect("log");
                kept.push_str(&line);
                kept.push('\n');
            }
        });
        Self { child, dir, admin: SocketAddr::from(([127, 0, 0, 1], admin)), log }
    }

    /// Waits until it serves.
    pub fn wait_live(&mut self) {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().expect("its status") {
                thread::sleep(Duration::from_millis(100));
                panic!("culvert ended with {status}:\n{}", self.log());
            }
            self.learn_admin();
            if self.get("/ready").is_some_and(|answer| answer.contains("LIVE")) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("culvert did not become live:\n{}", self.log());
    }

    /// With port 0 in the bootstrap culvert chooses its own, which nobody else can have meanwhile.
    fn learn_admin(&mut self) {
        let written = fs::read_to_string(self.dir.path().join(ADMIN_ADDRESS)).ok();
        if let Some(address) = written.and_then(|address| address.trim().parse().ok()) {
            self.admin = address;
        }
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.log.lock().expect("log").clone()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The body of a GET on the admin server; `None` when nobody answers.
    pub fn get(&self, path: &str) -> Option<String> {
        self.ask("GET", path)
    }

    /// The body of a POST on the admin server.
    pub fn post(&self, path: &str) -> Option<String> {
        self.ask("POST", path)
    }

    fn ask(&self, method: &str, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.admin, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// The value of a counter or gauge; 0 when it is not there.
    pub fn stat(&self, name: &str) -> u64 {
        let stats = self.get("/stats").expect("stats");
        let found = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse().ok());
        found.unwrap_or(0)
    }

    /// Its resident memory in KB.
    pub fn resident_kb(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("resident memory");
        line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("its descriptors").count()
    }

    /// Waits until `condition` holds.
    pub fn wait_until(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < until, "{what} did not happen:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it without a chance to clean up.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to stop and waits. The exit status.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal");
        self.child.wait().expect("its end")
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Culvert {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("--- culvert's log\n{}", self.log());
        }
    }
}

/// The binary under test with `-c FILE`.
pub fn command(bootstrap: &Path) -> Command {
    let mut command = Command::new(binary());
    command.arg("-c").arg(bootstrap).stdin(Stdio::null());
    command
}

/// The binary under test, or another one that takes the same flags, from `CULVERT_TEST_BINARY`.
pub fn binary() -> PathBuf {
    std::env::var_os("CULVERT_TEST_BINARY")
        .map_or_else(|| env!("CARGO_BIN_EXE_culvert").into(), PathBuf::from)
}
