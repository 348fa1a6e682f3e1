//! The whole pipeline with fakes: models that hash what they see. No test waits on a clock.

mod fakes;
mod faults;
mod order;
mod resume;
