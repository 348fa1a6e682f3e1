//! Computes a random order of `0..len` without storing it.

use rand_chacha::rand_core::Rng;

use crate::stream;

const ROUNDS: usize = 6;

/// A bijection of `0..len` onto itself, drawn from (seed, label, positions), in constant memory and time. A corpus of
/// any size can have a new order of its sequences for each epoch, and a cursor into it is one number.
///
/// This is a balanced Feistel network over the next even number of bits. It encrypts values past `len` again until
/// they fall inside (Black and Rogaway, "Ciphers with arbitrary finite domains"), which takes fewer than four rounds
/// on average.
#[derive(Debug, Clone)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The order of `0..len` for this seed, label and positions.
    pub fn new(len: u64, seed: u64, label: &str, positions: &[u64]) -> Self {
        let mut rng = stream(seed, label, positions);
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Self {
            len,
            half_bits: bits.div_ceil(2).max(1),
            keys: std::array::from_fn(|_| rng.next_u64()),
        }
    }

    /// Returns where position `index` (below `len`) goes. Never panics: an index past the end comes back unchanged.
    pub fn at(&self, index: u64) -> u64 {
        if index >= self.len {
            return index;
        }
        let mut value = self.encrypt(index);
        while value >= self.len {
            value = self.encrypt(value);
        }
        value
    }

    fn encrypt(&self, value: u64) -> u64 {
        let mask = (1_u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        (left << self.half_bits) | right
    }
}

/// A full avalanche of 64 bits (the finalizer of SplitMix64).
fn mix(mut value: u64) -> u64 {
    value ^= value >> 30;
    value = value.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value ^= value >> 27;
    value = value.wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_a_bijection() {
        for len in (0..300).chain([1000, 1023, 1024, 1025, 5000]) {
            let permutation = Permutation::new(len, 9, "test", &[len]);
            let mut seen = vec![false; len as usize];
            for index in 0..len {
                let value = permutation.at(index) as usize;
                assert!(!seen[value], "length {len}: {value} twice");
                seen[value] = true;
            }
        }
    }

    #[test]
    fn huge_lengths_stay_inside_and_passes_differ() {
        let len = (1 << 40) + 12_345;
        let (first, second) = (
            Permutation::new(len, 1, "rows", &[0]),
            Permutation::new(len, 1, "rows", &[1]),
        );
        let mut same = 0;
        for index in 0..10_000 {
            assert!(first.at(index) < len);
            same += u32::from(first.at(index) == second.at(index));
        }
        assert_eq!(same, 0);
    }

    #[test]
    fn neighbors_are_torn_apart() {
        let permutation = Permutation::new(1000, 5, "rows", &[0]);
        let neighbors = (0..999)
            .filter(|&index| permutation.at(index).abs_diff(permutation.at(index + 1)) == 1)
            .count();
        assert!(neighbors < 15, "{neighbors} of 999 pairs stayed neighbors");
    }
}
