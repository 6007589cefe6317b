//! Images on the move: pull, push, load, save, import; credentials on their way to a registry.

use std::path::Path;

use caisson_api as api;
use caisson_image::{Credentials, Loaded, Reference};
use caisson_runtime::TarStream;
use tokio_util::io::SyncIoBridge;

use super::{
    ImageImportOptions, ImagePullOptions, blocking, changes, event, feed, platform, reference,
    source, stored_config, view,
};
use crate::{Engine, Error, Feed, Result};

impl Engine {
    /// `POST /images/create?fromImage=`.
    pub async fn image_pull(&self, options: ImagePullOptions) -> Result<Feed<api::JsonMessage>> {
        let name = reference(&options.name, options.tag.as_deref())?;
        let platform = platform(options.platform.as_deref())?;
        let credentials = credentials(options.credentials.as_ref())?;
        let engine = self.clone();
        feed::feed(feed::as_status, move |progress| async move {
            let pulled = engine
                .store()
                .pull(&name, platform.as_ref(), credentials, progress)
                .await?;
            tracing::info!(image = %name, id = %pulled.id, newer = pulled.newer, "pulled");
            engine.publish(event("pull", &name.familiar(), &name.familiar_name(), None));
            Ok(Vec::new())
        })
        .await
    }

    /// `POST /images/NAME/push`; without a tag, every tag of the repository.
    pub async fn image_push(
        &self,
        name: &str,
        tag: Option<&str>,
        credentials_given: Option<api::AuthConfig>,
    ) -> Result<Feed<api::JsonMessage>> {
        let named: Reference = name.parse()?;
        let names = match tag {
            Some(tag) => vec![named.with_tag(tag)?],
            None if named.tag().is_some() || named.digest().is_some() => vec![named],
            None => self.tags_of(&named)?,
        };
        let credentials = credentials(credentials_given.as_ref())?;
        let engine = self.clone();
        feed::feed(feed::as_status, move |progress| async move {
            let mut closing = Vec::new();
            for name in names {
                let pushed = engine.store().push(&name, credentials.clone(), progress.clone()).await?;
                let aux = serde_json::json!({
                    "Tag": pushed.tag, "Digest": pushed.digest.to_string(), "Size": pushed.size_bytes
                });
                closing.push(api::JsonMessage {
                    progress_detail: Some(api::ProgressDetail::default()),
                    aux: Some(aux),
                    ..Default::default()
                });
                engine.publish(event("push", &name.familiar(), &name.familiar_name(), None));
            }
            Ok(closing)
        })
        .await
    }

    /// Every name that this repository has here.
    fn tags_of(&self, repository: &Reference) -> Result<Vec<Reference>> {
        let images = self.store().list();
        let tags = images
            .iter()
            .flat_map(|image| &image.repo_tags)
            .filter_map(|tag| tag.parse::<Reference>().ok());
        let names: Vec<_> = tags.filter(|tag| tag.name() == repository.name()).collect();
        if names.is_empty() {
            let shown = repository.name();
            return Err(Error::not_found(format!(
                "An image does not exist locally with the tag: {shown}"
            )));
        }
        Ok(names)
    }

    /// `POST /images/load`; docker-archive or OCI layout, compressed or not.
    pub async fn image_load(
        &self,
        archive: TarStream,
        quiet: bool,
    ) -> Result<Feed<api::JsonMessage>> {
        let engine = self.clone();
        feed::feed(feed::as_stream, move |progress| async move {
            let progress = if quiet {
                caisson_image::silent()
            } else {
                progress
            };
            let loaded = engine
                .store()
                .load(SyncIoBridge::new(archive), progress)
                .await?;
            Ok(engine.announce_loaded(&loaded))
        })
        .await
    }

    /// Events and Docker's closing lines of a load.
    fn announce_loaded(&self, loaded: &[Loaded]) -> Vec<api::JsonMessage> {
        let mut lines = Vec::new();
        for one in loaded {
            let id = one.id.to_string();
            if one.references.is_empty() {
                lines.push(api::JsonMessage::stream(&format!(
                    "Loaded image ID: {id}\n"
                )));
                self.publish(event("load", &id, &id, None));
            }
            for name in &one.references {
                lines.push(api::JsonMessage::stream(&format!(
                    "Loaded image: {}\n",
                    name.familiar()
                )));
                self.publish(event("load", &id, &name.familiar(), None));
            }
        }
        lines
    }

    /// Loads the embedded image unless this data root has done so before; answers whether it did. A removed default image
    /// stays removed.
    pub async fn load_default_image(
        &self,
        reference: &str,
        archive: &'static [u8],
    ) -> Result<bool> {
        let marker = self.config().data_root.join("default-image");
        if marker.exists() {
            return Ok(false);
        }
        self.store().load(archive, caisson_image::silent()).await?;
        let text = format!("{reference}\n");
        blocking(move || write_durably(&marker, text.as_bytes())).await?;
        Ok(true)
    }

    /// `POST /images/create?fromSrc=-`; the stream is plain tar.
    pub async fn image_import(
        &self,
        tar: TarStream,
        options: ImageImportOptions,
    ) -> Result<Feed<api::JsonMessage>> {
        let tag = options
            .repository
            .as_deref()
            .map(|name| reference(name, options.tag.as_deref()))
            .transpose()?;
        let mut config = api::ContainerConfig::default();
        changes::apply(&mut config, &options.changes)?;
        let import = caisson_image::Import {
            config: stored_config(&config)?,
            message: if options.message.is_empty() {
                "Imported from -".into()
            } else {
                options.message
            },
            platform: platform(options.platform.as_deref())?,
            tag,
        };
        let engine = self.clone();
        feed::feed(feed::as_status, move |_| async move {
            // Docker draws no bars for an import; its client does.
            let id = engine
                .store()
                .import(SyncIoBridge::new(tar), import, caisson_image::silent())
                .await?;
            let id = id.to_string();
            engine.publish(event("import", &id, &id, None));
            Ok(vec![api::JsonMessage::status("", &id)])
        })
        .await
    }

    /// `GET /images/get`.
    pub async fn image_save(&self, names: Vec<String>) -> Result<TarStream> {
        let saving = self.store().prepare_save(&names)?;
        let (reader, writer) = tokio::io::duplex(256 << 10);
        let writer = SyncIoBridge::new(writer);
        let writing = tokio::spawn(saving.write(writer));
        for name in &names {
            if let Ok(image) = self.store().resolve(name) {
                self.image_event("save", &image, name);
            }
        }
        Ok(Box::pin(source::Produced::new(reader, writing)))
    }

    /// `GET /distribution/NAME/json`.
    pub async fn image_distribution(
        &self,
        name: &str,
        credentials_given: Option<api::AuthConfig>,
    ) -> Result<api::DistributionInspect> {
        let name = reference(name, None)?;
        let remote = self
            .store()
            .remote_image(&name, credentials(credentials_given.as_ref())?)
            .await?;
        let platform = |p: caisson_image::Platform| api::DistributionPlatform {
            architecture: p.architecture,
            os: p.os,
            variant: p.variant.unwrap_or_default(),
        };
        Ok(api::DistributionInspect {
            descriptor: api::DistributionDescriptor {
                media_type: remote.descriptor.media_type,
                digest: remote.descriptor.digest.to_string(),
                size: view::signed(remote.descriptor.size_bytes),
            },
            platforms: remote.platforms.into_iter().map(platform).collect(),
        })
    }

    /// `POST /auth`: whether a registry takes these credentials.
    pub async fn registry_login(&self, given: api::AuthConfig) -> Result<()> {
        let domain = registry_domain(&given.serveraddress);
        self.store()
            .login(&domain, credentials(Some(&given))?)
            .await?;
        Ok(())
    }
}

/// The host of a server address: `https://index.docker.io/v1/` and nothing at all are Docker Hub.
fn registry_domain(address: &str) -> String {
    let host = address
        .strip_prefix("https://")
        .or_else(|| address.strip_prefix("http://"))
        .unwrap_or(address);
    match host.split('/').next().unwrap_or_default() {
        "" | "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        host => host.to_owned(),
    }
}

/// Docker's credentials for the store; empty ones are none.
fn credentials(auth: Option<&api::AuthConfig>) -> Result<Credentials> {
    let Some(auth) = auth else {
        return Ok(Credentials::Anonymous);
    };
    if !auth.registrytoken.is_empty() {
        return Ok(Credentials::RegistryToken(auth.registrytoken.clone()));
    }
    if !auth.identitytoken.is_empty() {
        return Ok(Credentials::IdentityToken(auth.identitytoken.clone()));
    }
    let (username, password) = if auth.username.is_empty() && !auth.auth.is_empty() {
        decode_pair(&auth.auth).ok_or_else(|| {
            Error::invalid("the registry credentials are not base64 of USER:PASSWORD")
        })?
    } else {
        (auth.username.clone(), auth.password.clone())
    };
    Ok(if username.is_empty() {
        Credentials::Anonymous
    } else {
        Credentials::Basic { username, password }
    })
}

/// `base64(user:password)`, as in `config.json`.
fn decode_pair(text: &str) -> Option<(String, String)> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    Some((
        username.to_owned(),
        password.trim_end_matches('\0').to_owned(),
    ))
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    let aside = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&aside)?;
        std::io::Write::write_all(&mut file, bytes)?;
        file.sync_all()?;
        std::fs::rename(&aside, path)
    };
    write().map_err(|e| Error::io(format!("cannot write {}", path.display()), &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_hub_has_many_addresses() {
        for (address, domain) in [
            ("", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("localhost:5000", "localhost:5000"),
            ("https://reg.example/v2/", "reg.example"),
        ] {
            assert_eq!(registry_domain(address), domain);
        }
    }

    #[test]
    fn credentials_are_found_wherever_they_are() {
        let auth = |f: fn(&mut api::AuthConfig)| {
            let mut auth = api::AuthConfig::default();
            f(&mut auth);
            credentials(Some(&auth)).expect("readable")
        };
        let basic = Credentials::Basic {
            username: "u".into(),
            password: "p:w".into(),
        };
        assert!(auth(|a| a.auth = "dTpwOnc=".into()) == basic);
        assert!(auth(|a| (a.username, a.password) = ("u".into(), "p:w".into())) == basic);
        assert!(auth(|a| a.identitytoken = "t".into()) == Credentials::IdentityToken("t".into()));
        assert!(auth(|_| {}) == Credentials::Anonymous);
        assert!(credentials(None).expect("nothing") == Credentials::Anonymous);
        let broken = api::AuthConfig {
            auth: "!".into(),
            ..Default::default()
        };
        assert!(credentials(Some(&broken)).is_err());
    }
}
