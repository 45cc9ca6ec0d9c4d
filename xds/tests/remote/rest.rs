//! Polling.

use std::{convert::Infallible, sync::Arc, time::Duration};

use culvert_model::{ApiKind, ApiSource};
use culvert_xds::remote::ResourceType::*;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use prost::bytes::Bytes;
use serde_json::{Value as Json, json};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
};

use crate::support::{Client, api, soon, source};

type Answers = mpsc::UnboundedReceiver<(StatusCode, String)>;

/// Answers each poll with the next of the answers, and says what was asked.
async fn start() -> (u16, mpsc::UnboundedSender<(StatusCode, String)>, mpsc::UnboundedReceiver<(String, Json)>)
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, answers) = mpsc::unbounded_channel();
    let answers: Arc<Mutex<Answers>> = Arc::new(Mutex::new(answers));
    let (asked, polls) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (answers, asked) = (answers.clone(), asked.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let (answers, asked) = (answers.clone(), asked.clone());
                async move {
                    let path = request.uri().path().to_owned();
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    // The test may be over.
                    let _ = asked.send((path, serde_json::from_slice(&body).unwrap()));
                    let Some((status, body)) = answers.lock().await.recv().await else {
                        return std::future::pending().await;
                    };
                    let mut response = Response::new(Full::new(Bytes::from(body)));
                    *response.status_mut() = status;
                    Ok::<_, Infallible>(response)
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (port, sender, polls)
}

fn response(version: &str, resources: &[Json]) -> (StatusCode, String) {
    let body = json!({"version_info": version, "resources": resources, "type_url": Listener.type_url()});
    (StatusCode::OK, body.to_string())
}

fn listener(name: &str) -> Json {
    json!({"@type": Listener.type_url(), "name": name})
}

#[tokio::test]
async fn polls_and_says_what_it_has() {
    let (port, answers, mut polls) = start().await;
    let rest = source(&api(ApiKind::Rest));
    let mut client = Client::new(port, None);
    client.want_all(&rest, Listener);
    let (path, request) = soon(polls.recv()).await.unwrap();
    assert_eq!(path, "/v3/discovery:listeners");
    assert_eq!(request["node"]["id"], "node-1");
    assert_eq!(request["type_url"], Listener.type_url());
    assert_eq!(request.get("version_info"), None);

    answers
        .send(response(
            "1",
            &[
                listener("a"),
                json!({"@type": Listener.type_url(), "name": 7}),
                json!({"@type": "t/no.Type", "name": "b"}),
            ],
        ))
        .unwrap();
    let delivery = client.delivery().await;
    assert_eq!((delivery.version.as_str(), delivery.full, delivery.resources.len()), ("1", true, 1));
    let body = delivery.resources[0].body.clone().unwrap();
    assert_eq!((body.type_url, &body.value[..]), (Listener.type_url(), b"\x0a\x01a".as_slice()));
    let broken: Vec<_> = delivery.broken.iter().map(|broken| broken.name.as_deref()).collect();
    assert_eq!(broken, [None, Some("b")]);
    client.remote.answer(delivery.id, Err("one is bad".to_owned()));
    let (_, request) = soon(polls.recv()).await.unwrap();
    assert_eq!(request.get("version_info"), None);
    assert_eq!(request["error_detail"]["message"], "one is bad");

    answers.send(response("2", &[listener("a")])).unwrap();
    client.accept().await;
    let (_, request) = soon(polls.recv()).await.unwrap();
    assert_eq!(request["version_info"], "2");
    assert_eq!(request.get("error_detail"), None);
    // The same again, and what is not there: no news.
    answers.send(response("2", &[listener("a")])).unwrap();
    soon(polls.recv()).await.unwrap();
    answers.send((StatusCode::NOT_MODIFIED, String::new())).unwrap();
    soon(polls.recv()).await.unwrap();
    answers.send(response("3", &[])).unwrap();
    assert_eq!(client.accept().await.version, "3");
}

#[tokio::test]
async fn failures_are_tried_again() {
    let (port, answers, mut polls) = start().await;
    let rest = source(&api(ApiKind::Rest));
    let mut client = Client::new(port, None);
    client.want(&rest, RouteConfiguration, &["r"]);
    let (path, request) = soon(polls.recv()).await.unwrap();
    assert_eq!((path.as_str(), &request["resource_names"]), ("/v3/discovery:routes", &json!(["r"])));
    for (answer, error) in [
        ((StatusCode::SERVICE_UNAVAILABLE, String::new()), "HTTP status 503"),
        ((StatusCode::OK, "{".to_owned()), "not JSON"),
        ((StatusCode::OK, "{\"resources\": 1}".to_owned()), "expected a list"),
        (response("1", &[]), "does not match"),
    ] {
        answers.send(answer).unwrap();
        let failure = client.failure().await;
        assert!(failure.contains(error), "{failure}");
        soon(polls.recv()).await.unwrap();
    }
}

#[tokio::test]
async fn an_answer_that_does_not_come() {
    let (port, _answers, mut polls) = start().await;
    let rest = source(&ApiSource { request_timeout: Duration::from_millis(50), ..api(ApiKind::Rest) });
    let mut client = Client::new(port, None);
    client.want_all(&rest, Listener);
    soon(polls.recv()).await.unwrap();
    assert!(client.failure().await.contains("no answer within"));
    soon(polls.recv()).await.unwrap();
}

#[tokio::test]
async fn names_that_are_new_are_asked_for_as_if_nothing_was_known() {
    let (port, answers, mut polls) = start().await;
    let rest = source(&api(ApiKind::Rest));
    let mut client = Client::new(port, None);
    client.want(&rest, RouteConfiguration, &["r"]);
    soon(polls.recv()).await.unwrap();
    let route = json!({"@type": RouteConfiguration.type_url(), "name": "r"});
    let body = json!({"version_info": "1", "resources": [route], "type_url": RouteConfiguration.type_url()});
    answers.send((StatusCode::OK, body.to_string())).unwrap();
    client.accept().await;
    let (_, request) = soon(polls.recv()).await.unwrap();
    assert_eq!(request["version_info"], "1");
    // A server answers "not modified" to a version that is the latest, whatever names are asked for.
    client.want(&rest, RouteConfiguration, &["r", "s"]);
    answers.send((StatusCode::NOT_MODIFIED, String::new())).unwrap();
    let (_, request) = soon(polls.recv()).await.unwrap();
    assert_eq!(request["resource_names"], json!(["r", "s"]));
    assert_eq!(request.get("version_info"), None);
}

#[tokio::test]
async fn names_that_went_and_came_back_unnoticed_are_sent_again() {
    let (port, answers, mut polls) = start().await;
    let rest = source(&api(ApiKind::Rest));
    let mut client = Client::new(port, None);
    client.want(&rest, RouteConfiguration, &["r", "s"]);
    soon(polls.recv()).await.unwrap();
    let route = |name: &str| json!({"@type": RouteConfiguration.type_url(), "name": name});
    let routes = [route("r"), route("s")];
    let body = json!({"version_info": "1", "resources": routes, "type_url": RouteConfiguration.type_url()});
    answers.send((StatusCode::OK, body.to_string())).unwrap();
    client.accept().await;
    let (_, request) = soon(polls.recv()).await.unwrap();
    assert_eq!(request["version_info"], "1");
    // While the server thinks, what was known of "s" is forgotten.
    client.want(&rest, RouteConfiguration, &["r"]);
    client.want(&rest, RouteConfiguration, &["r", "s"]);
    answers.send((StatusCode::NOT_MODIFIED, String::new())).unwrap();
    let (_, request) = soon(polls.recv()).await.unwrap();
    assert_eq!(request["resource_names"], json!(["r", "s"]));
    assert_eq!(request.get("version_info"), None);
    answers.send((StatusCode::OK, body.to_string())).unwrap();
    assert_eq!(client.accept().await.resources.len(), 2, "the same as before is news");

    // Or while the answer is being looked at.
    let (_, request) = soon(polls.recv()).await.unwrap();
    assert_eq!(request["version_info"], "1");
    let body = json!({"version_info": "2", "resources": routes, "type_url": RouteConfiguration.type_url()});
    answers.send((StatusCode::OK, body.to_string())).unwrap();
    let delivery = client.delivery().await;
    client.want(&rest, RouteConfiguration, &["r"]);
    client.want(&rest, RouteConfiguration, &["r", "s"]);
    client.remote.answer(delivery.id, Ok(()));
    let (_, request) = soon(polls.recv()).await.unwrap();
    assert_eq!(request.get("version_info"), None);
}

#[tokio::test]
async fn what_was_accepted_before_something_was_refused_is_news_again() {
    let (port, answers, mut polls) = start().await;
    let rest = source(&api(ApiKind::Rest));
    let mut client = Client::new(port, None);
    client.want_all(&rest, Listener);
    soon(polls.recv()).await.unwrap();
    answers.send(response("1", &[listener("a")])).unwrap();
    client.accept().await;
    soon(polls.recv()).await.unwrap();
    answers.send(response("2", &[listener("b")])).unwrap();
    let delivery = client.delivery().await;
    client.remote.answer(delivery.id, Err("no".to_owned()));
    let (_, request) = soon(polls.recv()).await.unwrap();
    assert_eq!(request.get("version_info"), None);
    answers.send(response("1", &[listener("a")])).unwrap();
    assert_eq!(client.accept().await.version, "1");
    let (_, request) = soon(polls.recv()).await.unwrap();
    assert_eq!(request["version_info"], "1");
}
