//! `extensions.transport_sockets.tls.v3`: contexts and secrets.

use std::{path::PathBuf, sync::Arc, time::Duration};

use culvert_model::{
    CertificateSource, CommonTls, DownstreamTls, ProxyVersion, RequestNames, SanKind, SanMatcher, Secret,
    SecretData, SecretRef, SessionTickets, SpiffeBundle, TlsCertificate, TlsVersion, TransportSocketMatch,
    UpstreamTls, ValidationContext, ValidationSource,
};
use envoy_types::pb::envoy::{
    config::cluster::v3::{Cluster, cluster::TransportSocketMatch as TransportSocketMatchMessage},
    config::core::v3::{
        DataSource, ProxyProtocolConfig, TransportSocket, WatchedDirectory, data_source,
        proxy_protocol_config, transport_socket,
    },
    extensions::transport_sockets::{
        proxy_protocol::v3::ProxyProtocolUpstreamTransport,
        raw_buffer::v3::RawBuffer,
        tls::v3::{
            self as pb, certificate_validation_context::TrustChainVerification,
            common_tls_context::ValidationContextType, downstream_tls_context::SessionTicketKeysType,
            subject_alt_name_matcher::SanType, tls_parameters::TlsProtocol,
        },
    },
    extensions::upstreams::http::v3::HttpProtocolOptions,
};

use super::{core, extension_name, matcher, material, metadata, unpack};
use crate::{NoteKind, at::At};

/// Cipher suites of TLS 1.2 that there are, by OpenSSL's names.
const CIPHER_SUITES: [&str; 6] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-RSA-CHACHA20-POLY1305",
];

const CURVES: [&str; 4] = ["P-256", "P-384", "X25519", "X25519MLKEM768"];

/// `DownstreamTlsContext.session_timeout`'s default, which is BoringSSL's.
const SESSION_TIMEOUT: Duration = Duration::from_secs(7_200);

/// Bytes of a key for session tickets.
const TICKET_KEY_LEN: usize = 80;

/// The transport socket of a filter chain; `Some(None)` leaves bytes as they are.
pub(super) fn downstream(
    at: &At<'_>,
    socket: Option<&TransportSocket>,
) -> Option<Option<Arc<DownstreamTls>>> {
    let Some(any) = typed_config(at, socket)? else { return Some(None) };
    let at = at.field("typed_config");
    let Some(message) = unpack::<pb::DownstreamTlsContext>(any) else {
        return at.unsupported(format!("{} is not a supported transport socket", extension_name(Some(any))));
    };
    let at_common = at.field("common_tls_context");
    let empty = pb::CommonTlsContext::default();
    let common_message = message.common_tls_context.as_ref().unwrap_or(&empty);
    let common = common(&at_common, common_message, TlsVersion::V1_3);
    let tickets = session_tickets(&at, &message);
    let session_timeout =
        core::duration_or(&at.field("session_timeout"), message.session_timeout.as_ref(), SESSION_TIMEOUT);
    let common = common?;
    if common.certificates.is_empty() {
        return at_common.error("no TLS certificates found for server context");
    }
    Some(Some(Arc::new(DownstreamTls {
        common,
        require_client_certificate: message.require_client_certificate.is_some_and(|it| it.value),
        tickets: tickets?,
        disable_stateful_resumption: message.disable_stateful_session_resumption,
        session_timeout: session_timeout?,
    })))
}

/// The transport socket of a cluster; `Some(None)` leaves bytes as they are.
pub(super) fn upstream(at: &At<'_>, socket: Option<&TransportSocket>) -> Option<UpstreamSocket> {
    let Some(any) = typed_config(at, socket)? else { return Some(UpstreamSocket::default()) };
    let at = at.field("typed_config");
    if let Some(outer) = unpack::<ProxyProtocolUpstreamTransport>(any) {
        let at_inner = at.field("transport_socket");
        let tls = encryption(&at_inner, outer.transport_socket.as_ref())?;
        let version = outer.config.as_ref().map(ProxyProtocolConfig::version).unwrap_or_default();
        let proxy = match version {
            proxy_protocol_config::Version::V1 => ProxyVersion::V1,
            proxy_protocol_config::Version::V2 => ProxyVersion::V2,
        };
        return Some(UpstreamSocket { tls, proxy: Some(proxy) });
    }
    encryption_of(&at, any).map(|tls| UpstreamSocket { tls: Some(tls), proxy: None })
}

/// How connections to endpoints are made.
#[derive(Default)]
pub(super) struct UpstreamSocket {
    /// `None` for bytes as they are.
    pub(super) tls: Option<Arc<UpstreamTls>>,
    /// The header that they begin with.
    pub(super) proxy: Option<ProxyVersion>,
}

fn encryption(at: &At<'_>, socket: Option<&TransportSocket>) -> Option<Option<Arc<UpstreamTls>>> {
    let Some(any) = typed_config(at, socket)? else { return Some(None) };
    encryption_of(&at.field("typed_config"), any).map(Some)
}

fn encryption_of(at: &At<'_>, any: &envoy_types::pb::google::protobuf::Any) -> Option<Arc<UpstreamTls>> {
    let Some(message) = unpack::<pb::UpstreamTlsContext>(any) else {
        return at.unsupported(format!("{} is not a supported transport socket", extension_name(Some(any))));
    };
    let at_common = at.field("common_tls_context");
    let empty = pb::CommonTlsContext::default();
    let common_message = message.common_tls_context.as_ref().unwrap_or(&empty);
    let common = common(&at_common, common_message, TlsVersion::V1_2)?;
    if common.certificates.len() > 1 {
        return at_common.error("multiple TLS certificates are not supported for client contexts");
    }
    if message.auto_sni_san_validation && common.validation == ValidationSource::None {
        return at.field("auto_sni_san_validation").error("configured without a validation context");
    }
    Some(Arc::new(UpstreamTls {
        common,
        sni: message.sni.clone(),
        auto_host_sni: message.auto_host_sni,
        auto_sni_san_validation: message.auto_sni_san_validation,
        max_session_keys: message.max_session_keys.as_ref().map_or(1, |keys| keys.value),
    }))
}

/// `transport_socket_matches`.
pub(super) fn socket_matches(
    at: &At<'_>,
    matches: &[TransportSocketMatchMessage],
) -> Option<Vec<TransportSocketMatch>> {
    let converted = matches.iter().enumerate().map(|(index, message)| {
        let at = at.index(index);
        let at_socket = at.field("transport_socket");
        if message.transport_socket.is_none() {
            return at_socket.error("value is required");
        }
        let socket = upstream(&at_socket, message.transport_socket.as_ref())?;
        Some(TransportSocketMatch {
            name: message.name.clone(),
            criteria: message.r#match.as_ref().map(metadata::structure).unwrap_or_default(),
            tls: socket.tls,
            proxy_protocol: socket.proxy,
        })
    });
    converted.collect::<Vec<_>>().into_iter().collect()
}

/// What of a request names the server; `None` for nothing.
pub(super) fn request_names(cluster: &Cluster) -> Option<Arc<RequestNames>> {
    let typed = cluster.typed_extension_protocol_options.values().find_map(unpack::<HttpProtocolOptions>);
    let options = match &typed {
        Some(typed) => typed.upstream_http_protocol_options.as_ref(),
        None => cluster.upstream_http_protocol_options.as_ref(),
    };
    let options = options.filter(|options| options.auto_sni || options.auto_san_validation)?;
    let header = options.override_auto_sni_header.to_ascii_lowercase();
    Some(Arc::new(RequestNames {
        sni: options.auto_sni,
        san: options.auto_san_validation,
        header: (!header.is_empty()).then_some(header),
    }))
}

/// What is inside of a transport socket, unless it is the one that does nothing.
fn typed_config<'a>(
    at: &At<'_>,
    socket: Option<&'a TransportSocket>,
) -> Option<Option<&'a envoy_types::pb::google::protobuf::Any>> {
    let Some(socket) = socket else { return Some(None) };
    match socket.config_type.as_ref() {
        None => at.field("typed_config").error("value is required"),
        Some(transport_socket::ConfigType::TypedConfig(any)) => {
            Some(unpack::<RawBuffer>(any).is_none().then_some(any))
        }
    }
}

/// A secret.
pub(crate) fn secret(at: &At<'_>, message: &pb::Secret) -> Option<Secret> {
    match message.r#type.as_ref() {
        None => at.error("a secret needs a type"),
        Some(pb::secret::Type::TlsCertificate(message)) => {
            certificate(&at.field("tls_certificate"), message).map(Arc::new).map(Secret::Certificate)
        }
        Some(pb::secret::Type::ValidationContext(message)) => {
            validation(&at.field("validation_context"), message).map(Arc::new).map(Secret::Validation)
        }
        Some(pb::secret::Type::SessionTicketKeys(message)) => {
            ticket_keys(&at.field("session_ticket_keys"), message).map(Secret::TicketKeys)
        }
        Some(pb::secret::Type::GenericSecret(message)) => {
            let at = at.field("generic_secret");
            let at = at.field("secret");
            let Some(source) = message.secret.as_ref() else { return at.error("value is required") };
            core::data(&at, source).map(|bytes| Secret::Generic(bytes.into()))
        }
    }
}

fn common(at: &At<'_>, message: &pb::CommonTlsContext, default_max: TlsVersion) -> Option<CommonTls> {
    let params = message.tls_params.clone().unwrap_or_default();
    let at_params = at.field("tls_params");
    let min = version(&at_params.field("tls_minimum_protocol_version"), params.tls_minimum_protocol_version);
    let max = version(&at_params.field("tls_maximum_protocol_version"), params.tls_maximum_protocol_version);
    let suites = cipher_suites(&at_params.field("cipher_suites"), &params.cipher_suites);
    let curves = curves(&at_params.field("ecdh_curves"), &params.ecdh_curves);
    let certificates = certificates(at, message);
    let validation = validation_source(at, message);
    let version_min = min?.unwrap_or(TlsVersion::V1_2);
    // A least version above the default greatest one moves that, or nothing would be left.
    let version_max = max?.unwrap_or_else(|| default_max.max(version_min));
    if version_min > version_max {
        return at_params.error("the minimum protocol version is above the maximum");
    }
    Some(CommonTls {
        version_min,
        version_max,
        cipher_suites: suites?,
        curves: curves?,
        certificates: certificates?,
        validation: validation?,
        alpn: message.alpn_protocols.clone(),
    })
}

/// `None` inside for the default.
fn version(at: &At<'_>, version: i32) -> Option<Option<TlsVersion>> {
    match TlsProtocol::try_from(version) {
        Ok(TlsProtocol::TlsAuto) => Some(None),
        Ok(TlsProtocol::TlSv12) => Some(Some(TlsVersion::V1_2)),
        Ok(TlsProtocol::TlSv13) => Some(Some(TlsVersion::V1_3)),
        Ok(TlsProtocol::TlSv10 | TlsProtocol::TlSv11) if at.to_string().contains("minimum") => {
            at.note(NoteKind::NoEffect, "versions before TLS 1.2 are not supported; 1.2 is the least");
            Some(Some(TlsVersion::V1_2))
        }
        _ => at.unsupported("versions before TLS 1.2 are not supported"),
    }
}

/// The suites that are supported, in order. BoringSSL puts those of equal preference in brackets.
fn cipher_suites(at: &At<'_>, names: &[String]) -> Option<Vec<String>> {
    let all = names.iter().flat_map(|name| name.trim_matches(['[', ']']).split('|'));
    supported(at, all, &CIPHER_SUITES)
}

fn curves(at: &At<'_>, names: &[String]) -> Option<Vec<String>> {
    supported(at, names.iter().map(String::as_str), &CURVES)
}

fn supported<'a>(at: &At<'_>, names: impl Iterator<Item = &'a str>, known: &[&str]) -> Option<Vec<String>> {
    let (good, bad): (Vec<&str>, Vec<&str>) = names.partition(|name| known.contains(name));
    if good.is_empty() && !bad.is_empty() {
        return at.unsupported(format!("none of {} is supported", bad.join(", ")));
    }
    if !bad.is_empty() {
        at.note(NoteKind::NoEffect, format!("not supported and never negotiated: {}", bad.join(", ")));
    }
    Some(good.into_iter().map(str::to_owned).collect())
}

fn certificates(at: &At<'_>, message: &pb::CommonTlsContext) -> Option<Vec<CertificateSource>> {
    let at_inline = at.field("tls_certificates");
    let at_sds = at.field("tls_certificate_sds_secret_configs");
    let inline = message.tls_certificates.iter().enumerate().map(|(i, message)| {
        Some(CertificateSource::Inline(Arc::new(certificate(&at_inline.index(i), message)?)))
    });
    let sds = message
        .tls_certificate_sds_secret_configs
        .iter()
        .enumerate()
        .map(|(i, config)| Some(CertificateSource::Sds(secret_ref(&at_sds.index(i), config)?)));
    let (inline, sds): (Vec<_>, Vec<_>) = (inline.collect(), sds.collect());
    // As in Envoy, certificates that are given win over those of SDS.
    let chosen = if inline.is_empty() { sds } else { inline };
    chosen.into_iter().collect()
}

fn secret_ref(at: &At<'_>, config: &pb::SdsSecretConfig) -> Option<SecretRef> {
    let source = match config.sds_config.as_ref() {
        Some(source) => Some(core::config_source(&at.field("sds_config"), Some(source))?),
        None => None,
    };
    Some(SecretRef { name: core::resource_name(&at.field("name"), &config.name)?, source })
}

fn certificate(at: &At<'_>, message: &pb::TlsCertificate) -> Option<TlsCertificate> {
    let chain = required(&at.field("certificate_chain"), message.certificate_chain.as_ref());
    let key = required(&at.field("private_key"), message.private_key.as_ref());
    let staple = optional(&at.field("ocsp_staple"), message.ocsp_staple.as_ref());
    let (chain, key) = (chain?, key?);
    material::identity(at, &chain, &key)?;
    Some(TlsCertificate {
        chain,
        key,
        ocsp_staple: staple?,
        watched_directory: directory(message.watched_directory.as_ref()),
    })
}

fn directory(watched: Option<&WatchedDirectory>) -> Option<PathBuf> {
    watched.map(|directory| PathBuf::from(&directory.path))
}

fn required(at: &At<'_>, source: Option<&DataSource>) -> Option<SecretData> {
    match optional(at, source)? {
        Some(data) => Some(data),
        None => at.error("value is required"),
    }
}

/// A file is read later, and again when it changes: the context is not ready while it is missing.
fn optional(at: &At<'_>, source: Option<&DataSource>) -> Option<Option<SecretData>> {
    let Some(source) = source else { return Some(None) };
    if let Some(data_source::Specifier::Filename(path)) = source.specifier.as_ref() {
        if let Err(error) = std::fs::metadata(path) {
            let text = format!("{path:?} cannot be read now ({error}); connections are refused until it can");
            at.field("filename").note(NoteKind::Warning, text);
        }
        return Some(Some(SecretData::File(PathBuf::from(path))));
    }
    let bytes = core::data(at, source)?;
    if bytes.is_empty() {
        return at.error("it is empty");
    }
    Some(Some(SecretData::Inline(bytes.into())))
}

fn validation_source(at: &At<'_>, message: &pb::CommonTlsContext) -> Option<ValidationSource> {
    Some(match message.validation_context_type.as_ref() {
        None => ValidationSource::None,
        Some(ValidationContextType::ValidationContext(message)) => {
            let at = at.field("validation_context");
            let context = validation(&at, message)?;
            let trusts = context.trusted_ca.is_some() || context.system_roots || !context.spiffe.is_empty();
            if !context.sans.is_empty() && !trusts {
                return at.error(
                    "verification by subject alternative name without trusted CA is insecure and not allowed",
                );
            }
            ValidationSource::Inline(Arc::new(context))
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => {
            ValidationSource::Sds(secret_ref(&at.field("validation_context_sds_secret_config"), config)?)
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            let at = at.field("combined_validation_context");
            let at_default = at.field("default_validation_context");
            let Some(default) = combined.default_validation_context.as_ref() else {
                return at_default.error("value is required");
            };
            let default = validation(&at_default, default);
            let at_secret = at.field("validation_context_sds_secret_config");
            let Some(config) = combined.validation_context_sds_secret_config.as_ref() else {
                return at_secret.error("value is required");
            };
            ValidationSource::Combined {
                secret: secret_ref(&at_secret, config)?,
                default: Arc::new(default?),
            }
        }
        Some(_) => return at.unsupported("certificate providers are not supported"),
    })
}

fn validation(at: &At<'_>, message: &pb::CertificateValidationContext) -> Option<ValidationContext> {
    let usable = |field: &str, source: Option<&DataSource>, check: fn(&At<'_>, &SecretData) -> Option<()>| {
        let at = at.field(field);
        match optional(&at, source)? {
            Some(data) => check(&at, &data).map(|()| Some(data)),
            None => Some(None),
        }
    };
    let trusted_ca = usable("trusted_ca", message.trusted_ca.as_ref(), material::trust);
    let crl = usable("crl", message.crl.as_ref(), material::revocation);
    let sans = sans(at, message);
    let hashes = hashes(&at.field("verify_certificate_hash"), &message.verify_certificate_hash, hex_hash);
    let spkis = hashes_of_keys(at, message);
    let spiffe = spiffe(at, message);
    Some(ValidationContext {
        trusted_ca: trusted_ca?,
        system_roots: message.system_root_certs.is_some(),
        crl: crl?,
        only_leaf_crl: message.only_verify_leaf_cert_crl,
        sans: sans?,
        certificate_hashes: hashes?,
        spki_hashes: spkis?,
        allow_expired: message.allow_expired_certificate,
        accept_untrusted: message.trust_chain_verification() == TrustChainVerification::AcceptUntrusted,
        max_depth: message.max_verify_depth.as_ref().map(|depth| depth.value),
        spiffe: spiffe?,
        watched_directory: directory(message.watched_directory.as_ref()),
    })
}

/// The typed matchers; the deprecated ones count only without them.
fn sans(at: &At<'_>, message: &pb::CertificateValidationContext) -> Option<Vec<SanMatcher>> {
    if message.match_typed_subject_alt_names.is_empty() {
        let at = at.field("match_subject_alt_names");
        let old = message.match_subject_alt_names.iter().enumerate();
        return old
            .map(|(i, message)| {
                Some(SanMatcher { kind: None, matcher: matcher::string(&at.index(i), message)? })
            })
            .collect::<Vec<_>>()
            .into_iter()
            .collect();
    }
    let at = at.field("match_typed_subject_alt_names");
    let typed = message.match_typed_subject_alt_names.iter().enumerate().map(|(i, message)| {
        let at = at.index(i);
        let kind = match message.san_type() {
            SanType::Dns => SanKind::Dns,
            SanType::Email => SanKind::Email,
            SanType::IpAddress => SanKind::Ip,
            SanType::Uri => SanKind::Uri,
            SanType::OtherName => {
                return at.field("san_type").unsupported("names of type OTHER_NAME are not supported");
            }
            SanType::Unspecified => return at.field("san_type").error("value is required"),
        };
        let at = at.field("matcher");
        let Some(message) = message.matcher.as_ref() else { return at.error("value is required") };
        Some(SanMatcher { kind: Some(kind), matcher: matcher::string(&at, message)? })
    });
    typed.collect::<Vec<_>>().into_iter().collect()
}

fn hashes(at: &At<'_>, texts: &[String], decode: impl Fn(&str) -> Option<[u8; 32]>) -> Option<Vec<[u8; 32]>> {
    let decoded: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(i, text)| match decode(text) {
            Some(hash) => Some(hash),
            None => at.index(i).error(format!("{text:?} is not a SHA-256 hash")),
        })
        .collect();
    decoded.into_iter().collect()
}

fn hashes_of_keys(at: &At<'_>, message: &pb::CertificateValidationContext) -> Option<Vec<[u8; 32]>> {
    hashes(&at.field("verify_certificate_spki"), &message.verify_certificate_spki, base64_hash)
}

/// 64 hexadecimal digits, in pairs separated by colons or not.
fn hex_hash(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = match text.len() {
        64 => text.bytes().collect(),
        95 if text.bytes().skip(2).step_by(3).all(|byte| byte == b':') => {
            text.bytes().enumerate().filter(|(i, _)| i % 3 != 2).map(|(_, byte)| byte).collect()
        }
        _ => return None,
    };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|it| u8::try_from(it).ok());
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
        *byte = digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?;
    }
    Some(hash)
}

fn base64_hash(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_suffix('=').filter(|digits| digits.len() == 43)?;
    let (mut out, mut word, mut bits) = (Vec::with_capacity(32), 0_u32, 0);
    for byte in digits.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        word = word << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((word >> bits) as u8);
        }
    }
    out.try_into().ok()
}

fn spiffe(at: &At<'_>, message: &pb::CertificateValidationContext) -> Option<Vec<SpiffeBundle>> {
    let Some(extension) = message.custom_validator_config.as_ref() else { return Some(Vec::new()) };
    let at = at.field("custom_validator_config");
    let at = at.field("typed_config");
    let any = extension.typed_config.as_ref();
    let Some(config) = any.and_then(unpack::<pb::SpiffeCertValidatorConfig>) else {
        return at.unsupported(format!("{} is not a supported validator", extension_name(any)));
    };
    let at = at.field("trust_domains");
    if config.trust_domains.is_empty() {
        return at.error("value must contain at least 1 item(s)");
    }
    let mut bundles: Vec<SpiffeBundle> = Vec::with_capacity(config.trust_domains.len());
    for (i, domain) in config.trust_domains.iter().enumerate() {
        let at = at.index(i);
        if bundles.iter().any(|known| known.trust_domain == domain.name) {
            return at
                .field("name")
                .error(format!("multiple trust bundles for one trust domain: {}", domain.name));
        }
        let at_bundle = at.field("trust_bundle");
        let bundle = required(&at_bundle, domain.trust_bundle.as_ref())?;
        material::trust(&at_bundle, &bundle)?;
        bundles.push(SpiffeBundle { trust_domain: domain.name.clone(), bundle });
    }
    Some(bundles)
}

fn session_tickets(at: &At<'_>, message: &pb::DownstreamTlsContext) -> Option<SessionTickets> {
    Some(match message.session_ticket_keys_type.as_ref() {
        None | Some(SessionTicketKeysType::DisableStatelessSessionResumption(false)) => SessionTickets::Own,
        Some(SessionTicketKeysType::DisableStatelessSessionResumption(true)) => SessionTickets::Disabled,
        Some(SessionTicketKeysType::SessionTicketKeys(keys)) => {
            SessionTickets::Keys(ticket_keys(&at.field("session_ticket_keys"), keys)?)
        }
        Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(config)) => {
            SessionTickets::Sds(secret_ref(&at.field("session_ticket_keys_sds_secret_config"), config)?)
        }
    })
}

fn ticket_keys(at: &At<'_>, message: &pb::TlsSessionTicketKeys) -> Option<Vec<Arc<[u8]>>> {
    let at = at.field("keys");
    let keys: Vec<_> = message
        .keys
        .iter()
        .enumerate()
        .map(|(i, source)| {
            let at = at.index(i);
            let key = core::data(&at, source)?;
            if key.len() == TICKET_KEY_LEN {
                return Some(Arc::from(key));
            }
            at.error(format!("a session ticket key has {TICKET_KEY_LEN} bytes, not {}", key.len()))
        })
        .collect();
    keys.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_read_in_every_form_that_envoy_takes() {
        let plain = "df6ff72fe9116521268f6f2dd4966f51df479883fe7037b39f75916ac3049d1a";
        let colons: Vec<&str> = (0..32).map(|i| &plain[2 * i..2 * i + 2]).collect();
        let hash = hex_hash(plain).unwrap();
        assert_eq!((hash[0], hash[31]), (0xdf, 0x1a));
        assert_eq!(hex_hash(&colons.join(":").to_uppercase()), Some(hash));
        assert_eq!(
            base64_hash("NvqYIYSbgK2vCJpQhObf77vv+bQWtc5ek5RIOwPiC9A=").unwrap()[..3],
            [0x36, 0xfa, 0x98]
        );
        for bad in ["", "df", &plain[1..], "zf6ff72fe9116521268f6f2dd4966f51df479883fe7037b39f75916ac3049d1a"]
        {
            assert_eq!((hex_hash(bad), base64_hash(bad)), (None, None), "{bad}");
        }
    }
}
