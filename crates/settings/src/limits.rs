//! Upper bounds of settings.

/// Steps, intervals: more than any run has, and few enough to be multiplied.
pub(crate) const MANY: u64 = 1_000_000_000;
/// Rows, positions, passes, steps of an interval.
pub(crate) const LARGE: u64 = 1_000_000;
/// Three years.
pub(crate) const LONGEST_SECONDS: f64 = 1e8;
