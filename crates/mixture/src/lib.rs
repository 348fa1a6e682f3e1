//! Domain weights and quotas: pure f64 state machines without torch, files or a clock.
//!
//! A [`Policy`] turns the [`Feedback`] of an interval into the weights of the next. It says what it [`Needs`] and how
//! often. The arithmetic of each policy has its own file. [`limit`] bounds the weights by the sequences that are left,
//! [`Quota`] turns them into whole sequences without losing a fraction over the intervals, and [`interval_order`]
//! shuffles those sequences. Vectors are indexed by domain; domains are sorted by name.
//!
//! ```
//! use ddk_mixture::{Quota, discrepancy, gap, smooth_update};
//!
//! // Student's over teacher's perplexity of two domains.
//! let ratios = [2.0, 1.25];
//! assert!(gap(20.0, 10.0) > gap(12.5, 10.0));
//! let weights = smooth_update(&discrepancy(&ratios)?, &ratios, 0.5)?;
//! assert!(weights[0] > weights[1]);
//! let drawn = Quota::new(2).draw(&weights, 64);
//! assert_eq!(drawn.iter().sum::<u64>(), 64);
//! # Ok::<(), ddk_mixture::Refused>(())
//! ```

mod decision;
mod equations;
mod feedback;
mod plan;
mod policy;
mod quota;

pub use decision::{Decision, InitialMixture, shares_of_domains};
pub use equations::{Refused, discrepancy, smooth_update};
pub use feedback::{Feedback, Needs, Perplexities, TrainingSums, gap, numbers_or_null};
pub use plan::{interval_order, limit};
pub use policy::*;
pub use quota::Quota;
