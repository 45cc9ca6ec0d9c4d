//! What can be wrong with an HTTP/1 message, and how it is answered.

/// A violation found in a message. A request is answered with [`Fault::status`] and the connection closed; for a
/// response, the upstream connection is closed and [`Fault::UPSTREAM_STATUS`] sent if nothing has been sent yet.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, thiserror::Error)]
pub enum Fault {
    /// A carriage return that is not followed by a line feed (RFC 9112 section 2.2).
    #[error("bare CR")]
    BareCr,
    /// A line that ends with a line feed alone (RFC 9112 section 2.2).
    #[error("bare LF")]
    BareLf,
    /// A body where none is allowed: CONNECT, 1xx, 204.
    #[error("body not allowed")]
    BodyNotAllowed,
    /// The connection ended inside a body.
    #[error("truncated body")]
    BodyTruncated,
    /// The data of a chunk is not followed by CRLF (RFC 9112 section 7.1).
    #[error("chunk data without CRLF")]
    ChunkDataEnd,
    /// A chunk extension with control characters, or extensions beyond the limit.
    #[error("bad or too long chunk extension")]
    ChunkExtension,
    /// A chunk size that is not a hexadecimal number of at most 64 bits.
    #[error("bad chunk size")]
    ChunkSize,
    /// A `connection` field that nominates a field of the proxy's own, or ten or more fields.
    #[error("connection nominates too much")]
    ConnectionNominates,
    /// A `content-length` that is not one decimal number of at most 64 bits.
    #[error("bad content-length")]
    ContentLength,
    /// More than one `content-length` field, equal or not.
    #[error("repeated content-length")]
    ContentLengthRepeated,
    /// `content-length` beside `transfer-encoding` (RFC 9112 section 6.1).
    #[error("content-length with transfer-encoding")]
    ContentLengthWithTransferEncoding,
    /// `#` in a request target.
    #[error("fragment in the target")]
    Fragment,
    /// More header or trailer bytes than allowed.
    #[error("headers too large")]
    HeadersTooLarge,
    /// More header or trailer fields than allowed.
    #[error("too many headers")]
    HeadersTooMany,
    /// The connection ended inside a head.
    #[error("truncated head")]
    HeadTruncated,
    /// A `host` that is not a host with an optional port.
    #[error("bad host")]
    Host,
    /// No `host` field, nor a default for HTTP/1.0.
    #[error("missing host")]
    HostMissing,
    /// More than one `host` field.
    #[error("repeated host")]
    HostRepeated,
    /// A line among the fields without colon.
    #[error("header without colon")]
    HeaderColon,
    /// A control character or NUL in the target or in a field.
    #[error("control character")]
    InvalidCharacter,
    /// A method that Envoy does not know either.
    #[error("unknown method")]
    Method,
    /// A field name that is not a token, or space before the colon (RFC 9112 section 5.1).
    #[error("bad header name")]
    Name,
    /// A field continued on the next line (RFC 9112 section 5.2).
    #[error("folded header")]
    ObsFold,
    /// A target whose path does not start with `/`: an absolute-form where those are not allowed, or `http://host?query`.
    #[error("path is not absolute")]
    PathNotAbsolute,
    /// A request line that is not three parts between single spaces (RFC 9112 section 3).
    #[error("bad request line")]
    RequestLine,
    /// An absolute-form target of another scheme than `http` and `https`.
    #[error("bad scheme")]
    Scheme,
    /// A status line that is not `HTTP/1.x NNN reason` (RFC 9112 section 4).
    #[error("bad status line")]
    StatusLine,
    /// A target that fits none of the four forms of RFC 9112 section 3.2.
    #[error("bad target")]
    Target,
    /// `transfer-encoding` in HTTP/1.0 (RFC 9112 section 6.1).
    #[error("transfer-encoding in HTTP/1.0")]
    TransferEncodingInHttp10,
    /// A `transfer-encoding` other than exactly one `chunked`.
    #[error("unknown transfer-encoding")]
    TransferEncodingUnknown,
    /// A field name with an underscore where the configuration refuses that.
    #[error("underscore in a header name")]
    Underscore,
    /// A bad authority in an absolute-form or authority-form target.
    #[error("bad URL")]
    Url,
    /// Not `HTTP/` and a version.
    #[error("bad version")]
    Version,
    /// HTTP/1.0 where it is not served, or a version that nobody serves here.
    #[error("unserved version")]
    VersionUnserved,
}

impl Fault {
    /// Status of the answer to a client when an upstream's response is at fault.
    pub const UPSTREAM_STATUS: u16 = 502;
    /// Envoy's `response_code_details` when an upstream's response head is at fault; response flag `UPE`.
    pub const UPSTREAM_DETAILS: &str = "upstream_reset_before_response_started{protocol_error}";
    /// Envoy's `response_code_details` when the fault comes after the head was sent on; response flag `UPE`.
    pub const UPSTREAM_DETAILS_STARTED: &str = "upstream_reset_after_response_started{protocol_error}";

    /// The status of the answer to a faulty request. Envoy 1.40's, but for [`INTENDED_DIFFERENCES`].
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::PathNotAbsolute => 404,
            Self::VersionUnserved => 426,
            Self::HeadersTooLarge | Self::HeadersTooMany => 431,
            Self::TransferEncodingUnknown => 501,
            _ => 400,
        }
    }

    /// Envoy's `response_code_details` for a faulty request.
    #[must_use]
    pub fn details(self) -> &'static str {
        match self {
            Self::BodyNotAllowed => "http1.body_disallowed",
            Self::ConnectionNominates => "http1.connection_header_rejected",
            Self::ContentLengthWithTransferEncoding => "http1.content_length_and_chunked_not_allowed",
            Self::Fragment => "path_normalization_failed",
            Self::HeadersTooLarge => "http1.headers_too_large",
            Self::HeadersTooMany => "http1.too_many_headers",
            Self::Host | Self::HostRepeated => "http.invalid_authority",
            Self::HostMissing => "missing_host_header",
            Self::InvalidCharacter => "http1.invalid_characters",
            Self::PathNotAbsolute => "absolute_path_rejected",
            Self::Scheme => "http1.invalid_scheme",
            Self::TransferEncodingUnknown => "http1.invalid_transfer_encoding",
            Self::Underscore => "http1.unexpected_underscore",
            Self::Url => "http1.invalid_url",
            Self::VersionUnserved => "low_version",
            _ => "http1.codec_error",
        }
    }

    /// Whether Envoy's access log has the response flag `DPE` (downstream protocol error) for it.
    #[must_use]
    pub fn is_protocol_error(self) -> bool {
        !matches!(self, Self::Fragment | Self::HostMissing | Self::PathNotAbsolute)
    }
}

/// A row of [`INTENDED_DIFFERENCES`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IntendedDifference {
    /// What is refused here.
    pub fault: Fault,
    /// What Envoy 1.40 takes instead.
    pub envoy: &'static str,
    /// The rule that forbids it.
    pub source: &'static str,
}

/// Where Envoy 1.40 takes what the RFCs forbid and this codec answers 400 (502 for a response).
///
/// Two readers that disagree about such a message are how requests are smuggled; the one in front must not guess.
pub const INTENDED_DIFFERENCES: &[IntendedDifference] = &[
    difference(Fault::ObsFold, "joins the lines", "RFC 9112 section 5.2"),
    difference(Fault::BareCr, "drops a CR inside a value", "RFC 9112 section 2.2"),
    difference(Fault::BareLf, "ends lines and trailers at LF", "RFC 9112 section 2.2"),
    difference(Fault::HostRepeated, "joins repeated hosts with a comma", "RFC 9112 section 3.2"),
    difference(Fault::HostMissing, "needs no host beside an absolute-form target", "RFC 9112 section 3.2"),
    difference(
        Fault::Host,
        "takes userinfo, non-numeric ports and broken IP literals",
        "RFC 9112 section 3.2",
    ),
    difference(Fault::Url, "drops userinfo of an absolute-form target", "RFC 9110 section 4.2.4"),
    difference(Fault::RequestLine, "takes tabs and repeated or trailing spaces", "RFC 9112 section 3"),
    difference(Fault::ChunkSize, "ignores what follows the size and a space", "RFC 9112 section 7.1"),
    difference(Fault::ChunkExtension, "takes control characters and any length", "RFC 9112 section 7.1.1"),
    difference(Fault::ChunkDataEnd, "skips to the next LF after the data", "RFC 9112 section 7.1"),
    difference(Fault::TransferEncodingInHttp10, "decodes it", "RFC 9112 section 6.1"),
    difference(
        Fault::VersionUnserved,
        "serves HTTP/2.0 and others as 1.0 where 1.0 is served",
        "RFC 9112 section 2.3",
    ),
];

const fn difference(fault: Fault, envoy: &'static str, source: &'static str) -> IntendedDifference {
    IntendedDifference { fault, envoy, source }
}
