//! gRPC checks, and HTTP checks over HTTP/2.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{HeaderMap, Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::{
    checked, flags, start,
    support::{DRIVERS, culvert::cluster},
};

/// An HTTP/2 server that answers checks of gRPC with this status of the service, and plain ones with 200.
struct Server {
    address: SocketAddr,
    serving: Arc<Mutex<u8>>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        listener.set_nonblocking(true).expect("non-blocking");
        let address = listener.local_addr().expect("an address");
        let (serving, seen) = (Arc::new(Mutex::new(1)), Arc::new(Mutex::new(Vec::new())));
        let (told, heads) = (serving.clone(), seen.clone());
        thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                while let Ok((stream, _)) = listener.accept().await {
                    let (told, heads) = (told.clone(), heads.clone());
                    let service = service_fn(move |request| answer(request, told.clone(), heads.clone()));
                    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service);
                    tokio::spawn(serving);
                }
            });
        });
        Self { address, serving, seen }
    }
}

type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

async fn answer(
    request: Request<Incoming>,
    serving: Arc<Mutex<u8>>,
    seen: Arc<Mutex<Vec<String>>>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    seen.lock().expect("seen").push(format!("{} {} {:?} {body:?}", parts.method, parts.uri, parts.headers));
    if parts.uri.path() != "/grpc.health.v1.Health/Check" {
        return Ok(Response::new(Full::new(Bytes::from_static(b"fine")).boxed()));
    }
    let serving = *serving.lock().expect("serving");
    let message = Bytes::from(vec![0, 0, 0, 0, 2, 8, serving]);
    let trailers = HeaderMap::from_iter([(
        hyper::header::HeaderName::from_static("grpc-status"),
        hyper::header::HeaderValue::from_static("0"),
    )]);
    let body = Full::new(message).with_trailers(async move { Some(Ok(trailers)) }).boxed();
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert("content-type", hyper::header::HeaderValue::from_static("application/grpc"));
    Ok(response)
}

#[test]
fn a_service_that_does_not_serve_fails() {
    for driver in DRIVERS {
        let server = Server::start();
        let checks = checked(
            "healthy_threshold: 2\nunhealthy_threshold: 5\ngrpc_health_check:\n  service_name: shop\n  \
             authority: shop.example\n  initial_metadata: [{header: {key: x-tenant, value: blue}}]\n",
        ) + "  http2_protocol_options: {}\n";
        let (culvert, _) = start(driver, &(cluster("up", &[server.address]) + &checks));
        assert_eq!(flags(&culvert, server.address).as_deref(), Some("healthy"));
        *server.serving.lock().expect("serving") = 2;
        culvert.wait_until("it failed", |culvert| {
            flags(culvert, server.address).as_deref() == Some("/failed_active_hc")
        });
        *server.serving.lock().expect("serving") = 1;
        culvert
            .wait_until("it is back", |culvert| flags(culvert, server.address).as_deref() == Some("healthy"));
        let seen = server.seen.lock().expect("seen")[0].clone();
        assert!(seen.contains("POST http://shop.example/grpc.health.v1.Health/Check"), "{seen}");
        assert!(seen.contains("\"x-tenant\": \"blue\"") && seen.contains("\"te\": \"trailers\""), "{seen}");
        assert!(seen.contains(r"\0\0\0\0\x06\n\x04shop"), "{seen}");
    }
}

#[test]
fn http_checks_over_http2() {
    for driver in DRIVERS {
        let server = Server::start();
        let checks = checked(
            "healthy_threshold: 1\nunhealthy_threshold: 1\nhttp_health_check: {path: /up, codec_client_type: HTTP2, \
             receive: [{text: \"66696e65\"}]}\n",
        );
        let (culvert, _) = start(driver, &(cluster("up", &[server.address]) + &checks));
        assert_eq!(flags(&culvert, server.address).as_deref(), Some("healthy"), "{}", culvert.log());
        let seen = server.seen.lock().expect("seen")[0].clone();
        assert!(seen.contains("GET http://up/up"), "{seen}");
    }
}
