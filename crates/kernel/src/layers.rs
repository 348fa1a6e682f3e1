//! Runs the operations of a layer between its matmuls. Each takes one pass instead of up to six. The module
//! `gradients` has their backward passes.

use crate::{
    math::sigmoid,
    processor::for_this_processor,
    sum::sum,
    team::{in_parts, part_of},
};

/// Computes `x / sqrt(mean(x²) + eps) * weight` for each row of `x` into `out` (Zhang and Sennrich, "Root mean
/// square layer normalization").
///
/// # Panics
/// If the lengths do not match.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32], threads: usize) {
    let width = weight.len();
    assert!(width > 0 && x.len() == out.len() && x.len().is_multiple_of(width));
    let part = part_of(x.len(), width, threads);
    in_parts(x.chunks(part).zip(out.chunks_mut(part)), |(x, out)| {
        normed_rows(x, weight, eps, out);
    });
}

/// Computes `sum = x + added`, and the norm of `sum` like [`rms_norm`] into `out`.
///
/// # Panics
/// If the lengths do not match.
pub fn add_rms_norm(
    [x, added]: [&[f32]; 2],
    weight: &[f32],
    eps: f32,
    sum: &mut [f32],
    out: &mut [f32],
    threads: usize,
) {
    let width = weight.len();
    assert!(width > 0 && x.len().is_multiple_of(width));
    assert!(added.len() == x.len() && sum.len() == x.len() && out.len() == x.len());
    let part = part_of(x.len(), width, threads);
    let inputs = x.chunks(part).zip(added.chunks(part));
    let outputs = sum.chunks_mut(part).zip(out.chunks_mut(part));
    in_parts(inputs.zip(outputs), |((x, added), (sum, out))| {
        // A row is still in the cache when its norm reads it.
        let inputs = x.chunks(width).zip(added.chunks(width));
        let outputs = sum.chunks_mut(width).zip(out.chunks_mut(width));
        for ((x, added), (sum, out)) in inputs.zip(outputs) {
            for ((sum, x), added) in sum.iter_mut().zip(x).zip(added) {
                *sum = x + added;
            }
            normed_rows(sum, weight, eps, out);
        }
    });
}

/// Computes `gate / (1 + exp(-gate)) * up` into `out`.
///
/// # Panics
/// If the lengths differ.
pub fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32], threads: usize) {
    assert!(gate.len() == up.len() && out.len() == up.len());
    let part = part_of(gate.len(), 1, threads);
    let inputs = gate.chunks(part).zip(up.chunks(part));
    in_parts(inputs.zip(out.chunks_mut(part)), |((gate, up), out)| {
        gated(gate, up, out);
    });
}

/// Rotates each head of each position in place (Su et al., "RoFormer", with the halves of a head paired). `x` is
/// `[positions, heads, width]`; `cos` and `sin` are `[time, width]`. The times repeat for each sequence.
///
/// # Panics
/// If the lengths do not match.
pub fn rotate(x: &mut [f32], heads: usize, cos: &[f32], sin: &[f32], width: usize, threads: usize) {
    let (position, sequence) = (heads * width, heads * cos.len());
    assert!(width.is_multiple_of(2) && position > 0 && cos.len() == sin.len());
    assert!(cos.len().is_multiple_of(width) && sequence > 0 && x.len().is_multiple_of(sequence));
    let part = part_of(x.len(), sequence, threads);
    in_parts(x.chunks_mut(part), |x| rotated(x, heads, cos, sin, width));
}

for_this_processor! {
    fn normed_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let width = weight.len();
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            for (out, x) in out.iter_mut().zip(x) {
                *out = x * x;
            }
            let mean = (sum(out) / width as f64) as f32;
            let scale = 1.0 / (mean + eps).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = x * scale * weight;
            }
        }
    }
}

for_this_processor! {
    fn gated(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = *gate * sigmoid(*gate) * up;
        }
    }
}

for_this_processor! {
    fn rotated(x: &mut [f32], heads: usize, cos: &[f32], sin: &[f32], width: usize) {
        let half = width / 2;
        for sequence in x.chunks_exact_mut(heads * cos.len()) {
            let times = cos.chunks_exact(width).zip(sin.chunks_exact(width));
            for (position, (cos, sin)) in sequence.chunks_exact_mut(heads * width).zip(times) {
                for head in position.chunks_exact_mut(width) {
                    let (first, second) = head.split_at_mut(half);
                    for index in 0..half {
                        let (a, b) = (first[index], second[index]);
                        first[index] = a * cos[index] - b * sin[index];
                        second[index] = b * cos[half + index] + a * sin[half + index];
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::team::PART;

    fn numbers(count: usize, by: usize, spread: f32) -> Vec<f32> {
        let numbers = (0..count).map(|at| ((at * by + 3) % 1009) as f32 / 1009.0 - 0.5);
        numbers.map(|x| spread * x).collect()
    }

    /// More than one part, so that threads share the work.
    const COUNT: usize = 3 * PART;

    #[test]
    fn a_norm_is_its_formula_for_any_number_of_threads() {
        let (x, weight) = (numbers(COUNT, 7, 9.0), numbers(48, 11, 2.0));
        let run = |threads| {
            let mut out = vec![0.0; COUNT];
            rms_norm(&x, &weight, 1e-6, &mut out, threads);
            out
        };
        let out = run(1);
        assert!(out == run(3));
        for (x, out) in x.chunks(48).zip(out.chunks(48)) {
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 48.0;
            for ((x, weight), out) in x.iter().zip(&weight).zip(out) {
                let expected = f64::from(*x) / (mean + 1e-6).sqrt() * f64::from(*weight);
                assert!((f64::from(*out) - expected).abs() < 3e-7 * expected.abs().max(1.0));
            }
        }
    }

    #[test]
    fn a_sum_and_its_norm_are_those_of_two_passes() {
        let (x, added) = (numbers(COUNT, 7, 9.0), numbers(COUNT, 13, 9.0));
        let weight = numbers(48, 11, 2.0);
        let both = x.iter().zip(&added);
        let expected: Vec<f32> = both.map(|(x, added)| x + added).collect();
        let mut normed = vec![0.0; COUNT];
        rms_norm(&expected, &weight, 1e-6, &mut normed, 1);
        for threads in [1, 3] {
            let (mut sum, mut out) = (vec![0.0; COUNT], vec![0.0; COUNT]);
            add_rms_norm([&x, &added], &weight, 1e-6, &mut sum, &mut out, threads);
            assert!(sum == expected && out == normed);
        }
    }

    #[test]
    fn a_gate_is_its_formula_at_any_size() {
        let mut gate = numbers(COUNT, 7, 60.0);
        gate[..4].copy_from_slice(&[0.0, 1e4, -1e4, 100.0]);
        let up = numbers(COUNT, 13, 2.0);
        let run = |threads| {
            let mut out = vec![0.0; COUNT];
            silu_mul(&gate, &up, &mut out, threads);
            out
        };
        let one = run(1);
        assert!(one == run(4));
        for ((gate, up), got) in gate.iter().zip(&up).zip(&one) {
            let gate = f64::from(*gate);
            let expected = gate / (1.0 + (-gate).exp()) * f64::from(*up);
            assert!((f64::from(*got) - expected).abs() < 4e-7 * expected.abs().max(1.0));
        }
    }

    #[test]
    fn rotations_are_their_formula_and_start_again_with_each_row() {
        let (time, heads, width) = (5, 3, 8);
        let angles = numbers(time * width / 2, 5, 6.0);
        let table = |of: fn(f32) -> f32| -> Vec<f32> {
            let rows = angles.chunks(width / 2);
            rows.flat_map(|row| row.iter().chain(row).map(|angle| of(*angle)))
                .collect()
        };
        let (cos, sin) = (table(f32::cos), table(f32::sin));
        let sequence = time * heads * width;
        let x = numbers((2 * PART).div_ceil(sequence) * sequence, 7, 3.0);
        let (mut out, mut of_one) = (x.clone(), x.clone());
        rotate(&mut out, heads, &cos, &sin, width, 2);
        rotate(&mut of_one, heads, &cos, &sin, width, 1);
        assert!(out == of_one);
        for (at, (x, out)) in x.chunks(width).zip(out.chunks(width)).enumerate() {
            let angles = &angles[(at / heads % time) * width / 2..][..width / 2];
            for (index, angle) in angles.iter().enumerate() {
                let (a, b) = (x[index], x[width / 2 + index]);
                let (cos, sin) = (angle.cos(), angle.sin());
                assert!((out[index] - (a * cos - b * sin)).abs() < 1e-6);
                assert!((out[width / 2 + index] - (b * cos + a * sin)).abs() < 1e-6);
            }
        }
    }
}
