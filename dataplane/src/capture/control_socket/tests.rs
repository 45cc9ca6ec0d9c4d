use std::{os::unix::fs::PermissionsExt, os::unix::process::CommandExt, process::Command};

use super::*;
use crate::capture::{PodSpec, testing::TestDir};

/// A socket in a directory of its own, answering `list` with nothing and `remove` with the name.
struct Served {
    directory: TestDir,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    fn start(name: &str) -> Self {
        let directory = TestDir::new(name);
        let socket = ControlSocket::bind(&directory.path().join("run/culvert.sock")).unwrap();
        let (calls, mut receiver) = mpsc::channel::<Call>(1);
        tokio::spawn(socket.serve(calls));
        let task = tokio::spawn(async move {
            while let Some(Call { request, reply }) = receiver.recv().await {
                let response = match request {
                    Request::Remove { name, .. } => Response::messages(name.into_iter().collect()),
                    Request::Add { .. } => continue,
                    _ => Response::pods(Vec::new()),
                };
                let _ = reply.send(response);
            }
        });
        Self { directory, task }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("run/culvert.sock")
    }

    async fn call(&self, request: Request) -> Result<Response, CallError> {
        let path = self.path();
        tokio::task::spawn_blocking(move || call(&path, &request)).await.unwrap()
    }

    /// Sends bytes as they are, closes the sending side, and returns all that comes back.
    async fn raw(&self, bytes: Vec<u8>) -> String {
        let path = self.path();
        tokio::task::spawn_blocking(move || {
            let mut stream = StdStream::connect(path).unwrap();
            // The peer may hang up before all is sent.
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            String::from_utf8(answer).unwrap()
        })
        .await
        .unwrap()
    }
}

#[tokio::test]
async fn socket_and_directory_are_roots_alone() {
    let served = Served::start("modes");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&served.path()), 0o600);
    assert_eq!(mode(served.path().parent().unwrap()), 0o700);
}

#[tokio::test]
async fn requests_are_answered_in_order() {
    let served = Served::start("order");
    assert_eq!(served.call(Request::List {}).await.unwrap(), Response::pods(Vec::new()));
    let removed = served.call(Request::Remove { name: Some("a".into()), netns: None }).await.unwrap();
    assert_eq!(removed, Response::messages(vec!["a".into()]));
    let both = served
        .raw(b"{\"op\":\"remove\",\"name\":\"x\"}\n{\"op\":\"remove\",\"name\":\"y\"}\n".to_vec())
        .await;
    let lines: Vec<Response> = both.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, [Response::messages(vec!["x".into()]), Response::messages(vec!["y".into()])]);
}

#[tokio::test]
async fn garbage_is_answered_and_does_no_harm() {
    let served = Served::start("garbage");
    let cases: [(Vec<u8>, &str); 7] = [
        (b"\0\xff\xfe\n".to_vec(), "not understood"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "not understood"),
        (b"{\"op\":\"explode\"}\n".to_vec(), "not understood"),
        (b"{\"op\":\"add\"}\n".to_vec(), "missing field `pod`"),
        (b"{\"op\":\"add\",\"pod\":{\"netns\":\"/x\",\"colour\":1}}\n".to_vec(), "colour"),
        (b"{\"op\":\"list\"}".to_vec(), "without end of line"),
        (vec![b'x'; (REQUEST_LEN_MAX + 10) as usize], "too long"),
    ];
    for (bytes, expected) in cases {
        let answer = served.raw(bytes).await;
        assert!(answer.contains(expected), "expected {expected:?} in {answer:?}");
    }
    // Nested deep enough to overflow a naive parser's stack.
    assert!(served.raw([vec![b'['; 60_000], vec![b'\n']].concat()).await.contains("not understood"));
    assert_eq!(served.raw(Vec::new()).await, "");
    assert_eq!(served.call(Request::List {}).await.unwrap(), Response::pods(Vec::new()));
}

#[tokio::test]
async fn a_silent_peer_does_not_hold_up_others() {
    let served = Served::start("silent");
    let silent: Vec<_> = (0..PEERS_MAX - 1).map(|_| StdStream::connect(served.path()).unwrap()).collect();
    assert_eq!(served.call(Request::List {}).await.unwrap(), Response::pods(Vec::new()));
    drop(silent);
}

#[tokio::test]
async fn an_unanswered_call_is_an_error() {
    let served = Served::start("unanswered");
    let answer = served.call(Request::Add { pod: PodSpec::new("a", "/x") }).await.unwrap();
    assert_eq!(answer, Response::error("culvert is shutting down"));
    served.task.abort();
}

/// Waited for: a process that another test starts at this moment has the socket too, until it is another program.
fn nobody_answers(path: &Path) -> bool {
    (0..200).any(|_| {
        let error = call(path, &Request::List {});
        thread::sleep(Duration::from_millis(20));
        matches!(error, Err(CallError::NotRunning(_)))
    })
}

#[tokio::test]
async fn a_living_socket_is_refused_and_a_dead_one_replaced() {
    let directory = TestDir::new("live");
    let path = directory.path().join("c.sock");
    let first = ControlSocket::bind(&path).unwrap();
    assert!(matches!(ControlSocket::bind(&path), Err(ControlSocketError::Live(_))));
    assert!(matches!(InstanceLock::take(&path), Err(ControlSocketError::Live(_))));
    drop(first);
    assert!(!path.exists());
    assert!(nobody_answers(&path));

    // What kill -9 leaves: the socket file, and nobody behind it.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    assert!(nobody_answers(&path));
    let second = ControlSocket::bind(&path).unwrap();
    assert!(StdStream::connect(second.path()).is_ok());
}

#[tokio::test]
async fn other_files_are_left_alone() {
    let directory = TestDir::new("file");
    let path = directory.path().join("c.sock");
    fs::write(&path, "precious").unwrap();
    assert!(matches!(ControlSocket::bind(&path), Err(ControlSocketError::NotASocket(_))));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");

    let open = directory.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(ControlSocket::bind(&open.join("c.sock")), Err(ControlSocketError::OpenDirectory(_))));
}

/// Runs in a child with another uid: see [`others_than_root_are_refused`].
#[test]
fn child_of_another_user() {
    let Ok(path) = std::env::var("CULVERT_TEST_CONTROL_SOCKET") else {
        return;
    };
    match call(Path::new(&path), &Request::List {}) {
        Err(CallError::Denied(_)) => println!("outcome: denied by mode"),
        Ok(Response::Error { message }) => println!("outcome: {message}"),
        other => println!("outcome: {other:?}"),
    }
}

#[tokio::test]
async fn others_than_root_are_refused() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let served = Served::start("peercred");
    let as_nobody = |path: PathBuf| async move {
        let child = tokio::task::spawn_blocking(move || {
            Command::new(std::env::current_exe().unwrap())
                .args(["child_of_another_user", "--nocapture"])
                .env("CULVERT_TEST_CONTROL_SOCKET", path)
                .uid(65534)
                .gid(65534)
                .output()
                .unwrap()
        });
        String::from_utf8(child.await.unwrap().stdout).unwrap()
    };
    let path = served.path();
    fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    let output = as_nobody(path.clone()).await;
    assert!(output.contains("outcome: denied by mode"), "{output}");
    // Even with the file wide open, the peer's credentials decide.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let output = as_nobody(path).await;
    assert!(output.contains("outcome: only root may change pods"), "{output}");
}
