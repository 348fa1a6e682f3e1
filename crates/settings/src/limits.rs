//! Upper bounds of settings.

/// Upper limit of steps and intervals, small enough to be multiplied.
pub(crate) const MANY: u64 = 1_000_000_000;
/// Upper limit of rows, positions, passes and steps of an interval.
pub(crate) const LARGE: u64 = 1_000_000;
/// Upper limit of a time in seconds: three years.
pub(crate) const LONGEST_SECONDS: f64 = 1e8;
