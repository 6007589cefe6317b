//! What becomes of the guest's console output: so many bytes go to a file or pipe, the rest is counted; the end is kept for
//! the report of a panic.
//!
//! A guest may write without end and the reader of a pipe may stop reading: nothing here waits or grows.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::sys;

/// How much of the end is kept.
const TAIL_BYTES: usize = 4096;
const PANIC: &str = "Kernel panic";

/// The sink of every console of the machine; clones write to the same.
#[derive(Clone)]
pub struct ConsoleLog(Arc<Mutex<Log>>);

struct Log {
    out: Option<File>,
    /// Bytes that may still be written.
    left: u64,
    dropped_bytes: u64,
    tail: VecDeque<u8>,
}

impl ConsoleLog {
    /// Writes at most `limit_bytes` to `out`. A pipe that is full is not waited for, unless `patient` (a terminal).
    pub fn new(out: Option<File>, limit_bytes: u64, patient: bool) -> Result<Self> {
        if let Some(out) = out.as_ref().filter(|_| !patient) {
            sys::set_nonblocking(out).map_err(Error::io("the console"))?;
        }
        Ok(ConsoleLog(Arc::new(Mutex::new(Log {
            out,
            left: limit_bytes,
            dropped_bytes: 0,
            tail: VecDeque::with_capacity(TAIL_BYTES),
        }))))
    }

    /// Bytes that came beyond the limit, or while the pipe was full.
    pub fn dropped_bytes(&self) -> u64 {
        self.log().dropped_bytes
    }

    /// The end of the output, from the kernel's panic message on, if there is one.
    pub fn panic(&self) -> Option<String> {
        let tail: Vec<u8> = self.log().tail.iter().copied().collect();
        let text = String::from_utf8_lossy(&tail);
        let at = text.rfind(PANIC)?;
        let printable = |c: &char| *c == '\n' || !c.is_control();
        Some(text[at..].chars().filter(printable).collect::<String>())
            .map(|t| t.trim_end().to_owned())
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for ConsoleLog {
    /// Takes everything, whatever becomes of it.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut log = self.log();
        log.keep(bytes);
        log.pass_on(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn keep(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
        let surplus = (self.tail.len() + bytes.len()).saturating_sub(TAIL_BYTES);
        self.tail.drain(..surplus);
        self.tail.extend(bytes);
    }

    fn pass_on(&mut self, bytes: &[u8]) {
        let allowed = usize::try_from(self.left).map_or(bytes.len(), |l| l.min(bytes.len()));
        let written = match self.out.as_mut() {
            Some(out) if allowed > 0 => out.write(&bytes[..allowed]).unwrap_or(0),
            Some(_) => 0,
            None => return,
        };
        self.left -= written as u64;
        self.dropped_bytes += (bytes.len() - written) as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_pipe_that_nobody_reads_stops_nothing_and_what_is_lost_is_counted() {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        let mut log = ConsoleLog::new(Some(file), 1 << 30, false).expect("a log");
        for _ in 0..40 {
            log.write_all(&[b'x'; 4096]).expect("it takes everything");
        }
        let dropped = log.dropped_bytes();
        assert!(dropped > 0);
        drop(log);
        let mut read = Vec::new();
        reader.read_to_end(&mut read).expect("a pipe");
        assert_eq!(read.len() as u64 + dropped, 40 * 4096);
    }

    #[test]
    fn a_file_gets_no_more_than_the_limit() {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        let mut log = ConsoleLog::new(Some(file), 5, false).expect("a log");
        log.write_all(b"123").expect("it takes everything");
        log.write_all(b"4567").expect("it takes everything");
        assert_eq!(log.dropped_bytes(), 2);
        drop(log);
        let mut read = String::new();
        reader.read_to_string(&mut read).expect("a pipe");
        assert_eq!(read, "12345");
    }

    #[test]
    fn a_panic_is_found_at_the_end_of_a_long_output() {
        let mut log = ConsoleLog::new(None, 0, false).expect("a log");
        assert_eq!(log.panic(), None);
        for _ in 0..1000 {
            log.write_all(b"line after line\r\n")
                .expect("it takes everything");
        }
        assert_eq!(log.panic(), None);
        log.write_all(b"[ 1.0] Kernel panic - not syncing: \x1b[1mno init\r\n")
            .expect("it takes everything");
        assert_eq!(
            log.panic().as_deref(),
            Some("Kernel panic - not syncing: [1mno init")
        );
        log.write_all(&[0xff; 5000]).expect("it takes everything");
        assert_eq!(log.panic(), None);
    }
}
