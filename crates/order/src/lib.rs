//! Draws random numbers from seeds and positions, never from arrival order.
//!
//! Every random choice of DDK is a pure function of a seed, a label that names the choice, and the position of the
//! choice (the epoch of a domain, an interval, …). DDK can therefore repeat a choice after a restart, on any thread, in
//! any order. The streams are ChaCha8, whose output is fixed. Shuffles and distributions are our own, because those of
//! general libraries change between versions. Golden tests pin them all.
//!
//! ```
//! let shuffled = |epoch| {
//!     let mut documents = [0, 1, 2, 3, 4];
//!     ddk_order::shuffle(&mut documents, &mut ddk_order::stream(7, "example", &[epoch]));
//!     documents
//! };
//! assert_eq!(shuffled(1), shuffled(1));
//! assert_ne!(shuffled(1), shuffled(2));
//! ```

mod permutation;

pub use permutation::Permutation;
pub use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Returns the random stream of a choice. `label` names the choice; `positions` gives its position (for example the
/// epoch of a domain).
///
/// The key is the BLAKE3 hash of seed, label and positions, so neighboring seeds give unrelated streams.
pub fn stream(seed: u64, label: &str, positions: &[u64]) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&(label.len() as u64).to_le_bytes());
    hasher.update(label.as_bytes());
    for position in positions {
        hasher.update(&position.to_le_bytes());
    }
    ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
}

/// An integer in `0..bound`, each equally likely. A bound of 0 gives 0.
pub fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    if bound == 0 {
        return 0;
    }
    // Lemire, "Fast random integer generation in an interval": the high half of a product, without the biased low part.
    let threshold = bound.wrapping_neg() % bound;
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(bound);
        if product as u64 >= threshold {
            return (product >> 64) as u64;
        }
    }
}

/// A number in `[0, 1)` with 53 random bits.
pub fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// A standard normal number (Box-Muller transform).
pub fn standard_normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - unit(rng)).ln()).sqrt();
    radius * (std::f64::consts::TAU * unit(rng)).cos()
}

/// Shuffles in place (Fisher-Yates).
pub fn shuffle<T>(items: &mut [T], rng: &mut ChaCha8Rng) {
    for last in (1..items.len()).rev() {
        let other = below(rng, last as u64 + 1) as usize;
        items.swap(last, other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_in_seed_label_and_position() {
        let first = |seed, label, positions: &[u64]| stream(seed, label, positions).next_u64();
        let all = [
            first(0, "a", &[]),
            first(1, "a", &[]),
            first(0, "b", &[]),
            first(0, "a", &[0]),
            first(0, "a", &[1]),
            first(0, "a", &[0, 0]),
        ];
        for (index, value) in all.iter().enumerate() {
            assert!(!all[..index].contains(value));
        }
        assert_eq!(first(7, "x", &[3]), first(7, "x", &[3]));
    }

    #[test]
    fn numbers_stay_in_bounds_and_spread() {
        let mut rng = stream(0, "test", &[]);
        let mut counts = [0_u32; 7];
        for _ in 0..70_000 {
            counts[below(&mut rng, 7) as usize] += 1;
        }
        assert!(
            counts.iter().all(|count| (9_500..10_500).contains(count)),
            "{counts:?}"
        );
        assert_eq!(below(&mut rng, 1), 0);
        assert_eq!(below(&mut rng, 0), 0);
        let (mut sum, mut squares) = (0.0, 0.0);
        for _ in 0..50_000 {
            let value = standard_normal(&mut rng);
            sum += value;
            squares += value * value;
            assert!((0.0..1.0).contains(&unit(&mut rng)));
        }
        assert!((sum / 50_000.0).abs() < 0.02);
        assert!((squares / 50_000.0 - 1.0).abs() < 0.03);
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..1000).collect();
        shuffle(&mut items, &mut stream(3, "shuffle", &[]));
        assert_ne!(items, (0..1000).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..1000).collect::<Vec<_>>());
    }

    /// If these numbers change, the order of every run changes. That needs a new format version, not new golden
    /// values.
    #[test]
    fn the_streams_are_pinned() {
        let mut rng = stream(42, "golden", &[1, 2]);
        let mut order: Vec<u8> = (0..10).collect();
        shuffle(&mut order, &mut rng);
        let numbers: Vec<u64> = (0..3).map(|_| below(&mut rng, 1_000_000)).collect();
        let permutation = Permutation::new(10, 42, "golden", &[1]);
        let permuted: Vec<u64> = (0..10).map(|index| permutation.at(index)).collect();
        assert_eq!(order, [7, 2, 4, 8, 3, 1, 5, 0, 6, 9]);
        assert_eq!(numbers, [852_950, 399_922, 208_815]);
        assert_eq!(permuted, [6, 3, 4, 7, 0, 5, 2, 9, 8, 1]);
    }
}
