//! `envoy.filters.http.grpc_web`: browsers call services of gRPC. Their bodies may be base64, and the trailers of an answer
//! are the last message of its body.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use culvert_model::{GrpcMethods, GrpcStats};
use culvert_proto::{Headers, h1::Framing};

use super::{
    Response, Scope,
    grpc_stats::{CallCounter, Counted},
};
use crate::http::{
    codec::{Decoder, Encoder},
    exchange::Exchange,
    grpc::{self, FRAME_HEADER, MessageCounter},
};

/// The filter on one worker.
pub(super) struct GrpcWeb {
    calls: CallCounter,
}

/// A call of a browser.
pub(super) struct WebCall {
    /// The answer is base64.
    text: bool,
    /// Where it is counted.
    counted: Option<Counted>,
}

/// Flag of the message that holds trailers.
const TRAILERS: u8 = 0x80;

impl GrpcWeb {
    pub(super) fn new() -> Self {
        let config = GrpcStats { methods: GrpcMethods::All, replace_dots: false };
        Self { calls: CallCounter::counting("grpc-web", config.into()) }
    }

    /// Makes a call of gRPC of it, if it is one of a browser.
    pub(super) fn decode(&self, exchange: &mut Exchange<'_>, scope: &Scope<'_>) -> Option<WebCall> {
        let text = match exchange.head.headers.get("content-type")? {
            b"application/grpc-web" | b"application/grpc-web+proto" => false,
            b"application/grpc-web-text" | b"application/grpc-web-text+proto" => true,
            _ => return None,
        };
        if text {
            exchange.stream.decode_with(Box::new(Base64Decoder::default()));
        }
        let headers = &mut exchange.head.headers;
        headers.remove("content-length");
        headers.set("content-type", "application/grpc");
        headers.set("te", "trailers");
        headers.set("grpc-accept-encoding", "identity");
        let accepted = headers.get("accept");
        let wants_text =
            matches!(accepted, Some(b"application/grpc-web-text" | b"application/grpc-web-text+proto"));
        if !exchange.framing.is_empty() {
            exchange.framing = Framing::Chunked;
        }
        Some(WebCall { text: wants_text, counted: self.calls.count(exchange, scope) })
    }
}

impl WebCall {
    /// Makes of an answer what a browser understands.
    pub(super) fn encode(&self, exchange: &Exchange<'_>, response: &mut Response<'_>) {
        if let Some(counted) = &self.counted {
            counted.encode(response.headers);
        }
        let is_grpc = response.headers.get("content-type").is_some_and(|kind| {
            kind.starts_with(b"application/grpc") && !kind.starts_with(b"application/grpc-web-")
        });
        let kind = if self.text { "application/grpc-web-text+proto" } else { "application/grpc-web+proto" };
        response.headers.set("content-type", kind);
        if response.framing.is_empty() {
            return;
        }
        response.headers.remove("content-length");
        if is_grpc {
            exchange.stream.encode_with(Box::new(WebEncoder::new(self.text)));
        } else {
            // What is no message would not be understood; the status tells.
            if !response.headers.contains("grpc-status") {
                response.headers.set("grpc-status", grpc::status_of(response.status));
            }
            exchange.stream.encode_with(Box::new(Nothing));
        }
    }

    /// Counts a call that is over.
    pub(super) fn finish(&self, exchange: &Exchange<'_>) {
        if let Some(counted) = &self.counted {
            counted.finish(exchange);
        }
    }
}

/// Answers as they are, with trailers as their last message, perhaps in base64.
struct WebEncoder {
    text: Option<Base64Encoder>,
}

impl WebEncoder {
    fn new(text: bool) -> Self {
        Self { text: text.then(Base64Encoder::default) }
    }

    fn put(&mut self, bytes: &[u8]) -> Vec<u8> {
        match &mut self.text {
            Some(text) => text.encode(bytes),
            None => bytes.to_vec(),
        }
    }
}

impl Encoder for WebEncoder {
    fn encode(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.put(bytes)
    }

    fn finish(&mut self, trailers: Option<&Headers>) -> Vec<u8> {
        let mut rest = match &mut self.text {
            Some(text) => text.flush(),
            None => Vec::new(),
        };
        if let Some(trailers) = trailers {
            rest.extend(self.put(&trailers_message(trailers)));
        }
        rest
    }

    fn takes_trailers(&self) -> bool {
        true
    }
}

/// Trailers as a message: its flag, its length, and a line each.
fn trailers_message(trailers: &Headers) -> Vec<u8> {
    let mut message = vec![TRAILERS, 0, 0, 0, 0];
    for (name, value) in trailers {
        message.extend_from_slice(name);
        message.push(b':');
        message.extend_from_slice(value);
        message.extend_from_slice(b"\r\n");
    }
    let length = u32::try_from(message.len() - FRAME_HEADER).unwrap_or(u32::MAX);
    message[1..FRAME_HEADER].copy_from_slice(&length.to_be_bytes());
    message
}

/// No body at all.
struct Nothing;

impl Encoder for Nothing {
    fn encode(&mut self, _: &[u8]) -> Vec<u8> {
        Vec::new()
    }

    fn finish(&mut self, _: Option<&Headers>) -> Vec<u8> {
        Vec::new()
    }

    fn takes_trailers(&self) -> bool {
        true
    }
}

/// Base64 whose padding stands at the ends of messages.
#[derive(Default)]
struct Base64Encoder {
    messages: MessageCounter,
    /// Fewer than three bytes, of a message that is not over.
    held: Vec<u8>,
}

impl Base64Encoder {
    fn encode(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.messages.see(bytes);
        self.held.extend_from_slice(bytes);
        if self.messages.is_between() {
            return self.flush();
        }
        let whole = self.held.len() / 3 * 3;
        let rest = self.held.split_off(whole);
        let ready = std::mem::replace(&mut self.held, rest);
        STANDARD.encode(ready).into_bytes()
    }

    fn flush(&mut self) -> Vec<u8> {
        STANDARD.encode(std::mem::take(&mut self.held)).into_bytes()
    }
}

/// Reads base64, padding wherever it stands.
#[derive(Default)]
struct Base64Decoder {
    /// Fewer than four digits.
    held: Vec<u8>,
}

impl Decoder for Base64Decoder {
    fn decode(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.held.extend_from_slice(bytes);
        let whole = self.held.len() / 4 * 4;
        let rest = self.held.split_off(whole);
        let ready = std::mem::replace(&mut self.held, rest);
        let mut decoded = Vec::with_capacity(whole / 4 * 3);
        // Between paddings there are as many digits as there may be.
        for part in padded(&ready) {
            STANDARD.decode_vec(part, &mut decoded).ok()?;
        }
        Some(decoded)
    }

    fn is_complete(&self) -> bool {
        self.held.is_empty()
    }
}

/// Cuts groups of four digits behind those that have padding.
fn padded(digits: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = digits;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.chunks(4).position(|group| group.ends_with(b"="));
        let end = end.map_or(rest.len(), |group| (group * 4 + 4).min(rest.len()));
        let (part, behind) = rest.split_at(end);
        rest = behind;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_however_it_is_cut() {
        let text = [STANDARD.encode(b"a"), STANDARD.encode(b"bcdefg"), STANDARD.encode(b"hi")].concat();
        for size in [1, 3, 4, 5, 100] {
            let mut decoder = Base64Decoder::default();
            let pieces = text.as_bytes().chunks(size);
            let decoded: Vec<u8> = pieces.flat_map(|piece| decoder.decode(piece).unwrap()).collect();
            assert_eq!(decoded, b"abcdefghi", "{size}");
            assert!(decoder.is_complete());
        }
        let mut decoder = Base64Decoder::default();
        assert_eq!(decoder.decode(b"AAA"), Some(Vec::new()));
        assert!(!decoder.is_complete());
        assert_eq!(Base64Decoder::default().decode(b"!!!!"), None);
    }

    #[test]
    fn padding_stands_at_the_ends_of_messages() {
        let stream = [grpc::frame(b"a"), grpc::frame(b"bcd")].concat();
        for size in [1, 2, 6, 100] {
            let mut encoder = Base64Encoder::default();
            let text: Vec<u8> = stream.chunks(size).flat_map(|piece| encoder.encode(piece)).collect();
            let mut decoder = Base64Decoder::default();
            assert_eq!(decoder.decode(&text).unwrap(), stream, "{size}");
            assert!(encoder.held.is_empty(), "a message that is over waits for nothing");
        }
    }

    #[test]
    fn trailers_become_a_message() {
        let mut trailers = Headers::new();
        trailers.push("grpc-status", "0");
        trailers.push("x-own", "a");
        assert_eq!(trailers_message(&trailers), b"\x80\0\0\0\x18grpc-status:0\r\nx-own:a\r\n");
    }
}
