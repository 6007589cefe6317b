//! Turns OCI resources into writes to control files, touching nothing: each controller by the version of the hierarchy it
//! is on. The device rules are elsewhere.
//!
//! A limit whose controller is missing is an error; one that asks for nothing (unlimited, zero) is left out.

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxNetwork, LinuxPids, LinuxResources,
    LinuxThrottleDevice,
};

use super::error::Error;

/// One value for one control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Controller, by the name it has on its hierarchy; "" for a v2 file of no controller.
    pub controller: String,
    /// File name.
    pub file: String,
    /// What to write.
    pub value: String,
}

/// Where a controller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// On a v1 hierarchy.
    V1,
    /// On v2, and the cgroup has it.
    V2,
}

/// What planning has to know of the host and of the cgroup as it is.
pub trait Host {
    /// Where the controller is, asked for by its v1 and v2 names ("" where it has none).
    fn seat(&self, v1: &str, v2: &str) -> Option<Seat>;
    /// Why it is nowhere.
    fn why_missing(&self, v1: &str, v2: &str) -> String;
    /// The text of a control file, `None` when there is no such file.
    fn read(&self, controller: &str, file: &str) -> Option<String>;
}

/// The writes for `resources`, in an order that succeeds when nothing is limited yet. For an update the caller repeats what
/// the kernel refuses with `EINVAL` or `EBUSY` after the rest: limits that bound each other are then raised or lowered in the
/// order that works.
pub fn plan(resources: &LinuxResources, host: &dyn Host) -> Result<Vec<Write>, Error> {
    let mut plan = Plan {
        host,
        writes: Vec::new(),
    };
    if let Some(cpu) = resources.cpu() {
        plan.cpu(cpu)?;
        plan.cpuset(cpu)?;
    }
    if let Some(memory) = resources.memory() {
        plan.memory(memory)?;
    }
    if let Some(pids) = resources.pids() {
        plan.pids(pids)?;
    }
    if let Some(block_io) = resources.block_io() {
        plan.block_io(block_io)?;
    }
    plan.hugetlb(resources)?;
    if let Some(network) = resources.network() {
        plan.network(network)?;
    }
    plan.rdma(resources)?;
    plan.unified(resources)?;
    Ok(plan.writes)
}

struct Plan<'a> {
    host: &'a dyn Host,
    writes: Vec<Write>,
}

/// What is being limited, and by which controller.
#[derive(Clone, Copy)]
struct Limit {
    name: &'static str,
    v1: &'static str,
    v2: &'static str,
}

impl Plan<'_> {
    fn seat(&self, limit: Limit) -> Result<Seat, Error> {
        self.host
            .seat(limit.v1, limit.v2)
            .ok_or_else(|| Error::MissingController {
                controller: if limit.v2.is_empty() {
                    limit.v1
                } else {
                    limit.v2
                }
                .to_owned(),
                limit: limit.name.to_owned(),
                why: self.host.why_missing(limit.v1, limit.v2),
            })
    }

    fn write(&mut self, controller: &str, file: impl Into<String>, value: impl ToString) {
        self.writes.push(Write {
            controller: controller.to_owned(),
            file: file.into(),
            value: value.to_string(),
        });
    }

    fn has(&self, controller: &str, file: &str) -> bool {
        self.host.read(controller, file).is_some()
    }

    fn cpu(&mut self, cpu: &LinuxCpu) -> Result<(), Error> {
        let limit = |name| Limit {
            name,
            v1: "cpu",
            v2: "cpu",
        };
        let set = |value: Option<u64>| value.filter(|&v| v != 0);
        if let Some(idle) = cpu
            .idle()
            .filter(|&i| i != 0 || self.has("cpu", "cpu.idle"))
        {
            self.seat(limit("cpu idle"))?;
            self.write("cpu", "cpu.idle", idle);
        }
        if let Some(shares) = set(cpu.shares()) {
            match self.seat(limit("cpu shares"))? {
                Seat::V1 if !(2..=262_144).contains(&shares) => {
                    return Err(bad(
                        "cpu shares",
                        format!("{shares} is not between 2 and 262144"),
                    ));
                }
                Seat::V1 => self.write("cpu", "cpu.shares", shares),
                // An idle cgroup has no weight; the kernel refuses one.
                Seat::V2 if cpu.idle() == Some(1) => {}
                Seat::V2 => self.write("cpu", "cpu.weight", weight_from_shares(shares)),
            }
        }
        let quota = cpu.quota().filter(|&q| q != 0);
        let period = set(cpu.period());
        if quota.is_some() || period.is_some() {
            match self.seat(limit("cpu quota"))? {
                Seat::V1 => {
                    if let Some(period) = period {
                        self.write("cpu", "cpu.cfs_period_us", period);
                    }
                    if let Some(quota) = quota {
                        self.write("cpu", "cpu.cfs_quota_us", quota.max(-1));
                    }
                }
                Seat::V2 => {
                    let quota = match quota {
                        Some(q) if q > 0 => q.to_string(),
                        Some(_) => "max".to_owned(),
                        // Only the period changes.
                        None => self
                            .host
                            .read("cpu", "cpu.max")
                            .and_then(|now| now.split_whitespace().next().map(str::to_owned))
                            .unwrap_or_else(|| "max".to_owned()),
                    };
                    // Without a period the kernel keeps the one it has.
                    let value = match period {
                        Some(period) => format!("{quota} {period}"),
                        None => quota,
                    };
                    self.write("cpu", "cpu.max", value);
                }
            }
        }
        if let Some(burst) = cpu.burst() {
            let file = match self.host.seat("cpu", "cpu") {
                Some(Seat::V2) => "cpu.max.burst",
                _ => "cpu.cfs_burst_us",
            };
            if burst != 0 || self.has("cpu", file) {
                self.seat(limit("cpu burst"))?;
                self.write("cpu", file, burst);
            }
        }
        let rt_period = set(cpu.realtime_period()).map(|p| ("cpu.rt_period_us", p.to_string()));
        let rt_runtime = cpu.realtime_runtime().filter(|&r| r != 0);
        let rt_runtime = rt_runtime.map(|r| ("cpu.rt_runtime_us", r.to_string()));
        for (file, value) in rt_period.into_iter().chain(rt_runtime) {
            if self.seat(limit("cpu realtime"))? == Seat::V2 || !self.has("cpu", file) {
                return Err(Error::Unsupported {
                    limit: "cpu realtime".into(),
                    why: "it needs cgroup v1 and a kernel with CONFIG_RT_GROUP_SCHED; leave realtime period and runtime out".into(),
                });
            }
            self.write("cpu", file, value);
        }
        Ok(())
    }

    fn cpuset(&mut self, cpu: &LinuxCpu) -> Result<(), Error> {
        for (name, file, list) in [
            ("cpuset cpus", "cpuset.cpus", cpu.cpus()),
            ("cpuset mems", "cpuset.mems", cpu.mems()),
        ] {
            let Some(list) = list.as_deref().map(str::trim).filter(|l| !l.is_empty()) else {
                continue;
            };
            if !list
                .bytes()
                .all(|b| b.is_ascii_digit() || matches!(b, b',' | b'-'))
            {
                return Err(bad(name, format!("{list:?} is not a list such as 0-2,4")));
            }
            self.seat(Limit {
                name,
                v1: "cpuset",
                v2: "cpuset",
            })?;
            self.write("cpuset", file, list);
        }
        Ok(())
    }

    fn memory(&mut self, memory: &LinuxMemory) -> Result<(), Error> {
        const LIMIT: Limit = Limit {
            name: "memory limit",
            v1: "memory",
            v2: "memory",
        };
        let asked = |value: Option<i64>| value.filter(|&v| v != 0);
        let limit = asked(memory.limit());
        let swap = asked(memory.swap());
        let reservation = asked(memory.reservation());
        let seat = match self.host.seat("memory", "memory") {
            Some(seat) => seat,
            None => {
                let limited = [limit, swap, reservation]
                    .into_iter()
                    .flatten()
                    .any(|v| v > 0);
                if limited || memory.disable_oom_killer() == Some(true) {
                    self.seat(LIMIT)?;
                }
                return Ok(());
            }
        };
        if let Some(limit) = limit
            && limit < -1
        {
            return Err(bad(
                "memory limit",
                format!("{limit} is negative; -1 means unlimited"),
            ));
        }
        match seat {
            Seat::V1 => self.memory_v1(memory, limit, swap, reservation),
            Seat::V2 => self.memory_v2(memory, limit, swap, reservation),
        }
    }

    fn memory_v1(
        &mut self,
        memory: &LinuxMemory,
        limit: Option<i64>,
        swap: Option<i64>,
        reservation: Option<i64>,
    ) -> Result<(), Error> {
        let can_swap = self.has("memory", "memory.memsw.limit_in_bytes");
        // Both bounds go up together when memory becomes unlimited.
        let swap = match (limit, swap) {
            (Some(-1), None) if can_swap => Some(-1),
            (_, swap) => swap,
        };
        if let (Some(limit), Some(swap)) = (limit, swap)
            && swap > 0
            && swap < limit
        {
            return Err(bad(
                "swap limit",
                format!("{swap} for memory and swap together is below the memory limit {limit}"),
            ));
        }
        if let Some(limit) = limit {
            self.write("memory", "memory.limit_in_bytes", limit);
        }
        match swap {
            Some(swap) if can_swap => self.write("memory", "memory.memsw.limit_in_bytes", swap),
            Some(swap) if swap > 0 => return Err(no_swap_accounting()),
            _ => {}
        }
        // Raising both: the kernel refuses the memory limit first, and takes it in the second round.
        if let Some(reservation) = reservation {
            self.write("memory", "memory.soft_limit_in_bytes", reservation);
        }
        if let Some(tcp) = memory.kernel_tcp().filter(|&v| v != 0) {
            self.write("memory", "memory.kmem.tcp.limit_in_bytes", tcp);
        }
        // -1, written as an unsigned number by Docker, leaves it alone.
        match memory.swappiness() {
            Some(swappiness @ 0..=100) => self.write("memory", "memory.swappiness", swappiness),
            None | Some(u64::MAX) => {}
            Some(other) => {
                return Err(bad(
                    "memory swappiness",
                    format!("{other} is not between 0 and 100"),
                ));
            }
        }
        match memory.disable_oom_killer() {
            Some(true) => self.write("memory", "memory.oom_control", 1),
            // It is already so, unless this is an update.
            Some(false) if self.oom_killer_disabled() => {
                self.write("memory", "memory.oom_control", 0)
            }
            _ => {}
        }
        Ok(())
    }

    fn oom_killer_disabled(&self) -> bool {
        self.host
            .read("memory", "memory.oom_control")
            .is_some_and(|text| text.lines().any(|l| l.trim() == "oom_kill_disable 1"))
    }

    /// v2 limits swap by itself, OCI and v1 limit memory and swap together. v2 has no swappiness per cgroup and always the
    /// OOM killer: asked for, they are left out, as runc does.
    fn memory_v2(
        &mut self,
        memory: &LinuxMemory,
        limit: Option<i64>,
        swap: Option<i64>,
        reservation: Option<i64>,
    ) -> Result<(), Error> {
        let now = |file: &str| self.host.read("memory", file)?.trim().parse::<i64>().ok();
        let swap_only = match (limit, swap) {
            (Some(-1), None) | (_, Some(..=-1)) => Some("max".to_owned()),
            (_, None) => None,
            (limit, Some(together)) => match limit.or_else(|| now("memory.max")) {
                Some(limit) if limit >= 0 && together < limit => {
                    return Err(bad(
                        "swap limit",
                        format!(
                            "{together} for memory and swap together is below the memory limit {limit}"
                        ),
                    ));
                }
                Some(limit) if limit >= 0 => Some((together - limit).to_string()),
                _ => return Err(bad("swap limit", "it needs a memory limit too".into())),
            },
        };
        if memory.check_before_update() == Some(true)
            && let (Some(limit), Some(current)) = (limit.filter(|&l| l > 0), now("memory.current"))
            && limit < current
        {
            return Err(bad(
                "memory limit",
                format!("{limit} is below the {current} bytes in use now"),
            ));
        }
        match swap_only {
            Some(value) if self.has("memory", "memory.swap.max") => {
                self.write("memory", "memory.swap.max", value)
            }
            Some(value) if value != "max" && value != "0" => return Err(no_swap_accounting()),
            _ => {}
        }
        let text = |v: i64| {
            if v < 0 {
                "max".to_owned()
            } else {
                v.to_string()
            }
        };
        if let Some(limit) = limit {
            self.write("memory", "memory.max", text(limit));
        }
        if let Some(reservation) = reservation {
            self.write("memory", "memory.low", text(reservation));
        }
        Ok(())
    }

    fn pids(&mut self, pids: &LinuxPids) -> Result<(), Error> {
        const LIMIT: Limit = Limit {
            name: "pids limit",
            v1: "pids",
            v2: "pids",
        };
        match pids.limit() {
            0 => {}
            limit @ 1.. => {
                self.seat(LIMIT)?;
                self.write("pids", "pids.max", limit);
            }
            _ => {
                if self.host.seat("pids", "pids").is_some() {
                    self.write("pids", "pids.max", "max");
                }
            }
        }
        Ok(())
    }

    fn block_io(&mut self, io: &LinuxBlockIo) -> Result<(), Error> {
        let limit = |name| Limit {
            name,
            v1: "blkio",
            v2: "io",
        };
        if let Some(weight) = io.weight().filter(|&w| w != 0) {
            let weight = checked_weight(weight)?;
            match self.seat(limit("block i/o weight"))? {
                Seat::V1 => {
                    let file = self.pick(
                        "blkio",
                        ["blkio.bfq.weight", "blkio.weight"],
                        "block i/o weight",
                    )?;
                    self.write("blkio", file, weight);
                }
                Seat::V2 if self.has("io", "io.bfq.weight") => {
                    self.write("io", "io.bfq.weight", weight)
                }
                Seat::V2 => {
                    let file = self.pick("io", ["io.weight", "io.weight"], "block i/o weight")?;
                    self.write("io", file, format!("default {}", io_weight(weight)));
                }
            }
        }
        if let Some(leaf) = io.leaf_weight().filter(|&w| w != 0)
            && self.seat(limit("block i/o leaf weight"))? == Seat::V1
        {
            let file = self.pick(
                "blkio",
                ["blkio.leaf_weight", "blkio.leaf_weight"],
                "block i/o leaf weight",
            )?;
            self.write("blkio", file, leaf);
        }
        for device in io.weight_device().iter().flatten() {
            let id = format!("{}:{}", device.major(), device.minor());
            if let Some(weight) = device.weight().filter(|&w| w != 0) {
                let weight = checked_weight(weight)?;
                match self.seat(limit("block i/o device weight"))? {
                    Seat::V1 => {
                        let file = self.pick(
                            "blkio",
                            ["blkio.bfq.weight_device", "blkio.weight_device"],
                            "block i/o device weight",
                        )?;
                        self.write("blkio", file, format!("{id} {weight}"));
                    }
                    Seat::V2 if self.has("io", "io.bfq.weight") => {
                        self.write("io", "io.bfq.weight", format!("{id} {weight}"));
                    }
                    Seat::V2 => {
                        let file =
                            self.pick("io", ["io.weight", "io.weight"], "block i/o device weight")?;
                        self.write("io", file, format!("{id} {}", io_weight(weight)));
                    }
                }
            }
            if let Some(leaf) = device.leaf_weight().filter(|&w| w != 0)
                && self.seat(limit("block i/o leaf weight"))? == Seat::V1
            {
                let files = ["blkio.leaf_weight_device", "blkio.leaf_weight_device"];
                let file = self.pick("blkio", files, "block i/o leaf weight")?;
                self.write("blkio", file, format!("{id} {leaf}"));
            }
        }
        for (name, v1, v2, devices) in [
            (
                "read rate",
                "read_bps",
                "rbps",
                io.throttle_read_bps_device(),
            ),
            (
                "write rate",
                "write_bps",
                "wbps",
                io.throttle_write_bps_device(),
            ),
            (
                "read operations rate",
                "read_iops",
                "riops",
                io.throttle_read_iops_device(),
            ),
            (
                "write operations rate",
                "write_iops",
                "wiops",
                io.throttle_write_iops_device(),
            ),
        ] {
            for device in devices.iter().flatten() {
                self.throttle(limit(name), v1, v2, device)?;
            }
        }
        Ok(())
    }

    fn throttle(
        &mut self,
        limit: Limit,
        v1: &str,
        v2: &str,
        device: &LinuxThrottleDevice,
    ) -> Result<(), Error> {
        let (id, rate) = (
            format!("{}:{}", device.major(), device.minor()),
            device.rate(),
        );
        match self.seat(limit)? {
            Seat::V1 => self.write(
                "blkio",
                format!("blkio.throttle.{v1}_device"),
                format!("{id} {rate}"),
            ),
            // 0 takes the limit away.
            Seat::V2 if rate == 0 => self.write("io", "io.max", format!("{id} {v2}=max")),
            Seat::V2 => self.write("io", "io.max", format!("{id} {v2}={rate}")),
        }
        Ok(())
    }

    /// The first of the files that exists.
    fn pick(
        &self,
        controller: &str,
        files: [&'static str; 2],
        limit: &str,
    ) -> Result<&'static str, Error> {
        files
            .into_iter()
            .find(|file| self.has(controller, file))
            .ok_or_else(|| Error::Unsupported {
                limit: limit.to_owned(),
                why: format!(
                    "there is no file {}: no loaded i/o scheduler does it; try `modprobe bfq`, or leave the weight out",
                    files[0]
                ),
            })
    }

    fn hugetlb(&mut self, resources: &LinuxResources) -> Result<(), Error> {
        const LIMIT: Limit = Limit {
            name: "hugetlb limit",
            v1: "hugetlb",
            v2: "hugetlb",
        };
        for page in resources.hugepage_limits().iter().flatten() {
            let size = page.page_size();
            if size.is_empty() || !size.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return Err(bad(
                    "hugetlb limit",
                    format!("{size:?} is not a page size such as 2MB"),
                ));
            }
            let (suffix, value) = match self.seat(LIMIT)? {
                Seat::V1 => ("limit_in_bytes", page.limit().to_string()),
                Seat::V2 if page.limit() < 0 => ("max", "max".to_owned()),
                Seat::V2 => ("max", page.limit().to_string()),
            };
            let (used, reserved) = (
                format!("hugetlb.{size}.{suffix}"),
                format!("hugetlb.{size}.rsvd.{suffix}"),
            );
            if !self.has("hugetlb", &used) {
                return Err(bad(
                    "hugetlb limit",
                    format!("this host has no huge pages of size {size}"),
                ));
            }
            self.write("hugetlb", used, &value);
            // Linux 5.7: without it a reservation beyond the limit succeeds and its use is killed.
            if self.has("hugetlb", &reserved) {
                self.write("hugetlb", reserved, &value);
            }
        }
        Ok(())
    }

    fn network(&mut self, network: &LinuxNetwork) -> Result<(), Error> {
        if let Some(class) = network.class_id().filter(|&c| c != 0) {
            self.seat(Limit {
                name: "network class",
                v1: "net_cls",
                v2: "",
            })?;
            self.write("net_cls", "net_cls.classid", class);
        }
        for priority in network.priorities().iter().flatten() {
            self.seat(Limit {
                name: "network priority",
                v1: "net_prio",
                v2: "",
            })?;
            let value = format!("{} {}", priority.name(), priority.priority());
            self.write("net_prio", "net_prio.ifpriomap", value);
        }
        Ok(())
    }

    fn rdma(&mut self, resources: &LinuxResources) -> Result<(), Error> {
        let mut devices: Vec<_> = resources.rdma().iter().flatten().collect();
        devices.sort_by_key(|(name, _)| name.as_str());
        for (name, limit) in devices {
            let handles = limit.hca_handles().map(|n| format!(" hca_handle={n}"));
            let objects = limit.hca_objects().map(|n| format!(" hca_object={n}"));
            let numbers: String = handles.into_iter().chain(objects).collect();
            if numbers.is_empty() {
                continue;
            }
            self.seat(Limit {
                name: "rdma limit",
                v1: "rdma",
                v2: "rdma",
            })?;
            self.write("rdma", "rdma.max", format!("{name}{numbers}"));
        }
        Ok(())
    }

    fn unified(&mut self, resources: &LinuxResources) -> Result<(), Error> {
        let mut files: Vec<_> = resources.unified().iter().flatten().collect();
        files.sort();
        for (file, value) in files {
            if file.contains('/') || !file.contains('.') {
                return Err(bad(
                    "unified",
                    format!("{file:?} is not the name of a control file such as memory.high"),
                ));
            }
            let controller = file.split('.').next().unwrap_or("");
            if controller == "cgroup" {
                if !matches!(
                    file.as_str(),
                    "cgroup.max.depth" | "cgroup.max.descendants" | "cgroup.pressure"
                ) {
                    return Err(bad("unified", format!("{file:?} is not a limit")));
                }
                self.write("", file, value);
                continue;
            }
            if self.host.seat("", controller) != Some(Seat::V2) {
                return Err(Error::MissingController {
                    controller: controller.to_owned(),
                    limit: format!("unified {file}"),
                    why: self.host.why_missing("", controller),
                });
            }
            self.write(controller, file, value);
        }
        Ok(())
    }
}

fn bad(limit: &str, why: String) -> Error {
    Error::BadLimit {
        limit: limit.to_owned(),
        why,
    }
}

fn no_swap_accounting() -> Error {
    Error::Unsupported {
        limit: "swap limit".into(),
        why:
            "this kernel does not count swap: boot with swapaccount=1, or leave the swap limit out"
                .into(),
    }
}

fn checked_weight(weight: u16) -> Result<u16, Error> {
    match weight {
        10..=1000 => Ok(weight),
        _ => Err(bad(
            "block i/o weight",
            format!("{weight} is not between 10 and 1000"),
        )),
    }
}

/// blkio's 10..=1000 on io.weight's 1..=10000, as runc and crun do.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).saturating_sub(10)) * 9999 / 990
}

/// `cpu.shares` 2..=262144 on `cpu.weight` 1..=10000 so that the defaults, 1024 and 100, meet: the quadratic in log2 that runc
/// and crun use since 2025 (the linear formula before put 1024 at 39).
fn weight_from_shares(shares: u64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        shares => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

#[cfg(test)]
mod tests;
