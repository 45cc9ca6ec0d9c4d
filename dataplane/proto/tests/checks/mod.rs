//! What must hold for any input. Used by the property tests and by the fuzz targets in `fuzz/`; every function panics
//! when it does not hold.

#![allow(dead_code, reason = "every user takes only what it needs")]

use std::sync::Arc;

use culvert_model::{
    Action, DirectResponse, EscapedSlashes, FullRegex, HeaderCase, HeaderMutations, PathMatch, Route,
    RouteConfiguration, RouteMatch, UnderscoresAction, VirtualHost,
};
use culvert_proto::{
    Headers, Method, RequestHead, ResponseHead,
    detect::{Http, Proxy, ProxyVersions, Tls, http, proxy, tls},
    h1::{
        BodyDecoder, BodyLimits, CHUNK_FOOTER, Fault, Framing, RequestOptions, ResponseOptions, Step,
        encode_chunk_header, encode_last_chunk, encode_request, encode_response, parse_request,
        parse_response,
    },
    h2::{BlockReader, FrameGuard, FrameKind, FrameLimits, FrameScanner, TEXT_MAX},
    h3::{
        Settings, Violation,
        frame::{FrameReader, Piece},
        qpack,
    },
    path,
    route::{RequestView, Table},
};

/// First bytes of connections: once a parser has decided, more bytes change nothing.
pub(crate) fn detect(input: &[u8]) {
    let versions = ProxyVersions { v1: true, v2: true };
    let max = 300;
    let decided = (tls(input, max), http(input), proxy(input, versions));
    for end in 0..input.len() {
        let bytes = &input[..end];
        let seen = (tls(bytes, max), http(bytes), proxy(bytes, versions));
        assert!(seen.0 == Tls::Incomplete || seen.0 == decided.0, "{end}: {seen:?} {decided:?}");
        assert!(seen.1 == Http::Incomplete || seen.1 == decided.1, "{end}: {seen:?} {decided:?}");
        assert!(seen.2 == Proxy::Incomplete || seen.2 == decided.2, "{end}: {seen:?} {decided:?}");
    }
    assert!(decided.0 != Tls::Incomplete || input.len() < max, "waits for more than it looks at");
    if let Proxy::Header(header) = decided.2 {
        assert!(header.length <= input.len());
    }
}

/// Frames: what is found, and whether a limit is passed, does not depend on how the bytes were cut.
pub(crate) fn frames(input: &[u8]) {
    let (flags, cuts, bytes) = controls(input);
    let limits = FrameLimits {
        empty_frames: 3,
        priority_frames_per_stream: 2,
        window_updates_per_data_frame: 1,
        control_frames: 4,
        header_block_bytes: 2_048,
        continuations: 3,
    };
    let preface = flags & 1 == 0;
    let run = |ends: &mut dyn Iterator<Item = usize>| {
        let mut guard = FrameGuard::new(limits, preface);
        if flags & 2 != 0 {
            guard = guard.with_heads(u32::from(flags) * 32);
        }
        let (mut found, mut from, mut violation) = (Vec::new(), 0, None);
        for end in ends {
            let piece = &bytes[from..end];
            from = end;
            if let Err((good, passed)) = guard.receive(piece, |header| found.push(*header)) {
                assert!(good <= piece.len());
                violation = Some(passed);
                break;
            }
            assert!(guard.kept_text() <= TEXT_MAX);
        }
        let opened = found.iter().filter(|header| header.kind == FrameKind::Headers);
        let mut streams: Vec<_> = opened.map(|header| header.stream).collect();
        streams.sort_unstable();
        let heads: Vec<_> =
            streams.iter().map(|id| (guard.accept(*id), guard.take_pseudo_trailers(*id))).collect();
        (violation, found, heads)
    };
    let whole = run(&mut std::iter::once(bytes.len()));
    assert_eq!(run(&mut ends(bytes.len(), cuts)), whole);
    assert_eq!(run(&mut (1..=bytes.len())), whole);
    let mut scanner = FrameScanner::new(preface);
    let mut rest = bytes;
    while scanner.next(&mut rest).is_some() {}
    assert!(rest.is_empty(), "all bytes are looked at");
}

/// Blocks of header fields: a decoder that collects the fields sees the same, however the bytes were cut.
pub(crate) fn blocks(input: &[u8]) {
    let (_, cuts, mut bytes) = controls(input);
    let mut decoder = loona_hpack::Decoder::new();
    decoder.set_max_allowed_table_size(4_096);
    let (mut whole, mut cut, mut lax) = (BlockReader::new(), BlockReader::new(), BlockReader::new());
    while let [length, rest @ ..] = bytes {
        let (block, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        bytes = rest;
        let read = whole.read(block).and_then(|()| whole.end());
        let mut from = 0;
        let pieces = ends(block.len(), cuts).try_for_each(|end| {
            let piece = &block[from..end];
            from = end;
            cut.read(piece)
        });
        assert_eq!(pieces.and_then(|()| cut.end()), read);
        // The decoder does not care where the table changes its size.
        let singly = block.chunks(1).try_for_each(|byte| {
            lax.begin_frame();
            lax.read(byte)
        });
        let lax = singly.and_then(|()| lax.end());
        assert!(read == lax || read.is_err());
        let fields = decoder.decode(block);
        if let (Ok(lax), Ok(fields)) = (&lax, &fields) {
            let path = fields.iter().find(|(name, _)| name == b":path").map(|(_, value)| value);
            let at = path.and_then(|path| path.iter().position(|byte| *byte == b'#'));
            assert_eq!(lax.fragment.as_deref(), at.map(|at| &path.unwrap()[at + 1..]));
            assert_eq!(lax.pseudo, fields.iter().any(|(name, _)| name.starts_with(b":")));
        }
        let has_names = fields.as_ref().is_ok_and(|fields| fields.iter().all(|(name, _)| !name.is_empty()));
        assert!(lax.is_ok() || !has_names, "{lax:?} {fields:?}");
        if read.is_err() || fields.is_err() {
            return;
        }
    }
}

/// Answers to gRPC health checks: a cut one is none, and the last status counts.
pub(crate) fn health(input: &[u8]) {
    let whole = culvert_proto::health::grpc_serving(input);
    if whole.is_some() {
        assert_eq!(input[0], 0);
        assert_eq!(input.len() - 5, u32::from_be_bytes(input[1..5].try_into().unwrap()) as usize);
        for end in 0..input.len() {
            assert_eq!(culvert_proto::health::grpc_serving(&input[..end]), None, "cut at {end}");
        }
        // The last status counts, as in every protobuf message.
        let mut more = input.to_vec();
        more.extend([8, 1]);
        let length = (more.len() - 5) as u32;
        more[1..5].copy_from_slice(&length.to_be_bytes());
        assert_eq!(culvert_proto::health::grpc_serving(&more), Some(true));
    }
}

/// Request heads: the result does not depend on how the bytes were cut, and what is sent on says the same.
pub(crate) fn request(input: &[u8]) {
    let (flags, cuts, bytes) = controls(input);
    let opts = RequestOptions {
        max_bytes: if flags & 1 == 0 { 60 * 1024 } else { 64 },
        max_count: if flags & 2 == 0 { 100 } else { 2 },
        allow_http10: flags & 4 != 0,
        default_host: if flags & 8 == 0 { String::new() } else { "dflt".to_owned() },
        allow_absolute_url: flags & 16 == 0,
        allow_chunked_length: flags & 32 != 0,
        preserve_case: flags & 64 != 0,
        underscores: if flags & 128 == 0 { UnderscoresAction::Allow } else { UnderscoresAction::Drop },
    };
    let mut head = RequestHead::new();
    let whole = parse_request(bytes, &opts, &mut head);
    let mut cut_head = RequestHead::new();
    let cut = in_pieces(bytes, cuts, |piece| parse_request(piece, &opts, &mut cut_head));
    assert_eq!(cut, whole, "cut at {cuts:?}");
    let Ok(Some((consumed, framing))) = whole else { return };
    assert_eq!(cut_head, head);
    assert!(consumed <= bytes.len() && consumed <= opts.max_bytes);
    assert!(head.headers.len() < opts.max_count || opts.max_count == head.headers.len());
    check_request_is_plain(&head, framing);
    request_round_trip(&head, framing);
}

/// What the router and the upstream may rely on.
fn check_request_is_plain(head: &RequestHead, framing: Framing) {
    assert!(!matches!(framing, Framing::Tunnel | Framing::UntilClose));
    assert!(head.path().iter().all(|byte| (0x21..=0x7e).contains(byte) && *byte != b'#'));
    let path_is_there =
        head.path().starts_with(b"/") || (head.path() == b"*" && head.method == Method::Options);
    assert!(path_is_there != (head.method == Method::Connect));
    assert!(head.authority().iter().all(|byte| (0x21..=0x7e).contains(byte)));
    check_fields_are_plain(&head.headers, framing);
}

fn check_fields_are_plain(headers: &Headers, framing: Framing) {
    for (name, value) in headers {
        assert!(
            !name.is_empty()
                && name.iter().all(|byte| byte.is_ascii_graphic() && !b":\"(),/;<=>?@[\\]{}".contains(byte))
        );
        assert!(!name.iter().any(u8::is_ascii_uppercase));
        assert!(value.iter().all(|byte| (*byte >= b' ' && *byte != 0x7f) || *byte == b'\t'));
    }
    assert!(!headers.contains("host"));
    assert!(headers.get_all("content-length").count() <= 1);
    if framing == Framing::Chunked {
        assert!(!headers.contains("content-length"));
        assert_eq!(headers.get_all("transfer-encoding").count(), 1);
    }
}

fn request_round_trip(head: &RequestHead, framing: Framing) {
    for case in [HeaderCase::Lower, HeaderCase::Preserve, HeaderCase::Proper] {
        let mut wire = Vec::new();
        encode_request(head, framing, case, &mut wire);
        let opts =
            RequestOptions { max_bytes: usize::MAX, max_count: usize::MAX, ..RequestOptions::default() };
        let mut again = RequestHead::new();
        let (consumed, framing_again) =
            parse_request(&wire, &opts, &mut again).expect("what is sent is right").expect("and complete");
        assert_eq!(consumed, wire.len());
        let expected =
            if framing == Framing::None && head.method.expects_body() { Framing::Length(0) } else { framing };
        assert_eq!(framing_again, expected);
        assert_eq!(
            (&again.method, again.path(), again.authority()),
            (&head.method, head.path(), head.authority())
        );
        assert_eq!(without_framing(&again.headers), without_framing(&head.headers));
    }
}

/// Response heads: as for requests.
pub(crate) fn response(input: &[u8]) {
    let (flags, cuts, bytes) = controls(input);
    let opts = ResponseOptions {
        max_bytes: if flags & 1 == 0 { 60 * 1024 } else { 64 },
        max_count: if flags & 2 == 0 { 100 } else { 2 },
        preserve_case: flags & 4 != 0,
    };
    let method = [Method::Get, Method::Head, Method::Connect, Method::Post][usize::from(flags >> 6)].clone();
    let mut head = ResponseHead::new();
    let whole = parse_response(bytes, &opts, &method, &mut head);
    let mut cut_head = ResponseHead::new();
    let cut = in_pieces(bytes, cuts, |piece| parse_response(piece, &opts, &method, &mut cut_head));
    assert_eq!(cut, whole, "cut at {cuts:?}");
    let Ok(Some((consumed, framing))) = whole else { return };
    assert_eq!(cut_head, head);
    assert!(consumed <= bytes.len() && consumed <= opts.max_bytes);
    assert!((100..=999).contains(&head.status));
    if framing == Framing::Tunnel || head.headers.contains("host") {
        return;
    }
    if framing != Framing::None {
        check_fields_are_plain(&head.headers, framing);
    }
    let mut wire = Vec::new();
    encode_response(&head, framing, HeaderCase::Lower, &mut wire);
    let opts = ResponseOptions { max_bytes: usize::MAX, max_count: usize::MAX, preserve_case: false };
    let mut again = ResponseHead::new();
    let (consumed, framing_again) = parse_response(&wire, &opts, &method, &mut again)
        .expect("what is sent is right")
        .expect("and complete");
    assert_eq!((consumed, framing_again, again.status), (wire.len(), framing, head.status));
    assert_eq!(without_framing(&again.headers), without_framing(&head.headers));
}

/// Bodies: the result does not depend on how the bytes were cut; a body that decodes is encoded and decodes again.
pub(crate) fn body(input: &[u8]) {
    let (flags, cuts, bytes) = controls(input);
    let framing = match flags & 3 {
        0 | 1 => Framing::Chunked,
        2 => Framing::Length(u64::from(flags >> 2)),
        _ => Framing::UntilClose,
    };
    let limits = match flags & 4 {
        0 => BodyLimits::default(),
        _ => BodyLimits {
            chunk_extension_bytes_max: 4,
            trailer_bytes_max: 16,
            trailer_count_max: 2,
            ..BodyLimits::default()
        },
    };
    let whole = decode(framing, limits, bytes, &[]);
    assert_eq!(decode(framing, limits, bytes, cuts), whole, "cut at {cuts:?}");
    assert_eq!(decode(framing, limits, bytes, &[1]), whole, "byte by byte");
    let Ok(decoded) = whole else { return };
    let mut wire = Vec::new();
    for chunk in decoded.data.chunks(usize::from(flags >> 3) + 1) {
        encode_chunk_header(chunk.len(), &mut wire);
        wire.extend_from_slice(chunk);
        wire.extend_from_slice(CHUNK_FOOTER);
    }
    encode_last_chunk(&decoded.trailers, HeaderCase::Lower, &mut wire);
    let again = decode(Framing::Chunked, BodyLimits::default(), &wire, cuts).expect("what is sent is right");
    assert_eq!((again.data, again.trailers, again.left), (decoded.data, decoded.trailers, 0));
}

/// What a decoder made of some bytes.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Decoded {
    /// The body.
    pub(crate) data: Vec<u8>,
    /// Its trailers.
    pub(crate) trailers: Headers,
    /// Bytes after it.
    pub(crate) left: usize,
}

/// Decodes bytes that arrive in pieces of these lengths, again and again; no lengths: all at once.
pub(crate) fn decode(
    framing: Framing,
    limits: BodyLimits,
    input: &[u8],
    cuts: &[u8],
) -> Result<Decoded, Fault> {
    let mut decoder = BodyDecoder::new(framing, limits);
    let mut data = Vec::new();
    let mut at = 0;
    let mut ends = ends(input.len(), cuts);
    let mut end = 0;
    loop {
        match decoder.decode(&input[at..end])? {
            Step::Data { skip, len } => {
                assert!(len > 0 && at + skip + len <= end);
                data.extend_from_slice(&input[at + skip..at + skip + len]);
                at += skip + len;
            }
            Step::Done { skip } => {
                assert!(at + skip <= end && decoder.is_done());
                at += skip;
                break;
            }
            Step::More { skip } => {
                assert_eq!(at + skip, end, "all input is used up");
                at = end;
                match ends.next() {
                    Some(next) => end = next,
                    None => break,
                }
            }
        }
    }
    decoder.finish()?;
    Ok(Decoded { data, trailers: decoder.trailers().clone(), left: input.len() - at })
}

/// Paths: normalising is final, leaves no dot segment and never touches the query.
pub(crate) fn path(input: &[u8]) {
    let asked = [b"/", input].concat();
    let query_at = asked.iter().position(|&byte| byte == b'?').unwrap_or(asked.len());
    let mut normalized = asked.clone();
    if !path::normalize(&mut normalized) {
        assert_eq!(normalized, asked);
        return;
    }
    assert!(normalized.starts_with(b"/") && normalized.ends_with(&asked[query_at..]));
    let path_only = &normalized[..normalized.len() - (asked.len() - query_at)];
    assert!(!path_only.contains(&b'?') && !path_only.contains(&b'\\'));
    assert!(path_only.split(|&byte| byte == b'/').all(|segment| segment != b"." && segment != b".."));
    let lower = path_only.to_ascii_lowercase();
    assert!(!lower.windows(3).any(|part| part == b"%2e"), "a dot in disguise");
    let mut twice = normalized.clone();
    assert!(path::normalize(&mut twice));
    assert_eq!(twice, normalized, "normalising again changes nothing");
    path::merge_slashes(&mut normalized);
    let merged_query_at = normalized.iter().position(|&byte| byte == b'?').unwrap_or(normalized.len());
    // Nothing but slashes becomes two of them, as in Envoy.
    let merged = &normalized[..merged_query_at];
    assert!(merged == b"//" || !merged.windows(2).any(|pair| pair == b"//"));
    assert_eq!(normalized[merged_query_at..], asked[query_at..]);
    let mut unescaped = asked.clone();
    path::escaped_slashes(&mut unescaped, EscapedSlashes::UnescapeAndForward);
    assert!(unescaped.ends_with(&asked[query_at..]));
    let lower = unescaped[..unescaped.len() - (asked.len() - query_at)].to_ascii_lowercase();
    assert!(!lower.windows(3).any(|part| part == b"%2f" || part == b"%5c"));
}

/// Routes: the table finds what a linear search finds. Each line but the last is a route, the last one is the path.
pub(crate) fn route(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut lines: Vec<&str> = text.lines().take(40).collect();
    let Some(path) = lines.pop() else { return };
    let routes: Vec<Route> = lines
        .iter()
        .enumerate()
        .filter_map(|(index, line)| Some(named_route(index.to_string(), path_match(line)?)))
        .collect();
    let vhost = VirtualHost {
        domains: vec!["*".to_owned()],
        routes: routes.iter().cloned().map(Arc::new).collect(),
        ..VirtualHost::default()
    };
    let table =
        Table::compile(&RouteConfiguration { virtual_hosts: vec![vhost], ..RouteConfiguration::default() });
    let headers = Headers::new();
    let request = RequestView {
        method: b"GET",
        scheme: b"http",
        authority: b"h",
        path: path.as_bytes(),
        headers: &headers,
    };
    let found = table.route(&request, 0).ok().map(|matched| matched.route.name.clone());
    assert_eq!(found, linear_search(&routes, path));
}

/// A route that looks at the path only.
pub(crate) fn named_route(name: String, path: PathMatch) -> Route {
    Route {
        name,
        matcher: RouteMatch { path, headers: Vec::new(), query: Vec::new(), fraction_ppm: None, grpc: false },
        action: Action::Direct(DirectResponse { status: 200, body: Arc::from(&b""[..]), format: None }),
        headers: HeaderMutations::default(),
        request_buffer: None,
        tracing: None,
        stat_prefix: String::new(),
        filters: Vec::new(),
        metadata: None,
    }
}

/// What a table has to agree with.
pub(crate) fn linear_search(routes: &[Route], path: &str) -> Option<String> {
    let path_only = path.split('?').next().unwrap_or_default();
    let lower = path_only.to_ascii_lowercase();
    let subject = |ignore_case: bool| if ignore_case { &*lower } else { path_only };
    let matches = |route: &&Route| match &route.matcher.path {
        PathMatch::Connect => false,
        PathMatch::Exact { value, ignore_case } => subject(*ignore_case) == value,
        PathMatch::Prefix { value, ignore_case } => subject(*ignore_case).starts_with(value.as_str()),
        PathMatch::SeparatedPrefix { value, ignore_case } => subject(*ignore_case)
            .strip_prefix(value.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        PathMatch::Regex(regex) => regex.is_match(path_only.as_bytes()),
    };
    routes.iter().find(matches).map(|route| route.name.clone())
}

/// The first character says what kind it is.
fn path_match(line: &str) -> Option<PathMatch> {
    let mut rest = line.chars();
    let kind = rest.next()?;
    let value = rest.as_str();
    let ignore_case = kind.is_ascii_uppercase();
    let literal = if ignore_case { value.to_ascii_lowercase() } else { value.to_owned() };
    Some(match kind.to_ascii_lowercase() {
        'c' => PathMatch::Connect,
        'e' => PathMatch::Exact { value: literal, ignore_case },
        'p' => PathMatch::Prefix { value: literal, ignore_case },
        's' => PathMatch::SeparatedPrefix { value: literal, ignore_case },
        _ if value.len() <= 64 => PathMatch::Regex(FullRegex::new(value).ok()?),
        _ => return None,
    })
}

/// Splits the input into flags, lengths of pieces, and the bytes to look at.
fn controls(input: &[u8]) -> (u8, &[u8], &[u8]) {
    match input {
        [flags, a, b, c, bytes @ ..] => (*flags, if a | b | c == 0 { &[] } else { &input[1..4] }, bytes),
        _ => (0, &[], input),
    }
}

/// Trace headers: whatever is read can be written, and is the same when it is read again.
pub(crate) fn trace(input: &[u8]) {
    use culvert_proto::trace::{b3, w3c};
    if let Some(context) = w3c::parse(input) {
        assert_eq!(w3c::parse(&w3c::format(&context)), Some(context));
    }
    let mut headers = Headers::new();
    let names = ["x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled"];
    match input.split(|byte| *byte == b'\n').collect::<Vec<_>>().as_slice() {
        [single] => headers.push("b3", single),
        several => names.iter().zip(several).for_each(|(name, value)| headers.push(name, value)),
    }
    let Ok(found) = b3::extract(&headers) else { return };
    let Some(context) = found.from else { return };
    let mut written = Headers::new();
    b3::inject(&context, found.single, &mut written);
    let again = b3::extract(&written).unwrap();
    assert_eq!(again, b3::Extracted { sampled: Some(false), ..found });
}

/// Where the pieces end: lengths are used in turn, 0 counts as 1.
fn ends(len: usize, cuts: &[u8]) -> impl Iterator<Item = usize> {
    let mut lengths = cuts.iter().cycle().map(|&cut| usize::from(cut.max(1)));
    let mut end = 0;
    std::iter::from_fn(move || {
        if end == len {
            return None;
        }
        end = lengths.next().map_or(len, |piece| (end + piece).min(len));
        Some(end)
    })
}

/// Shows a parser more and more of the bytes until it decides.
fn in_pieces<T>(
    bytes: &[u8],
    cuts: &[u8],
    mut parse: impl FnMut(&[u8]) -> Result<Option<T>, Fault>,
) -> Result<Option<T>, Fault> {
    let mut last = parse(&[]);
    for end in ends(bytes.len(), cuts) {
        if !matches!(last, Ok(None)) {
            break;
        }
        last = parse(&bytes[..end]);
    }
    last
}

fn without_framing(headers: &Headers) -> Headers {
    let mut rest = headers.clone();
    rest.remove("content-length");
    rest.remove("transfer-encoding");
    rest
}

/// HTTP/3: frames do not depend on how the bytes were cut, and what a field section says can be said again.
pub(crate) fn http3(input: &[u8]) {
    let (_, cuts, bytes) = controls(input);
    let run = |ends: &mut dyn Iterator<Item = usize>| {
        let (mut reader, mut found, mut from) = (FrameReader::default(), Vec::new(), 0);
        for end in ends {
            let mut piece = &bytes[from..end];
            from = end;
            while !piece.is_empty() {
                let (taken, what) = reader.next(piece);
                assert!((1..=piece.len()).contains(&taken));
                match what {
                    Piece::Head { kind, len } => found.push((kind, len, Vec::new())),
                    Piece::Payload { .. } => found.last_mut().unwrap().2.extend_from_slice(&piece[..taken]),
                    Piece::Part => assert_eq!(taken, piece.len()),
                }
                piece = &piece[taken..];
            }
        }
        (found, reader.is_between_frames())
    };
    let whole = run(&mut std::iter::once(bytes.len()));
    assert_eq!(run(&mut ends(bytes.len(), cuts)), whole);
    assert_eq!(run(&mut (1..=bytes.len())), whole);
    for (_, _, payload) in &whole.0 {
        let _ = Settings::parse(payload);
    }
    for section in whole.0.iter().map(|(_, _, payload)| payload.as_slice()).chain([bytes]) {
        let Ok(fields) = fields_of(section) else { continue };
        let mut again = Vec::new();
        qpack::begin(&mut again);
        fields.iter().for_each(|(name, value)| qpack::encode(name, value, &mut again));
        assert_eq!(fields_of(&again).as_ref(), Ok(&fields));
    }
}

/// Names and values.
type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// The fields of a section of at most 4,096 bytes.
fn fields_of(section: &[u8]) -> Result<Fields, Violation> {
    let (mut fields, mut scratch) = (Vec::new(), Vec::new());
    qpack::decode(section, 4_096, &mut scratch, |name, value| {
        fields.push((name.to_vec(), value.to_vec()));
        Ok::<_, Violation>(())
    })?;
    Ok(fields)
}
