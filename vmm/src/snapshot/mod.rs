//! A paused machine as two files, and back.
//!
//! ```text
//! state    {"version":1,"sha256":"…","state":{…}}   the digest is that of the state's text
//!          vCPUs · interrupt controllers, timer, clock · serial port · devices: transport, queues, what each remembers
//! memory   as many bytes as the guest has; a hole where a page is zero. Restored by mapping it private
//! ```
//!
//! A snapshot fits a machine with the same number of vCPUs, the same memory and the same devices in the same order, on a
//! host whose processor has every feature that the guest was shown. The digest finds damage; who may hand a VMM a snapshot
//! is the caller's concern.

mod chips;
mod memory;
mod vcpu;

pub use chips::Chips;
pub use memory::{Pagemap, map};
pub use vcpu::VcpuState;

use std::fs::File;
use std::io::{Read, Write};

use caisson_protocol::vmm::VmSpec;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::serial::Registers;
use crate::virtio::TransportState;

const VERSION: u32 = 1;
/// 64 vCPUs take a tenth of this.
const STATE_MAX_BYTES: u64 = 32 << 20;

/// Everything but the memory.
#[derive(Serialize, Deserialize)]
pub struct State {
    /// The memory's size: the other file's.
    pub memory_bytes: u64,
    /// Whether the guest was told that it runs with the assist.
    pub assisted: bool,
    #[allow(missing_docs)]
    pub vcpus: Vec<VcpuState>,
    #[allow(missing_docs)]
    pub chips: Chips,
    #[allow(missing_docs)]
    pub serial: Registers,
    /// In the order of the devices.
    pub devices: Vec<TransportState>,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u32,
    sha256: String,
    state: Box<RawValue>,
}

impl State {
    /// Writes the state's file.
    pub fn write(&self, mut file: &File) -> Result<()> {
        let state = serde_json::value::to_raw_value(self).map_err(unfit)?;
        let envelope = Envelope {
            version: VERSION,
            sha256: digest(&state),
            state,
        };
        let bytes = serde_json::to_vec(&envelope).map_err(unfit)?;
        file.write_all(&bytes)
            .map_err(Error::io("the state's file"))
    }

    /// Reads it back, if it is whole and of this version.
    pub fn read(file: &File) -> Result<Self> {
        let mut bytes = Vec::new();
        file.take(STATE_MAX_BYTES)
            .read_to_end(&mut bytes)
            .map_err(Error::io("the state's file"))?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let envelope: Envelope = serde_json::from_slice(bytes).map_err(unfit)?;
        if envelope.version != VERSION {
            return Err(unfit(format!(
                "its version is {}, this VMM's {VERSION}",
                envelope.version
            )));
        }
        if envelope.sha256 != digest(&envelope.state) {
            return Err(unfit("its digest is not that of its content"));
        }
        serde_json::from_str(envelope.state.get()).map_err(unfit)
    }

    /// Whether it is of a machine like the one that is asked for.
    pub fn check(&self, spec: &VmSpec, assisted: bool) -> Result<()> {
        if self.vcpus.len() != usize::from(spec.vcpus) {
            return Err(unfit(format!(
                "it has {} vCPUs, the spec {}",
                self.vcpus.len(),
                spec.vcpus
            )));
        }
        if self.memory_bytes != spec.memory_bytes {
            return Err(unfit(format!(
                "it has {} bytes of memory, the spec {}",
                self.memory_bytes, spec.memory_bytes
            )));
        }
        if self.assisted != assisted {
            let of = |assisted| if assisted { "emulates" } else { "runs" };
            return Err(unfit(format!(
                "it is of a host that {} ring 0, this one {} it",
                of(self.assisted),
                of(assisted)
            )));
        }
        Ok(())
    }
}

fn digest(text: &RawValue) -> String {
    hex::encode(Sha256::digest(text.get().as_bytes()))
}

/// A snapshot that cannot be used.
pub fn unfit(why: impl std::fmt::Display) -> Error {
    Error::Snapshot(why.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state() -> State {
        State {
            memory_bytes: 64 << 20,
            assisted: false,
            vcpus: vec![VcpuState::default()],
            chips: Chips::default(),
            serial: Registers::default(),
            devices: Vec::new(),
        }
    }

    fn written() -> Vec<u8> {
        let file = tempfile::tempfile().expect("a file");
        state().write(&file).expect("it is written");
        let mut bytes = Vec::new();
        std::io::Seek::rewind(&mut &file).expect("a file");
        (&file).read_to_end(&mut bytes).expect("a file");
        bytes
    }

    #[test]
    fn a_state_comes_back() {
        let back = State::parse(&written()).expect("it is whole");
        assert_eq!(back.memory_bytes, 64 << 20);
        assert_eq!(back.vcpus.len(), 1);
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let text = String::from_utf8(written()).expect("text");
        let other = text.replacen("\"version\":1", "\"version\":2", 1);
        let error = State::parse(other.as_bytes()).err().expect("it is refused");
        assert!(error.to_string().contains("version is 2"), "{error}");
    }

    #[test]
    fn what_does_not_fit_the_spec_is_refused_by_name() {
        let spec = |vcpus: u8, mib: u64| -> VmSpec {
            let text = format!(
                r#"{{"id":"t","vcpus":{vcpus},"memory_bytes":{},"kernel":{{"fd":9}},"command_line":""}}"#,
                mib << 20
            );
            serde_json::from_str(&text).expect("a spec")
        };
        let refused = |spec: VmSpec, assisted| {
            let error = state().check(&spec, assisted).expect_err("it is refused");
            error.to_string()
        };
        assert!(refused(spec(2, 64), false).contains("1 vCPUs"));
        assert!(refused(spec(1, 65), false).contains("bytes of memory"));
        assert!(refused(spec(1, 64), true).contains("ring 0"));
        assert!(state().check(&spec(1, 64), false).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_damaged_state_is_refused_and_never_panics(cut in 0.0..1.0_f64, at in 0.0..1.0_f64, byte: u8) {
            let whole = written();
            let end = (whole.len() as f64 * cut) as usize;
            prop_assert!(State::parse(&whole[..end]).is_err());
            let mut changed = whole.clone();
            let at = (whole.len() as f64 * at) as usize;
            changed[at] = byte;
            prop_assert!(changed == whole || State::parse(&changed).is_err());
        }

        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(State::parse(&bytes).is_err());
        }
    }
}
