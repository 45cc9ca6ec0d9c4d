//! What the substitutions of header values and access logs stand for.

use std::{io::Write as _, rc::Rc, time::SystemTime};

use culvert_model::FormatPart;
use culvert_proto::{Headers, h1::push_decimal, route::Formatter};
use culvert_ring::time;

use crate::{
    http::{connection::millis, exchange::Exchange, hygiene::write_peer},
    listener::Peer,
    upstream::Host,
};

/// The values of one request.
pub(super) struct Values<'e> {
    exchange: &'e Exchange<'e>,
    host: Option<&'e Rc<Host>>,
    changing: Changing,
}

/// Whose headers are being changed with the values.
#[derive(Clone, Copy)]
enum Changing {
    Request,
    Response,
}

impl<'e> Values<'e> {
    /// Values for changes of the request, whose own headers are passed with each value.
    pub(super) fn for_request(exchange: &'e Exchange<'_>, host: &'e Rc<Host>) -> Self {
        Self { exchange, host: Some(host), changing: Changing::Request }
    }

    /// Values for changes of the response and for logs; `host` once one is chosen.
    pub(super) fn for_response(exchange: &'e Exchange<'_>, host: Option<&'e Rc<Host>>) -> Self {
        Self { exchange, host, changing: Changing::Response }
    }

    fn request_header(&self, name: &str, headers: Option<&Headers>, out: &mut Vec<u8>) -> bool {
        let head = &self.exchange.head;
        let value = match name {
            ":method" => Some(head.method.as_bytes()),
            ":path" => Some(head.path()),
            ":authority" | "host" => Some(head.authority()),
            ":scheme" => Some(head.scheme.as_str().as_bytes()),
            name => headers.unwrap_or(&head.headers).get(name),
        };
        value.map(|value| out.extend_from_slice(value)).is_some()
    }

    fn response_header(&self, name: &str, headers: Option<&Headers>, out: &mut Vec<u8>) -> bool {
        if name == ":status" {
            push_decimal(u64::from(self.exchange.record.status.get()), out);
            return true;
        }
        let held = self.exchange.record.response.borrow();
        let headers = headers.or_else(|| held.as_ref().map(|head| &head.headers));
        headers.and_then(|headers| headers.get(name)).map(|value| out.extend_from_slice(value)).is_some()
    }

    /// Appends the value of `part`; false when it has none. `request` and `response` replace the held headers while
    /// those are being changed.
    pub(super) fn append(
        &self,
        part: &FormatPart,
        request: Option<&Headers>,
        response: Option<&Headers>,
        out: &mut Vec<u8>,
    ) -> bool {
        let record = &self.exchange.record;
        let downstream = &self.exchange.conn.downstream;
        match part {
            FormatPart::Text(text) => out.extend_from_slice(text.as_bytes()),
            FormatPart::DownstreamRemoteAddress => return peer(downstream.remote, out),
            FormatPart::DownstreamRemoteIp => return ip(downstream.remote, out),
            FormatPart::DownstreamRemotePort => return port(downstream.remote, out),
            FormatPart::DownstreamLocalAddress => return peer(downstream.local, out),
            FormatPart::DownstreamLocalIp => return ip(downstream.local, out),
            FormatPart::DownstreamLocalPort => return port(downstream.local, out),
            FormatPart::Protocol => {
                out.extend_from_slice(self.exchange.downstream_version.as_str().as_bytes());
            }
            FormatPart::Hostname => {
                out.extend_from_slice(self.exchange.conn.worker.process.hostname.as_bytes());
            }
            FormatPart::RequestHeader { name, alternative, max } => {
                return limited(*max, out, |out| {
                    self.request_header(name, request, out)
                        || alternative.as_ref().is_some_and(|name| self.request_header(name, request, out))
                });
            }
            FormatPart::ResponseHeader { name, alternative, max } => {
                return limited(*max, out, |out| {
                    self.response_header(name, response, out)
                        || alternative.as_ref().is_some_and(|name| self.response_header(name, response, out))
                });
            }
            FormatPart::ResponseCode => push_decimal(u64::from(record.status.get()), out),
            FormatPart::ResponseCodeDetails => return text(record.details.get(), out),
            FormatPart::ResponseFlags => return record.flags.get().write(out),
            FormatPart::BytesReceived => push_decimal(record.bytes_received.get(), out),
            FormatPart::BytesSent => push_decimal(record.bytes_sent.get(), out),
            FormatPart::Duration => push_decimal(millis(time::now() - record.started), out),
            FormatPart::RouteName => return text(&record.route_name.borrow(), out),
            FormatPart::UpstreamCluster => {
                return text(record.cluster.borrow().as_deref().unwrap_or(""), out);
            }
            FormatPart::UpstreamHost => return self.upstream_host(out),
            FormatPart::StartTime => self.start_time(out),
        }
        true
    }

    fn upstream_host(&self, out: &mut Vec<u8>) -> bool {
        let held = self.exchange.record.host.borrow();
        let Some(host) = self.host.or(held.as_ref()) else { return false };
        write!(out, "{}", host.spec().endpoint.address).is_ok()
    }

    /// `%Y-%m-%dT%H:%M:%S.%3fZ` of the moment the request began.
    fn start_time(&self, out: &mut Vec<u8>) {
        let began = SystemTime::now() - (time::now() - self.exchange.record.started);
        write_rfc3339(began, out);
    }
}

impl Formatter for Values<'_> {
    fn write(&self, part: &FormatPart, headers: &Headers, out: &mut Vec<u8>) {
        match self.changing {
            Changing::Request => self.append(part, Some(headers), None, out),
            Changing::Response => self.append(part, None, Some(headers), out),
        };
    }
}

fn text(text: &str, out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(text.as_bytes());
    !text.is_empty()
}

fn peer(peer: Peer, out: &mut Vec<u8>) -> bool {
    write_peer(peer, out);
    true
}

fn ip(peer: Peer, out: &mut Vec<u8>) -> bool {
    peer.ip().is_some_and(|ip| write!(out, "{ip}").is_ok())
}

fn port(peer: Peer, out: &mut Vec<u8>) -> bool {
    match peer {
        Peer::Ip(address) => push_decimal(u64::from(address.port()), out),
        Peer::Unix => return false,
    }
    true
}

fn limited(max: Option<usize>, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
    let before = out.len();
    let written = write(out);
    if let Some(max) = max {
        out.truncate(before + max);
    }
    written
}

/// RFC 3339 with milliseconds, in UTC.
fn write_rfc3339(moment: SystemTime, out: &mut Vec<u8>) {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    let millis = since.subsec_millis();
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z");
}

/// Year, month and day of a day counted from 1970-01-01 in the proleptic Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, so that the leap day is the last of its year; an era is 400 years.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_right_around_leap_days() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            let mut out = Vec::new();
            write_rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
