//! Whole-program tests: they start `ddk` as a user does and look at what it leaves behind.

mod bad_input;
mod commands;
mod interrupted;
mod training;
mod world;
