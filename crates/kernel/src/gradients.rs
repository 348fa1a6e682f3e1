//! The backward passes of the operations of a layer between its matmuls. Each takes one pass over its inputs, and
//! recomputes what takes less time to compute than to store.

use crate::{
    math::sigmoid,
    processor::for_this_processor,
    sum::sum,
    team::{in_parts, part_of},
};

/// Rows whose contributions to a weight's gradient are summed in fp32. The blocks' sums are added in f64, in order, so
/// the number of threads does not change a bit.
const BLOCK: usize = 32;

/// What the backward pass of a norm reads.
#[derive(Debug, Clone, Copy)]
pub struct NormInputs<'a> {
    /// The rows that were normed.
    pub x: &'a [f32],
    /// The norm's weight.
    pub weight: &'a [f32],
    /// The epsilon of the forward pass.
    pub eps: f32,
    /// The gradient of the normed rows.
    pub gradient: &'a [f32],
    /// Another gradient of the rows, which is added to the result: that of the residual connection.
    pub residual: Option<&'a [f32]>,
}

/// The backward pass of [`crate::rms_norm`]: writes the gradients of the rows and of the weight.
///
/// # Panics
/// If the lengths do not match.
pub fn rms_norm_backward(
    inputs: &NormInputs<'_>,
    x_gradient: &mut [f32],
    weight_gradient: &mut [f32],
    threads: usize,
) {
    let (count, width) = (inputs.x.len(), inputs.weight.len());
    assert!(width > 0 && count.is_multiple_of(width) && weight_gradient.len() == width);
    assert!(inputs.gradient.len() == count && x_gradient.len() == count);
    assert!(
        inputs
            .residual
            .is_none_or(|residual| residual.len() == count)
    );
    let block = BLOCK * width;
    let mut sums = vec![0.0_f32; count.div_ceil(block) * width];
    // Whole blocks for each thread.
    let part = part_of(count, block, threads);
    let of_parts = x_gradient
        .chunks_mut(part)
        .zip(sums.chunks_mut(part / block * width))
        .enumerate();
    in_parts(of_parts, |(index, (x_gradient, sums))| {
        let range = index * part..index * part + x_gradient.len();
        let blocks = x_gradient.chunks_mut(block).zip(sums.chunks_mut(width));
        for (number, (x_gradient, sums)) in blocks.enumerate() {
            let start = range.start + number * block;
            let range = start..start + x_gradient.len();
            let inputs = NormInputs {
                x: &inputs.x[range.clone()],
                gradient: &inputs.gradient[range.clone()],
                residual: inputs.residual.map(|residual| &residual[range]),
                ..*inputs
            };
            norm_block(&inputs, x_gradient, sums);
        }
    });
    let mut total = vec![0.0_f64; width];
    for sums in sums.chunks_exact(width) {
        for (total, sum) in total.iter_mut().zip(sums) {
            *total += f64::from(*sum);
        }
    }
    for (gradient, total) in weight_gradient.iter_mut().zip(total) {
        *gradient = total as f32;
    }
}

/// The backward pass of [`crate::silu_mul`]: writes the gradients of the gate and of the other factor.
///
/// # Panics
/// If the lengths differ.
pub fn silu_mul_backward(
    [gate, up, gradient]: [&[f32]; 3],
    gate_gradient: &mut [f32],
    up_gradient: &mut [f32],
    threads: usize,
) {
    let count = gate.len();
    assert!(up.len() == count && gradient.len() == count);
    assert!(gate_gradient.len() == count && up_gradient.len() == count);
    let part = part_of(count, 1, threads);
    let inputs = gate
        .chunks(part)
        .zip(up.chunks(part))
        .zip(gradient.chunks(part));
    let outputs = gate_gradient
        .chunks_mut(part)
        .zip(up_gradient.chunks_mut(part));
    in_parts(
        inputs.zip(outputs),
        |(((gate, up), gradient), (of_gate, of_up))| {
            gate_block(gate, up, gradient, of_gate, of_up);
        },
    );
}

/// The backward pass of [`crate::rotate`]: turns each head back, from `gradient` into `out`.
///
/// # Panics
/// If the lengths do not match.
pub fn rotate_backward(
    gradient: &[f32],
    heads: usize,
    [cos, sin]: [&[f32]; 2],
    width: usize,
    out: &mut [f32],
    threads: usize,
) {
    let (position, sequence) = (heads * width, heads * cos.len());
    assert!(width.is_multiple_of(2) && position > 0 && cos.len() == sin.len());
    assert!(cos.len().is_multiple_of(width) && sequence > 0);
    assert!(gradient.len().is_multiple_of(sequence) && out.len() == gradient.len());
    let part = part_of(out.len(), sequence, threads);
    in_parts(
        gradient.chunks(part).zip(out.chunks_mut(part)),
        |(gradient, out)| {
            turned_back(gradient, heads, cos, sin, width, out);
        },
    );
}

for_this_processor! {
    fn norm_block(inputs: &NormInputs<'_>, x_gradient: &mut [f32], sums: &mut [f32]) {
        let width = inputs.weight.len();
        let rows = inputs.x.chunks_exact(width).zip(inputs.gradient.chunks_exact(width));
        for (row, ((x, gradient), out)) in rows.zip(x_gradient.chunks_exact_mut(width)).enumerate() {
            for (out, x) in out.iter_mut().zip(x) {
                *out = x * x;
            }
            let mean = (sum(out) / width as f64) as f32;
            let scale = 1.0 / (mean + inputs.eps).sqrt();
            let factors = gradient.iter().zip(inputs.weight);
            for ((out, x), (gradient, weight)) in out.iter_mut().zip(x).zip(factors) {
                *out = x * scale * gradient * weight;
            }
            // The part of the gradient along the row, which a norm takes out.
            let along = (sum(out) / width as f64) as f32;
            let factors = gradient.iter().zip(inputs.weight).zip(sums.iter_mut());
            for ((out, x), ((gradient, weight), sum)) in out.iter_mut().zip(x).zip(factors) {
                let normed = x * scale;
                *sum += gradient * normed;
                *out = scale * (gradient * weight - normed * along);
            }
            if let Some(residual) = inputs.residual {
                let residual = &residual[row * width..][..width];
                for (out, residual) in out.iter_mut().zip(residual) {
                    *out += residual;
                }
            }
        }
    }
}

for_this_processor! {
    fn gate_block(
        gate: &[f32], up: &[f32], gradient: &[f32], gate_gradient: &mut [f32], up_gradient: &mut [f32]
    ) {
        let outputs = gate_gradient.iter_mut().zip(up_gradient.iter_mut());
        let inputs = gate.iter().zip(up).zip(gradient);
        for ((of_gate, of_up), ((gate, up), gradient)) in outputs.zip(inputs) {
            let share = sigmoid(*gate);
            let silu = gate * share;
            *of_up = gradient * silu;
            *of_gate = gradient * up * (share + silu * (1.0 - share));
        }
    }
}

for_this_processor! {
    fn turned_back(
        gradient: &[f32], heads: usize, cos: &[f32], sin: &[f32], width: usize, out: &mut [f32]
    ) {
        let (half, position) = (width / 2, heads * width);
        let sequences = gradient.chunks_exact(heads * cos.len());
        for (gradient, out) in sequences.zip(out.chunks_exact_mut(heads * cos.len())) {
            let tables = cos.chunks_exact(width).zip(sin.chunks_exact(width));
            let positions = gradient.chunks_exact(position).zip(out.chunks_exact_mut(position));
            for ((gradient, out), (cos, sin)) in positions.zip(tables) {
                for (gradient, out) in gradient.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                    let (first, second) = gradient.split_at(half);
                    let (out_first, out_second) = out.split_at_mut(half);
                    for index in 0..half {
                        let (a, b) = (first[index], second[index]);
                        out_first[index] = a * cos[index] + b * sin[half + index];
                        out_second[index] = b * cos[half + index] - a * sin[index];
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{rms_norm, rotate, silu_mul, team::PART};

    fn numbers(count: usize, by: usize, spread: f32) -> Vec<f32> {
        let numbers = (0..count).map(|at| ((at * by + 3) % 1009) as f32 / 1009.0 - 0.5);
        numbers.map(|x| spread * x).collect()
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        let both = a.iter().zip(b);
        both.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    fn moved(x: &[f32], along: &[f32], by: f32) -> Vec<f32> {
        x.iter()
            .zip(along)
            .map(|(x, along)| x + by * along)
            .collect()
    }

    /// Checks that the gradient along a direction is the change of `loss` in that direction.
    fn agrees(loss: impl Fn(f32) -> f64, along: f64, what: &str) {
        let step = 1e-2;
        // Richardson's extrapolation of central differences.
        let central = |step: f32| (loss(step) - loss(-step)) / (2.0 * f64::from(step));
        let slope = (4.0 * central(step) - central(2.0 * step)) / 3.0;
        assert!(
            (slope - along).abs() < 1e-3 * along.abs().max(1.0),
            "{what}: the gradient is {along}, the slope {slope}"
        );
    }

    #[test]
    fn the_gradient_of_a_norm_is_its_slope_for_any_number_of_threads() {
        let (rows, width) = (3 * PART / 48 + 5, 48);
        let count = rows * width;
        let (x, weight) = (numbers(count, 7, 3.0), numbers(width, 11, 2.0));
        let (gradient, residual) = (numbers(count, 13, 0.1), numbers(count, 17, 0.1));
        let inputs = NormInputs {
            x: &x,
            weight: &weight,
            eps: 1e-5,
            gradient: &gradient,
            residual: None,
        };
        let run = |inputs: &NormInputs<'_>, threads| {
            let mut of = (vec![0.0; count], vec![0.0; width]);
            rms_norm_backward(inputs, &mut of.0, &mut of.1, threads);
            of
        };
        let (of_x, of_weight) = run(&inputs, 1);
        assert!((of_x.clone(), of_weight.clone()) == run(&inputs, 3));
        let loss = |x: &[f32], weight: &[f32]| {
            let mut out = vec![0.0; count];
            rms_norm(x, weight, 1e-5, &mut out, 1);
            dot(&out, &gradient)
        };
        let (by_x, by_weight) = (numbers(count, 19, 1.0), numbers(width, 23, 1.0));
        agrees(
            |by| loss(&moved(&x, &by_x, by), &weight),
            dot(&of_x, &by_x),
            "rows",
        );
        let slope = dot(&of_weight, &by_weight);
        agrees(
            |by| loss(&x, &moved(&weight, &by_weight, by)),
            slope,
            "weight",
        );
        let with_residual = NormInputs {
            residual: Some(&residual),
            ..inputs
        };
        let (sum, same) = run(&with_residual, 2);
        assert!(same == of_weight);
        for ((sum, of_x), residual) in sum.iter().zip(&of_x).zip(&residual) {
            assert_eq!(*sum, of_x + residual);
        }
    }

    #[test]
    fn the_gradients_of_a_gate_are_its_slopes_and_finite_at_any_size() {
        let count = 2 * PART + 7;
        let (gate, up) = (numbers(count, 7, 12.0), numbers(count, 13, 2.0));
        let gradient = numbers(count, 17, 0.1);
        let run = |gate: &[f32], threads| {
            let mut of = (vec![0.0; count], vec![0.0; count]);
            silu_mul_backward([gate, &up, &gradient], &mut of.0, &mut of.1, threads);
            of
        };
        let (of_gate, of_up) = run(&gate, 1);
        assert!((of_gate.clone(), of_up.clone()) == run(&gate, 4));
        let loss = |gate: &[f32], up: &[f32]| {
            let mut out = vec![0.0; count];
            silu_mul(gate, up, &mut out, 1);
            dot(&out, &gradient)
        };
        let by = numbers(count, 19, 1.0);
        agrees(
            |step| loss(&moved(&gate, &by, step), &up),
            dot(&of_gate, &by),
            "gate",
        );
        agrees(
            |step| loss(&gate, &moved(&up, &by, step)),
            dot(&of_up, &by),
            "up",
        );
        let mut large = gate;
        large[..3].copy_from_slice(&[1e4, -1e4, 0.0]);
        let (of_gate, of_up) = run(&large, 1);
        assert!(of_gate.iter().chain(&of_up).all(|x| x.is_finite()));
        assert_eq!((of_gate[1], of_gate[2]), (0.0, gradient[2] * up[2] * 0.5));
    }

    #[test]
    fn turning_back_is_the_transpose_of_turning() {
        let (time, heads, width) = (5, 3, 8);
        // The halves of a table may differ, and a rotation is not assumed.
        let (cos, sin) = (
            numbers(time * width, 5, 2.0),
            numbers(time * width, 29, 2.0),
        );
        let sequence = time * heads * width;
        let count = (2 * PART).div_ceil(sequence) * sequence;
        let (x, gradient) = (numbers(count, 7, 3.0), numbers(count, 11, 1.0));
        let mut turned = x.clone();
        rotate(&mut turned, heads, &cos, &sin, width, 1);
        let run = |threads| {
            let mut out = vec![0.0; count];
            rotate_backward(&gradient, heads, [&cos, &sin], width, &mut out, threads);
            out
        };
        let back = run(1);
        assert!(back == run(2));
        let (expected, found) = (dot(&turned, &gradient), dot(&x, &back));
        assert!(
            (expected - found).abs() < 1e-5 * expected.abs().max(1.0),
            "{expected} {found}"
        );
    }
}
