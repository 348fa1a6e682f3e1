//! Sums that have the same bits on every processor.

use crate::{
    processor::for_this_processor,
    team::{PART, in_parts},
};

/// Number of partial sums: as many as the widest registers hold, whatever the processor.
pub(crate) const LANES: usize = 16;

/// Sums the numbers in f64.
#[inline(always)]
pub(crate) fn sum<T: Copy + Into<f64>>(block: &[T]) -> f64 {
    sum_by(block, Into::into)
}

/// Sums `of(x)` over all numbers, in f64.
#[inline(always)]
fn sum_by<T: Copy>(block: &[T], of: impl Fn(T) -> f64) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    let chunks = block.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += of(*x);
        }
    }
    lanes.into_iter().sum::<f64>() + rest.iter().map(|x| of(*x)).sum::<f64>()
}

/// Sums all squares in f64, with the same bits on any number of threads.
pub fn sum_of_squares(numbers: &[f32], threads: usize) -> f64 {
    let mut sums = vec![0.0; numbers.len().div_ceil(PART)];
    let each = sums.len().div_ceil(threads.max(1)).max(1);
    let parts = sums.chunks_mut(each).zip(numbers.chunks(each * PART));
    in_parts(parts, |(sums, numbers)| squares_of_parts(numbers, sums));
    sum(&sums)
}

for_this_processor! {
    fn squares_of_parts(numbers: &[f32], sums: &mut [f64]) {
        for (sum, part) in sums.iter_mut().zip(numbers.chunks(PART)) {
            *sum = sum_by(part, |x| f64::from(x) * f64::from(x));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_of_many_numbers_are_summed_exactly_enough_on_any_number_of_threads() {
        // Squares of multiples of 1/1024: each sum is a multiple of 2^-20 and exact in f64.
        let count = 5 * PART + 13;
        let numbers: Vec<f32> = (0..count)
            .map(|at| (at % 2003) as f32 / 1024.0 - 1.0)
            .collect();
        let exact: i64 = (0..count)
            .map(|at| ((at % 2003) as i64 - 1024).pow(2))
            .sum();
        let expected = exact as f64 / 1_048_576.0;
        for threads in [1, 2, 3, 9] {
            assert_eq!(sum_of_squares(&numbers, threads), expected);
        }
        assert_eq!(sum_of_squares(&[], 2), 0.0);
    }
}
