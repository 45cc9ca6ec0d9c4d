//! TLS contexts and secrets (`extensions.transport_sockets.tls.v3`).

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{SecretRef, StringMatcher};

/// `DownstreamTlsContext`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct DownstreamTls {
    /// `common_tls_context`
    pub common: CommonTls,
    /// `require_client_certificate`: false.
    pub require_client_certificate: bool,
    /// `session_ticket_keys` and what turns resumption off.
    pub tickets: SessionTickets,
    /// `disable_stateful_session_resumption`: false.
    pub disable_stateful_resumption: bool,
    /// `session_timeout`: 7200 s.
    pub session_timeout: Duration,
}

/// How sessions are resumed without state on the server.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum SessionTickets {
    /// `disable_stateless_session_resumption`
    Disabled,
    /// `session_ticket_keys`: 80 bytes each, the first one encrypts.
    Keys(Vec<Arc<[u8]>>),
    /// With keys of the process's own.
    Own,
    /// `session_ticket_keys_sds_secret_config`
    Sds(SecretRef),
}

/// `UpstreamTlsContext`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct UpstreamTls {
    /// `common_tls_context`
    pub common: CommonTls,
    /// `sni`; empty sends none.
    pub sni: String,
    /// `auto_host_sni`: the endpoint's hostname is the SNI.
    pub auto_host_sni: bool,
    /// `auto_sni_san_validation`: the certificate has to be for the SNI.
    pub auto_sni_san_validation: bool,
    /// `max_session_keys`: 1; 0 turns resumption off.
    pub max_session_keys: u32,
}

/// `CommonTlsContext`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct CommonTls {
    /// `tls_params.tls_minimum_protocol_version`: 1.2.
    pub version_min: TlsVersion,
    /// `tls_params.tls_maximum_protocol_version`: 1.3 downstream, 1.2 upstream in Envoy's default.
    pub version_max: TlsVersion,
    /// `tls_params.cipher_suites` that are supported, in order, by OpenSSL's names; empty for the default ones.
    pub cipher_suites: Vec<String>,
    /// `tls_params.ecdh_curves`, in order; empty for the default ones.
    pub curves: Vec<String>,
    /// `tls_certificates` or `tls_certificate_sds_secret_configs`.
    pub certificates: Vec<CertificateSource>,
    /// `validation_context_type`
    pub validation: ValidationSource,
    /// `alpn_protocols`
    pub alpn: Vec<String>,
}

/// `TlsParameters.TlsProtocol`. Older ones are refused.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum TlsVersion {
    /// `TLSv1_2`
    V1_2,
    /// `TLSv1_3`
    V1_3,
}

/// Where a certificate comes from.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum CertificateSource {
    /// Part of the context.
    Inline(Arc<TlsCertificate>),
    /// A secret.
    Sds(SecretRef),
}

/// Where it comes from what a peer's certificate is checked against.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum ValidationSource {
    /// `combined_validation_context`: the secret merged over the default.
    Combined {
        /// `default_validation_context`
        default: Arc<ValidationContext>,
        /// `validation_context_sds_secret_config`
        secret: SecretRef,
    },
    /// `validation_context`
    Inline(Arc<ValidationContext>),
    /// Not checked.
    None,
    /// `validation_context_sds_secret_config`
    Sds(SecretRef),
}

/// `core.v3.DataSource` that is read again when it changes.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum SecretData {
    /// `filename`
    File(PathBuf),
    /// `inline_bytes`, `inline_string`, or the value of `environment_variable`.
    Inline(Arc<[u8]>),
}

/// `TlsCertificate`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct TlsCertificate {
    /// `certificate_chain`, PEM.
    pub chain: SecretData,
    /// `private_key`, PEM.
    pub key: SecretData,
    /// `ocsp_staple`, DER.
    pub ocsp_staple: Option<SecretData>,
    /// `watched_directory`: files are read again when something is moved into it.
    pub watched_directory: Option<PathBuf>,
}

/// `CertificateValidationContext`.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct ValidationContext {
    /// `trusted_ca`, PEM.
    pub trusted_ca: Option<SecretData>,
    /// `system_root_certs`
    pub system_roots: bool,
    /// `crl`, PEM.
    pub crl: Option<SecretData>,
    /// `only_verify_leaf_cert_crl`
    pub only_leaf_crl: bool,
    /// `match_typed_subject_alt_names`; the deprecated `match_subject_alt_names` stands here for every type.
    pub sans: Vec<SanMatcher>,
    /// `verify_certificate_hash`: SHA-256 of the leaf's DER.
    pub certificate_hashes: Vec<[u8; 32]>,
    /// `verify_certificate_spki`: SHA-256 of the leaf's public key.
    pub spki_hashes: Vec<[u8; 32]>,
    /// `allow_expired_certificate`
    pub allow_expired: bool,
    /// `trust_chain_verification: ACCEPT_UNTRUSTED`
    pub accept_untrusted: bool,
    /// `max_verify_depth`
    pub max_depth: Option<u32>,
    /// `custom_validator_config` with `SPIFFECertValidatorConfig`: bundles by trust domain.
    pub spiffe: Vec<SpiffeBundle>,
    /// `watched_directory`
    pub watched_directory: Option<PathBuf>,
}

/// `SPIFFECertValidatorConfig.TrustDomain`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct SpiffeBundle {
    /// `name`
    pub trust_domain: String,
    /// `trust_bundle`, PEM.
    pub bundle: SecretData,
}

/// `SubjectAltNameMatcher`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct SanMatcher {
    /// `san_type`; `None` for any.
    pub kind: Option<SanKind>,
    /// `matcher`
    pub matcher: StringMatcher,
}

/// `SubjectAltNameMatcher.SanType`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum SanKind {
    /// `DNS`
    Dns,
    /// `EMAIL`
    Email,
    /// `IP_ADDRESS`
    Ip,
    /// `URI`
    Uri,
}

/// `Secret`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Secret {
    /// `tls_certificate`
    Certificate(Arc<TlsCertificate>),
    /// `generic_secret`
    Generic(Arc<[u8]>),
    /// `session_ticket_keys`: 80 bytes each.
    TicketKeys(Vec<Arc<[u8]>>),
    /// `validation_context`
    Validation(Arc<ValidationContext>),
}
