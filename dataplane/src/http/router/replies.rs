//! What clients are told of upstreams that did not answer.

use culvert_proto::h1::Fault;

use crate::{
    http::{codec::ReceiveError, log::Flags, reply::Reply},
    upstream::AcquireError,
};

/// A reply that names the reason of a reset. Where the request had been tried before, it says so.
macro_rules! reset {
    ($status:expr, $retried:expr, $reason:literal) => {
        Reply::new(
            $status,
            if $retried {
                concat!(
                    "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: ",
                    $reason
                )
            } else {
                concat!("upstream connect error or disconnect/reset before headers. reset reason: ", $reason)
            },
        )
    };
}

/// A circuit breaker is open.
pub(super) fn overflow(retried: bool) -> Reply {
    reset!(503, retried, "overflow")
        .flag(Flags::UPSTREAM_OVERFLOW)
        .details("upstream_reset_before_response_started{overflow}")
        .overloaded()
}

/// The upstream took too long. `alternative`: the request asks to be told so with 204.
pub(super) fn timed_out(alternative: bool) -> Reply {
    let reply = if alternative { Reply::new(204, "") } else { Reply::new(504, "upstream request timeout") };
    reply.flag(Flags::UPSTREAM_REQUEST_TIMEOUT)
}

pub(super) fn shed() -> Reply {
    Reply::new(503, "drop overload").flag(Flags::DROP_OVERLOAD).details("drop_overload")
}

pub(super) fn shed_all() -> Reply {
    Reply::new(503, "unconditional drop overload")
        .flag(Flags::UNCONDITIONAL_DROP_OVERLOAD)
        .details("unconditional_drop_overload")
        .header("x-envoy-unconditional-drop-overload", "true")
}

/// Why a connection failed, as Envoy's logs have it.
pub(super) fn connect_failure(reason: &str) -> String {
    match reason.strip_prefix("TLS: ") {
        Some(reason) => format!("TLS_error:|{reason}"),
        // The kernel's text ends with the number of the error.
        None => format!("delayed connect error: {}", reason.split(" (").next().unwrap_or_default()),
    }
}

/// Details of a response that ended too early.
pub(super) fn cut_details(error: &ReceiveError, multiplexed: bool) -> &'static str {
    match error {
        ReceiveError::Refused => "upstream_reset_after_response_started{remote_refused_stream_reset}",
        ReceiveError::Reset => "upstream_reset_after_response_started{remote_reset}",
        ReceiveError::Closed | ReceiveError::Io(_) | ReceiveError::Truncated if multiplexed => {
            "upstream_reset_after_response_started{connection_termination}"
        }
        _ => Fault::UPSTREAM_DETAILS_STARTED,
    }
}

/// There is no connection.
pub(super) fn acquire_failed(error: &AcquireError, retried: bool) -> Reply {
    match error {
        AcquireError::Overflow | AcquireError::Requests => overflow(retried),
        AcquireError::Connect(reason) => {
            log::debug!(target: "upstream", "connect failed: {reason}");
            reset!(503, retried, "remote connection failure")
                .flag(Flags::UPSTREAM_CONNECTION_FAILURE)
                .details_text(format!(
                    "upstream_reset_before_response_started{{remote_connection_failure|{}}}",
                    connect_failure(reason).replace(' ', "_"),
                ))
        }
        AcquireError::Timeout => reset!(503, retried, "connection timeout")
            .flag(Flags::UPSTREAM_CONNECTION_FAILURE)
            .details("upstream_reset_before_response_started{connection_timeout}"),
    }
}

/// The connection, or what came over it, is broken.
pub(super) fn upstream_failed(error: &ReceiveError, retried: bool) -> Reply {
    match error {
        ReceiveError::Fault(fault) => {
            log::debug!(target: "upstream", "response refused: {fault}");
            protocol_error(retried)
        }
        // A head that stops in its middle is a broken response; none at all is a lost connection.
        ReceiveError::Broken | ReceiveError::Encoding | ReceiveError::Truncated => protocol_error(retried),
        ReceiveError::Refused => reset!(503, retried, "remote refused stream reset")
            .flag(Flags::UPSTREAM_REMOTE_RESET)
            .details("upstream_reset_before_response_started{remote_refused_stream_reset}"),
        ReceiveError::Reset => reset!(503, retried, "remote reset")
            .flag(Flags::UPSTREAM_REMOTE_RESET)
            .details("upstream_reset_before_response_started{remote_reset}"),
        ReceiveError::Closed | ReceiveError::Io(_) => reset!(503, retried, "connection termination")
            .flag(Flags::UPSTREAM_CONNECTION_TERMINATION)
            .details("upstream_reset_before_response_started{connection_termination}"),
    }
}

/// What came is no HTTP, or none that was asked for.
pub(super) fn protocol_error(retried: bool) -> Reply {
    reset!(Fault::UPSTREAM_STATUS, retried, "protocol error")
        .flag(Flags::UPSTREAM_PROTOCOL_ERROR)
        .details(Fault::UPSTREAM_DETAILS)
}
