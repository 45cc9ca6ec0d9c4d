//! Response flags: why a response is not the upstream's own.

use std::ops::BitOr;

/// `%RESPONSE_FLAGS%`, a set.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Flags(u32);

macro_rules! flags {
    ($($constant:ident = $number:literal, $short:literal, $long:literal;)*) => {
        impl Flags {
            $(
                #[doc = concat!("`", $short, "`: ", $long)]
                pub const $constant: Self = Self(1 << $number);
            )*

            /// In the order in which they come to be set, which is that in which Envoy writes them: flag, short name,
            /// long name, and the field of `data.accesslog.v3.ResponseFlags`.
            const NAMES: &'static [(Self, &'static str, &'static str, u32)] =
                &[$((Self::$constant, $short, $long, $number),)*];
        }
    };
}

// A TCP proxy has no more attempts after the last one has failed, a router when it decides not to try again: the same flag in
// two places.
flags! {
    FAILED_LOCAL_HEALTH_CHECK = 1, "LH", "FailedLocalHealthCheck";
    DELAY_INJECTED = 10, "DI", "DelayInjected";
    FAULT_INJECTED = 11, "FI", "FaultInjected";
    UPSTREAM_RETRY_LIMIT = 16, "URX", "UpstreamRetryLimitExceeded";
    NO_HEALTHY_UPSTREAM = 2, "UH", "NoHealthyUpstream";
    UPSTREAM_REQUEST_TIMEOUT = 3, "UT", "UpstreamRequestTimeout";
    LOCAL_RESET = 4, "LR", "LocalReset";
    UPSTREAM_REMOTE_RESET = 5, "UR", "UpstreamRemoteReset";
    UPSTREAM_CONNECTION_FAILURE = 6, "UF", "UpstreamConnectionFailure";
    CONNECT_ATTEMPTS = 31, "URX", "UpstreamRetryLimitExceeded";
    UPSTREAM_CONNECTION_TERMINATION = 7, "UC", "UpstreamConnectionTermination";
    UPSTREAM_OVERFLOW = 8, "UO", "UpstreamOverflow";
    NO_ROUTE = 9, "NR", "NoRouteFound";
    RATE_LIMITED = 12, "RL", "RateLimited";
    UNAUTHORIZED_EXTERNAL_SERVICE = 13, "UAEX", "UnauthorizedExternalService";
    RATE_LIMIT_SERVICE_ERROR = 14, "RLSE", "RateLimitServiceError";
    DOWNSTREAM_TERMINATION = 15, "DC", "DownstreamConnectionTermination";
    STREAM_IDLE_TIMEOUT = 17, "SI", "StreamIdleTimeout";
    DOWNSTREAM_PROTOCOL_ERROR = 19, "DPE", "DownstreamProtocolError";
    UPSTREAM_MAX_DURATION = 20, "UMSDR", "UpstreamMaxStreamDurationReached";
    NO_FILTER_CONFIG = 22, "NFCF", "NoFilterConfigFound";
    DURATION_TIMEOUT = 23, "DT", "DurationTimeout";
    UPSTREAM_PROTOCOL_ERROR = 24, "UPE", "UpstreamProtocolError";
    NO_CLUSTER = 25, "NC", "NoClusterFound";
    OVERLOAD = 26, "OM", "OverloadManagerTerminated";
    DOWNSTREAM_REMOTE_RESET = 28, "DR", "DownstreamRemoteReset";
    UNCONDITIONAL_DROP_OVERLOAD = 30, "UDO", "UnconditionalDropOverload";
    DROP_OVERLOAD = 29, "DO", "DropOverLoad";
}

impl Flags {
    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether one of the short names is among them.
    pub fn has_any(self, names: &[String]) -> bool {
        self.present().any(|(_, short, ..)| names.iter().any(|name| name == short))
    }

    /// Appends the names, separated by commas; `-` when there are none.
    pub fn write(self, long: bool, out: &mut Vec<u8>) {
        if self.is_empty() {
            out.push(b'-');
            return;
        }
        for (index, (_, short, name, _)) in self.present().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            out.extend_from_slice(if long { name } else { short }.as_bytes());
        }
    }

    /// Field numbers of `data.accesslog.v3.ResponseFlags`, all of them booleans; [`Flags::is_unauthorized`] is another one.
    pub fn fields(self) -> impl Iterator<Item = u32> {
        // The message has no field for dropped overload, and a message of its own for who is not authorized.
        self.present()
            .map(|(.., field)| if *field == 31 { 16 } else { *field })
            .filter(|field| !matches!(field, 13 | 29))
    }

    /// Whether a service has denied the request: `unauthorized_details`, field 13.
    pub fn is_unauthorized(self) -> bool {
        self.0 & Self::UNAUTHORIZED_EXTERNAL_SERVICE.0 != 0
    }

    fn present(self) -> impl Iterator<Item = &'static (Self, &'static str, &'static str, u32)> {
        Self::NAMES.iter().filter(move |(flag, ..)| self.0 & flag.0 != 0)
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
