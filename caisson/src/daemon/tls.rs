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

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::pki_types::ServerName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsConnector;

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn authority() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key"))
            .expect("certificate")
    }

    /// A certificate for `localhost` and its key, as PEM.
    fn issue(authority: &Authority) -> (String, String) {
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, authority).expect("certificate");
        (certificate.pem(), key.serialize_pem())
    }

    async fn greeting(
        acceptor: TlsAcceptor,
        authority: &Authority,
        client: Option<(String, String)>,
    ) -> std::io::Result<u8> {
        let (near, far) = tokio::io::duplex(16 << 10);
        let serving = tokio::spawn(async move {
            let mut stream = acceptor.accept(far).await?;
            stream.write_all(b"!").await?;
            stream.shutdown().await
        });
        let mut roots = RootCertStore::empty();
        roots
            .add(authority.der().clone())
            .expect("good certificate");
        let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
        let config = match client {
            Some((certificate, key)) => {
                let chain = rustls_pemfile::certs(&mut certificate.as_bytes())
                    .collect::<Result<_, _>>()
                    .expect("PEM");
                let key = rustls_pemfile::private_key(&mut key.as_bytes())
                    .expect("PEM")
                    .expect("a key");
                builder.with_client_auth_cert(chain, key).expect("they fit")
            }
            None => builder.with_no_client_auth(),
        };
        let name = ServerName::try_from("localhost").expect("a name");
        let mut stream = TlsConnector::from(Arc::new(config))
            .connect(name, near)
            .await?;
        let byte = stream.read_u8().await;
        serving.await.expect("no panic")?;
        byte
    }

    #[tokio::test]
    async fn only_clients_of_the_authority_get_in() {
        // Another test may have installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().expect("temporary directory");
        let ours = authority();
        let (certificate, key) = issue(&ours);
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("write");
            path
        };
        let settings = TlsSettings {
            verify: true,
            ca: file("ca.pem", &ours.pem()),
            cert: file("cert.pem", &certificate),
            key: file("key.pem", &key),
        };
        let strict = acceptor(&settings).expect("good files");
        assert_eq!(
            greeting(strict.clone(), &ours, Some(issue(&ours)))
                .await
                .expect("known client"),
            b'!'
        );
        assert!(
            greeting(strict.clone(), &ours, None).await.is_err(),
            "no certificate"
        );
        assert!(
            greeting(strict, &ours, Some(issue(&authority())))
                .await
                .is_err(),
            "someone else's certificate"
        );
        let open = acceptor(&TlsSettings {
            verify: false,
            ..settings
        })
        .expect("good files");
        assert_eq!(
            greeting(open, &ours, None).await.expect("nobody asks"),
            b'!'
        );
    }

    #[test]
    fn missing_and_wrong_files_are_named() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let missing = dir.path().join("nothing.pem");
        let settings = TlsSettings {
            verify: true,
            ca: missing.clone(),
            cert: missing.clone(),
            key: missing,
        };
        assert!(
            acceptor(&settings)
                .err()
                .expect("refused")
                .contains("nothing.pem")
        );
    }
}
