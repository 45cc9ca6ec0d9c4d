//! TLS contexts and secrets.

use std::sync::LazyLock;

use culvert_model::{
    CertificateSource, DownstreamTls, ResourceKey, SanKind, Secret, SecretData, SessionTickets, TlsVersion,
    UpstreamTls, ValidationSource,
};
use culvert_xds::Loaded;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa, KeyIdMethod,
    KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
};

use crate::{bad, good, http, listener, seconds};

const HASH: &str = "df6ff72fe9116521268f6f2dd4966f51df479883fe7037b39f75916ac3049d1a";

/// A bootstrap whose listener has this context, or rather whose filter chain.
fn with_chain(more: &str, common: &str) -> String {
    let socket = format!(
        "transport_socket: {{name: tls, typed_config: {{'@type': EXT/transport_sockets.tls.v3.DownstreamTlsContext, \
         {more} common_tls_context: {{{common}}}}}}}\n      transport_socket_connect_timeout: 3s\n      filters:"
    );
    http(&[]).replace("- filters:\n      - name: http", &format!("- {socket}\n      - name: http"))
}

fn with_cluster(more: &str, common: &str) -> String {
    let socket = format!(
        "transport_socket: {{name: tls, typed_config: {{'@type': EXT/transport_sockets.tls.v3.UpstreamTlsContext, \
         {more} common_tls_context: {{{common}}}}}}}"
    );
    http(&[("CLUSTER", &socket)])
}

/// PEM as YAML strings.
struct Pem {
    certificate: String,
    key: String,
    ca: String,
    crl: String,
}

static PEM: LazyLock<Pem> = LazyLock::new(|| {
    let quoted = |pem: String| format!("\"{}\"", pem.replace('\n', "\\n"));
    let leaf_key = KeyPair::generate().expect("a key");
    let leaf = CertificateParams::new(vec!["a.test".to_owned()]).expect("a name");
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().expect("a key")).expect("a CA");
    let crl = CertificateRevocationListParams {
        this_update: date_time_ymd(2024, 1, 1),
        next_update: date_time_ymd(2090, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Pem {
        certificate: quoted(leaf.self_signed(&leaf_key).expect("signed").pem()),
        key: quoted(leaf_key.serialize_pem()),
        ca: quoted(ca.pem()),
        crl: quoted(crl.signed_by(&ca).expect("a list").pem().expect("PEM")),
    }
});

/// `tls_certificates` with one certificate.
static OWN: LazyLock<String> = LazyLock::new(|| own(&PEM.certificate, &PEM.key));

fn own(chain: &str, key: &str) -> String {
    format!(
        "tls_certificates: [{{certificate_chain: {{inline_string: {chain}}}, private_key: {{inline_string: {key}}}}}]"
    )
}

fn downstream(more: &str, common: &str) -> DownstreamTls {
    let loaded = good(&with_chain(more, common));
    let chain = listener(&loaded).filter_chains[0].clone();
    assert_eq!(chain.handshake_timeout, seconds(3));
    DownstreamTls::clone(chain.tls.as_ref().expect("TLS"))
}

fn upstream(more: &str, common: &str) -> UpstreamTls {
    let loaded = good(&with_cluster(more, common));
    UpstreamTls::clone(loaded.bootstrap.config.clusters[0].tls.as_ref().expect("TLS"))
}

fn texts(loaded: &Loaded) -> Vec<String> {
    loaded.notes.iter().map(|note| note.text.clone()).collect()
}

#[test]
fn defaults_are_those_of_envoy() {
    let server = downstream("", &OWN);
    assert_eq!((server.common.version_min, server.common.version_max), (TlsVersion::V1_2, TlsVersion::V1_3));
    assert_eq!((server.tickets, server.session_timeout), (SessionTickets::Own, seconds(7_200).unwrap()));
    assert!(!server.require_client_certificate && !server.disable_stateful_resumption);
    let client = upstream("", "");
    assert_eq!((client.common.version_min, client.common.version_max), (TlsVersion::V1_2, TlsVersion::V1_2));
    assert_eq!((client.max_session_keys, client.common.validation), (1, ValidationSource::None));
}

#[test]
fn every_field_arrives() {
    let (own, ca, crl) = (&*OWN, &PEM.ca, &PEM.crl);
    let server = downstream(
        "require_client_certificate: true, disable_stateful_session_resumption: true, session_timeout: 9s, \
         disable_stateless_session_resumption: true,",
        &format!(
            "{own}, alpn_protocols: [h2, http/1.1], tls_params: {{tls_minimum_protocol_version: TLSv1_3, \
             cipher_suites: ['[ECDHE-RSA-AES128-GCM-SHA256|AES128-SHA]'], ecdh_curves: [P-521, P-256]}}, \
             validation_context: {{trusted_ca: {{inline_string: {ca}}}, crl: {{inline_string: {crl}}}, \
             only_verify_leaf_cert_crl: true, max_verify_depth: 2, allow_expired_certificate: true, \
             trust_chain_verification: ACCEPT_UNTRUSTED, verify_certificate_hash: [{HASH}], \
             match_subject_alt_names: [{{exact: old}}]}}"
        ),
    );
    assert!(server.require_client_certificate && server.disable_stateful_resumption);
    assert_eq!((server.tickets, server.session_timeout), (SessionTickets::Disabled, seconds(9).unwrap()));
    assert_eq!(server.common.alpn, ["h2", "http/1.1"]);
    assert_eq!(server.common.version_min, TlsVersion::V1_3);
    assert_eq!(server.common.cipher_suites, ["ECDHE-RSA-AES128-GCM-SHA256"]);
    assert_eq!(server.common.curves, ["P-256"]);
    let ValidationSource::Inline(context) = &server.common.validation else { panic!("inline") };
    let inline = |yaml: &str| {
        let pem = yaml.trim_matches('"').replace("\\n", "\n");
        Some(SecretData::Inline(pem.as_bytes().into()))
    };
    assert_eq!((context.trusted_ca.clone(), context.crl.clone()), (inline(ca), inline(crl)));
    assert!(context.only_leaf_crl && context.allow_expired && context.accept_untrusted);
    assert_eq!((context.max_depth, context.certificate_hashes.len()), (Some(2), 1));
    assert_eq!((context.sans.len(), context.sans[0].kind), (1, None));
    let client = upstream(
        "sni: a.b, auto_host_sni: true, auto_sni_san_validation: true, max_session_keys: 5,",
        "tls_certificate_sds_secret_configs: [{name: id}], combined_validation_context: \
         {default_validation_context: {match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: u}}]}, \
         validation_context_sds_secret_config: {name: ROOT, sds_config: {path: /x}}}",
    );
    assert_eq!((client.sni.as_str(), client.max_session_keys), ("a.b", 5));
    assert!(client.auto_host_sni && client.auto_sni_san_validation);
    assert!(matches!(&client.common.certificates[..], [CertificateSource::Sds(id)] if id.name == "id"));
    let ValidationSource::Combined { default, secret } = &client.common.validation else {
        panic!("combined")
    };
    assert_eq!((default.sans[0].kind, secret.name.as_str()), (Some(SanKind::Uri), "ROOT"));
}

#[test]
fn sockets_are_matched_and_requests_name_servers() {
    const TLS: &str = "transport_socket: {name: tls, typed_config: {'@type': \
                       EXT/transport_sockets.tls.v3.UpstreamTlsContext, sni: m}}";
    let text = format!(
        "transport_socket_matches: [{{name: m, match: {{tlsMode: istio}}, {TLS}}}, {{name: p, transport_socket: {{name: \
         raw, typed_config: {{'@type': EXT/transport_sockets.raw_buffer.v3.RawBuffer}}}}}}]\n    \
         typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{'@type': \
         EXT/upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {{http_protocol_options: {{}}}}, \
         upstream_http_protocol_options: {{auto_sni: true, override_auto_sni_header: X-A}}}}}}"
    );
    let config = good(&http(&[("CLUSTER", &text)])).bootstrap.config;
    let cluster = &config.clusters[0];
    let [tls, plain] = &cluster.transport_socket_matches[..] else { panic!("two") };
    assert_eq!((tls.name.as_str(), plain.name.as_str()), ("m", "p"));
    assert!(tls.criteria.contains_key("tlsMode") && plain.criteria.is_empty());
    assert_eq!(tls.tls.as_ref().map(|tls| tls.sni.as_str()), Some("m"));
    assert!(plain.tls.is_none() && cluster.tls.is_none());
    let names = cluster.request_names.as_deref().unwrap();
    assert_eq!((names.sni, names.san, names.header.as_deref()), (true, false, Some("x-a")));
    let old = good(&http(&[("CLUSTER", "upstream_http_protocol_options: {auto_san_validation: true}")]));
    assert!(old.bootstrap.config.clusters[0].request_names.as_ref().unwrap().san);
}

#[test]
fn static_secrets_are_found_by_name() {
    let secrets = format!(
        "static_resources:\n  secrets:\n  - {{name: a, validation_context: {{trusted_ca: {{inline_string: {}}}}}}}\n  - \
         {{name: b, generic_secret: {{secret: {{inline_string: s}}}}}}\n",
        PEM.ca
    );
    let text = http(&[]).replace("static_resources:\n", &secrets);
    let secrets = good(&text).bootstrap.config.secrets;
    let find = |name: &str| secrets.get(&ResourceKey { source: None, name: name.to_owned() }).cloned();
    assert!(matches!(find("a").as_deref(), Some(Secret::Validation(_))));
    assert!(matches!(find("b").as_deref(), Some(Secret::Generic(bytes)) if **bytes == *b"s"));
    assert!(find("c").is_none());
}

#[test]
fn what_cannot_be_had_is_refused_by_name() {
    let own = &*OWN;
    for (text, expected) in [
        (with_chain("", ""), "common_tls_context: no TLS certificates found for server context"),
        (
            with_chain("", &format!("{own}, tls_params: {{tls_maximum_protocol_version: TLSv1_1}}")),
            "tls_params.tls_maximum_protocol_version: versions before TLS 1.2 are not supported",
        ),
        (
            with_chain("", &format!("{own}, tls_params: {{cipher_suites: [AES128-SHA]}}")),
            "tls_params.cipher_suites: none of AES128-SHA is supported",
        ),
        (with_chain("require_sni: true,", own), "require_sni: true is not supported; only the default is"),
        (
            with_chain(
                "",
                &format!("{own}, validation_context: {{match_subject_alt_names: [{{exact: a}}]}}"),
            ),
            "without trusted CA is insecure and not allowed",
        ),
        (
            with_chain(
                "",
                &format!("{own}, validation_context: {{verify_certificate_hash: [{}]}}", &HASH[2..]),
            ),
            "verify_certificate_hash[0]: value length must be at least 64 characters",
        ),
        (
            with_chain("session_ticket_keys: {keys: [{inline_string: short}]},", own),
            "session_ticket_keys.keys[0]: a session ticket key has 80 bytes, not 5",
        ),
        (with_cluster("allow_renegotiation: true,", ""), "allow_renegotiation: true is not supported"),
        (
            with_cluster("auto_sni_san_validation: true,", ""),
            "auto_sni_san_validation: configured without a validation context",
        ),
        (with_cluster("", &format!("{own}, key_log: {{path: /x}}")), "key_log: keys are not logged"),
    ] {
        let errors = bad(&text).join("\n");
        assert!(errors.contains(expected), "{expected:?} is not in {errors}");
    }
}

#[test]
fn what_no_context_can_be_made_of_is_invalid() {
    let Pem { certificate, key, ca, crl } = &*PEM;
    let other = format!("\"{}\"", KeyPair::generate().expect("a key").serialize_pem().replace('\n', "\\n"));
    let torn = certificate.replace("MII", "MIJ");
    let with_ca = |more: &str| format!("validation_context: {{{more}}}");
    let chain = "common_tls_context.tls_certificates[0].certificate_chain: ";
    let private = "common_tls_context.tls_certificates[0].private_key: ";
    let context = "common_tls_context.validation_context.";
    for (common, expected) in [
        (own("c", key), format!("{chain}it is not PEM")),
        (own(key, key), format!("{chain}no certificate in it")),
        (own(&torn, key), format!("{chain}certificate 1 cannot be used: ")),
        (own(certificate, "k"), format!("{private}it is not PEM")),
        (own(certificate, certificate), format!("{private}no private key that can be read in it")),
        (own(certificate, &other), format!("{private}it does not belong to the certificate")),
        (with_ca("trusted_ca: {inline_string: a}"), format!("{context}trusted_ca: it is not PEM")),
        (
            with_ca(&format!("trusted_ca: {{inline_string: {torn}}}")),
            format!("{context}trusted_ca: certificate 1 cannot be used: "),
        ),
        (
            with_ca(&format!("trusted_ca: {{inline_string: {ca}}}, crl: {{inline_string: {ca}}}")),
            format!("{context}crl: no revocation list in it"),
        ),
        (
            with_ca(&format!("crl: {{inline_string: {}}}", crl.replace("MII", "MIJ").replace("MIH", "MIG"))),
            format!("{context}crl: revocation list 1 cannot be used: "),
        ),
        (
            with_ca(
                "custom_validator_config: {name: s, typed_config: {'@type': \
                 EXT/transport_sockets.tls.v3.SPIFFECertValidatorConfig, trust_domains: [{name: td, trust_bundle: \
                 {inline_string: a}}]}}",
            ),
            format!(
                "{context}custom_validator_config.typed_config.trust_domains[0].trust_bundle: it is not PEM"
            ),
        ),
    ] {
        let errors = bad(&with_cluster("", &common)).join("\n");
        let expected = format!("transport_socket.typed_config.{expected}");
        assert!(errors.contains(&expected), "{expected:?} is not in {errors}");
    }
    // A file may be put right later.
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = format!("trusted_ca: {{filename: {}}}", file.path().display());
    let loaded = good(&with_cluster("", &with_ca(&path)));
    assert!(texts(&loaded).iter().any(|text| text.ends_with("cannot be used now: it is not PEM")));
}
