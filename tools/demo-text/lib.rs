//! Empty: cargo wants a target beside a list of dependencies.
