//! What can be wrong with an HTTP/1 message, and how it is answered.

/// A violation found in a message. A request is answered with [`Fault::status`] and the connection closed; in a
/// response, the upstream connection is closed and the client gets 502.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Fault {
    /// A carriage return that is not followed by a line feed.
    #[error("bare CR")]
    BareCr,
}

impl Fault {
    /// The status of the answer to a faulty request; 502 for what only a response can do.
    #[must_use]
    pub fn status(self) -> u16 {
        400
    }

    /// Envoy's `response_code_details` for it.
    #[must_use]
    pub fn details(self) -> &'static str {
        "http1.codec_error"
    }
}

/// A row of [`INTENDED_DIFFERENCES`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IntendedDifference {
    /// What is refused here.
    pub fault: Fault,
    /// What Envoy 1.40 does instead.
    pub envoy: &'static str,
    /// The rule that forbids it.
    pub source: &'static str,
}

/// Where Envoy tolerates what the RFC forbids and this codec answers 400.
pub const INTENDED_DIFFERENCES: &[IntendedDifference] = &[];
