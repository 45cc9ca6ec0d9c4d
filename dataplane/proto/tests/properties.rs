//! The checks on generated messages: mostly right, with the usual tricks mixed in.

use proptest::prelude::*;

mod checks;

fn request_line() -> impl Strategy<Value = String> {
    let method = prop_oneof!["GET|POST|HEAD|OPTIONS|CONNECT|PUT", "[A-Z!a-z]{0,5}"];
    let target = prop_oneof![
        "/[a-c%?;#\\\\.]{0,8}",
        "\\*|[ab.]{1,3}:[0-9x]{0,3}",
        "https?://[a-b.@\\[\\]:0-9]{0,8}(/|\\?)?[a-b]{0,2}",
        "[ -~]{0,8}",
    ];
    let version =
        prop_oneof![9 => "HTTP/1\\.1", 2 => "HTTP/1\\.0", 1 => "HTTP/[0-9]\\.[0-9]", 1 => "[ -~]{0,8}"];
    (method, " | |  |\t", target, " | |  ", version)
        .prop_map(|(method, a, target, b, version)| [method, a, target, b, version].concat())
}

fn field() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[Hh]ost: ?[a-c.:0-9]{0,5}",
        2 => "[Cc]ontent-[Ll]ength:[ 0-9,x+-]{0,4}",
        2 => "Transfer-Encoding: ?(chunked|gzip, chunked|identity|CHUNKED|chunked,)?",
        2 => "Connection: (close|keep-alive|upgrade|host|x-a, te|[a-z, ]{0,40})",
        4 => "[A-Za-z_-]{1,12}: ?[ -~]{0,12}",
        1 => "[ -~]{0,12}",
        1 => "[\\x00-\\x7f]{0,6}:[\\x00-\\x7f]{0,6}",
        1 => "[ \t][a-z]{0,4}",
    ]
}

fn line_end() -> impl Strategy<Value = &'static str> {
    prop_oneof![30 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r"), 1 => Just("\r\r\n"), 1 => Just("")]
}

fn head(first: impl Strategy<Value = String>) -> impl Strategy<Value = Vec<u8>> {
    let lines = prop::collection::vec((field(), line_end()), 0..8);
    ("(\r\n){0,2}", first, line_end(), lines, line_end(), "[ -~\r\n]{0,8}", any::<[u8; 4]>()).prop_map(
        |(before, first, end, lines, last, after, controls)| {
            let fields: String = lines.into_iter().flat_map(|(field, end)| [field, end.to_owned()]).collect();
            [
                &controls[..],
                before.as_bytes(),
                first.as_bytes(),
                end.as_bytes(),
                fields.as_bytes(),
                last.as_bytes(),
                after.as_bytes(),
            ]
            .concat()
        },
    )
}

fn status_line() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "HTTP/1\\.[01] (100|101|103|200|204|206|304|404|999)( [ -~]{0,6})?",
        1 => "HTTP/[0-9]\\.[0-9] [0-9]{0,4} ?[a-z]{0,3}",
        1 => "[ -~]{0,16}",
    ]
}

fn chunks() -> impl Strategy<Value = Vec<u8>> {
    let chunk = prop_oneof![
        12 => prop::collection::vec(any::<u8>(), 0..20).prop_map(|data| {
            [format!("{:x}\r\n", data.len()).as_bytes(), &data, b"\r\n"].concat()
        }),
        2 => "(0{0,3}[0-9a-fA-F]{1,2})[ \t]?(;[ -~]{0,6})?\r\n[ -~]{0,10}\r?\n?".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..6),
    ];
    let trailers = prop_oneof![
        4 => Just(String::new()),
        2 => "([a-z]{1,4}: ?[a-z]{0,4}\r\n){0,3}",
        1 => "[ -~\r\n]{0,12}",
    ];
    (any::<[u8; 4]>(), prop::collection::vec(chunk, 0..5), trailers, "[ -~]{0,4}").prop_map(
        |(controls, chunks, trailers, after)| {
            [&controls[..], &chunks.concat(), b"0\r\n", trailers.as_bytes(), b"\r\n", after.as_bytes()]
                .concat()
        },
    )
}

fn routes() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        "[eEpPsS](/[ab]{0,2}){1,3}",
        "[eEpPsS]/[ab/]{0,4}",
        "r/[ab]{0,2}(a\\*|\\[ab\\]|\\(a\\|b/\\)|b\\?|\\.\\*|\\(\\?i:A\\))?[ab]{0,1}",
        "[cepr][ -~]{0,6}",
    ];
    (prop::collection::vec(line, 0..12), "/[abAB/]{0,5}(\\?[ab]{0,2})?")
        .prop_map(|(lines, path)| format!("{}\n{path}", lines.join("\n")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn requests(input in head(request_line())) {
        checks::request(&input);
    }

    #[test]
    fn responses(input in head(status_line())) {
        checks::response(&input);
    }

    #[test]
    fn bodies(input in chunks()) {
        checks::body(&input);
    }

    #[test]
    fn paths(input in "[a-c./\\\\%25EeFf;?]{0,16}") {
        checks::path(input.as_bytes());
    }

    #[test]
    fn traces(
        input in "00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]|[0-9a-f]{15,33}[-\n][0-9a-f]{15,17}([-\n][01d0-9a-f]{1,17}){0,2}"
    ) {
        checks::trace(input.as_bytes());
    }

    #[test]
    fn tables(input in routes()) {
        checks::route(input.as_bytes());
    }
}
