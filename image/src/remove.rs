//! Removing images, with Docker's rules and words.
//!
//! ```text
//! by name ──▶ last reference? ──no──▶ untag
//!                 │ yes: untag, then delete unless something stands in the way
//! by id ───▶ references in one repository only? ──▶ untag all, delete;  else "must be forced"
//!
//! in the way, even with force:  child images, running containers
//! in the way without force:     other references, stopped containers
//! ```
//!
//! An image forced away under a stopped container is hidden: no name or list shows it, its layers stay until the container
//! is gone and [`Store::collect_garbage`] is called.

use std::collections::HashSet;

use crate::collect::Collected;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::images::shown;
use crate::reference::Reference;
use crate::store::{Index, Inner, Store, guard};

/// A container that uses an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    /// The image.
    pub image: Digest,
    /// The container's id.
    pub container: String,
    /// It is running (or paused).
    pub running: bool,
}

/// One thing a removal did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// A name went: `alpine:latest`, `alpine@sha256:…`.
    Untagged(String),
    /// An image (by id) or a layer (by chain id) went.
    Deleted(Digest),
}

/// What a removal did, and the bytes it freed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// In Docker's order.
    pub removed: Vec<Removed>,
    /// Bytes of blobs and layers that went.
    pub freed_bytes: u64,
}

/// A name of an image: a tag or a digest in a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Tag(Reference),
    Digest {
        repository: String,
        digest: Digest,
        shown: String,
    },
}

impl Name {
    fn repository(&self) -> String {
        match self {
            Name::Tag(reference) => reference.name(),
            Name::Digest { repository, .. } => repository.clone(),
        }
    }
    fn shown(&self) -> String {
        match self {
            Name::Tag(reference) => reference.familiar(),
            Name::Digest { shown, .. } => shown.clone(),
        }
    }
}

/// What to do, decided before anything is done.
#[derive(Debug, Default)]
struct Plan {
    untag: Vec<Name>,
    /// Images to delete, in order, and whether each is to be hidden because a container holds it.
    delete: Vec<(Digest, bool)>,
}

impl Store {
    /// Removes a name, or an image by id or prefix. `prune_parents` also removes parents nobody names or uses.
    ///
    /// # Errors
    /// [`Error::Conflict`] with Docker's message, [`Error::NoSuchImage`], [`Error::Ambiguous`].
    pub async fn remove(
        &self,
        name: &str,
        force: bool,
        prune_parents: bool,
        in_use: Vec<InUse>,
    ) -> Result<Removal> {
        let store = self.clone();
        let name = name.to_owned();
        self.blocking(move |_, _| store.remove_now(&name, force, prune_parents, &in_use))
            .await
    }

    pub(crate) fn remove_now(
        &self,
        name: &str,
        force: bool,
        prune_parents: bool,
        in_use: &[InUse],
    ) -> Result<Removal> {
        let names = self.0.named_lock("names".into());
        let _guard = guard(&names);
        let image = self.resolve(name)?;
        let index = self.0.index();
        let scene = Scene {
            index: &index,
            in_use,
        };
        let plan = scene.plan(name, image.id(), force, prune_parents)?;
        self.0.perform(&plan)
    }

    /// Whether images are hidden, so that [`Store::collect_garbage`] may have something to do. Memory only.
    pub fn has_hidden(&self) -> bool {
        !self.0.index().hidden.is_empty()
    }

    /// Forgets hidden images no container uses any more, and everything no image needs. Call it after the daemon started
    /// and after a container was removed.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Database`].
    pub async fn collect_garbage(&self, in_use: Vec<InUse>) -> Result<Collected> {
        self.blocking(move |inner, _| {
            let held: HashSet<Digest> = in_use.into_iter().map(|u| u.image).collect();
            let gone: Vec<Digest> = inner
                .index()
                .hidden
                .keys()
                .filter(|id| !held.contains(*id))
                .cloned()
                .collect();
            if !gone.is_empty() {
                inner.change(|t| gone.iter().try_for_each(|id| delete_image(t, id)))?;
            }
            inner.collect()
        })
        .await
    }
}

struct Scene<'a> {
    index: &'a Index,
    in_use: &'a [InUse],
}

impl Scene<'_> {
    fn plan(&self, asked: &str, id: &Digest, force: bool, prune: bool) -> Result<Plan> {
        let mut plan = Plan::default();
        let names = self.names(id);
        let by_id = is_id_prefix(id, asked) && !self.is_name(asked, id);
        if by_id {
            if is_single(&names) {
                self.check(id, force, &plan, true)?;
                plan.untag = names;
            }
        } else {
            let asked_name = self.asked(asked, id)?;
            if !force
                && is_single(&names)
                && let Some(user) = self.in_use.iter().find(|u| u.image == *id)
            {
                return Err(Error::Conflict(format!(
                    "unable to remove repository reference \"{asked}\" (must force) - container {} is using its \
                     referenced image {}",
                    short(&user.container),
                    id.short()
                )));
            }
            let repository = asked_name.repository();
            let is_tag = matches!(asked_name, Name::Tag(_));
            let mut left: Vec<Name> = names.into_iter().filter(|n| *n != asked_name).collect();
            plan.untag.push(asked_name);
            // Digests alone would keep a repository's image that no tag of it means any more.
            let tag_left = left
                .iter()
                .any(|n| matches!(n, Name::Tag(_)) && n.repository() == repository);
            if is_tag && !tag_left {
                let (digests, others) =
                    left.into_iter().partition(|n| n.repository() == repository);
                plan.untag.extend::<Vec<Name>>(digests);
                left = others;
            }
            if !left.is_empty() {
                return Ok(plan);
            }
        }
        let quiet = !by_id;
        self.plan_delete(id, force, prune, quiet, &mut plan)?;
        Ok(plan)
    }

    /// `quiet`: a name was removed already, so what stands in the way of deleting is no error when it is a container.
    fn plan_delete(
        &self,
        id: &Digest,
        force: bool,
        prune: bool,
        quiet: bool,
        plan: &mut Plan,
    ) -> Result<()> {
        if let Err(error) = self.check(id, force, plan, false) {
            let used = self.in_use.iter().any(|u| u.image == *id);
            let dangling = self.names(id).iter().all(|n| plan.untag.contains(n));
            return if quiet && (!dangling || used || self.has_children(id, plan)) {
                Ok(())
            } else {
                Err(error)
            };
        }
        for name in self.names(id) {
            if !plan.untag.contains(&name) {
                plan.untag.push(name);
            }
        }
        let held = self.in_use.iter().any(|u| u.image == *id);
        plan.delete.push((id.clone(), held));
        let parent = self
            .index
            .images
            .get(id)
            .and_then(|image| image.parent.clone());
        match parent {
            Some(parent) if prune && self.index.images.contains_key(&parent) => {
                self.plan_delete(&parent, false, true, true, plan)
            }
            _ => Ok(()),
        }
    }

    /// What stands in the way of deleting, as Docker words it. What the plan removes already does not count.
    fn check(&self, id: &Digest, force: bool, plan: &Plan, ignore_names: bool) -> Result<()> {
        let conflict = |hard: bool, reason: String| {
            let word = if hard {
                "cannot be forced"
            } else {
                "must be forced"
            };
            Err(Error::Conflict(format!(
                "unable to delete {} ({word}) - {reason}",
                id.short()
            )))
        };
        if self.has_children(id, plan) {
            return conflict(true, "image has dependent child images".into());
        }
        if let Some(user) = self.in_use.iter().find(|u| u.image == *id && u.running) {
            return conflict(
                true,
                format!(
                    "image is being used by running container {}",
                    short(&user.container)
                ),
            );
        }
        if force {
            return Ok(());
        }
        if !ignore_names && self.names(id).iter().any(|n| !plan.untag.contains(n)) {
            return conflict(false, "image is referenced in multiple repositories".into());
        }
        if let Some(user) = self.in_use.iter().find(|u| u.image == *id) {
            return conflict(
                false,
                format!(
                    "image is being used by stopped container {}",
                    short(&user.container)
                ),
            );
        }
        Ok(())
    }

    fn has_children(&self, id: &Digest, plan: &Plan) -> bool {
        let going = |child: &Digest| plan.delete.iter().any(|(deleted, _)| deleted == child);
        self.index
            .images
            .values()
            .any(|i| i.parent.as_ref() == Some(id) && !going(i.id()))
    }

    fn names(&self, id: &Digest) -> Vec<Name> {
        let tags = self.index.tags.iter().filter(|(_, image)| *image == id);
        let tags = tags.filter_map(|(tag, _)| tag.parse().ok().map(Name::Tag));
        let digests = self
            .index
            .repo_digests
            .iter()
            .filter(|(_, image)| *image == id);
        let digests = digests.map(|((repository, digest), _)| digest_name(repository, digest));
        tags.chain(digests).collect()
    }

    fn is_name(&self, asked: &str, id: &Digest) -> bool {
        let Ok(reference) = asked.parse::<Reference>() else {
            return false;
        };
        reference.digest().is_none()
            && self
                .index
                .tags
                .get(&reference.with_default_tag().to_string())
                == Some(id)
    }

    fn asked(&self, asked: &str, id: &Digest) -> Result<Name> {
        let reference: Reference = asked.parse()?;
        match reference.digest() {
            Some(digest) => {
                let name = digest_name(&reference.name(), digest);
                let known = self.names(id).contains(&name);
                if known {
                    Ok(name)
                } else {
                    Err(Error::NoSuchImage(shown(asked)))
                }
            }
            None => Ok(Name::Tag(reference.with_default_tag())),
        }
    }
}

fn digest_name(repository: &str, digest: &Digest) -> Name {
    let familiar = repository
        .parse::<Reference>()
        .map_or_else(|_| repository.to_owned(), |r| r.familiar_name());
    Name::Digest {
        repository: repository.to_owned(),
        digest: digest.clone(),
        shown: format!("{familiar}@{digest}"),
    }
}

fn is_id_prefix(id: &Digest, asked: &str) -> bool {
    let prefix = asked.strip_prefix("sha256:").unwrap_or(asked);
    !prefix.is_empty() && id.hex().starts_with(prefix)
}

/// At most one tag, and all digests in that tag's repository (or in one).
fn is_single(names: &[Name]) -> bool {
    let tags = names.iter().filter(|n| matches!(n, Name::Tag(_))).count();
    let repositories: HashSet<String> = names.iter().map(Name::repository).collect();
    tags <= 1 && repositories.len() <= 1
}

fn short(container: &str) -> &str {
    container.get(..12).unwrap_or(container)
}

impl Inner {
    fn perform(&self, plan: &Plan) -> Result<Removal> {
        self.change(|t| {
            for name in &plan.untag {
                match name {
                    Name::Tag(reference) => {
                        t.execute(
                            "DELETE FROM tags WHERE reference = ?1",
                            [reference.to_string()],
                        )?;
                    }
                    Name::Digest {
                        repository, digest, ..
                    } => {
                        t.execute(
                            "DELETE FROM repo_digests WHERE repository = ?1 AND digest = ?2",
                            [repository.as_str(), digest.as_str()],
                        )?;
                    }
                }
            }
            for (id, held) in &plan.delete {
                if *held {
                    t.execute("UPDATE images SET hidden = 1 WHERE id = ?1", [id.as_str()])?;
                } else {
                    delete_image(t, id)?;
                }
            }
            Ok(())
        })?;
        let mut removal = Removal::default();
        removal.removed.extend(
            plan.untag
                .iter()
                .map(|name| Removed::Untagged(name.shown())),
        );
        removal.removed.extend(
            plan.delete
                .iter()
                .map(|(id, _)| Removed::Deleted(id.clone())),
        );
        if !plan.delete.is_empty() {
            let collected = self.collect()?;
            removal.freed_bytes = collected.bytes();
            removal.removed.extend(
                collected
                    .layers
                    .into_iter()
                    .map(|(chain_id, _)| Removed::Deleted(chain_id)),
            );
        }
        Ok(removal)
    }
}

fn delete_image(t: &rusqlite::Transaction<'_>, id: &Digest) -> Result<()> {
    for statement in [
        "DELETE FROM documents WHERE image = ?1",
        "DELETE FROM repo_digests WHERE image = ?1",
        "DELETE FROM tags WHERE image = ?1",
        "DELETE FROM images WHERE id = ?1",
    ] {
        t.execute(statement, [id.as_str()])?;
    }
    Ok(())
}
