//! Access control: each kind of rule, and what follows from policies.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use culvert_model::{
    ConnectionInput, ConnectionMatch, ConnectionMatcher, ConnectionOutcome, ConnectionThen, HeaderMatcher,
    HeaderRule, Metadata, RbacAction, RbacMetadata, RbacOutcome, RbacPolicy, RbacRule, RbacRules,
    StringMatcher, Value, ValueMatcher,
};
use culvert_proto::{
    Headers,
    chain::{Facts, Opening},
    rbac::{Decision, Engine, Identity, State, View},
    route::RequestView,
};

fn exact(value: &str) -> StringMatcher {
    StringMatcher::Exact { value: value.to_owned(), ignore_case: false }
}

/// Everything a view can have.
struct World {
    opening: Opening,
    headers: Headers,
    metadata: Metadata,
    route: Metadata,
    state: State,
    uris: Vec<String>,
    dns: Vec<String>,
}

impl World {
    fn new() -> Self {
        let mut headers = Headers::new();
        headers.push("x-role", "admin");
        let metadata = |value: Value| {
            let inner = BTreeMap::from([("b".to_owned(), value)]);
            let outer = BTreeMap::from([("a".to_owned(), Value::Struct(Arc::new(inner)))]);
            Metadata(BTreeMap::from([("ns".to_owned(), outer)]))
        };
        Self {
            opening: Opening { server_name: "sni.test".to_owned(), tls: true, protocols: Vec::new() },
            headers,
            metadata: metadata(Value::List([Value::String("x".into()), Value::Number(1.5)].into())),
            route: metadata(Value::Bool(true)),
            state: State::from([("key".to_owned(), "object".to_owned())]),
            uris: vec!["spiffe://td/ns/a".to_owned()],
            dns: vec!["dns.test".to_owned()],
        }
    }

    fn view(&self) -> View<'_> {
        let address = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
        let connection = Facts {
            destination: address("10.0.0.1:443"),
            source: address("10.1.0.2:1000"),
            direct_source: address("10.2.0.3:2000"),
            opening: Some(&self.opening),
        };
        View {
            remote: Some("10.3.0.4".parse().unwrap()),
            identity: Some(Identity {
                has_certificate: true,
                uris: &self.uris,
                dns: &self.dns,
                subject: "CN=subject",
            }),
            request: Some(RequestView {
                method: b"GET",
                scheme: b"https",
                authority: b"h",
                path: b"/p/q?query#fragment",
                headers: &self.headers,
            }),
            metadata: Some(&self.metadata),
            route_metadata: Some(&self.route),
            state: Some(&self.state),
            ..View::connection(connection)
        }
    }
}

fn rules(action: RbacAction, policies: Vec<(&str, Vec<RbacRule>, Vec<RbacRule>)>) -> RbacRules {
    let policies = policies
        .into_iter()
        .map(|(name, permissions, principals)| (name.to_owned(), RbacPolicy { permissions, principals }))
        .collect();
    RbacRules::Policies { action, policies }
}

fn matches(rule: &RbacRule, view: &View<'_>) -> bool {
    let as_permission = rules(RbacAction::Allow, vec![("p", vec![rule.clone()], vec![RbacRule::Any])]);
    let as_principal = rules(RbacAction::Allow, vec![("p", vec![RbacRule::Any], vec![rule.clone()])]);
    let [a, b] = [as_permission, as_principal].map(|rules| Engine::compile(&rules).decide(view).allowed);
    assert_eq!(a, b, "{rule:?}");
    a
}

fn metadata(of_route: bool, path: &[&str], value: ValueMatcher, invert: bool) -> RbacRule {
    let path = path.iter().map(|key| (*key).to_owned()).collect();
    RbacRule::Metadata(Box::new(RbacMetadata { of_route, namespace: "ns".to_owned(), path, value, invert }))
}

fn header(value: &str, invert: bool) -> RbacRule {
    let rule = HeaderRule::String(exact(value));
    RbacRule::Header(Box::new(HeaderMatcher {
        name: "x-role".to_owned(),
        rule,
        invert,
        missing_is_empty: false,
    }))
}

#[test]
fn each_kind_of_rule() {
    let world = World::new();
    let view = world.view();
    let range = |text: &str| text.parse().unwrap();
    let state = |key: &str, value| RbacRule::FilterState { key: key.to_owned(), value: exact(value) };
    let element = |matcher| ValueMatcher::ListElement(Box::new(matcher));
    let text = |text| ValueMatcher::String(exact(text));
    let cases = [
        (RbacRule::Any, true),
        (RbacRule::Not(Box::new(RbacRule::Any)), false),
        (RbacRule::And(vec![RbacRule::Any, RbacRule::Not(Box::new(RbacRule::Any))]), false),
        (RbacRule::Or(vec![RbacRule::Any, RbacRule::Not(Box::new(RbacRule::Any))]), true),
        (RbacRule::Authenticated(None), true),
        (RbacRule::Authenticated(Some(exact("spiffe://td/ns/a"))), true),
        (RbacRule::Authenticated(Some(exact("dns.test"))), true),
        (RbacRule::Authenticated(Some(exact("CN=subject"))), true),
        (RbacRule::Authenticated(Some(exact("spiffe://td/ns/b"))), false),
        (RbacRule::DestinationIp(range("10.0.0.0/24")), true),
        (RbacRule::DestinationIp(range("10.1.0.0/24")), false),
        (RbacRule::SourceIp(range("10.1.0.0/24")), true),
        (RbacRule::SourceIp(range("10.2.0.0/24")), false),
        (RbacRule::DirectRemoteIp(range("10.2.0.0/24")), true),
        (RbacRule::DirectRemoteIp(range("10.3.0.0/24")), false),
        (RbacRule::RemoteIp(range("10.3.0.0/24")), true),
        (RbacRule::RemoteIp(range("10.1.0.0/24")), false),
        (
            RbacRule::Or(vec![RbacRule::RemoteIp(range("::/0")), RbacRule::RemoteIp(range("10.3.0.4/32"))]),
            true,
        ),
        (RbacRule::DestinationPorts(443, 444), true),
        (RbacRule::DestinationPorts(1, 443), false),
        (RbacRule::ServerName(exact("sni.test")), true),
        (RbacRule::ServerName(exact("other")), false),
        (RbacRule::UrlPath(exact("/p/q")), true),
        (RbacRule::UrlPath(exact("/p/q?query")), false),
        (header("admin", false), true),
        (header("admin", true), false),
        (state("key", "object"), true),
        (state("key", "x"), false),
        (state("none", ""), false),
        (metadata(false, &["a", "b"], element(text("x")), false), true),
        (metadata(false, &["a", "b"], element(text("y")), false), false),
        (metadata(false, &["a", "b"], element(text("y")), true), true),
        (metadata(false, &["a", "b"], element(ValueMatcher::Number(1.5)), false), true),
        (metadata(false, &["a", "b"], element(ValueMatcher::NumberRange(1.0, 1.5)), false), false),
        (metadata(false, &["a", "b"], ValueMatcher::Present(true), false), true),
        (metadata(false, &["a", "c"], ValueMatcher::Present(true), false), false),
        (metadata(false, &["a", "c"], ValueMatcher::Null, false), false),
        (metadata(false, &["a", "c"], ValueMatcher::Null, true), true),
        (metadata(true, &["a", "b"], ValueMatcher::Bool(true), false), true),
        (
            metadata(true, &["a", "b"], ValueMatcher::Or(vec![text("x"), ValueMatcher::Bool(false)]), false),
            false,
        ),
    ];
    for (rule, expected) in cases {
        assert_eq!(matches(&rule, &view), expected, "{rule:?}");
    }
}

/// A connection in the clear without requests matches nothing that would need them.
#[test]
fn what_is_not_there_matches_nothing() {
    let facts = Facts { destination: None, source: None, direct_source: None, opening: None };
    let view = View::connection(facts);
    let everywhere = "0.0.0.0/0".parse().unwrap();
    for rule in [
        RbacRule::Authenticated(None),
        RbacRule::DestinationIp(everywhere),
        RbacRule::RemoteIp(everywhere),
        RbacRule::DestinationPorts(0, 65_536),
        RbacRule::UrlPath(StringMatcher::Prefix { value: String::new(), ignore_case: false }),
        header("admin", true),
        metadata(false, &["a"], ValueMatcher::Present(true), false),
        RbacRule::FilterState { key: "key".to_owned(), value: exact("") },
    ] {
        assert!(!matches(&rule, &view), "{rule:?}");
    }
    // TLS without a client certificate.
    let view = View { identity: Some(Identity::default()), ..view };
    assert!(!matches(&RbacRule::Authenticated(None), &view));
    assert!(!matches(&RbacRule::Authenticated(Some(exact(""))), &view));
}

#[test]
fn actions() {
    let world = World::new();
    let view = world.view();
    let never = || RbacRule::Not(Box::new(RbacRule::Any));
    let decide = |action, policies: Vec<(&str, Vec<RbacRule>, Vec<RbacRule>)>| {
        let engine = Engine::compile(&rules(action, policies));
        let Decision { allowed, policy, logged } = engine.decide(&view);
        (allowed, policy.map(str::to_owned), logged)
    };
    let any = || vec![RbacRule::Any];
    let some = |name: &str| Some(name.to_owned());
    assert_eq!(decide(RbacAction::Allow, vec![]), (false, None, false));
    assert_eq!(decide(RbacAction::Deny, vec![]), (true, None, false));
    assert_eq!(decide(RbacAction::Log, vec![]), (true, None, false));
    // The first by name counts, and both halves of a policy have to match.
    let policies = || vec![("c", any(), any()), ("b", any(), any()), ("a", any(), vec![never()])];
    assert_eq!(decide(RbacAction::Allow, policies()), (true, some("b"), false));
    assert_eq!(decide(RbacAction::Deny, policies()), (false, some("b"), false));
    assert_eq!(decide(RbacAction::Log, policies()), (true, some("b"), true));
}

#[test]
fn a_matcher_decides() {
    let outcome = |name: &str, action| ConnectionOutcome {
        then: ConnectionThen::Action(RbacOutcome { name: name.to_owned(), action }),
        keep_matching: false,
    };
    let matcher = ConnectionMatcher {
        kind: ConnectionMatch::Exact(
            ConnectionInput::UriSan,
            [
                ("spiffe://td/ns/a".to_owned(), outcome("a b", RbacAction::Deny)),
                ("spiffe://td/ns/b".to_owned(), outcome("b", RbacAction::Log)),
            ]
            .into(),
        ),
        otherwise: None,
    };
    let engine = Engine::compile(&RbacRules::Matcher(Box::new(matcher)));
    let mut world = World::new();
    let denied = engine.decide(&world.view()).details();
    assert_eq!(denied, "rbac_access_denied_matched_policy[a_b]");
    world.uris = vec!["spiffe://td/ns/b".to_owned()];
    assert_eq!(engine.decide(&world.view()), Decision { allowed: true, policy: Some("b"), logged: true });
    world.uris.push("x".to_owned());
    let none = engine.decide(&world.view());
    assert_eq!((none.allowed, none.details().as_str()), (false, "rbac_access_denied_matched_policy[none]"));
}
