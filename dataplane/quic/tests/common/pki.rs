//! A certificate authority, a server and a client.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};

pub struct Pki {
    issuer: CertifiedIssuer<'static, KeyPair>,
    server: Identity,
    client: Identity,
}

pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl Identity {
    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }
}

impl Pki {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let server = issue(&issuer, "server.test", "spiffe://test/server");
        let client = issue(&issuer, "client.test", "spiffe://test/client");
        Self { issuer, server, client }
    }

    /// The same authority with new certificates.
    pub fn renew(&mut self) {
        self.server = issue(&self.issuer, "server.test", "spiffe://test/server");
    }

    pub fn server_chain(&self) -> &[CertificateDer<'static>] {
        &self.server.chain
    }

    pub fn client_chain(&self) -> &[CertificateDer<'static>] {
        &self.client.chain
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        Arc::new(roots)
    }

    /// Asks for client certificates.
    pub fn server_tls(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots(), provider.clone()).build().unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.server.chain.clone(), self.server.key())
            .unwrap();
        config.alpn_protocols = vec![b"h3".to_vec()];
        Arc::new(config)
    }

    pub fn client_tls(&self) -> Arc<ClientConfig> {
        self.client_tls_of(Some(self))
    }

    /// Trusts this authority and shows the certificate of another, or none.
    pub fn client_tls_of(&self, other: Option<&Self>) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(self.roots());
        let mut config = match other {
            Some(other) => {
                builder.with_client_auth_cert(other.client.chain.clone(), other.client.key()).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h3".to_vec()];
        Arc::new(config)
    }
}

fn issue(issuer: &CertifiedIssuer<'static, KeyPair>, name: &str, uri: &str) -> Identity {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, issuer).unwrap();
    Identity { chain: vec![certificate.der().clone()], key: PrivatePkcs8KeyDer::from(key.serialize_der()) }
}
