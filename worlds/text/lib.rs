//! Empty: cargo requires a target besides a list of dependencies.
