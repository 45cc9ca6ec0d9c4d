use std::collections::BTreeSet;

use proptest::prelude::*;
use prost::bytes::Bytes;

use super::*;

const EDS: ResourceType = ResourceType::LoadAssignment;
const CDS: ResourceType = ResourceType::Cluster;

fn names(names: &[&str]) -> Option<Arc<Interest>> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    Some(Arc::new(Interest { wildcard: false, names }))
}

fn wildcard() -> Option<Arc<Interest>> {
    Some(Arc::new(Interest { wildcard: true, names: BTreeSet::new() }))
}

fn response(resource_type: ResourceType, version: &str, nonce: &str) -> wire::DiscoveryResponse {
    wire::DiscoveryResponse {
        version_info: version.to_owned(),
        nonce: nonce.to_owned(),
        type_url: resource_type.type_url(),
        ..wire::DiscoveryResponse::default()
    }
}

/// The next request as (type, version, nonce, names, refused).
fn next(stream: &mut Sotw) -> Option<(ResourceType, String, String, Vec<String>, bool)> {
    let (resource_type, request) = stream.next_request()?;
    assert_eq!(request.type_url, resource_type.type_url());
    let refused = request.error_detail.is_some();
    Some((resource_type, request.version_info, request.response_nonce, request.resource_names, refused))
}

fn said(
    resource_type: ResourceType,
    version: &str,
    nonce: &str,
    names: &[&str],
    refused: bool,
) -> Option<(ResourceType, String, String, Vec<String>, bool)> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    Some((resource_type, version.to_owned(), nonce.to_owned(), names, refused))
}

fn delivered(stream: &mut Sotw, response: wire::DiscoveryResponse, id: u64) -> Incoming {
    match stream.receive(response, DeliveryId(id)) {
        Received::Delivery(incoming) => incoming,
        Received::Ignored(reason) => panic!("{reason}"),
    }
}

fn ignored(stream: &mut Sotw, response: wire::DiscoveryResponse) -> String {
    match stream.receive(response, DeliveryId(0)) {
        Received::Delivery(_) => panic!("delivered"),
        Received::Ignored(reason) => reason,
    }
}

#[test]
fn accepted_and_refused() {
    let mut stream = Sotw::default();
    stream.want(CDS, wildcard());
    assert_eq!(next(&mut stream), said(CDS, "", "", &[], false));
    assert_eq!(next(&mut stream), None);
    let incoming = delivered(&mut stream, response(CDS, "1", "a"), 1);
    assert!(incoming.full && stream.is_unanswered());
    assert_eq!(next(&mut stream), None);
    stream.answer(DeliveryId(1), Ok(()));
    assert_eq!(next(&mut stream), said(CDS, "1", "a", &[], false));
    delivered(&mut stream, response(CDS, "2", "b"), 2);
    stream.answer(DeliveryId(2), Err("bad".to_owned()));
    let (_, request) = stream.next_request().unwrap();
    assert_eq!((request.version_info.as_str(), request.response_nonce.as_str()), ("1", "b"));
    let detail = request.error_detail.unwrap();
    assert_eq!((detail.code, detail.message.as_str()), (3, "bad"));
    // Another answer to the same changes nothing.
    stream.answer(DeliveryId(2), Ok(()));
    assert_eq!(next(&mut stream), None);
}

#[test]
fn changed_names_wait_for_the_answer() {
    let mut stream = Sotw::default();
    stream.want(EDS, names(&["a"]));
    assert_eq!(next(&mut stream), said(EDS, "", "", &["a"], false));
    delivered(&mut stream, response(EDS, "1", "x"), 1);
    stream.want(EDS, names(&["a", "b"]));
    stream.want(EDS, names(&["a", "b", "c"]));
    assert_eq!(next(&mut stream), None);
    stream.answer(DeliveryId(1), Ok(()));
    assert_eq!(next(&mut stream), said(EDS, "1", "x", &["a", "b", "c"], false));
    assert_eq!(next(&mut stream), None);
    // Without anything outstanding they go out at once, with the nonce there is.
    stream.want(EDS, names(&["c"]));
    assert_eq!(next(&mut stream), said(EDS, "1", "x", &["c"], false));
}

#[test]
fn a_new_stream_goes_on_where_the_one_before_ended() {
    let mut stream = Sotw::default();
    stream.want(CDS, wildcard());
    stream.want(EDS, names(&["a"]));
    next(&mut stream);
    next(&mut stream);
    delivered(&mut stream, response(CDS, "7", "x"), 1);
    stream.answer(DeliveryId(1), Ok(()));
    stream.reset();
    assert_eq!(next(&mut stream), said(CDS, "7", "", &[], false));
    assert_eq!(next(&mut stream), said(EDS, "", "", &["a"], false));
    assert_eq!(next(&mut stream), None);
    // Unanswered when the stream ended: the first request waits, and there is no nonce to answer.
    delivered(&mut stream, response(CDS, "8", "y"), 2);
    stream.reset();
    assert_eq!(next(&mut stream), said(EDS, "", "", &["a"], false));
    assert_eq!(next(&mut stream), None);
    stream.answer(DeliveryId(2), Ok(()));
    assert_eq!(next(&mut stream), said(CDS, "8", "", &[], false));
    delivered(&mut stream, response(CDS, "9", "z"), 3);
    stream.reset();
    stream.answer(DeliveryId(3), Err("no".to_owned()));
    // What was right with it was applied: it is neither the one version nor the other.
    assert_eq!(next(&mut stream), said(CDS, "", "", &[], false));
    assert_eq!(next(&mut stream), said(EDS, "", "", &["a"], false));
    assert_eq!(next(&mut stream), None);
    delivered(&mut stream, response(CDS, "8", "1"), 4);
    stream.answer(DeliveryId(4), Ok(()));
    stream.reset();
    assert_eq!(next(&mut stream), said(CDS, "8", "", &[], false));
}

#[test]
fn nothing_wanted() {
    let mut stream = Sotw::default();
    stream.want(EDS, names(&[]));
    // An empty list would ask for everything.
    assert_eq!(next(&mut stream), None);
    stream.want(EDS, names(&["a"]));
    next(&mut stream);
    delivered(&mut stream, response(EDS, "1", "x"), 1);
    stream.answer(DeliveryId(1), Ok(()));
    next(&mut stream);
    stream.want(EDS, None);
    assert_eq!(next(&mut stream), said(EDS, "", "x", &[], false));
    assert_eq!(next(&mut stream), None);
    assert_eq!(ignored(&mut stream, response(EDS, "2", "y")), "EDS is not wanted any more");
    // Nor is what came then a version to go on with.
    stream.want(EDS, names(&[]));
    assert_eq!(ignored(&mut stream, response(EDS, "3", "z")), "EDS is not wanted any more");
    stream.want(EDS, names(&["b"]));
    assert_eq!(next(&mut stream), said(EDS, "", "z", &["b"], false));
    // A wildcard cannot be taken back.
    stream.want(CDS, wildcard());
    next(&mut stream);
    stream.want(CDS, None);
    assert_eq!(next(&mut stream), None);
}

#[test]
fn names_that_went_and_came_back_are_asked_for_again() {
    let mut stream = Sotw::default();
    stream.want(EDS, names(&["a", "b"]));
    next(&mut stream);
    delivered(&mut stream, response(EDS, "1", "x"), 1);
    stream.answer(DeliveryId(1), Ok(()));
    next(&mut stream);
    stream.want(EDS, names(&["b"]));
    stream.want(EDS, names(&["a", "b"]));
    assert_eq!(next(&mut stream), said(EDS, "", "x", &["a", "b"], false));
    assert_eq!(next(&mut stream), None);
    stream.renew(EDS, &Interest::default());
    assert_eq!(next(&mut stream), said(EDS, "", "x", &["a", "b"], false));
}

#[test]
fn what_nobody_asked_for() {
    let mut stream = Sotw::default();
    stream.want(EDS, names(&["a"]));
    next(&mut stream);
    assert_eq!(ignored(&mut stream, response(CDS, "1", "x")), "CDS was not asked for");
    let unknown = wire::DiscoveryResponse { type_url: "t/x.Y".to_owned(), ..response(EDS, "1", "x") };
    assert_eq!(ignored(&mut stream, unknown), "a response of unknown type \"t/x.Y\"");
    assert_eq!(next(&mut stream), None);
    // On a stream of one type it goes without saying.
    let unsaid = wire::DiscoveryResponse { type_url: String::new(), ..response(EDS, "1", "x") };
    assert_eq!(delivered(&mut stream, unsaid, 1).resource_type, EDS);
}

#[test]
fn wrapped_resources() {
    let any = |type_url: &str, value: &[u8]| wire::Any {
        type_url: type_url.to_owned(),
        value: Bytes::copy_from_slice(value),
    };
    let inner = any(&EDS.type_url(), b"inner");
    let wrapper = |resource: Option<wire::Any>, name: &str| {
        let ttl = Some(wire::Duration { seconds: 2, nanos: 500_000_000 });
        let resource = wire::Resource { name: name.to_owned(), resource, ttl, ..wire::Resource::default() };
        any("type.googleapis.com/envoy.service.discovery.v3.Resource", &resource.encode_to_vec())
    };
    let mut stream = Sotw::default();
    stream.want(EDS, names(&["a"]));
    next(&mut stream);
    let response = wire::DiscoveryResponse {
        resources: vec![
            inner.clone(),
            wrapper(Some(inner), "a"),
            wrapper(None, "a"),
            wrapper(None, ""),
            any("type.googleapis.com/envoy.service.discovery.v3.Resource", b"\xff"),
            any(&CDS.type_url(), b""),
            wrapper(Some(any(&CDS.type_url(), b"")), "b"),
        ],
        ..response(EDS, "1", "x")
    };
    let incoming = delivered(&mut stream, response, 1);
    let ttl = Some(std::time::Duration::from_millis(2_500));
    let body = Some(Body { type_url: EDS.type_url(), value: Bytes::from_static(b"inner") });
    let named = RemoteResource { name: "a".to_owned(), ttl, ..RemoteResource::default() };
    assert!(!incoming.full);
    assert_eq!(
        incoming.resources,
        [
            RemoteResource { body: body.clone(), ..RemoteResource::default() },
            RemoteResource { body, ..named.clone() },
            named,
        ]
    );
    let broken: Vec<_> = incoming.broken.iter().map(|broken| broken.name.as_deref()).collect();
    assert_eq!(broken, [None, None, None, Some("b")]);
    assert!(incoming.broken[2].reason.contains("does not match"), "{:?}", incoming.broken[2]);
}

#[derive(Clone, Debug)]
enum Step {
    Answer(bool),
    Receive,
    Request,
    Reset,
    Renew,
    Want(Vec<u8>),
    WantNothing,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        any::<bool>().prop_map(Step::Answer),
        Just(Step::Receive),
        Just(Step::Request),
        Just(Step::Reset),
        Just(Step::Renew),
        proptest::collection::vec(0..5_u8, 0..4).prop_map(Step::Want),
        Just(Step::WantNothing),
    ]
}

proptest! {
    /// Whatever happens in whatever order: a request carries the nonce of the last response of its stream, the version
    /// that was accepted last, and all names there are; a response is answered at most once; and in the end everything
    /// that is wanted was asked for.
    #[test]
    fn no_request_is_stale(steps in proptest::collection::vec((any::<bool>(), step()), 0..80)) {
        let mut stream = Sotw::default();
        let mut serial = 0;
        for resource_type in [CDS, EDS] {
            stream.want(resource_type, names(&["start"]));
        }
        let mut nonces = BTreeMap::new();
        let mut open: Vec<(ResourceType, DeliveryId, String)> = Vec::new();
        let mut accepted: BTreeMap<ResourceType, String> = BTreeMap::new();
        let mut answered: BTreeSet<(ResourceType, String)> = BTreeSet::new();
        let mut wanted: BTreeMap<ResourceType, BTreeSet<String>> = BTreeMap::new();
        for resource_type in [CDS, EDS] {
            wanted.insert(resource_type, BTreeSet::from(["start".to_owned()]));
        }
        let mut asked: BTreeMap<ResourceType, BTreeSet<String>> = BTreeMap::new();
        let end = [(true, Step::Answer(true)), (false, Step::Answer(true)), (true, Step::Request), (true, Step::Request)];
        for (first, step) in steps.into_iter().chain(end) {
            let resource_type = if first { CDS } else { EDS };
            match step {
                Step::Want(set) => {
                    let set: BTreeSet<_> = set.iter().map(ToString::to_string).collect();
                    let interest = Interest { wildcard: false, names: set.clone() };
                    if set.is_empty() { accepted.remove(&resource_type); }
                    stream.want(resource_type, Some(Arc::new(interest)));
                    wanted.insert(resource_type, set);
                }
                Step::WantNothing => {
                    stream.want(resource_type, None);
                    accepted.remove(&resource_type);
                    wanted.insert(resource_type, BTreeSet::new());
                }
                Step::Renew => stream.renew(resource_type, &Interest::default()),
                Step::Receive => {
                    serial += 1;
                    let (nonce, id) = (format!("n{serial}"), DeliveryId(serial));
                    let version = format!("v{serial}");
                    match stream.receive(response(resource_type, &version, &nonce), id) {
                        Received::Delivery(_) => open.push((resource_type, id, version)),
                        Received::Ignored(_) => {}
                    }
                    if stream.types.contains_key(&resource_type) {
                        nonces.insert(resource_type, nonce);
                    }
                }
                Step::Answer(good) => {
                    let Some(at) = open.iter().position(|(of, ..)| *of == resource_type) else { continue };
                    let (_, id, version) = open.remove(at);
                    stream.answer(id, if good { Ok(()) } else { Err("no".to_owned()) });
                    if good { accepted.insert(resource_type, version); }
                }
                Step::Reset => {
                    stream.reset();
                    nonces.clear();
                    asked.clear();
                }
                Step::Request => {
                    while let Some((of, request)) = stream.next_request() {
                        prop_assert!(open.iter().all(|(unanswered, ..)| *unanswered != of), "while unanswered");
                        let nonce = nonces.get(&of).cloned().unwrap_or_default();
                        prop_assert_eq!(&request.response_nonce, &nonce, "a stale nonce");
                        if !request.version_info.is_empty() {
                            prop_assert_eq!(Some(&request.version_info), accepted.get(&of));
                        }
                        if request.error_detail.is_some() {
                            prop_assert!(answered.insert((of, nonce)), "refused twice");
                        }
                        let all: BTreeSet<_> = request.resource_names.into_iter().collect();
                        prop_assert_eq!(&all, &wanted[&of], "all names in one request");
                        asked.insert(of, all);
                    }
                }
            }
        }
        if open.is_empty() {
            for (of, names) in wanted {
                prop_assert_eq!(asked.remove(&of).unwrap_or_default(), names);
            }
        }
    }
}
