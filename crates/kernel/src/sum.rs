//! Sums whose bits are the same on every processor.

/// Partial sums: as many as the widest registers hold, whatever the processor.
pub(crate) const LANES: usize = 16;

/// The sum in f64.
#[inline(always)]
pub(crate) fn sum<T: Copy + Into<f64>>(block: &[T]) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    let chunks = block.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += (*x).into();
        }
    }
    lanes.into_iter().sum::<f64>() + rest.iter().map(|x| (*x).into()).sum::<f64>()
}
