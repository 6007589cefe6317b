//! What the agent says before and beside the protocol: lines in the kernel's log, which the console shows.
//!
//! ```text
//!   tracing event ─▶ "<level>caisson-agent: message field=value" ─▶ /dev/kmsg      (one write is one record)
//!   panic         ─▶ the same, and the kernel's own panic follows: this is process 1
//! ```
//!
//! The kernel limits how much is written there, so a loop cannot flood the console.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The kernel cuts longer records.
const RECORD_BYTES: usize = 900;

/// Levels of syslog(3), as /dev/kmsg takes them.
const CRITICAL: u8 = 2;
const ERROR: u8 = 3;
const WARNING: u8 = 4;
const INFO: u8 = 6;

struct KernelLog {
    device: Option<File>,
}

/// Sends events and panics there. Needs `/dev/kmsg`; without it, standard error, which is the console.
pub fn install() {
    let device = File::options().write(true).open("/dev/kmsg").ok();
    let for_panics = KernelLog {
        device: device.as_ref().and_then(|d| d.try_clone().ok()),
    };
    std::panic::set_hook(Box::new(move |panic| {
        for_panics.write(CRITICAL, &format!("{panic}"));
    }));
    // Fails only when there is one already: this is called once.
    let _ = tracing::subscriber::set_global_default(KernelLog { device });
}

impl KernelLog {
    fn write(&self, level: u8, message: &str) {
        let record = record(level, message);
        match &self.device {
            // A record that is refused (the limit, or no memory) is lost: there is nowhere else to say so.
            Some(device) => {
                let mut device: &File = device;
                let _ = device.write(record.as_bytes());
            }
            None => eprint!("{}", &record[3..]),
        }
    }
}

/// One line, not too long, cut between characters. The kernel holds a record back that does not end its line.
fn record(level: u8, message: &str) -> String {
    let mut record = format!("<{level}>caisson-agent: ");
    for c in message.chars() {
        if record.len() >= RECORD_BYTES {
            break;
        }
        record.push(if c == '\n' { ' ' } else { c });
    }
    record.push('\n');
    record
}

impl Subscriber for KernelLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let level = match *event.metadata().level() {
            Level::ERROR => ERROR,
            Level::WARN => WARNING,
            _ => INFO,
        };
        let mut line = Line::default();
        event.record(&mut line);
        self.write(level, &(line.message + &line.fields));
    }
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_short_line() {
        assert_eq!(record(3, "a\nb"), "<3>caisson-agent: a b\n");
        let long = record(6, &"ü".repeat(5000));
        assert!(long.len() <= RECORD_BYTES + 4 && long.is_char_boundary(long.len()));
    }
}
