//! Pods made of real network namespaces, and plain sockets in the place of the proxy.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part of this module")]

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use culvert_bpf::{
    Capture, CaptureConfig, InboundListener, PodSpec, netns_addresses, netns_cookie, run_in_netns, uninstall,
};
use socket2::{Domain, SockAddr, Socket, Type};

/// Only ends a test that would otherwise hang.
pub const HANG_GUARD: Duration = Duration::from_secs(60);

/// Held while a child process is started. Between fork and exec the child has all our sockets, and a socket that is
/// closed meanwhile lives on: see [`close`].
static FORK: Mutex<()> = Mutex::new(());

static WORLDS: AtomicUsize = AtomicUsize::new(0);
static CGROUP_USERS: Mutex<usize> = Mutex::new(0);

/// A bridge with pods on it, a cgroup with this process in it, and a place for pins.
pub struct World {
    pub pin_dir: PathBuf,
    cgroup: TestCgroup,
    prefix: String,
    pods: usize,
    namespaces: Vec<String>,
}

impl World {
    pub fn new() -> Self {
        let id = format!("{}-{}", process::id(), WORLDS.fetch_add(1, Ordering::Relaxed));
        let mut world = Self {
            pin_dir: PathBuf::from(format!("/sys/fs/bpf/culvert-test-{id}")),
            cgroup: TestCgroup::enter(),
            prefix: format!("cvt-{id}"),
            pods: 0,
            namespaces: Vec::new(),
        };
        let hub = world.namespace("hub");
        ip_all(&hub, &["link add br0 type bridge forward_delay 0", "link set br0 up"]);
        world
    }

    pub fn config(&self) -> CaptureConfig {
        CaptureConfig { pin_dir: self.pin_dir.clone(), cgroup: Some(self.cgroup.path.clone()) }
    }

    pub fn capture(&self) -> Capture {
        Capture::open(self.config()).unwrap()
    }

    /// A namespace with one address of each family, on the same network as its siblings.
    pub fn pod(&mut self) -> Pod {
        self.pods += 1;
        let number = self.pods;
        let name = self.namespace(&format!("pod{number}"));
        let hub = &self.namespaces[0];
        let v4 = Ipv4Addr::new(10, 77, 0, number as u8);
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number as u16);
        let link = format!("link add v{number} type veth peer name eth0 netns {name}");
        ip_all(hub, &[&link, &format!("link set v{number} master br0 up")]);
        ip_all(
            &name,
            &[
                // A link-local address would come up some time later, and change what the namespace looks like.
                "link set eth0 addrgenmode none",
                &format!("addr add {v4}/24 dev eth0"),
                &format!("addr add {v6}/64 dev eth0 nodad"),
                "link set eth0 up",
            ],
        );
        let netns = File::open(format!("/run/netns/{name}")).unwrap();
        let cookie = netns_cookie(netns.as_fd()).unwrap();
        Pod { name, netns, cookie, v4: v4.into(), v6: v6.into() }
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
        let _ = uninstall(&self.pin_dir);
        for name in &self.namespaces {
            let _ = spawn(Command::new("ip").args(["netns", "del", name])).wait();
        }
    }
}

/// A network namespace that plays a pod.
pub struct Pod {
    pub name: String,
    pub netns: File,
    pub cookie: u64,
    pub v4: IpAddr,
    pub v6: IpAddr,
}

impl Pod {
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        run_in_netns(self.netns.as_fd(), f).unwrap()
    }

    pub fn listen(&self, address: &str) -> TcpListener {
        self.run(|| listen(address))
    }

    /// An application that accepts both families on the same port.
    pub fn app(&self) -> App {
        let listener = self.listen("[::]:0");
        let port = listener.local_addr().unwrap().port();
        App { listener, v4: SocketAddr::new(self.v4, port), v6: SocketAddr::new(self.v6, port), port }
    }

    /// A stream socket of the given domain.
    pub fn socket(&self, domain: Domain) -> Socket {
        self.run(|| {
            let socket = Socket::new(domain, Type::STREAM, None).unwrap();
            socket.set_read_timeout(Some(HANG_GUARD)).unwrap();
            socket
        })
    }

    pub fn try_connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        connect(self.socket(Domain::for_address(to)), to)
    }

    pub fn connect(&self, to: SocketAddr) -> TcpStream {
        self.try_connect(to).unwrap_or_else(|e| panic!("{} to {to}: {e}", self.name))
    }

    /// Four listeners on loopback addresses.
    pub fn proxy(&self) -> Proxy {
        let out4 = self.listen("127.0.0.1:0");
        let outbound_port = out4.local_addr().unwrap().port();
        let out6 = self.listen(&format!("[::1]:{outbound_port}"));
        let in4 = self.listen("127.0.0.1:0");
        let inbound_port = in4.local_addr().unwrap().port();
        let in6 = self.listen(&format!("[::1]:{inbound_port}"));
        Proxy { out4, out6, in4, in6, outbound_port, inbound_port }
    }

    pub fn spec<'a>(&'a self, proxy: &'a Proxy, strict: bool) -> PodSpec<'a> {
        PodSpec {
            name: self.name.clone(),
            netns: self.netns.as_fd(),
            cookie: self.cookie,
            outbound_port: proxy.outbound_port,
            inbound_port: Some(proxy.inbound_port),
            inbound_listener: InboundListener { v4: Some(proxy.in4.as_fd()), v6: Some(proxy.in6.as_fd()) },
            strict,
            addresses: netns_addresses(self.netns.as_fd()).unwrap(),
        }
    }
}

/// A server on one port of all addresses.
pub struct App {
    pub listener: TcpListener,
    pub v4: SocketAddr,
    pub v6: SocketAddr,
    pub port: u16,
}

impl App {
    pub fn accept(&self) -> (TcpStream, SocketAddr) {
        accept(&self.listener)
    }
}

/// The listeners of a pod's proxy.
pub struct Proxy {
    pub out4: TcpListener,
    pub out6: TcpListener,
    pub in4: TcpListener,
    pub in6: TcpListener,
    pub outbound_port: u16,
    pub inbound_port: u16,
}

pub fn listen(address: &str) -> TcpListener {
    let address: SocketAddr = address.parse().unwrap();
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    // Tests that connect and find nobody accepting must not wait for it for ever.
    socket.set_read_timeout(Some(HANG_GUARD)).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(4096).unwrap();
    socket.into()
}

pub fn connect(socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
    socket.connect_timeout(&SockAddr::from(to), HANG_GUARD)?;
    Ok(socket.into())
}

/// The next connection; both addresses with v4-mapped ones as IPv4.
pub fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let (stream, peer) = listener.accept().unwrap();
    stream.set_read_timeout(Some(HANG_GUARD)).unwrap();
    (stream, canonical(peer))
}

pub fn nobody_waits(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).unwrap();
    let result = listener.accept();
    listener.set_nonblocking(false).unwrap();
    matches!(result, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
}

pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// That the two streams are the two ends of one connection.
pub fn assert_joined(mut one: &TcpStream, mut other: &TcpStream) {
    one.write_all(b"ping").unwrap();
    let mut buffer = [0; 4];
    other.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"ping");
    other.write_all(b"pong").unwrap();
    one.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"pong");
}

/// Closes both ends without leaving the tuple in TIME_WAIT.
pub fn abort(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    close(stream);
}

/// Whether the kernel has what splicing cannot do without. If not, the running test is skipped.
pub fn can_splice() -> bool {
    let can = is_helper_supported(ProgramType::SockOps, BpfHelper::BPF_FUNC_get_netns_cookie).unwrap();
    if !can {
        skip("no splicing: sock_ops programs cannot ask for the network namespace (Linux 5.15)");
    }
    can
}

/// Says why the running test is nothing for this kernel, where those who count tests look for it.
pub fn skip(reason: &str) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("{test}: skipped: {reason}");
    let Some(path) = env::var_os("CULVERT_SKIP_LOG") else { return };
    let mut log = OpenOptions::new().append(true).create(true).open(path).unwrap();
    // In one piece: other tests write to it too.
    log.write_all(format!("{test}: {reason}\n").as_bytes()).unwrap();
}

/// Starts a child process that has none of our sockets when this returns.
pub fn spawn(command: &mut Command) -> Child {
    let _fork = FORK.lock().unwrap_or_else(PoisonError::into_inner);
    command.spawn().unwrap()
}

/// Closes sockets for good, also when another test is starting a child process at the same time.
pub fn close<T>(sockets: T) {
    let _fork = FORK.lock().unwrap_or_else(PoisonError::into_inner);
    drop(sockets);
}

pub fn ip(arguments: &str) -> String {
    let mut command = Command::new("ip");
    let child = spawn(command.args(arguments.split(' ')).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `ip` once for several commands in a namespace.
fn ip_all(namespace: &str, commands: &[&str]) {
    let mut command = Command::new("ip");
    command.args(["-n", namespace, "-batch", "-"]).stdin(Stdio::piped());
    let mut child = spawn(&mut command);
    child.stdin.take().unwrap().write_all(commands.join("\n").as_bytes()).unwrap();
    let status = child.wait().unwrap();
    assert!(status.success(), "ip {commands:?}: {status}");
}

/// A cgroup of this test process, entered by it while any test needs it.
struct TestCgroup {
    path: PathBuf,
    home: PathBuf,
}

impl TestCgroup {
    fn enter() -> Self {
        let mut users = users();
        let root = cgroup2_root();
        let path = root.join(format!("culvert-test-{}", process::id()));
        let home = root.join(home_cgroup(&path));
        if *users == 0 {
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("cgroup.procs"), process::id().to_string()).unwrap();
        }
        *users += 1;
        Self { path, home }
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        let mut users = users();
        *users -= 1;
        if *users == 0 {
            let _ = fs::write(self.home.join("cgroup.procs"), process::id().to_string());
            let _ = fs::remove_dir(&self.path);
        }
    }
}

fn users() -> MutexGuard<'static, usize> {
    CGROUP_USERS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cgroup2_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    let found = mounts.find_map(|mut f| f.nth(1).filter(|_| f.next() == Some("cgroup2")).map(PathBuf::from));
    found.expect("no cgroup2 file system")
}

/// Where the process belongs when no test runs: its cgroup of before, or the root if that is the test's own.
fn home_cgroup(own: &Path) -> PathBuf {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    if own.ends_with(path) { PathBuf::new() } else { PathBuf::from(path) }
}
