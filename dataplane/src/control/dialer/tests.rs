use culvert_xds::{LoadOptions, load_bootstrap};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UnixListener},
};

use super::*;

fn config(clusters: &str) -> Arc<Config> {
    let yaml = format!("static_resources: {{clusters: [{clusters}]}}");
    let options = LoadOptions { config_yaml: Some(yaml), ..LoadOptions::default() };
    Arc::new(load_bootstrap(&options).unwrap().bootstrap.config)
}

fn cluster(extra: &str, groups: &[&[(&str, u16)]]) -> String {
    let groups = groups.iter().enumerate().map(|(priority, endpoints)| {
        let endpoints = endpoints.iter().map(|(address, port)| match port {
            0 => format!("{{endpoint: {{address: {{pipe: {{path: '{address}'}}}}}}}}"),
            port => format!(
                "{{endpoint: {{address: {{socket_address: {{address: {address}, port_value: {port}}}}}}}}}"
            ),
        });
        let endpoints = endpoints.collect::<Vec<_>>().join(", ");
        format!("{{priority: {priority}, lb_endpoints: [{endpoints}]}}")
    });
    let groups = groups.collect::<Vec<_>>().join(", ");
    format!(
        "{{name: a, connect_timeout: 2s, {extra}, load_assignment: {{cluster_name: a, endpoints: [{groups}]}}}}"
    )
}

fn dialer(text: &str) -> ClusterDialer {
    ClusterDialer::new(config(text), Arc::default(), Arc::default(), false)
}

/// Listens and says `word` to whoever connects.
async fn says(word: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(word.as_bytes()).await.unwrap();
        }
    });
    port
}

async fn heard(dialer: &ClusterDialer) -> String {
    let mut text = String::new();
    dialer.connect("a").await.unwrap().read_to_string(&mut text).await.unwrap();
    text
}

/// A port that nobody listens on.
async fn closed() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

async fn error(dialer: &ClusterDialer, cluster: &str) -> String {
    dialer.connect(cluster).await.err().unwrap().to_string()
}

#[tokio::test]
async fn endpoints_take_turns_and_failed_ones_are_passed_over() {
    let (one, two, dead) = (says("one").await, says("two").await, closed().await);
    let local = |port| ("127.0.0.1", port);
    let dialer = dialer(&cluster("type: STATIC", &[&[local(one), local(dead), local(two)]]));
    let mut words = Vec::new();
    for _ in 0..4 {
        words.push(heard(&dialer).await);
    }
    assert_eq!(words, ["one", "two", "two", "one"]);
}

#[tokio::test]
async fn lower_priorities_are_for_when_the_first_fails() {
    let (one, two, dead) = (says("one").await, says("two").await, closed().await);
    let local = |port| ("127.0.0.1", port);
    let first = dialer(&cluster("type: STATIC", &[&[local(one)], &[local(two)]]));
    for _ in 0..3 {
        assert_eq!(heard(&first).await, "one");
    }
    let second = dialer(&cluster("type: STATIC", &[&[local(dead)], &[local(two)]]));
    assert_eq!(heard(&second).await, "two");
}

#[tokio::test]
async fn names_are_resolved_before_there_is_a_snapshot() {
    let port = says("named").await;
    let text = cluster("type: STRICT_DNS, dns_lookup_family: V4_ONLY", &[&[("localhost", port)]]);
    assert_eq!(heard(&dialer(&text)).await, "named");
}

#[tokio::test]
async fn resolved_names_and_later_configurations_are_used() {
    let (one, two) = (says("one").await, says("two").await);
    let text = cluster("type: STRICT_DNS", &[&[("does.not.resolve.invalid", one)]]);
    let dialer = dialer(&text);
    let endpoint = Endpoint {
        address: Address::Ip(([127, 0, 0, 1], two).into()),
        additional: Box::default(),
        metadata: None,
        locality: Arc::default(),
        hostname: Arc::default(),
        weight: 1,
        priority: 0,
        health: Health::Healthy,
        check: None,
    };
    let resolved = Resolved::from([(
        "a".into(),
        Arc::new(LoadAssignment { endpoints: vec![Arc::new(endpoint)], ..LoadAssignment::default() }),
    )]);
    dialer.update(&config(&text), &resolved, true);
    assert_eq!(heard(&dialer).await, "two");
    dialer.update(&config(&cluster("type: STATIC", &[&[("127.0.0.1", one)]])), &Resolved::new(), true);
    assert_eq!(heard(&dialer).await, "one");
}

#[tokio::test]
async fn unix_sockets() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let name = format!("@culvert-dialer-{}", std::process::id());
    for (bind, path) in [(path.clone(), path.display().to_string()), (socket_path(Path::new(&name)), name)] {
        let listener = UnixListener::bind(bind).unwrap();
        let dialer = dialer(&cluster("type: STATIC", &[&[(path.as_str(), 0)]]));
        let (dialled, accepted) = tokio::join!(dialer.connect("a"), listener.accept());
        accepted.unwrap().0.write_all(b"x").await.unwrap();
        assert_eq!(dialled.unwrap().read_u8().await.unwrap(), b'x');
    }
}

#[tokio::test]
async fn what_cannot_be_dialled_is_named() {
    let dead = closed().await;
    let dialer = dialer(&cluster("type: STATIC", &[&[("127.0.0.1", dead)]]));
    assert_eq!(error(&dialer, "b").await, "there is no cluster \"b\"");
    assert!(dialer.settings("b").is_none());
    let text = error(&dialer, "a").await;
    assert!(text.starts_with(&format!("a: 127.0.0.1:{dead}: ")), "{text}");
    assert_eq!(error(&self::dialer(&cluster("type: STATIC", &[])), "a").await, "a: no endpoints");
}

#[test]
fn settings_come_from_http2_options() {
    let text = cluster(
        "type: STATIC, http2_protocol_options: {connection_keepalive: {interval: 30s, timeout: 5s}}",
        &[],
    );
    let settings = dialer(&text).settings("a").unwrap();
    assert!(!settings.tls);
    assert_eq!(settings.http2.keepalive_interval, Some(Duration::from_secs(30)));
    assert_eq!(settings.http2.keepalive_timeout, Some(Duration::from_secs(5)));
}
