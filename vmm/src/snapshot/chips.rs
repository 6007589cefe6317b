//! What KVM keeps for the whole machine: interrupt controllers, timer, clock.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::unfit;
use crate::error::{Error, Result};

const CONTROLLERS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// The state of the chips.
#[derive(Default, Serialize, Deserialize)]
pub struct Chips {
    controllers: Vec<kvm_irqchip>,
    timer: kvm_pit_state2,
    clock: kvm_clock_data,
}

impl Chips {
    /// Reads it from a machine whose vCPUs are paused.
    pub fn save(vm: &VmFd) -> Result<Self> {
        let controller = |chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..kvm_irqchip::default()
            };
            vm.get_irqchip(&mut chip)
                .map_err(Error::kvm("KVM_GET_IRQCHIP"))
                .map(|()| chip)
        };
        Ok(Chips {
            controllers: CONTROLLERS
                .into_iter()
                .map(controller)
                .collect::<Result<_>>()?,
            timer: vm.get_pit2().map_err(Error::kvm("KVM_GET_PIT2"))?,
            clock: vm.get_clock().map_err(Error::kvm("KVM_GET_CLOCK"))?,
        })
    }

    /// Puts it into a machine. The guest's clock goes on where it stood.
    pub fn restore(&self, vm: &VmFd) -> Result<()> {
        if !self.controllers.iter().map(|c| c.chip_id).eq(CONTROLLERS) {
            return Err(unfit("it has other interrupt controllers"));
        }
        for chip in &self.controllers {
            vm.set_irqchip(chip)
                .map_err(Error::kvm("KVM_SET_IRQCHIP"))?;
        }
        vm.set_pit2(&self.timer)
            .map_err(Error::kvm("KVM_SET_PIT2"))?;
        let clock = kvm_clock_data {
            clock: self.clock.clock,
            ..kvm_clock_data::default()
        };
        vm.set_clock(&clock).map_err(Error::kvm("KVM_SET_CLOCK"))
    }
}
