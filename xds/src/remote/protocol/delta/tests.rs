use proptest::prelude::*;

use super::*;

const EDS: ResourceType = ResourceType::LoadAssignment;
const CDS: ResourceType = ResourceType::Cluster;

fn names(names: &[&str]) -> Option<Arc<Interest>> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    Some(Arc::new(Interest { wildcard: false, names }))
}

fn all(names: &[&str]) -> Option<Arc<Interest>> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    Some(Arc::new(Interest { wildcard: true, names }))
}

fn response(
    resource_type: ResourceType,
    nonce: &str,
    resources: &[(&str, &str)],
    removed: &[&str],
) -> wire::DeltaDiscoveryResponse {
    let resource = |(name, version): &(&str, &str)| wire::Resource {
        name: (*name).to_owned(),
        version: (*version).to_owned(),
        resource: Some(wire::Any { type_url: resource_type.type_url(), ..wire::Any::default() }),
        ..wire::Resource::default()
    };
    wire::DeltaDiscoveryResponse {
        nonce: nonce.to_owned(),
        type_url: resource_type.type_url(),
        resources: resources.iter().map(resource).collect(),
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..wire::DeltaDiscoveryResponse::default()
    }
}

fn next(stream: &mut Delta) -> String {
    match stream.next_request() {
        None => "nothing".to_owned(),
        Some((resource_type, request)) => {
            let mut versions: Vec<_> = request.initial_resource_versions.into_iter().collect();
            versions.sort();
            let mut text = resource_type.to_string();
            for (sign, names) in
                [('+', request.resource_names_subscribe), ('-', request.resource_names_unsubscribe)]
            {
                for name in names {
                    text += &format!(" {sign}{name}");
                }
            }
            for (name, version) in versions {
                text += &format!(" {name}={version}");
            }
            if !request.response_nonce.is_empty() {
                text += if request.error_detail.is_some() { " nack " } else { " ack " };
                text += &request.response_nonce;
            }
            text
        }
    }
}

fn receive(stream: &mut Delta, response: wire::DeltaDiscoveryResponse, id: u64) -> Incoming {
    match stream.receive(response, DeliveryId(id)) {
        Received::Delivery(incoming) => incoming,
        Received::Ignored(reason) => panic!("{reason}"),
    }
}

#[test]
fn only_differences() {
    let mut stream = Delta::default();
    stream.want(EDS, names(&["a", "b"]));
    assert_eq!(next(&mut stream), "EDS +a +b");
    assert_eq!(next(&mut stream), "nothing");
    stream.want(EDS, names(&["b", "c"]));
    assert_eq!(next(&mut stream), "EDS +c -a");
    stream.want(EDS, names(&[]));
    assert_eq!(next(&mut stream), "EDS -b -c");
    stream.want(EDS, None);
    assert_eq!(next(&mut stream), "nothing");
    stream.want(EDS, names(&["a"]));
    assert_eq!(next(&mut stream), "EDS +a");
}

#[test]
fn answers_carry_the_nonce_alone() {
    let mut stream = Delta::default();
    stream.want(CDS, all(&[]));
    assert_eq!(next(&mut stream), "CDS");
    let incoming = receive(&mut stream, response(CDS, "1", &[("a", "v1")], &["z"]), 1);
    assert_eq!((incoming.removed, incoming.full), (vec!["z".to_owned()], false));
    assert!(stream.is_unanswered());
    assert_eq!(next(&mut stream), "nothing");
    stream.answer(DeliveryId(1), Ok(()));
    assert_eq!(next(&mut stream), "CDS ack 1");
    receive(&mut stream, response(CDS, "2", &[("a", "v2")], &[]), 2);
    stream.answer(DeliveryId(2), Err("no".to_owned()));
    assert_eq!(next(&mut stream), "CDS nack 2");
    assert_eq!(next(&mut stream), "nothing");
}

#[test]
fn a_new_stream_says_what_is_known() {
    let mut stream = Delta::default();
    stream.want(CDS, all(&[]));
    next(&mut stream);
    receive(&mut stream, response(CDS, "1", &[("a", "v1"), ("b", "v1"), ("c", "v1")], &[]), 1);
    stream.answer(DeliveryId(1), Ok(()));
    receive(&mut stream, response(CDS, "2", &[("b", "v2")], &["c"]), 2);
    stream.answer(DeliveryId(2), Ok(()));
    receive(&mut stream, response(CDS, "3", &[("a", "v3")], &[]), 3);
    stream.answer(DeliveryId(3), Err("no".to_owned()));
    stream.reset();
    // What was not said on the stream before is not said on this one.
    assert_eq!(next(&mut stream), "CDS a= b=v2");
    assert_eq!(next(&mut stream), "nothing");
    receive(&mut stream, response(CDS, "4", &[("a", "v4")], &[]), 4);
    stream.reset();
    assert_eq!(next(&mut stream), "nothing");
    stream.answer(DeliveryId(4), Ok(()));
    assert_eq!(next(&mut stream), "CDS a=v4 b=v2");
    assert_eq!(next(&mut stream), "nothing");
}

#[test]
fn what_a_refused_response_was_about_is_sent_again() {
    let mut stream = Delta::default();
    stream.want(CDS, all(&[]));
    next(&mut stream);
    receive(&mut stream, response(CDS, "1", &[("a", "v1"), ("b", "v1"), ("c", "v1")], &[]), 1);
    stream.answer(DeliveryId(1), Ok(()));
    // One of the two is wrong, the other was applied, and so was the removal. Should the control plane go back to where it
    // was while there is no stream, it must not believe that nothing is to be done.
    receive(&mut stream, response(CDS, "2", &[("a", "v2"), ("d", "v2")], &["c"]), 2);
    stream.answer(DeliveryId(2), Err("no".to_owned()));
    stream.reset();
    assert_eq!(next(&mut stream), "CDS a= b=v1 c= d=");
    // It says what there is, and what there is not.
    receive(&mut stream, response(CDS, "3", &[("a", "v1"), ("c", "v1")], &["d"]), 3);
    stream.answer(DeliveryId(3), Ok(()));
    stream.reset();
    assert_eq!(next(&mut stream), "CDS a=v1 b=v1 c=v1");

    let mut stream = Delta::default();
    stream.want(EDS, names(&["a"]));
    next(&mut stream);
    receive(&mut stream, response(EDS, "1", &[("a", "v1"), ("other", "v1")], &["third"]), 1);
    stream.answer(DeliveryId(1), Err("no".to_owned()));
    stream.reset();
    assert_eq!(next(&mut stream), "EDS +a a=", "nothing is said about what is not wanted");
}

#[test]
fn names_that_are_given_up_are_forgotten() {
    let mut stream = Delta::default();
    stream.want(EDS, names(&["a", "b"]));
    next(&mut stream);
    receive(&mut stream, response(EDS, "1", &[("a", "v1"), ("b", "v1"), ("other", "v1")], &[]), 1);
    stream.answer(DeliveryId(1), Ok(()));
    assert_eq!(next(&mut stream), "EDS ack 1");
    stream.want(EDS, names(&["b"]));
    stream.reset();
    assert_eq!(next(&mut stream), "EDS +b b=v1");
    // Given up and wanted again before anyone was told: it has to be sent once more.
    stream.want(EDS, names(&[]));
    stream.want(EDS, names(&["b"]));
    assert_eq!(next(&mut stream), "EDS +b");
    stream.want(EDS, names(&[]));
    stream.reset();
    assert_eq!(next(&mut stream), "nothing");
}

#[test]
fn asked_for_again() {
    let mut stream = Delta::default();
    stream.want(EDS, names(&["a", "b"]));
    next(&mut stream);
    receive(&mut stream, response(EDS, "1", &[("a", "v1"), ("b", "v1")], &[]), 1);
    stream.answer(DeliveryId(1), Ok(()));
    let again = Interest { wildcard: false, names: ["a", "x"].map(str::to_owned).into() };
    stream.renew(EDS, &again);
    assert_eq!(next(&mut stream), "EDS +a ack 1");
    stream.reset();
    assert_eq!(next(&mut stream), "EDS +a +b b=v1");
}

#[test]
fn wildcards_and_names() {
    let mut stream = Delta::default();
    stream.want(CDS, all(&["a"]));
    assert_eq!(next(&mut stream), "CDS +a +*");
    stream.want(CDS, names(&["a"]));
    assert_eq!(next(&mut stream), "CDS -*");
    stream.want(CDS, all(&["a"]));
    assert_eq!(next(&mut stream), "CDS +*");
    let mut stream = Delta::default();
    stream.want(CDS, all(&[]));
    assert_eq!(next(&mut stream), "CDS");
    stream.want(CDS, all(&["x"]));
    assert_eq!(next(&mut stream), "CDS +x");
}

#[test]
fn late_responses_are_answered_and_left_alone() {
    let mut stream = Delta::default();
    stream.want(EDS, names(&["a"]));
    next(&mut stream);
    stream.want(EDS, None);
    match stream.receive(response(EDS, "1", &[("a", "v1")], &[]), DeliveryId(1)) {
        Received::Ignored(reason) => assert_eq!(reason, "EDS is not wanted any more"),
        Received::Delivery(_) => panic!("delivered"),
    }
    assert_eq!(next(&mut stream), "EDS -a ack 1");
    assert!(matches!(stream.receive(response(CDS, "2", &[], &[]), DeliveryId(2)), Received::Ignored(_)));
}

#[test]
fn heartbeats_change_no_version() {
    let mut stream = Delta::default();
    stream.want(CDS, all(&[]));
    next(&mut stream);
    receive(&mut stream, response(CDS, "1", &[("a", "v1")], &[]), 1);
    stream.answer(DeliveryId(1), Ok(()));
    next(&mut stream);
    let mut heartbeat = response(CDS, "2", &[("a", "")], &[]);
    heartbeat.resources[0].resource = None;
    heartbeat.resources[0].ttl = Some(wire::Duration { seconds: 5, nanos: 0 });
    let incoming = receive(&mut stream, heartbeat, 2);
    assert_eq!(incoming.resources[0].ttl, Some(std::time::Duration::from_secs(5)));
    assert!(incoming.resources[0].body.is_none());
    stream.answer(DeliveryId(2), Ok(()));
    assert_eq!(next(&mut stream), "CDS ack 2");
    stream.reset();
    assert_eq!(next(&mut stream), "CDS a=v1");
}

#[derive(Clone, Debug)]
enum Step {
    Answer(bool),
    Receive(u8),
    Request,
    Reset,
    Want(Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        any::<bool>().prop_map(Step::Answer),
        (0..5_u8).prop_map(Step::Receive),
        Just(Step::Request),
        Just(Step::Reset),
        proptest::collection::vec(0..5_u8, 0..4).prop_map(Step::Want),
    ]
}

proptest! {
    /// A server that keeps what it was told knows in the end exactly what is wanted, and got each of its nonces back
    /// once, in order, on the stream it sent them on.
    #[test]
    fn both_sides_agree(steps in proptest::collection::vec(step(), 0..80)) {
        let mut stream = Delta::default();
        let mut serial = 0;
        let mut told: BTreeSet<String> = BTreeSet::new();
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        let mut nonces: VecDeque<String> = VecDeque::new();
        let mut open: VecDeque<DeliveryId> = VecDeque::new();
        let mut started = false;
        let end = (0..80).map(|_| Step::Answer(true)).chain([Step::Request]);
        for step in steps.into_iter().chain(end) {
            match step {
                Step::Want(set) => {
                    wanted = set.iter().map(ToString::to_string).collect();
                    let interest = Interest { wildcard: false, names: wanted.clone() };
                    stream.want(EDS, Some(Arc::new(interest)));
                }
                Step::Receive(name) if started => {
                    serial += 1;
                    let (nonce, id) = (format!("n{serial}"), DeliveryId(serial));
                    let name = name.to_string();
                    let version = format!("v{serial}");
                    if let Received::Delivery(_) =
                        stream.receive(response(EDS, &nonce, &[(name.as_str(), version.as_str())], &[]), id)
                    {
                        open.push_back(id);
                    }
                    nonces.push_back(nonce);
                }
                Step::Receive(_) => {}
                Step::Answer(good) => {
                    // In order, as there is one delivery at a time.
                    if let Some(id) = open.pop_front() {
                        stream.answer(id, if good { Ok(()) } else { Err("no".to_owned()) });
                    }
                }
                Step::Reset => {
                    stream.reset();
                    told.clear();
                    nonces.clear();
                    started = false;
                }
                Step::Request => while let Some((_, request)) = stream.next_request() {
                    let first = !std::mem::replace(&mut started, true);
                    prop_assert!(!first || !request.resource_names_subscribe.is_empty(), "asks for everything");
                    prop_assert!(!first || request.response_nonce.is_empty());
                    for name in request.initial_resource_versions.keys() {
                        prop_assert!(first && wanted.contains(name));
                    }
                    told.extend(request.resource_names_subscribe);
                    for name in request.resource_names_unsubscribe {
                        told.remove(&name);
                    }
                    if !request.response_nonce.is_empty() {
                        // Those that nothing was to be said about are answered in passing.
                        let at = nonces.iter().position(|nonce| *nonce == request.response_nonce);
                        prop_assert!(at.is_some(), "a stale nonce");
                        nonces.remove(at.unwrap());
                    }
                }
            }
        }
        prop_assert_eq!(told, wanted);
        prop_assert!(nonces.is_empty(), "unanswered: {:?}", nonces);
    }
}
