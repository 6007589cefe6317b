//! Errors for people and for the programs above: runc's text and JSON lines.
//!
//! Must not know: what failed.

use std::fs::{File, OpenOptions};
use std::io::Write;

use serde_json::json;

use crate::cli::{Globals, LogFormat};

/// Where errors go.
#[derive(Default)]
pub struct Log {
    file: Option<File>,
    format: LogFormat,
}

impl Log {
    /// Opens what the global options say; a file that cannot be opened leaves stderr.
    pub fn open(globals: &Globals) -> Log {
        let file = globals.log.as_ref().and_then(|path| {
            match OpenOptions::new().append(true).create(true).open(path) {
                Ok(file) => Some(file),
                Err(e) => {
                    eprintln!("cannot open log file {}: {e}", path.display());
                    None
                }
            }
        });
        Log {
            file,
            format: globals.log_format,
        }
    }

    /// Writes an error to the log, and plainly to stderr if that is not the log.
    pub fn error(&self, message: &str) {
        let time = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        let line = match self.format {
            LogFormat::Json => format!(
                "{}\n",
                json!({"level": "error", "msg": message, "time": time})
            ),
            LogFormat::Text => format!("time=\"{time}\" level=error msg={message:?}\n"),
        };
        match &self.file {
            Some(file) => {
                let mut file = file;
                let _ = file.write_all(line.as_bytes());
                eprintln!("{message}");
            }
            None => eprint!("{line}"),
        }
    }
}
