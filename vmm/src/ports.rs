//! The few I/O ports of the machine: the serial console and the reset line of the keyboard controller (`reboot=k`).

use std::sync::{Mutex, PoisonError};

use crate::serial::{Console, Registers};

const KEYBOARD_COMMAND: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;

/// What a write to a port asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing more.
    None,
    /// To end: a guest without ACPI powers off by resetting itself.
    Reset,
}

/// The ports.
pub struct Ports(Mutex<Console>);

impl Ports {
    /// With this console.
    pub fn new(console: Console) -> Self {
        Ports(Mutex::new(console))
    }

    /// The serial port's registers.
    pub fn serial(&self) -> Registers {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .registers()
    }

    /// The guest writes.
    pub fn write(&self, port: u16, data: &[u8]) -> Effect {
        if Console::owns(port) {
            let mut console = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            for byte in data {
                console.write(port, *byte);
            }
        } else if port == KEYBOARD_COMMAND && data == [PULSE_RESET] {
            return Effect::Reset;
        }
        Effect::None
    }

    /// The guest reads; where nothing answers it sees ones.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        if port == KEYBOARD_COMMAND {
            // nothing is waiting: a resetting guest asks up to 65,536 times until it sees this
            return data.fill(0);
        }
        data.fill(0xff);
        if let (true, [first, ..]) = (Console::owns(port), data) {
            *first = self
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .read(port);
        }
    }
}
