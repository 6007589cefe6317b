//! The serial port that boot messages go to: a 16550A at 0x3f8, IRQ 4.

use std::io::Write;

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// Its first port.
pub const PORT: u16 = 0x3f8;
const PORTS: u16 = 8;

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
