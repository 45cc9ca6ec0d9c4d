//! JSON Web Key Sets (RFC 7517), and signatures by them.

use aws_lc_rs::{hmac, signature};
use serde_json::{Map, Value};

use super::token::{Fault, Token, decode};

/// A set of keys.
#[derive(Debug)]
pub(super) struct Keys(Vec<Key>);

#[derive(Debug)]
struct Key {
    /// Empty for none.
    id: String,
    /// Empty for none.
    algorithm: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// A curve's name, and the point, uncompressed.
    Ec(String, Vec<u8>),
    /// Ed25519.
    Ed(Vec<u8>),
    Oct(Vec<u8>),
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
}

impl Keys {
    /// Reads a set. Keys of other kinds are left out.
    ///
    /// # Errors
    /// It is no set, or has no key that can be used.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Fault> {
        let set: Value = serde_json::from_slice(text).map_err(|_| Fault::NoKeys)?;
        let list = set.get("keys").and_then(Value::as_array).ok_or(Fault::NoKeys)?;
        let keys: Vec<_> = list.iter().filter_map(|key| Key::parse(key.as_object()?)).collect();
        if keys.is_empty() { Err(Fault::NoKeys) } else { Ok(Self(keys)) }
    }

    /// Whether one of the keys that may have signed the token has.
    ///
    /// # Errors
    /// None has, or there is none that may.
    pub(super) fn verify(&self, token: &Token) -> Result<(), Fault> {
        let mut fault = Fault::NoKey;
        for key in self.0.iter().filter(|key| key.may_have_signed(token)) {
            if key.kind.verify(token) {
                return Ok(());
            }
            fault = Fault::Verification;
        }
        Err(fault)
    }
}

impl Key {
    fn parse(key: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| key.get(name).and_then(Value::as_str);
        let bytes = |name: &str| text(name).and_then(decode).filter(|bytes| !bytes.is_empty());
        let kind = match text("kty")? {
            "RSA" => Kind::Rsa { n: bytes("n")?, e: bytes("e")? },
            "EC" => {
                let curve = text("crv")?;
                let size: usize = match curve {
                    "P-256" => 32,
                    "P-384" => 48,
                    "P-521" => 66,
                    _ => return None,
                };
                let mut point = vec![4];
                for name in ["x", "y"] {
                    let coordinate = bytes(name)?;
                    point.resize(point.len() + size.checked_sub(coordinate.len())?, 0);
                    point.extend_from_slice(&coordinate);
                }
                Kind::Ec(curve.to_owned(), point)
            }
            "OKP" if text("crv")? == "Ed25519" => Kind::Ed(bytes("x").filter(|key| key.len() == 32)?),
            "oct" => Kind::Oct(bytes("k")?),
            _ => return None,
        };
        let owned = |name: &str| text(name).unwrap_or_default().to_owned();
        Some(Self { id: owned("kid"), algorithm: owned("alg"), kind })
    }

    fn may_have_signed(&self, token: &Token) -> bool {
        (self.id.is_empty() || token.key_id.is_empty() || self.id == token.key_id)
            && (self.algorithm.is_empty() || self.algorithm == token.algorithm)
            && self.kind.knows(&token.algorithm)
    }
}

impl Kind {
    fn knows(&self, algorithm: &str) -> bool {
        match self {
            Self::Ec(curve, _) => matches!(
                (curve.as_str(), algorithm),
                ("P-256", "ES256") | ("P-384", "ES384") | ("P-521", "ES512")
            ),
            Self::Ed(_) => algorithm == "EdDSA",
            Self::Oct(_) => algorithm.starts_with("HS"),
            Self::Rsa { .. } => algorithm.starts_with("RS") || algorithm.starts_with("PS"),
        }
    }

    fn verify(&self, token: &Token) -> bool {
        let (signed, signature) = (token.signed.as_bytes(), token.signature.as_slice());
        match self {
            Self::Ec(curve, point) => {
                let algorithm = match curve.as_str() {
                    "P-256" => &signature::ECDSA_P256_SHA256_FIXED,
                    "P-384" => &signature::ECDSA_P384_SHA384_FIXED,
                    _ => &signature::ECDSA_P521_SHA512_FIXED,
                };
                signature::UnparsedPublicKey::new(algorithm, point).verify(signed, signature).is_ok()
            }
            Self::Ed(key) => {
                signature::UnparsedPublicKey::new(&signature::ED25519, key).verify(signed, signature).is_ok()
            }
            Self::Oct(secret) => {
                let algorithm = match token.algorithm.as_str() {
                    "HS256" => hmac::HMAC_SHA256,
                    "HS384" => hmac::HMAC_SHA384,
                    _ => hmac::HMAC_SHA512,
                };
                hmac::verify(&hmac::Key::new(algorithm, secret), signed, signature).is_ok()
            }
            Self::Rsa { n, e } => {
                let parameters = match token.algorithm.as_str() {
                    "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                    "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
                    "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
                    _ => &signature::RSA_PSS_2048_8192_SHA512,
                };
                signature::RsaPublicKeyComponents { n, e }.verify(parameters, signed, signature).is_ok()
            }
        }
    }
}
