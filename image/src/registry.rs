//! Speaking to a registry: endpoints, authentication, retries, and the requests of the OCI distribution specification.
//!
//! ```text
//! request ──401──▶ WWW-Authenticate ─┬─ Basic  ─▶ user and password ─┐
//!                                    └─ Bearer ─▶ token from realm ──┴─▶ request again, once
//! ```
//!
//! Written on reqwest rather than oci-client: that reads answers of any size into memory, hides failed authentication, and
//! leaves no room for resuming a download with the hash of what is there. Credentials go to the registry and the realm it
//! names, never along a redirect to another host (CVE-2020-15157), and never from TLS to plain HTTP.

use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode, Url};
use serde::Deserialize;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{DOCKER_LIST, DOCKER_MANIFEST, MAX_DOCUMENT_BYTES, OCI_INDEX, OCI_MANIFEST};
use crate::reference::Reference;
use crate::store::{Options, guard};

/// The actions a token is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Pull,
    Push,
}

/// A connection to one repository of one registry.
pub(crate) struct Registry {
    client: Client,
    base: Url,
    repository: String,
    access: Access,
    credentials: Credentials,
    /// The `Authorization` that worked last.
    authorization: Mutex<Option<String>>,
    attempts: u32,
    first_delay: Duration,
}

/// A manifest or index as it came.
pub(crate) struct Fetched {
    pub bytes: Vec<u8>,
    pub digest: Digest,
    pub content_type: String,
}

mod auth;

pub use auth::Credentials;
use auth::challenges;

const MAX_ERROR_BYTES: usize = 64 * 1024;
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

impl Registry {
    /// Finds out how the registry is spoken to. Insecure ones are tried with TLS (any certificate) before plain HTTP, as
    /// Docker does.
    pub(crate) async fn connect(
        reference: &Reference,
        access: Access,
        credentials: Credentials,
        options: &Options,
    ) -> Result<Self> {
        let domain = reference.domain();
        let host = if domain == "docker.io" {
            "registry-1.docker.io"
        } else {
            domain
        };
        let insecure = is_insecure(domain, &options.insecure_registries);
        let registry = |scheme: &str| -> Result<Registry> {
            let base = format!("{scheme}://{host}/");
            Ok(Registry {
                client: client(options, insecure && scheme == "https")?,
                base: Url::parse(&base)
                    .map_err(|e| Error::Registry(format!("invalid registry {host}: {e}")))?,
                repository: reference.path().to_owned(),
                access,
                credentials: credentials.clone(),
                authorization: Mutex::new(None),
                attempts: options.patience.attempts.max(1),
                first_delay: options.patience.first_delay,
            })
        };
        if !insecure {
            return registry("https");
        }
        let tls = registry("https")?;
        match tls.client.get(tls.url("v2/")?).send().await {
            Ok(_) => Ok(tls),
            Err(_) => registry("http"),
        }
    }

    /// Whether the registry accepts the credentials.
    pub(crate) async fn ping(&self) -> Result<()> {
        let response = self.send(Method::GET, self.url("v2/")?, |r| r).await?;
        expect(response, &[StatusCode::OK], || "login".into())
            .await
            .map(drop)
    }

    /// The manifest or index of a tag or digest, as it came, with its own digest computed.
    pub(crate) async fn manifest(&self, tag_or_digest: &str) -> Result<Fetched> {
        let url = self.url(&format!("v2/{}/manifests/{tag_or_digest}", self.repository))?;
        let accept = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST].join(", ");
        self.retrying(|| async {
            let response = self
                .send(Method::GET, url.clone(), |r| r.header(ACCEPT, &accept))
                .await?;
            let response = expect(response, &[StatusCode::OK], || {
                format!("manifest for {}:{tag_or_digest} not found", self.repository)
            })
            .await?;
            let header = |name: &str| {
                response
                    .headers()
                    .get(name)
                    .and_then(|v| v.to_str().ok())
                    .map(str::to_owned)
            };
            let content_type = header(CONTENT_TYPE.as_str()).unwrap_or_default();
            let promised = header("docker-content-digest");
            let bytes = body(response, MAX_DOCUMENT_BYTES as usize).await?;
            let digest = Digest::of(&bytes);
            let wanted = tag_or_digest.parse::<Digest>().ok();
            let promised = promised.and_then(|d| d.parse::<Digest>().ok());
            for expected in [wanted, promised].into_iter().flatten() {
                if expected != digest {
                    return Err(Error::DigestMismatch {
                        what: "the manifest".into(),
                        expected,
                        actual: digest,
                    });
                }
            }
            let content_type = content_type
                .split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .to_owned();
            Ok(Fetched {
                bytes,
                digest,
                content_type,
            })
        })
        .await
    }

    /// A small blob, verified.
    pub(crate) async fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.retrying(|| async {
            let response = self.blob(digest, 0).await?;
            let bytes = body(response, MAX_DOCUMENT_BYTES as usize).await?;
            let actual = Digest::of(&bytes);
            if actual != *digest {
                let expected = digest.clone();
                return Err(Error::DigestMismatch {
                    what: "the image's configuration".into(),
                    expected,
                    actual,
                });
            }
            Ok(bytes)
        })
        .await
    }

    /// A blob's bytes from `offset` on: 206 when the registry honours it, 200 from the start otherwise. One attempt.
    pub(crate) async fn blob(&self, digest: &Digest, offset: u64) -> Result<Response> {
        let url = self.blob_url(digest)?;
        let response = self
            .send(Method::GET, url, |r| match offset {
                0 => r,
                offset => r.header("range", format!("bytes={offset}-")),
            })
            .await?;
        let fine = [
            StatusCode::OK,
            StatusCode::PARTIAL_CONTENT,
            StatusCode::RANGE_NOT_SATISFIABLE,
        ];
        expect(response, &fine, || format!("blob {digest} not found")).await
    }

    /// Whether the repository has a blob.
    pub(crate) async fn has_blob(&self, digest: &Digest) -> Result<bool> {
        let url = self.blob_url(digest)?;
        self.retrying(|| async {
            let response = self.send(Method::HEAD, url.clone(), |r| r).await?;
            match response.status() {
                StatusCode::OK => Ok(true),
                StatusCode::NOT_FOUND => Ok(false),
                _ => expect(response, &[], String::new).await.map(|_| false),
            }
        })
        .await
    }

    /// Begins an upload, or is spared it when the blob could be mounted from another repository: `None`.
    pub(crate) async fn begin_upload(
        &self,
        digest: &Digest,
        mount_from: Option<&str>,
    ) -> Result<Option<Url>> {
        let mut url = self.url(&format!("v2/{}/blobs/uploads/", self.repository))?;
        if let Some(from) = mount_from {
            url.query_pairs_mut()
                .append_pair("mount", digest.as_str())
                .append_pair("from", from);
        }
        let response = self
            .send(Method::POST, url.clone(), |r| r.header("content-length", 0))
            .await?;
        let fine = [StatusCode::CREATED, StatusCode::ACCEPTED];
        let response = expect(response, &fine, || {
            "the registry takes no uploads here".into()
        })
        .await?;
        if response.status() == StatusCode::CREATED {
            return Ok(None);
        }
        let location = response
            .headers()
            .get(LOCATION)
            .and_then(|l| l.to_str().ok());
        let location = location
            .ok_or_else(|| Error::Registry("the registry does not say where to upload".into()))?;
        let location = url
            .join(location)
            .map_err(|e| Error::Registry(format!("an invalid upload location: {e}")))?;
        Ok(Some(location))
    }

    /// Uploads a whole blob to a begun upload.
    pub(crate) async fn upload(
        &self,
        mut location: Url,
        digest: &Digest,
        size_bytes: u64,
        body: reqwest::Body,
    ) -> Result<()> {
        location
            .query_pairs_mut()
            .append_pair("digest", digest.as_str());
        let body = Mutex::new(Some(body));
        // The authorization is fresh from beginning the upload: a stream cannot be sent twice.
        let response = self
            .send_once(Method::PUT, location, |r| {
                let r = r
                    .header(CONTENT_TYPE, "application/octet-stream")
                    .header("content-length", size_bytes);
                match guard(&body).take() {
                    Some(body) => r.body(body),
                    None => r,
                }
            })
            .await?;
        expect(
            response,
            &[StatusCode::CREATED, StatusCode::NO_CONTENT],
            || "upload not found".into(),
        )
        .await
        .map(drop)
    }

    /// Publishes a manifest under a tag.
    pub(crate) async fn put_manifest(
        &self,
        tag: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<()> {
        let url = self.url(&format!("v2/{}/manifests/{tag}", self.repository))?;
        self.retrying(|| async {
            let send = |r: reqwest::RequestBuilder| {
                r.header(CONTENT_TYPE, media_type).body(bytes.to_vec())
            };
            let response = self.send(Method::PUT, url.clone(), send).await?;
            let fine = [StatusCode::CREATED, StatusCode::OK, StatusCode::ACCEPTED];
            expect(response, &fine, || "repository not found".into())
                .await
                .map(drop)
        })
        .await
    }

    /// Attempts again what may get better by itself, with growing pauses.
    pub(crate) async fn retrying<T, F>(&self, attempt: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut failed = 0;
        loop {
            match attempt().await {
                Ok(done) => return Ok(done),
                Err(error) => {
                    failed += 1;
                    match self.pause_after(&error, failed) {
                        Some(pause) => tokio::time::sleep(pause).await,
                        None => return Err(error),
                    }
                }
            }
        }
    }

    /// How long to wait after the `failed`th failure in a row; `None` to give up.
    pub(crate) fn pause_after(&self, error: &Error, failed: u32) -> Option<Duration> {
        let Error::Registry(message) = error else {
            return None;
        };
        if failed >= self.attempts {
            return None;
        }
        tracing::debug!(%message, failed, "the registry failed, trying again");
        Some(self.first_delay * 2_u32.saturating_pow(failed - 1))
    }

    fn url(&self, path: &str) -> Result<Url> {
        self.base
            .join(path)
            .map_err(|e| Error::Registry(format!("invalid path {path}: {e}")))
    }

    fn blob_url(&self, digest: &Digest) -> Result<Url> {
        self.url(&format!("v2/{}/blobs/{digest}", self.repository))
    }

    /// Sends a request, authenticating when the registry asks for it.
    async fn send(
        &self,
        method: Method,
        url: Url,
        prepare: impl Fn(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
    ) -> Result<Response> {
        let response = self
            .send_once(method.clone(), url.clone(), &prepare)
            .await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let challenges = challenges(response.headers());
        let Some(authorization) = self.authorize(&challenges).await? else {
            return Ok(response);
        };
        *guard(&self.authorization) = Some(authorization);
        self.send_once(method, url, &prepare).await
    }

    async fn send_once(
        &self,
        method: Method,
        url: Url,
        prepare: impl Fn(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
    ) -> Result<Response> {
        let at_home = url.origin() == self.base.origin();
        let mut request = prepare(self.client.request(method, url));
        let authorization = guard(&self.authorization).clone();
        if let Some(authorization) = authorization.filter(|_| at_home) {
            request = request.header(AUTHORIZATION, authorization);
        }
        let response = request.send().await.map_err(transport)?;
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            let after = response
                .headers()
                .get(RETRY_AFTER)
                .and_then(|v| v.to_str().ok()?.parse().ok());
            if let Some(seconds) = after {
                tokio::time::sleep(Duration::from_secs(seconds).min(MAX_RETRY_AFTER)).await;
            }
        }
        Ok(response)
    }
}

fn client(options: &Options, any_certificate: bool) -> Result<Client> {
    // Someone may have chosen a provider already; any will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .user_agent(concat!("caisson/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(options.patience.connect_timeout)
        .read_timeout(options.patience.read_timeout)
        .danger_accept_invalid_certs(any_certificate)
        .build()
        .map_err(|e| Error::Registry(format!("cannot set up HTTP: {}", chain(&e))))
}

/// Loopback addresses, and what was configured: a host with its port, a host, or a block of addresses.
fn is_insecure(domain: &str, configured: &[String]) -> bool {
    let host = match domain
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((address, _)) => address,
        None => domain.split(':').next().unwrap_or(domain),
    };
    let address: Option<IpAddr> = host.parse().ok();
    if host == "localhost" || address.is_some_and(|a| a.is_loopback()) {
        return true;
    }
    configured.iter().any(|entry| {
        entry == domain || entry == host || address.is_some_and(|address| in_block(address, entry))
    })
}

fn in_block(address: IpAddr, block: &str) -> bool {
    let Some((network, bits)) = block.split_once('/') else {
        return false;
    };
    let (Ok(network), Ok(bits)) = (network.parse::<IpAddr>(), bits.parse::<u32>()) else {
        return false;
    };
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            a.to_bits() & mask == n.to_bits() & mask
        }
        (IpAddr::V6(a), IpAddr::V6(n)) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            a.to_bits() & mask == n.to_bits() & mask
        }
        _ => false,
    }
}

/// Passes answers with these statuses; makes an error of all others, in the registry's words.
async fn expect(
    response: Response,
    fine: &[StatusCode],
    absent: impl FnOnce() -> String,
) -> Result<Response> {
    let status = response.status();
    if fine.contains(&status) {
        return Ok(response);
    }
    let host = response.url().host_str().unwrap_or_default().to_owned();
    let bytes = body_prefix(response).await;
    let told = registry_words(&bytes);
    Err(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let told = told.unwrap_or_else(|| "authentication required".into());
            Error::Unauthorized(format!("{host}: {told}"))
        }
        StatusCode::NOT_FOUND => match told {
            Some(told) => Error::NotInRegistry(format!("{}: {told}", absent())),
            None => Error::NotInRegistry(absent()),
        },
        status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
            let told = told.unwrap_or_else(|| "no reason given".into());
            Error::InvalidImage(format!("{host} refused the request with {status}: {told}"))
        }
        status => {
            let told = told.map(|t| format!(": {t}")).unwrap_or_default();
            Error::Registry(format!("{host} answered {status}{told}"))
        }
    })
}

/// `manifest unknown: manifest unknown`, from the registry's error document.
fn registry_words(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Document {
        #[serde(default)]
        errors: Vec<Entry>,
        #[serde(default)]
        details: Option<String>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let document: Document = serde_json::from_slice(bytes).ok()?;
    let words: Vec<String> = document
        .errors
        .iter()
        .map(|e| format!("{}: {}", e.code.to_lowercase().replace('_', " "), e.message))
        .collect();
    if words.is_empty() {
        document.details
    } else {
        Some(words.join(", "))
    }
}

async fn body_prefix(response: Response) -> Vec<u8> {
    let mut stream = response.bytes_stream();
    let mut bytes = Vec::new();
    while let Some(Ok(chunk)) = stream.next().await {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_ERROR_BYTES {
            break;
        }
    }
    bytes
}

async fn body(response: Response, limit: usize) -> Result<Vec<u8>> {
    let mut stream = response.bytes_stream();
    let mut bytes: Vec<u8> = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk: Bytes = chunk.map_err(transport)?;
        if bytes.len() + chunk.len() > limit {
            return Err(Error::InvalidImage(format!(
                "the registry sent a document of more than {limit} bytes"
            )));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// A connection's failure with all its causes: the outermost alone says only that something failed.
pub(crate) fn transport(error: reqwest::Error) -> Error {
    Error::Registry(chain(&error))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_and_what_was_configured() {
        let configured = [
            "reg.local:5000".to_owned(),
            "10.0.0.0/8".into(),
            "plain.example".into(),
        ];
        for (domain, expected) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.9.9.9", true),
            ("[::1]:5000", true),
            ("reg.local:5000", true),
            ("reg.local:5001", false),
            ("10.20.30.40:1", true),
            ("11.0.0.1", false),
            ("plain.example:80", true),
            ("docker.io", false),
            ("localhost.evil.example", false),
        ] {
            assert_eq!(is_insecure(domain, &configured), expected, "{domain}");
        }
    }
}
