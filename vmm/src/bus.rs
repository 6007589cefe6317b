//! Which device answers at a guest-physical address.

use std::sync::Arc;

/// A device with registers in memory. Called from vCPU threads, several at once.
pub trait MmioDevice: Send + Sync {
    /// The guest reads `data.len()` bytes (1, 2, 4 or 8) at `offset` from the device's start.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Every device with registers in memory.
#[derive(Default)]
pub struct Bus {
    /// By start address; they do not overlap.
    devices: Vec<(u64, u64, Arc<dyn MmioDevice>)>,
}

impl Bus {
    /// Adds a device at `[start, start + len)`.
    pub fn add(&mut self, start: u64, len: u64, device: Arc<dyn MmioDevice>) {
        let at = self.devices.partition_point(|(s, ..)| *s < start);
        self.devices.insert(at, (start, len, device));
    }

    /// The guest reads; where nothing answers it sees ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.at(address, data.len()) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes; where nothing answers it is dropped.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.at(address, data.len()) {
            device.write(offset, data);
        }
    }

    fn at(&self, address: u64, len: usize) -> Option<(u64, &dyn MmioDevice)> {
        let after = self
            .devices
            .partition_point(|(start, ..)| *start <= address);
        let (start, size, device) = self.devices.get(after.checked_sub(1)?)?;
        let offset = address - start;
        (offset.checked_add(len as u64)? <= *size).then_some((offset, device.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);
    impl MmioDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&self, _: u64, _: &[u8]) {}
    }

    #[test]
    fn an_address_reaches_its_device_and_no_other() {
        let mut bus = Bus::default();
        bus.add(0x2000, 0x100, Arc::new(Echo(20)));
        bus.add(0x1000, 0x100, Arc::new(Echo(10)));
        let read = |address, len| {
            let mut data = vec![0; len];
            bus.read(address, &mut data);
            data
        };
        assert_eq!(read(0x1000, 1), [10]);
        assert_eq!(read(0x2003, 1), [23]);
        assert_eq!(read(0x0fff, 1), [0xff]);
        assert_eq!(read(0x1100, 1), [0xff]);
        // an access that begins inside and ends outside belongs to nobody
        assert_eq!(read(0x10fe, 4), [0xff; 4]);
        assert_eq!(read(u64::MAX, 4), [0xff; 4]);
    }
}
