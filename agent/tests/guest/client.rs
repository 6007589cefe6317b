//! One connection with an agent.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use caisson_protocol::{
    Attach, AttachRequest, Chunk, ChunkDecoder, Error, FrameDecoder, GENERATION, Hello, Outcome,
    Request, RequestFrame, Response, ResponseFrame, Stream, chunk_header, encode,
};

use crate::machine::read_frame;

/// Requests and their answers, one after the other.
pub struct Client {
    stream: UnixStream,
    decoder: FrameDecoder,
    next_id: u64,
}

impl Client {
    pub fn greet(mut stream: UnixStream) -> Client {
        let hello = Hello {
            generation: GENERATION,
            version: "test".into(),
            pid: None,
        };
        stream
            .write_all(&encode(&hello).expect("a frame"))
            .expect("the agent listens");
        let mut decoder = FrameDecoder::default();
        let hello: Hello = read_frame(&mut stream, &mut decoder);
        assert_eq!(hello.generation, GENERATION);
        Client {
            stream,
            decoder,
            next_id: 1,
        }
    }

    pub fn ask(&mut self, request: Request) -> Result<Response, Error> {
        let id = self.next_id;
        self.next_id += 1;
        let frame = encode(&RequestFrame { id, request }).expect("a frame");
        self.stream.write_all(&frame).expect("the agent listens");
        let answer: ResponseFrame = read_frame(&mut self.stream, &mut self.decoder);
        assert_eq!(answer.id, id);
        match answer.outcome {
            Outcome::Ok(response) => Ok(response),
            Outcome::Error(error) => Err(error),
        }
    }

    /// Turns the connection into chunks.
    pub fn become_chunks(mut self, request: Request) -> Result<Chunks, Error> {
        self.ask(request)?;
        Ok(Chunks {
            decoder: ChunkDecoder::with_rest(self.decoder.take_rest()),
            stream: self.stream,
        })
    }

    /// The journal of a process with its input and output.
    pub fn journal(self, process: &str, stdin: bool) -> Chunks {
        let request = Request::Attach(AttachRequest {
            process: process.into(),
            streams: Attach {
                stdin,
                stdout: true,
                stderr: true,
            },
            journal: true,
        });
        self.become_chunks(request).expect("a journal")
    }
}

/// A connection that has become chunks.
pub struct Chunks {
    stream: UnixStream,
    decoder: ChunkDecoder,
}

/// All that came until the other side hung up.
#[derive(Debug, Default)]
pub struct Everything {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub status: Option<Outcome>,
}

impl Everything {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn exit_code(&self) -> Option<i32> {
        match &self.status {
            Some(Outcome::Ok(Response::Exited(status))) => Some(status.code),
            _ => None,
        }
    }
}

impl Chunks {
    pub fn send(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(64 << 10) {
            let header = chunk_header(Stream::Stdin, part.len());
            self.stream.write_all(&header).expect("the agent listens");
            self.stream.write_all(part).expect("the agent listens");
        }
    }

    pub fn end_input(&mut self) {
        let header = chunk_header(Stream::Stdin, 0);
        self.stream.write_all(&header).expect("the agent listens");
    }

    pub fn next(&mut self) -> Option<Chunk> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(chunk) = self.decoder.next_chunk().expect("a chunk") {
                return Some(chunk);
            }
            match self.stream.read(&mut buffer).expect("data in time") {
                0 => return None,
                count => self.decoder.feed(&buffer[..count]),
            }
        }
    }

    pub fn read_all(mut self) -> Everything {
        let mut all = Everything::default();
        while let Some(chunk) = self.next() {
            match chunk.stream {
                Stream::Stdout => all.stdout.extend(&chunk.bytes),
                Stream::Stderr => all.stderr.extend(&chunk.bytes),
                Stream::Status => {
                    all.status = serde_json::from_slice(&chunk.bytes).expect("a status");
                }
                Stream::Stdin => panic!("input from the agent"),
            }
        }
        all
    }
}
