//! What an endpoint and a connection have done.

use std::time::Duration;

/// Counters of an endpoint; they only grow, but for the last two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointStats {
    /// Datagrams received.
    pub datagrams_received: u64,
    /// Calls that received them: the fewer, the longer the trains.
    pub receives: u64,
    /// Bytes in them.
    pub bytes_received: u64,
    /// Datagrams that the kernel took.
    pub datagrams_sent: u64,
    /// Calls that sent them.
    pub sends: u64,
    /// Bytes in them.
    pub bytes_sent: u64,
    /// Datagrams that belonged to no connection and were not answered, or that were no QUIC.
    pub datagrams_ignored: u64,
    /// Answers that belong to no connection: version negotiation, Retry, stateless resets, refusals.
    pub stateless_sent: u64,
    /// Errors of the socket while receiving.
    pub receive_errors: u64,
    /// Datagrams, or trains of them, that the socket refused; to a connection they are lost.
    pub send_errors: u64,
    /// Connections made.
    pub initiated: u64,
    /// Connections taken, before their handshakes.
    pub accepted: u64,
    /// Connections refused: too many handshakes, no server configuration.
    pub refused: u64,
    /// Clients that were asked to show that they can be reached.
    pub retries: u64,
    /// Handshakes completed, of either side.
    pub established: u64,
    /// Connections that ended before their handshake was complete.
    pub handshakes_failed: u64,
    /// Connections that ended because nothing was heard for too long.
    pub timed_out: u64,
    /// Handshakes of clients in progress now.
    pub handshaking: u64,
    /// Connections now, closing ones included.
    pub connections: u64,
}

/// What is known of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionStats {
    /// The smoothed round-trip time.
    pub rtt: Duration,
    /// Congestion window in bytes.
    pub cwnd: u64,
    /// Bytes that fit into a datagram, as far as is known.
    pub mtu: u16,
    /// Packets sent.
    pub packets_sent: u64,
    /// Packets lost.
    pub packets_lost: u64,
    /// Times the congestion controller was told of losses or marks.
    pub congestion_events: u64,
    /// Datagrams sent.
    pub datagrams_sent: u64,
    /// Bytes in them.
    pub bytes_sent: u64,
    /// Datagrams received.
    pub datagrams_received: u64,
    /// Bytes in them.
    pub bytes_received: u64,
}

impl From<quinn_proto::ConnectionStats> for ConnectionStats {
    fn from(it: quinn_proto::ConnectionStats) -> Self {
        Self {
            rtt: it.path.rtt,
            cwnd: it.path.cwnd,
            mtu: it.path.current_mtu,
            packets_sent: it.path.sent_packets,
            packets_lost: it.path.lost_packets,
            congestion_events: it.path.congestion_events,
            datagrams_sent: it.udp_tx.datagrams,
            bytes_sent: it.udp_tx.bytes,
            datagrams_received: it.udp_rx.datagrams,
            bytes_received: it.udp_rx.bytes,
        }
    }
}
