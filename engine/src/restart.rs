//! Whether and when a container is started again. Pure: times come in, decisions go out.
//!
//! ```text
//!                 exit, policy says so                 delay over
//!   Running ───────────────────────────▶ Restarting ──────────────▶ Running
//!      │                                     │
//!      └── exit, policy says no ──▶ Exited ◀─┘ stopped by a user meanwhile
//! ```
//!
//! The delay doubles from 100 ms to a minute and begins anew once the container stayed up for 10 s.
//!
//! Must not know: sandboxes, clocks, Docker's JSON.

use std::time::Duration;

/// When to start a container again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Never.
    No,
    /// Always; on daemon start too.
    Always,
    /// Always, unless a user stopped it.
    UnlessStopped,
    /// When it failed; at most so many times, 0: any number.
    OnFailure(u32),
}

impl Policy {
    /// Reads `no`, `always`, `unless-stopped`, `on-failure`, with Docker's complaints.
    pub(crate) fn parse(name: &str, maximum_retries: i64) -> Result<Policy, String> {
        if maximum_retries < 0 {
            return Err("invalid restart policy: maximum retry count cannot be negative".into());
        }
        let policy = match name {
            "" | "no" => Policy::No,
            "always" => Policy::Always,
            "unless-stopped" => Policy::UnlessStopped,
            "on-failure" => {
                return Ok(Policy::OnFailure(
                    u32::try_from(maximum_retries).unwrap_or(u32::MAX),
                ));
            }
            other => {
                return Err(format!(
                    "invalid restart policy: unknown policy '{other}'; use one of '', 'no', 'always', 'on-failure', or 'unless-stopped'"
                ));
            }
        };
        if maximum_retries != 0 {
            return Err(format!(
                "invalid restart policy: maximum retry count can only be used with 'on-failure', not with '{name}'"
            ));
        }
        Ok(policy)
    }

    /// Whether a container that is not running is started when the daemon starts.
    pub(crate) fn on_daemon_start(
        self,
        stopped_by_user: bool,
        was_running: bool,
        exit_code: i32,
    ) -> bool {
        match self {
            Policy::No => false,
            Policy::Always => true,
            Policy::UnlessStopped => !stopped_by_user,
            Policy::OnFailure(_) => was_running && exit_code != 0 && !stopped_by_user,
        }
    }
}

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
const UP_LONG_ENOUGH: Duration = Duration::from_secs(10);

/// What happens after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It stays down.
    Stay,
    /// It is started again after this long.
    RestartAfter(Duration),
}

/// Remembers the delay of one container between its exits.
#[derive(Clone, Debug, Default)]
pub(crate) struct BackOff {
    delay: Option<Duration>,
}

impl BackOff {
    /// Decides after an exit. `restarts` is how often it was restarted by policy since a user started it.
    pub(crate) fn decide(
        &mut self,
        policy: Policy,
        exit_code: i32,
        stopped_by_user: bool,
        restarts: u32,
        up: Duration,
    ) -> Decision {
        if stopped_by_user {
            self.delay = None;
            return Decision::Stay;
        }
        let again = match policy {
            Policy::No => false,
            Policy::Always | Policy::UnlessStopped => true,
            Policy::OnFailure(most) => exit_code != 0 && (most == 0 || restarts < most),
        };
        if !again {
            return Decision::Stay;
        }
        let delay = match self.delay {
            Some(previous) if up < UP_LONG_ENOUGH => (previous * 2).min(LONGEST_DELAY),
            _ => FIRST_DELAY,
        };
        self.delay = Some(delay);
        Decision::RestartAfter(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(5);

    #[test]
    fn policies_are_read_with_their_limits() {
        assert_eq!(Policy::parse("", 0), Ok(Policy::No));
        assert_eq!(Policy::parse("on-failure", 3), Ok(Policy::OnFailure(3)));
        assert!(
            Policy::parse("always", 3)
                .unwrap_err()
                .contains("maximum retry count")
        );
        assert!(
            Policy::parse("on-failure", -1)
                .unwrap_err()
                .contains("negative")
        );
        assert!(
            Policy::parse("sometimes", 0)
                .unwrap_err()
                .contains("unknown policy 'sometimes'")
        );
    }

    #[test]
    fn the_delay_doubles_to_a_minute() {
        let mut b = BackOff::default();
        let delays: Vec<u64> = (0..12)
            .map(|n| match b.decide(Policy::Always, 0, false, n, SHORT) {
                Decision::RestartAfter(d) => d.as_millis() as u64,
                Decision::Stay => panic!("always must restart"),
            })
            .collect();
        assert_eq!(
            delays,
            [
                100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000
            ]
        );
    }

    #[test]
    fn ten_seconds_up_begin_anew() {
        let mut b = BackOff::default();
        b.decide(Policy::Always, 1, false, 0, SHORT);
        b.decide(Policy::Always, 1, false, 1, SHORT);
        assert_eq!(
            b.decide(Policy::Always, 1, false, 2, Duration::from_secs(10)),
            Decision::RestartAfter(FIRST_DELAY)
        );
    }

    #[test]
    fn on_failure_counts_and_ignores_success() {
        let mut b = BackOff::default();
        assert_eq!(
            b.decide(Policy::OnFailure(2), 0, false, 0, SHORT),
            Decision::Stay
        );
        assert!(matches!(
            b.decide(Policy::OnFailure(2), 1, false, 0, SHORT),
            Decision::RestartAfter(_)
        ));
        assert!(matches!(
            b.decide(Policy::OnFailure(2), 1, false, 1, SHORT),
            Decision::RestartAfter(_)
        ));
        assert_eq!(
            b.decide(Policy::OnFailure(2), 1, false, 2, SHORT),
            Decision::Stay
        );
        assert!(matches!(
            b.decide(Policy::OnFailure(0), 1, false, 99, SHORT),
            Decision::RestartAfter(_)
        ));
    }

    #[test]
    fn a_user_stop_wins() {
        for policy in [Policy::Always, Policy::UnlessStopped, Policy::OnFailure(0)] {
            assert_eq!(
                BackOff::default().decide(policy, 137, true, 0, SHORT),
                Decision::Stay
            );
        }
        assert!(Policy::Always.on_daemon_start(true, false, 0));
        assert!(!Policy::UnlessStopped.on_daemon_start(true, false, 0));
        assert!(Policy::UnlessStopped.on_daemon_start(false, false, 0));
        assert!(!Policy::OnFailure(0).on_daemon_start(false, true, 0));
    }
}
