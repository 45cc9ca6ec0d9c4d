//! Certificates, keys and revocation lists: whether a TLS context can be made of them.
//!
//! What is part of a resource makes the resource invalid when it cannot be used. A file may be half of a rotation, or
//! be put right later: that is said, and the last good one serves on.

use std::borrow::Cow;

use culvert_model::SecretData;
use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};
use webpki::OwnedCertRevocationList;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{NoteKind, at::At};

/// What is wrong with bytes that hold none of what they should.
pub(crate) const NOT_PEM: &str = "it is not PEM";

/// `certificate_chain` with its `private_key`.
pub(super) fn identity(at: &At<'_>, chain: &SecretData, key: &SecretData) -> Option<()> {
    let (at_chain, at_key) = (at.field("certificate_chain"), at.field("private_key"));
    let read_chain = read(&at_chain, chain, |bytes| certificates(bytes).and_then(leaf_key));
    let read_key = read(&at_key, key, public_key);
    match (read_chain?, read_key?) {
        (Some(Some(ours)), Some(Some(its))) if ours != its => {
            complain(&at_key, key, "it does not belong to the certificate")
        }
        _ => Some(()),
    }
}

/// `trusted_ca`, or the bundle of a trust domain.
pub(super) fn trust(at: &At<'_>, bundle: &SecretData) -> Option<()> {
    read(at, bundle, |bytes| {
        for (index, certificate) in certificates(bytes)?.iter().enumerate() {
            webpki::anchor_from_trusted_cert(certificate)
                .map_err(|error| numbered("certificate", index, error))?;
        }
        lists(bytes)
    })
    .map(drop)
}

/// `crl`
pub(super) fn revocation(at: &At<'_>, list: &SecretData) -> Option<()> {
    read(at, list, |bytes| match lists(bytes)? {
        0 => Err(none(bytes, "revocation list")),
        count => Ok(count),
    })
    .map(drop)
}

/// What `parse` makes of the data; `Some(None)` for a file that cannot be used now.
fn read<T>(
    at: &At<'_>,
    data: &SecretData,
    parse: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Option<Option<T>> {
    let bytes: Cow<'_, [u8]> = match data {
        SecretData::Inline(bytes) => Cow::Borrowed(bytes),
        SecretData::File(path) => match std::fs::read(path) {
            Ok(bytes) => Cow::Owned(bytes),
            // That it cannot be read was said already.
            Err(_) => return Some(None),
        },
    };
    match parse(&bytes) {
        Ok(parsed) => Some(Some(parsed)),
        Err(reason) => complain(at, data, &reason).map(|()| None),
    }
}

fn complain(at: &At<'_>, data: &SecretData, reason: &str) -> Option<()> {
    match data {
        SecretData::Inline(_) => at.error(reason),
        SecretData::File(path) => {
            let text = format!("{path:?} cannot be used now: {reason}");
            at.field("filename").note(NoteKind::Warning, text);
            Some(())
        }
    }
}

fn certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let found = found.map_err(|error| format!("malformed PEM: {error}"))?;
    if found.is_empty() { Err(none(bytes, "certificate")) } else { Ok(found) }
}

/// The public key (SubjectPublicKeyInfo) of the first certificate; all of them have to be certificates.
fn leaf_key(chain: Vec<CertificateDer<'static>>) -> Result<Option<Vec<u8>>, String> {
    let mut first = None;
    for (index, der) in chain.iter().enumerate() {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| numbered("certificate", index, error))?;
        first.get_or_insert_with(|| certificate.public_key().raw.to_vec());
    }
    Ok(first)
}

/// The public half of a private key, where it can be told.
fn public_key(bytes: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let key = PrivateKeyDer::from_pem_slice(bytes).map_err(|error| match error {
        pem::Error::NoItemsFound => none(bytes, "private key that can be read"),
        error => format!("malformed PEM: {error}"),
    })?;
    let key = any_supported_type(&key).map_err(|error| error.to_string())?;
    Ok(key.public_key().map(|key| key.to_vec()))
}

/// How many revocation lists there are, all of which can be used.
fn lists(bytes: &[u8]) -> Result<usize, String> {
    let mut count = 0;
    for der in CertificateRevocationListDer::pem_slice_iter(bytes) {
        let der = der.map_err(|error| format!("malformed PEM: {error}"))?;
        OwnedCertRevocationList::from_der(&der).map_err(|error| numbered("revocation list", count, error))?;
        count += 1;
    }
    Ok(count)
}

fn numbered(what: &str, index: usize, error: impl std::fmt::Display) -> String {
    format!("{what} {} cannot be used: {error}", index + 1)
}

fn none(bytes: &[u8], what: &str) -> String {
    const BEGIN: &[u8] = b"-----BEGIN ";
    match bytes.windows(BEGIN.len()).any(|window| window == BEGIN) {
        true => format!("no {what} in it"),
        false => NOT_PEM.to_owned(),
    }
}
