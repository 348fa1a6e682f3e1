//! Domain weights and quotas: pure f64 state machines, without torch, files or a clock.
//!
//! A [`Policy`] turns what an interval came to ([`Feedback`]) into the weights of the next; each has a file
//! of its own, and says what it [`Needs`] and how often. [`limit`] bounds the weights by the rows that are
//! left, [`Quota`] turns them into whole rows without losing a fraction over the intervals, and
//! [`interval_order`] shuffles those rows. Vectors are indexed by domain, domains being sorted by name.

mod decision;
mod equations;
mod feedback;
mod plan;
mod policy;
mod quota;

pub use decision::{Decide, Decision, InitialMixture, shares_of_domains};
pub use equations::{Refused, discrepancy, smooth_update};
pub use feedback::{Feedback, Needs, Perplexities, TrainingSums, gap};
pub use plan::{interval_order, limit};
pub use policy::*;
pub use quota::Quota;
