//! How a machine ended, in words for people: from what the VMM said, how its process did and what the console shows.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use caisson_protocol::layout::CONSOLE;
use caisson_protocol::vmm::VmEnd;

/// What of the console goes into an error message.
const CONSOLE_TAIL_BYTES: usize = 1500;

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Why, for people.
    pub why: String,
    /// The guest's own doing, or as it was told.
    pub orderly: bool,
    /// The host's kernel killed the VMM for want of memory.
    pub oom_killed: bool,
}

/// How the machine ended, from what the VMM said and how its process did.
pub fn of(said: Option<VmEnd>, status: Option<ExitStatus>, oom_killed: bool) -> End {
    let orderly = matches!(said, Some(VmEnd::Reset | VmEnd::Stopped));
    let oom_killed = oom_killed && said.is_none();
    let why = match (said, status) {
        (Some(VmEnd::Reset), _) => "its guest ended".into(),
        (Some(VmEnd::Stopped), _) => "it was stopped".into(),
        (Some(VmEnd::Panicked(console)), _) => {
            format!("the guest's kernel panicked: {}", printable(&console))
        }
        (Some(VmEnd::Failed(why)), _) => printable(&why),
        (None, _) if oom_killed => {
            "the host's kernel killed its VMM for want of memory: the host, or a limit around the container, has too little".into()
        }
        (None, Some(status)) => match status.signal() {
            Some(signal) if signal == rustix::process::Signal::SYS.as_raw() => {
                "its VMM was ended by its system call filter (SIGSYS; the host kernel's log names the call): a bug, or an attack by the guest".into()
            }
            Some(signal) => format!("its VMM was ended by signal {signal}"),
            None => format!("its VMM ended with {status}"),
        },
        (None, None) => "its VMM ended".into(),
    };
    End {
        why,
        orderly,
        oom_killed,
    }
}

/// The end of the console, fit for a message.
pub fn console_tail(dir: &Path) -> String {
    let mut said = Vec::new();
    let read = File::open(dir.join(CONSOLE)).and_then(|file| {
        // The VMM bounds the file; this bounds what is believed of that.
        file.take(4 << 20).read_to_end(&mut said)
    });
    if read.is_err() {
        return String::new();
    }
    let tail = &said[said.len().saturating_sub(CONSOLE_TAIL_BYTES)..];
    printable(&String::from_utf8_lossy(tail))
}

/// A guest's words in one line, without anything that a terminal would obey.
fn printable(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let lines: Vec<String> = text
        .lines()
        .map(|line| {
            line.chars()
                .map(clean)
                .collect::<String>()
                .trim()
                .to_string()
        })
        .filter(|line| !line.is_empty())
        .collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_is_told_apart() {
        let killed = Some(ExitStatus::from_raw(9));
        for (said, status, oom, word, orderly, oom_killed) in [
            (Some(VmEnd::Reset), None, false, "guest ended", true, false),
            (
                Some(VmEnd::Panicked("a\nKernel panic\x1b[0m".into())),
                None,
                false,
                "Kernel panic",
                false,
                false,
            ),
            (None, killed, false, "signal 9", false, false),
            (None, killed, true, "want of memory", false, true),
            (Some(VmEnd::Stopped), None, true, "stopped", true, false),
            (
                None,
                Some(ExitStatus::from_raw(0x100)),
                false,
                "exit status: 1",
                false,
                false,
            ),
        ] {
            let end = of(said, status, oom);
            assert!(
                end.why.contains(word) && !end.why.contains('\x1b'),
                "{}",
                end.why
            );
            assert_eq!(
                (end.orderly, end.oom_killed),
                (orderly, oom_killed),
                "{word}"
            );
        }
    }
}
