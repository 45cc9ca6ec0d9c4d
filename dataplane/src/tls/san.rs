//! Subject alternative names against what is expected of them.

use culvert_model::{SanKind, SanMatcher, StringMatcher};
use culvert_proto::route::string_matches;

use super::certificate::CertificateInfo;

/// Whether any of the matchers accepts any name of the certificate (`match_typed_subject_alt_names`).
pub(super) fn matches_any(matchers: &[SanMatcher], certificate: &CertificateInfo) -> bool {
    matchers.iter().any(|matcher| match matcher.kind {
        Some(kind) => matches_kind(kind, &matcher.matcher, certificate),
        None => [SanKind::Dns, SanKind::Email, SanKind::Ip, SanKind::Uri]
            .into_iter()
            .any(|kind| matches_kind(kind, &matcher.matcher, certificate)),
    })
}

fn matches_kind(kind: SanKind, matcher: &StringMatcher, certificate: &CertificateInfo) -> bool {
    let text = |names: &[String]| names.iter().any(|name| string_matches(matcher, name.as_bytes()));
    match kind {
        SanKind::Dns => certificate.dns_sans.iter().any(|name| matches_dns(matcher, name)),
        SanKind::Email => text(&certificate.email_sans),
        SanKind::Ip => {
            certificate.ip_sans.iter().any(|ip| string_matches(matcher, ip.to_string().as_bytes()))
        }
        SanKind::Uri => text(&certificate.uri_sans),
    }
}

/// An exact matcher of DNS names understands wildcards in the certificate.
fn matches_dns(matcher: &StringMatcher, name: &str) -> bool {
    match matcher {
        StringMatcher::Exact { value, .. } => dns_name_matches(value, name),
        other => string_matches(other, name.as_bytes()),
    }
}

/// Whether `pattern`, of a certificate, stands for `name`: the same, or `*.` and all of `name` but its first label.
pub(super) fn dns_name_matches(name: &str, pattern: &str) -> bool {
    if name.eq_ignore_ascii_case(pattern) {
        return true;
    }
    let (Some(suffix), Some((label, rest))) = (pattern.strip_prefix("*."), name.split_once('.')) else {
        return false;
    };
    !label.is_empty() && !suffix.is_empty() && rest.eq_ignore_ascii_case(suffix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stands_for_one_label() {
        for (name, pattern, expected) in [
            ("a.example", "A.example", true),
            ("a.example", "*.example", true),
            ("a.b.example", "*.example", false),
            ("example", "*.example", false),
            (".example", "*.example", false),
            ("a.example", "*", false),
            ("a.example", "*.", false),
            ("a.example", "a*.example", false),
        ] {
            assert_eq!(dns_name_matches(name, pattern), expected, "{name} {pattern}");
        }
    }

    #[test]
    fn a_type_restricts_where_a_name_is_looked_for() {
        let certificate = CertificateInfo {
            uri_sans: vec!["spiffe://td/a".to_owned()],
            ip_sans: vec!["2001:db8::1".parse().unwrap()],
            ..CertificateInfo::default()
        };
        let exact = |kind, value: &str| {
            let matcher = StringMatcher::Exact { value: value.to_owned(), ignore_case: false };
            matches_any(&[SanMatcher { kind, matcher }], &certificate)
        };
        assert!(exact(Some(SanKind::Uri), "spiffe://td/a"));
        assert!(exact(None, "spiffe://td/a"));
        assert!(!exact(Some(SanKind::Dns), "spiffe://td/a"));
        assert!(exact(Some(SanKind::Ip), "2001:db8::1"));
        assert!(!exact(None, "spiffe://td/b"));
    }
}
