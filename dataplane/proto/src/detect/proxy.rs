//! The PROXY protocol, versions 1 and 2 (haproxy.org, proxy-protocol.txt).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What the first bytes are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Proxy {
    /// No header.
    Absent,
    /// A header.
    Header(ProxyHeader),
    /// The beginning of a header, as far as can be seen.
    Incomplete,
    /// The beginning of a header that goes on wrong.
    Malformed(ProxyVersion),
}

/// A header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProxyHeader {
    /// Which version.
    pub version: ProxyVersion,
    /// How many bytes it takes.
    pub length: usize,
    /// Source and destination; `None` when the sender speaks for itself, or does not say for whom.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
}

/// A version of the protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Which versions are looked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProxyVersions {
    /// Version 1.
    pub v1: bool,
    /// Version 2.
    pub v2: bool,
}

const V1_SIGNATURE: &[u8] = b"PROXY ";
/// Longest line, its end included.
const V1_MAX: usize = 107;
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_HEADER: usize = 16;

/// Looks for a header of one of `versions`.
pub fn proxy(bytes: &[u8], versions: ProxyVersions) -> Proxy {
    let begins = |signature: &[u8]| {
        let seen = bytes.len().min(signature.len());
        bytes[..seen] == signature[..seen]
    };
    if versions.v2 && begins(V2_SIGNATURE) {
        return v2(bytes);
    }
    if versions.v1 && begins(V1_SIGNATURE) {
        return v1(bytes);
    }
    if bytes.is_empty() { Proxy::Incomplete } else { Proxy::Absent }
}

fn v1(bytes: &[u8]) -> Proxy {
    let window = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = memchr::memmem::find(window, b"\r\n") else {
        let whole = window.len() == V1_MAX;
        return if whole { Proxy::Malformed(ProxyVersion::V1) } else { Proxy::Incomplete };
    };
    let header =
        |addresses| Proxy::Header(ProxyHeader { version: ProxyVersion::V1, length: end + 2, addresses });
    let line = window.get(V1_SIGNATURE.len()..end).and_then(|line| std::str::from_utf8(line).ok());
    let Some(line) = line else { return Proxy::Malformed(ProxyVersion::V1) };
    let mut words = line.split(' ');
    let family = words.next();
    if family == Some("UNKNOWN") {
        return header(None);
    }
    let words: Vec<&str> = words.collect();
    let [source, destination, source_port, destination_port] = words.as_slice() else {
        return Proxy::Malformed(ProxyVersion::V1);
    };
    let address = |ip: &str, port: &str| -> Option<SocketAddr> {
        let ip: IpAddr = match family {
            Some("TCP4") => ip.parse::<Ipv4Addr>().ok()?.into(),
            Some("TCP6") => ip.parse::<Ipv6Addr>().ok()?.into(),
            _ => return None,
        };
        // No sign, which `parse` would take.
        port.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| port.parse().ok())?
            .map(|port| (ip, port).into())
    };
    match (address(source, source_port), address(destination, destination_port)) {
        (Some(source), Some(destination)) => header(Some((source, destination))),
        _ => Proxy::Malformed(ProxyVersion::V1),
    }
}

fn v2(bytes: &[u8]) -> Proxy {
    const MALFORMED: Proxy = Proxy::Malformed(ProxyVersion::V2);
    let Some((&command, rest)) = bytes.get(V2_SIGNATURE.len()..).and_then(<[u8]>::split_first) else {
        return Proxy::Incomplete;
    };
    // Version 2, LOCAL or PROXY.
    let local = match command {
        0x20 => true,
        0x21 => false,
        _ => return MALFORMED,
    };
    let [family, high, low, rest @ ..] = rest else { return Proxy::Incomplete };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    // Addresses over IPv4 and IPv6, also of datagrams, as in Envoy; what is not specified is passed over.
    let addresses_length = match (local, family) {
        (true, _) | (false, 0x00) => 0,
        (false, 0x11 | 0x12) => 12,
        (false, 0x21 | 0x22) => 36,
        _ => return MALFORMED,
    };
    if length < addresses_length {
        return MALFORMED;
    }
    let Some(body) = rest.get(..length) else { return Proxy::Incomplete };
    let (addresses, records) = body.split_at(addresses_length);
    if addresses_length > 0 && !are_records(records) {
        return MALFORMED;
    }
    Proxy::Header(ProxyHeader {
        version: ProxyVersion::V2,
        length: V2_HEADER + length,
        addresses: v2_addresses(addresses),
    })
}

fn v2_addresses(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    fn pair<const N: usize>(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)>
    where
        IpAddr: From<[u8; N]>,
    {
        let (source, rest) = bytes.split_first_chunk::<N>()?;
        let (destination, ports) = rest.split_first_chunk::<N>()?;
        let [a, b, c, d] = *ports.first_chunk::<4>()?;
        let address = |ip: &[u8; N], port| SocketAddr::new(IpAddr::from(*ip), u16::from_be_bytes(port));
        Some((address(source, [a, b]), address(destination, [c, d])))
    }
    match bytes.len() {
        12 => pair::<4>(bytes),
        36 => pair::<16>(bytes),
        _ => None,
    }
}

/// Appends the header of a connection that is made for somebody else's; `None`, or addresses of different kinds, when it
/// is made for itself or nobody can say for whose.
pub fn write_proxy(version: ProxyVersion, ends: Option<(SocketAddr, SocketAddr)>, out: &mut Vec<u8>) {
    let ends = ends.map(|(source, destination)| {
        let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        (canonical(source), canonical(destination))
    });
    let ends = ends.filter(|(source, destination)| source.is_ipv4() == destination.is_ipv4());
    match (version, ends) {
        (ProxyVersion::V1, None) => out.extend_from_slice(b"PROXY UNKNOWN\r\n"),
        (ProxyVersion::V1, Some((source, destination))) => {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (source.ip(), destination.ip());
            let line = format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port());
            out.extend_from_slice(line.as_bytes());
        }
        (ProxyVersion::V2, None) => {
            out.extend_from_slice(V2_SIGNATURE);
            out.extend_from_slice(&[0x20, 0, 0, 0]);
        }
        (ProxyVersion::V2, Some((source, destination))) => {
            out.extend_from_slice(V2_SIGNATURE);
            out.extend_from_slice(&[0x21, if source.is_ipv4() { 0x11 } else { 0x21 }, 0]);
            out.push(if source.is_ipv4() { 12 } else { 36 });
            for end in [source, destination] {
                match end.ip() {
                    IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
                    IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
                }
            }
            for end in [source, destination] {
                out.extend_from_slice(&end.port().to_be_bytes());
            }
        }
    }
}

/// Whether this is a sequence of type, length and value.
fn are_records(mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let [_, high, low, rest @ ..] = bytes else { return false };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some(rest) = rest.get(length..) else { return false };
        bytes = rest;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let both = ProxyVersions { v1: true, v2: true };
        for version in [ProxyVersion::V1, ProxyVersion::V2] {
            for (source, destination, known) in [
                ("10.0.0.1:5", "10.0.0.2:6", true),
                ("[fd00::1]:5", "[fd00::2]:600", true),
                ("[::ffff:10.0.0.1]:5", "10.0.0.2:6", true),
                ("10.0.0.1:5", "[fd00::2]:600", false),
            ] {
                let ends: (SocketAddr, SocketAddr) = (source.parse().unwrap(), destination.parse().unwrap());
                let mut out = Vec::new();
                write_proxy(version, Some(ends), &mut out);
                let plain = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
                let addresses = known.then(|| (plain(ends.0), plain(ends.1)));
                let length = out.len();
                assert_eq!(proxy(&out, both), Proxy::Header(ProxyHeader { version, length, addresses }));
            }
            let mut out = Vec::new();
            write_proxy(version, None, &mut out);
            let length = out.len();
            assert_eq!(proxy(&out, both), Proxy::Header(ProxyHeader { version, length, addresses: None }));
        }
    }
}
