//! the user's terminal: whether there is one, its size, raw mode with a guard that restores it, and the detach key sequence.

use std::io::IsTerminal;
use std::os::fd::AsFd;

use rustix::termios::{self, OptionalActions, Termios};

/// Whether standard input is a terminal.
pub fn stdin_is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// Whether standard output is a terminal.
pub fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Rows and columns, of standard output or else of standard input.
pub fn size() -> Option<(u16, u16)> {
    fn of(fd: impl AsFd) -> Option<(u16, u16)> {
        termios::tcgetwinsize(fd)
            .ok()
            .map(|s| (s.ws_row, s.ws_col))
            .filter(|(r, c)| *r > 0 && *c > 0)
    }
    of(std::io::stdout()).or_else(|| of(std::io::stdin()))
}

/// Columns to wrap help at.
pub fn width() -> usize {
    size().map_or(80, |(_, columns)| usize::from(columns))
}

/// Raw mode, undone on drop.
pub struct RawMode {
    saved: Termios,
}

impl RawMode {
    /// Switches standard input to raw mode; output processing stays off as Docker has it.
    pub fn enter() -> Result<Self, String> {
        let saved = termios::tcgetattr(std::io::stdin())
            .map_err(|e| format!("could not read the terminal's mode: {e}"))?;
        let mut raw = saved.clone();
        raw.make_raw();
        termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)
            .map_err(|e| format!("could not set the terminal to raw mode: {e}"))?;
        Ok(RawMode { saved })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that has gone away.
        let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.saved);
    }
}

/// Docker's default way out of an attached terminal.
pub const DEFAULT_DETACH_KEYS: &str = "ctrl-p,ctrl-q";

/// Reads `ctrl-p,ctrl-q` or single letters as bytes.
pub fn parse_detach_keys(text: &str) -> Result<Vec<u8>, String> {
    text.split(',')
        .map(|key| match key.as_bytes() {
            [one] => Ok(*one),
            bytes if key.starts_with("ctrl-") && bytes.len() == 6 => match bytes[5] {
                letter @ b'a'..=b'z' => Ok(letter - b'a' + 1),
                b'@' => Ok(0),
                symbol @ (b'[' | b'\\' | b']' | b'^' | b'_') => Ok(symbol - b'[' + 27),
                _ => Err(format!("Unknown character: '{key}'")),
            },
            _ => Err(format!("Unknown character: '{key}'")),
        })
        .collect()
}

/// Watches typed bytes for the detach sequence.
pub struct DetachWatch {
    keys: Vec<u8>,
    matched: usize,
}

/// What became of typed bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    /// Send these on (part of a possible sequence is held back).
    Send(Vec<u8>),
    /// Send these on; then the user wants to leave.
    Detach(Vec<u8>),
}

impl DetachWatch {
    /// A watch for these keys.
    pub fn new(keys: Vec<u8>) -> Self {
        DetachWatch { keys, matched: 0 }
    }

    /// Feeds typed bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Typed {
        if self.keys.is_empty() {
            return Typed::Send(bytes.to_vec());
        }
        let mut out = Vec::with_capacity(bytes.len() + self.matched);
        for byte in bytes {
            if *byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    self.matched = 0;
                    return Typed::Detach(out);
                }
                continue;
            }
            out.extend_from_slice(&self.keys[..self.matched]);
            self.matched = 0;
            if *byte == self.keys[0] && self.keys.len() > 1 {
                self.matched = 1;
            } else {
                out.push(*byte);
            }
        }
        Typed::Send(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_parse() {
        assert_eq!(parse_detach_keys("ctrl-p,ctrl-q"), Ok(vec![16, 17]));
        assert_eq!(parse_detach_keys("a,ctrl-@,ctrl-["), Ok(vec![b'a', 0, 27]));
        assert_eq!(parse_detach_keys("ctrl-_"), Ok(vec![31]));
        for bad in ["", "ctrl-", "ctrl-1", "ab"] {
            assert!(parse_detach_keys(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_broken_sequence_is_passed_on_whole() {
        let mut watch = DetachWatch::new(vec![16, 17]);
        assert_eq!(watch.feed(b"x\x10"), Typed::Send(b"x".to_vec()));
        assert_eq!(watch.feed(b"y"), Typed::Send(b"\x10y".to_vec()));
        assert_eq!(watch.feed(b"\x10\x10"), Typed::Send(b"\x10".to_vec()));
        assert_eq!(watch.feed(b"\x11rest"), Typed::Detach(Vec::new()));
    }
}
