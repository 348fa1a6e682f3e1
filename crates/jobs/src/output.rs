//! Prints results to standard output as JSON.

use std::io::Write;

use serde::Serialize;

/// Prints a result as JSON.
///
/// # Errors
/// If `out` cannot be written.
pub fn print_json(result: &impl Serialize, out: &mut dyn Write) -> anyhow::Result<()> {
    Ok(writeln!(out, "{}", serde_json::to_string_pretty(result)?)?)
}
