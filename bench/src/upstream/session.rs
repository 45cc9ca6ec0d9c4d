//! One connection of the server, without I/O: bytes in, bytes out. Both drivers run the same session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;

use super::reply::{self, Head};
use super::request::{Ask, Framing, Request};
use crate::wire::BodyDecoder;

/// Once this much output waits, it is written before more is produced.
const OUT_BYTES: usize = 64 * 1024;

/// What a server answers.
#[derive(Clone, Debug)]
pub struct Settings {
    name: Option<String>,
    body_bytes: usize,
    http2: bool,
    tls: Option<Arc<ServerConfig>>,
}

/// The server's name cannot be sent as a header value.
#[derive(Debug, thiserror::Error)]
#[error("name {0:?}: must be printable ASCII")]
pub struct InvalidName(String);

/// What the driver is to do next. Output that waits is written first in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Close the connection.
    Close,
    /// Read and hand over the bytes.
    Read,
    /// Wait this long.
    Sleep(Duration),
    /// Just write.
    Write,
}

/// A connection.
#[derive(Debug)]
pub struct Session {
    settings: Arc<Settings>,
    peer: SocketAddr,
    default_body: Vec<u8>,
    /// The most common answer, rendered once.
    default_answer: Vec<u8>,
    input: Vec<u8>,
    /// How much of `input` is dealt with.
    at: usize,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    /// After the last answer; nothing more is read.
    Closed,
    /// Waiting for a request head.
    Head,
    /// Discarding a request body, then answering.
    Receiving(Request),
    /// Returning a request body as it comes.
    Echoing(Request),
    /// Sending a generated body, of which this many bytes are out.
    Streaming(Request, u64),
    /// Answering after the delay.
    Delayed(Request),
}

impl Settings {
    /// Answers with `body_bytes` bytes by default; `name` goes into `x-served-by` and the default body.
    ///
    /// # Errors
    /// When the name is no valid header value.
    pub fn new(name: Option<String>, body_bytes: usize) -> Result<Self, InvalidName> {
        let is_printable =
            |name: &String| !name.is_empty() && name.chars().all(|c| c.is_ascii_graphic() || c == ' ');
        match name {
            Some(name) if !is_printable(&name) => Err(InvalidName(name)),
            name => Ok(Self { name, body_bytes, http2: false, tls: None }),
        }
    }

    /// Speaks HTTP/2, with prior knowledge, instead of HTTP/1.1. Its paths all get the default answer.
    #[must_use]
    pub fn with_http2(self) -> Self {
        Self { http2: true, ..self }
    }

    /// Speaks TLS.
    #[must_use]
    pub fn with_tls(self, config: Arc<ServerConfig>) -> Self {
        Self { tls: Some(config), ..self }
    }

    pub(super) fn is_http2(&self) -> bool {
        self.http2
    }

    pub(super) fn tls(&self) -> Option<&Arc<ServerConfig>> {
        self.tls.as_ref()
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub(super) fn body_bytes(&self) -> usize {
        self.body_bytes
    }
}

impl Session {
    /// A connection that was just accepted from `peer`.
    pub fn new(settings: Arc<Settings>, peer: SocketAddr) -> Self {
        let name = settings.name.as_deref();
        let default_body = reply::default_body(name, peer, settings.body_bytes);
        let mut default_answer = Vec::new();
        let length = default_body.len() as u64;
        Head { framing: Framing::Length, length, keep_alive: true, name }.write(&mut default_answer);
        default_answer.extend_from_slice(&default_body);
        Self { settings, peer, default_body, default_answer, input: Vec::new(), at: 0, state: State::Head }
    }

    /// Takes bytes that were read.
    pub fn received(&mut self, bytes: &[u8]) {
        self.input.drain(..self.at);
        self.at = 0;
        self.input.extend_from_slice(bytes);
    }

    /// Goes as far as the input allows, appending answers to `out`.
    pub fn step(&mut self, out: &mut Vec<u8>) -> Step {
        loop {
            if out.len() >= OUT_BYTES {
                return Step::Write;
            }
            let next = match std::mem::replace(&mut self.state, State::Closed) {
                State::Closed => return Step::Close,
                State::Head => match self.head(out) {
                    Some(state) => state,
                    None => {
                        self.state = State::Head;
                        return Step::Read;
                    }
                },
                State::Receiving(mut request) => match self.body(&mut request.body, |_| {}) {
                    Ok(true) => self.answer(request, out),
                    Ok(false) => {
                        self.state = State::Receiving(request);
                        return Step::Read;
                    }
                    Err(state) => state,
                },
                State::Echoing(mut request) => {
                    let framing = request.framing;
                    match self.body(&mut request.body, |bytes| reply::content(out, framing, bytes)) {
                        Ok(true) => {
                            reply::end(out, framing);
                            after(&request)
                        }
                        Ok(false) => {
                            self.state = State::Echoing(request);
                            return Step::Read;
                        }
                        Err(state) => state,
                    }
                }
                State::Streaming(request, sent) => stream(request, sent, out),
                State::Delayed(mut request) => {
                    let Ask::Slow(delay) = request.ask else { return Step::Close };
                    request.ask = Ask::Slow(Duration::ZERO);
                    self.state = State::Receiving(request);
                    return Step::Sleep(delay);
                }
            };
            self.state = next;
        }
    }

    /// Takes a request head; `None` while it is incomplete.
    fn head(&mut self, out: &mut Vec<u8>) -> Option<State> {
        if self.at == self.input.len() {
            return None;
        }
        let request = match Request::parse(&self.input[self.at..]) {
            Ok(request) => request?,
            Err(refusal) => {
                reply::refusal(out, refusal);
                return Some(State::Closed);
            }
        };
        self.at += request.head_bytes;
        if request.expects_continue && !request.body.is_done() {
            out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        if request.ask == Ask::Echo && !request.head_only {
            let length = if let BodyDecoder::Length(length) = request.body { length } else { 0 };
            // A chunked body of unknown length is answered in chunks.
            self.write_head(&request, length, out);
            return Some(State::Echoing(request));
        }
        Some(State::Receiving(request))
    }

    /// Decodes what there is of a request body; true when it is complete.
    fn body(&mut self, decoder: &mut BodyDecoder, mut content: impl FnMut(&[u8])) -> Result<bool, State> {
        while !decoder.is_done() {
            let input = &self.input[self.at..];
            if input.is_empty() {
                return Ok(false);
            }
            // The answer may have begun: a broken body can only be met by closing.
            let piece = decoder.decode(input).map_err(|_| State::Closed)?;
            content(&input[piece.data]);
            self.at += piece.consumed;
        }
        Ok(true)
    }

    /// Answers a request whose body is in.
    fn answer(&self, request: Request, out: &mut Vec<u8>) -> State {
        let text = match request.ask {
            Ask::Bytes(length) => {
                self.write_head(&request, length, out);
                return if request.head_only { after(&request) } else { State::Streaming(request, 0) };
            }
            Ask::Default => {
                let plain = request.framing == Framing::Length && request.keep_alive && !request.head_only;
                if plain {
                    out.extend_from_slice(&self.default_answer);
                    return State::Head;
                }
                return self.answer_with(&request, &self.default_body, out);
            }
            Ask::Slow(delay) if !delay.is_zero() => return State::Delayed(request),
            Ask::Slow(_) => "slow\n".to_owned(),
            Ask::Address => format!("{}\n", self.peer),
            Ask::Name => format!("{}\n", self.settings.name.as_deref().unwrap_or("unnamed")),
            Ask::Echo => String::new(),
        };
        self.answer_with(&request, text.as_bytes(), out)
    }

    fn answer_with(&self, request: &Request, content: &[u8], out: &mut Vec<u8>) -> State {
        self.write_head(request, content.len() as u64, out);
        if !request.head_only {
            reply::content(out, request.framing, content);
            reply::end(out, request.framing);
        }
        after(request)
    }

    fn write_head(&self, request: &Request, length: u64, out: &mut Vec<u8>) {
        let name = self.settings.name.as_deref();
        Head { framing: request.framing, length, keep_alive: request.keep_alive, name }.write(out);
    }
}

/// Sends generated content up to the output limit.
fn stream(request: Request, mut sent: u64, out: &mut Vec<u8>) -> State {
    let Ask::Bytes(total) = request.ask else { return State::Closed };
    while sent < total && out.len() < OUT_BYTES {
        sent = reply::block(out, request.framing, sent, total);
    }
    if sent < total {
        return State::Streaming(request, sent);
    }
    reply::end(out, request.framing);
    after(&request)
}

/// What follows a complete answer.
fn after(request: &Request) -> State {
    if request.keep_alive { State::Head } else { State::Closed }
}
