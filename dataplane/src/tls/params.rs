//! Versions, cipher suites and curves, by the names that OpenSSL gave them.

use culvert_model::{CommonTls, TlsVersion};
use rustls::{
    CipherSuite, NamedGroup, ProtocolVersion, SignatureScheme, SupportedCipherSuite,
    SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs},
    version,
};

/// Cipher suites in the order that servers prefer them in, and OpenSSL's names for them.
pub(super) const SUITES: [(CipherSuite, &str); 9] = [
    (CipherSuite::TLS13_AES_128_GCM_SHA256, "TLS_AES_128_GCM_SHA256"),
    (CipherSuite::TLS13_AES_256_GCM_SHA384, "TLS_AES_256_GCM_SHA384"),
    (CipherSuite::TLS13_CHACHA20_POLY1305_SHA256, "TLS_CHACHA20_POLY1305_SHA256"),
    (CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, "ECDHE-ECDSA-AES128-GCM-SHA256"),
    (CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, "ECDHE-ECDSA-CHACHA20-POLY1305"),
    (CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, "ECDHE-RSA-AES128-GCM-SHA256"),
    (CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, "ECDHE-RSA-CHACHA20-POLY1305"),
    (CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, "ECDHE-ECDSA-AES256-GCM-SHA384"),
    (CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, "ECDHE-RSA-AES256-GCM-SHA384"),
];

/// Curves, by the names that Envoy takes and counts.
pub(super) const CURVES: [(NamedGroup, &str); 4] = [
    (NamedGroup::X25519, "X25519"),
    (NamedGroup::secp256r1, "P-256"),
    (NamedGroup::secp384r1, "P-384"),
    (NamedGroup::X25519MLKEM768, "X25519MLKEM768"),
];

/// Signature algorithms, as BoringSSL calls them.
pub(super) const SIGALGS: [(SignatureScheme, &str); 10] = [
    (SignatureScheme::RSA_PKCS1_SHA256, "rsa_pkcs1_sha256"),
    (SignatureScheme::RSA_PKCS1_SHA384, "rsa_pkcs1_sha384"),
    (SignatureScheme::RSA_PKCS1_SHA512, "rsa_pkcs1_sha512"),
    (SignatureScheme::RSA_PSS_SHA256, "rsa_pss_rsae_sha256"),
    (SignatureScheme::RSA_PSS_SHA384, "rsa_pss_rsae_sha384"),
    (SignatureScheme::RSA_PSS_SHA512, "rsa_pss_rsae_sha512"),
    (SignatureScheme::ECDSA_NISTP256_SHA256, "ecdsa_secp256r1_sha256"),
    (SignatureScheme::ECDSA_NISTP384_SHA384, "ecdsa_secp384r1_sha384"),
    (SignatureScheme::ECDSA_NISTP521_SHA512, "ecdsa_secp521r1_sha512"),
    (SignatureScheme::ED25519, "ed25519"),
];

/// Versions as Envoy names them.
pub(super) const VERSIONS: [(ProtocolVersion, &str); 2] =
    [(ProtocolVersion::TLSv1_2, "TLSv1.2"), (ProtocolVersion::TLSv1_3, "TLSv1.3")];

/// Algorithms as `tls_params` chooses them. The suites of TLS 1.3 cannot be chosen, as in Envoy.
pub(super) fn provider(common: &CommonTls) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    let rank = |suite: &SupportedCipherSuite| {
        let name = SUITES.iter().position(|(known, _)| *known == suite.suite())?;
        if suite.tls13().is_some() || common.cipher_suites.is_empty() {
            return Some(name);
        }
        let chosen = common.cipher_suites.iter().position(|wanted| wanted == SUITES[name].1)?;
        Some(SUITES.len() + chosen)
    };
    provider.cipher_suites.retain(|suite| rank(suite).is_some());
    provider.cipher_suites.sort_by_key(rank);
    if !common.curves.is_empty() {
        let name =
            |group: NamedGroup| CURVES.iter().find(|(known, _)| *known == group).map(|(_, name)| *name);
        let rank = |group| common.curves.iter().position(|wanted| Some(wanted.as_str()) == name(group));
        provider.kx_groups = aws_lc_rs::ALL_KX_GROUPS.to_vec();
        provider.kx_groups.retain(|group| rank(group.name()).is_some());
        provider.kx_groups.sort_by_key(|group| rank(group.name()));
    }
    provider
}

/// The versions from the least to the greatest that is allowed.
pub(super) fn versions(common: &CommonTls) -> Vec<&'static SupportedProtocolVersion> {
    [(TlsVersion::V1_2, &version::TLS12), (TlsVersion::V1_3, &version::TLS13)]
        .into_iter()
        .filter(|(version, _)| (common.version_min..=common.version_max).contains(version))
        .map(|(_, version)| version)
        .collect()
}
