//! Medians, percentiles and bootstrap intervals.

/// The value below which a share `q` of the samples lies.
pub fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let at = q * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// The median.
pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// A 95 % bootstrap interval of the median, the same for the same samples.
pub fn interval(samples: &[f64]) -> (f64, f64) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        samples[(state % samples.len() as u64) as usize]
    };
    if samples.is_empty() {
        return (f64::NAN, f64::NAN);
    }
    let medians: Vec<f64> = (0..2000)
        .map(|_| {
            let resample: Vec<f64> = (0..samples.len()).map(|_| draw()).collect();
            median(&resample)
        })
        .collect();
    (quantile(&medians, 0.025), quantile(&medians, 0.975))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(quantile(&[0.0, 10.0], 0.9), 9.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn interval_holds_the_median_and_shrinks() {
        let few: Vec<f64> = (0..9).map(f64::from).collect();
        let many: Vec<f64> = (0..900).map(|i| f64::from(i % 9)).collect();
        let (low, high) = interval(&few);
        assert!(low <= median(&few) && median(&few) <= high && low < high);
        let narrow = interval(&many);
        assert!(narrow.1 - narrow.0 <= high - low);
    }
}
