//! Whether a container is well: the state machine of its health check. Pure; probes are run elsewhere.
//!
//! ```text
//!             success                       `retries` failures in a row
//!  starting ──────────▶ healthy ──────────────────────────────▶ unhealthy
//!     │                    ▲                                        │
//!     │                    └────────────── success ─────────────────┘
//!     └── failures within the start period do not count; afterwards they do
//! ```
//!
//! Must not know: sandboxes, clocks.

use std::time::Duration;

use caisson_api as api;

/// Docker shows a container that ended as unhealthy.
pub(crate) const AFTER_EXIT: &str = "unhealthy";
const KEPT_PROBES: usize = 5;
/// What is kept of a probe's output.
pub(crate) const OUTPUT_BYTES: usize = 4096;

/// A health check, its defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    pub command: Vec<String>,
    pub interval: Duration,
    pub timeout: Duration,
    pub start_period: Duration,
    pub start_interval: Duration,
    pub retries: i64,
}

impl Check {
    /// `None` when there is none, or it is switched off.
    pub(crate) fn read(config: &api::ContainerConfig) -> Option<Check> {
        let health = config.healthcheck.as_ref()?;
        let test = health.test.as_deref().unwrap_or_default();
        let command = match test.split_first() {
            Some((kind, words)) if kind == "CMD" && !words.is_empty() => words.to_vec(),
            Some((kind, words)) if kind == "CMD-SHELL" && !words.is_empty() => {
                let mut shell = config
                    .shell
                    .clone()
                    .filter(|s| !s.is_empty())
                    .unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into()]);
                shell.push(words.join(" "));
                shell
            }
            _ => return None,
        };
        let or = |nanos: i64, default: u64| match u64::try_from(nanos) {
            Ok(n) if n > 0 => Duration::from_nanos(n),
            _ => Duration::from_secs(default),
        };
        Some(Check {
            command,
            interval: or(health.interval, 30),
            timeout: or(health.timeout, 30),
            start_period: or(health.start_period, 0),
            start_interval: or(health.start_interval, 5),
            retries: if health.retries > 0 {
                health.retries
            } else {
                3
            },
        })
    }

    /// How long to wait before the next probe.
    pub(crate) fn pause(&self, status: &str, up: Duration) -> Duration {
        if status == "starting" && up < self.start_period {
            self.start_interval
        } else {
            self.interval
        }
    }
}

/// Checks a request's health check as Docker does.
pub(crate) fn validate(health: &api::HealthConfig) -> Result<(), String> {
    const LEAST_NS: i64 = 1_000_000;
    for (name, value) in [
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ] {
        if value != 0 && value < LEAST_NS {
            return Err(format!("{name} in Healthcheck cannot be less than 1ms"));
        }
    }
    if health.retries < 0 {
        return Err("Retries in Healthcheck cannot be negative".into());
    }
    match health.test.as_deref().unwrap_or_default().split_first() {
        None => Ok(()),
        Some((kind, [])) if kind == "NONE" => Ok(()),
        Some((kind, words)) if (kind == "CMD" || kind == "CMD-SHELL") && !words.is_empty() => {
            Ok(())
        }
        Some((kind, _)) => Err(format!(
            "invalid health check: unknown type {kind:?} (use NONE, CMD or CMD-SHELL with a command)"
        )),
    }
}

/// The machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    health: Option<api::Health>,
    retries: i64,
}

impl Machine {
    /// A container was started.
    pub(crate) fn new(check: Option<&Check>) -> Machine {
        Machine {
            retries: check.map_or(0, |c| c.retries),
            health: check.map(|_| api::Health {
                status: "starting".into(),
                ..api::Health::default()
            }),
        }
    }

    /// As inspect shows it.
    pub(crate) fn report(&self) -> Option<api::Health> {
        self.health.clone()
    }

    /// A probe has ended; answers the status when it changed.
    pub(crate) fn record(
        &mut self,
        probe: api::HealthProbe,
        in_start_period: bool,
    ) -> Option<String> {
        let health = self.health.as_mut()?;
        let before = health.status.clone();
        if probe.exit_code == 0 {
            health.failing_streak = 0;
            health.status = "healthy".into();
        } else if !(health.status == "starting" && in_start_period) {
            health.failing_streak += 1;
            if health.failing_streak >= self.retries {
                health.status = "unhealthy".into();
            }
        }
        health.log.push(probe);
        if health.log.len() > KEPT_PROBES {
            health.log.remove(0);
        }
        (health.status != before).then(|| health.status.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(test: &[&str]) -> api::ContainerConfig {
        let health = api::HealthConfig {
            test: Some(test.iter().map(|s| s.to_string()).collect()),
            retries: 2,
            start_period: 1_000_000_000,
            ..Default::default()
        };
        api::ContainerConfig {
            healthcheck: Some(health),
            ..Default::default()
        }
    }

    fn probe(exit_code: i64) -> api::HealthProbe {
        api::HealthProbe {
            exit_code,
            ..Default::default()
        }
    }

    #[test]
    fn commands() {
        assert_eq!(
            Check::read(&config(&["CMD", "a", "b"])).unwrap().command,
            ["a", "b"]
        );
        assert_eq!(
            Check::read(&config(&["CMD-SHELL", "a b"])).unwrap().command,
            ["/bin/sh", "-c", "a b"]
        );
        assert_eq!(Check::read(&config(&["NONE"])), None);
        assert_eq!(Check::read(&api::ContainerConfig::default()), None);
    }

    #[test]
    fn status_follows_the_probes() {
        let check = Check::read(&config(&["CMD", "x"])).unwrap();
        let mut m = Machine::new(Some(&check));
        assert_eq!(
            m.record(probe(1), true),
            None,
            "failures in the start period do not count"
        );
        assert_eq!(m.report().unwrap().failing_streak, 0);
        assert_eq!(m.record(probe(0), true).as_deref(), Some("healthy"));
        assert_eq!(m.record(probe(1), true), None);
        assert_eq!(
            m.record(probe(1), true).as_deref(),
            Some("unhealthy"),
            "once healthy, failures count"
        );
        assert_eq!(m.record(probe(0), false).as_deref(), Some("healthy"));
        for _ in 0..10 {
            m.record(probe(0), false);
        }
        assert_eq!(m.report().unwrap().log.len(), KEPT_PROBES);
    }

    #[test]
    fn probing_is_faster_while_starting() {
        let check = Check::read(&config(&["CMD", "x"])).unwrap();
        assert_eq!(
            check.pause("starting", Duration::ZERO),
            Duration::from_secs(5)
        );
        assert_eq!(
            check.pause("starting", Duration::from_secs(2)),
            Duration::from_secs(30)
        );
        assert_eq!(
            check.pause("healthy", Duration::ZERO),
            Duration::from_secs(30)
        );
    }

    #[test]
    fn nonsense_is_refused() {
        let bad = |h: api::HealthConfig| validate(&h).unwrap_err();
        assert!(
            bad(api::HealthConfig {
                interval: 5,
                ..Default::default()
            })
            .contains("1ms")
        );
        assert!(
            bad(api::HealthConfig {
                retries: -1,
                ..Default::default()
            })
            .contains("negative")
        );
        assert!(
            bad(api::HealthConfig {
                test: Some(vec!["RUN".into()]),
                ..Default::default()
            })
            .contains("unknown type")
        );
    }
}
