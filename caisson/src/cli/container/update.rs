//! `update`: new limits for containers that exist.

use std::rc::Rc;

use caisson_api::{Resources, RestartPolicy, UpdateBody, UpdateResponse};

use super::{host_config, path};
use crate::cli::command::{COMMAND, Command, Failure, Operands, Outcome};
use crate::cli::flags::{Flag, Kind, Parsed, flag};
use crate::cli::session::Session;
use crate::cli::{output, units};

const FLAGS: &[Flag] = &[
    flag(
        "",
        "blkio-weight",
        Kind::Uint16,
        "Block IO (relative weight), between 10 and 1000, or 0 to disable (default 0)",
    ),
    flag(
        "",
        "cpu-period",
        Kind::Int,
        "Limit CPU CFS (Completely Fair Scheduler) period",
    ),
    flag(
        "",
        "cpu-quota",
        Kind::Int,
        "Limit CPU CFS (Completely Fair Scheduler) quota",
    ),
    flag(
        "",
        "cpu-rt-period",
        Kind::Int,
        "Limit the CPU real-time period in microseconds",
    ),
    flag(
        "",
        "cpu-rt-runtime",
        Kind::Int,
        "Limit the CPU real-time runtime in microseconds",
    ),
    flag("c", "cpu-shares", Kind::Int, "CPU shares (relative weight)"),
    flag("", "cpus", Kind::Decimal, "Number of CPUs"),
    flag(
        "",
        "cpuset-cpus",
        Kind::Text,
        "CPUs in which to allow execution (0-3, 0,1)",
    ),
    flag(
        "",
        "cpuset-mems",
        Kind::Text,
        "MEMs in which to allow execution (0-3, 0,1)",
    ),
    flag("m", "memory", Kind::Bytes, "Memory limit"),
    flag("", "memory-reservation", Kind::Bytes, "Memory soft limit"),
    flag(
        "",
        "memory-swap",
        Kind::Bytes,
        "Swap limit equal to memory plus swap: -1 to enable unlimited swap",
    ),
    flag(
        "",
        "pids-limit",
        Kind::Int,
        "Tune container pids limit (set -1 for unlimited)",
    ),
    flag(
        "",
        "restart",
        Kind::Text,
        "Restart policy to apply when a container exits",
    ),
    flag("", "kernel-memory", Kind::Bytes, ""),
];

/// `update`.
pub const COMMANDS: &[Command] = &[Command {
    paths: &["update", "container update"],
    usage: "[OPTIONS] CONTAINER [CONTAINER...]",
    about: "Update configuration of one or more containers",
    examples: &[
        "update -m 512m --memory-swap 1g --cpus 2 web",
        "update --restart unless-stopped web",
    ],
    flags: &[FLAGS],
    operands: Operands::AtLeast(1),
    run: |s, p| Box::pin(update(s, p)),
    ..COMMAND
}];

async fn update(session: Rc<Session>, parsed: Parsed) -> Outcome {
    if !FLAGS.iter().any(|f| parsed.given(f.long)) {
        return Err("you must provide one or more flags when using this command".into());
    }
    let restart_policy = if parsed.given("restart") {
        host_config::restart_policy(parsed.text("restart"))?
    } else {
        RestartPolicy::default()
    };
    let body = UpdateBody {
        resources: Resources {
            blkio_weight: parsed
                .int("blkio-weight")
                .and_then(|w| u16::try_from(w).ok())
                .unwrap_or(0),
            cpuset_cpus: parsed.text("cpuset-cpus").to_owned(),
            cpuset_mems: parsed.text("cpuset-mems").to_owned(),
            cpu_shares: parsed.int("cpu-shares").unwrap_or(0),
            memory: parsed.bytes("memory"),
            memory_reservation: parsed.bytes("memory-reservation"),
            memory_swap: parsed.bytes("memory-swap"),
            cpu_period: parsed.int("cpu-period").unwrap_or(0),
            cpu_quota: parsed.int("cpu-quota").unwrap_or(0),
            cpu_realtime_period: parsed.int("cpu-rt-period").unwrap_or(0),
            cpu_realtime_runtime: parsed.int("cpu-rt-runtime").unwrap_or(0),
            nano_cpus: parsed.last("cpus").map_or(Ok(0), units::nano_cpus)?,
            pids_limit: parsed.int("pids-limit"),
            ..Resources::default()
        },
        restart_policy,
    };
    let client = session.client()?;
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    for name in &parsed.operands {
        match client
            .post::<UpdateResponse, _>(path(name, "/update"), Some(&body))
            .await
        {
            Ok(answer) => {
                output::line(name)?;
                warnings.extend(answer.warnings.unwrap_or_default());
            }
            Err(e) => errors.push(e.to_string()),
        }
    }
    for warning in warnings {
        output::complain(warning);
    }
    if errors.is_empty() {
        Ok(0)
    } else {
        Err(Failure::new(errors.join("\n")))
    }
}
