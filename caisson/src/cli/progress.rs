//! progress messages of pull, push, load and import: a block of updating lines on a terminal, plain lines elsewhere.
//!
//! Which line an id owns and what it shows is decided by [`Board`], which returns text; so it is tested without a terminal.

use std::collections::HashMap;
use std::io::IsTerminal;

use caisson_api::JsonMessage;

use super::command::Failure;
use super::{output, terminal, units};
use crate::client::JsonStream;

/// Where progress is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Nowhere; errors still count.
    Nowhere,
}

/// The lines of a progress display.
struct Board {
    terminal: bool,
    width: usize,
    lines: HashMap<String, usize>,
}

impl Board {
    fn bar(&self, current: i64, total: i64) -> String {
        if current <= 0 && total <= 0 {
            return String::new();
        }
        let now = units::human_size(current as f64);
        if total <= 0 {
            return format!("{now:>8}");
        }
        let filled = ((current as f64 / total as f64 * 100.0) as usize / 2).min(50);
        let picture = if self.width > 110 {
            format!("[{}>{}] ", "=".repeat(filled), " ".repeat(50 - filled))
        } else {
            String::new()
        };
        if current > total {
            format!("{picture}{now:>8}")
        } else {
            format!("{picture}{now:>8}/{}", units::human_size(total as f64))
        }
    }

    /// The bytes that bring the display up to date.
    fn show(&mut self, message: &JsonMessage) -> String {
        let (id, status, stream) = (
            message.id.as_str(),
            message.status.as_str(),
            message.stream.as_str(),
        );
        let progress = message
            .progress_detail
            .as_ref()
            .map(|p| self.bar(p.current, p.total));
        let mut out = String::new();
        let mut up = 0;
        if !id.is_empty() && progress.is_some() {
            let next = self.lines.len();
            let line = *self.lines.entry(id.to_owned()).or_insert_with(|| {
                if self.terminal {
                    out.push('\n');
                }
                next
            });
            up = self.lines.len() - line;
            if self.terminal && up > 0 {
                out.push_str(&format!("\u{1b}[{up}A"));
            }
        } else {
            self.lines.clear();
        }
        let prefix = if id.is_empty() {
            String::new()
        } else {
            format!("{id}: ")
        };
        match &progress {
            Some(bar) if self.terminal && stream.is_empty() => {
                out.push_str(&format!("\u{1b}[2K\r{prefix}{status} {bar}\r"));
            }
            Some(bar) if !bar.is_empty() => return String::new(),
            _ if !stream.is_empty() => out.push_str(&format!("{prefix}{stream}")),
            _ => out.push_str(&format!("{prefix}{status}\n")),
        }
        if !id.is_empty() && self.terminal && up > 0 {
            out.push_str(&format!("\u{1b}[{up}B"));
        }
        out
    }
}

/// Shows a stream of messages to its end; an error message in it is the outcome.
pub async fn show(mut messages: JsonStream, place: Place) -> Result<(), Failure> {
    let terminal = match place {
        Place::Stdout => std::io::stdout().is_terminal(),
        Place::Stderr => std::io::stderr().is_terminal(),
        Place::Nowhere => false,
    };
    let mut board = Board {
        terminal,
        width: terminal::width(),
        lines: HashMap::new(),
    };
    while let Some(value) = messages.next().await? {
        let message: JsonMessage =
            caisson_api::from_value(value).map_err(|e| Failure::new(e.to_string()))?;
        if let Some(detail) = &message.error_detail
            && !detail.message.is_empty()
        {
            return Err(Failure::new(detail.message.clone()));
        }
        if !message.error.is_empty() {
            return Err(Failure::new(message.error));
        }
        // Facts for programs (a digest, an id) come as messages of their own.
        if message.aux.is_some() {
            continue;
        }
        let empty = message.status.is_empty()
            && message.stream.is_empty()
            && message.progress_detail.is_none();
        if empty {
            continue;
        }
        let text = board.show(&message);
        match place {
            Place::Stdout => output::print(text)?,
            Place::Stderr => output::print_err(&text),
            Place::Nowhere => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> JsonMessage {
        caisson_api::from_json(text.as_bytes()).expect("valid")
    }

    #[test]
    fn plain_lines_leave_out_progress() {
        let mut board = Board {
            terminal: false,
            width: 80,
            lines: HashMap::new(),
        };
        assert_eq!(
            board.show(&message(
                r#"{"status":"Pulling fs layer","progressDetail":{},"id":"abc"}"#
            )),
            "abc: Pulling fs layer\n"
        );
        assert_eq!(
            board.show(&message(
                r#"{"status":"Downloading","progressDetail":{"current":1,"total":2},"id":"abc"}"#
            )),
            ""
        );
        assert_eq!(
            board.show(&message(r#"{"stream":"Loaded image: x\n"}"#)),
            "Loaded image: x\n"
        );
        assert_eq!(
            board.show(&message(r#"{"status":"Digest: sha256:1"}"#)),
            "Digest: sha256:1\n"
        );
    }

    #[test]
    fn a_terminal_keeps_a_line_for_each_id() {
        let mut board = Board {
            terminal: true,
            width: 120,
            lines: HashMap::new(),
        };
        let first = board.show(&message(
            r#"{"status":"Waiting","progressDetail":{},"id":"a"}"#,
        ));
        assert_eq!(first, "\n\u{1b}[1A\u{1b}[2K\ra: Waiting \r\u{1b}[1B");
        let second = board.show(&message(
            r#"{"status":"Waiting","progressDetail":{},"id":"b"}"#,
        ));
        assert!(second.starts_with("\n\u{1b}[1A"), "{second:?}");
        let again = board.show(&message(
            r#"{"status":"Downloading","progressDetail":{"current":1000,"total":2000},"id":"a"}"#,
        ));
        assert!(
            again.starts_with("\u{1b}[2A") && again.contains("=====>") && again.contains("1kB/2kB"),
            "{again:?}"
        );
    }
}
