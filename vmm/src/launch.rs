//! From a spec to a machine: checking it, opening what it names, building.

use caisson_protocol::vmm::VmSpec;

use crate::assist::Assist;
use crate::console_log::ConsoleLog;
use crate::error::{Error, Result};
use crate::machine::{Machine, Origin, Plan};
use crate::resource::{self, Access};
use crate::{boot, devices, probe, snapshot, timing};

const MIB: u64 = 1 << 20;
const LEAST_MEMORY: u64 = 16 * MIB;
const CONSOLE_LIMIT_BYTES: u64 = MIB;

/// Opens everything and builds the machine; nothing of the guest runs yet.
pub fn launch(spec: &VmSpec, console: Option<ConsoleLog>) -> Result<Machine> {
    check(spec)?;
    if spec.boot_timing {
        timing::print();
    }
    let console = match (console, &spec.console) {
        (Some(console), None) => console,
        (_, resource) => {
            let open = |r| resource::open("the console", r, Access::Append);
            let out = resource.as_ref().map(open).transpose()?;
            let limit = spec.console_limit_bytes.unwrap_or(CONSOLE_LIMIT_BYTES);
            ConsoleLog::new(out, limit, false)?
        }
    };
    let assisted = probe::needs_assist(spec.assist)?;
    let machine = |origin| {
        Machine::new(Plan {
            origin,
            vcpus: spec.vcpus,
            memory_bytes: spec.memory_bytes,
            devices: devices::open(spec, &console)?,
            console,
            assist: assisted.then(Assist::of_this_host),
        })
    };
    if let Some(files) = &spec.restore {
        let state = resource::open("the snapshot's state", &files.state, Access::Read)?;
        let memory = resource::open("the snapshot's memory", &files.memory, Access::Read)?;
        let state = Box::new(snapshot::State::read(&state)?);
        state.check(spec, assisted)?;
        return machine(Origin::Snapshot {
            state,
            memory: &memory,
        });
    }
    let image = resource::open("the kernel", &spec.kernel, Access::Read)?;
    let open = |r| resource::open("the initramfs", r, Access::Read);
    let initramfs = spec.initramfs.as_ref().map(open).transpose()?;
    let mut command_line = spec.command_line.clone();
    if assisted {
        command_line.push_str(boot::assisted::COMMAND_LINE);
    }
    machine(Origin::Kernel {
        image: &image,
        initramfs: initramfs.as_ref(),
        command_line: &command_line,
    })
}

fn check(spec: &VmSpec) -> Result<()> {
    if !(1..=64).contains(&spec.vcpus) {
        return Err(Error::Spec(format!(
            "{} vCPUs; 1 to 64 are possible",
            spec.vcpus
        )));
    }
    let bytes = spec.memory_bytes;
    if bytes < LEAST_MEMORY || !bytes.is_multiple_of(MIB) {
        return Err(Error::Spec(format!(
            "{bytes} bytes of memory; whole MiB, at least {} of them, are needed",
            LEAST_MEMORY / MIB
        )));
    }
    let host = rustix::system::sysinfo();
    let host_bytes = host.totalram.saturating_mul(u64::from(host.mem_unit));
    if bytes > host_bytes {
        return Err(Error::Spec(format!(
            "{} MiB of memory are more than this host's {}",
            bytes / MIB,
            host_bytes / MIB
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use caisson_protocol::vmm::{AssistMode, Resource};

    fn spec(vcpus: u8, memory_bytes: u64) -> VmSpec {
        let text = format!(
            r#"{{"id":"t","vcpus":{vcpus},"memory_bytes":{memory_bytes},"kernel":{{"path":"/nowhere"}},"command_line":""}}"#
        );
        serde_json::from_str(&text).expect("a spec")
    }

    #[test]
    fn sizes_that_no_machine_has_are_refused_by_name() {
        for (vcpus, memory, word) in [
            (0, 64 * MIB, "0 vCPUs"),
            (65, 64 * MIB, "65 vCPUs"),
            (1, 0, "0 bytes"),
            (1, 64 * MIB + 1, "whole MiB"),
            (1, 1 << 50, "more than this host's"),
        ] {
            let error = check(&spec(vcpus, memory)).expect_err("it is refused");
            assert!(error.to_string().contains(word), "{error}");
        }
        assert!(check(&spec(64, 64 * MIB)).is_ok());
    }

    #[test]
    fn a_kernel_that_is_none_is_named() {
        let mut bad = VmSpec {
            assist: AssistMode::Off,
            ..spec(1, 64 * MIB)
        };
        let error = launch(&bad, None).err().expect("it is refused");
        assert!(
            error.to_string().starts_with("the kernel /nowhere"),
            "{error}"
        );
        bad.kernel = Resource::Path("/proc/self/maps".into());
        if std::path::Path::new("/dev/kvm").exists() {
            let error = launch(&bad, None).err().expect("it is refused");
            assert!(error.to_string().contains("guest kernel"), "{error}");
        }
    }
}
