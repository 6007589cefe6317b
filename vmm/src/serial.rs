//! The serial port that boot messages go to: a 16550A at 0x3f8, IRQ 4.

use std::io::Write;

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, Result};

/// Its first port.
pub const PORT: u16 = 0x3f8;
const PORTS: u16 = 8;

/// The port's registers in the order of vm-superio's, and what the guest has not read yet.
#[derive(Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Registers {
    pub registers: [u8; 9],
    pub received: Vec<u8>,
}

/// An interrupt line.
pub struct Line(pub EventFd);

impl Trigger for Line {
    type E = std::io::Error;
    fn trigger(&self) -> std::io::Result<()> {
        self.0.write(1)
    }
}

/// The port, writing to any sink.
pub struct Console(Serial<Line, NoEvents, Box<dyn Write + Send>>);

impl Console {
    /// A port whose output goes to `out`.
    pub fn new(line: Line, out: Box<dyn Write + Send>) -> Self {
        Console(Serial::new(line, out))
    }

    /// A port whose registers are these.
    pub fn restored(line: Line, out: Box<dyn Write + Send>, from: &Registers) -> Result<Self> {
        let [
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
        ] = from.registers;
        let state = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: from.received.clone(),
        };
        Serial::from_state(&state, line, NoEvents, out)
            .map(Console)
            .map_err(|e| Error::Snapshot(format!("its serial port: {e:?}")))
    }

    /// What [`Console::restored`] takes.
    pub fn registers(&self) -> Registers {
        let state = self.0.state();
        Registers {
            registers: [
                state.baud_divisor_low,
                state.baud_divisor_high,
                state.interrupt_enable,
                state.interrupt_identification,
                state.line_control,
                state.line_status,
                state.modem_control,
                state.modem_status,
                state.scratch,
            ],
            received: state.in_buffer,
        }
    }

    /// Whether a port number is one of ours.
    pub fn owns(port: u16) -> bool {
        (PORT..PORT + PORTS).contains(&port)
    }

    /// The guest writes. What the port cannot take (its loopback is full) is lost, as it is on the real one.
    pub fn write(&mut self, port: u16, value: u8) {
        let _ = self.0.write((port - PORT) as u8, value);
    }

    /// The guest reads.
    pub fn read(&mut self, port: u16) -> u8 {
        self.0.read((port - PORT) as u8)
    }
}
