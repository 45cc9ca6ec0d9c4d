//! What a certificate says.

use std::net::IpAddr;

use aws_lc_rs::digest;
use rustls::pki_types::CertificateDer;
use webpki::KeyUsage;
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer as _, X509Certificate, X509Name, X509Version},
};

/// The parts of an end entity's certificate that matching, headers and logs speak of.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CertificateInfo {
    /// URI subject alternative names.
    pub uri_sans: Vec<String>,
    /// DNS subject alternative names.
    pub dns_sans: Vec<String>,
    /// IP address subject alternative names.
    pub ip_sans: Vec<IpAddr>,
    /// RFC 822 subject alternative names.
    pub email_sans: Vec<String>,
    /// The subject in the form of RFC 2253.
    pub subject: String,
    /// The issuer in the form of RFC 2253.
    pub issuer: String,
    /// The serial number, lower-case hexadecimal.
    pub serial: String,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
    /// SHA-256 of the certificate.
    pub sha256: [u8; 32],
    /// SHA-256 of its public key (SubjectPublicKeyInfo).
    pub spki_sha256: [u8; 32],
    /// The certificate.
    pub der: Vec<u8>,
}

impl CertificateInfo {
    /// Reads a certificate; `None` when it is malformed.
    pub fn parse(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let mut info = Self {
            subject: rfc2253(certificate.subject()),
            issuer: rfc2253(certificate.issuer()),
            serial: hex(unsigned(certificate.raw_serial())),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            sha256: sha256(der),
            spki_sha256: sha256(certificate.public_key().raw),
            der: der.to_vec(),
            ..Self::default()
        };
        for extension in certificate.extensions() {
            let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
                continue;
            };
            for name in &names.general_names {
                match name {
                    GeneralName::URI(text) => info.uri_sans.push((*text).to_owned()),
                    GeneralName::DNSName(text) => info.dns_sans.push((*text).to_owned()),
                    GeneralName::RFC822Name(text) => info.email_sans.push((*text).to_owned()),
                    GeneralName::IPAddress(bytes) => info.ip_sans.extend(ip(bytes)),
                    _ => {}
                }
            }
        }
        Some(info)
    }

    /// Whether it may sign handshakes (`enforce_rsa_key_usage`): one that says nothing of its use may.
    pub(super) fn may_authenticate(der: &CertificateDer<'_>) -> bool {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
        let usage = certificate.key_usage().ok().flatten();
        usage.is_none_or(|it| it.value.digital_signature())
    }

    /// Whether it may sign other certificates or revocation lists, which a leaf of SPIFFE must not.
    pub(super) fn may_sign(der: &CertificateDer<'_>) -> bool {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else { return true };
        let usage = certificate.key_usage().ok().flatten();
        certificate.is_ca() || usage.is_some_and(|it| it.value.key_cert_sign() || it.value.crl_sign())
    }

    /// Whether it is that of a CA. Version 1 cannot say so: there, one that names itself as its issuer is.
    pub(super) fn may_issue(der: &CertificateDer<'_>) -> bool {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
        if certificate.version() == X509Version::V1 {
            return certificate.subject().as_raw() == certificate.issuer().as_raw();
        }
        let may_sign = certificate.key_usage().is_ok_and(|it| it.is_none_or(|it| it.value.key_cert_sign()));
        certificate.is_ca() && may_sign
    }

    /// Whether its extended key usage, if it has one, allows for this.
    pub(super) fn is_meant_for(der: &CertificateDer<'_>, usage: KeyUsage) -> bool {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
        let Ok(purposes) = certificate.extended_key_usage() else { return false };
        purposes.is_none_or(|it| {
            (it.value.server_auth && usage == KeyUsage::server_auth())
                || (it.value.client_auth && usage == KeyUsage::client_auth())
        })
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// A positive DER integer may begin with a zero that is not part of the number.
fn unsigned(bytes: &[u8]) -> &[u8] {
    match bytes {
        [0, rest @ ..] if !rest.is_empty() => rest,
        all => all,
    }
}

/// SHA-256.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .map(char::from)
        .collect()
}

/// A distinguished name as RFC 2253 writes it: the last part first.
fn rfc2253(name: &X509Name<'_>) -> String {
    let mut out = String::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for (i, rdn) in parts.into_iter().rev().enumerate() {
        if i > 0 {
            out.push(',');
        }
        for (j, attribute) in rdn.iter().enumerate() {
            if j > 0 {
                out.push('+');
            }
            let oid = attribute.attr_type().to_id_string();
            let short = SHORT_NAMES.iter().find(|(known, _)| *known == oid).map(|(_, short)| *short);
            out.push_str(short.unwrap_or(&oid));
            out.push('=');
            match attribute.as_str() {
                Ok(text) if short.is_some() => escape(text, &mut out),
                _ => {
                    out.push('#');
                    out.push_str(&hex(attribute.as_slice()).to_uppercase());
                }
            }
        }
    }
    out
}

/// Attribute types and OpenSSL's names for them.
const SHORT_NAMES: &[(&str, &str)] = &[
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.42", "GN"),
    ("2.5.4.43", "initials"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
];

fn escape(text: &str, out: &mut String) {
    let last = text.len().saturating_sub(1);
    for (i, byte) in text.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => {
                out.push('\\');
                out.push(byte.into());
            }
            b'#' if i == 0 => out.push_str("\\#"),
            b' ' if i == 0 || i == last => out.push_str("\\ "),
            b' '..=b'~' => out.push(byte.into()),
            other => {
                out.push('\\');
                out.push_str(&hex(&[other]).to_uppercase());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped_as_rfc_2253_asks() {
        let mut out = String::new();
        escape(" a,b+\"c\\<>;#é ", &mut out);
        assert_eq!(out, "\\ a\\,b\\+\\\"c\\\\\\<\\>\\;#\\C3\\A9\\ ");
    }

    #[test]
    fn a_certificate_is_read() {
        let mut params =
            rcgen::CertificateParams::new(vec!["a.example".to_owned(), "10.0.0.1".to_owned()]).unwrap();
        params.subject_alt_names.push(rcgen::SanType::URI("spiffe://td/a".try_into().unwrap()));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "Org, Inc");
        params.distinguished_name.push(rcgen::DnType::CommonName, "name");
        params.serial_number = Some(vec![0x80, 1].into());
        let key = rcgen::KeyPair::generate().unwrap();
        let info = CertificateInfo::parse(params.self_signed(&key).unwrap().der()).unwrap();
        assert_eq!(info.subject, "CN=name,O=Org\\, Inc");
        assert_eq!(
            (info.dns_sans, info.uri_sans),
            (vec!["a.example".to_owned()], vec!["spiffe://td/a".to_owned()])
        );
        assert_eq!(info.ip_sans, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(info.serial, "8001");
        assert!(CertificateInfo::parse(&CertificateDer::from(vec![1, 2, 3])).is_none());
    }
}
