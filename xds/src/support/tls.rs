//! `extensions.transport_sockets.tls.v3`.

use super::Table;

const NO_PROVIDERS: &str = "certificate providers are not supported";

pub(super) const TABLES: &[Table] = &[
    Table {
        used: &[
            "common_tls_context",
            "require_client_certificate",
            "session_ticket_keys",
            "session_ticket_keys_sds_secret_config",
            "disable_stateless_session_resumption",
            "disable_stateful_session_resumption",
            "session_timeout",
        ],
        no_effect: &[(
            "full_scan_certs_on_sni_mismatch",
            "without a certificate for the name the best of all is looked for in any case",
        )],
        only_off: &["require_sni", "ocsp_staple_policy", "prefer_client_ciphers"],
        ..Table::of("envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext")
    },
    Table {
        used: &["common_tls_context", "sni", "auto_host_sni", "auto_sni_san_validation", "max_session_keys"],
        no_effect: &[("enforce_rsa_key_usage", "the key usage of servers' certificates is always enforced")],
        only_off: &["allow_renegotiation"],
        ..Table::of("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext")
    },
    Table {
        used: &[
            "tls_params",
            "tls_certificates",
            "tls_certificate_sds_secret_configs",
            "validation_context",
            "validation_context_sds_secret_config",
            "combined_validation_context",
            "alpn_protocols",
        ],
        refused: &[
            ("tls_certificate_provider_instance", NO_PROVIDERS),
            ("tls_certificate_certificate_provider", NO_PROVIDERS),
            ("tls_certificate_certificate_provider_instance", NO_PROVIDERS),
            ("validation_context_certificate_provider", NO_PROVIDERS),
            ("validation_context_certificate_provider_instance", NO_PROVIDERS),
            ("custom_tls_certificate_selector", "certificates are selected by server name"),
            ("custom_handshaker", "custom handshakers are not supported"),
            ("key_log", "keys are not logged"),
        ],
        ..Table::of("envoy.extensions.transport_sockets.tls.v3.CommonTlsContext")
    },
    Table {
        used: &["default_validation_context", "validation_context_sds_secret_config"],
        refused: &[
            ("validation_context_certificate_provider", NO_PROVIDERS),
            ("validation_context_certificate_provider_instance", NO_PROVIDERS),
        ],
        ..Table::of(
            "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CombinedCertificateValidationContext",
        )
    },
    Table {
        used: &[
            "tls_minimum_protocol_version",
            "tls_maximum_protocol_version",
            "cipher_suites",
            "ecdh_curves",
        ],
        refused: &[
            ("signature_algorithms", "signature algorithms cannot be chosen"),
            ("compliance_policies", "compliance policies are not supported"),
        ],
        ..Table::of("envoy.extensions.transport_sockets.tls.v3.TlsParameters")
    },
    Table {
        used: &["certificate_chain", "private_key", "ocsp_staple", "watched_directory"],
        refused: &[
            ("pkcs12", "PKCS #12 is not supported; certificate_chain and private_key are"),
            ("private_key_provider", "private key providers are not supported"),
            ("password", "encrypted private keys are not supported"),
            ("signed_certificate_timestamp", "certificate timestamps are not supported"),
            ("tls_params", "parameters cannot be chosen for a certificate"),
        ],
        ..Table::of("envoy.extensions.transport_sockets.tls.v3.TlsCertificate")
    },
    Table {
        used: &[
            "trusted_ca",
            "system_root_certs",
            "watched_directory",
            "verify_certificate_spki",
            "verify_certificate_hash",
            "match_typed_subject_alt_names",
            "match_subject_alt_names",
            "crl",
            "only_verify_leaf_cert_crl",
            "allow_expired_certificate",
            "trust_chain_verification",
            "custom_validator_config",
            "max_verify_depth",
        ],
        only_off: &["require_signed_certificate_timestamp", "suppress_client_ca_list"],
        refused: &[("ca_certificate_provider_instance", NO_PROVIDERS)],
        ..Table::of("envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext")
    },
    Table::of("envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext.SystemRootCerts"),
    Table {
        used: &["san_type", "matcher"],
        refused: &[("oid", "names of type OTHER_NAME are not supported")],
        ..Table::of("envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher")
    },
    Table {
        used: &["trust_domains"],
        refused: &[("trust_bundles", "SPIFFE bundle documents are not supported; PEM bundles are")],
        ..Table::of("envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig")
    },
    Table {
        used: &["name", "trust_bundle"],
        refused: &[("workload_trust_domain", "the trust domain of a certificate is that of its name")],
        ..Table::of("envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig.TrustDomain")
    },
    Table {
        used: &["name", "sds_config"],
        ..Table::of("envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig")
    },
    Table { used: &["keys"], ..Table::of("envoy.extensions.transport_sockets.tls.v3.TlsSessionTicketKeys") },
    Table {
        used: &["name", "tls_certificate", "session_ticket_keys", "validation_context", "generic_secret"],
        ..Table::of("envoy.extensions.transport_sockets.tls.v3.Secret")
    },
    Table {
        used: &["secret"],
        refused: &[("secrets", "a generic secret has one value")],
        ..Table::of("envoy.extensions.transport_sockets.tls.v3.GenericSecret")
    },
];
