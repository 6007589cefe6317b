//! The smallest HTTP client that can ask a daemon something over its socket, byte for byte.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

/// An answer.
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Header lines as sent.
    pub head: String,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("not JSON ({e}): {}", String::from_utf8_lossy(&self.body)))
    }

    /// `message` of an error answer.
    pub fn message(&self) -> String {
        self.json()["message"]
            .as_str()
            .unwrap_or_default()
            .to_string()
    }
}

/// Sends one request to a Unix socket and reads the whole answer.
pub fn request(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> std::io::Result<Answer> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(crate::patience(60)))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    send(
        stream,
        method,
        path,
        &["Content-Type: application/json"],
        body.as_bytes(),
    )
}

/// Sends one request over a connection and reads the whole answer.
pub fn send(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    headers: &[&str],
    body: &[u8],
) -> std::io::Result<Answer> {
    // HTTP/1.0: the answer is neither chunked nor kept alive
    let headers: String = headers
        .iter()
        .map(|header| format!("{header}\r\n"))
        .collect();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let end = bytes
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .unwrap_or(bytes.len().saturating_sub(4));
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .unwrap_or(0);
    Ok(Answer {
        status,
        head,
        body: bytes[(end + 4).min(bytes.len())..].to_vec(),
    })
}

/// Whether a daemon answers on this socket.
pub fn ping(socket: &Path) -> bool {
    request(socket, "GET", "/_ping", None).is_ok_and(|answer| answer.status == 200)
}

/// Follows the daemon's events on a thread of its own until the daemon goes away.
pub fn follow_events(
    socket: &Path,
    mut each: impl FnMut(Value) + Send + 'static,
) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    write!(stream, "GET /events HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    std::thread::spawn(move || {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return,
            }
        }
        let events = serde_json::Deserializer::from_reader(std::io::BufReader::new(stream))
            .into_iter::<Value>();
        events.map_while(Result::ok).for_each(&mut each);
    });
    Ok(())
}
