//! Small curves of text.

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Draws the values as bars, at most `width` of them: the lowest value is the lowest bar. If there are more values,
/// each bar is the mean of some.
pub(super) fn spark(values: &[f64], width: usize) -> String {
    let finite: Vec<f64> = values
        .iter()
        .copied()
        .filter(|value| value.is_finite())
        .collect();
    if finite.is_empty() || width == 0 {
        return String::new();
    }
    let count = finite.len().min(width);
    let mean = |bar: usize| {
        let part = &finite[bar * finite.len() / count..(bar + 1) * finite.len() / count];
        part.iter().sum::<f64>() / part.len() as f64
    };
    let means: Vec<f64> = (0..count).map(mean).collect();
    let low = means.iter().copied().fold(f64::INFINITY, f64::min);
    let high = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let bar = |mean: &f64| {
        let share = (mean - low) / (high - low).max(f64::MIN_POSITIVE);
        let index = (share * BARS.len() as f64) as usize;
        BARS[index.min(BARS.len() - 1)]
    };
    means.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_means_from_the_lowest_to_the_highest() {
        assert_eq!(spark(&[3.0, f64::NAN, 2.0, 1.0], 10), "█▅▁");
        assert_eq!(spark(&[4.0, 2.0, 1.0, 1.0], 2), "█▁");
        assert_eq!(spark(&[2.0, 2.0], 8), "▁▁");
        assert_eq!(spark(&[], 8), "");
        assert_eq!(spark(&[1.0], 0), "");
    }
}
