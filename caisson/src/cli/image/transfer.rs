//! `save`, `load` and `import`: images as files.

use std::io::{IsTerminal, Read};
use std::rc::Rc;

use bytes::Bytes;
use http::Method;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::cli::command::{COMMAND, Command, Failure, Operands, Outcome, go_io_error};
use crate::cli::download;
use crate::cli::flags::{Flag, Kind, Parsed, any, flag};
use crate::cli::progress::{self, Place};
use crate::cli::reference::Reference;
use crate::cli::session::Session;
use crate::cli::upload::Chunks;
use crate::client::{self, JsonStream};

const SAVE: &[Flag] = &[
    flag(
        "o",
        "output",
        Kind::Text,
        "Write to a file, instead of STDOUT",
    ),
    flag("", "platform", Kind::Text, ""),
];
const LOAD: &[Flag] = &[
    flag(
        "i",
        "input",
        Kind::Text,
        "Read from tar archive file, instead of STDIN",
    ),
    flag("", "platform", Kind::Text, ""),
    flag("q", "quiet", Kind::Bool, "Suppress the load output"),
];
const IMPORT: &[Flag] = &[
    flag(
        "c",
        "change",
        Kind::List("list", any),
        "Apply Dockerfile instruction to the created image",
    ),
    flag(
        "m",
        "message",
        Kind::Text,
        "Set commit message for imported image",
    ),
    flag(
        "",
        "platform",
        Kind::Text,
        "Set platform if server is multi-platform capable",
    ),
];

/// `save`, `load` and `import`.
pub const COMMANDS: &[Command] = &[
    Command {
        paths: &["save", "image save"],
        usage: "[OPTIONS] IMAGE [IMAGE...]",
        about: "Save one or more images to a tar archive (streamed to STDOUT by default)",
        examples: &[
            "save -o alpine.tar alpine",
            "save app:1 app:2 | gzip > app.tar.gz",
        ],
        flags: &[SAVE],
        operands: Operands::AtLeast(1),
        run: |s, p| Box::pin(save(s, p)),
        ..COMMAND
    },
    Command {
        paths: &["load", "image load"],
        usage: "[OPTIONS]",
        about: "Load an image from a tar archive or STDIN",
        examples: &["load -i alpine.tar", "gzip -dc app.tar.gz | caisson load"],
        flags: &[LOAD],
        run: |s, p| Box::pin(load(s, p)),
        ..COMMAND
    },
    Command {
        paths: &["import", "image import"],
        usage: "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]",
        about: "Import the contents from a tarball to create a filesystem image",
        examples: &[
            "import -c 'CMD [\"sh\"]' rootfs.tar mine:latest",
            "tar -C rootfs -c . | caisson import - mine",
        ],
        flags: &[IMPORT],
        operands: Operands::AtLeast(1),
        run: |s, p| Box::pin(import(s, p)),
        ..COMMAND
    },
];

async fn save(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let file = parsed.text("output");
    download::check(
        file,
        "failed to save image",
        "cowardly refusing to save to a terminal. Use the -o flag or redirect",
    )?;
    let mut target = client::target("/images/get");
    for name in &parsed.operands {
        target = target.with("names", name);
    }
    let response = session
        .client()?
        .send::<Value>(Method::GET, target, None)
        .await?;
    download::save(response.into_body(), file).await
}

/// Opens a file or standard input as a request body.
fn body_from(mut input: impl Read + Send + 'static) -> Chunks {
    let (sender, receiver) = mpsc::channel::<std::io::Result<Bytes>>(8);
    std::thread::spawn(move || {
        let mut buffer = vec![0u8; 256 * 1024];
        loop {
            let piece = match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => Ok(Bytes::copy_from_slice(&buffer[..n])),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => Err(e),
            };
            let failed = piece.is_err();
            if sender.blocking_send(piece).is_err() || failed {
                break;
            }
        }
    });
    Chunks::new(receiver)
}

fn open(path: &str) -> Result<Chunks, Failure> {
    let file = std::fs::File::open(path)
        .map_err(|e| Failure::new(format!("open {path}: {}", go_io_error(&e))))?;
    Ok(body_from(file))
}

async fn load(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let body = match parsed.text("input") {
        "" if std::io::stdin().is_terminal() => {
            return Err("requested load from stdin, but stdin is empty".into());
        }
        "" => body_from(std::io::stdin()),
        path => open(path)?,
    };
    let quiet = parsed.flag("quiet") || !std::io::stdout().is_terminal();
    let target = client::target("/images/load")
        .with("quiet", if quiet { "1" } else { "0" })
        .with_text("platform", parsed.text("platform"));
    let response = session
        .client()?
        .upload(Method::POST, target, "application/x-tar", body)
        .await?;
    progress::show(JsonStream::new(response), Place::Stdout).await?;
    Ok(0)
}

async fn import(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let source = parsed.operands[0].as_str();
    let remote = source.starts_with("http://") || source.starts_with("https://");
    let mut target =
        client::target("/images/create").with("fromSrc", if remote { source } else { "-" });
    if let Some(name) = parsed.operands.get(1).filter(|n| !n.is_empty()) {
        let reference = Reference::parse(name)?;
        target = target
            .with("repo", &reference.name)
            .with("tag", reference.tag.as_deref().unwrap_or("latest"));
    }
    target = target
        .with_text("message", parsed.text("message"))
        .with_text("platform", parsed.text("platform"));
    for change in parsed.list("change") {
        target = target.with("changes", change);
    }
    let client = session.client()?;
    let response = match source {
        _ if remote => client.send::<Value>(Method::POST, target, None).await?,
        "-" => {
            client
                .upload(
                    Method::POST,
                    target,
                    "application/x-tar",
                    body_from(std::io::stdin()),
                )
                .await?
        }
        path => {
            client
                .upload(Method::POST, target, "application/x-tar", open(path)?)
                .await?
        }
    };
    progress::show(JsonStream::new(response), Place::Stdout).await?;
    Ok(0)
}
