//! Upper bounds of settings.

/// Maximum steps and intervals; small enough to multiply without overflow.
pub(crate) const MANY: u64 = 1_000_000_000;
/// Maximum sequences, positions, epochs, and steps per interval.
pub(crate) const LARGE: u64 = 1_000_000;
/// Maximum time in seconds: three years.
pub(crate) const LONGEST_SECONDS: f64 = 1e8;
