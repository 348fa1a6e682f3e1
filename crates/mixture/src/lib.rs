//! Domain weights and quotas: pure f64 state machines, without torch, files or a clock.
//!
//! A [`Policy`] turns the perplexities of student and teacher into weights, once an interval. [`limit`] bounds them by the
//! rows that are left, [`Quota`] turns them into whole rows without losing a fraction over the intervals, and
//! [`interval_order`] shuffles those rows. Vectors are indexed by domain, domains being sorted by name.

mod ddk;
mod equations;
mod plan;
mod policy;
mod quota;

pub use ddk::{Ddk, FirstInterval};
pub use equations::{Refused, discrepancy, smooth_update};
pub use plan::{interval_order, limit};
pub use policy::{Decision, Perplexities, Policy, PolicyState, shares_of_domains};
pub use quota::Quota;
