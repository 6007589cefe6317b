//! A target's first inputs. They are made when it starts, so that they are always valid messages of this build.

use std::fs;
use std::path::Path;

use nix::sys::signal::{SigSet, Signal};

/// Puts seeds into the corpus that libFuzzer was started with: the first directory among the arguments. Without one (a
/// single input is run again) nothing is planted.
pub fn plant(seeds: impl IntoIterator<Item = Vec<u8>>) {
    // a Rust program ignores it, one that begins in libFuzzer's `main` does not
    SigSet::from(Signal::SIGPIPE)
        .thread_block()
        .expect("a signal");
    let Some(corpus) = std::env::args().skip(1).find(|a| Path::new(a).is_dir()) else {
        return;
    };
    for (number, seed) in seeds.into_iter().enumerate() {
        let path = Path::new(&corpus).join(format!("seed-{number:03}"));
        fs::write(&path, seed).expect("the corpus can be written");
    }
}

/// The samples of every message that `protocol` has frozen, by name.
pub fn messages() -> Vec<(String, Vec<u8>)> {
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/../protocol/schema/1");
    let mut messages: Vec<_> = fs::read_dir(samples)
        .expect("the samples of the protocol")
        .map(|entry| {
            let path = entry.expect("a sample").path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            (name.into_owned(), fs::read(&path).expect("a sample"))
        })
        .collect();
    messages.sort();
    messages
}

/// `content` behind its length, as it is on a connection.
pub fn frame(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u32).to_le_bytes(), content].concat()
}
