//! `POST /commit`: an image of what a container has become.
//!
//! Must not know: how an image is stored.

use caisson_api as api;

use crate::container::{Container, Message};
use crate::error::{Error, Result};
use crate::image_source::Commit;
use crate::options::CommitOptions;
use crate::records::{Status, View};
use crate::{Engine, merge};

impl Engine {
    /// `POST /commit`; answers the image's id.
    pub async fn commit(&self, options: CommitOptions) -> Result<String> {
        let container = self.inner.container(&options.container)?;
        let view = container.view();
        if matches!(view.state.status, Status::Removing | Status::Dead) {
            return Err(Error::conflict(format!(
                "You cannot commit container {} which is being removed",
                options.container
            )));
        }
        let mut config = match options.config.clone() {
            Some(given) => merge::with_image(given, &view.definition.config),
            None => view.definition.config.clone(),
        };
        crate::images::changes::apply(&mut config, &options.changes)?;
        // What belongs to the one container, not to an image.
        config.hostname.clear();
        config.domainname.clear();
        config.image = view.definition.config.image.clone();
        let paused_by_us = options.pause && view.state.status == Status::Running;
        if paused_by_us {
            container.ask(|reply| Message::Pause { reply }).await?;
        }
        let comment = options.comment.clone();
        let result = self.commit_now(&container, &view, config, options).await;
        if paused_by_us && let Err(e) = container.ask(|reply| Message::Unpause { reply }).await {
            tracing::error!(container = view.id, error = %e, "the container could not be unpaused after the commit");
        }
        let image = result?;
        let more = [("imageID", image.clone()), ("comment", comment)];
        self.inner
            .container_event(&container.view(), "commit", &more);
        Ok(image)
    }

    async fn commit_now(
        &self,
        container: &Container,
        view: &View,
        config: api::ContainerConfig,
        options: CommitOptions,
    ) -> Result<String> {
        let commit = Commit {
            parent: view.definition.image_id.clone(),
            own: self.own_files(container).await?,
            config,
            created_by: std::iter::once(&view.definition.path)
                .chain(&view.definition.args)
                .cloned()
                .collect::<Vec<_>>()
                .join(" "),
            author: options.author,
            comment: options.comment,
            reference: options.reference.filter(|r| !r.is_empty()),
        };
        self.inner.image_source.commit(commit).await
    }
}
