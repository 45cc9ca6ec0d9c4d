//! Whether a peer is trusted (`CertificateValidationContext`).

use std::{cell::Cell, collections::HashMap, fmt, sync::Arc, time::Duration};

use culvert_model::SanMatcher;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptions,
    RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};

use super::{certificate::CertificateInfo, san};

/// Certificates that are trusted to sign others.
#[derive(Default)]
pub(super) struct Roots {
    anchors: Vec<TrustAnchor<'static>>,
    /// The same, to recognise a peer that presents one of them as its own.
    certificates: Vec<CertificateDer<'static>>,
}

impl Roots {
    /// # Errors
    /// One of them is not a certificate.
    pub(super) fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, webpki::Error> {
        let anchors: Result<Vec<_>, _> = certificates
            .iter()
            .map(|der| webpki::anchor_from_trusted_cert(der).map(|anchor| anchor.to_owned()))
            .collect();
        Ok(Self { anchors: anchors?, certificates })
    }
}

/// What a peer has to satisfy.
pub(super) struct Policy {
    /// `trusted_ca`, `system_root_certs`: `None` does not look at the chain.
    pub(super) roots: Option<Roots>,
    /// By trust domain; takes the place of `roots` when not empty.
    pub(super) spiffe: HashMap<String, Roots>,
    pub(super) crls: Vec<CertRevocationList<'static>>,
    pub(super) only_leaf_crl: bool,
    pub(super) sans: Vec<SanMatcher>,
    pub(super) certificate_hashes: Vec<[u8; 32]>,
    pub(super) spki_hashes: Vec<[u8; 32]>,
    pub(super) allow_expired: bool,
    pub(super) accept_untrusted: bool,
    pub(super) max_depth: Option<u32>,
}

impl Policy {
    /// Whether there is anything to verify.
    pub(super) fn is_effective(&self) -> bool {
        self.roots.is_some()
            || !self.spiffe.is_empty()
            || !self.certificate_hashes.is_empty()
            || !self.spki_hashes.is_empty()
    }
}

/// Why a peer is not trusted; the counters that Envoy has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Distrust {
    /// Its certificate does not lead to one that is trusted: `fail_verify_error`.
    Chain,
    /// `fail_verify_cert_hash`
    Hash,
    /// `fail_verify_san`
    San,
}

impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chain => "the certificate is not trusted",
            Self::Hash => "the certificate is not one of those expected",
            Self::San => "no subject alternative name of the certificate is expected",
        })
    }
}

impl std::error::Error for Distrust {}

/// Verifies peers by a [`Policy`].
struct Trust {
    policy: Policy,
    provider: Arc<CryptoProvider>,
}

/// Verifies clients.
pub(super) struct ClientVerifier {
    trust: Trust,
    /// A client has to show a certificate.
    mandatory: bool,
    /// A client is asked for one.
    offer: bool,
    hints: Vec<DistinguishedName>,
}

/// Verifies servers.
#[derive(Clone)]
pub(super) struct ServerVerifier {
    trust: Arc<Trust>,
    /// The certificate has to be for the name that was asked for, whatever names the policy expects
    /// (`auto_sni_san_validation`).
    asked_instead: bool,
    also: Option<AlsoFor>,
}

/// What a server's certificate has to be for besides what the policy expects (`auto_san_validation`).
#[derive(Clone)]
enum AlsoFor {
    /// The name that was asked for.
    Asked,
    This(ServerName<'static>),
}

/// The names that a certificate has to be for.
#[derive(Clone, Copy, Default)]
struct Expected<'a> {
    /// In place of those of the policy.
    instead: Option<&'a ServerName<'a>>,
    also: Option<&'a ServerName<'a>>,
}

impl ClientVerifier {
    /// `mandatory`: every client has to show a certificate.
    pub(super) fn new(policy: Policy, mandatory: bool, provider: Arc<CryptoProvider>) -> Self {
        let hint = |anchor: &TrustAnchor<'_>| DistinguishedName::in_sequence(&anchor.subject);
        let roots = policy.roots.iter().chain(policy.spiffe.values());
        let hints = roots.flat_map(|roots| roots.anchors.iter().map(hint)).collect();
        let offer = mandatory || policy.is_effective();
        Self { trust: Trust { policy, provider }, mandatory, offer, hints }
    }
}

impl ServerVerifier {
    /// `asked_instead`: the name that is asked for takes the place of those that the policy expects.
    pub(super) fn new(policy: Policy, asked_instead: bool, provider: Arc<CryptoProvider>) -> Self {
        Self { trust: Arc::new(Trust { policy, provider }), asked_instead, also: None }
    }

    /// The same for servers that also have to be the one that was asked for.
    pub(super) fn for_asked_name(&self) -> Self {
        Self { also: Some(AlsoFor::Asked), ..self.clone() }
    }

    /// The same for servers that also have to be this one.
    pub(super) fn for_name(&self, name: ServerName<'static>) -> Self {
        Self { also: Some(AlsoFor::This(name)), ..self.clone() }
    }
}

impl Trust {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        expected: Expected<'_>,
        usage: KeyUsage,
        now: UnixTime,
    ) -> Result<(), Error> {
        match self.judge(leaf, intermediates, expected, usage, now) {
            Err(_) if self.policy.accept_untrusted => Ok(()),
            outcome => outcome,
        }
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        expected: Expected<'_>,
        usage: KeyUsage,
        now: UnixTime,
    ) -> Result<(), Error> {
        let policy = &self.policy;
        let nameless = policy.sans.is_empty() && expected.instead.is_none() && expected.also.is_none();
        if !policy.is_effective() && nameless {
            return Ok(());
        }
        let info = CertificateInfo::parse(leaf).ok_or(CertificateError::BadEncoding)?;
        if !policy.spiffe.is_empty() {
            let roots = spiffe_roots(&policy.spiffe, leaf, &info)?;
            self.verify_chain(roots, leaf, intermediates, &info, usage, now)?;
        } else if let Some(roots) = &policy.roots {
            self.verify_chain(roots, leaf, intermediates, &info, usage, now)?;
        }
        let is_expected = match expected.instead {
            Some(name) => is_for(name, &info),
            None => policy.sans.is_empty() || san::matches_any(&policy.sans, &info),
        };
        if !is_expected || expected.also.is_some_and(|name| !is_for(name, &info)) {
            return Err(distrust(Distrust::San));
        }
        let hashed = policy.certificate_hashes.contains(&info.sha256)
            || policy.spki_hashes.contains(&info.spki_sha256)
            || (policy.certificate_hashes.is_empty() && policy.spki_hashes.is_empty());
        if hashed { Ok(()) } else { Err(distrust(Distrust::Hash)) }
    }

    fn verify_chain(
        &self,
        roots: &Roots,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        info: &CertificateInfo,
        usage: KeyUsage,
        now: UnixTime,
    ) -> Result<(), Error> {
        let first = self.verify_chain_at(roots, leaf, intermediates, info, usage, now);
        let too_old_or_young =
            matches!(first, Err(webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. }));
        let outcome = if self.policy.allow_expired && too_old_or_young {
            // The chain is looked at as it was while the leaf was valid.
            let middle = info.not_before.saturating_add(info.not_after.saturating_sub(info.not_before) / 2);
            [info.not_before, middle, info.not_after]
                .into_iter()
                .map(|time| UnixTime::since_unix_epoch(Duration::from_secs(time.max(0) as u64)))
                .map(|time| self.verify_chain_at(roots, leaf, intermediates, info, usage, time))
                .find(Result::is_ok)
                .unwrap_or(first)
        } else {
            first
        };
        outcome.map_err(|error| Error::InvalidCertificate(rustls_error(error)))
    }

    fn verify_chain_at(
        &self,
        roots: &Roots,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        info: &CertificateInfo,
        usage: KeyUsage,
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        if roots.certificates.iter().any(|trusted| trusted == leaf) {
            // It is trusted as it is; only its time can be over.
            let now = now.as_secs() as i64;
            let time = UnixTime::since_unix_epoch(Duration::from_secs(now.max(0) as u64));
            let at = |seconds: i64| UnixTime::since_unix_epoch(Duration::from_secs(seconds.max(0) as u64));
            return match now {
                now if now < info.not_before => {
                    Err(webpki::Error::CertNotValidYet { time, not_before: at(info.not_before) })
                }
                now if now > info.not_after => {
                    Err(webpki::Error::CertExpired { time, not_after: at(info.not_after) })
                }
                _ => Ok(()),
            };
        }
        let crls: Vec<&CertRevocationList<'_>> = self.policy.crls.iter().collect();
        let revocation = revocation(&crls, self.policy.only_leaf_crl);
        let max_depth = self.policy.max_depth;
        let short_enough = |path: &VerifiedPath<'_>| match max_depth {
            Some(max) if path.intermediate_certificates().count() as u64 > u64::from(max) => {
                Err(webpki::Error::UnknownIssuer)
            }
            _ => Ok(()),
        };
        EndEntityCert::try_from(leaf)?.verify_for_usage(
            self.provider.signature_verification_algorithms.all,
            &roots.anchors,
            intermediates,
            now,
            usage,
            revocation,
            Some(&short_enough),
        )?;
        Ok(())
    }
}

fn revocation<'a>(crls: &'a [&'a CertRevocationList<'a>], only_leaf: bool) -> Option<RevocationOptions<'a>> {
    let builder = RevocationOptionsBuilder::new(crls).ok()?;
    let depth = if only_leaf { RevocationCheckDepth::EndEntity } else { RevocationCheckDepth::Chain };
    let builder = builder.with_depth(depth).with_status_policy(UnknownStatusPolicy::Deny);
    Some(builder.with_expiration_policy(ExpirationPolicy::Enforce).build())
}

/// The bundle of the trust domain that the one URI of a SVID names (SPIFFE X.509-SVID, sections 2 and 5).
fn spiffe_roots<'a>(
    bundles: &'a HashMap<String, Roots>,
    leaf: &CertificateDer<'_>,
    info: &CertificateInfo,
) -> Result<&'a Roots, Error> {
    let [uri] = info.uri_sans.as_slice() else { return Err(distrust(Distrust::Chain)) };
    let domain = trust_domain(uri).ok_or_else(|| distrust(Distrust::Chain))?;
    if CertificateInfo::may_sign(leaf) {
        return Err(distrust(Distrust::Chain));
    }
    bundles.get(domain).ok_or_else(|| distrust(Distrust::Chain))
}

/// `spiffe://DOMAIN/...`
pub(super) fn trust_domain(uri: &str) -> Option<&str> {
    let rest = uri.strip_prefix("spiffe://")?;
    let domain = rest.split_once('/').map_or(rest, |(domain, _)| domain);
    (!domain.is_empty()).then_some(domain)
}

fn is_for(name: &ServerName<'_>, info: &CertificateInfo) -> bool {
    match name {
        ServerName::DnsName(name) => {
            info.dns_sans.iter().any(|pattern| san::dns_name_matches(name.as_ref(), pattern))
        }
        ServerName::IpAddress(ip) => info.ip_sans.contains(&(*ip).into()),
        _ => false,
    }
}

fn distrust(why: Distrust) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
}

/// Chooses the alert that the peer is told.
fn rustls_error(error: webpki::Error) -> CertificateError {
    match error {
        webpki::Error::CertExpired { .. } => CertificateError::Expired,
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        webpki::Error::CertRevoked => CertificateError::Revoked,
        webpki::Error::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        webpki::Error::BadDer | webpki::Error::BadDerTime => CertificateError::BadEncoding,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier").field("mandatory", &self.mandatory).finish_non_exhaustive()
    }
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerVerifier").finish_non_exhaustive()
    }
}

thread_local! {
    static SIGNED_WITH: Cell<Option<SignatureScheme>> = const { Cell::new(None) };
}

/// How the peer has signed the handshake that this thread is working on, if it did since this was last asked.
pub(super) fn take_signed_with() -> Option<SignatureScheme> {
    SIGNED_WITH.take()
}

/// What the traits for both sides ask for alike: who signs a handshake has the key of the certificate.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            SIGNED_WITH.set(Some(signature.scheme));
            let algorithms = &self.trust.provider.signature_verification_algorithms;
            verify_tls12_signature(message, certificate, signature, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            SIGNED_WITH.set(Some(signature.scheme));
            let algorithms = &self.trust.provider.signature_verification_algorithms;
            verify_tls13_signature(message, certificate, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.trust.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        self.offer
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.trust.verify(leaf, intermediates, Expected::default(), KeyUsage::client_auth(), now)?;
        Ok(ClientCertVerified::assertion())
    }

    signatures!();
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !CertificateInfo::may_authenticate(leaf) {
            return Err(distrust(Distrust::Chain));
        }
        let also = self.also.as_ref().map(|also| match also {
            AlsoFor::Asked => name,
            AlsoFor::This(name) => name,
        });
        let expected = Expected { instead: self.asked_instead.then_some(name), also };
        self.trust.verify(leaf, intermediates, expected, KeyUsage::server_auth(), now)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}
