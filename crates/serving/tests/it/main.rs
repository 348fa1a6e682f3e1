//! Tests the client against servers on real sockets: stubs that follow a script, and recorded answers of vLLM.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod answers;
mod faults;
mod flow;
mod outages;
mod recorded;
mod refusals;
mod stub;
mod tls;
mod watch;
