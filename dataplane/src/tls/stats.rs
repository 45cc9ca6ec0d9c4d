//! `listener.<address>.ssl.*`, `cluster.<name>.ssl.*`.

use rustls::{CertificateError, CommonState, Error, ProtocolVersion, SignatureScheme};

use super::{
    Failure, HandshakeError,
    params::{CURVES, SIGALGS, SUITES, VERSIONS},
    verify::Distrust,
};
use crate::observe::stats::{Counter, Sample, StatSet};

/// What one worker counts of the handshakes of a listener or cluster.
#[derive(Debug, Default)]
pub struct TlsStats {
    /// Connections that failed otherwise than by what is counted below.
    pub connection_error: Counter,
    /// Handshakes completed.
    pub handshake: Counter,
    /// Of them, without full handshake.
    pub session_reused: Counter,
    /// Of them, without certificate of the peer.
    pub no_certificate: Counter,
    /// The peer's certificate was required and not given.
    pub fail_verify_no_cert: Counter,
    /// The peer's chain is not trusted.
    pub fail_verify_error: Counter,
    /// The peer's names are not expected.
    pub fail_verify_san: Counter,
    /// The peer's certificate is not one of those expected.
    pub fail_verify_cert_hash: Counter,
    /// Connections refused because a secret had not come.
    pub not_ready: Counter,
    /// `not_ready` is a counter of the socket factory.
    factory: &'static str,
    ciphers: [Counter; SUITES.len()],
    curves: [Counter; CURVES.len()],
    sigalgs: [Counter; SIGALGS.len()],
    versions: [Counter; VERSIONS.len()],
}

impl TlsStats {
    /// For a listener.
    pub fn of_server() -> Self {
        Self { factory: "server_ssl_socket_factory.downstream_context_secrets_not_ready", ..Self::default() }
    }

    /// For a cluster.
    pub fn of_client() -> Self {
        Self { factory: "client_ssl_socket_factory.upstream_context_secrets_not_ready", ..Self::default() }
    }

    /// `signed_with`: how the peer signed the handshake; `None` when it did not.
    pub(super) fn completed(&self, common: &CommonState, signed_with: Option<SignatureScheme>) {
        self.handshake.inc();
        if common.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
            self.session_reused.inc();
        }
        if common.peer_certificates().is_none() {
            self.no_certificate.inc();
        }
        let suite = common.negotiated_cipher_suite().map(|suite| suite.suite());
        count(&self.ciphers, SUITES.iter().position(|(known, _)| Some(*known) == suite));
        let group = common.negotiated_key_exchange_group().map(rustls::crypto::SupportedKxGroup::name);
        count(&self.curves, CURVES.iter().position(|(known, _)| Some(*known) == group));
        if signed_with.is_some() {
            count(&self.sigalgs, SIGALGS.iter().position(|(known, _)| Some(*known) == signed_with));
        }
        count(
            &self.versions,
            VERSIONS.iter().position(|(known, _)| Some(*known) == common.protocol_version()),
        );
    }

    /// A handshake of QUIC that is complete.
    pub fn completed_quic(&self, has_certificate: bool) {
        self.handshake.inc();
        self.no_certificate.add(u64::from(!has_certificate));
        count(&self.versions, VERSIONS.iter().position(|(known, _)| *known == ProtocolVersion::TLSv1_3));
    }

    /// One that failed.
    pub fn failed_quic(&self, failure: Failure) {
        match failure {
            Failure::Distrust => self.fail_verify_error.inc(),
            Failure::NoCertificate => self.fail_verify_no_cert.inc(),
            Failure::Other => self.connection_error.inc(),
        }
    }

    pub(super) fn failed(&self, error: &HandshakeError) {
        match error {
            HandshakeError::NotReady => self.not_ready.inc(),
            HandshakeError::Tls(Error::NoCertificatesPresented) => self.fail_verify_no_cert.inc(),
            HandshakeError::Tls(Error::InvalidCertificate(CertificateError::Other(other))) => {
                match other.0.downcast_ref::<Distrust>() {
                    Some(Distrust::San) => self.fail_verify_san.inc(),
                    Some(Distrust::Hash) => self.fail_verify_cert_hash.inc(),
                    Some(Distrust::Chain) | None => self.fail_verify_error.inc(),
                }
            }
            HandshakeError::Tls(Error::InvalidCertificate(_)) => self.fail_verify_error.inc(),
            HandshakeError::Tls(_) | HandshakeError::Io(_) => self.connection_error.inc(),
            HandshakeError::Closed | HandshakeError::Timeout => {}
        }
    }
}

fn count(counters: &[Counter], at: Option<usize>) {
    if let Some(counter) = at.and_then(|at| counters.get(at)) {
        counter.inc();
    }
}

impl StatSet for TlsStats {
    fn visit(&self, f: &mut dyn FnMut(&str, Sample<'_>)) {
        for (name, counter) in [
            ("connection_error", &self.connection_error),
            ("fail_verify_cert_hash", &self.fail_verify_cert_hash),
            ("fail_verify_error", &self.fail_verify_error),
            ("fail_verify_no_cert", &self.fail_verify_no_cert),
            ("fail_verify_san", &self.fail_verify_san),
            ("handshake", &self.handshake),
            ("no_certificate", &self.no_certificate),
            ("session_reused", &self.session_reused),
        ] {
            f(&format!("ssl.{name}"), Sample::Counter(counter.value()));
        }
        f(self.factory, Sample::Counter(self.not_ready.value()));
        let mut named = |family: &str, counters: &[Counter], names: &[&str]| {
            // Only what has been negotiated has a name, as in Envoy.
            for (counter, name) in counters.iter().zip(names).filter(|(counter, _)| counter.value() > 0) {
                f(&format!("ssl.{family}.{name}"), Sample::Counter(counter.value()));
            }
        };
        named("ciphers", &self.ciphers, &SUITES.map(|(_, name)| name));
        named("curves", &self.curves, &CURVES.map(|(_, name)| name));
        named("sigalgs", &self.sigalgs, &SIGALGS.map(|(_, name)| name));
        named("versions", &self.versions, &VERSIONS.map(|(_, name)| name));
    }
}
