//! Runs an AdamW update in one pass over weights, gradient, and both moments.

use crate::{
    processor::for_this_processor,
    team::{in_parts, part_of},
};

/// The constants of an AdamW update (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Factor applied to the gradient first (clipping).
    pub gradient_scale: f32,
    /// `1 - beta1`.
    pub first_rate: f32,
    /// beta2.
    pub second_decay: f32,
    /// `1 - beta2`.
    pub second_rate: f32,
    /// `1 / sqrt(1 - beta2^t)`.
    pub root_scale: f32,
    /// Added to the scaled root.
    pub epsilon: f32,
    /// `learning rate / (1 - beta1^t)`.
    pub rate: f32,
    /// Factor by which weight decay scales a weight: `1 - learning rate x weight decay`.
    pub keep: f32,
}

/// Updates `weights` and both moments in place, on `threads` threads. Each number is updated independently, so the
/// number of threads changes no bit.
///
/// # Panics
/// If the lengths differ.
pub fn adamw(
    weights: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    step: &AdamWStep,
    threads: usize,
) {
    let count = weights.len();
    assert_eq!([gradient.len(), first.len(), second.len()], [count; 3]);
    let part = part_of(count, 1, threads);
    let parts = weights
        .chunks_mut(part)
        .zip(gradient.chunks(part))
        .zip(first.chunks_mut(part))
        .zip(second.chunks_mut(part));
    in_parts(parts, |(((weights, gradient), first), second)| {
        update(weights, gradient, first, second, step);
    });
}

for_this_processor! {
    fn update(
        weights: &mut [f32],
        gradient: &[f32],
        first: &mut [f32],
        second: &mut [f32],
        step: &AdamWStep,
    ) {
        let numbers = weights.iter_mut().zip(gradient).zip(first).zip(second);
        for (((weight, gradient), first), second) in numbers {
            let gradient = gradient * step.gradient_scale;
            *first += step.first_rate * (gradient - *first);
            *second = step.second_decay * *second + step.second_rate * (gradient * gradient);
            let denominator = second.sqrt() * step.root_scale + step.epsilon;
            *weight = step.keep * *weight - step.rate * (*first / denominator);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::team::PART;

    #[test]
    fn threads_change_no_bit() {
        let count = 3 * PART + 17;
        let numbers = |by: usize| -> Vec<f32> {
            let numbers = (0..count).map(|at| ((at * by) % 1009) as f32 / 1009.0);
            numbers.collect()
        };
        let step = AdamWStep {
            gradient_scale: 0.7,
            first_rate: 0.1,
            second_decay: 0.95,
            second_rate: 0.05,
            root_scale: 3.0,
            epsilon: 1e-8,
            rate: 1e-3,
            keep: 0.999,
        };
        let run = |threads| {
            let (mut weights, mut first, mut second) = (numbers(7), numbers(11), numbers(13));
            adamw(
                &mut weights,
                &numbers(5),
                &mut first,
                &mut second,
                &step,
                threads,
            );
            (weights, first, second)
        };
        assert!(run(1) == run(3));
    }
}
