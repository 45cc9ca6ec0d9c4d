//! What is known of an encrypted connection, for headers and access logs.

use std::{cell::OnceCell, sync::Arc, time::Duration};

use aws_lc_rs::digest;
use rustls::{CommonState, HandshakeKind};

use super::{
    certificate::{CertificateInfo, hex},
    context::{Hello, ServerContext},
    params::{SUITES, VERSIONS},
};
use crate::observe::access::{CertificateFacts, TlsFacts};

/// A downstream TLS connection.
#[derive(Clone, Debug, Default)]
pub struct TlsInfo {
    /// `%DOWNSTREAM_TLS_VERSION%`: `TLSv1.3`.
    pub version: &'static str,
    /// `%DOWNSTREAM_TLS_CIPHER%`, by OpenSSL's name.
    pub cipher: &'static str,
    /// The protocol agreed upon; empty for none.
    pub alpn: String,
    /// `%REQUESTED_SERVER_NAME%`; empty for none.
    pub sni: String,
    /// Whether a full handshake was saved.
    pub resumed: bool,
    /// The client's certificate.
    pub peer: Option<PeerCertificate>,
    /// The certificate that was presented to the client.
    pub local: Option<Arc<CertificateInfo>>,
    /// IANA's number of the cipher suite.
    pub cipher_id: u16,
    facts: OnceCell<TlsFacts>,
}

/// A client's certificate, with those that came with it.
#[derive(Clone, Debug)]
pub struct PeerCertificate {
    /// The end entity's.
    pub leaf: CertificateInfo,
    /// What came with it, DER.
    pub intermediates: Vec<Vec<u8>>,
}

impl TlsInfo {
    pub(super) fn new(common: &CommonState, hello: Option<Hello>) -> Self {
        let suite = common.negotiated_cipher_suite().map(|suite| suite.suite());
        let cipher = SUITES.iter().find(|(known, _)| Some(*known) == suite);
        let version = VERSIONS.iter().find(|(known, _)| Some(*known) == common.protocol_version());
        let peer = common.peer_certificates().and_then(|chain| {
            let (leaf, rest) = chain.split_first()?;
            let intermediates = rest.iter().map(|der| der.to_vec()).collect();
            Some(PeerCertificate { leaf: CertificateInfo::parse(leaf)?, intermediates })
        });
        let cipher_id = suite.map_or(0, u16::from);
        let (sni, local) = hello.map_or((None, None), |hello| (hello.sni, Some(hello.local)));
        Self {
            version: version.map_or("", |(_, name)| name),
            cipher: cipher.map_or("", |(_, name)| name),
            alpn: common
                .alpn_protocol()
                .map(|it| String::from_utf8_lossy(it).into_owned())
                .unwrap_or_default(),
            sni: sni.unwrap_or_default(),
            resumed: common.handshake_kind() == Some(HandshakeKind::Resumed),
            peer,
            local,
            cipher_id,
            facts: OnceCell::new(),
        }
    }

    /// What is known of a connection of QUIC. Its cipher suite is not.
    pub fn of_quic(peer: &culvert_quic::Peer, context: &ServerContext) -> Self {
        let certificate = peer.certificates.split_first().and_then(|(leaf, rest)| {
            let intermediates = rest.iter().map(|der| der.to_vec()).collect();
            Some(PeerCertificate { leaf: CertificateInfo::parse(leaf)?, intermediates })
        });
        let alpn = peer.protocol.as_deref().map(|it| String::from_utf8_lossy(it).into_owned());
        Self {
            version: "TLSv1.3",
            alpn: alpn.unwrap_or_default(),
            sni: peer.server_name.clone().unwrap_or_default(),
            peer: certificate,
            local: context.shown_for(peer.server_name.as_deref()),
            ..Self::default()
        }
    }

    /// The same for access logs, put together when first asked for.
    pub fn facts(&self) -> &TlsFacts {
        self.facts.get_or_init(|| TlsFacts {
            version: self.version.to_owned(),
            cipher: self.cipher.to_owned(),
            cipher_id: self.cipher_id,
            // rustls keeps it to itself; with TLS 1.3 it means nothing.
            session_id: String::new(),
            local: self.local.as_deref().map(certificate_facts).unwrap_or_default(),
            peer: self.peer.as_ref().map(|peer| certificate_facts(&peer.leaf)).unwrap_or_default(),
        })
    }
}

fn certificate_facts(info: &CertificateInfo) -> CertificateFacts {
    let after_1970 = |seconds: i64| u64::try_from(seconds).ok().map(Duration::from_secs);
    let sha1 = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &info.der);
    CertificateFacts {
        subject: info.subject.clone(),
        issuer: info.issuer.clone(),
        serial: info.serial.clone(),
        fingerprint_1: hex(sha1.as_ref()),
        fingerprint_256: hex(&info.sha256),
        pem: url_encoded(&pem(&info.der)),
        dns_sans: info.dns_sans.clone(),
        uri_sans: info.uri_sans.clone(),
        valid_from: after_1970(info.not_before),
        valid_to: after_1970(info.not_after),
    }
}

/// PEM with the characters escaped that a header would not carry, as in a URL.
pub fn url_encoded(pem: &str) -> String {
    let mut out = String::with_capacity(pem.len() + pem.len() / 8);
    for char in pem.chars() {
        match char {
            '\n' => out.push_str("%0A"),
            ' ' => out.push_str("%20"),
            '+' => out.push_str("%2B"),
            '/' => out.push_str("%2F"),
            '=' => out.push_str("%3D"),
            other => out.push(other),
        }
    }
    out
}

impl PeerCertificate {
    /// The certificate in PEM.
    pub fn pem(&self) -> String {
        pem(&self.leaf.der)
    }

    /// The certificate and those that came with it in PEM.
    pub fn chain_pem(&self) -> String {
        let mut text = self.pem();
        self.intermediates.iter().for_each(|der| text.push_str(&pem(der)));
        text
    }
}

fn pem(der: &[u8]) -> String {
    const LINE: usize = 64;
    let base64 = base64(der);
    let mut out = String::with_capacity(base64.len() * 65 / 64 + 64);
    out.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(LINE));
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = group.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for at in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * at)) as usize & 63];
            out.push(if at <= group.len() { digit.into() } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_is_escaped() {
        assert_eq!(url_encoded("- a\nb+/=\n"), "-%20a%0Ab%2B%2F%3D%0A");
    }

    #[test]
    fn base64_is_padded() {
        let texts = ["", "f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes()));
        assert_eq!(texts, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]);
    }
}
