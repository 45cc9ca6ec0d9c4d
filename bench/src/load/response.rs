//! Reading responses (RFC 9112 section 6), without I/O.

use std::mem::MaybeUninit;

use crate::wire::{BodyDecoder, BodyError, HEAD_BYTES_MAX, HEADERS_MAX};

/// Reads one response after another from the bytes of a connection.
#[derive(Debug, Default)]
pub struct ResponseReader {
    /// An incomplete head from earlier reads; empty while heads arrive whole, which is nearly always.
    partial_head: Vec<u8>,
    current: Option<Current>,
    request_was_head: bool,
}

/// A response that arrived completely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Status code, 200 to 999.
    pub status: u16,
    /// Whether the connection may carry another request.
    pub reusable: bool,
}

/// A response that cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// Broken body framing.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The connection ended inside a response.
    #[error("connection closed before the response was complete")]
    ClosedEarly,
    /// `Content-Length` is no number or stands there twice with different values.
    #[error("invalid Content-Length")]
    ContentLength,
    /// The head is no HTTP/1.x response head.
    #[error("malformed response head")]
    Head,
    /// The head exceeds [`HEAD_BYTES_MAX`].
    #[error("response head exceeds {HEAD_BYTES_MAX} bytes")]
    HeadTooLarge,
    /// Bytes arrived that belong to no request.
    #[error("bytes after the end of the response")]
    Surplus,
}

#[derive(Debug)]
struct Current {
    body: BodyDecoder,
    finished: Finished,
}

impl ResponseReader {
    /// A reader for responses to requests of one method; `request_was_head` for HEAD, whose responses have no body.
    pub fn new(request_was_head: bool) -> Self {
        Self { request_was_head, ..Self::default() }
    }

    /// Forgets everything, for a new connection.
    pub fn reset(&mut self) {
        self.partial_head.clear();
        self.current = None;
    }

    /// Takes what was read; `Some` once a response is complete, which must be with the input's last byte, because
    /// requests are not pipelined.
    ///
    /// # Errors
    /// When the bytes are no valid response; the connection cannot be used any further.
    pub fn advance(&mut self, mut input: &[u8]) -> Result<Option<Finished>, ResponseError> {
        loop {
            if let Some(current) = &mut self.current {
                while !input.is_empty() && !current.body.is_done() {
                    input = &input[current.body.decode(input)?.consumed..];
                }
                if !current.body.is_done() {
                    return Ok(None);
                }
                if !input.is_empty() {
                    return Err(ResponseError::Surplus);
                }
                return Ok(self.current.take().map(|current| current.finished));
            }
            if input.is_empty() {
                return Ok(None);
            }
            match self.head(input)? {
                Some(consumed) => input = &input[consumed..],
                None => return Ok(None),
            }
        }
    }

    /// The peer closed its side: ends a response that is delimited by that.
    ///
    /// # Errors
    /// When a response is outstanding.
    pub fn closed(&mut self) -> Result<Finished, ResponseError> {
        match self.current.take() {
            Some(Current { body: BodyDecoder::UntilClose, finished }) => Ok(finished),
            _ => Err(ResponseError::ClosedEarly),
        }
    }

    /// Parses a head and prepares for its body. Returns how many bytes of `input` belong to it, `None` for "more".
    fn head(&mut self, input: &[u8]) -> Result<Option<usize>, ResponseError> {
        if self.partial_head.is_empty() {
            return match parse_head(input, self.request_was_head)? {
                Some((length, current)) => {
                    self.current = current;
                    Ok(Some(length))
                }
                None => {
                    self.partial_head.extend_from_slice(input);
                    Ok(None)
                }
            };
        }
        let before = self.partial_head.len();
        self.partial_head.extend_from_slice(input);
        match parse_head(&self.partial_head, self.request_was_head)? {
            Some((length, current)) => {
                self.partial_head.clear();
                self.current = current;
                Ok(Some(length - before))
            }
            None => Ok(None),
        }
    }
}

/// Length of the head and what follows it; no response for an interim (1xx) head.
type Head = (usize, Option<Current>);

fn parse_head(input: &[u8], request_was_head: bool) -> Result<Option<Head>, ResponseError> {
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut response, input, &mut headers) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if input.len() > HEAD_BYTES_MAX => {
            return Err(ResponseError::HeadTooLarge);
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(ResponseError::Head),
    };
    let status = response.code.ok_or(ResponseError::Head)?;
    if (100..200).contains(&status) && status != 101 {
        return Ok(Some((length, None)));
    }
    let mut reusable = response.version == Some(1);
    let (mut content_length, mut chunked) = (None, false);
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            let value =
                std::str::from_utf8(header.value).ok().and_then(|text| text.trim().parse::<u64>().ok());
            let value = value.ok_or(ResponseError::ContentLength)?;
            if content_length.is_some_and(|earlier| earlier != value) {
                return Err(ResponseError::ContentLength);
            }
            content_length = Some(value);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = header.value.to_ascii_lowercase().ends_with(b"chunked");
        } else if header.name.eq_ignore_ascii_case("connection") {
            let value = header.value.to_ascii_lowercase();
            if value.split(|&byte| byte == b',').any(|token| token.trim_ascii() == b"close") {
                reusable = false;
            }
        }
    }
    let body = match (request_was_head || matches!(status, 204 | 304), chunked, content_length) {
        (true, _, _) => BodyDecoder::Length(0),
        (false, true, _) => BodyDecoder::chunked(),
        (false, false, Some(length)) => BodyDecoder::Length(length),
        (false, false, None) => BodyDecoder::UntilClose,
    };
    reusable &= body != BodyDecoder::UntilClose;
    Ok(Some((length, Some(Current { body, finished: Finished { status, reusable } }))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Finished = Finished { status: 200, reusable: true };

    /// Feeds `wire` in two parts at every possible place.
    fn every_split(wire: &[u8], request_was_head: bool, expected: Finished) {
        for split in 0..=wire.len() {
            let mut reader = ResponseReader::new(request_was_head);
            let first = reader.advance(&wire[..split]).expect("valid response");
            let second = if split < wire.len() {
                reader.advance(&wire[split..]).expect("valid response")
            } else {
                None
            };
            assert_eq!(first.or(second), Some(expected), "split at {split}");
        }
    }

    #[test]
    fn responses_end_where_their_framing_says() {
        every_split(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", false, OK);
        every_split(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            false,
            OK,
        );
        every_split(b"HTTP/1.1 204 No Content\r\n\r\n", false, Finished { status: 204, ..OK });
        every_split(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, OK);
        let closing = Finished { status: 503, reusable: false };
        every_split(
            b"HTTP/1.1 503 No\r\nconnection: Keep-Alive, Close\r\ncontent-length: 0\r\n\r\n",
            false,
            closing,
        );
        every_split(
            b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            false,
            Finished { reusable: false, ..OK },
        );
    }

    #[test]
    fn interim_responses_are_passed_over() {
        every_split(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
            false,
            OK,
        );
    }

    #[test]
    fn closing_ends_only_a_body_delimited_by_it() {
        let mut reader = ResponseReader::new(false);
        assert_eq!(reader.advance(b"HTTP/1.1 200 OK\r\n\r\nabc"), Ok(None));
        assert_eq!(reader.closed(), Ok(Finished { status: 200, reusable: false }));

        assert_eq!(reader.advance(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc"), Ok(None));
        assert_eq!(reader.closed(), Err(ResponseError::ClosedEarly));
    }

    #[test]
    fn nonsense_is_an_error() {
        for (wire, error) in [
            (&b"HTTQ/1.1 200 OK\r\n\r\n"[..], ResponseError::Head),
            (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", ResponseError::ContentLength),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                ResponseError::ContentLength,
            ),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab", ResponseError::Surplus),
        ] {
            assert_eq!(ResponseReader::new(false).advance(wire), Err(error));
        }
        let mut long = b"HTTP/1.1 200 OK\r\nx: ".to_vec();
        long.resize(HEAD_BYTES_MAX + 100, b'x');
        assert_eq!(ResponseReader::new(false).advance(&long), Err(ResponseError::HeadTooLarge));
    }
}
