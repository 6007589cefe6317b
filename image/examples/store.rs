//! A store on the command line, for trying things and measuring: `store ROOT load FILE | save FILE NAME… | pull NAME |
//! push NAME | list | remove NAME | prune`.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use caisson_image::{Credentials, Options, Progress, PruneFilter, Reference, Store};

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let began = Instant::now();
    let progress: Progress = std::sync::Arc::new(move |event| {
        let at = began.elapsed().as_secs_f64();
        if event.total == 0 {
            println!("{at:.3} {} {}", event.id, event.status);
        } else {
            println!(
                "{at:.3} {} {} {}/{}",
                event.id, event.status, event.current, event.total
            );
        }
    });
    let (root, verb, rest) = match words[..] {
        [root, verb, ref rest @ ..] => (root, verb, rest),
        _ => bail!("expected a root and a verb"),
    };
    let store = Store::open(root, Options::default())?;
    match (verb, rest) {
        ("load", [file]) => {
            let input = std::fs::File::open(file).with_context(|| format!("cannot open {file}"))?;
            store.load(input, progress).await?;
        }
        ("save", [file, names @ ..]) => {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            let out =
                std::fs::File::create(file).with_context(|| format!("cannot create {file}"))?;
            store.prepare_save(&names)?.write(out).await?;
        }
        ("pull", [name]) => {
            store
                .pull(
                    &name.parse::<Reference>()?,
                    None,
                    Credentials::Anonymous,
                    progress,
                )
                .await?;
        }
        ("push", [name]) => {
            store
                .push(
                    &name.parse::<Reference>()?,
                    Credentials::Anonymous,
                    progress,
                )
                .await?;
        }
        ("list", []) => {
            for image in store.list() {
                println!(
                    "{} {:?} {}",
                    image.id().short(),
                    image.repo_tags,
                    image.size_bytes()
                );
            }
        }
        ("remove", [name]) => println!("{:?}", store.remove(name, false, true, vec![]).await?),
        ("prune", []) => {
            let all = PruneFilter {
                all: true,
                ..PruneFilter::default()
            };
            println!("{:?}", store.prune(all, vec![]).await?);
        }
        _ => bail!("unknown verb {verb}"),
    }
    eprintln!("{verb}: {:.3} s", began.elapsed().as_secs_f64());
    Ok(())
}
