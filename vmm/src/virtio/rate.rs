//! Token buckets: how much a device may do in a second.
//!
//! A request is let through as long as its buckets are not empty, and may leave them in debt: a request larger than a bucket
//! passes, the next one waits for longer. Over time the rate is kept exactly.

use std::time::{Duration, Instant};

use caisson_protocol::vmm::{Bucket, RateLimits};

/// The buckets of one device. The caller brings the time, and waits for as long as it is told.
#[derive(Debug)]
pub struct RateLimiter {
    bytes: Option<Tokens>,
    operations: Option<Tokens>,
}

#[derive(Debug)]
struct Tokens {
    bucket: Bucket,
    /// In 1/1,000,000,000 of a token; below zero when in debt.
    nano_tokens: i128,
    at: Instant,
}

const NANO: i128 = 1_000_000_000;
/// A bucket that is never filled is looked at again after so long: its limits may have been changed.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

impl RateLimiter {
    /// Full buckets.
    pub fn new(limits: Option<RateLimits>, now: Instant) -> Self {
        let limits = limits.unwrap_or_default();
        let tokens = |bucket: Option<Bucket>| {
            bucket.map(|bucket| Tokens {
                bucket,
                nano_tokens: i128::from(bucket.burst.max(1)) * NANO,
                at: now,
            })
        };
        RateLimiter {
            bytes: tokens(limits.bytes),
            operations: tokens(limits.operations),
        }
    }

    /// Lets a request of `bytes` through, or says for how long to wait before asking again.
    pub fn take(&mut self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let mut wait = Duration::ZERO;
        for tokens in [&mut self.bytes, &mut self.operations]
            .into_iter()
            .flatten()
        {
            tokens.fill(now);
            wait = wait.max(tokens.wait());
        }
        if !wait.is_zero() {
            return Err(wait);
        }
        if let Some(tokens) = &mut self.bytes {
            tokens.nano_tokens -= i128::from(bytes) * NANO;
        }
        if let Some(tokens) = &mut self.operations {
            tokens.nano_tokens -= NANO;
        }
        Ok(())
    }
}

impl Tokens {
    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_nanos() as i128;
        self.at = self.at.max(now);
        let full = i128::from(self.bucket.burst.max(1)) * NANO;
        let more = elapsed.saturating_mul(i128::from(self.bucket.per_second));
        self.nano_tokens = self.nano_tokens.saturating_add(more).min(full);
    }

    /// Until it holds a whole token.
    fn wait(&self) -> Duration {
        let missing = NANO - self.nano_tokens;
        if missing <= 0 {
            return Duration::ZERO;
        }
        let per_second = i128::from(self.bucket.per_second);
        if per_second == 0 {
            return LONGEST_WAIT;
        }
        let nanos = (missing + per_second - 1) / per_second;
        let wait = u64::try_from(nanos).map_or(LONGEST_WAIT, Duration::from_nanos);
        wait.min(LONGEST_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(bytes: Option<(u64, u64)>, operations: Option<(u64, u64)>) -> Option<RateLimits> {
        let bucket = |(per_second, burst)| Bucket { per_second, burst };
        Some(RateLimits {
            bytes: bytes.map(bucket),
            operations: operations.map(bucket),
        })
    }

    #[test]
    fn without_limits_nothing_waits() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(None, start);
        assert_eq!(limiter.take(u64::MAX, start), Ok(()));
        assert_eq!(limiter.take(u64::MAX, start), Ok(()));
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_is_kept() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(limits(None, Some((10, 3))), start);
        for _ in 0..3 {
            assert_eq!(limiter.take(1, start), Ok(()));
        }
        assert_eq!(limiter.take(1, start), Err(Duration::from_millis(100)));
        let later = start + Duration::from_millis(99);
        assert_eq!(limiter.take(1, later), Err(Duration::from_millis(1)));
        assert_eq!(limiter.take(1, start + Duration::from_millis(100)), Ok(()));
        // an idle hour fills the bucket, not more
        let hour = start + Duration::from_secs(3600);
        for _ in 0..3 {
            assert_eq!(limiter.take(1, hour), Ok(()));
        }
        assert!(limiter.take(1, hour).is_err());
    }

    #[test]
    fn a_request_larger_than_the_bucket_passes_and_is_paid_for_afterwards() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(limits(Some((1000, 100)), None), start);
        assert_eq!(limiter.take(600, start), Ok(()));
        assert_eq!(limiter.take(1, start), Err(Duration::from_millis(501)));
        assert_eq!(limiter.take(1, start + Duration::from_millis(501)), Ok(()));
    }

    #[test]
    fn the_stricter_bucket_decides_and_a_refused_request_costs_nothing() {
        let start = Instant::now();
        let mut limiter =
            RateLimiter::new(limits(Some((1_000_000, 1_000_000)), Some((1, 1))), start);
        assert_eq!(limiter.take(10, start), Ok(()));
        for _ in 0..1000 {
            assert_eq!(limiter.take(999_999, start), Err(Duration::from_secs(1)));
        }
        assert_eq!(limiter.take(10, start + Duration::from_secs(1)), Ok(()));
    }

    #[test]
    fn a_rate_of_nothing_and_enormous_numbers_do_not_overflow() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(limits(Some((0, 0)), None), start);
        assert_eq!(limiter.take(u64::MAX, start), Ok(()));
        assert_eq!(
            limiter.take(1, start + Duration::from_secs(9)),
            Err(LONGEST_WAIT)
        );
        let full = limits(Some((u64::MAX, u64::MAX)), Some((u64::MAX, u64::MAX)));
        let mut limiter = RateLimiter::new(full, start);
        for _ in 0..9 {
            let _ = limiter.take(u64::MAX, start + Duration::from_secs(1 << 40));
        }
        // a clock that goes backwards gives nothing and breaks nothing
        let _ = limiter.take(1, start);
    }

    proptest! {
        /// Waiting for exactly as long as told, a stream of requests keeps the rate within one request and the burst.
        #[test]
        fn the_rate_is_kept_over_time(
            per_second in 1_000u64..1_000_000, burst in 1u64..10_000,
            sizes in proptest::collection::vec(1u64..5_000, 1..200),
        ) {
            let start = Instant::now();
            let mut now = start;
            let mut limiter = RateLimiter::new(limits(Some((per_second, burst)), None), start);
            let mut passed = 0;
            for size in &sizes {
                while let Err(wait) = limiter.take(*size, now) {
                    now += wait;
                }
                passed += size;
                let elapsed = now.duration_since(start).as_secs_f64();
                let allowed = burst as f64 + elapsed * per_second as f64 + *size as f64;
                prop_assert!(passed as f64 <= allowed + 1.0, "{passed} passed, {allowed} allowed");
            }
            let elapsed = now.duration_since(start).as_secs_f64();
            prop_assert!(elapsed * per_second as f64 <= passed as f64 + 1.0 + sizes.len() as f64 * 0.001 * per_second as f64);
        }
    }
}
