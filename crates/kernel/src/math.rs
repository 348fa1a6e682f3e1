//! Exponential and logarithm as straight-line arithmetic, which the compiler vectorizes in loops over numbers.
//!
//! Every operation rounds as IEEE 754 specifies, including the fused ones, so results have the same bits on every
//! processor.

/// Computes `exp(x)` for x up to 0 with a relative error within 1e-7. Gives 0 below -87.3, where fp32 has no normal
/// numbers. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it rounds to a whole number, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts. A whole number times the first part is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let whole = rounded - ROUND;
    let rest = whole.mul_add(-LN_2_LOW, whole.mul_add(-LN_2_HIGH, x));
    // exp(r) = 1 + r + r² P(r) for abs(r) up to ln 2 / 2.
    let mut polynomial = 1.987_569_1e-4_f32;
    for coefficient in [
        1.398_2e-3_f32,
        8.333_452e-3,
        4.166_579_6e-2,
        0.166_666_66,
        0.5,
    ] {
        polynomial = polynomial.mul_add(rest, coefficient);
    }
    let mantissa = polynomial.mul_add(rest * rest, rest) + 1.0;
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    // Written so that NaN passes through.
    if x < -87.3 { 0.0 } else { mantissa * power }
}

/// Computes `1 / (1 + exp(-x))`. Uses only exponentials of numbers up to 0, so that a large number never overflows.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    let small = exp(-x.abs());
    let share = if x < 0.0 { small } else { 1.0 };
    share / (1.0 + small)
}

/// Computes `ln(1 + y)` for y from 0 to 1 with a relative error within 2.5e-7.
#[inline(always)]
pub(crate) fn ln_1p(y: f32) -> f32 {
    // ln(1 + y) = 2 atanh(z), z = y / (2 + y) up to 1/3.
    let z = y / (2.0 + y);
    let square = z * z;
    let mut series = 1.0_f32 / 15.0;
    for coefficient in [
        1.0_f32 / 13.0,
        1.0 / 11.0,
        1.0 / 9.0,
        1.0 / 7.0,
        0.2,
        1.0 / 3.0,
    ] {
        series = series.mul_add(square, coefficient);
    }
    2.0 * z * series.mul_add(square, 1.0)
}

/// Computes `ln(exp(a) + exp(b))`; finite if one of the two is.
#[inline(always)]
pub(crate) fn log_add(a: f32, b: f32) -> f32 {
    let (high, low) = if a > b { (a, b) } else { (b, a) };
    high + ln_1p(exp(low - high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_as_stated() {
        let (mut of_exp, mut of_ln) = (0.0_f64, 0.0_f64);
        for index in 0..1_000_000 {
            let x = -87.3 * index as f32 / 1e6;
            let expected = f64::from(x).exp();
            of_exp = of_exp.max((f64::from(exp(x)) / expected - 1.0).abs());
            let y = (index + 1) as f32 / 1e6;
            let expected = f64::from(y).ln_1p();
            of_ln = of_ln.max((f64::from(ln_1p(y)) / expected - 1.0).abs());
        }
        assert!(of_exp < 1e-7 && of_ln < 2.5e-7, "{of_exp} {of_ln}");
    }

    #[test]
    fn ends_are_exact() {
        assert_eq!((exp(0.0), exp(-0.0), exp(-88.0)), (1.0, 1.0, 0.0));
        assert_eq!((exp(-1e4), exp(f32::NEG_INFINITY)), (0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(ln_1p(0.0), 0.0);
        assert_eq!(log_add(-3.0, -1e4), -3.0);
        assert_eq!(log_add(-1e4, -3.0), -3.0);
        assert_eq!(log_add(0.0, f32::NEG_INFINITY), 0.0);
    }
}
