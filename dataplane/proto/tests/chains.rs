//! The choice of filter chains, against the plainest way to make it, and facts observed on Envoy 1.40.

#[path = "checks/naive_chains.rs"]
mod chains;

use std::net::SocketAddr;

use culvert_model::{FilterChainMatch, SourceType};
use culvert_proto::chain::{Facts, Opening, Selection};
use proptest::{collection::vec, prelude::*, sample::select};

#[derive(Clone, Debug)]
struct Connection {
    destination: Option<SocketAddr>,
    source: Option<SocketAddr>,
    direct: Option<SocketAddr>,
    opening: Opening,
}

impl Connection {
    fn facts(&self) -> Facts<'_> {
        Facts {
            destination: self.destination,
            source: self.source,
            direct_source: self.direct,
            opening: Some(&self.opening),
        }
    }
}

fn address() -> impl Strategy<Value = Option<SocketAddr>> {
    let ip = select(vec!["10.0.0.1", "10.0.1.1", "127.0.0.1", "192.168.0.1", "::1", "fd00::1"]);
    let known =
        (ip, select(vec![1_u16, 2, 3])).prop_map(|(ip, port)| SocketAddr::new(ip.parse().unwrap(), port));
    prop_oneof![9 => known.prop_map(Some), 1 => Just(None)]
}

fn connection() -> impl Strategy<Value = Connection> {
    let names = vec!["", "a.b", "x.a.b", "y.x.a.b", "b", ".b", "a.b.", "other"];
    let protocols = vec(select(vec!["h2", "http/1.1", "x"]).prop_map(str::to_owned), 0..3);
    (address(), address(), address(), select(names), any::<bool>(), protocols).prop_map(
        |(destination, source, direct, name, tls, protocols)| Connection {
            destination,
            source,
            direct,
            opening: Opening { server_name: name.to_owned(), tls, protocols },
        },
    )
}

fn ranges() -> impl Strategy<Value = Vec<ipnet::IpNet>> {
    let range = select(vec!["10.0.0.0/8", "10.0.0.0/24", "127.0.0.0/8", "10.0.0.1/32", "::/0", "fd00::/8"]);
    vec(range.prop_map(|range| range.parse().unwrap()), 0..3)
}

fn texts(of: &[&'static str]) -> impl Strategy<Value = Vec<String>> {
    vec(select(of.to_vec()).prop_map(str::to_owned), 0..3)
}

fn chain_match() -> impl Strategy<Value = FilterChainMatch> {
    let addresses = (proptest::option::of(select(vec![1_u16, 2])), ranges(), ranges(), ranges());
    let opening = (
        texts(&["a.b", "*.a.b", "*.b", "other"]),
        select(vec!["", "tls", "raw_buffer"]),
        texts(&["h2", "http/1.1"]),
    );
    let sources = (
        select(vec![SourceType::Any, SourceType::External, SourceType::Local]),
        vec(select(vec![1_u16, 2]), 0..2),
    );
    (addresses, opening, sources).prop_map(
        |((port, destination, direct, source), (names, transport, protocols), (kind, ports))| {
            FilterChainMatch {
                destination_port: port,
                destination_prefixes: destination,
                server_names: names,
                transport_protocol: transport.to_owned(),
                application_protocols: protocols,
                direct_source_prefixes: direct,
                source_type: kind,
                source_prefixes: source,
                source_ports: ports,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn as_the_plainest_way(matches in vec(chain_match(), 0..8), connections in vec(connection(), 1..8)) {
        let matches = chains::without_overlap(matches);
        let compiled = chains::compile(&matches);
        for connection in &connections {
            let facts = connection.facts();
            let expected = chains::naive(&matches, &facts).map_or(Selection::Default, Selection::Chain);
            prop_assert_eq!(compiled.select(&facts), expected, "{:?}\n{:?}", connection, matches);
            // What is decided without the first bytes is what is decided with them.
            let early = compiled.select(&Facts { opening: None, ..facts });
            prop_assert!(early == Selection::Undecided || early == expected);
        }
    }
}

fn rule(change: impl FnOnce(&mut FilterChainMatch)) -> FilterChainMatch {
    let mut rule = FilterChainMatch::default();
    change(&mut rule);
    rule
}

#[test]
fn what_was_decided_is_not_taken_back() {
    let local: SocketAddr = "127.0.0.1:5".parse().unwrap();
    let facts =
        Facts { destination: Some(local), source: Some(local), direct_source: Some(local), opening: None };
    let narrow = rule(|it| {
        it.destination_prefixes = vec!["127.0.0.0/8".parse().unwrap()];
        it.source_ports = vec![1];
    });
    let compiled = chains::compile(&[narrow, FilterChainMatch::default()]);
    assert_eq!(compiled.select(&facts), Selection::Default);
    let port = rule(|it| {
        it.destination_port = Some(5);
        it.source_ports = vec![1];
    });
    assert_eq!(chains::compile(&[port, FilterChainMatch::default()]).select(&facts), Selection::Default);
}

#[test]
fn whether_a_client_is_local_goes_by_what_a_proxy_header_says() {
    let at = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
    let local = rule(|it| it.source_type = SourceType::Local);
    let external = rule(|it| it.source_type = SourceType::External);
    let compiled = chains::compile(&[local, external]);
    let facts =
        |destination, source, direct_source| Facts { destination, source, direct_source, opening: None };
    let here = at("127.0.0.1:1");
    assert_eq!(compiled.select(&facts(at("5.6.7.8:1"), at("9.9.9.9:1"), here)), Selection::Chain(1));
    assert_eq!(compiled.select(&facts(at("9.9.9.9:2"), at("9.9.9.9:1"), here)), Selection::Chain(0));
    assert_eq!(compiled.select(&facts(at("5.6.7.8:1"), here, at("9.9.9.9:1"))), Selection::Chain(0));
    assert_eq!(compiled.select(&facts(None, None, None)), Selection::Chain(0));
}

#[test]
fn only_chains_for_the_destination_can_depend_on_the_first_bytes() {
    let named = rule(|it| {
        it.destination_port = Some(443);
        it.server_names = vec!["a.b".to_owned()];
    });
    let compiled = chains::compile(&[named, FilterChainMatch::default()]);
    let facts = |port: u16| Facts {
        destination: Some(SocketAddr::from(([10, 0, 0, 1], port))),
        source: None,
        direct_source: None,
        opening: None,
    };
    assert_eq!(compiled.select(&facts(443)), Selection::Undecided);
    assert_eq!(compiled.select(&facts(80)), Selection::Chain(1));
}
