//! `system dial-stdio`: standard input and output as a connection to the daemon, for `ssh://` hosts.

use std::rc::Rc;

use tokio::io::{AsyncWriteExt, copy, split};

use crate::cli::command::{COMMAND, Command, Outcome};
use crate::cli::flags::Parsed;
use crate::cli::session::Session;

/// `system dial-stdio`.
pub const COMMANDS: &[Command] = &[Command {
    paths: &["system dial-stdio"],
    about: "Proxy the stdio stream to the daemon connection. Should not be invoked manually.",
    examples: &["-H ssh://user@host ps"],
    run: |s, p| Box::pin(dial(s, p)),
    ..COMMAND
}];

async fn dial(session: Rc<Session>, _parsed: Parsed) -> Outcome {
    let connection = session.client()?.dial().await?;
    let (mut from, mut to) = split(connection);
    let upward = async {
        let mut input = tokio::io::stdin();
        let copied = copy(&mut input, &mut to).await;
        // The daemon may have closed first.
        let _ = to.shutdown().await;
        copied
    };
    let downward = async {
        let mut output = tokio::io::stdout();
        copy(&mut from, &mut output).await?;
        output.flush().await
    };
    tokio::pin!(upward);
    let mut upward_done = false;
    tokio::pin!(downward);
    loop {
        tokio::select! {
            result = &mut upward, if !upward_done => {
                result?;
                upward_done = true;
            }
            result = &mut downward => {
                result?;
                return Ok(0);
            }
        }
    }
}
