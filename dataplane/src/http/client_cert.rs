//! `x-forwarded-client-cert`: what upstreams are told of the client's certificate.

use culvert_model::{ClientCertDetails, ForwardClientCert};
use culvert_proto::Headers;

use crate::tls::{PeerCertificate, TlsInfo, hex, url_encoded};

const NAME: &str = "x-forwarded-client-cert";

/// Removes, forwards, replaces or extends the header.
pub(super) fn apply(
    headers: &mut Headers,
    policy: ForwardClientCert,
    details: ClientCertDetails,
    tls: Option<&TlsInfo>,
) {
    if policy == ForwardClientCert::Always {
        return;
    }
    let peer = tls.and_then(|tls| Some((tls, tls.peer.as_ref()?)));
    let Some((tls, peer)) = peer.filter(|_| policy != ForwardClientCert::Sanitize) else {
        headers.remove(NAME);
        return;
    };
    match policy {
        ForwardClientCert::Append => headers.append(NAME, element(tls, peer, details)),
        ForwardClientCert::Set => headers.set(NAME, element(tls, peer, details)),
        ForwardClientCert::Always | ForwardClientCert::Forward | ForwardClientCert::Sanitize => {}
    }
}

fn element(tls: &TlsInfo, peer: &PeerCertificate, details: ClientCertDetails) -> String {
    let mut parts = Vec::new();
    if let Some(own) = tls.local.as_ref().and_then(|local| local.uri_sans.first()) {
        parts.push(format!("By={own}"));
    }
    parts.push(format!("Hash={}", hex(&peer.leaf.sha256)));
    if details.cert {
        parts.push(format!("Cert=\"{}\"", url_encoded(&peer.pem())));
    }
    if details.chain {
        parts.push(format!("Chain=\"{}\"", url_encoded(&peer.chain_pem())));
    }
    if details.subject {
        parts.push(format!("Subject=\"{}\"", peer.leaf.subject));
    }
    if details.uri {
        match peer.leaf.uri_sans.as_slice() {
            [] => parts.push("URI=".to_owned()),
            sans => parts.extend(sans.iter().map(|san| format!("URI={san}"))),
        }
    }
    if details.dns {
        parts.extend(peer.leaf.dns_sans.iter().map(|san| format!("DNS={san}")));
    }
    parts.join(";")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::CertificateInfo;

    fn info() -> TlsInfo {
        let leaf = CertificateInfo {
            uri_sans: vec!["spiffe://td/one".to_owned(), "spiffe://td/two".to_owned()],
            dns_sans: vec!["a.test".to_owned()],
            subject: "CN=cl,O=Org\\, X".to_owned(),
            sha256: [0xab; 32],
            ..CertificateInfo::default()
        };
        let own =
            CertificateInfo { uri_sans: vec!["spiffe://td/own".to_owned()], ..CertificateInfo::default() };
        let peer = PeerCertificate { leaf, intermediates: Vec::new() };
        let mut info = TlsInfo::default();
        (info.peer, info.local) = (Some(peer), Some(own.into()));
        info
    }

    fn after(policy: ForwardClientCert, tls: Option<&TlsInfo>) -> Option<String> {
        let mut headers = Headers::new();
        headers.push(NAME, "By=x");
        let details =
            ClientCertDetails { dns: true, subject: true, uri: true, ..ClientCertDetails::default() };
        apply(&mut headers, policy, details, tls);
        headers.get(NAME).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    #[test]
    fn each_policy_does_what_it_says() {
        let tls = info();
        let own = format!(
            "By=spiffe://td/own;Hash={};Subject=\"CN=cl,O=Org\\, X\";URI=spiffe://td/one;URI=spiffe://td/two;DNS=a.test",
            "ab".repeat(32)
        );
        assert_eq!(after(ForwardClientCert::Set, Some(&tls)), Some(own.clone()));
        assert_eq!(after(ForwardClientCert::Append, Some(&tls)), Some(format!("By=x,{own}")));
        assert_eq!(after(ForwardClientCert::Forward, Some(&tls)).as_deref(), Some("By=x"));
        assert_eq!(after(ForwardClientCert::Sanitize, Some(&tls)), None);
        let mut nobody = tls.clone();
        nobody.peer = None;
        for policy in [ForwardClientCert::Set, ForwardClientCert::Append, ForwardClientCert::Forward] {
            assert_eq!((after(policy, Some(&nobody)), after(policy, None)), (None, None), "{policy:?}");
        }
        assert_eq!(after(ForwardClientCert::Always, None).as_deref(), Some("By=x"));
    }
}
