//! `images`, and `image inspect`.

use std::rc::Rc;

use caisson_api::ImageSummary;

use crate::cli::command::{COMMAND, Command, Failure, Operands, Outcome};
use crate::cli::container::ps::{go_time, short_id};
use crate::cli::flags::{FORMAT_OBJECT, FORMAT_TABLE, Flag, Kind, Parsed, filter, flag};
use crate::cli::inspect::{self, Kinds};
use crate::cli::session::Session;
use crate::cli::table::{Layout, Row};
use crate::cli::{output, units};
use crate::client;

const FLAGS: &[Flag] = &[
    flag(
        "a",
        "all",
        Kind::Bool,
        "Show all images (default hides intermediate images)",
    ),
    flag("", "digests", Kind::Bool, "Show digests"),
    flag(
        "f",
        "filter",
        Kind::List("filter", filter),
        "Filter output based on conditions provided",
    ),
    flag("", "format", Kind::Text, FORMAT_TABLE),
    flag("", "no-trunc", Kind::Bool, "Don't truncate output"),
    flag("q", "quiet", Kind::Bool, "Only show image IDs"),
];
const INSPECT: &[Flag] = &[
    flag("f", "format", Kind::Text, FORMAT_OBJECT),
    flag("", "platform", Kind::Text, ""),
];

/// `images` and `image inspect`.
pub const COMMANDS: &[Command] = &[
    Command {
        paths: &["images", "image ls"],
        hidden_paths: &["image list"],
        usage: "[OPTIONS] [REPOSITORY[:TAG]]",
        about: "List images",
        examples: &[
            "images",
            "images -q --filter dangling=true",
            "images --format '{{.Repository}}:{{.Tag}} {{.Size}}'",
        ],
        flags: &[FLAGS],
        operands: Operands::Between(0, 1),
        run: |s, p| Box::pin(images(s, p)),
        ..COMMAND
    },
    Command {
        paths: &["image inspect"],
        usage: "[OPTIONS] IMAGE [IMAGE...]",
        about: "Display detailed information on one or more images",
        examples: &["image inspect --format '{{json .Config}}' alpine"],
        flags: &[INSPECT],
        operands: Operands::AtLeast(1),
        run: |s, p| Box::pin(inspect::inspect(s, p, Kinds::Image)),
        ..COMMAND
    },
];

/// Columns of image lists.
pub const HEADERS: &[(&str, &str)] = &[
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("VirtualSize", "SIZE"),
    ("Containers", "CONTAINERS"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
];

async fn images(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let mut filters = parsed.list("filter").to_vec();
    filters.extend(parsed.operands.first().map(|r| format!("reference={r}")));
    let target = client::target("/images/json")
        .with_flag("all", parsed.flag("all"))
        .with_filters(&filters);
    let images: Vec<ImageSummary> = session.client()?.get(target).await?;
    let quiet = parsed.flag("quiet");
    let format = match parsed.text("format") {
        "" if !quiet => session.config.format("imagesFormat").unwrap_or_default(),
        given => given.to_owned(),
    };
    let digests = parsed.flag("digests") || format.contains(".Digest");
    let rows: Vec<Row> = images
        .iter()
        .flat_map(|i| rows(i, !parsed.flag("no-trunc"), digests))
        .collect();
    let digest_column = if parsed.flag("digests") {
        "\t{{.Digest}}"
    } else {
        ""
    };
    let layout = Layout {
        type_name: "*formatter.imageContext",
        table: format!(
            "{{{{.Repository}}}}\t{{{{.Tag}}}}{digest_column}\t{{{{.ID}}}}\t{{{{.CreatedSince}}}}\t{{{{.Size}}}}"
        ),
        quiet: "{{.ID}}",
        headers: HEADERS,
        raw: "repository: {{.Repository}}\ntag: {{.Tag}}\nimage_id: {{.ID}}\ncreated_at: {{.CreatedAt}}\nvirtual_size: {{.Size}}\n",
    };
    output::print(layout.render(&format, quiet, &rows).map_err(Failure::new)?)?;
    Ok(0)
}

/// An image's names: repository, tag, digest; one row each.
fn names(image: &ImageSummary, digests: bool) -> Vec<(String, String, String)> {
    let none = || "<none>".to_owned();
    let tags: Vec<(String, String)> = image
        .repo_tags
        .iter()
        .flatten()
        .filter(|t| *t != "<none>:<none>")
        .filter_map(|t| {
            t.rsplit_once(':')
                .map(|(r, t)| (r.to_owned(), t.to_owned()))
        })
        .collect();
    let pinned: Vec<(String, String)> = image
        .repo_digests
        .iter()
        .flatten()
        .filter(|d| *d != "<none>@<none>")
        .filter_map(|d| d.split_once('@').map(|(r, d)| (r.to_owned(), d.to_owned())))
        .collect();
    let mut found = Vec::new();
    for (repository, tag) in &tags {
        let of_repository: Vec<&(String, String)> =
            pinned.iter().filter(|(r, _)| r == repository).collect();
        if digests && !of_repository.is_empty() {
            found.extend(
                of_repository
                    .iter()
                    .map(|(_, d)| (repository.clone(), tag.clone(), d.clone())),
            );
        } else {
            found.push((repository.clone(), tag.clone(), none()));
        }
    }
    for (repository, digest) in &pinned {
        if !tags.iter().any(|(r, _)| r == repository) {
            found.push((repository.clone(), none(), digest.clone()));
        }
    }
    if found.is_empty() {
        found.push((none(), none(), none()));
    }
    found
}

/// The rows of one image.
pub fn rows(image: &ImageSummary, truncate: bool, digests: bool) -> Vec<Row> {
    let or_unknown = |n: i64, text: String| if n == -1 { "N/A".to_owned() } else { text };
    let size = |n: i64| units::human_size(n as f64);
    names(image, digests)
        .into_iter()
        .map(|(repository, tag, digest)| Row {
            fields: vec![
                (
                    "ID",
                    if truncate {
                        short_id(&image.id)
                    } else {
                        image.id.clone()
                    },
                ),
                ("Repository", repository),
                ("Tag", tag),
                ("Digest", digest),
                (
                    "CreatedSince",
                    if image.created <= 0 {
                        "N/A".to_owned()
                    } else {
                        units::ago(image.created)
                    },
                ),
                ("CreatedAt", go_time(image.created)),
                ("Size", units::human_size_digits(image.size as f64, 3)),
                ("VirtualSize", size(image.size)),
                (
                    "Containers",
                    or_unknown(image.containers, image.containers.to_string()),
                ),
                (
                    "SharedSize",
                    or_unknown(image.shared_size, size(image.shared_size)),
                ),
                (
                    "UniqueSize",
                    or_unknown(image.shared_size, size(image.size - image.shared_size)),
                ),
            ],
            labels: image.labels.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_a_row_for_each_name() {
        let mut image = ImageSummary {
            repo_tags: Some(vec!["a:1".into(), "host:5000/b:2".into()]),
            repo_digests: Some(vec!["a@sha256:x".into(), "c@sha256:y".into()]),
            ..ImageSummary::default()
        };
        let row = |r: &str, t: &str, d: &str| (r.to_owned(), t.to_owned(), d.to_owned());
        assert_eq!(
            names(&image, true),
            [
                row("a", "1", "sha256:x"),
                row("host:5000/b", "2", "<none>"),
                row("c", "<none>", "sha256:y")
            ]
        );
        image.repo_tags = None;
        image.repo_digests = Some(vec!["<none>@<none>".into()]);
        assert_eq!(names(&image, false), [row("<none>", "<none>", "<none>")]);
    }
}
