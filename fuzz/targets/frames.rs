//! What either end of a connection makes of the other's bytes: frames, then chunks. However the bytes are cut on their way,
//! the same messages come out.

#![no_main]

use caisson_fuzz::seeds;
use caisson_protocol::{
    Chunk, ChunkDecoder, FrameDecoder, GuestSetup, Hello, Outcome, RequestFrame, ResponseFrame,
    Stream, VmSetup, chunk_header, decode, encode,
};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

fuzz_target!(init: seeds::plant(connections()), |data: &[u8]| run(data));

fn run(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else {
        return;
    };
    let cut = usize::from(*cut) + 1;
    let frames = frames(bytes, bytes.len().max(1));
    assert_eq!(frames, self::frames(bytes, cut));
    for frame in &frames {
        again::<Hello>(frame);
        again::<RequestFrame>(frame);
        again::<ResponseFrame>(frame);
        again::<GuestSetup>(frame);
        again::<VmSetup>(frame);
        again::<Outcome>(frame);
    }
    assert_eq!(chunks(bytes, bytes.len().max(1)), chunks(bytes, cut));
}

fn frames(bytes: &[u8], cut: usize) -> Vec<Vec<u8>> {
    let mut decoder = FrameDecoder::default();
    let mut frames = Vec::new();
    for piece in bytes.chunks(cut) {
        decoder.feed(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return frames,
            }
        }
    }
    frames
}

fn chunks(bytes: &[u8], cut: usize) -> Vec<Chunk> {
    let mut decoder = ChunkDecoder::default();
    let mut chunks = Vec::new();
    for piece in bytes.chunks(cut) {
        decoder.feed(piece);
        loop {
            match decoder.next_chunk() {
                Ok(Some(chunk)) => chunks.push(chunk),
                Ok(None) => break,
                Err(_) => return chunks,
            }
        }
    }
    chunks
}

/// What was understood can be said, and is understood again.
fn again<T: Serialize + DeserializeOwned>(frame: &[u8]) {
    if let Ok(message) = decode::<T>(frame)
        && let Ok(said) = encode(&message)
    {
        let content = &said[caisson_protocol::FRAME_HEADER_BYTES..];
        let back: T = decode(content).expect("our own message");
        assert_eq!(encode(&back).expect("it was short enough before"), said);
    }
}

/// Each message as the only one of a connection; a stream.
fn connections() -> Vec<Vec<u8>> {
    let messages = seeds::messages().into_iter();
    let mut seeds: Vec<_> = messages
        .map(|(_, m)| [&[99][..], &seeds::frame(&m)].concat())
        .collect();
    let chunk = |stream, bytes: &[u8]| [&chunk_header(stream, bytes.len())[..], bytes].concat();
    let stream = [
        chunk(Stream::Stdout, b"hello"),
        chunk(Stream::Stderr, b""),
        chunk(Stream::Status, b"{}"),
    ];
    seeds.push([&[3][..], &stream.concat()].concat());
    seeds
}
