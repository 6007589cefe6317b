//! TLS of TCP sockets: certificates from PEM files; client certificates checked when `--tlsverify` asks for it.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::settings::TlsSettings;

/// An acceptor for the settings.
pub fn acceptor(settings: &TlsSettings) -> Result<TlsAcceptor, String> {
    let certificates = read_certificates(&settings.cert)?;
    let key = read_key(&settings.key)?;
    let builder = ServerConfig::builder();
    let builder = if settings.verify {
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(&settings.ca)? {
            roots
                .add(certificate)
                .map_err(|e| format!("{} holds a bad certificate: {e}", settings.ca.display()))?;
        }
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
            .build()
            .map_err(|e| format!("cannot verify clients with {}: {e}", settings.ca.display()))?;
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder.with_single_cert(certificates, key).map_err(|e| {
        format!(
            "{} and {} do not fit: {e}",
            settings.cert.display(),
            settings.key.display()
        )
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn open(path: &Path) -> Result<std::io::BufReader<std::fs::File>, String> {
    let file =
        std::fs::File::open(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    Ok(std::io::BufReader::new(file))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Vec<_> = rustls_pemfile::certs(&mut open(path)?)
        .collect::<Result<_, _>>()
        .map_err(|e| format!("cannot read certificates from {}: {e}", path.display()))?;
    if found.is_empty() {
        return Err(format!("{} holds no certificate", path.display()));
    }
    Ok(found)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    rustls_pemfile::private_key(&mut open(path)?)
        .map_err(|e| format!("cannot read a key from {}: {e}", path.display()))?
        .ok_or_else(|| format!("{} holds no private key", path.display()))
}
