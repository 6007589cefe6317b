//! questions on the terminal: yes or no, and lines typed without echo.

use std::io::{BufRead, IsTerminal, Write};

use rustix::termios::{self, LocalModes, OptionalActions};

use super::command::Failure;
use super::output;

/// Asks; anything but `y` or `yes` is no.
pub fn confirmed(question: &str) -> Result<bool, Failure> {
    output::print(format!("{question} [y/N] "))?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Reads a line; hidden input is not echoed.
pub fn ask(question: &str, hidden: bool) -> Result<String, Failure> {
    let mut out = std::io::stderr();
    let _ = write!(out, "{question}");
    let _ = out.flush();
    let fd = std::io::stdin();
    let saved = if hidden && std::io::stdin().is_terminal() {
        termios::tcgetattr(&fd).ok()
    } else {
        None
    };
    if let Some(mode) = &saved {
        let mut silent = mode.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        termios::tcsetattr(&fd, OptionalActions::Flush, &silent)
            .map_err(|e| Failure::new(format!("could not hide input: {e}")))?;
    }
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    if let Some(mode) = &saved {
        // The terminal is restored as far as it still can be.
        let _ = termios::tcsetattr(&fd, OptionalActions::Flush, mode);
        let _ = writeln!(out);
    }
    read?;
    Ok(answer.trim_end_matches(['\n', '\r']).to_owned())
}
