//! `caisson container …` and its short forms.

pub mod archive;
pub mod attach;
mod checks;
mod cp;
mod create_flags;
pub mod exec;
mod host_config;
mod inspect_flags;
pub mod lifecycle;
mod logs;
mod mount_flag;
mod network_flags;
mod port_flag;
pub mod ps;
mod resolve;
pub mod run;
pub mod stats;
mod update;

pub use cp::COMMANDS as CP;
pub use inspect_flags::CONTAINER_INSPECT;
pub use logs::COMMANDS as LOGS;
pub use update::COMMANDS as UPDATE;

use super::command::{Failure, Outcome};
use super::output;
use crate::client;
use futures_util::StreamExt;

/// `/containers/NAME` plus what follows.
pub fn path(name: &str, rest: &str) -> client::Target {
    client::target(format!(
        "/containers/{}{rest}",
        client::segment(name.trim_start_matches('/'))
    ))
}

/// Acts on many containers at once; prints each name as it was typed when done, in order, and all errors at the end.
pub async fn each<F, Fut>(names: &[String], act: F) -> Outcome
where
    F: Fn(String) -> Fut,
    Fut: Future<Output = Result<(), Failure>>,
{
    let mut errors = Vec::new();
    let mut results = futures_util::stream::iter(names.iter().cloned())
        .map(|name| {
            let done = act(name.clone());
            async move { (name, done.await) }
        })
        .buffered(50);
    while let Some((name, result)) = results.next().await {
        match result {
            Ok(()) => output::line(name)?,
            // Told, but no reason to fail: what `rm --force` did not find.
            Err(failure) if failure.code == 0 => output::complain(failure.message),
            Err(failure) => errors.push(failure.message),
        }
    }
    if errors.is_empty() {
        Ok(0)
    } else {
        Err(Failure::new(errors.join("\n")))
    }
}
