//! What clients are told of upstreams that did not answer.

use culvert_proto::h1::Fault;

use crate::{
    http::{codec::ReceiveError, log::Flags, reply::Reply},
    upstream::AcquireError,
};

pub(super) fn overflow() -> Reply {
    Reply::new(503, "upstream connect error or disconnect/reset before headers. reset reason: overflow")
        .flag(Flags::UPSTREAM_OVERFLOW)
        .details("upstream_reset_before_response_started{overflow}")
        .overloaded()
}

pub(super) fn acquire_failed(error: &AcquireError) -> Reply {
    match error {
        AcquireError::Overflow => overflow(),
        AcquireError::Connect(reason) => {
            log::debug!(target: "upstream", "connect failed: {reason}");
            Reply::new(
                503,
                "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
            )
            .flag(Flags::UPSTREAM_CONNECTION_FAILURE)
            .details("upstream_reset_before_response_started{remote_connection_failure}")
        }
        AcquireError::Timeout => Reply::new(
            503,
            "upstream connect error or disconnect/reset before headers. reset reason: connection timeout",
        )
        .flag(Flags::UPSTREAM_CONNECTION_FAILURE)
        .details("upstream_reset_before_response_started{connection_timeout}"),
    }
}

pub(super) fn upstream_failed(error: &ReceiveError) -> Reply {
    match error {
        ReceiveError::Fault(fault) => {
            log::debug!(target: "upstream", "response refused: {fault}");
            protocol_error()
        }
        // A head that stops in its middle is a broken response; none at all is a lost connection.
        ReceiveError::Broken | ReceiveError::Truncated => protocol_error(),
        ReceiveError::Refused => Reply::new(
            503,
            "upstream connect error or disconnect/reset before headers. reset reason: remote refused stream reset",
        )
        .flag(Flags::UPSTREAM_REMOTE_RESET)
        .details("upstream_reset_before_response_started{remote_refused_stream_reset}"),
        ReceiveError::Reset => Reply::new(
            503,
            "upstream connect error or disconnect/reset before headers. reset reason: remote reset",
        )
        .flag(Flags::UPSTREAM_REMOTE_RESET)
        .details("upstream_reset_before_response_started{remote_reset}"),
        ReceiveError::Closed | ReceiveError::Io(_) => Reply::new(
            503,
            "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
        )
        .flag(Flags::UPSTREAM_CONNECTION_TERMINATION)
        .details("upstream_reset_before_response_started{connection_termination}"),
    }
}

pub(super) fn protocol_error() -> Reply {
    Reply::new(
        Fault::UPSTREAM_STATUS,
        "upstream connect error or disconnect/reset before headers. reset reason: protocol error",
    )
    .flag(Flags::UPSTREAM_PROTOCOL_ERROR)
    .details(Fault::UPSTREAM_DETAILS)
}
