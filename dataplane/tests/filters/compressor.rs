//! `compressor`

use std::io::Read as _;

use crate::{
    Response, Scene, filter, get, logged, settings,
    support::{
        client::Client,
        culvert::cluster,
        upstream::{Upstream, read_request},
    },
    values,
};

const LIBRARY: &str = "type.googleapis.com/envoy.extensions.compression";

fn compressor(name: &str, library: &str, fields: &str) -> String {
    let library =
        format!("compressor_library: {{name: lib, typed_config: {{\"@type\": {LIBRARY}.{library}}}}}");
    filter(name, "compressor.v3.Compressor", &format!("{library}, {fields}"))
}

fn gzip(fields: &str) -> String {
    compressor("gzip", "gzip.compressor.v3.Gzip", fields)
}

/// The body of a response without its encoding.
fn plain(response: &Response) -> Vec<u8> {
    let body = response.body.as_slice();
    let mut plain = Vec::new();
    match response.header("content-encoding") {
        Some("gzip") => flate2::read::GzDecoder::new(body).read_to_end(&mut plain),
        Some("br") => brotli::Decompressor::new(body, 4_096).read_to_end(&mut plain),
        Some("zstd") => zstd::stream::read::Decoder::new(body).unwrap().read_to_end(&mut plain),
        None => return response.body.clone(),
        other => panic!("{other:?}"),
    }
    .unwrap();
    plain
}

#[test]
fn each_client_gets_what_it_likes_best() {
    let filters = [
        compressor(
            "br",
            "brotli.compressor.v3.Brotli",
            "response_direction_config: {common_config: {min_content_length: 50}}",
        ),
        compressor(
            "zstd",
            "zstd.compressor.v3.Zstd",
            "response_direction_config: {common_config: {min_content_length: 50}}",
        ),
        gzip(
            "response_direction_config: {common_config: {min_content_length: 50}, remove_accept_encoding_header: true}",
        ),
    ];
    let routes = [
        "{match: {prefix: /direct}, direct_response: {status: 200, body: {inline_string: \"a text that is said directly, and \
         is long enough to be compressed by somebody\"}}}"
            .to_owned(),
        "{match: {prefix: /}, route: {cluster: up}}".to_owned(),
    ];
    Scene { filters: &filters, config: "", host: "", routes: &routes }.run(|culvert, port| {
        let with = |accept: &str| {
            get(
                port,
                "/a-path-that-makes-the-answer-long-enough-to-be-compressed",
                &[("accept-encoding", accept)],
            )
        };
        for (accept, encoding) in [
            ("gzip", Some("gzip")),
            ("br", Some("br")),
            ("zstd", Some("zstd")),
            ("gzip;q=0.5, br;q=0.7", Some("br")),
            ("*", Some("br")),
            ("identity", None),
            ("deflate", None),
        ] {
            let answer = with(accept);
            assert_eq!(answer.header("content-encoding"), encoding, "{accept}");
            assert_eq!(values(&answer, "vary"), ["Accept-Encoding"], "{accept}");
            assert!(encoding.is_none() || answer.header("content-length").is_none(), "{accept}");
            let text = String::from_utf8(plain(&answer)).unwrap();
            assert!(text.starts_with("GET /a-path-that-makes"), "{text}");
            assert!(!text.contains("accept-encoding"), "the upstream does not compress: {text}");
        }
        let direct = get(port, "/direct", &[("accept-encoding", "gzip")]);
        assert!(plain(&direct).starts_with(b"a text") && direct.header("content-encoding") == Some("gzip"));
        let none = get(port, "/direct", &[]);
        assert_eq!((none.header("content-encoding"), none.text().len()), (None, 77));
        let mut client = Client::connect(port);
        client.send("HEAD /direct HTTP/1.1\r\nhost: a\r\naccept-encoding: gzip\r\n\r\n");
        assert_eq!(client.response("HEAD").header("content-encoding"), None, "there is no body");
        client.send("GET /direct HTTP/1.0\r\nhost: a\r\naccept-encoding: gzip\r\n\r\n");
        assert_eq!(client.response("GET").header("content-encoding"), None, "the end could not be told");
        let stat = |name: &str| culvert.stat(&format!("http.s.compressor.lib.{name}"));
        assert_eq!((stat("gzip.response.compressed"), stat("brotli.response.compressed")), (2, 3));
        assert!(stat("gzip.response.total_uncompressed_bytes") > 100);
        assert_eq!(stat("gzip.header_identity"), 1);
        assert_eq!(stat("gzip.no_accept_header"), 1);
    });
}

/// An upstream that answers with the fields that the path names after `?`, and 10 KB in two chunks.
fn upstream() -> Upstream {
    Upstream::start(|mut stream| {
        use std::io::Write as _;
        while let Some((head, _)) = read_request(&mut stream) {
            let path = head.split(' ').nth(1).unwrap();
            let fields = path.split_once('?').map_or("", |(_, fields)| fields);
            let fields = fields.replace("%20", " ").replace('&', "\r\n").replace('=', ": ");
            let half = "x".repeat(5_000);
            let text = format!(
                "HTTP/1.1 200 OK\r\n{fields}\r\ntransfer-encoding: chunked\r\n\r\n1388\r\n{half}\r\n1388\r\n{half}\r\n0\r\n\r\n"
            );
            if stream.write_all(text.as_bytes()).is_err() {
                return;
            }
        }
    })
}

#[test]
fn what_must_not_be_touched_is_not() {
    let up = upstream();
    let own = "response_direction_config: {common_config: {content_type: [text/one], content_type_matcher: [{prefix: app/}]}, \
               disable_on_etag_header: false, weaken_etag_on_compress: true, uncompressible_response_codes: [404]}";
    let strict = "response_direction_config: {disable_on_etag_header: true}";
    let filters = [gzip(own), compressor("strict", "gzip.compressor.v3.Gzip", strict)];
    const PER_ROUTE: &str = "compressor.v3.CompressorPerRoute";
    let route = |prefix: &str, off: &[&str]| {
        let off: Vec<_> = off.iter().map(|name| settings(name, PER_ROUTE, "disabled: true")).collect();
        format!(
            "{{match: {{prefix: {prefix}}}, route: {{cluster: other}}, typed_per_filter_config: {{{}}}}}",
            off.join(", ")
        )
    };
    let over = settings(
        "gzip",
        PER_ROUTE,
        "overrides: {response_direction_config: {remove_accept_encoding_header: true}}",
    );
    let strict_off = settings("strict", PER_ROUTE, "disabled: true");
    let routes = [
        route("/off", &["gzip", "strict"]),
        route("/strict", &["gzip"]),
        format!(
            "{{match: {{prefix: /direct}}, direct_response: {{status: 404, body: {{inline_string: \"a text that is said directly, \
             and is long enough\"}}}}, typed_per_filter_config: {{{strict_off}}}}}"
        ),
        format!(
            "{{match: {{prefix: /removed}}, route: {{cluster: up}}, typed_per_filter_config: {{{over}, {strict_off}}}}}"
        ),
        route("/", &["strict"]),
    ];
    let text = crate::support::culvert::indent(&cluster("other", &[up.address]), 2);
    Scene { filters: &filters, config: "", host: "", routes: &routes }.run_with(&text, |culvert, port| {
        let with = |path: &str| get(port, path, &[("accept-encoding", "gzip")]);
        for (path, compressed, vary) in [
            ("/?content-type=text/one;%20charset=utf-8", true, &["Accept-Encoding"][..]),
            ("/?content-type=APP/x", false, &[]),
            ("/?content-type=app/x&vary=a", true, &["a, Accept-Encoding"]),
            ("/?content-type=text/plain", false, &[]),
            ("/?content-type=text/one&vary=accept-encoding", true, &["accept-encoding"]),
            ("/?content-type=text/one&cache-control=private,%20no-transform", false, &[]),
            ("/?content-type=text/one&content-encoding=none", false, &[]),
            ("/strict?content-type=text/plain", true, &["Accept-Encoding"]),
            ("/strict?content-type=image/png", false, &[]),
            ("/strict?content-type=text/plain&etag=a", false, &[]),
            ("/off?content-type=text/one", false, &[]),
        ] {
            let answer = with(path);
            assert_eq!(answer.header("content-encoding") == Some("gzip"), compressed, "{path}");
            assert_eq!(values(&answer, "vary"), vary, "{path}");
            if compressed {
                assert_eq!(plain(&answer), vec![b'x'; 10_000], "{path}");
                assert!(answer.body.len() < 200, "{path}: {}", answer.body.len());
            } else {
                assert_eq!(answer.body.len(), 10_000, "{path}");
            }
        }
        let weak = with("/?content-type=text/one&etag=\"a\"");
        assert_eq!((weak.header("etag"), weak.header("content-encoding")), (Some("W/\"a\""), Some("gzip")));
        assert_eq!(with("/direct").header("content-encoding"), None, "not with this status");
        let removed = with("/removed");
        let text = String::from_utf8(plain(&removed)).unwrap();
        assert!(text.starts_with("GET /removed") && !text.contains("accept-encoding"), "{text}");
        let stat = |name: &str| culvert.stat(&format!("http.s.compressor.lib.gzip.{name}"));
        assert_eq!((stat("response.compressed"), stat("not_compressed_etag")), (6, 1));
        logged(culvert, "/strict?content-type=image/png 200 - via_upstream");
    });
}
