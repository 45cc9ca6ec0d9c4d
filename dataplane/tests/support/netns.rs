//! Pods: network namespaces on a bridge of their own, with applications and clients in them.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    client::{Client, Response},
    culvert::PATIENCE,
    upstream::{Upstream, ok, read_request},
};

static WORLDS: AtomicUsize = AtomicUsize::new(0);

/// A network of pods, and the directory of the culvert that captures them. All of it goes when it is dropped.
pub struct World {
    /// For the files of a test.
    pub dir: tempfile::TempDir,
    /// Where eBPF programs are pinned.
    pub bpf_dir: PathBuf,
    prefix: String,
    pods: u16,
    namespaces: Vec<String>,
}

/// A network namespace with one address of each family, on the same network as its siblings.
#[derive(Clone)]
pub struct Pod {
    /// Of the pod; its namespace has a longer one.
    pub name: String,
    pub namespace: String,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    netns: Arc<File>,
}

/// A server of a pod's. What it answers tells who it is, whom it sees and what it was asked: see [`Seen`].
pub struct App {
    pub v4: SocketAddr,
    pub v6: SocketAddr,
    pub port: u16,
    upstream: Upstream,
}

/// What the answer of an [`App`] says.
#[derive(Debug)]
pub struct Seen {
    /// The name of the application.
    pub by: String,
    /// Its peer as the application sees it.
    pub peer: SocketAddr,
    /// The head of the request.
    pub head: String,
}

impl World {
    pub fn new() -> Self {
        let prefix = format!("cvi-{}-{}", process::id(), WORLDS.fetch_add(1, Ordering::Relaxed));
        let mut world = Self {
            dir: tempfile::tempdir().expect("a directory"),
            bpf_dir: format!("/sys/fs/bpf/{prefix}").into(),
            prefix,
            pods: 0,
            namespaces: Vec::new(),
        };
        let hub = world.namespace("hub");
        ip_all(&hub, &["link add br0 type bridge forward_delay 0", "link set br0 up"]);
        world
    }

    /// A new pod. Its default route leads to its own network, so that destinations that do not exist have one.
    pub fn pod(&mut self, name: &str) -> Pod {
        self.pods += 1;
        let number = self.pods;
        let namespace = self.namespace(name);
        let hub = &self.namespaces[0];
        let v4 = Ipv4Addr::new(10, 77, 0, u8::try_from(number).expect("few pods"));
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number);
        let link = format!("link add v{number} type veth peer name eth0 netns {namespace}");
        ip_all(hub, &[&link, &format!("link set v{number} master br0 up")]);
        ip_all(
            &namespace,
            &[
                // A link-local address would come up some time later, and change what the namespace looks like.
                "link set eth0 addrgenmode none",
                &format!("addr add {v4}/24 dev eth0"),
                &format!("addr add {v6}/64 dev eth0 nodad"),
                "link set eth0 up",
                "route add default dev eth0",
                "route add ::/0 dev eth0",
            ],
        );
        let netns = Arc::new(File::open(format!("/run/netns/{namespace}")).expect("its namespace"));
        Pod { name: name.to_owned(), namespace, v4, v6, netns }
    }

    fn namespace(&mut self, label: &str) -> String {
        let name = format!("{}-{label}", self.prefix);
        ip(&format!("netns add {name}"));
        self.namespaces.push(name.clone());
        ip(&format!("-n {name} link set lo up"));
        name
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Err(error) = culvert_bpf::uninstall(&self.bpf_dir) {
            eprintln!("{}: {error}", self.bpf_dir.display());
        }
        for name in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

impl Pod {
    /// The file that is its namespace.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.namespace)
    }

    /// Runs a function on this thread inside the namespace.
    pub fn inside<T>(&self, run: impl FnOnce() -> T) -> T {
        culvert_ring::net::in_netns(self.netns.as_fd(), run).expect("inside the pod")
    }

    /// What a command in the pod prints. It must succeed.
    pub fn run(&self, command: &[&str]) -> String {
        self.inside(|| output(&mut words(command)))
    }

    /// Runs a command in the pod with this input; what it prints.
    pub fn run_with(&self, command: &[&str], input: &str) -> String {
        self.inside(|| feed(&mut words(command), input))
    }

    pub fn try_connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.inside(|| TcpStream::connect_timeout(&to, PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    pub fn connect(&self, to: impl Into<SocketAddr>) -> TcpStream {
        let to = to.into();
        self.try_connect(to).unwrap_or_else(|error| panic!("{} to {to}: {error}", self.name))
    }

    pub fn client(&self, to: impl Into<SocketAddr>) -> Client {
        Client::over(self.connect(to))
    }

    /// One request on a connection of its own.
    pub fn get(&self, to: impl Into<SocketAddr>) -> Response {
        let to = to.into();
        self.try_get(to).unwrap_or_else(|error| panic!("{} to {to}: {error}", self.name))
    }

    /// As [`Pod::get`], where it may fail.
    pub fn try_get(&self, to: SocketAddr) -> io::Result<Response> {
        let mut client = Client::over(self.try_connect(to)?);
        client.stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")?;
        client.try_response("GET")
    }

    /// A listening socket in the pod.
    pub fn listen(&self, address: &str) -> TcpListener {
        self.inside(|| TcpListener::bind(address)).expect("listening in the pod")
    }

    /// An application of the pod's name on a free port of all its addresses.
    pub fn app(&self) -> App {
        self.app_on("[::]:0", &self.name)
    }

    /// An application of this name.
    pub fn app_on(&self, address: &str, name: &str) -> App {
        let name = name.to_owned();
        self.serve(address, move |stream| introduce(stream, &name))
    }

    /// An application that does with its connections what `serve` does.
    pub fn serve(&self, address: &str, serve: impl Fn(TcpStream) + Clone + Send + 'static) -> App {
        let upstream = Upstream::on(self.listen(address), serve);
        let port = upstream.address.port();
        App { v4: (self.v4, port).into(), v6: (self.v6, port).into(), port, upstream }
    }

    /// Everything that capture by rules may leave behind in a namespace, for comparing.
    pub fn footprint(&self) -> String {
        const COMMANDS: [&[&str]; 7] = [
            &["iptables-nft-save"],
            &["ip6tables-nft-save"],
            &["nft", "list", "ruleset"],
            &["ip", "rule"],
            &["ip", "-6", "rule"],
            &["ip", "route", "show", "table", "all"],
            &["ip", "-6", "route", "show", "table", "all"],
        ];
        const FILES: [&str; 3] = [
            // Asking iptables-legacy would make the tables it is asked about.
            "/proc/thread-self/net/ip_tables_names",
            "/proc/thread-self/net/ip6_tables_names",
            "/proc/sys/net/ipv4/tcp_fwmark_accept",
        ];
        let shown = |what: String, text: String| {
            let lasting = text.lines().filter(|line| !line.starts_with('#')).map(without_counters);
            let lasting = lasting.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
            format!("{what}\n{}\n", without_empty_chains(&lasting))
        };
        self.inside(|| {
            let commands = COMMANDS.map(|it| shown(it.join(" "), output_of_any(&mut words(it))));
            let files = FILES.map(|it| shown(it.to_owned(), fs::read_to_string(it).unwrap_or_default()));
            commands.concat() + &files.concat()
        })
    }
}

impl App {
    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.upstream.accepted()
    }
}

impl Seen {
    /// Reads the answer of an [`App`].
    pub fn in_text(text: &str) -> Self {
        let mut parts = text.splitn(3, '\n');
        let mut part = || parts.next().unwrap_or_else(|| panic!("no answer of an application: {text}"));
        let (by, peer, head) = (part().to_owned(), part().parse().expect("an address"), part().to_owned());
        Self { by, peer, head }
    }
}

impl From<&Response> for Seen {
    fn from(response: &Response) -> Self {
        assert_eq!(response.status, 200, "{}", response.text());
        Self::in_text(&response.text())
    }
}

/// Answers every request of a connection with who answers, who asks and what is asked.
pub fn introduce(mut stream: TcpStream, name: &str) {
    let Ok(peer) = stream.peer_addr() else { return };
    let peer = canonical(peer);
    while let Some((head, _)) = read_request(&mut stream) {
        if stream.write_all(&ok(format!("{name}\n{peer}\n{head}").as_bytes())).is_err() {
            return;
        }
    }
}

/// IPv4 addresses in their IPv6-mapped form become IPv4 addresses.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn words(command: &[&str]) -> Command {
    let mut words = Command::new(command[0]);
    words.args(&command[1..]).stdin(Stdio::null());
    words
}

/// Runs `ip` with these words. It must succeed.
pub fn ip(arguments: &str) -> String {
    output(Command::new("ip").args(arguments.split(' ')))
}

/// Runs `ip` once for several commands in a namespace. All of them must succeed.
fn ip_all(namespace: &str, commands: &[&str]) {
    feed(Command::new("ip").args(["-n", namespace, "-batch", "-"]), &commands.join("\n"));
}

/// Runs a command with this input; what it prints. It must succeed.
fn feed(command: &mut Command, input: &str) -> String {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child: Child = piped.spawn().expect("started");
    child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("its end");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("started");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {} {errors}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

/// Also of a command that fails, because there is nothing to show.
fn output_of_any(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("started");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn without_counters(line: &str) -> &str {
    line.split(" [").next().unwrap_or_default()
}

/// `iptables` shows the built-in chains of a table always; whether they are there, empty, makes no difference.
fn without_empty_chains(ruleset: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for line in ruleset.lines() {
        kept.push(line);
        if let [.., chain, hook, end] = kept[..]
            && chain.starts_with("\tchain ")
            && hook.ends_with("policy accept;")
            && end == "\t}"
        {
            kept.truncate(kept.len() - 3);
        }
    }
    kept.join("\n")
}
