//! Request heads, and what they ask for.

use std::mem::MaybeUninit;
use std::time::Duration;

use crate::wire::{BodyDecoder, HEAD_BYTES_MAX, HEADERS_MAX};

/// Longest delay `/slow/MS` can ask for.
const SLOW_MAX: Duration = Duration::from_secs(600);

/// A request whose head is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Bytes of the head, its final empty line included.
    pub(super) head_bytes: usize,
    pub(super) ask: Ask,
    pub(super) body: BodyDecoder,
    /// The answer is to have no body (HEAD).
    pub(super) head_only: bool,
    pub(super) framing: Framing,
    pub(super) keep_alive: bool,
    pub(super) expects_continue: bool,
}

/// What a path stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Address,
    Bytes(u64),
    Default,
    Echo,
    Name,
    Slow(Duration),
}

/// How the answer's body is to be delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Chunked,
    Length,
}

/// A request that is refused; the connection ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    BadRequest,
    HeadTooLarge,
}

impl Request {
    /// Parses a head; `None` when more bytes are needed.
    pub(super) fn parse(input: &[u8]) -> Result<Option<Self>, Refusal> {
        let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut []);
        let head_bytes = match request.parse_with_uninit_headers(input, &mut headers) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if input.len() > HEAD_BYTES_MAX => {
                return Err(Refusal::HeadTooLarge);
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(Refusal::BadRequest),
        };
        let is_1_1 = request.version == Some(1);
        let fields = Fields::read(request.headers, is_1_1)?;
        let target = request.path.unwrap_or("/");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let wants_chunked = is_1_1 && query.split('&').any(|parameter| parameter == "chunked");
        let ask = Ask::parse(path)?;
        let mirrors_chunks = ask == Ask::Echo && fields.body == BodyDecoder::chunked();
        Ok(Some(Self {
            head_bytes,
            ask,
            body: fields.body,
            head_only: request.method == Some("HEAD"),
            framing: if wants_chunked || mirrors_chunks { Framing::Chunked } else { Framing::Length },
            keep_alive: fields.keep_alive,
            expects_continue: fields.expects_continue,
        }))
    }
}

impl Ask {
    fn parse(path: &str) -> Result<Self, Refusal> {
        let number = |text: &str| text.parse::<u64>().map_err(|_| Refusal::BadRequest);
        if let Some(count) = path.strip_prefix("/bytes/") {
            return Ok(Self::Bytes(number(count)?));
        }
        if let Some(milliseconds) = path.strip_prefix("/slow/") {
            return Ok(Self::Slow(Duration::from_millis(number(milliseconds)?).min(SLOW_MAX)));
        }
        Ok(match path {
            "/addr" => Self::Address,
            "/echo" => Self::Echo,
            "/name" => Self::Name,
            _ => Self::Default,
        })
    }
}

/// The header fields that matter here.
struct Fields {
    body: BodyDecoder,
    keep_alive: bool,
    expects_continue: bool,
}

impl Fields {
    fn read(headers: &[httparse::Header<'_>], is_1_1: bool) -> Result<Self, Refusal> {
        let (mut length, mut chunked) = (None, false);
        let (mut keep_alive, mut expects_continue) = (is_1_1, false);
        for header in headers {
            let value = header.value.trim_ascii();
            if header.name.eq_ignore_ascii_case("content-length") {
                let all_digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
                let number =
                    std::str::from_utf8(value).ok().filter(|_| all_digits).and_then(|text| text.parse().ok());
                let number: u64 = number.ok_or(Refusal::BadRequest)?;
                if length.is_some_and(|earlier| earlier != number) {
                    return Err(Refusal::BadRequest);
                }
                length = Some(number);
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                if chunked || !is_1_1 || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal::BadRequest);
                }
                chunked = true;
            } else if header.name.eq_ignore_ascii_case("connection") {
                for token in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                    if token.eq_ignore_ascii_case(b"close") {
                        keep_alive = false;
                    } else if token.eq_ignore_ascii_case(b"keep-alive") && !is_1_1 {
                        keep_alive = true;
                    }
                }
            } else if header.name.eq_ignore_ascii_case("expect") {
                expects_continue = is_1_1 && value.eq_ignore_ascii_case(b"100-continue");
            }
        }
        let body = match (length, chunked) {
            (Some(_), true) => return Err(Refusal::BadRequest),
            (Some(length), false) => BodyDecoder::Length(length),
            (None, true) => BodyDecoder::chunked(),
            (None, false) => BodyDecoder::Length(0),
        };
        Ok(Self { body, keep_alive, expects_continue })
    }
}
