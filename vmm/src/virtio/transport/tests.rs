//! The registers from the driver's side.

use proptest::prelude::*;

use super::*;
use crate::virtio::testing;

/// Says what it was given; its worker is nobody.
#[derive(Default)]
struct Probe {
    active: Option<Activation>,
    activations: Arc<Mutex<Vec<QueueState>>>,
    remembered: u64,
}

impl Device for Probe {
    fn kind(&self) -> u32 {
        4
    }
    fn features(&self) -> u64 {
        F_EVENT_IDX
    }
    fn queue_sizes(&self) -> &[u16] {
        &[64, 16]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        if offset == 0 && data.len() == 1 {
            data[0] = self.remembered as u8;
        }
    }
    fn write_config(&mut self, _: u64, data: &[u8]) {
        self.remembered = u64::from(data[0]);
    }
    fn activate(&mut self, activation: Activation) -> Result<()> {
        let mut seen = self
            .activations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        seen.extend(activation.queues.iter().map(Queue::state));
        self.active = Some(activation);
        Ok(())
    }
    fn stop(&mut self) -> Option<Activation> {
        self.active.take()
    }
    fn save(&self) -> Value {
        self.remembered.into()
    }
    fn restore(&mut self, state: Value) -> Result<()> {
        let bad = || Error::Snapshot("no number".into());
        self.remembered = state.as_u64().ok_or_else(bad)?;
        Ok(())
    }
    fn command(&mut self, _: &Command) -> Result<Changed> {
        Ok(Changed::Config)
    }
}

struct Bench {
    transport: Transport,
    activations: Arc<Mutex<Vec<QueueState>>>,
    line: EventFd,
}

impl Bench {
    fn new() -> Self {
        let event = || EventFd::new(libc::EFD_NONBLOCK).expect("eventfd");
        let device = Probe::default();
        let activations = device.activations.clone();
        let line = event();
        let interrupt = Interrupt::new(line.try_clone().expect("eventfd"));
        let kicks = Arc::new(vec![event(), event()]);
        Bench {
            transport: Transport::new(Box::new(device), testing::memory(), kicks, interrupt),
            activations,
            line,
        }
    }

    fn read(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// As a driver does, with two queues.
    fn begin(&self) {
        self.write(0x70, 1);
        self.write(0x70, 3);
        self.write(0x24, 1);
        self.write(0x20, 1);
        self.write(0x70, 11);
        for (queue, at) in [(0, 0x1000), (1, 0x3000)] {
            self.write(0x30, queue);
            self.write(0x38, 16);
            self.write(0x80, at);
            self.write(0x90, at + 0x800);
            self.write(0xa0, at + 0x1000);
            self.write(0x44, 1);
        }
        self.write(0x70, 15);
    }

    fn seen(&self) -> Vec<QueueState> {
        self.activations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[test]
fn a_driver_finds_the_device_and_starts_it() {
    let bench = Bench::new();
    assert_eq!(bench.read(0), MAGIC);
    assert_eq!(bench.read(4), 2);
    assert_eq!(bench.read(8), 4);
    bench.write(0x14, 1);
    assert_eq!(bench.read(0x10), 1, "VERSION_1");
    bench.begin();
    assert_eq!(bench.read(0x70), 15);
    let seen = bench.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!((seen[1].size, seen[1].desc_table), (16, 0x3000));
}

#[test]
fn queue_registers_are_frozen_once_the_driver_is_ready() {
    let bench = Bench::new();
    bench.begin();
    let before = bench.seen();
    bench.transport.pause();
    let saved = serde_json::to_value(bench.transport.save()).expect("JSON");
    bench.transport.resume();
    for offset in [0x38, 0x44, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0x20] {
        bench.write(0x30, 0);
        bench.write(offset, 0xdead_0000);
    }
    bench.write(
        0x30,
        saved["queue_selected"].as_u64().expect("a number") as u32,
    );
    bench.transport.pause();
    let after = serde_json::to_value(bench.transport.save()).expect("JSON");
    assert_eq!(after, saved);
    bench.transport.resume();
    assert_eq!(bench.seen()[..2], before[..2]);
    assert_eq!(bench.seen()[4..], before[..2], "activated again as it was");
}

#[test]
fn features_that_were_not_offered_are_not_accepted() {
    let bench = Bench::new();
    bench.write(0x70, 1);
    bench.write(0x70, 3);
    bench.write(0x24, 1);
    bench.write(0x20, 1);
    bench.write(0x24, 0);
    bench.write(0x20, 1 << 5);
    bench.write(0x70, 11);
    assert_eq!(bench.read(0x70), 3, "FEATURES_OK does not stick");
    bench.write(0x70, 7);
    assert_eq!(bench.read(0x70), 3, "nor DRIVER_OK");
}

#[test]
fn a_queue_outside_memory_needs_a_reset_and_a_reset_begins_anew() {
    let bench = Bench::new();
    bench.write(0x70, 1);
    bench.write(0x70, 3);
    bench.write(0x24, 1);
    bench.write(0x20, 1);
    bench.write(0x70, 11);
    bench.write(0x38, 16);
    bench.write(0x84, 0xffff_ffff);
    bench.write(0x44, 1);
    bench.write(0x70, 15);
    assert_eq!(bench.read(0x70) & 64, 64);
    assert!(bench.seen().is_empty());
    bench.write(0x70, 0);
    assert_eq!(bench.read(0x70), 0);
    bench.begin();
    assert_eq!(bench.read(0x70), 15);
}

#[test]
fn a_changed_configuration_interrupts_and_has_a_new_generation() {
    let bench = Bench::new();
    let command = Command::SetBalloon(0);
    bench.transport.command(&command).expect("it takes it");
    assert!(bench.line.read().is_err(), "no driver to be told");
    bench.begin();
    let before = bench.read(0xfc);
    bench.transport.command(&command).expect("it takes it");
    assert_eq!(bench.read(0xfc), before + 1);
    assert_eq!(bench.read(0x60), 2);
    assert!(bench.line.read().is_ok());
    bench.write(0x64, 2);
    assert_eq!(bench.read(0x60), 0);
}

#[test]
fn a_state_goes_into_another_transport_and_a_changed_one_does_not() {
    let bench = Bench::new();
    bench.transport.write(CONFIG, &[42]);
    bench.begin();
    bench.transport.pause();
    let saved = serde_json::to_value(bench.transport.save()).expect("JSON");
    let restored = |change: &dyn Fn(&mut Value)| {
        let mut state = saved.clone();
        change(&mut state);
        let other = Bench::new();
        let state = serde_json::from_value(state).expect("a state");
        other.transport.restore(state).map(|()| other)
    };
    let other = restored(&|_| {}).expect("it fits");
    assert!(other.seen().is_empty(), "it waits for the resume");
    other.transport.resume();
    assert_eq!(other.seen(), bench.seen());
    let mut config = [0];
    other.transport.read(CONFIG, &mut config);
    assert_eq!(config, [42]);

    let changes: [&dyn Fn(&mut Value); 7] = [
        &|s| s["kind"] = 5.into(),
        &|s| s["queues"][0]["descriptors"] = u64::MAX.into(),
        &|s| s["queues"][0]["size"] = 3.into(),
        &|s| s["queues"][0]["max_size"] = 32768.into(),
        &|s| drop(s["queues"].as_array_mut().map(Vec::pop)),
        &|s| s["driver_features"] = u64::MAX.into(),
        &|s| s["device"] = "text".into(),
    ];
    for change in changes {
        let error = restored(change).err().expect("it is refused");
        assert!(matches!(error, Error::Snapshot(_)), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_sequence_of_accesses_panics(accesses in prop::collection::vec(
        (prop_oneof![0_u64..0x110, any::<u64>()], prop_oneof![0_u32..16, any::<u32>()], 0_usize..9, any::<bool>()),
        0..200,
    )) {
        let bench = Bench::new();
        for (offset, value, len, write) in accesses {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&value.to_le_bytes());
            // accesses are of one to eight bytes
            let data = &mut bytes[..len.max(1)];
            if write {
                bench.transport.write(offset, data);
            } else {
                bench.transport.read(offset, data);
            }
        }
        bench.transport.pause();
        let _ = bench.transport.save();
        bench.transport.resume();
    }
}
