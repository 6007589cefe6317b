//! Docker's json-file log of one process: whole lines, rotation, nothing lost and nothing twice.
//!
//! ```text
//!  {"log":"hello\n","stream":"stdout","time":"2026-11-21T02:43:37.123456789Z"}
//!  {"log":"a line beyond 16 KiB, first p","stream":"stdout","time":T}      no \n: the next of the stream goes on
//!  {"log":"art, and the last\n","stream":"stdout","time":T}                the time of the first part
//! ```
//!
//! Text and escapes are byte for byte what dockerd's json-file driver writes, so that its readers are ours. `path` is the
//! current file, `path.1` the one before, up to `path.(max_files - 1)`. A file is never larger than `max_size_bytes`
//! unless a single line is.
//!
//! When nothing can be written (a full disk) the process must not notice: lines are dropped, counted and, both when it
//! begins and when it ends, reported once. The file never holds half a line.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use caisson_protocol::LogFile;
use caisson_supervisor::{Log, LogStream};

/// dockerd's buffer: a longer line is logged in parts.
const MAX_PART_BYTES: usize = 16 << 10;

/// One process' log.
pub struct JsonLog {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    max_size_bytes: Option<u64>,
    max_files: u32,
    unfinished: [Unfinished; 2],
    /// Encoded lines not written yet.
    pending: Vec<u8>,
    clock: Clock,
    dropped_lines: u64,
    rotation_failed: bool,
}

/// The beginning of a line that has not ended yet.
#[derive(Default)]
struct Unfinished {
    bytes: Vec<u8>,
    /// The time of the line's first part when parts of it have been logged.
    since: Option<String>,
}

impl JsonLog {
    /// Opens or makes the file and goes on at its end.
    pub fn open(file: &LogFile) -> io::Result<Self> {
        let mut log = JsonLog {
            path: file.path.clone(),
            file: open_to_append(&file.path)?,
            size_bytes: 0,
            max_size_bytes: file.max_size_bytes,
            max_files: file.max_files.max(1),
            unfinished: Default::default(),
            pending: Vec::new(),
            clock: Clock::default(),
            dropped_lines: 0,
            rotation_failed: false,
        };
        log.size_bytes = drop_torn_line(&mut log.file)?;
        Ok(log)
    }

    fn take(&mut self, stream: LogStream, bytes: &[u8]) {
        let now = self.clock.now();
        let index = usize::from(stream == LogStream::Stderr);
        let mut rest = bytes;
        while !rest.is_empty() {
            let unfinished = &mut self.unfinished[index];
            let room = MAX_PART_BYTES - unfinished.bytes.len();
            let piece = &rest[..room.min(rest.len())];
            let (piece, ended) = match piece.iter().position(|b| *b == b'\n') {
                Some(newline) => (&piece[..=newline], true),
                None => (piece, false),
            };
            rest = &rest[piece.len()..];
            if ended && unfinished.bytes.is_empty() {
                // The common case: a whole line, without a copy.
                let time = unfinished.since.take();
                self.line(stream, piece, time.as_deref().unwrap_or(&now));
                continue;
            }
            unfinished.bytes.extend_from_slice(piece);
            if ended {
                let line = std::mem::take(&mut unfinished.bytes);
                let time = unfinished.since.take();
                self.line(stream, &line, time.as_deref().unwrap_or(&now));
            } else if unfinished.bytes.len() == MAX_PART_BYTES {
                let mut part = std::mem::take(&mut unfinished.bytes);
                unfinished.bytes = part.split_off(whole_characters(&part));
                let time = unfinished.since.get_or_insert_with(|| now.clone()).clone();
                self.line(stream, &part, &time);
            }
        }
        self.write_pending();
    }

    fn line(&mut self, stream: LogStream, text: &[u8], time: &str) {
        let begin = self.pending.len();
        encode_line(&mut self.pending, stream, text, time);
        let length = (self.pending.len() - begin) as u64;
        let size = self.size_bytes + begin as u64;
        if self
            .max_size_bytes
            .is_some_and(|max| size > 0 && size + length > max)
        {
            let line = self.pending.split_off(begin);
            self.write_pending();
            self.rotate();
            self.pending = line;
        }
    }

    fn write_pending(&mut self) {
        let mut written = 0;
        let error = loop {
            if written == self.pending.len() {
                break None;
            }
            match self.file.write(&self.pending[written..]) {
                Ok(0) => break Some(io::ErrorKind::WriteZero.into()),
                Ok(n) => written += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break Some(e),
            }
        };
        match error {
            None => {
                self.size_bytes += written as u64;
                if written > 0 && self.dropped_lines > 0 {
                    tracing::warn!(path = %self.path.display(), lines = self.dropped_lines, "lines are missing in the log");
                    self.dropped_lines = 0;
                }
            }
            Some(error) => self.drop_unwritten(written, &error),
        }
        self.pending.clear();
    }

    /// Part of the pending lines is in the file: keep the whole ones.
    fn drop_unwritten(&mut self, written: usize, error: &io::Error) {
        if self.dropped_lines == 0 {
            tracing::error!(path = %self.path.display(), %error, "the log cannot be written: lines are dropped until it can");
        }
        let whole = self.pending[..written]
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |newline| newline + 1);
        self.size_bytes += whole as u64;
        if let Err(error) = self.file.set_len(self.size_bytes) {
            tracing::error!(path = %self.path.display(), %error, "half a line stays in the log");
        }
        self.dropped_lines += self.pending[whole..]
            .iter()
            .filter(|b| **b == b'\n')
            .count() as u64;
    }

    fn rotate(&mut self) {
        match self.try_rotate() {
            Ok(()) => self.rotation_failed = false,
            // The current file simply grows on.
            Err(error) => {
                if !std::mem::replace(&mut self.rotation_failed, true) {
                    tracing::error!(path = %self.path.display(), %error, "the log cannot be rotated: it grows beyond its limit");
                }
            }
        }
    }

    fn try_rotate(&mut self) -> io::Result<()> {
        let numbered = |n: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        // The new file exists before the old one leaves its name: a full disk stops here, with nothing lost.
        let mut fresh_name = self.path.clone().into_os_string();
        fresh_name.push(".new");
        let fresh_name = PathBuf::from(fresh_name);
        let fresh = open_to_append(&fresh_name)?;
        fresh.set_len(0)?;
        // only those that are there: the limit is whatever a user says
        let there = (1..self.max_files.saturating_sub(1)).take_while(|n| numbered(*n).exists());
        for n in (1..=there.last().unwrap_or(0)).rev() {
            match fs::rename(numbered(n), numbered(n + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        if self.max_files > 1 {
            match fs::rename(&self.path, numbered(1)) {
                // Somebody removed the log: there is nothing to keep.
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        fs::rename(&fresh_name, &self.path)?;
        self.file = fresh;
        self.size_bytes = 0;
        Ok(())
    }
}

impl Log for JsonLog {
    fn write(&mut self, stream: LogStream, bytes: &[u8]) {
        self.take(stream, bytes);
    }

    fn end(&mut self, stream: LogStream) {
        let index = usize::from(stream == LogStream::Stderr);
        let Unfinished { bytes, since } = std::mem::take(&mut self.unfinished[index]);
        if !bytes.is_empty() {
            let time = since.unwrap_or_else(|| self.clock.now());
            self.line(stream, &bytes, &time);
            self.write_pending();
        }
    }

    fn flush(&mut self) {
        self.write_pending();
    }
}

impl Drop for JsonLog {
    fn drop(&mut self) {
        self.end(LogStream::Stdout);
        self.end(LogStream::Stderr);
    }
}

fn open_to_append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
}

/// A machine that lost power may have left half a line at the end: the file is cut behind its last whole line. Its size.
fn drop_torn_line(file: &mut File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut end = length;
    let mut block = [0; 4096];
    while end > 0 {
        let begin = end.saturating_sub(block.len() as u64);
        let block = &mut block[..(end - begin) as usize];
        file.seek(SeekFrom::Start(begin))?;
        file.read_exact(block)?;
        if let Some(newline) = block.iter().rposition(|b| *b == b'\n') {
            end = begin + newline as u64 + 1;
            break;
        }
        end = begin;
    }
    if end < length {
        file.set_len(end)?;
    }
    Ok(end)
}

/// How many bytes of `text` are whole UTF-8 characters; all of them when its end is not UTF-8 anyway.
fn whole_characters(text: &[u8]) -> usize {
    for back in 1..=3.min(text.len()) {
        let lead = text[text.len() - back];
        let needed = match lead {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xbf => continue,
            _ => break,
        };
        return if needed > back {
            text.len() - back
        } else {
            text.len()
        };
    }
    text.len()
}

fn encode_line(out: &mut Vec<u8>, stream: LogStream, text: &[u8], time: &str) {
    out.extend_from_slice(b"{\"log\":\"");
    escape(out, text);
    out.extend_from_slice(match stream {
        LogStream::Stdout => b"\",\"stream\":\"stdout\",\"time\":\"",
        LogStream::Stderr => b"\",\"stream\":\"stderr\",\"time\":\"",
    });
    out.extend_from_slice(time.as_bytes());
    out.extend_from_slice(b"\"}\n");
}

/// JSON string content as dockerd's jsonlog package writes it.
fn escape(out: &mut Vec<u8>, text: &[u8]) {
    for chunk in text.utf8_chunks() {
        let valid = chunk.valid();
        let mut plain_from = 0;
        for (at, c) in valid.char_indices() {
            let escaped: &[u8] = match c {
                '"' => b"\\\"",
                '\\' => b"\\\\",
                '\n' => b"\\n",
                '\r' => b"\\r",
                '\u{2028}' => b"\\u2028",
                '\u{2029}' => b"\\u2029",
                '<' | '>' | '&' | '\0'..='\x1f' => b"",
                _ => continue,
            };
            out.extend_from_slice(&valid.as_bytes()[plain_from..at]);
            plain_from = at + c.len_utf8();
            if escaped.is_empty() {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let byte = c as usize;
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', HEX[byte >> 4], HEX[byte & 15]]);
            } else {
                out.extend_from_slice(escaped);
            }
        }
        out.extend_from_slice(&valid.as_bytes()[plain_from..]);
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
}

/// The time of day in RFC 3339 with up to nine decimals, the last ones left out when they are zero (Go's RFC3339Nano).
#[derive(Default)]
struct Clock {
    second: u64,
    /// `second` in words, up to the decimals.
    text: String,
}

impl Clock {
    fn now(&mut self) -> String {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        self.show(since_epoch.as_secs(), since_epoch.subsec_nanos())
    }

    fn show(&mut self, second: u64, nanos: u32) -> String {
        if self.text.is_empty() || self.second != second {
            let at = chrono::DateTime::from_timestamp(second as i64, 0).unwrap_or_default();
            self.second = second;
            self.text = at.format("%Y-%m-%dT%H:%M:%S").to_string();
        }
        if nanos == 0 {
            return format!("{}Z", self.text);
        }
        let decimals = format!("{nanos:09}");
        format!("{}.{}Z", self.text, decimals.trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, max_size_bytes: Option<u64>, max_files: u32) -> JsonLog {
        JsonLog::open(&LogFile {
            path: dir.join("x.log"),
            max_size_bytes,
            max_files,
        })
        .expect("opens")
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(path).expect("a log");
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines()
            .map(|l| serde_json::from_str(l).expect("JSON"))
            .collect()
    }

    fn texts(path: &Path) -> Vec<String> {
        lines(path)
            .into_iter()
            .map(|l| l["log"].as_str().expect("text").to_string())
            .collect()
    }

    #[test]
    fn a_line_is_exactly_dockers() {
        let mut out = Vec::new();
        encode_line(
            &mut out,
            LogStream::Stdout,
            b"a\t<b>&\"\\\x7f\r\n",
            "2026-11-21T02:43:37.1Z",
        );
        let expected = r#"{"log":"a\u0009\u003cb\u003e\u0026\"\\"#.to_string()
            + "\x7f"
            + r#"\r\n","stream":"stdout","time":"2026-11-21T02:43:37.1Z"}"#
            + "\n";
        assert_eq!(String::from_utf8(out).expect("UTF-8"), expected);
        let mut out = Vec::new();
        escape(&mut out, b"\xff\xfe\xe2\x80\xa8\xc3\xa4\xe2\x82");
        assert_eq!(
            String::from_utf8(out).expect("UTF-8"),
            "\\ufffd\\ufffd\\u2028\u{e4}\\ufffd\\ufffd"
        );
    }

    #[test]
    fn times_are_rfc3339_without_trailing_zeros() {
        let mut clock = Clock::default();
        assert_eq!(clock.show(1_709_210_096, 0), "2024-02-29T12:34:56Z");
        assert_eq!(
            clock.show(1_709_210_096, 120_000_000),
            "2024-02-29T12:34:56.12Z"
        );
        assert_eq!(
            clock.show(1_709_210_097, 1),
            "2024-02-29T12:34:57.000000001Z"
        );
    }

    #[test]
    fn lines_arrive_whole_however_they_are_cut_and_streams_do_not_mix() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = open(dir.path(), None, 1);
        log.write(LogStream::Stdout, b"he");
        log.write(LogStream::Stderr, b"oops\n");
        log.write(LogStream::Stdout, b"llo\nworld\nend");
        assert_eq!(texts(&log.path), ["oops\n", "hello\n", "world\n"]);
        log.end(LogStream::Stdout);
        assert_eq!(texts(&log.path), ["oops\n", "hello\n", "world\n", "end"]);
    }

    #[test]
    fn a_long_line_comes_in_parts_of_one_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = open(dir.path(), None, 1);
        let long = "x".repeat(2 * MAX_PART_BYTES + 5) + "\nnext\n";
        for piece in long.as_bytes().chunks(1000) {
            log.write(LogStream::Stdout, piece);
        }
        let lines = lines(&log.path);
        let texts = texts(&log.path);
        assert_eq!(
            texts.iter().map(String::len).collect::<Vec<_>>(),
            [MAX_PART_BYTES, MAX_PART_BYTES, 6, 5]
        );
        assert_eq!(texts.concat(), long);
        assert_eq!(lines[0]["time"], lines[2]["time"]);
        assert_ne!(lines[2]["time"], lines[3]["time"]);
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_followed_by_its_newline_as_in_docker() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = open(dir.path(), None, 1);
        log.write(
            LogStream::Stdout,
            ("x".repeat(MAX_PART_BYTES) + "\n").as_bytes(),
        );
        log.write(
            LogStream::Stdout,
            ("x".repeat(MAX_PART_BYTES - 1) + "\n").as_bytes(),
        );
        let lengths: Vec<_> = texts(&log.path).iter().map(String::len).collect();
        assert_eq!(lengths, [MAX_PART_BYTES, 1, MAX_PART_BYTES]);
    }

    #[test]
    fn parts_do_not_cut_characters() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = open(dir.path(), None, 1);
        let long = "a".to_string() + &"\u{20ac}".repeat(MAX_PART_BYTES) + "\n";
        log.write(LogStream::Stdout, long.as_bytes());
        assert_eq!(texts(&log.path).concat(), long);
    }

    #[test]
    fn rotation_keeps_the_newest_files_within_the_limit_and_every_line_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = open(dir.path(), Some(1000), 3);
        for n in 0..40 {
            log.write(LogStream::Stdout, format!("line {n}\n").as_bytes());
        }
        let file = |suffix: &str| dir.path().join(format!("x.log{suffix}"));
        let kept: Vec<String> = [".2", ".1", ""]
            .iter()
            .flat_map(|s| texts(&file(s)))
            .collect();
        let first = 40 - kept.len();
        assert_eq!(
            kept,
            (first..40)
                .map(|n| format!("line {n}\n"))
                .collect::<Vec<_>>()
        );
        assert!(kept.len() > 20);
        assert!(!file(".3").exists() && !file(".new").exists());
        for suffix in ["", ".1", ".2"] {
            assert!(fs::metadata(file(suffix)).expect("kept").len() <= 1000);
        }
    }

    #[test]
    fn any_number_of_files_may_be_allowed() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = open(dir.path(), Some(200), u32::MAX);
        for n in 0..6 {
            log.write(LogStream::Stdout, format!("line {n}\n").as_bytes());
        }
        let kept = ["x.log.2", "x.log.1", "x.log"].map(|name| texts(&dir.path().join(name)));
        assert_eq!(kept.concat().len(), 6);
        assert_eq!(kept[0][0], "line 0\n");
    }

    #[test]
    fn one_burst_over_several_files_is_rotated_within() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = open(dir.path(), Some(1000), 5);
        let burst: String = (0..40).map(|n| format!("line {n}\n")).collect();
        log.write(LogStream::Stdout, burst.as_bytes());
        let all: Vec<String> = [".4", ".3", ".2", ".1", ""]
            .iter()
            .map(|s| dir.path().join(format!("x.log{s}")))
            .filter(|p| p.exists())
            .flat_map(|p| texts(&p))
            .collect();
        assert_eq!(all.concat(), burst);
    }

    #[test]
    fn a_single_file_begins_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = open(dir.path(), Some(300), 1);
        for n in 0..10 {
            log.write(LogStream::Stdout, format!("line {n}\n").as_bytes());
        }
        assert_eq!(texts(&log.path).last().expect("a line"), "line 9\n");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
    }

    #[test]
    fn reopening_goes_on_and_cuts_a_torn_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.log");
        open(dir.path(), None, 1).write(LogStream::Stdout, b"one\n");
        let mut torn = fs::read(&path).expect("a log");
        torn.extend_from_slice(b"{\"log\":\"half");
        fs::write(&path, torn).expect("written");
        open(dir.path(), None, 1).write(LogStream::Stdout, b"two\n");
        assert_eq!(texts(&path), ["one\n", "two\n"]);
    }

    #[test]
    fn a_full_disk_drops_lines_and_leaves_the_file_well_formed() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = open(dir.path(), None, 1);
        log.write(LogStream::Stdout, b"one\n");
        let good = std::mem::replace(
            &mut log.file,
            OpenOptions::new()
                .write(true)
                .open("/dev/full")
                .expect("opens"),
        );
        log.write(LogStream::Stdout, b"two\nthree\n");
        assert_eq!(log.dropped_lines, 2);
        log.file = good;
        log.write(LogStream::Stdout, b"four\n");
        assert_eq!(log.dropped_lines, 0);
        assert_eq!(texts(&log.path), ["one\n", "four\n"]);
    }
}
