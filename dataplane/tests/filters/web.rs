//! `grpc_web`

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    Scene, filter, indent, seen,
    support::{
        client::{Client, Response},
        culvert::cluster,
        upstream::{Upstream, read_request},
    },
};

/// Answers with a message of two bytes and trailers, with a head alone, or with what is no gRPC.
fn server() -> Upstream {
    Upstream::start(|mut stream| {
        while let Some((head, body)) = read_request(&mut stream) {
            let answer = match head.split(' ').nth(1).unwrap() {
                "/mirror" => {
                    let said = [head.as_bytes(), &body].concat();
                    let own = "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ncontent-length: ";
                    [format!("{own}{}\r\n\r\n", said.len()).as_bytes(), &said].concat()
                }
                "/alone" => b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 5\r\n\
                              content-length: 0\r\n\r\n"
                    .to_vec(),
                "/plain" => {
                    b"HTTP/1.1 404 Not Found\r\ncontent-type: text/plain\r\ncontent-length: 3\r\n\r\nwho"
                        .to_vec()
                }
                _ => {
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n\
                       7\r\n\0\0\0\0\x02ab\r\n0\r\ngrpc-status: 0\r\nx-own: a\r\n\r\n"
                        .to_vec()
                }
            };
            if std::io::Write::write_all(&mut stream, &answer).is_err() {
                return;
            }
        }
    })
}

const MESSAGE: &[u8] = b"\0\0\0\0\x03abc";
const ANSWER: &[u8] = b"\0\0\0\0\x02ab";
const TRAILERS: &[u8] = b"\x80\0\0\0\x18grpc-status:0\r\nx-own:a\r\n";

#[test]
fn browsers_call_services() {
    let up = server();
    let filters = [filter("w", "grpc_web.v3.GrpcWeb", "")];
    let routes = [
        "{match: {prefix: /direct}, direct_response: {status: 503, body: {inline_string: \"a %\"}}}"
            .to_owned(),
        "{match: {prefix: /}, route: {cluster: calls}}".to_owned(),
    ];
    let clusters = indent(&cluster("calls", &[up.address]), 2)
        + "    typed_extension_protocol_options:\n      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n        \
           \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n        \
           explicit_http_config: {http_protocol_options: {enable_trailers: true}}\n";
    Scene { filters: &filters, config: "", host: "", routes: &routes }.run_with(&clusters, |culvert, port| {
        let call = |path: &str, kind: &str, accept: &str, body: &[u8]| -> Response {
            let mut client = Client::connect(port);
            client.send(format!(
                "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: {kind}\r\n{accept}content-length: {}\r\n\r\n",
                body.len()
            ));
            client.send(body);
            client.response("POST")
        };
        const WEB: &str = "application/grpc-web+proto";
        const TEXT: &str = "application/grpc-web-text";
        let accept_text = format!("accept: {TEXT}\r\n");

        let said = call("/mirror", WEB, "", MESSAGE);
        assert_eq!(seen(&said, "content-type"), ["application/grpc"]);
        assert_eq!(seen(&said, "te"), ["trailers"]);
        assert_eq!(seen(&said, "grpc-accept-encoding"), ["identity"]);

        let binary = call("/a.S/M", WEB, "", MESSAGE);
        assert_eq!((binary.status, binary.header("content-type")), (200, Some(WEB)));
        assert_eq!(binary.body, [ANSWER, TRAILERS].concat());
        let padded = [STANDARD.encode(&MESSAGE[..4]), STANDARD.encode(&MESSAGE[4..])].concat();
        let text = call("/a.S/M", TEXT, &accept_text, padded.as_bytes());
        assert_eq!(text.header("content-type"), Some("application/grpc-web-text+proto"));
        assert_eq!(text.text(), STANDARD.encode(ANSWER) + &STANDARD.encode(TRAILERS));

        let alone = call("/alone", WEB, "", MESSAGE);
        assert_eq!((alone.header("grpc-status"), alone.body.len()), (Some("5"), 0));
        let plain = call("/plain", WEB, "", MESSAGE);
        assert_eq!((plain.status, plain.header("content-type")), (404, Some(WEB)));
        assert_eq!((plain.header("grpc-status"), plain.body.len()), (Some("12"), 0));
        let direct = call("/direct", TEXT, &accept_text, b"");
        assert_eq!((direct.status, direct.header("grpc-status")), (503, Some("14")));
        assert_eq!((direct.header("grpc-message"), direct.body.len()), (Some("a %25"), 0));
        let broken = call("/a.S/M", TEXT, "", b"!!!!");
        assert_eq!((broken.status, broken.header("grpc-status")), (400, Some("13")));
        let expected = "Bad gRPC-web request, invalid base64 data.";
        assert_eq!(broken.header("grpc-message"), Some(expected));
        assert_eq!(call("/a.S/M", TEXT, "", b"AAA").status, 400, "a digit is missing");

        let other = call("/mirror", "application/json", "", b"{}");
        assert_eq!(seen(&other, "content-type"), ["application/json"]);
        assert!(other.text().ends_with("{}"));
        let stat = |name: &str| culvert.stat(&format!("cluster.calls.grpc-web.{name}"));
        culvert.wait_until("they are counted", |_| stat("a.S.M.success") == 2);
        assert_eq!((stat("a.S.M.0"), stat("a.S.M.total")), (2, 2));
    });
}

#[test]
fn bodies_that_were_kept_before_are_read_as_others() {
    let filters =
        [filter("b", "buffer.v3.Buffer", "max_request_bytes: 1000"), filter("w", "grpc_web.v3.GrpcWeb", "")];
    let routes = ["{match: {prefix: /}, route: {cluster: up}}".to_owned()];
    Scene { filters: &filters, config: "", host: "", routes: &routes }.run(|culvert, port| {
        let call = |body: &[u8]| {
            let mut client = Client::connect(port);
            client.send(format!(
                "POST /a.S/M HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc-web-text\r\ncontent-length: {}\r\n\r\n",
                body.len()
            ));
            client.send(body);
            client.response("POST").status
        };
        assert_eq!(call(STANDARD.encode(MESSAGE).as_bytes()), 200);
        let before = culvert.stat("cluster.up.upstream_rq_200");
        assert_eq!((call(b"!!!!"), call(b"AAA")), (400, 400));
        assert_eq!(culvert.stat("cluster.up.upstream_rq_200"), before, "nobody else gets that");
    });
}
