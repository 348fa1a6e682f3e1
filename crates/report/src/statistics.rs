//! Statistics of a few runs with different seeds: spread, and paired differences with their confidence interval.

use serde::Serialize;

/// Values of one quantity over seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spread {
    /// One value per seed.
    pub values: Vec<f64>,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation (divided by n - 1); `None` for a single value.
    pub deviation: Option<f64>,
}

impl Spread {
    /// Mean and deviation of `values`.
    pub fn of(values: Vec<f64>) -> Self {
        let mean = mean(&values);
        Self {
            deviation: deviation(&values, mean),
            mean,
            values,
        }
    }
}

/// Differences between two methods on the same seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Paired {
    /// Number of pairs.
    pub n: usize,
    /// Mean difference: negative if the first is smaller.
    pub mean: f64,
    /// The 95% confidence interval of the mean (Student's t, n - 1 degrees of freedom); `None` for a single pair.
    pub interval: Option<(f64, f64)>,
    /// Standard error of the mean; `None` for a single pair.
    #[serde(skip)]
    error: Option<f64>,
}

impl Paired {
    /// `values - reference`, pair by pair.
    pub fn of(values: &[f64], reference: &[f64]) -> Self {
        let differences: Vec<f64> = values
            .iter()
            .zip(reference)
            .map(|(value, reference)| value - reference)
            .collect();
        let (n, mean) = (differences.len(), mean(&differences));
        let error = deviation(&differences, mean).map(|deviation| deviation / (n as f64).sqrt());
        let interval = error.map(|error| {
            let half = t_quantile_975(n as u64 - 1) * error;
            (mean - half, mean + half)
        });
        Self {
            n,
            mean,
            interval,
            error,
        }
    }

    /// The p-value of the claim that the mean difference is below `margin`: twice the one-sided value, so that 0.05
    /// agrees with the upper bound of the 95% interval. `None` for a single pair.
    pub fn p_below(&self, margin: f64) -> Option<f64> {
        let t = (self.mean - margin) / self.error?;
        if t >= 0.0 || t.is_nan() {
            return Some(1.0);
        }
        Some(1.0 - within(-t, self.n as u64 - 1))
    }

    /// Whether zero is outside the interval; false if there is no interval.
    pub fn excludes_zero(&self) -> bool {
        self.interval
            .is_some_and(|(low, high)| low > 0.0 || high < 0.0)
    }
}

/// Holm's adjustment of p-values: reject those of at most 0.05, and the probability of any false rejection among them
/// is at most 5%.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut adjusted = vec![1.0; p.len()];
    let mut largest = 0.0_f64;
    for (rank, &index) in order.iter().enumerate() {
        largest = largest.max(p[index] * (p.len() - rank) as f64).min(1.0);
        adjusted[index] = largest;
    }
    adjusted
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn deviation(values: &[f64], mean: f64) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

/// The 97.5% quantile of Student's t distribution with `freedom` degrees of freedom (at least 1), by bisection.
pub fn t_quantile_975(freedom: u64) -> f64 {
    // The largest quantile is 12.706, at one degree of freedom.
    let (mut low, mut high) = (0.0, 13.0);
    for _ in 0..100 {
        let middle = f64::midpoint(low, high);
        if within(middle, freedom) < 0.95 {
            low = middle;
        } else {
            high = middle;
        }
    }
    f64::midpoint(low, high)
}

/// The probability between -t and t, in closed form for whole degrees of freedom (Abramowitz and Stegun,
/// 26.7.3 and 26.7.4).
fn within(t: f64, freedom: u64) -> f64 {
    let theta = (t / (freedom as f64).sqrt()).atan();
    let cosine_squared = theta.cos().powi(2);
    let odd = freedom % 2 == 1;
    // Odd: cos + 2/3 cos^3 + ... up to cos^(freedom - 2); even: 1 + 1/2 cos^2 + ... up to the same.
    let (mut term, mut power) = if odd { (theta.cos(), 1) } else { (1.0, 0) };
    let mut sum = 0.0;
    while power + 2 <= freedom {
        sum += term;
        power += 2;
        term *= cosine_squared * (power - 1) as f64 / power as f64;
    }
    if odd {
        (theta + theta.sin() * sum) * std::f64::consts::FRAC_2_PI
    } else {
        theta.sin() * sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `scipy.stats.t.ppf(0.975, freedom)`.
    const QUANTILES: [(u64, f64); 9] = [
        (1, 12.706_204_736_432_095),
        (2, 4.302_652_729_696_142),
        (3, 3.182_446_305_284_263),
        (4, 2.776_445_105_197_799),
        (5, 2.570_581_835_636_314),
        (9, 2.262_157_162_740_991),
        (10, 2.228_138_851_964_939),
        (29, 2.045_229_642_132_703),
        (100, 1.983_971_518_449_633),
    ];

    #[test]
    fn quantiles_are_scipys() {
        for (freedom, expected) in QUANTILES {
            let quantile = t_quantile_975(freedom);
            assert!(
                (quantile / expected - 1.0).abs() < 1e-9,
                "{freedom}: {quantile}"
            );
        }
    }

    #[test]
    fn spread_divides_by_n_minus_one() {
        let spread = Spread::of(vec![2.0, 4.0, 9.0]);
        // Mean 5; squares 9 + 1 + 16 = 26; 26 / 2 = 13.
        assert_eq!((spread.mean, spread.deviation), (5.0, Some(13_f64.sqrt())));
        assert_eq!(Spread::of(vec![2.0]).deviation, None);
    }

    #[test]
    fn a_paired_interval_is_that_of_a_one_sample_t_test() {
        // Differences -1, -2, -3: mean -2, deviation 1, half-width 4.302652729696142 / sqrt(3).
        let paired = Paired::of(&[9.0, 18.0, 27.0], &[10.0, 20.0, 30.0]);
        let (low, high) = paired.interval.unwrap();
        assert_eq!((paired.n, paired.mean), (3, -2.0));
        assert!((low - -4.484_137_712_006_158).abs() < 1e-9, "{low}");
        assert!((high - 0.484_137_712_006_158).abs() < 1e-9, "{high}");
        assert!(!paired.excludes_zero());
        let clear = Paired::of(&[9.0, 19.1, 29.2], &[10.0, 20.0, 30.0]);
        // Differences -1, -0.9, -0.8: half-width 0.1 x 2.4841377.
        assert!(clear.excludes_zero());
        assert!((clear.interval.unwrap().1 - -0.651_586_228_799_384).abs() < 1e-9);
    }

    /// `scipy.stats.ttest_rel(a, b).pvalue`, and with `b + 0.01` for the margin.
    #[test]
    fn p_values_are_scipys() {
        let a = [0.262, 0.271, 0.255, 0.266, 0.259];
        let b = [0.275, 0.280, 0.262, 0.281, 0.264];
        let paired = Paired::of(&a, &b);
        let close = |p: Option<f64>, expected: f64| {
            let p = p.unwrap();
            assert!(
                (p / expected - 1.0).abs() < 1e-9,
                "{p} instead of {expected}"
            );
        };
        close(paired.p_below(0.0), 0.006_154_247_498_674_852);
        close(paired.p_below(0.01), 0.000_436_134_020_802_981_5);
        // The other way around, the claim is as far from true as can be.
        assert_eq!(Paired::of(&b, &a).p_below(0.0), Some(1.0));
        assert_eq!(Paired::of(&a[..1], &b[..1]).p_below(0.0), None);
    }

    /// `statsmodels.stats.multitest.multipletests(p, method="holm")[1]`.
    #[test]
    fn adjusted_p_values_are_those_of_statsmodels() {
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (value, expected) in adjusted.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((value - expected).abs() < 1e-12, "{adjusted:?}");
        }
        assert_eq!(holm(&[0.6, 0.7]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }

    #[test]
    fn one_seed_has_no_interval_and_excludes_nothing() {
        let paired = Paired::of(&[1.0], &[5.0]);
        assert_eq!((paired.mean, paired.interval), (-4.0, None));
        assert!(!paired.excludes_zero());
    }
}
