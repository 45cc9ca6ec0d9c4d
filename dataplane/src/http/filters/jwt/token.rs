//! JSON Web Tokens (RFC 7519) in their compact form.

use std::borrow::Cow;

use serde_json::{Map, Value};

/// What is wrong with a token or its use; the words are Envoy's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    Missing,
    Expired,
    NotYetValid,
    BadFormat,
    HeaderBase64,
    HeaderJson,
    HeaderAlgorithm,
    HeaderKeyId,
    UnknownAlgorithm,
    PayloadBase64,
    PayloadJson,
    Issuer,
    Subject,
    IssuedAt,
    NotBefore,
    Expiration,
    Id,
    Audience,
    SignatureBase64,
    UnknownIssuer,
    AudienceNotAllowed,
    Verification,
    NoKey,
    Fetch,
    NoKeys,
}

impl Fault {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Missing => "Jwt is missing",
            Self::Expired => "Jwt is expired",
            Self::NotYetValid => "Jwt not yet valid",
            Self::BadFormat => {
                "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
            }
            Self::HeaderBase64 => "Jwt header is an invalid Base64url encoded",
            Self::HeaderJson => "Jwt header is an invalid JSON",
            Self::HeaderAlgorithm => "Jwt header [alg] field is required and must be a string",
            Self::HeaderKeyId => "Jwt header [kid] field is not a string",
            Self::UnknownAlgorithm => "Jwt header [alg] is not supported",
            Self::PayloadBase64 => "Jwt payload is an invalid Base64url encoded",
            Self::PayloadJson => "Jwt payload is an invalid JSON",
            Self::Issuer => "Jwt payload [iss] field is not a string",
            Self::Subject => "Jwt payload [sub] field is not a string",
            Self::IssuedAt => "Jwt payload [iat] field is not an integer",
            Self::NotBefore => "Jwt payload [nbf] field is not an integer",
            Self::Expiration => "Jwt payload [exp] field is not an integer",
            Self::Id => "Jwt payload [jti] field is not a string",
            Self::Audience => "Jwt payload [aud] field is not a string or string list",
            Self::SignatureBase64 => "Jwt signature is an invalid Base64url encoded",
            Self::UnknownIssuer => "Jwt issuer is not configured",
            Self::AudienceNotAllowed => "Audiences in Jwt are not allowed",
            Self::Verification => "Jwt verification fails",
            Self::NoKey => "Jwks doesn't have key to match kid or alg from Jwt",
            Self::Fetch => "Jwks remote fetch is failed",
            Self::NoKeys => "Jwks doesn't have any valid public key",
        }
    }
}

/// A token that was read and not verified.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) algorithm: String,
    /// `kid`; empty for none.
    pub(super) key_id: String,
    pub(super) header: Map<String, Value>,
    pub(super) payload: Map<String, Value>,
    pub(super) issuer: String,
    pub(super) subject: String,
    pub(super) audiences: Vec<String>,
    /// Seconds since 1970; 0 for none.
    pub(super) expires: u64,
    /// Seconds since 1970; 0 for none.
    pub(super) not_before: u64,
    pub(super) signature: Vec<u8>,
    /// What is signed.
    pub(super) signed: String,
}

/// Algorithms that there are (RFC 7518 section 3.1, RFC 8037).
pub(super) const ALGORITHMS: [&str; 13] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "HS256", "HS384",
    "HS512", "EdDSA",
];

impl Token {
    /// Reads a token.
    ///
    /// # Errors
    /// What makes it unreadable.
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        let mut parts = text.split('.');
        let (Some(head), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Fault::BadFormat);
        };
        if head.is_empty() || payload.is_empty() || signature.is_empty() {
            return Err(Fault::BadFormat);
        }
        let header: Map<String, Value> = serde_json::from_slice(&decode(head).ok_or(Fault::HeaderBase64)?)
            .map_err(|_| Fault::HeaderJson)?;
        let Some(Value::String(algorithm)) = header.get("alg") else { return Err(Fault::HeaderAlgorithm) };
        if !ALGORITHMS.contains(&algorithm.as_str()) {
            return Err(Fault::UnknownAlgorithm);
        }
        let key_id = text_of(&header, "kid", Fault::HeaderKeyId)?;
        let claims: Map<String, Value> =
            serde_json::from_slice(&decode(payload).ok_or(Fault::PayloadBase64)?)
                .map_err(|_| Fault::PayloadJson)?;
        let issuer = text_of(&claims, "iss", Fault::Issuer)?;
        let subject = text_of(&claims, "sub", Fault::Subject)?;
        number_of(&claims, "iat", Fault::IssuedAt)?;
        text_of(&claims, "jti", Fault::Id)?;
        let audiences = match claims.get("aud") {
            None => Vec::new(),
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(list)) => {
                let list = list.iter().map(|it| it.as_str().map(str::to_owned));
                list.collect::<Option<_>>().ok_or(Fault::Audience)?
            }
            Some(_) => return Err(Fault::Audience),
        };
        Ok(Self {
            algorithm: algorithm.clone(),
            key_id,
            issuer,
            subject,
            audiences,
            expires: number_of(&claims, "exp", Fault::Expiration)?,
            not_before: number_of(&claims, "nbf", Fault::NotBefore)?,
            signature: decode(signature).ok_or(Fault::SignatureBase64)?,
            signed: text[..head.len() + 1 + payload.len()].to_owned(),
            header,
            payload: claims,
        })
    }

    /// The payload as it is in the token.
    pub(super) fn encoded_payload(&self) -> &str {
        self.signed.split_once('.').map_or("", |(_, payload)| payload)
    }
}

fn text_of(map: &Map<String, Value>, key: &str, fault: Fault) -> Result<String, Fault> {
    match map.get(key) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(fault),
    }
}

/// Fractions are cut off: RFC 7519 section 2 allows them.
fn number_of(map: &Map<String, Value>, key: &str, fault: Fault) -> Result<u64, Fault> {
    match map.get(key) {
        None => Ok(0),
        Some(Value::Number(number)) => {
            let seconds =
                number.as_u64().or_else(|| number.as_f64().filter(|it| *it >= 0.0).map(|it| it as u64));
            seconds.ok_or(fault)
        }
        Some(_) => Err(fault),
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Base64url (RFC 4648 section 5), with or without padding. `None` where it is none. Blanks are passed over, as Envoy does:
/// what is wrong with such a token is its signature.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    let text: Cow<'_, str> = match text.contains(|c: char| c.is_ascii_whitespace()) {
        true => text.split_ascii_whitespace().collect::<String>().into(),
        false => text.into(),
    };
    let bytes = text.trim_end_matches('=').as_bytes();
    if text.len() - bytes.len() > 2 || bytes.len() % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(bytes.len() * 3 / 4);
    for group in bytes.chunks(4) {
        let mut bits = 0_u32;
        for byte in group {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'-' => 62,
                b'_' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - group.len());
        out.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(out)
}

/// Base64url without padding.
pub(super) fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut padded = [0; 4];
        padded[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(padded);
        for place in 0..=group.len() {
            out.push(char::from(ALPHABET[(bits >> (18 - 6 * place) & 63) as usize]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url_there_and_back() {
        for (plain, text) in
            [(&b""[..], ""), (b"f", "Zg"), (b"fo", "Zm8"), (b"foo", "Zm9v"), (b"\xfb\xff\xbf", "-_-_")]
        {
            assert_eq!(encode(plain), text);
            assert_eq!(decode(text).as_deref(), Some(plain));
        }
        assert_eq!(decode("Zg==").as_deref(), Some(&b"f"[..]));
        for broken in ["Z", "Zg===", "Z+8", "Z/8", "Zg=a", "\u{e4}"] {
            assert_eq!(decode(broken), None, "{broken}");
        }
    }

    #[test]
    fn tokens_that_are_none() {
        let of = |head: &str, payload: &str| {
            format!("{}.{}.Zg", encode(head.as_bytes()), encode(payload.as_bytes()))
        };
        let rs = r#"{"alg":"RS256"}"#;
        for (text, fault) in [
            (String::new(), Fault::BadFormat),
            ("a.b".to_owned(), Fault::BadFormat),
            ("a.b.c.d".to_owned(), Fault::BadFormat),
            ("a..c".to_owned(), Fault::BadFormat),
            ("a.b.c".to_owned(), Fault::HeaderBase64),
            (of("{", "{}"), Fault::HeaderJson),
            (of("[]", "{}"), Fault::HeaderJson),
            (of("{}", "{}"), Fault::HeaderAlgorithm),
            (of(r#"{"alg":"none"}"#, "{}"), Fault::UnknownAlgorithm),
            (of(r#"{"alg":"RS256","kid":1}"#, "{}"), Fault::HeaderKeyId),
            (of(rs, "[]"), Fault::PayloadJson),
            (of(rs, r#"{"iss":1}"#), Fault::Issuer),
            (of(rs, r#"{"exp":"x"}"#), Fault::Expiration),
            (of(rs, r#"{"nbf":-5}"#), Fault::NotBefore),
            (of(rs, r#"{"aud":[1]}"#), Fault::Audience),
            (of(rs, "{}").replace(".Zg", ".!!"), Fault::SignatureBase64),
        ] {
            assert_eq!(Token::parse(&text).map(|_| ()), Err(fault), "{text}");
        }
        let token = Token::parse(&of(rs, r#"{"aud":"a","exp":12.7}"#)).unwrap();
        assert_eq!((token.audiences, token.expires), (vec!["a".to_owned()], 12));
    }
}
