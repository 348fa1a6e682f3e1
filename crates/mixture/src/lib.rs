//! Domain weights and quotas: pure f64 state machines, without torch, files or a clock.
//!
//! A [`Policy`] turns what an interval came to ([`Feedback`]) into the weights of the next; each has a file
//! of its own, and says what it [`Needs`] and how often. [`limit`] bounds the weights by the rows that are
//! left, [`Quota`] turns them into whole rows without losing a fraction over the intervals, and
//! [`interval_order`] shuffles those rows. Vectors are indexed by domain, domains being sorted by name.

mod ddk;
mod ddk_no_smoothing;
mod decision;
mod doremi_proxy;
mod equations;
mod feedback;
mod fixed;
mod odm;
mod plan;
mod policy;
mod quota;
mod sheared;

pub use ddk::Ddk;
pub use ddk_no_smoothing::DdkNoSmoothing;
pub use decision::{Decide, Decision, FirstInterval, MixturePolicy, shares_of_domains};
pub use doremi_proxy::DoremiProxy;
pub use equations::{Refused, discrepancy, smooth_update};
pub use feedback::{Feedback, Needs, Perplexities, TrainingSums};
pub use fixed::Fixed;
pub use odm::Odm;
pub use plan::{interval_order, limit};
pub use policy::{Policy, PolicyState};
pub use quota::Quota;
pub use sheared::Sheared;
