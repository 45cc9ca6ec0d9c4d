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
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RequiredEkuNotFoundContext,
    RevocationCheckDepth, RevocationOptions, RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};

use super::{certificate::CertificateInfo, san};

/// Certificates that are trusted: those of CAs to sign others, and each as that of a peer.
#[derive(Default)]
pub(super) struct Roots {
    anchors: Vec<TrustAnchor<'static>>,
    /// When each of the anchors is valid.
    validity: Vec<Validity>,
    /// All of them, to recognise a peer that presents one as its own.
    certificates: Vec<CertificateDer<'static>>,
}

impl Roots {
    /// # Errors
    /// One of them is not a certificate.
    pub(super) fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, webpki::Error> {
        let (mut anchors, mut validity) = (Vec::new(), Vec::new());
        for der in &certificates {
            let anchor = webpki::anchor_from_trusted_cert(der)?.to_owned();
            // To webpki every anchor is a CA, whatever its certificate says.
            if let Some(info) = CertificateInfo::parse(der).filter(|_| CertificateInfo::may_issue(der)) {
                anchors.push(anchor);
                validity.push(Validity::of(&info));
            }
        }
        Ok(Self { anchors, validity, certificates })
    }

    /// Checks the time of an anchor, which webpki does not. A CA that was renewed with its key is there more than once:
    /// one that is valid is enough.
    fn check_time(&self, anchor: &TrustAnchor<'_>, now: UnixTime) -> Result<(), webpki::Error> {
        let same = self.anchors.iter().zip(&self.validity).filter(|(it, _)| *it == anchor);
        let mut refused = webpki::Error::UnknownIssuer;
        for (_, validity) in same {
            match validity.check(now) {
                Ok(()) => return Ok(()),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }
}

/// From when until when a certificate is valid, in seconds since 1970.
#[derive(Clone, Copy)]
struct Validity {
    not_before: i64,
    not_after: i64,
}

impl Validity {
    fn of(info: &CertificateInfo) -> Self {
        Self { not_before: info.not_before, not_after: info.not_after }
    }

    fn check(self, time: UnixTime) -> Result<(), webpki::Error> {
        let Self { not_before, not_after } = self;
        let at = |seconds: i64| UnixTime::since_unix_epoch(Duration::from_secs(seconds.max(0) as u64));
        match time.as_secs() as i64 {
            now if now < not_before => {
                Err(webpki::Error::CertNotValidYet { time, not_before: at(not_before) })
            }
            now if now > not_after => Err(webpki::Error::CertExpired { time, not_after: at(not_after) }),
            _ => Ok(()),
        }
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
        // Whether it is revoked only its issuer can say: with lists, its chain is looked at like any other.
        if self.policy.crls.is_empty() && roots.certificates.iter().any(|trusted| trusted == leaf) {
            // It is trusted as it is, in its time and for what it is meant.
            Validity::of(info).check(now)?;
            if !CertificateInfo::is_meant_for(leaf, usage) {
                let context = RequiredEkuNotFoundContext { required: usage, present: Vec::new() };
                return Err(webpki::Error::RequiredEkuNotFoundContext(context));
            }
            return Ok(());
        }
        let crls: Vec<&CertRevocationList<'_>> = self.policy.crls.iter().collect();
        let revocation = revocation(&crls, self.policy.only_leaf_crl);
        let max_depth = self.policy.max_depth;
        let acceptable = |path: &VerifiedPath<'_>| match max_depth {
            Some(max) if path.intermediate_certificates().count() as u64 > u64::from(max) => {
                Err(webpki::Error::UnknownIssuer)
            }
            _ if self.policy.allow_expired => Ok(()),
            _ => roots.check_time(path.anchor(), now),
        };
        EndEntityCert::try_from(leaf)?.verify_for_usage(
            self.provider.signature_verification_algorithms.all,
            &roots.anchors,
            intermediates,
            now,
            usage,
            revocation,
            Some(&acceptable),
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

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
        ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
        SerialNumber, date_time_ymd,
    };
    use rustls::{crypto::aws_lc_rs::default_provider, pki_types::pem::PemObject as _};
    use webpki::OwnedCertRevocationList;

    use super::*;

    type Issuer = CertifiedIssuer<'static, KeyPair>;

    /// A root of version 1: `/CN=v1`.
    const V1: &str = "\
        -----BEGIN CERTIFICATE-----\n\
        MIIBFjCBvQIUWPAurfZNEErIJiC4SMxFeIeKeJYwCgYIKoZIzj0EAwIwDTELMAkG\n\
        A1UEAwwCdjEwIBcNMjYxMTIxMTgwMjEwWhgPMjEyNjEwMjgxODAyMTBaMA0xCzAJ\n\
        BgNVBAMMAnYxMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAELZAaJ1xn8DEiAeRS\n\
        RFxXUjFIb6vdnKJdcoQ3NSbOnw1xkQ4EtOoV+F5xu3ZOIORUBC+6humANnD0W/QD\n\
        m3E18TAKBggqhkjOPQQDAgNIADBFAiARMAl97SbWkbsxHXUzmydPDqZG1C19FmNe\n\
        83odGmWb4QIhAJJzhTpiFFZVha/1g8Io21DItPeVwNhl8WJgpCcfpzNF\n\
        -----END CERTIFICATE-----";

    fn ca(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    fn leaf(name: &str, serial: u64) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from(serial));
        params
    }

    fn with(mut params: CertificateParams, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
        change(&mut params);
        params
    }

    fn self_signed(params: CertificateParams) -> Issuer {
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn issued(params: CertificateParams, issuer: &Issuer) -> Issuer {
        CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), issuer).unwrap()
    }

    fn trusting(bundle: &[&Issuer]) -> Policy {
        Policy {
            roots: Some(Roots::new(bundle.iter().map(|it| it.der().clone()).collect()).unwrap()),
            spiffe: HashMap::new(),
            crls: Vec::new(),
            only_leaf_crl: false,
            sans: Vec::new(),
            certificate_hashes: Vec::new(),
            spki_hashes: Vec::new(),
            allow_expired: false,
            accept_untrusted: false,
            max_depth: None,
        }
    }

    fn clients(policy: Policy) -> ClientVerifier {
        ClientVerifier::new(policy, true, Arc::new(default_provider()))
    }

    fn is_trusted(verifier: &ClientVerifier, peer: &Issuer) -> bool {
        verifier.verify_client_cert(peer.der(), &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn only_authorities_sign_others() {
        let root = self_signed(ca("root"));
        let pinned = [
            issued(leaf("pinned", 1), &root),
            self_signed(with(leaf("self-signed", 2), |it| it.is_ca = IsCa::ExplicitNoCa)),
            self_signed(with(ca("crls"), |it| it.key_usages = vec![KeyUsagePurpose::CrlSign])),
        ];
        let verifier = clients(trusting(&[&root, &pinned[0], &pinned[1], &pinned[2]]));
        for peer in &pinned {
            assert!(is_trusted(&verifier, peer));
            assert!(!is_trusted(&verifier, &issued(leaf("forged", 3), peer)));
        }
        assert!(is_trusted(&verifier, &issued(leaf("good", 4), &root)));
        assert_eq!(verifier.hints.len(), 1, "clients are told of authorities only");
        let v1 = CertificateDer::from_pem_slice(V1.as_bytes()).unwrap();
        assert_eq!(Roots::new(vec![v1]).unwrap().anchors.len(), 1);
    }

    #[test]
    fn a_root_is_trusted_in_its_time_only() {
        let key = KeyPair::generate().unwrap().serialize_pem();
        let valid = |from, to| {
            let params = with(ca("root"), |it| {
                (it.not_before, it.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
            });
            CertifiedIssuer::self_signed(params, KeyPair::from_pem(&key).unwrap()).unwrap()
        };
        let (expired, early, renewed) = (valid(2020, 2021), valid(2090, 2091), valid(2020, 2090));
        let peer = issued(leaf("peer", 1), &expired);
        for root in [&expired, &early] {
            assert!(!is_trusted(&clients(trusting(&[root])), &peer));
            assert!(is_trusted(&clients(Policy { allow_expired: true, ..trusting(&[root]) }), &peer));
            assert!(is_trusted(&clients(trusting(&[root, &renewed])), &peer), "the other has the same key");
            assert!(is_trusted(&clients(trusting(&[&renewed, root])), &peer), "the other has the same key");
        }
    }

    #[test]
    fn a_pinned_certificate_can_be_revoked() {
        let root = self_signed(ca("root"));
        let (good, revoked) = (issued(leaf("good", 1), &root), issued(leaf("revoked", 2), &root));
        let stranger = self_signed(leaf("stranger", 2));
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(2),
                revocation_time: date_time_ymd(2024, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&root).unwrap();
        let bundle = [&root, &good, &revoked, &stranger];
        let verifier = clients(trusting(&bundle));
        assert!(bundle[1..].iter().all(|peer| is_trusted(&verifier, peer)));
        let crls = vec![OwnedCertRevocationList::from_der(list.der()).unwrap().into()];
        let verifier = clients(Policy { crls, ..trusting(&bundle) });
        assert!(is_trusted(&verifier, &good));
        assert!(!is_trusted(&verifier, &revoked));
        assert!(!is_trusted(&verifier, &stranger), "no list speaks of it");
    }

    #[test]
    fn a_pinned_certificate_is_good_for_what_it_is_meant() {
        let pinned = |purposes: &[ExtendedKeyUsagePurpose]| {
            self_signed(with(leaf("pinned", 1), |it| it.extended_key_usages = purposes.to_vec()))
        };
        let is_server = |peer: &Issuer| {
            let verifier = ServerVerifier::new(trusting(&[peer]), false, Arc::new(default_provider()));
            let name = ServerName::try_from("a.test").unwrap();
            verifier.verify_server_cert(peer.der(), &[], &name, &[], UnixTime::now()).is_ok()
        };
        let is_both = |peer: &Issuer| (is_trusted(&clients(trusting(&[peer])), peer), is_server(peer));
        let (client, server) = (ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth);
        assert_eq!(is_both(&pinned(&[])), (true, true));
        assert_eq!(is_both(&pinned(std::slice::from_ref(&client))), (true, false));
        assert_eq!(is_both(&pinned(std::slice::from_ref(&server))), (false, true));
        assert_eq!(is_both(&pinned(&[client, server])), (true, true));
        assert_eq!(is_both(&pinned(&[ExtendedKeyUsagePurpose::CodeSigning])), (false, false));
    }
}
